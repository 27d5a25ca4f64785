"""Operations that write over what they read: found, kept apart, checked and replaced."""

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
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet

_OPERATORS: dict[Any, Callable[..., Any] | None] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
    operator.setitem: None,
}


@dataclass(frozen=True)
class Overwriting:
    """A call that writes its result over what it reads, and its out-of-place twin.

    Args:
        overwritten: the nodes whose tensors it writes over; one, where there is a twin.
        twin: a function, a method's name or, for a call of a module, that module; does the same
            without writing over anything. None where no such function is known.
        args, kwargs: of the twin.
    """

    overwritten: tuple[fx.Node, ...]
    twin: Callable[..., Any] | str | nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def overwriting(node: fx.Node, modules: Mapping[str, Any]) -> Overwriting | None:
    """How a node overwrites, as far as its name and its arguments tell; None where they do not.

    ``modules`` are the network's by name.
    """
    if not node.all_input_nodes:
        return None
    twin: Any = node.target
    args, kwargs = node.args, dict(node.kwargs)
    target: Any = next(each for each in (*args, *kwargs.values()) if _nodes(each))
    if node.op == "call_module":
        module = modules[str(node.target)]
        if not getattr(module, "inplace", False):
            return None
        twin = copy.copy(module)
        twin.inplace = False
    elif node.op not in ("call_function", "call_method"):
        return None
    elif kwargs.get("out") is not None:
        target = kwargs.pop("out")
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
    overwritten = _nodes(target)
    # What is written over several tensors has no one result that could stand for them.
    return Overwriting(overwritten, twin if overwritten == (target,) else None, args, kwargs)


def _nodes(argument: Any) -> tuple[fx.Node, ...]:
    """The nodes in an argument, which may hold them in lists."""
    found: dict[fx.Node, None] = {}
    fx.map_arg(argument, lambda used: found.setdefault(used))
    return tuple(found)


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
        return target[:-1] if hasattr(Tensor, target[:-1]) else None
    name = target.__name__[:-1]
    return next((getattr(home, name) for home in (torch, F) if hasattr(home, name)), None)


class Apart(Executor):
    """An ``Executor`` whose nodes write over nothing that others hold.

    So one state can be gone on from again and again: values may be shared, and what a node
    overwrites gets memory of its own first, for all values of the state that view it. What torch's
    own operations overwrite is known by their names; of others it is seen when they first run. Not
    in inference mode, in which tensors do not tell that they were written to.
    """

    def __init__(self, net: DrowsyNet) -> None:
        super().__init__(net)
        modules = net.parts
        self._overwritten: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node in self.nodes:
            if found := overwriting(node, modules):
                self._overwritten[node] = found.overwritten
            elif _is_torchs_own(node, modules):
                self._overwritten[node] = ()

    def compute(self, node: fx.Node, values: Values) -> Any:
        """As for ``Executor``; in ``values`` what is overwritten lies in memory of its own then.

        Raises:
            ValueError: the node overwrote what it was not known to.
        """
        inputs = node.all_input_nodes
        overwritten = self._overwritten.get(node, tuple(inputs))
        for used in overwritten:
            give_own_memory(values, used)
        before = {used: _versions(values[used]) for used in inputs}
        result = super().compute(node, values)
        written = [used for used in inputs if _versions(values[used]) != before[used]]
        known = self._overwritten.setdefault(node, tuple(written))
        if unknown := [used.name for used in written if used not in known]:
            raise ValueError(
                f"net: {node.name} overwrites {', '.join(unknown)}, which {node.target} is not "
                "known to do; allowed: torch's in-place operations (relu_, inplace=True, out=)"
            )
        return result


def _is_torchs_own(node: fx.Node, modules: Mapping[str, Any]) -> bool:
    """Whether a node is of Python or torch, whose names tell what overwrites."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, DrowsyConv2d) or type(module).__module__.startswith("torch.nn.")
    if node.op != "call_function":
        return True
    if isinstance(node.target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return False
    home = getattr(node.target, "__module__", None) or "builtins"
    return home.split(".")[0] in ("torch", "_operator", "builtins", "math")


def _tensors(value: Any) -> list[Tensor]:
    """The tensors that a node put out: itself, or those of a tuple such as ``chunk`` gives."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Any] = []
    fx.node.map_aggregate(value, found.append)
    return [each for each in found if isinstance(each, Tensor)]


def _versions(value: Any) -> list[int]:
    """How often each tensor of a value was written to; of inference tensors nobody knows."""
    return [tensor._version for tensor in _tensors(value) if not tensor.is_inference()]


def give_own_memory(values: Values, node: fx.Node) -> None:
    """Copy the memory of a node's tensors, for these and for whatever views it."""
    old = {each.untyped_storage().data_ptr(): each for each in _tensors(values[node])}
    new = {address: each.untyped_storage().clone() for address, each in old.items()}

    def moved(held: Any) -> Any:
        own = new.get(held.untyped_storage().data_ptr()) if isinstance(held, Tensor) else None
        if own is None:
            return held
        return over(own, held)

    # Nodes that give several tensors, as ``chunk`` does, hold tuples of them.
    for holder, held in values.items():
        values[holder] = fx.node.map_aggregate(held, moved)


def over(memory: torch.UntypedStorage, like: Tensor) -> Tensor:
    """A tensor like another one over this memory, with a count of what is written to it."""
    return like.new_empty(0).set_(memory, like.storage_offset(), like.shape, like.stride())


def check_overwritten(net: DrowsyNet, example: Tensor) -> None:
    """Raise ValueError unless all that nodes overwrite is read through their results from then on.

    ``without_overwriting`` then leaves the network what it computes.
    """
    executor = Executor(net)
    modules = net.parts
    place = {node: i for i, node in enumerate(executor.nodes)}
    # The tensor that the result of an in-place operation is.
    origin: dict[fx.Node, fx.Node] = {}

    def check(
        node: fx.Node, twin: Any, written: list[fx.Node], held: Mapping[fx.Node, Tensor]
    ) -> None:
        """Of a node that has overwritten the tensors of some that it reads, whatever views them."""
        own = next((used for used in written if values[node] is held[used]), None)
        if own is not None and twin is not None:
            origin[node] = origin.get(own, own)
        memories = {held[used].untyped_storage()._cdata for used in written}
        for other, value in held.items():
            reader = executor.last_reader.get(other)
            if reader is None or place[reader] <= place[node]:
                continue
            shared = value.untyped_storage()._cdata in memories
            if shared and (node not in origin or origin.get(other, other) != origin[node]):
                raise ValueError(
                    f"net: {node.name} overwrites memory that {reader.name} reads through "
                    f"{other.name}; allowed: networks that overwrite no tensor of which a view is "
                    "read later, and by torch's own in-place operations alone"
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
            written = [used for used, version in versions.items() if held[used]._version != version]
            # Of lists of tensors fake ones do not tell.
            known = overwriting(node, modules)
            written += [used for used in known.overwritten if used in held] if known else []
            if written:
                check(node, known and known.twin, written, held)
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
        (overwritten,) = found.overwritten
        for user in list(overwritten.users):
            if place[user] > place[node]:
                user.replace_input_with(overwritten, node)
    return made
