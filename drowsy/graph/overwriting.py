"""Operations that write their result over their first argument: found, checked and replaced."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

Live = dict[fx.Node, Any]
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def with_own_memory(live: Live, tensor: Any) -> Live:
    """``live`` with a copy of this tensor's memory under the tensor and whatever views it."""
    if not isinstance(tensor, Tensor):
        return live
    old = tensor.untyped_storage()
    new = old.clone()

    def moved(held: Any) -> Any:
        if not isinstance(held, Tensor) or held.untyped_storage().data_ptr() != old.data_ptr():
            return held
        return held.new_empty(0).set_(new, held.storage_offset(), held.shape, held.stride())

    # Nodes that give several tensors, as ``chunk`` does, hold tuples of them.
    return {node: fx.node.map_aggregate(held, moved) for node, held in live.items()}


def asked_in_place(node: fx.Node) -> bool:
    """Whether a function was called with ``inplace``, by name or by position."""
    if "inplace" in node.kwargs or node.op != "call_function":
        return bool(node.kwargs.get("inplace"))
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin, which has no such argument
        return False
    return "inplace" in names and any(node.args[names.index("inplace") :][:1])


def check_overwritten(net: fx.GraphModule, example: Tensor) -> None:
    """Raise ValueError if a node overwrites a tensor that is read later through another view."""
    last_use = {used: node for node in net.graph.nodes for used in node.all_input_nodes}
    place = {node: i for i, node in enumerate(net.graph.nodes)}
    # The tensor that the result of an in-place operation is.
    origin: dict[fx.Node, fx.Node] = {}

    class Overwrites(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            if node.target == "control":
                return None
            read = {used: self.env[used] for used in node.all_input_nodes}
            held = {n: t for n, t in self.env.items() if isinstance(t, Tensor)}
            before = {used: t._version for used, t in read.items() if isinstance(t, Tensor)}
            result = super().run_node(node)
            for used in before:
                tensor = read[used]
                if tensor._version == before[used] or result is not tensor:
                    continue
                origin[node] = origin.get(used, used)
                for other, value in held.items():
                    shared = value.untyped_storage()._cdata == tensor.untyped_storage()._cdata
                    later = other in last_use and place[last_use[other]] > place[node]
                    if shared and later and origin.get(other, other) != origin[node]:
                        raise ValueError(
                            f"net: {node.name} overwrites memory that {last_use[other].name} reads "
                            f"through {other.name}; allowed: networks that overwrite no tensor "
                            "of which a view is read later"
                        )
            return result

    # Inference tensors count no versions: not in inference mode, and on a tensor made here.
    with torch.inference_mode(False), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        size, stride = example.shape, example.stride()
        like = torch.empty_strided(size, stride, dtype=example.dtype, device=example.device)
        Overwrites(net).run(like)


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
        if not _made_pure(node, modules):
            continue
        overwritten = node.args[0]
        assert isinstance(overwritten, fx.Node)
        for user in list(overwritten.users):
            if place[user] > place[node]:
                user.replace_input_with(overwritten, node)
    return made


def _made_pure(node: fx.Node, modules: dict[str, Any]) -> bool:
    """Turn an in-place operation into its out-of-place twin; whether it was one."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if not getattr(module, "inplace", False):
            return False
        twin = f"{node.target}_pure"
        modules[twin] = copy.copy(module)
        modules[twin].inplace = False
        node.target = twin
        return True
    if node.op not in ("call_function", "call_method"):
        return False
    if asked_in_place(node):
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
        else:
            at = list(inspect.signature(node.target).parameters).index("inplace")  # type: ignore[arg-type]
            node.args = (*node.args[:at], False, *node.args[at + 1 :])
        return True
    name = str(getattr(node.target, "__name__", node.target))
    if name.endswith("_") and not name.endswith("__"):
        if isinstance(node.target, str):
            node.target = name[:-1]
            return True
        homes = (torch, F)
        twins = [getattr(home, name[:-1]) for home in homes if hasattr(home, name[:-1])]
        if twins:
            node.target = twins[0]
        return bool(twins)
    if node.target in _OUT_OF_PLACE:
        node.target = _OUT_OF_PLACE[node.target]
        return True
    return False


_OUT_OF_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
