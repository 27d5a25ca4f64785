"""Operations that write their result over their first argument: found, checked and replaced."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from drowsy.graph.running import Executor, Values
from drowsy.network.net import DrowsyNet

_OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


@dataclass(frozen=True)
class Overwriting:
    """A call that writes its result over what it reads first, and its out-of-place twin.

    Args:
        overwritten: the node whose tensor it writes over.
        twin: a function, a method's name or, for a call of a module, that module; does the same
            without writing over anything. None where no such function is known.
        args, kwargs: of the twin.
    """

    overwritten: fx.Node
    twin: Callable[..., Any] | str | nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def overwriting(node: fx.Node, modules: Mapping[str, Any]) -> Overwriting | None:
    """How a node overwrites; None for one that does not. ``modules`` are the network's by name."""
    if not node.all_input_nodes:
        return None
    twin: Any = node.target
    args, kwargs = node.args, dict(node.kwargs)
    if node.op == "call_module":
        module = modules[str(node.target)]
        if not getattr(module, "inplace", False):
            return None
        twin = copy.copy(module)
        twin.inplace = False
    elif node.op not in ("call_function", "call_method"):
        return None
    elif kwargs.get("inplace"):
        kwargs["inplace"] = False
    elif (place := _asked_at(node)) is not None:
        args = (*args[:place], False, *args[place + 1 :])
    elif node.target in _OPERATORS:
        twin = _OPERATORS[node.target]
    elif _named_in_place(node):
        twin = _without_underscore(node.target)
    else:
        return None
    return Overwriting(node.all_input_nodes[0], twin, args, kwargs)


def _asked_at(node: fx.Node) -> int | None:
    """Where among a call's positional arguments is an ``inplace`` that is true."""
    if node.op != "call_function":
        return None
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin, which has no such argument
        return None
    place = names.index("inplace") if "inplace" in names else len(node.args)
    return place if any(node.args[place : place + 1]) else None


def _named_in_place(node: fx.Node) -> bool:
    """Whether a function or method has torch's name for one that overwrites: ``relu_``."""
    name = str(getattr(node.target, "__name__", node.target))
    return name.endswith("_") and not name.endswith("__")


def _without_underscore(target: Any) -> Callable[..., Any] | str | None:
    if isinstance(target, str):
        return target[:-1]
    name = target.__name__[:-1]
    return next((getattr(home, name) for home in (torch, F) if hasattr(home, name)), None)


def give_own_memory(values: Values, node: fx.Node) -> None:
    """Copy the memory of a node's tensor, for that tensor and for whatever views it."""
    tensor = values[node]
    if not isinstance(tensor, Tensor):
        return
    old = tensor.untyped_storage()
    new = old.clone()

    def moved(held: Any) -> Any:
        if not isinstance(held, Tensor) or held.untyped_storage().data_ptr() != old.data_ptr():
            return held
        return held.new_empty(0).set_(new, held.storage_offset(), held.shape, held.stride())

    # Nodes that give several tensors, as ``chunk`` does, hold tuples of them.
    for holder, held in values.items():
        values[holder] = fx.node.map_aggregate(held, moved)


def check_overwritten(net: DrowsyNet, example: Tensor) -> None:
    """Raise ValueError if a node overwrites a tensor that is read later through another view."""
    executor = Executor(net)
    place = {node: i for i, node in enumerate(executor.nodes)}
    # The tensor that the result of an in-place operation is.
    origin: dict[fx.Node, fx.Node] = {}

    def check(node: fx.Node, used: fx.Node, held: Mapping[fx.Node, Tensor]) -> None:
        """Of a node that has overwritten the tensor of ``used``."""
        origin[node] = origin.get(used, used)
        memory = held[used].untyped_storage()._cdata
        for other, value in held.items():
            reader = executor.last_reader.get(other)
            if reader is None or place[reader] <= place[node]:
                continue
            shared = value.untyped_storage()._cdata == memory
            if shared and origin.get(other, other) != origin[node]:
                raise ValueError(
                    f"net: {node.name} overwrites memory that {reader.name} reads through "
                    f"{other.name}; allowed: networks that overwrite no tensor of which a view is "
                    "read later"
                )

    # Inference tensors count no versions: not in inference mode, and on a tensor made here.
    with torch.inference_mode(False), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        size, stride = example.shape, example.stride()
        values = executor.start(
            torch.empty_strided(size, stride, dtype=example.dtype, device=example.device)
        )
        for node in executor.nodes:
            held = {used: value for used, value in values.items() if isinstance(value, Tensor)}
            versions = {used: held[used]._version for used in node.all_input_nodes if used in held}
            values[node] = executor.compute(node, values)
            for used, version in versions.items():
                if held[used]._version != version and values[node] is held[used]:
                    check(node, used, held)
            executor.drop(node, values)


def without_overwriting(
    graph: fx.Graph, modules: dict[str, Any], copies: dict[fx.Node, fx.Node]
) -> fx.Graph:
    """A copy of a graph in which no node overwrites its argument.

    What an in-place operation overwrote, later nodes read from its result. ``modules`` gains the
    out-of-place twins of modules, ``copies`` the copy of every node.
    """
    made = fx.Graph()
    made.output(made.graph_copy(graph, copies))  # type: ignore[arg-type]
    place = {node: i for i, node in enumerate(made.nodes)}
    for node in made.nodes:
        found = overwriting(node, modules)
        if found is None or found.twin is None:
            continue
        if isinstance(found.twin, nn.Module):
            node.target = f"{node.target}_pure"
            modules[node.target] = found.twin
        else:
            node.target, node.args, node.kwargs = found.twin, found.args, found.kwargs
        for user in list(found.overwritten.users):
            if place[user] > place[node]:
                user.replace_input_with(found.overwritten, node)
    return made
