"""Which modules are batch norms at heart, and which are activations of a neuron."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from drowsy.neuron import activate

_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], str | None]] = {
    nn.Identity: lambda m: "none",
    nn.ReLU: lambda m: "relu",
    nn.ReLU6: lambda m: "relu6" if (m.min_val, m.max_val) == (0, 6) else None,
    nn.LeakyReLU: lambda m: leaky_relu(m.negative_slope),
    nn.SiLU: lambda m: "silu",
    nn.GELU: lambda m: {"none": "gelu", "tanh": "gelu_tanh"}.get(m.approximate),
    nn.Hardswish: lambda m: "hardswish",
    nn.Sigmoid: lambda m: "sigmoid",
    nn.Tanh: lambda m: "tanh",
    # Slopes that are computed anew at every call are no slopes of a neuron.
    nn.PReLU: lambda m: "prelu" if "weight" in m._parameters else None,
}
ANOTHER = "another"
"""What a module applies that has come to apply none of ``drowsy.neuron.ACTIVATIONS``."""
# Of these modules, what the name depends on.
_CONSTANTS = ("min_val", "max_val", "negative_slope", "approximate")


def activation_at_heart(module: nn.Module) -> str | None:
    """Which of ``drowsy.neuron.ACTIVATIONS`` a module applies, ``none`` for ``nn.Identity``.

    None where it is something else, or not known to be one: a subclass is known by running its
    parent's code.
    """
    for kind, name_of in _ACTIVATIONS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return name_of(module)
    return None


def leaky_relu(slope: float) -> str | None:
    """The name of a leaky ReLU; None where the slope is not finite."""
    # Not math.isfinite: of a changed slope Dynamo cannot trace it.
    return f"leaky_relu:{+slope}".replace("e+", "e") if abs(slope) < math.inf else None


@dataclass(frozen=True)
class NormAtHeart:
    """A batch norm with statistics of its own, and what follows it within its module.

    What it computes is ``act((x - mean) / sqrt(var + eps) * weight + bias)``, channel by channel.
    All of it is the module's at the time of asking.

    Attributes:
        module: the module.
        activates: whether it calls its ``act`` on what comes of that.
    """

    module: nn.Module
    activates: bool = False

    @property
    def activation(self) -> str:
        """One of ``drowsy.neuron.ACTIVATIONS``, or ``ANOTHER``."""
        if not self.activates:
            return "none"
        return activation_at_heart(self.module.act) or ANOTHER  # type: ignore[arg-type]

    @property
    def mean(self) -> Tensor:
        """``[C]``."""
        return self.module.running_mean  # type: ignore[return-value]

    @property
    def var(self) -> Tensor:
        """``[C]``."""
        return self.module.running_var  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor | None:
        """``[C]``, None for ones."""
        return getattr(self.module, "weight", None)

    @property
    def bias(self) -> Tensor | None:
        """``[C]``, None for zeros."""
        return getattr(self.module, "bias", None)

    @property
    def eps(self) -> float:
        """What is added to the variance."""
        return self.module.eps  # type: ignore[return-value]

    def constants(self) -> Iterator[tuple[dict[str, Any], str, Any]]:
        """What it computes by beside tensors: where that is kept, under which name, and what."""
        places = [(vars(self.module), "eps")]
        if self.activates:
            act: Any = self.module.act
            places += [(self.module._modules, "act"), *((vars(act), name) for name in _CONSTANTS)]
        for kept, name in places:
            yield kept, name, kept.get(name)

    def factor(self, like: Tensor) -> Tensor:
        """``weight / sqrt(var + eps)``, ``[C]`` with the dtype and device of ``like``."""
        factor = torch.rsqrt(self.var.to(like) + self.eps)
        return factor if self.weight is None else factor * self.weight.to(like)


def norm_at_heart(module: nn.Module) -> NormAtHeart | None:
    """How a module is a batch norm that can be folded into the convolution before it.

    ``nn.BatchNorm2d`` and ``nn.SyncBatchNorm`` with running statistics are, in eval mode. So is
    what has a batch norm's tensors by their names (``FrozenBatchNorm2d``), and an activation named
    ``act`` if any (``BatchNormAct2d``), and turns out to compute with them: it is tried on a few
    numbers, unless it lies on the meta device, where nothing could be seen.

    Returns:
        None where it is something else, is in training mode, has no running statistics, or has
        hooks, which nobody would call.
    """
    if module._forward_hooks or module._forward_pre_hooks or module.training:
        return None
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) or not _has_statistics(module):
        return None
    if type(module) is nn.SyncBatchNorm or (
        isinstance(module, nn.BatchNorm2d) and type(module).forward is _BatchNorm.forward
    ):
        return NormAtHeart(module)
    found = NormAtHeart(module, isinstance(getattr(module, "act", None), nn.Module))
    # Of a PReLU within a norm nobody would look for the slopes.
    if found.activation in (ANOTHER, "prelu") or module.running_mean.is_meta:  # type: ignore[union-attr]
        return None
    return found if _computes(found) else None


def check_norm(norm: nn.Module | None) -> NormAtHeart | None:
    """As ``norm_at_heart``, None for None; ValueError where a module is no norm to fold."""
    if norm is None:
        return None
    found = norm_at_heart(norm)
    if found is None:
        raise ValueError(
            f"norm: got {type(norm).__name__} {_lacks(norm)}, allowed: a batch norm with running "
            "statistics, in eval mode and without hooks"
        )
    return found


def _lacks(norm: nn.Module) -> str:
    if getattr(norm, "running_mean", None) is None or getattr(norm, "running_var", None) is None:
        return "without running statistics"
    if norm._forward_hooks or norm._forward_pre_hooks:
        return "with hooks"
    return "in training mode" if norm.training else "that computes something else"


def _has_statistics(module: nn.Module) -> bool:
    """Whether it has a batch norm's tensors."""
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, *affine = (getattr(module, name, None) for name in names)
    if not (isinstance(mean, Tensor) and mean.dim() == 1 and mean.is_floating_point()):
        return False
    given = [var, *(each for each in affine if each is not None)]
    alike = all(isinstance(each, Tensor) and each.shape == mean.shape for each in given)
    return alike and isinstance(getattr(module, "eps", None), float)


