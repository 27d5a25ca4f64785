"""What is known of the graph of a model's code."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from drowsy.network.tail import Absorbed

_PREFIX = "model."


class KnownGraph:
    """A model's graph, or why there is none.

    Attributes:
        graph: its nodes name modules, tensors and attributes of the model, or constants; None for
            none.
        reason: why it is known, or why not.
        module: the graph as a module to run, of the model's own leaves; None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph | None,
        reason: str,
        constants: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Know a graph of a model; ``constants`` are tensors that no module has, by name."""
        self._model, self._constants, self.reason = model, dict(constants or {}), reason
        self.graph = graph
        self.module: fx.GraphModule | None = None
        self.follow()

    def follow(self) -> None:
        """Follow tensors of the model that were replaced."""
        self.module = None if self.graph is None else self._as_module(self.graph)

    def rewritten(self, graph: fx.Graph) -> KnownGraph:
        """Another graph of the same modules."""
        return KnownGraph(self._model, graph, "rewritten", self._constants)

    def of(self, model: nn.Module) -> KnownGraph:
        """The same of a copy of the model."""
        return KnownGraph(model, self.graph, self.reason, self._constants)

    def value(self, target: str) -> Any:
        """What a node names: a module, a tensor or another attribute."""
        if target in self._constants:
            return self._constants[target]
        found = operator.attrgetter(target)(self._model)
        return found.stood_for if type(found) is Absorbed else found

    def _as_module(self, graph: fx.Graph) -> fx.GraphModule:
        copied = copy.deepcopy(graph)
        root = {}
        for node in copied.nodes:
            if node.op in ("call_module", "get_attr"):
                value = self.value(node.target)
                # Below one name, so that no name of the model is one of fx.GraphModule's own.
                node.target = _PREFIX + node.target
                root[node.target] = value
        return fx.GraphModule(root, copied)

    # Graphs are copied and pickled with the module that runs them, as its code.

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "graph"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, graph=None)
        if self.module is not None:
            self.graph = copy.deepcopy(self.module.graph)
            for node in self.graph.nodes:
                if node.op in ("call_module", "get_attr"):
                    node.target = str(node.target).removeprefix(_PREFIX)
