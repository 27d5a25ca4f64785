"""A layer as its network's own code calls it while nobody sleeps, worked out once.

Small convolutions take a few tens of microseconds, and all that a layer asks before it convolves
would be seen beside them. What its attributes tell is known here beforehand; what is left to ask is
whether anything was changed since, and whether anything unusual is going on.

A layer called so leaves its activation to the model's code, which comes to it next and computes it
as it does in the model. A norm is passed over (``tail``): the weight holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _is_tracing, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._functorch import peek_interpreter_stack
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from drowsy.backends.ops import choose_backend
from drowsy.knob.control import Control
from drowsy.network.inference import Inference, running
from drowsy.network.tail import Tail
from drowsy.neuron import ConvSpec, awake_conv2d

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Of a layer's inputs."""

Source = tuple[dict[str, Any], str, Any]
"""Where a module keeps a tensor or constant, under which name, and it; None where there is none."""


class Prepared:
    """What a layer computes, for as long as its attributes are what they were.

    Attributes:
        convolve: ``[N, C, H, W]`` -> ``[N, OC, OH, OW]``.
        tail: what the model's code is to pass over afterwards.
        serves: whether torch's convolution is the one to compute an input; None for always.
    """

    __slots__ = ("_kernel", "_sources", "_weight", "convolve", "serves", "tail")

    def __init__(
        self,
        parameters: tuple[Tensor, Tensor | None],
        spec: ConvSpec,
        kernel: torch.Size | None,
        sources: Iterable[Source],
        tail: Tail | None,
        serves: Callable[[Tensor], bool] | None,
    ) -> None:
        """Prepare a layer.

        Args:
            parameters: weight and bias in effect.
            spec: geometry, and the activation that the model's code does not come to.
            kernel: the weight's shape that the geometry is of; None where it is of any.
            sources: the tensors that the parameters are, or are made of, and what else.
            tail, serves: see above.
        """
        self.convolve, self.tail, self.serves = _convolution(*parameters, spec), tail, serves
        self._weight, self._kernel = parameters[0], kernel
        self._sources = tuple(sources)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy of the layer is prepared for itself

    def holds(self) -> bool:
        """Whether all sources are in their places, and the geometry is theirs."""
        for kept, name, was in self._sources:
            if kept.get(name) is not was:
                return False
        return self._kernel is None or self._weight.shape == self._kernel


def at_ease(x: Any, control: Control, index: int) -> Inference | None:
    """The inference in which a layer computes ``x`` for its network's own code; None for none.

    None also where somebody of the layer sleeps, and where anything unusual is going on, of which
    the layer is to take notice: gradients, tracers, transforms, modes, other inputs than batches.
    """
    begun = running()
    if (
        begun is None
        or begun.control is not control
        or begun.in_graph
        or type(x) is not Tensor
        or not control.awake(index)
        or torch.is_grad_enabled()
        or _is_tracing()
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or peek_interpreter_stack() is not None
        or x.dim() != 4
        or x.dtype not in DTYPES
    ):
        return None
    return begun


def library_serves(backend: str, weight: Tensor, spec: ConvSpec, input: Tensor) -> bool:
    """Whether torch's own convolution is to compute an awake layer on CUDA."""
    if torch.cuda.is_current_stream_capturing():
        return False
    if choose_backend(backend, input.device) == "torch":
        return True
    from drowsy.backends.triton import library_wins

    return backend == "auto" and library_wins(input, weight, spec)


def is_recorded() -> bool:
    """Whether ``make_fx`` is at work, which traces plain tensors too."""
    # Its modes are on these stacks: to ask for itself takes as long as the rest of a layer.
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    return modes > 0 and get_proxy_mode() is not None


def is_kept(x: Tensor) -> bool:
    """Whether a graph is made of what is computed now, which outlives the present rates."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_recorded()
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _convolution(weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Callable[[Tensor], Tensor]:
    left, right, top, bottom = spec.padding
    if (spec.padding_mode, left, top, spec.activation) != ("zeros", right, bottom, "none"):
        return lambda x: awake_conv2d(x, weight, bias, spec)
    stride, sides, dilation, groups = spec.stride, (top, left), spec.dilation, spec.groups
    return lambda x: F.conv2d(x, weight, bias, stride, sides, dilation, groups)
