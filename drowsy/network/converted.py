"""A converted model as it runs: by its own code, and by its graph where one is compiled."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from drowsy.knob.control import Control
from drowsy.network.inference import in_graph, inference, joined
from drowsy.network.known import KnownGraph
from drowsy.network.prepared import is_recorded
from drowsy.network.standin import Standin
from drowsy.network.tail import Absorbed, OtherWay, other_way

_NO_SYMBOLS = (
    "net: torch.fx traces a drowsy network with symbols for tensors, allowed: as a leaf of the "
    "Tracer (is_leaf_module). Its own graph is net.graph, once it was called; torch.compile, "
    "torch.export, torch.jit.trace and make_fx take it; drowsy.revert(net) gives the original"
)


class Settler(Protocol):
    """Compares a network with its model, and mends it until they agree (``graph.settling``).

    Attributes:
        compared: methods of the model that have been.
    """

    compared: frozenset[str]

    def settle(self, net: Any, method: str, args: Any, kwargs: Any) -> None:
        """Compare a method by one inference of this input."""

    def compare_graph(self, net: Any, args: Any, kwargs: Any) -> None:
        """Drop a graph that no longer tells what the network's code computes."""

    def take_other_way(self, net: Any, reason: str) -> None:
        """The model's code went another way than was observed."""


