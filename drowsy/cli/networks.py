"""Networks by name: of the registry, of other libraries, or made by a function of one's own."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from drowsy import models
from drowsy.cli.libraries import LIBRARIES, find
from drowsy.files.messages import quoted
from drowsy.models import MODELS, ModelInfo, Preprocess
from drowsy.models.checkpoint import load_weights

# What names a network, and what it is in a file, if it is told there.
_RECORDED = {
    "model": str,
    "weights": str,
    "classes": int,
    "resize": int,
    "crop": int,
    "mean": list,
    "std": list,
}
# All but ``model`` of it: options of every command that takes a network.
DETAILS = tuple(name for name in _RECORDED if name != "model")
NAMES = (
    f"{', '.join(MODELS)}, timm:NAME, torchvision:NAME, hf:NAME (a name or a folder), "
    "or MODULE:FUNCTION"
)


@dataclass(frozen=True)
class LibraryInfo(ModelInfo):
    """A network of another library; ``build`` gives it random weights.

    Args:
        trained: makes it with the library's weights.
        told: how images are prepared otherwise than the library does.
    """

    trained: Callable[[], nn.Module] | None = None
    told: Sequence[str] = ()


def note(args: argparse.Namespace, text: str) -> None:
    """Tell something that is no result."""
    print(f"drowsy {args.command}: {text}", file=sys.stderr)


def recorded(args: argparse.Namespace) -> dict[str, Any]:
    """What names the network, JSON-able, so that ``as_recorded`` finds it again."""
    return {name: getattr(args, name) for name in _RECORDED}


def as_recorded(args: argparse.Namespace, made: Mapping[str, Any]) -> argparse.Namespace:
    """The arguments, with the network of ``recorded`` where they name none.

    Raises:
        ValueError: neither names one, the file alone names code, or tells what no option takes.
    """
    told = made.get("network")
    told = told if isinstance(told, dict) and told.get("model") else {}
    for name, kind in _RECORDED.items():
        if type(value := told.get(name)) not in (kind, type(None)):
            raise ValueError(
                f"{name}: got {quoted(value)} in the file, allowed: what the option --{name} takes"
            )
    if args.model is None and not told:
        raise ValueError(
            f"model: got none, which the file does not tell, allowed: {NAMES} (--model)"
        )
    if args.model is None and _is_code(told["model"]):
        # A file is a stranger's, and may come with a module beside it.
        raise ValueError(
            f"model: got none, and the file names {quoted(told['model'])}, allowed: --model "
            f"{shlex.quote(told['model'])}, as code runs by your word alone"
        )
    if args.model not in (None, told.get("model")):
        # Of another network by name, its details are its own.
        told = {}
    given = recorded(args)
    known = {name: told.get(name) for name in given}
    found = {name: known[name] if given[name] is None else given[name] for name in given}
    return argparse.Namespace(**{**vars(args), **found})


def _is_code(name: str) -> bool:
    """Whether a name is of a function to import, and not of the registry or a library."""
    return name not in MODELS and name.partition(":")[0] not in LIBRARIES


def load_model(args: argparse.Namespace, trained: bool = True) -> tuple[nn.Module, ModelInfo]:
    """The network; not ``trained``, random weights will do where none are given."""
    info = model_info(args)
    model: nn.Module
    if isinstance(info, LibraryInfo):
        for line in info.told if trained else ():
            note(args, f"{info.name}: {line}")
    if info.name in MODELS and (trained or args.weights):
        model = models.load(info.name, args.weights)
    elif isinstance(info, LibraryInfo) and info.trained and trained and not args.weights:
        model = build_model(replace(info, build=info.trained))
    else:
        model = build_model(info)
        if args.weights:
            load_weights(model, Path(args.weights))
        elif trained:
            note(args, f"{info.name} has the weights that its function gave it (--weights: others)")
    return model, info


def about_weights(args: argparse.Namespace) -> dict[str, str]:
    """Where the weights of a network of one's own are from, for a record."""
    if args.model in MODELS:
        return {}
    ours = (
        "the library's"
        if isinstance(model_info(args), LibraryInfo)
        else "as the function made them"
    )
    return {"weights": args.weights or ours}


def build_model(info: ModelInfo) -> nn.Module:
    """A network as its function makes it, in eval mode."""
    try:
        model = info.build()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"model: {info.name} raised {type(error).__name__}: {error} "
            f"({where.filename}, line {where.lineno})"
        ) from error
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: got {info.name}, which makes a {type(model).__name__}, "
            "allowed: a function that makes a torch.nn.Module"
        )
    return model.eval()


def model_info(args: argparse.Namespace) -> ModelInfo:
    """What ``--model`` names: its function, and how images are made for it."""
    info = MODELS.get(args.model)
    if info is not None:
        return replace(info, preprocess=_preprocess(args, vars(info.preprocess)))
    found = find(args.model, args.classes)
    if found is None:
        build, told = _find_function(args.model), vars(MODELS["resnet18"].preprocess)
        return ModelInfo(args.model, build, _preprocess(args, told), args.classes or 1000)
    if args.classes not in (None, found.classes) and not args.weights:
        raise ValueError(
            f"classes: got {args.classes}, allowed: with --weights, as {args.model} has "
            f"{found.classes}"
        )
    return LibraryInfo(
        args.model,
        lambda: found.make(False),
        _preprocess(args, found.preprocess),
        args.classes or found.classes,
        trained=lambda: found.make(True),
        told=found.told,
    )


def _preprocess(args: argparse.Namespace, told: Mapping[str, Any]) -> Preprocess:
    """What is told of images, but for what options say."""
    given = {name: getattr(args, name) for name in ("resize", "crop", "mean", "std")}
    found = {name: told[name] if value is None else value for name, value in given.items()}
    if found["crop"] is None:
        raise ValueError(f"crop: got none, allowed: --crop SIDE, as {args.model} takes any size")
    return Preprocess(found["resize"], found["crop"], tuple(found["mean"]), tuple(found["std"]))


def _find_function(given: str) -> Callable[[], nn.Module]:
    """The function ``MODULE:FUNCTION``, which may import from the current folder when it runs."""
    module, _, name = given.partition(":")
    if not module or not name:
        raise ValueError(
            f"model: got {given!r}, allowed: {NAMES} for a function of yours that makes the network"
        )
    try:
        with current_folder_importable():
            found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ImportError(
            f"model: got {given!r}, which cannot be imported ({error}), "
            "allowed: MODULE:FUNCTION with a module in this folder or on Python's path"
        ) from error
    if not callable(found):
        raise ValueError(
            f"model: got {given!r}, but {module} has no function {name}, "
            "allowed: MODULE:FUNCTION for a function that makes the network"
        )

    def build() -> nn.Module:
        with current_folder_importable():
            return found()

    return build


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """The current folder first among the places to import from, for as long as this lasts."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        # Whatever was imported meanwhile may have changed the path, or removed this.
        if "" in sys.path:
            sys.path.remove("")
