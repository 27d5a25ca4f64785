"""Which modules are batch norms and activations at heart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unusual import BatchNormAct, FrozenBatchNorm, randomise

from drowsy.network.norms import activation_at_heart, norm_at_heart
from drowsy.neuron import activate


class _Norm(nn.BatchNorm2d):
    """A subclass that runs its parent's code."""


class _Flipped(FrozenBatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class _OfTheBatch(FrozenBatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, (0, 2, 3), keepdim=True)
        scale = self.weight[:, None, None] * (var + self.eps).rsqrt()
        return (x - mean) * scale + self.bias[:, None, None]


class _Dropping(BatchNormAct):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.9


NORMS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm": (lambda: nn.BatchNorm2d(5), "none"),
    "without affine": (lambda: nn.BatchNorm2d(5, affine=False, eps=1e-3), "none"),
    "subclass": (lambda: _Norm(5), "none"),
    "synchronised": (lambda: nn.SyncBatchNorm(5), "none"),
    "instance norm": (lambda: nn.InstanceNorm2d(5, track_running_stats=True), "none"),
    "frozen": (lambda: FrozenBatchNorm(5), "none"),
    "with relu": (lambda: BatchNormAct(5), "relu"),
    "with silu": (lambda: BatchNormAct(5, nn.SiLU(inplace=True), eps=1e-3), "silu"),
    "with nothing": (lambda: BatchNormAct(5, nn.Identity()), "none"),
    "without affine, with slope": (
        lambda: BatchNormAct(5, nn.LeakyReLU(0.2), affine=False),
        "leaky_relu:0.2",
    ),
}
NO_NORMS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(5, 5),
    "group norm": lambda: nn.GroupNorm(1, 5),
    "instance norm": lambda: nn.InstanceNorm2d(5, affine=True),
    "of volumes": lambda: nn.BatchNorm3d(5),
    "lazy": nn.LazyBatchNorm2d,
    "without statistics": lambda: nn.BatchNorm2d(5, track_running_stats=False),
    "flipped": lambda: _Flipped(5),
    "of the batch": lambda: _OfTheBatch(5),
    "unknown activation": lambda: BatchNormAct(5, nn.Softplus()),
    "activation with slopes": lambda: BatchNormAct(5, nn.PReLU(5)),
    "dropping": lambda: _Dropping(5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NORMS)
def test_what_is_one_is_told_with_its_activation(name: str, dtype: torch.dtype) -> None:
    make, activation = NORMS[name]
    module = randomise(make()).to(dtype)
    random = torch.get_rng_state()
    norm = norm_at_heart(module)
    assert torch.equal(torch.get_rng_state(), random)
    assert norm is not None
    assert (norm.module, norm.activation) == (module, activation)
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    centred = x - norm.mean.to(x)[:, None, None]
    expected = centred * norm.factor(x)[:, None, None]
    if norm.bias is not None:
        expected += norm.bias.to(x)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(
            module.to(x.dtype)(x), activate(expected, activation), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("name", NO_NORMS)
def test_what_is_none_is_none(name: str) -> None:
    module = NO_NORMS[name]().eval()
    assert norm_at_heart(module if name == "lazy" else randomise(module)) is None


@pytest.mark.parametrize("name", NORMS)
def test_norms_in_training_mode_with_hooks_or_unseen_are_none(name: str) -> None:
    make, _ = NORMS[name]
    assert norm_at_heart(make().train()) is None
    hooked = make().eval()
    hooked.register_forward_hook(lambda module, given, y: y * 2)
    assert norm_at_heart(hooked) is None
    unseen = norm_at_heart(make().eval().to("meta"))
    assert (unseen is None) == (name not in KNOWN)


KNOWN = ("batch norm", "without affine", "subclass", "synchronised")


class _Relu(nn.ReLU):
    """A subclass that runs its parent's code."""


class _Twice(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Identity(), "none"),
        (nn.ReLU(inplace=True), "relu"),
        (_Relu(), "relu"),
        (nn.ReLU6(), "relu6"),
        (nn.SiLU(), "silu"),
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (nn.Hardswish(), "hardswish"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Tanh(), "tanh"),
        (nn.LeakyReLU(0.2), "leaky_relu:0.2"),
        (nn.LeakyReLU(float("nan")), None),
        (_Twice(), None),
        (nn.Softplus(), None),
        (nn.Linear(1, 1), None),
    ],
    ids=str,
)
def test_activations_are_told_by_the_code_that_they_run(module: nn.Module, name: Any) -> None:
    assert activation_at_heart(module) == name
    if name is not None:
        x = torch.randn(3, 4)
        torch.testing.assert_close(module(x.clone()), activate(x.clone(), name))
