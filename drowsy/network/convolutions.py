"""Which modules are convolutions at heart, told by what they do and not by their names.

A subclass of ``nn.Conv2d`` may be one that computes its weight anew at every call (standardised,
``weight_norm``, ``spectral_norm``, pruned), or one that pads by TensorFlow's rule; or it may be
something else. So it is watched: it runs on an input without memory, and what it hands to
``F.conv2d`` shows what it is. Nothing is convolved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from drowsy.neuron import ConvSpec

# Names that a drowsy layer has use for itself.
TAKEN = frozenset(
    {
        "absorb",
        "activation",
        "applied",
        "awake",
        "backend",
        "check",
        "check_stencil",
        "compute",
        "control",
        "correct",
        "corrected_bias",
        "corrected_weight",
        "fill",
        "folded_bias",
        "folded_weight",
        "folds",
        "give_back",
        "from_conv",
        "index",
        "laid",
        "norm",
        "owns_control",
        "pads_first",
        "pads_same",
        "parameters_in_effect",
        "prelu",
        "rate",
        "reads_single_positions",
        "refresh",
        "restore",
        "set",
        "set_stencil",
        "sleep",
        "slopes",
        "spec",
        "stage",
        "stencil",
        "table",
        "tail",
        "uncorrect",
        "uncorrected_parameters",
        "written",
    }
)
# Hooks and parametrizations that compute a weight from parameters, and do nothing else.
_WEIGHT_HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
_PARAMETRIZATIONS = (
    parametrizations._WeightNorm,
    parametrizations._SpectralNorm,
    parametrizations._Orthogonal,
)


@dataclass(frozen=True)
class ConvAtHeart:
    """How a module is a convolution.

    Attributes:
        module: the module.
        pads_same: whether it pads by TensorFlow's rule, ``ConvSpec``'s mode ``same``.
        pads_first: zeros that it adds besides its padding, ``(left, right, top, bottom)``, whatever
            the size of its input; None for none.
        computed: gives the weight and bias that the module computes anew at every call; None where
            its parameters are what it convolves with.
    """

    module: nn.Conv2d
    pads_same: bool = False
    computed: ComputedParameters | None = None
    pads_first: tuple[int, int, int, int] | None = None


class ComputedParameters:
    """Weight and bias as a module computes them at every call, with tensors of the caller's."""

    def __init__(self, module: nn.Conv2d) -> None:
        self._module = _twin(module)

    @property
    def names(self) -> list[str]:
        """Of the module's own parameters and buffers."""
        return [*self._module._parameters, *self._module._buffers]

    @property
    def parts(self) -> list[str]:
        """Of its submodules."""
        return [*self._module._modules]

    def __call__(self, owner: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Compute them.

        Args:
            owner: a module that has parameters, buffers and submodules by the names that the
                module has; its are taken.
        """
        for name in ("_parameters", "_buffers", "_modules"):
            mine, given = vars(self._module)[name], vars(owner)[name]
            mine.update((key, given[key]) for key in mine)
        call = _watch(self._module, _sizes(self._module)[0])
        return call.weight.detach(), None if call.bias is None else call.bias.detach()


def conv_at_heart(module: nn.Module) -> ConvAtHeart | str:
    """How a module is a convolution that a drowsy layer can stand for exactly, or why it is none.

    It is one if it is an ``nn.Conv2d``, or a subclass of it that hands its input to one
    convolution, of the geometry that its attributes tell or padded by TensorFlow's rule, and
    returns what comes of it; the weight must be a function of parameters and buffers alone.

    Args:
        module: in eval mode where it computes its weight: it is then run, though no convolution
            is, and nothing of it is changed.

    Returns:
        a ``ConvAtHeart``, or the reason as text: "it has hooks, which a drowsy layer would not
        call".
    """
    if not isinstance(module, nn.Conv2d):
        return f"{_kind(module)} is not an nn.Conv2d"
    if hasattr(type(module), "pads_same"):
        return f"{_kind(module)} is drowsy already"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "it is not initialised: run the network once"
    hooks = list(module._forward_pre_hooks.values())
    parts = [part for child in module.children() for part in child.modules()]
    hooked = module._forward_hooks or any(p._forward_hooks or p._forward_pre_hooks for p in parts)
    if hooked or not all(isinstance(hook, _WEIGHT_HOOKS) for hook in hooks):
        return "it has hooks, which a drowsy layer would not call"
    if {"forward", "_conv_forward"} & vars(module).keys():
        return "its forward was replaced by hand"
    if type(module).__call__ is not nn.Module.__call__:
        return f"{_kind(module)} does something else than its forward when it is called"
    if parametrize.is_parametrized(module) and not _known_parametrizations(module):
        return (
            "its weight has a parametrization that may be anything: make it permanent "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )
    if taken := TAKEN & {*module._parameters, *module._buffers, *module._modules}:
        return f"it has a part named {min(taken)}, as a drowsy layer has"
    if not hooks and _is_plain(module):
        return ConvAtHeart(module)
    try:
        return _watched(module)
    except _NotOne as reason:
        return str(reason)
    except Exception as error:  # whatever a module's own code raises
        return f"{_kind(module)} could not be watched ({type(error).__name__}: {error})"


def _kind(module: nn.Module) -> str:
    return type(module).__name__ if type(module) is not nn.Module else "F.conv2d"


def _is_plain(module: nn.Conv2d) -> bool:
    """Whether it runs ``nn.Conv2d``'s code on its parameters."""
    kind = type(module)
    own = all(getattr(kind, name) is getattr(nn.Conv2d, name) for name in _CODE)
    names = {"weight", "bias"}
    in_place = names <= module._parameters.keys() and not any(hasattr(kind, n) for n in names)
    return own and in_place


_CODE = ("forward", "_conv_forward", "__getattr__", "__getattribute__")


def _known_parametrizations(module: nn.Conv2d) -> bool:
    lists = module.parametrizations.values()  # type: ignore[union-attr, operator]
    return all(isinstance(each, _PARAMETRIZATIONS) for several in lists for each in several)


# --- watching ---------------------------------------------------------------------------------


class _NotOne(Exception):
    """A module turned out not to be a convolution; the message says why."""


@dataclass(frozen=True)
class _Call:
    """What a module handed to ``F.conv2d``, with what it had padded before."""

    weight: Tensor
    bias: Tensor | None
    spec: ConvSpec


def _watched(module: nn.Conv2d) -> ConvAtHeart:
    kind = _kind(module)
    calls = {size: _watch(module, size) for size in _sizes(module)}
    first = next(iter(calls.values()))
    own = ConvSpec.of_conv(module, weight=first.weight, pads_same=False)
    same = ConvSpec.of_conv(module, weight=first.weight, pads_same=True)
    pads_same = any(call.spec != own for call in calls.values())
    pads_first = None
    if pads_same and any(call.spec != same.at(size[1:]) for size, call in calls.items()):
        pads_same, pads_first = False, _pads_first([call.spec for call in calls.values()], own)
        if pads_first is None:
            raise _NotOne(f"{kind} convolves with another geometry than its attributes tell")
    parameters = module._parameters
    if all(
        call.weight is parameters.get("weight") and call.bias is parameters.get("bias")
        for call in calls.values()
    ):
        return ConvAtHeart(module, pads_same, pads_first=pads_first)
    if any(each.training for each in module.modules()):
        raise _NotOne("its weight is computed anew at every call, in training mode: call eval()")
    if first.weight.shape[:2] != (module.out_channels, module.in_channels // module.groups):
        raise _NotOne(f"{kind} computes a weight for other channels than its attributes tell")
    if not all(
        _equal(call.weight, first.weight) and _equal(call.bias, first.bias)
        for call in calls.values()
    ):
        raise _NotOne(f"{kind} computes another weight at every call")
    return ConvAtHeart(module, pads_same, ComputedParameters(module), pads_first)


def _pads_first(found: list[ConvSpec], own: ConvSpec) -> tuple[int, int, int, int] | None:
    """The zeros that all of these have more than ``own``; None where there is more to it."""
    sides = tuple(a - b for a, b in zip(found[0].padding, own.padding, strict=True))
    one = own.padding_mode == "zeros" and min(sides) >= 0
    return sides if one and all(spec == own.padded_first(sides) for spec in found) else None  # type: ignore[return-value]


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    # Nothing is known of values on the meta device, where a module cannot run either.
    return one is other or one.is_meta or torch.equal(one, other)


def _sizes(module: nn.Conv2d) -> list[tuple[int, int, int]]:
    """``(N, H, W)`` of inputs that tell apart how a module pads.

    At every offset of its stride, and one as large as images are.
    """
    pairs = zip(*(_pair(getattr(module, n)) for n in _GEOMETRY), strict=True)
    least = [(kernel - 1) * dilation + 1 for kernel, _, dilation in pairs]
    steps = max(_pair(module.stride)) + 1
    small = [(1 + i % 2, least[0] + i, least[1] + 2 * steps - i) for i in range(steps)]
    return [*small, (1, least[0] + 256, least[1] + 383)]


_GEOMETRY = ("kernel_size", "stride", "dilation")


def _pair(size: Any) -> tuple[int, int]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return sizes[0], sizes[-1]


def _twin(module: nn.Conv2d) -> nn.Conv2d:
    """A module with the same tensors and submodules, and attributes of its own."""
    twin: nn.Conv2d = object.__new__(type(module))
    for name, value in vars(module).items():
        vars(twin)[name] = copy.copy(value) if isinstance(value, (dict, list)) else value
        if isinstance(value, Tensor):  # a computed one, which could not be copied with its history
            vars(twin)[name] = value.detach()
    return twin


def _watch(module: nn.Conv2d, size: tuple[int, int, int]) -> _Call:
    """What the module does with an input of ``(N, H, W)``."""
    images, height, width = size
    like = next(module.parameters(), torch.empty(()))
    # Other numbers in inputs of other sizes: who looks at them all the same gives itself away.
    x = like.new_full((), height).expand(images, module.in_channels, height, width)
    twin = _twin(module)
    for name, buffer in twin._buffers.items():
        twin._buffers[name] = None if buffer is None else buffer.clone()
    with torch.no_grad(), torch.inference_mode(False), _Watch(x) as watch:
        for hook in twin._forward_pre_hooks.values():
            hook(twin, (x,))
        y = twin.forward(x)
    if watch.call is None or y is not watch.last:
        raise _NotOne(f"{_kind(module)} does more than a convolution")
    return watch.call


# What may be asked of an input: all of it is known without its values.
_QUESTIONS = frozenset(
    {
        "__get__",
        "__len__",
        "dim",
        "element_size",
        "get_device",
        "is_contiguous",
        "is_floating_point",
        "numel",
        "size",
        "stride",
    }
)


class _Watch(TorchFunctionMode):
    """Follows an input until it has been convolved; what is done to it is noted, and not done."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.last = x
        self.call: _Call | None = None
        self._seen = {id(x): x}
        self._padding, self._mode = (0, 0, 0, 0), "zeros"

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(id(each) in self._seen for each in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func in _FOLLOWED and self.call is None:
            self.last = _FOLLOWED[func](self, *args, **kwargs)
            self._seen[id(self.last)] = self.last
            return self.last
        name = getattr(func, "__name__", str(func))
        answer = func(*args, **kwargs) if name in _QUESTIONS else None
        if answer is None or isinstance(answer, Tensor):
            raise _NotOne(f"it does more than a convolution: {name}")
        return answer

    def pad(self, x: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> Tensor:
        if x is not self.last or any(self._padding) or len(pad) != 4 or value:
            raise _NotOne("it pads in its own way")
        left, right, top, bottom = self._padding = tuple(pad)
        self._mode = "zeros" if mode == "constant" else mode
        n, channels, height, width = x.shape
        size = (height + top + bottom, width + left + right)
        return x.new_empty(()).expand(n, channels, *size)

    def convolve(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if input is not self.last:
            raise _NotOne("it convolves something else than its input")
        spec = ConvSpec.of_call(weight.shape, stride, padding, dilation, groups)
        size = spec.output_size((input.shape[2], input.shape[3]), tuple(weight.shape[2:]))  # type: ignore[arg-type]
        if any(self._padding):
            if self._mode != "zeros" and any(spec.padding):
                raise _NotOne("it pads in its own way")
            both = zip(spec.padding, self._padding, strict=True)
            padding = tuple(a + b for a, b in both)
            spec = replace(spec, padding=padding, padding_mode=self._mode)
        self.call = _Call(weight, bias, spec)
        return input.new_empty(()).expand(len(input), weight.shape[0], *size)


_FOLLOWED: dict[object, Callable[..., Tensor]] = {
    F.pad: _Watch.pad,
    torch._C._nn.pad: _Watch.pad,
    F.conv2d: _Watch.convolve,
}
