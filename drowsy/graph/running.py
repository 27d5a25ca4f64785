"""A network's graph run node by node, with every neuron awake and a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from drowsy.files.messages import listed
from drowsy.knob.control import Control
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet, check_network

Values = dict[fx.Node, Any]
"""What nodes have put out so far."""


class Executor:
    """Runs the nodes of a network's graph one at a time, on values that the caller holds.

    So a caller can see every value, put another in its place, or go on from one state twice. Drowsy
    layers put out what they do with nobody asleep, whatever their rates; corrections hold.

    Attributes:
        nodes: in order of execution.
        last_reader: of every node that is read, the last of ``nodes`` that does.
    """

    def __init__(self, net: DrowsyNet) -> None:
        self.net = net
        self.nodes = list(net.need_graph("a walk node by node").nodes)
        self.last_reader = {used: node for node in self.nodes for used in node.all_input_nodes}

    def start(self, image: Any) -> Values:
        """The values of the network's inputs: a batch, and the defaults of all others.

        Raises:
            ValueError: another input has no default.
        """
        first, *others = (node for node in self.nodes if node.op == "placeholder")
        values: Values = {first: image}
        for node in others:
            if str(node.target).startswith("*"):
                values[node] = {} if str(node.target).startswith("**") else ()
            elif node.args:
                values[node] = node.args[0]
            else:
                raise ValueError(f"net: its input {node.target} has no default, allowed: one input")
        return values

    def compute(self, node: fx.Node, values: Values) -> Any:
        """What a node puts out, given the values of those that it reads; ``values`` stays."""
        if node.op == "placeholder":
            return values[node]
        target: Any = node.target
        args: Any = fx.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
        match node.op:
            case "get_attr":
                return self.net.known.value(target)
            case "call_module":
                module = self.net.known.value(target)
                called = module.awake if isinstance(module, DrowsyConv2d) else module
                return called(*args, **kwargs)
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "call_function":
                return target(*args, **kwargs)
            case "output":
                return args[0]
        raise ValueError(f"net: has a node of kind {node.op!r}, which is unknown")

    def drop(self, node: fx.Node, values: Values) -> None:
        """Forget what nothing reads once ``node`` has run."""
        for used in (*node.all_input_nodes, node):
            if self.last_reader.get(used, node) is node:
                values.pop(used, None)

    def run(self, image: Any) -> Iterator[tuple[fx.Node, Any]]:
        """Run all nodes; yields each with what it puts out."""
        values = self.start(image)
        for node in self.nodes:
            values[node] = self.compute(node, values)
            yield node, values[node]
            self.drop(node, values)


def shapes(net: DrowsyNet, example: Tensor) -> dict[fx.Node, torch.Size]:
    """The shape of every node's tensor for inputs like ``example``; computes nothing.

    Nodes whose result is no tensor are left out.
    """
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return {
            node: value.shape
            for node, value in Executor(net).run(mode.from_tensor(example))
            if isinstance(value, Tensor) and node.op != "output"
        }


def check_example(net: DrowsyNet, example: Tensor) -> None:
    """Raise unless ``net`` is converted and ``example`` is a batch of images."""
    check_network(net)
    if not isinstance(example, Tensor) or not example.is_floating_point():
        kind = example.dtype if isinstance(example, Tensor) else type(example).__name__
        raise TypeError(f"example: got {kind}, allowed: a floating-point tensor")
    if example.dim() != 4 or 0 in example.shape:
        raise ValueError(
            f"example: got shape {tuple(example.shape)}, allowed: [N, C, H, W], none of them 0"
        )


def settled_graph(net: DrowsyNet, example: Tensor, what: str) -> fx.Graph:
    """The graph of a network that was compared with its model, which ``what`` needs.

    Raises:
        ValueError: there is none, or it takes other inputs than one; a part of the model is in
            training mode, of which a graph may not know.
    """
    modules = {name: each for name, each in net.parts.items() if not isinstance(each, Control)}
    if training := [name or "all of it" for name, each in modules.items() if each.training]:
        raise ValueError(
            f"net: is in training mode ({listed(training)}), allowed for {what}: after net.eval()"
        )
    net.settle(example)
    graph = net.need_graph(what)
    inputs = [node for node in graph.nodes if node.op == "placeholder" and not node.args]
    if len(inputs) != 1:
        raise ValueError(f"net: takes {len(inputs)} inputs, allowed for {what}: one")
    return graph