def _computes(norm: NormAtHeart) -> bool:
    """Whether the module does with a few numbers what ``NormAtHeart`` says of it."""
    generator = torch.Generator().manual_seed(0)
    channels, device = len(norm.mean), norm.mean.device
    wide = torch.empty((), dtype=torch.float64, device=device)
    mean, spread = norm.mean.to(wide), (norm.var.to(wide) + norm.eps).sqrt()
    factor = norm.factor(wide)
    bias = torch.zeros_like(mean) if norm.bias is None else norm.bias.to(wide)
    with torch.no_grad(), torch.inference_mode(False):
        # Unlike each other in their own statistics, so that one that looks at these gives itself
        # away.
        for scale, shift in ((3.0, 0.0), (0.5, 2.0)):
            drawn = torch.randn((2, channels, 3, 5), generator=generator, dtype=torch.float64)
            given = _columns(mean) + (drawn.to(device) * scale + shift) * _columns(spread)
            x = given.to(norm.mean.dtype)
            given = x.to(wide) * _columns(factor)
            moved = _columns(bias - mean * factor)
            expected = activate(given + moved, norm.activation)
            try:
                y = norm.module(x.clone())
            except Exception:  # whatever a module's own code raises
                return False
            if not isinstance(y, Tensor) or y.shape != x.shape:
                return False
            least = 64 * torch.finfo(x.dtype).eps
            if not ((y - expected).abs() <= least * (given.abs() + moved.abs() + 1)).all():
                return False
    return True


def _columns(values: Tensor) -> Tensor:
    return values[:, None, None]
