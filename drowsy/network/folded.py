"""``FoldedConv2d``: a convolution, and the weight and bias that it convolves with in effect."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm

from drowsy.knob.control import untraced
from drowsy.network.convolutions import TAKEN, ComputedParameters, conv_at_heart
from drowsy.network.norms import ANOTHER, NormAtHeart, activation_at_heart, check_norm
from drowsy.network.prepared import Source
from drowsy.network.tail import OtherWay, Tail, goes_other_way
from drowsy.neuron import ACTIVATIONS, ConvSpec, check_activation

# Where ``nn.Module`` keeps what is called by name.
_PARTS = ("_parameters", "_buffers", "_modules")
_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_NAMES = ("weight", "bias")
_NORM_NAMES = (*_NAMES, "running_mean", "running_var")
# What ``ConvSpec.of_conv`` reads.
_GEOMETRY = frozenset(
    {
        "weight",
        "stride",
        "padding",
        "padding_mode",
        "dilation",
        "groups",
        "activation",
        "pads_first",
        "pads_same",
        "_reversed_padding_repeated_twice",
    }
)


@dataclass(frozen=True, eq=False)
class _Ingredient:
    """A tensor: where a module keeps it, under which name, and the tensor.

    No tuple: ``torch.export`` puts copies in the places of an attribute's tuples and dictionaries.
    """

    kept: dict[str, Any]
    name: str
    was: Tensor

    @property
    def now(self) -> Tensor | None:
        return self.kept.get(self.name)


class FoldedConv2d(nn.Conv2d):
    """A convolution whose parameters are combined with others before they are used.

    The weight in effect is that of the parameters, or computed from them (``weight_norm``, say);
    with a batch norm folded in; corrected, where a correction is in force.

    Attributes:
        applied: the module that applies the activation in the model's code, which is no part of
            the layer: it is asked at every call. None where nothing but a name is known.
        pads_same: whether it pads by TensorFlow's rule, whatever ``padding`` says.
        pads_first: zeros that it adds besides ``padding``, ``(left, right, top, bottom)``, whatever
            the size of its input; None for none.
        laid, written: how often the weight in effect has moved to other memory, or may have, and
            how often a correction was written into it. A change of geometry counts as a move.
    """

    applied: nn.Module | None = None
    pads_same = False
    pads_first: tuple[int, int, int, int] | None = None
    laid = written = 0

    folded_weight: Tensor | None
    folded_bias: Tensor | None
    corrected_weight: Tensor | None
    corrected_bias: Tensor | None

    _norm: NormAtHeart | None = None
    _computed: ComputedParameters | None = None
    _cache_folded = True
    _activation = "none"
    _spec: tuple[Any, ConvSpec] | None = None
    # What was folded or corrected, and the norm's ``eps`` then.
    _made_of: tuple[_Ingredient, ...] = ()
    _eps: float | None = None

    def _become_folded(self) -> None:
        for name in ("folded_weight", "folded_bias", "corrected_weight", "corrected_bias"):
            self.register_buffer(name, None, persistent=False)
        slopes = 1 if self.prelu is None else self.prelu.weight.numel()
        if slopes not in (1, self.out_channels):
            raise ValueError(
                f"activation: got an nn.PReLU of {slopes} slopes, allowed: 1 or "
                f"{self.out_channels}, as there are channels"
            )

    def _adopt(self, conv: nn.Conv2d, norm: nn.Module | None, cache_folded: bool) -> str:
        """Share a convolution's parameters; returns the norm's own activation.

        Raises:
            ValueError: no convolution at heart, or no norm.
        """
        for name, given in (("conv", conv), ("norm", norm)):
            if given is not None and not isinstance(given, nn.Module):
                raise TypeError(f"{name}: got {type(given).__name__}, allowed: an nn.Module")
        heart = conv_at_heart(conv)
        if isinstance(heart, str):
            raise ValueError(f"conv: got {type(conv).__name__}, which cannot be drowsy: {heart}")
        self._norm = check_norm(norm)
        self._cache_folded, self._computed = cache_folded, heart.computed
        public = {
            name: value
            for name, value in vars(conv).items()
            if not name.startswith("_") and name not in TAKEN | {*_NAMES}
        }
        vars(self).update(public, pads_same=heart.pads_same, pads_first=heart.pads_first)
        # A tuple: who wants other padding must say so where it is noticed.
        self._reversed_padding_repeated_twice = tuple(conv._reversed_padding_repeated_twice)  # type: ignore[assignment]
        for name in _HOOKS:
            vars(self)[name].update(vars(conv)[name])
        for part in _PARTS:
            vars(self)[part].update(vars(conv)[part])
        self._non_persistent_buffers_set.update(conv._non_persistent_buffers_set)
        if self._computed is not None:
            # Who asks for the weight of a convolution gets one, though it is no parameter.
            with torch.no_grad():
                for name, value in zip(_NAMES, self._computed(self), strict=True):
                    if name not in self._parameters:
                        self.register_buffer(name, value, persistent=False)
        return "none" if self._norm is None else self.activation

    def _fold_in(self, norm: nn.Module | None) -> None:
        """Fold this norm from now on, or none; a correction is taken back."""
        self.uncorrect()
        self._norm = check_norm(norm)
        if not self.folds:
            self.folded_weight = self.folded_bias = None
            self._made_of = ()

    def _activate_by(self, activation: str | nn.Module) -> None:
        """Apply this activation from now on.

        Raises:
            TypeError: neither a name nor a module that applies one.
            ValueError: another name.
        """
        module = activation if isinstance(activation, nn.Module) else None
        name = None if module is None else activation_at_heart(module)
        if name is None:
            name = check_activation(activation)  # type: ignore[arg-type]
            if name == "prelu":
                raise ValueError(
                    "activation: got 'prelu', allowed: the nn.PReLU that has the slopes"
                )
        self.activation = name
        # Not assigned: the layer would become its owner.
        vars(self)["applied"] = module

    def _check_alone(self, tail: Tail | None) -> None:
        """Raise OtherWay where the model's code applies something else to images alone."""
        if tail is not None and self.prelu is not None and self.prelu.weight.numel() > 1:
            raise goes_other_way("of an image alone nn.PReLU takes rows for channels")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _GEOMETRY:
            vars(self)["_spec"] = None
            self.laid += 1

    def _apply(self, fn: Any, recurse: bool = True) -> FoldedConv2d:
        super()._apply(fn, recurse)
        self.laid += 1
        return self

    # --- geometry and activation ----------------------------------------------------------------

    @property
    def activation(self) -> str:
        """What follows the convolution inside the neuron, as its module tells it now.

        One of ``drowsy.neuron.ACTIVATIONS``, or ``ANOTHER``.
        """
        if self.applied is not None:
            return activation_at_heart(self.applied) or ANOTHER
        if self._norm is not None and self._norm.activates:
            return self._norm.activation
        return self._activation

    @activation.setter
    def activation(self, name: str) -> None:
        if self._norm is not None and self._norm.activates and name != self._norm.activation:
            raise ValueError(
                f"activation: got {name!r} after a norm that applies {self._norm.activation} "
                "itself, allowed: none"
            )
        vars(self).update(_activation=name, applied=None)

    @property
    def prelu(self) -> nn.PReLU | None:
        """The ``nn.PReLU`` that activation ``prelu`` stands for; None for all others."""
        return self.applied if isinstance(self.applied, nn.PReLU) else None

    @property
    def spec(self) -> ConvSpec:
        """Geometry and activation, as the attributes tell them now.

        Of mode ``same`` where the layer pads by TensorFlow's rule: ``spec.at(size)`` works it out.

        Raises:
            OtherWay: the activation's module has come to apply another one than neurons have.
        """
        activation = self.activation
        if activation == ANOTHER:
            by = self.norm.act if self.applied is None else self.applied
            raise OtherWay(
                f"activation: got {by}, allowed: {', '.join(ACTIVATIONS)}; convert the network anew"
            )
        if torch.compiler.is_compiling():  # would be compiled anew where one is remembered
            return ConvSpec.of_conv(self, activation)
        read = activation, self.weight.shape if self._pads_by_kernel() else None
        if self._spec is None or self._spec[0] != read:
            with untraced():
                vars(self)["_spec"] = read, ConvSpec.of_conv(self, activation)
        return self._spec[1]  # type: ignore[index]

    def _pads_by_kernel(self) -> bool:
        """Whether the size of the kernel decides how much is padded."""
        return self.pads_same or isinstance(self.padding, str)

    @property
    def reads_single_positions(self) -> bool:
        """Whether every output reads the input at its own position only."""
        spec = self.spec
        kernel = tuple(self.weight.shape[2:])
        return (kernel, spec.stride) == ((1, 1), (1, 1)) and not any(spec.padding)

    @property
    def slopes(self) -> Tensor | None:
        """``[OC]``, those of activation ``prelu`` as they are now; None for all others.

        One slope for all channels is expanded to them.

        Raises:
            RuntimeError: they are in another dtype than the weight, without autocast.
        """
        if (prelu := self.prelu) is None:
            return None
        slopes = prelu.weight
        _check_dtype("slopes", slopes, (self.weight.dtype,))
        return slopes.to(self.weight).expand(self.out_channels)

    # --- folding --------------------------------------------------------------------------------

    @property
    def norm(self) -> Any:
        """The batch norm folded into this layer."""
        return None if self._norm is None else self._norm.module

    @property
    def folds(self) -> bool:
        """Whether the weight in effect is another than the parameter, corrections aside."""
        return self._norm is not None or self._computed is not None

    def _wants_gradient(self) -> bool:
        """Whether something that the weight in effect is made of requires a gradient."""
        made_of = (each.was for each in self._ingredients())
        slopes = () if self.prelu is None else (self.prelu.weight,)
        return any(tensor.requires_grad for tensor in (*self.parameters(), *slopes, *made_of))

    def refresh(self) -> None:
        """Fold again, after the parameters or the batch norm's statistics changed."""
        if self.folds and self._cache_folded:
            with torch.no_grad():
                self.folded_weight, self.folded_bias = self._fold()
                self._note_ingredients()
        self.laid += 1

    def parameters_in_effect(self) -> tuple[Tensor, Tensor | None]:
        """``(weight, bias)`` that the convolution uses: batch norm and correction included."""
        if self.corrected_weight is None:
            return self.uncorrected_parameters()
        self._check_dtypes(self.weight, self.bias)
        if self._replaced():
            raise RuntimeError(
                "a correction is in force over other weights than those that the layer is called "
                "with: set net.calibration = None, or load the weights into the network; of a "
                "norm's eps call net.refresh()"
            )
        return self.corrected_weight, self.corrected_bias

    def uncorrected_parameters(self) -> tuple[Tensor, Tensor | None]:
        """``(weight, bias)`` with the batch norm, and without any correction, now or later."""
        if not self.folds:
            return self.weight, self.bias
        if self._is_folded():
            # Of equal numbers in another dtype nothing is folded anew.
            self._check_dtypes(self.weight, self.bias)
            return self.folded_weight, self.folded_bias  # type: ignore[return-value]
        return self._fold()

    def _is_folded(self) -> bool:
        """Whether what was folded is what would be folded now."""
        if not self._cache_folded or self._replaced():
            return False
        weight, folded = self.weight, self.folded_weight
        assert folded is not None, "what folds has been folded"
        return (folded.dtype, folded.device) == (weight.dtype, weight.device)

    def _fold(self) -> tuple[Tensor, Tensor | None]:
        weight, own = self.weight, self.bias
        if self._computed is not None:
            weight, own = self._computed(self)
        if self._norm is None:
            return weight, own
        norm = self._norm
        self._check_dtypes(weight, own)
        # In float32 at least: 1 / sqrt(var + eps) in half precision would cost three digits.
        like = weight.new_empty(0, dtype=torch.promote_types(weight.dtype, torch.float32))
        factor, mean = norm.factor(like), norm.mean.to(like)
        bias = -mean * factor if own is None else (own.to(like) - mean) * factor
        if norm.bias is not None:
            bias = bias + norm.bias.to(like)
        return (weight.to(like) * factor[:, None, None, None]).to(weight), bias.to(weight)

    def _check_dtypes(self, weight: Tensor, bias: Tensor | None) -> None:
        """Raise where torch's own operations refuse what passes unnoticed in one dtype."""
        if (norm := self._norm) is None:
            return
        _check_dtype("bias", bias, (weight.dtype,))
        if isinstance(norm.module, _BatchNorm):
            for tensor in (norm.mean, norm.var, norm.weight, norm.bias):
                _check_dtype("norm", tensor, (weight.dtype, torch.float32))

    def _keeps_parameters(self) -> bool:
        """Whether those in effect are there, and not made anew at every call."""
        return self.corrected_weight is not None or not self.folds or self._is_folded()

    def _sources(self, weight: Tensor, bias: Tensor | None) -> Iterator[Source]:
        """What parameters in effect are made of, and where they are kept themselves."""
        for each in self._ingredients():
            yield each.kept, each.name, each.was
        parameters, buffers = vars(self)["_parameters"], vars(self)["_buffers"]
        if parameters.get("bias") is None:
            yield parameters, "bias", None
        if self._norm is not None:
            yield from self._norm.constants()
        if weight is not self.weight:
            for name, tensor in buffers.items():
                if tensor is weight or (tensor is bias and bias is not None):
                    yield buffers, name, tensor

    def _ingredients(self) -> Iterator[_Ingredient]:
        """What the weight in effect is made of, corrections aside."""
        names = _NAMES if self._computed is None else self._computed.names
        yield from _kept(self, names)
        if self._computed is not None:
            for name in self._computed.parts:
                for module in self.get_submodule(name).modules():
                    yield from _kept(module)
        if self._norm is not None:
            yield from _kept(self._norm.module, _NORM_NAMES)

    def _note_ingredients(self) -> None:
        self._made_of = tuple(self._ingredients())
        self._eps = None if self._norm is None else self._norm.eps

    def _replaced(self) -> bool:
        """Whether other tensors are in the places of those that were folded or corrected.

        ``torch.func.functional_call`` puts them there, and ``load_state_dict(assign=True)``.
        Or the norm has another ``eps``.
        """
        if self._norm is not None and self._norm.eps != self._eps:
            return True
        for each in self._made_of:
            if each.now is not each.was:
                break
        else:
            return False
        pairs = [(each.now, each.was) for each in self._made_of]
        others = [(now, was) for now, was in pairs if now is not was]
        if not all(_stands_for(now, was) for now, was in others):
            return True
        if not any(isinstance(now, FakeTensor) for now, _ in others):
            self._made_of = tuple(self._ingredients())
        return False

    # --- corrections ----------------------------------------------------------------------------

    def correct(
        self, scale: Tensor | None, bias: Tensor | None = None, delta: Tensor | None = None
    ) -> None:
        """Compute with ``scale * weight + delta`` and ``bias`` instead of the layer's own.

        Written into the same buffers at every call, so that captured CUDA graphs follow. The
        layer's parameters stay as they are.

        Args:
            scale: ``[OC]`` factor on the weight in effect; None puts what is not corrected into
                the buffers, if there are any.
            bias: ``[OC]``, instead of the bias in effect.
            delta: shaped as the weight, added to it; None for nothing.
        """
        if scale is None and self.corrected_weight is None:
            return
        with torch.no_grad():
            weight, own = self.uncorrected_parameters()
            if self.corrected_weight is None or self.corrected_bias is None:
                # Tensors made in inference mode could not be written to outside of it.
                with torch.inference_mode(False):
                    self.corrected_weight = torch.empty_like(weight)
                    self.corrected_bias = weight.new_empty(weight.shape[0])
                self.laid += 1
            self.written += 1
            self._note_ingredients()
            if scale is None:
                self.corrected_weight.copy_(weight)
                if own is None:
                    self.corrected_bias.zero_()
                else:
                    self.corrected_bias.copy_(own)
                return
            # In float32 at least: what is added may be far smaller than the weight.
            wide = torch.promote_types(weight.dtype, torch.float32)
            corrected = weight.to(wide) * scale.to(weight.device, wide)[:, None, None, None]
            if delta is not None:
                corrected += delta.to(weight.device, wide)
            self.corrected_weight.copy_(corrected)
            assert bias is not None, "a correction has a bias"
            self.corrected_bias.copy_(bias)

    def give_back(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Compute with a corrected weight and bias that the layer had before; None for neither."""
        if weight is None or bias is None:
            self.uncorrect()
        elif self.corrected_weight is None or self.corrected_bias is None:
            self.corrected_weight, self.corrected_bias = weight, bias
            self.laid += 1
        else:
            self.corrected_weight.copy_(weight)
            self.corrected_bias.copy_(bias)
            self.written += 1

    def uncorrect(self) -> None:
        """Take a correction back, and its buffers."""
        if self.corrected_weight is not None:
            self.corrected_weight = self.corrected_bias = None
            self.laid += 1


def _check_dtype(what: str, tensor: Tensor | None, allowed: tuple[torch.dtype, ...]) -> None:
    """Raise where the model's own code would, for which autocast alone makes one dtype of two."""
    if tensor is None or tensor.dtype in allowed:
        return
    if not torch.is_autocast_enabled(tensor.device.type):
        raise RuntimeError(
            f"{what}: got {tensor.dtype} beside a weight in {allowed[0]}, allowed: "
            f"{' or '.join(map(str, dict.fromkeys(allowed)))}, as in the model's own code; "
            "to(dtype) gives all of a network one"
        )


def _kept(module: nn.Module, names: Collection[str] | None = None) -> Iterator[_Ingredient]:
    """Parameters and buffers that a module keeps itself, under these names or all of them."""
    for part in ("_parameters", "_buffers"):
        for name, tensor in vars(module)[part].items():
            if tensor is not None and (names is None or name in names):
                yield _Ingredient(vars(module)[part], name, tensor)


def _stands_for(now: Tensor | None, was: Tensor) -> bool:
    """Whether a tensor is what has become of another, by a move to another device or dtype, say."""
    if now is None or now.shape != was.shape:
        return False
    if isinstance(now, FakeTensor):  # what torch.export puts in its place
        return now.fake_mode.from_tensor(was) is now
    if now.is_meta or was.is_meta:  # without numbers, any are as good as others
        return now.is_meta
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False  # numbers cannot be looked at
    return torch.equal(now, was.to(now))
