"""What ``convert`` did with a network, and which kernels would run it, as text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from drowsy.files.tables import align
from drowsy.knob.costs import layer_costs
from drowsy.network.net import DrowsyNet
from drowsy.network.report import LayerReport
from drowsy.sleep import Grain

if TYPE_CHECKING:
    from drowsy_kernels.tuning import Choice, ConvShape, TuningTable


# One of each kind; tiles as large as the kernels' own.
GRAINS = ("neuron", "position", "tile:128x128", "channel")


def inspect(net: DrowsyNet, shares: Mapping[str, float] | None = None) -> str:
    """One line a convolution: what belongs to its neurons, its fill, and why; then a summary.

    "then" names the batch norm (".bn1" is one beside the convolution) and the activation that a
    layer computes too. Which layers rest, and whether the model's graph tells the truth, is known
    once the network has run; the summary says where it has not. Where layers share streams there is
    a column of them, "stream + phase": equal ones share a map.

    Args:
        net: a converted network.
        shares: of all multiplications of the network, from ``layer_shares``; adds a column.
    """
    header = ["layer", "convolution", "then", "fill", "why"]
    rows = [
        [line.name, line.geometry, _then(line), line.fill or "-", _why(line, net)]
        for line in net.report
    ]
    maps = {
        name: f"{layer.sleep.stream}" + (f" + {layer.sleep.phase}" if layer.sleep.phase else "")
        for name, layer in net.layers.items()
    }
    if list(maps.values()) != [str(number) for number in range(len(maps))]:
        header.insert(3, "stream")
        for row in rows:
            row.insert(3, maps.get(row[0], "-"))
    if shares is not None:
        header.insert(2, "share")
        for row in rows:
            row.insert(2, f"{shares[row[0]]:.1%}" if row[0] in shares else "-")
    told = "\n".join(
        textwrap.fill(text, 100, initial_indent=f"{title:<8}", subsequent_indent=" " * 8)
        for title, text in _summary(net, shares).items()
    )
    return f"{align([header, *rows])}\n\n{told}"


def _then(line: LayerReport) -> str:
    """What a layer computes besides its convolution."""
    parent = line.name.rpartition(".")[0] + "."
    norm = (line.norm or "").removeprefix(parent if parent != "." else "")
    if norm != line.norm and norm:
        norm = f".{norm}"
    activation = line.activation if line.activation != "none" else None
    return ", ".join(filter(None, (norm, activation))) or "-"


def _why(line: LayerReport, net: DrowsyNet) -> str:
    return f"rests: {net.resting[line.name]}" if line.name in net.resting else line.reason


def _summary(net: DrowsyNet, shares: Mapping[str, float] | None) -> dict[str, str]:
    """What is to be said of the network as a whole, by title."""
    resting = "known once the network has run"
    if net.settled:
        count = len(net.resting)
        resting = (
            f"{count} of them, which stay awake unless a setting names them" if count else "none"
        )
    told = {
        "drowsy": f"{len(net.layers)} of {len(net.report)} convolutions",
        "resting": resting,
        "graph": net.known.reason if net.graph is not None else f"none: {net.known.reason}",
    }
    if shares is not None:
        told["share"] = (
            "of all multiplications of the network, of which convolutions are "
            f"{sum(shares.values()):.1%}"
        )
    return told


def layer_shapes(model: nn.Module, image: Sequence[int]) -> list[tuple[str, ConvShape]]:
    """Name and shape of every ``nn.Conv2d`` that runs (drowsy or not), in order of execution.

    Args:
        model: in eval mode. A model on the ``meta`` device costs no memory or time.
        image: ``(C, H, W)`` of one image.
    """
    # Imported here: ``import drowsy`` must work where there is no Triton.
    from drowsy.backends.triton import conv_shape

    return [(cost.name, conv_shape(cost.size)) for cost in layer_costs(model, image)]


def inspect_kernels(
    net: nn.Module,
    image: Sequence[int],
    *,
    batch: int = 32,
    dtype: torch.dtype = torch.float16,
    gpu: str | None = None,
) -> str:
    """What runs each convolution at each grain while the rate may change, and why.

    Args:
        net: a network, converted or not.
        image: ``(C, H, W)`` of one image.
        batch: images per inference.
        dtype: float16, bfloat16 or float32 (which takes TF32 where torch allows it).
        gpu: a GPU that has a tuning table, or an architecture such as ``sm_90``; by default the
            one in this machine.

    Raises:
        ValueError: a GPU that is neither.
    """
    from drowsy_kernels import tuning

    if gpu is None and not torch.cuda.is_available():
        return (
            "no CUDA device here: the torch backend runs every layer (name a GPU to see its plan)"
        )
    title, table, capability = _gpu(gpu)
    precision = "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
    number = tuning.number_format(dtype, precision)
    rows = [["layer", "shape", "grain", "method", "blocks", "why"]]
    for name, shape in layer_shapes(net, image):
        awake = tuning.choose(
            shape,
            images=batch,
            number=number,
            cell=(1, 1),
            fixed_rate=True,
            table=table,
            capability=capability,
        )
        rows.append([name, str(shape), "rate 0, fixed", *_describe(awake)])
        for grain in GRAINS:
            choice = tuning.choose(
                shape,
                images=batch,
                number=number,
                cell=Grain.parse(grain).cell(shape.out_channels, shape.positions),
                rate=0.5,
                table=table,
                capability=capability,
            )
            rows.append(["", "", grain, *_describe(choice)])
    return f"{title}, batch {batch}, {number}\n{align(rows)}"


def _describe(choice: Choice) -> list[str]:
    return [choice.method, str(choice.config or "-"), choice.reason]


def _gpu(name: str | None) -> tuple[str, TuningTable | None, tuple[int, int]]:
    """``(title, table, compute capability)`` of this machine's GPU or of a named one."""
    from drowsy_kernels import tuning

    if name is None:
        here = torch.cuda.get_device_name()
        return here, tuning.table_for(here), torch.cuda.get_device_capability()
    architecture = re.fullmatch(r"sm_(\d+)(\d)", name)
    if architecture:
        return name, None, (int(architecture[1]), int(architecture[2]))
    table = tuning.table_for(name)
    if table is None:
        known = ", ".join(tuning.recorded_gpus()) or "none yet"
        raise ValueError(
            f"gpu: got {name!r}, allowed: one that has a tuning table ({known}), or an "
            "architecture such as sm_90"
        )
    return table.gpu, table, table.capability
