"""Which networks of other libraries ``drowsy.convert`` converts, and whether it does so rightly.

    python -m bench.coverage 'timm/convnext*' transformers/ResNetBackbone
    python -m bench.coverage --out docs/study/coverage

Without patterns all of them. Needs the libraries of ``bench/requirements-coverage.txt``. Each
network runs in a process of its own, with a limit of time and of memory. Its weights are random and
such that a wrong conversion shows: what initialisation leaves at one value is drawn, and batch
norms get statistics that are off those of their inputs. The verdicts:

``graph``, ``module``
    Converted, with a graph or without one. At rate 0 every output agrees within rounding, and the
    network it was made from still computes what it did.
``refused``
    ``convert`` raised ValueError or TypeError.
``wrong``
    The outputs at rate 0 differ, or the network it was made from has changed.
``failed``
    Anything else: another error, out of time or of memory.

Two things are told of a converted network beside: how many of the convolutions that run became
drowsy, and whether it runs at rate 1/2, to finite outputs that are not those at rate 0 (else the
comparison at rate 0 says nothing of the sleeping layers).
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import functools
import math
import multiprocessing
import os
import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

import drowsy
from bench.architectures import Architecture, Example, catalogue
from bench.study_page import fill, markdown
from drowsy.files.atomic import write_json
from drowsy.files.provenance import provenance
from drowsy.files.tables import Row

PAGE = "README.md"
CONVERTED = ("graph", "module")
VERDICTS = (*CONVERTED, "refused", "wrong", "failed")
# The largest difference of a tensor, of its largest element. Networks amplify rounding beyond the
# first, some without bound (a threshold crossed, a ranking that turns). In float64 it shrinks by
# 2^29, and a fault does not: the second is below any single rounding in float32.
TOLERANCE, TOLERANCE_64 = 1e-4, 1e-8
_SEED = 7


# --- one network ---------------------------------------------------------------------------------


def examine(model: nn.Module, example: Example) -> Row:
    """Convert a network and compare: the verdict and what led to it, JSON-able.

    Args:
        model: ``enliven``ed, in eval mode.
        example: what it is called with.
    """
    before = outputs(model, example)
    row: Row = {
        "convolutions": _convolutions(model, example),
        "random": distance(before, outputs(model, example, seed=_SEED + 1))[0] > 0,
    }
    try:
        net = drowsy.convert(model, example)
    except (TypeError, ValueError) as error:
        return row | {"verdict": "refused", "reason": _told(error)}
    left = Counter(line.reason for line in net.report if line.fill is None)
    row |= {"drowsy": len(net.layers), "left": dict(left)}

    awake = outputs(net, example)
    row["compared_in"], apart = "float32", distance(before, awake)
    agrees = apart[0] <= TOLERANCE
    if not agrees and (twice := _in_float64(model, example)):
        row["compared_in"], apart = "float64", twice
        agrees = apart[0] <= TOLERANCE_64
    row["difference"] = apart[0] if math.isfinite(apart[0]) else None
    if not agrees:
        return row | {"verdict": "wrong", "reason": f"at rate 0: {apart[1]}"}
    if distance(before, outputs(model, example))[0] > 0:
        return row | {"verdict": "wrong", "reason": "the network it was made from has changed"}
    verdict = "module" if net.graph is None else "graph"
    return row | {"verdict": verdict, "reason": "", "half": _at_half(net, example, awake)}


def _in_float64(model: nn.Module, example: Example) -> tuple[float, str] | None:
    """The distance at rate 0 in float64; None where the network itself does not run in it."""
    model = copy.deepcopy(model).double()
    example = mapped(lambda x: x.double() if x.is_floating_point() else x, example)
    try:
        before = outputs(model, example)
    except RuntimeError:
        return None
    return distance(before, outputs(drowsy.convert(model, example), example), rounded=True)


def _at_half(net: drowsy.DrowsyNet, example: Example, awake: Any) -> str:
    """``runs``, or what is amiss at rate 1/2."""
    net.set(1 / 2)
    net.reseed(_SEED)
    try:
        found = outputs(net, example)
    except Exception as error:  # whatever the network's own code raises
        return f"{type(error).__name__}: {_told(error)}"
    if not finite(found):
        return "outputs are not finite"
    return "runs" if distance(awake, found)[0] > TOLERANCE else "no output follows the knob"


def outputs(model: nn.Module, example: Example, seed: int = _SEED) -> Any:
    """What a network puts out; torch's generator starts from ``seed``."""
    torch.manual_seed(seed)
    # Its own copy: a network may write on its inputs, and put them out.
    given = mapped(Tensor.clone, example)
    with torch.inference_mode():
        if isinstance(given, dict):
            return model(**given)
        return model(*given) if isinstance(given, tuple) else model(given)