class Converted(Standin):
    """A model whose convolutions are drowsy layers, as it runs.

    Attributes:
        control: the knob's tensors.
        known: of the model's graph, or why it is not.
    """

    control: Control
    known: KnownGraph
    _settler: Settler
    _trusting: bool
    _rewritten: bool

    @property
    def model(self) -> nn.Module:
        """The copy of the original's module tree that runs, drowsy layers in it."""
        return self.stood_for

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns for these arguments, whoever sleeps sleeping.

        The first call is compared with the original model, unless ``convert`` has done that. So is
        the first call of every other method of the model that runs layers.

        Raises:
            RuntimeError: gradients are enabled; or the network is compiled or exported before it
                was compared, or without a graph.
            ValueError: at rate 0 the network does not compute what the model does.
        """
        if isinstance(args, fx.Proxy):  # all of them as one, where the network itself is traced
            raise RuntimeError(_NO_SYMBOLS)
        if self._rewritten or _is_traced(args, kwargs):
            return self._run_graph(args, kwargs)
        return self._infer("forward", args, kwargs)[0]

    def settle(self, *args: Any, **kwargs: Any) -> None:
        """Compare with the original model on these arguments, if ``forward`` has not been yet.

        Afterwards, compare the graph with the model's code: hooks, attributes and modules may have
        changed since, which the code follows and a graph does not. It is dropped then.

        Raises:
            ValueError: at rate 0 the network does not compute what the model does.
        """
        if not self._is_trusted("forward"):
            self._settle("forward", args, kwargs)
        elif self.graph is not None and not (self._rewritten or _has_no_values(args, kwargs)):
            with self._turning():
                self._settler.compare_graph(self, args, kwargs)

    @property
    def settled(self) -> bool:
        """Whether ``forward`` has run, so that all is known that one call tells."""
        return "forward" in self._settler.compared

    def _is_trusted(self, method: str) -> bool:
        return self._trusting or method in self._settler.compared

    @contextmanager
    def uncompared(self) -> Iterator[None]:
        """Run without a comparison for a while: for who asks what runs, and not what comes out."""
        before, self._trusting = self._trusting, True
        try:
            yield
        finally:
            self._trusting = before

    def _infer(self, method: str, args: Any, kwargs: Any) -> tuple[Any, int]:
        """What a method of the model returns, and how many images its layers saw."""
        call = getattr(self.model, method)
        if joined(self.control) is not None:
            return call(*args, **kwargs), 0
        self._follow_original()
        if method == "forward" and not self._is_trusted(method):
            self._settle(method, args, kwargs)
        before = _versions(args, kwargs)
        with self.control.turns.inferring(), inference(self.control) as begun:
            begun.detail = self._see(args, kwargs)
            output: Any = None
            other: str | None = None
            try:
                output = call(*args, **kwargs)
            except Exception as error:
                if begun.other is None and not isinstance(error, OtherWay):
                    raise
                other = str(error)  # the model's code may have made another one of it
            other = begun.other or other or other_way(begun)
            if other is None:
                if begun.images:
                    self.control.advance(begun.images)
                return output, begun.images
        del output
        with self._turning():
            self._settler.take_other_way(self, other)
        if _versions(args, kwargs) != before:
            raise RuntimeError(
                f"net: the model's code went another way than when it was compared ({other}), and "
                "has overwritten its arguments: call it again with what they were"
            )
        return self._infer(method, args, kwargs)

    def _run_graph(self, args: Any, kwargs: Any) -> Any:
        if any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
            raise RuntimeError(_NO_SYMBOLS)
        if not self._is_trusted("forward"):
            # Leaves a compiler's graph, or fails there.
            self._settle("forward", args, kwargs)
        if (module := self.known.module) is None:
            raise RuntimeError(
                "net: is compiled, exported or traced, which needs its graph, and there is none: "
                f"{self.known.reason}. Compile or export drowsy.revert(net), where nobody sleeps"
            )
        if len(args) + len(kwargs) != 1:
            raise RuntimeError(
                f"net: is compiled, exported or traced with {len(args) + len(kwargs)} arguments, "
                "allowed: one batch of images, which its graph is of"
            )
        images = next(iter((*args, *kwargs.values())))
        with inference(self.control, in_graph=True) as begun:
            begun.detail = self._see(args, kwargs)
            output = module(images)
        self.control.advance(images.shape[0] if images.dim() == 4 else 1)
        return output

    def _settle(self, method: str, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            from drowsy.network import outside

            outside.settle(self._compare, method, args, kwargs)
        else:
            self._compare(method, args, kwargs)

    def _compare(self, method: str, args: Any, kwargs: Any) -> None:
        if _is_traced(args, kwargs) or is_recorded():
            raise RuntimeError(
                "net: is traced or exported before it was compared with its model: call it once "
                "first, or give drowsy.convert an example"
            )
        with self._turning():
            if self._is_trusted(method):  # another thread was first
                return
            if _has_no_values(args, kwargs):
                return
            self._settler.settle(self, method, args, kwargs)
            self._follow_settling()

    def _follow_original(self) -> None:
        """What a subclass does where the original was moved to another dtype or device."""

    def _follow_settling(self) -> None:
        """What a subclass does once the network was compared."""

    def _see(self, args: Any, kwargs: Any) -> Tensor | None:
        """What a subclass lets its layers' sources see of a call; None where none looks."""
        return None

    @contextmanager
    def _turning(self) -> Iterator[None]:
        with self.control.turns.turning(joined(self.control) is not None):
            yield

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if isinstance(value, types.MethodType) and value.__self__ is self.__dict__["_module"]:
            return functools.partial(self._call, name)
        return value

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method of the model, which may be an inference: one runs layers."""
        output, images = self._infer(method, args, kwargs)
        if images and not self._is_trusted(method):
            self._settle(method, args, kwargs)
            output, _ = self._infer(method, args, kwargs)
        return output

    def train(self, mode: bool = True) -> Converted:
        """Only ``eval``: the statistics of batch norms are the original's too.

        Raises:
            RuntimeError: ``mode`` is true.
        """
        if mode:
            raise RuntimeError(
                "net: drowsy networks are for inference; train drowsy.revert(net) and call "
                "net.refresh(), or convert again"
            )
        self.model.train(False)
        return self

    # --- its graph ------------------------------------------------------------------------------

    @property
    def graph(self) -> fx.Graph | None:
        """What is known of the model's graph; None where tracing gives none that agrees with it.

        Nodes name modules of ``model``, layers in the place of what belongs to their neurons.
        """
        return self.known.graph

    def need_graph(self, what: str) -> fx.Graph:
        """The graph; ValueError where there is none, which ``what`` needs."""
        if self.graph is None:
            raise ValueError(
                f"net: {what} needs the network's graph, and there is none: {self.known.reason}"
            )
        return self.graph

    def rewrite_graph(self, graph: fx.Graph) -> None:
        """From now on the network is a graph of its layers that differs from its model's code."""
        self.known, self._rewritten = self.known.rewritten(graph), True

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The model's modules by name, aliases included."""
        return {
            name: module.stood_for if type(module) is Absorbed else module
            for name, module in self.model.named_modules(remove_duplicate=False)
        }


def _versions(args: Any, kwargs: Any) -> list[int]:
    """How often each argument was written to; nobody knows of tensors of inference mode."""
    leaves = args if not kwargs and all(type(each) is Tensor for each in args) else None
    leaves = tree_leaves((args, kwargs)) if leaves is None else leaves
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [tensor._version for tensor in tensors if not tensor.is_inference()]


def _has_no_values(args: Any, kwargs: Any) -> bool:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    empty = bool(tensors) and not any(tensor.numel() for tensor in tensors)
    return empty or any(tensor.is_meta for tensor in tensors)


def _is_traced(args: Any, kwargs: Any) -> bool:
    """Whether a call makes a graph that outlives it: by a compiler, an export, a tracer."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if len(args) == 1 and not kwargs and type(args[0]) is Tensor:
        return False
    leaves = tree_leaves((args, kwargs))
    return any(in_graph(leaf) for leaf in leaves if isinstance(leaf, Tensor | fx.Proxy))
