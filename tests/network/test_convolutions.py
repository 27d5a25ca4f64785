"""Which modules are convolutions at heart: told by what they do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from unusual import ConvSame, ConvStatic, Harmless, ScaledStdConv, StdConv

from drowsy.network.convolutions import TAKEN, conv_at_heart
from drowsy.network.layer import DrowsyConv2d

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def conv(kind: type[nn.Conv2d] = nn.Conv2d, **options: Any) -> nn.Conv2d:
    return kind(4, 6, 3, **options)


PLAIN: dict[str, Callable[[], nn.Conv2d]] = {
    "nn.Conv2d": conv,
    "subclass": lambda: conv(Harmless, stride=2, padding=1, dilation=2),
    "reflect": lambda: conv(Harmless, padding=1, padding_mode="reflect"),
}
SAME: dict[str, Callable[[], nn.Conv2d]] = {
    f"same, stride {stride}, dilation {dilation}": lambda s=stride, d=dilation: conv(
        ConvSame, stride=s, dilation=d
    )
    for stride in (1, 2, 3, (1, 2))
    for dilation in (1, 2, (2, 1))
}
STATIC: dict[str, tuple[Callable[[], nn.Conv2d], tuple[int, int, int, int]]] = {
    "even": (lambda: conv(ConvStatic, stride=2), (0, 1, 0, 1)),
    "odd": (lambda: conv(ConvStatic, stride=2, image_size=225), (1, 1, 1, 1)),
    "dilated": (lambda: conv(ConvStatic, stride=(1, 2), dilation=2), (1, 2, 2, 2)),
    "5x5": (lambda: ConvStatic(4, 6, 5, stride=2, groups=2, bias=False), (1, 2, 1, 2)),
    "besides padding": (lambda: conv(ConvStatic, stride=2, padding=(1, 2)), (0, 1, 0, 1)),
}
COMPUTED: dict[str, Callable[[], nn.Conv2d]] = {
    "standardised": lambda: conv(StdConv, padding=1, stride=2),
    "scaled and standardised": lambda: conv(ScaledStdConv, padding=1),
    "standardised, same": lambda: conv(StdConv, same=True, stride=2),
    "scaled, same": lambda: conv(ScaledStdConv, same=True, stride=2),
    "weight_norm": lambda: parametrizations.weight_norm(conv()),
    "spectral_norm": lambda: parametrizations.spectral_norm(conv(bias=False)),
    "orthogonal": lambda: parametrizations.orthogonal(conv()),
    "weight_norm by a hook": lambda: weight_norm(conv()),
    "spectral_norm by a hook": lambda: spectral_norm(conv()),
    "pruned": lambda: prune.l1_unstructured(conv(), "weight", 0.5),
    "pruned twice, bias too": lambda: prune.random_unstructured(
        prune.ln_structured(prune.l1_unstructured(conv(), "weight", 0.25), "weight", 0.5, 2, 0),
        "bias",
        0.5,
    ),
}


@pytest.mark.parametrize("name", [*PLAIN, *SAME, *COMPUTED])
def test_what_is_one_is_told_with_how_it_pads_and_computes(name: str) -> None:
    module = (PLAIN | SAME | COMPUTED)[name]().eval()
    heart = conv_at_heart(module)
    assert not isinstance(heart, str), heart
    assert heart.module is module
    assert (heart.computed is not None) == (name in COMPUTED)
    assert heart.pads_same == ("same" in name)


@pytest.mark.parametrize("name", STATIC)
def test_zeros_that_a_module_of_its_own_adds_first_are_told(name: str) -> None:
    make, sides = STATIC[name]
    heart = conv_at_heart(make().eval())
    assert not isinstance(heart, str), heart
    assert (heart.pads_first, heart.pads_same, heart.computed) == (sides, False, None)


def test_where_nothing_is_to_be_added_first_there_is_nothing() -> None:
    pointwise = ConvStatic(4, 6, 1, stride=2).eval()
    assert isinstance(pointwise.static_padding, nn.Identity)
    heart = conv_at_heart(pointwise)
    assert not isinstance(heart, str)
    assert (heart.pads_first, heart.pads_same) == (None, False)


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_parameters_are_those_that_the_module_convolves_with(name: str) -> None:
    module = COMPUTED[name]().eval()
    seen = {}
    real = F.conv2d

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        seen["weight"], seen["bias"] = weight, bias
        return real(x, weight, bias, *rest)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "conv2d", spy)
        module(torch.randn(1, 4, 9, 9))
    heart = conv_at_heart(module)
    assert not isinstance(heart, str)
    assert heart.computed is not None
    weight, bias = heart.computed(module)
    assert torch.equal(weight, seen["weight"])
    assert (bias is None) == (seen["bias"] is None)
    assert bias is None or torch.equal(bias, seen["bias"])


@pytest.mark.parametrize("name", COMPUTED)
def test_watching_changes_nothing(name: str) -> None:
    module = COMPUTED[name]().eval()
    before, attributes = copy.deepcopy(module.state_dict()), dict(vars(module))
    parts = {key: dict(vars(module)[key]) for key in ("_parameters", "_buffers", "_modules")}
    random = torch.get_rng_state()
    heart = conv_at_heart(module)
    assert not isinstance(heart, str)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(vars(module)[key] is value for key, value in attributes.items())
    assert {key: vars(module)[key] for key in parts} == parts
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


class _More(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class _Scales(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2)


class _Modulated(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * x.mean(), self.bias)


class _Looks(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * len(x), self.bias)


class _Noisy(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, torch.randn_like(self.weight), self.bias)


class _Twice(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


class _Half(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight[:3], None)


class _OtherStride(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, 2)


class _Ones(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1), value=1.0))


class _Odd(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))


class _OnlySmall(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if x.shape[2] < 200 else x)


class _LessPadding(nn.Conv2d):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


class _TwoInputs(nn.Conv2d):
    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        return super().forward(x)


class _Answers(nn.Conv2d):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + 1


class _Named(StdConv):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.control = nn.Linear(1, 1)


class _Anything(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * torch.rand(())


def _anyhow() -> nn.Conv2d:
    module = conv()
    parametrize.register_parametrization(module, "weight", _Anything())
    return module


def _hooked() -> nn.Conv2d:
    module = weight_norm(conv())
    module.register_forward_hook(lambda module, given, y: y + 1)
    return module


def _part_hooked() -> nn.Conv2d:
    module = conv(ConvStatic, stride=2)
    module.static_padding.register_forward_hook(lambda module, given, y: y + 1)
    return module


def _reflecting() -> nn.Conv2d:
    module = conv(ConvStatic, stride=2)
    module.static_padding = nn.ReflectionPad2d((0, 1, 0, 1))
    return module


def _ones_first() -> nn.Conv2d:
    module = conv(ConvStatic, stride=2)
    module.static_padding = nn.ConstantPad2d((0, 1, 0, 1), 1.0)
    return module


def _by_hand() -> nn.Conv2d:
    module = conv()
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


NOT_ONES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (lambda: nn.Linear(2, 2), "Linear is not an nn.Conv2d"),
    "transposed": (lambda: nn.ConvTranspose2d(2, 2, 2), "is not an nn.Conv2d"),
    "lazy": (lambda: nn.LazyConv2d(2, 2), "not initialised"),
    "a call": (nn.Module, r"F\.conv2d is not an nn\.Conv2d"),
    "more": (lambda: conv(_More), "more than a convolution: relu"),
    "scales": (lambda: conv(_Scales), "more than a convolution: mul"),
    "modulated": (lambda: conv(_Modulated), "more than a convolution: mean"),
    "looks": (lambda: conv(_Looks), "another weight at every call"),
    "noisy": (lambda: conv(_Noisy), "another weight at every call"),
    "twice": (lambda: conv(_Twice), "more than a convolution"),
    "half": (lambda: conv(_Half), "other channels"),
    "other stride": (lambda: conv(_OtherStride), "another geometry"),
    "ones": (lambda: conv(_Ones), "pads in its own way"),
    "only small": (lambda: conv(_OnlySmall), "another geometry"),
    "less padding": (lambda: conv(_LessPadding), "another geometry"),
    "part hooked": (_part_hooked, "it has hooks"),
    "reflecting": (_reflecting, "another geometry"),
    "ones first": (_ones_first, "pads in its own way"),
    "odd": (lambda: conv(_Odd), "another geometry"),
    "two inputs": (lambda: conv(_TwoInputs), "could not be watched.*routing"),
    "answers": (lambda: conv(_Answers), "something else than its forward"),
    "named": (lambda: conv(_Named), "a part named control"),
    "anyhow": (_anyhow, "parametrization that may be anything: make it permanent"),
    "hooked": (_hooked, "it has hooks"),
    "by hand": (_by_hand, "replaced by hand"),
    "drowsy": (lambda: DrowsyConv2d(2, 2, 1), "is drowsy already"),
}


@pytest.mark.parametrize("name", NOT_ONES)
def test_what_is_none_is_told_why(name: str) -> None:
    make, reason = NOT_ONES[name]
    heart = conv_at_heart(make().eval())
    assert isinstance(heart, str)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(heart)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "pruned", "standardised"])
def test_computed_weights_are_told_in_eval_mode_alone(name: str) -> None:
    heart = conv_at_heart(COMPUTED[name]().train())
    assert isinstance(heart, str)
    assert "training mode: call eval()" in heart


def test_every_name_of_a_layer_is_known_to_be_taken() -> None:
    layer, plain = DrowsyConv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
    own = {*dir(layer), *layer._buffers, *layer._modules} - set(dir(plain))
    assert {name for name in own if not name.startswith("_")} == TAKEN