def _convolutions(model: nn.Module, example: Example) -> int:
    """How many convolution modules of any kind run."""
    ran: set[nn.Module] = set()
    handles = [
        module.register_forward_pre_hook(lambda module, _: ran.add(module))
        for module in model.modules()
        if isinstance(module, _ConvNd)
    ]
    outputs(model, example)
    for handle in handles:
        handle.remove()
    return len(ran)


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]


# --- weights that show what is wrong -------------------------------------------------------------


def enliven(model: nn.Module, example: Example, seed: int = 0) -> None:
    """Draw parameters and statistics such that every layer's part in the outputs can be seen.

    Convolutions get He's initialisation. Parameters that hold one value throughout (a norm's
    weight, a bias, a layer's scale of 1e-6) are drawn around 1, or around 0 where that is the
    value. Batch norms get the mean and variance of their inputs for ``example``, moved at random.

    Raises:
        ValueError: the outputs are not finite, or are others from the same start of the generator.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _ConvNd) and "weight" in module._parameters:
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, math.sqrt(2 / fan_in), generator=generator)
        for name, values in _learned(module):
            if (
                values.is_floating_point()
                and values.numel()
                and bool((values == values.flatten()[0]).all())
            ):
                if bool(values.any()) or (_holds_statistics(module) and name == "weight"):
                    values.uniform_(0.5, 1.5, generator=generator)
                else:
                    values.normal_(0, 0.1, generator=generator)
    waiting: dict[nn.Module, RemovableHandle] = {}
    for module in model.modules():
        if _holds_statistics(module):
            hook = functools.partial(_give_statistics, waiting, generator)
            waiting[module] = module.register_forward_pre_hook(hook)
    outputs(model, example)
    for handle in waiting.values():
        handle.remove()
    once, twice = outputs(model, example), outputs(model, example)
    if not finite(once):
        raise ValueError("outputs are not finite")
    if distance(once, twice)[0] > 0:
        raise ValueError("a second call gives other outputs")


def _holds_statistics(module: nn.Module) -> bool:
    """Whether it is a batch norm, or a library's own frozen one."""
    return isinstance(module._buffers.get("running_var"), Tensor)


def _learned(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Its own parameters; of a frozen batch norm they are buffers."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter.data
    for name in ("weight", "bias") if _holds_statistics(module) else ():
        buffer = module._buffers.get(name)
        if buffer is not None:
            yield name, buffer


def _give_statistics(
    waiting: dict[nn.Module, RemovableHandle],
    generator: torch.Generator,
    norm: nn.Module,
    given: tuple[Tensor, ...],
) -> None:
    """A hook for the first call: later ones are of shared norms."""
    waiting.pop(norm).remove()
    x = given[0].double()
    rest = [dim for dim in range(x.dim()) if dim != 1]
    mean, variance = x.mean(rest), x.var(rest, correction=0)
    # A channel of few or equal values has none to speak of.
    variance = variance.clamp_min(0.1 * x.var(correction=0).item() + 1e-3)
    shift, spread = (torch.rand(mean.shape, generator=generator).double() * 2 - 1 for _ in "12")
    norm.get_buffer("running_mean").copy_(mean + 0.5 * shift * variance.sqrt())
    norm.get_buffer("running_var").copy_(variance * 2**spread)


# --- nested outputs ------------------------------------------------------------------------------


def leaves(value: Any, path: str = "output") -> Iterator[tuple[str, Any]]:
    """Tensors, numbers and texts of nested outputs with their paths, in a fixed order.

    Raises:
        TypeError: something is held of which the leaves are not known.
    """
    if value is None or isinstance(value, (Tensor, str, bool, int, float, torch.Size)):
        yield path, value
    elif isinstance(value, Mapping):
        for key in value:
            yield from leaves(value[key], f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from leaves(each, f"{path}[{index}]")
    elif is_dataclass(value):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    else:
        raise TypeError(f"{path}: got {type(value).__name__}, allowed: tensors, or what holds them")


def distance(expected: Any, found: Any, *, rounded: bool = False) -> tuple[float, str]:
    """How far nested outputs are apart: of the worst tensor its distance, and which it is.

    A tensor's is its largest difference over the largest element expected; infinity where shapes,
    structures, dtypes, integers or what is not finite differ.

    Args:
        expected, found: the outputs.
        rounded: let a tensor of a narrower type than float64 differ by one rounding of its own, as
            a network in float64 may put out.
    """
    left, right = list(leaves(expected)), list(leaves(found))
    if [path for path, _ in left] != [path for path, _ in right]:
        return math.inf, f"{len(left)} leaves expected, {len(right)} found, or other names"
    worst, where = 0.0, ""
    for (path, a), (_, b) in zip(left, right, strict=True):
        apart = _apart(a, b)
        if rounded and isinstance(a, Tensor) and a.dtype in (torch.float32, torch.float16):
            apart = 0.0 if apart <= torch.finfo(a.dtype).eps else apart
        if apart > worst:
            worst, where = apart, f"{path} by {apart:.1e}"
    return worst, where


def _apart(a: Any, b: Any) -> float:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return 0.0 if type(a) is type(b) and a == b else math.inf
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else math.inf
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return math.inf
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return math.inf
    a, b = a[finite], b[finite]
    if not a.numel():
        return 0.0
    largest, difference = a.abs().max().item(), (a - b).abs().max().item()
    return difference / largest if largest else (math.inf if difference else 0.0)


def finite(value: Any) -> bool:
    """Whether all numbers in nested outputs are."""
    tensors = (leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor))
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def mapped(change: Callable[[Tensor], Tensor], example: Any) -> Any:
    """An example with every tensor changed."""
    if isinstance(example, Tensor):
        return change(example)
    if isinstance(example, dict):
        return {key: mapped(change, value) for key, value in example.items()}
    if isinstance(example, (list, tuple)):
        return type(example)(mapped(change, each) for each in example)
    return example


# --- all of them ---------------------------------------------------------------------------------


def run_apart(architecture: Architecture, limit: float, memory: float) -> Row:
    """Examine a network in a process of its own.

    Args:
        architecture: which.
        limit: seconds until the process is ended.
        memory: GiB that it may hold.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(architecture, memory, there), daemon=True)
    process.start()
    there.close()
    try:
        if here.poll(limit):
            row = here.recv()
        else:
            row = {"verdict": "failed", "reason": f"not done within {limit:g} s", "seconds": limit}
    except EOFError:
        process.join()
        reason = f"its process ended with {process.exitcode}"
        row = {"verdict": "failed", "reason": reason, "seconds": 0.0}
    finally:
        process.kill()
        process.join()
    return {"library": architecture.library, "name": architecture.name, **row}


def _child(architecture: Architecture, memory: float, pipe: Connection) -> None:
    size = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # Libraries write of their own doings.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    stage = "before it is converted: "
    try:
        torch.manual_seed(_SEED)
        model, example = architecture.build(), architecture.example()
        enliven(model, example)
        stage = ""
        row = examine(model, example)
    except Exception as error:
        reason = f"{stage}{type(error).__name__}: {_told(error)}"
        row = {"verdict": "failed", "reason": reason}
    # Of the processor: others may want it.
    pipe.send({**row, "seconds": round(time.process_time(), 2)})


def chosen(patterns: Sequence[str]) -> list[Architecture]:
    """Networks whose ``library/name`` fits one of the patterns; all without any.

    Raises:
        ValueError: a pattern that no name fits.
    """
    everything = catalogue()
    for pattern in patterns:
        if not fnmatch.filter(map(str, everything), pattern):
            raise ValueError(
                f"patterns: {pattern!r} fits no network, allowed: names as "
                f"{', '.join(map(str, everything[:3]))}, with * and ?"
            )
    fitting = {name for p in patterns or ["*"] for name in fnmatch.filter(map(str, everything), p)}
    return [each for each in everything if str(each) in fitting]


def line(row: Row) -> str:
    """What is told of a network while they run."""
    name = f"{row['library']}/{row['name']}"
    layers = f"{row['drowsy']}/{row['convolutions']}" if "drowsy" in row else ""
    half = row.get("half", "")
    told = row["reason"] or ("" if half == "runs" else f"at rate 1/2: {half}")
    return (
        f"{name:<58} {row['verdict']:<8} {layers:>8} {row['seconds']:6.1f} s  {told[:150]}".rstrip()
    )


# --- tables --------------------------------------------------------------------------------------


def counts_table(rows: Sequence[Row]) -> str:
    """Markdown: networks by library and verdict, and how many convolutions became drowsy."""
    header = ["library", "networks", "with a graph", "without", "refused", "wrong", "failed"]
    table = [[*header, "run at 1/2", "drowsy convolutions"]]
    libraries = {
        library: [r for r in rows if r["library"] == library] for library in _libraries(rows)
    }
    for title, mine in {**libraries, "all": list(rows)}.items():
        verdicts = Counter(row["verdict"] for row in mine)
        converted = [row for row in mine if row["verdict"] in CONVERTED]
        counts = [len(mine), *(verdicts[verdict] for verdict in VERDICTS)]
        counts.append(sum(row["half"] == "runs" for row in converted))
        asleep, of = (sum(row[key] for row in converted) for key in ("drowsy", "convolutions"))
        table.append([title, *map(str, counts), f"{asleep:,} of {of:,}"])
    return markdown(table)


def faults_table(rows: Sequence[Row]) -> str:
    """Markdown: networks that are not converted, wrong, or do not run at rate 1/2, and why."""
    table = [["network", "verdict", "reason"]]
    for row in rows:
        name = f"{row['library']}/{row['name']}"
        if row["verdict"] not in CONVERTED:
            table.append([name, row["verdict"], _cell(row["reason"])])
        elif row["half"] != "runs":
            table.append([name, "not at 1/2", _cell(row["half"])])
    return markdown(table) if len(table) > 1 else "None."


def left_table(rows: Sequence[Row]) -> str:
    """Markdown: why convolutions of converted networks stay awake, the most frequent first."""
    convolutions: Counter[str] = Counter()
    networks: Counter[str] = Counter()
    for row in rows:
        if row["verdict"] in CONVERTED:
            convolutions.update(row["left"])
            networks.update(row["left"].keys())
    table = [["reason", "convolutions", "networks"]]
    table += [[_cell(r), str(n), str(networks[r])] for r, n in convolutions.most_common()]
    return markdown(table) if len(table) > 1 else "None."


def provenance_text(record: Row) -> str:
    """What was converted by what."""
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    seconds = sum(row["seconds"] for row in record["networks"])
    commit = (record["commit"] or "unknown")[:12]
    return f"Commit {commit}; {versions}. {len(record['networks'])} networks took {seconds:,.0f} s."


def _libraries(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["library"] for row in rows))


def _cell(text: str) -> str:
    text = text if len(text) <= 240 else text[:237] + "..."
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("patterns", nargs="*", help="of library/name, with * and ?; default: all")
    parser.add_argument(
        "--out", type=Path, help=f"folder for coverage.json and, if it is there, {PAGE}"
    )
    parser.add_argument("--limit", type=float, default=180, help="seconds for one network")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--memory", type=float, default=8, help="GiB for one network")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    networks = chosen(args.patterns)
    for library in dict.fromkeys(network.library for network in networks):
        # Once, here: a process for each network starts from it.
        import_module(library)
    rows = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(lambda each: run_apart(each, args.limit, args.memory), networks):
            rows.append(row)
            print(line(row), flush=True)
    print("\n\n".join(["", counts_table(rows), faults_table(rows), left_table(rows)]))
    if args.out:
        facts = provenance()
        facts["versions"] |= {library: version(library) for library in _libraries(rows)}
        limits = {"seconds": args.limit, "memory_gib": args.memory}
        tolerances = {"float32": TOLERANCE, "float64": TOLERANCE_64}
        record = {"limits": limits, "tolerances": tolerances, **facts, "networks": rows}
        write_json(args.out / "coverage.json", record)
        if (args.out / PAGE).exists():
            write_page(args.out / PAGE, record)


def write_page(page: Path, record: Row) -> None:
    """Fill a page's tables from a record."""
    rows = record["networks"]
    tables = {"counts": counts_table, "faults": faults_table, "left": left_table}
    fill(
        page,
        {
            "provenance": lambda: provenance_text(record),
            **{name: functools.partial(table, rows) for name, table in tables.items()},
        },
    )


if __name__ == "__main__":
    main()
