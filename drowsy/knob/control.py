"""The knob: everything that changes while a network runs, held in tensors.

Rates, scales, seed and image counter are read by the layers from these buffers at every inference,
on the device. Turning the knob is a write of a few bytes: no layer is rebuilt, nothing recompiles,
nothing synchronises, and a captured CUDA graph sees the new values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drowsy.sleep.turning import TURNING

MAX_SEED = 2**63 - 1


class Control(nn.Module):
    """Run-time state shared by the drowsy layers of one network.

    Buffers (not part of ``state_dict``):
        thresholds: int32 ``[L]``; layer ``i`` sleeps at rate ``thresholds[i] / k``.
        scales: float32 ``[L]``; factor on the awake outputs of layer ``i``.
        clock: int64 ``[2]``: the seed, and the running index of the next batch's first image.

    Attributes:
        settings: the thresholds as last set, on the host: reading the knob never synchronises.
        version: grows with every change of ``settings``, and of what graphs built from the layers
            take as fixed (``drowsy.deployment.builder.structure``).
    """

    version = 0

    # Graph passes must not drop the call that advances the clock: its result has no user.
    _is_impure = True

    thresholds: Tensor
    scales: Tensor
    clock: Tensor

    def __init__(self, layers: int, seed: int = 0, device: torch.device | None = None) -> None:
        super().__init__()
        buffers = {
            "thresholds": torch.zeros(layers, dtype=torch.int32, device=device),
            "scales": torch.ones(layers, dtype=torch.float32, device=device),
            "clock": torch.zeros(2, dtype=torch.int64, device=device),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        self.settings = [0] * layers
        self.reseed(seed)

    def set(self, thresholds: Sequence[int], scales: Sequence[float]) -> None:
        """Write every layer's threshold and scale."""
        self.settings = list(thresholds)
        self.version += 1
        # Without waiting for the device: it takes its copy of such small tensors at once.
        with TURNING:
            self.thresholds.copy_(torch.tensor(thresholds, dtype=torch.int32), non_blocking=True)
            self.scales.copy_(torch.tensor(scales, dtype=torch.float32), non_blocking=True)

    def set_layer(self, index: int, threshold: int, scale: float) -> None:
        """Write one layer's threshold and scale."""
        self.settings[index] = threshold
        self.version += 1
        with TURNING:
            self.thresholds[index] = threshold
            self.scales[index] = scale

    def reseed(self, seed: int, image: int = 0) -> None:
        """Restart the sleep maps at this seed and image index (each 0 to ``2**63 - 1``)."""
        check_seed("seed", seed)
        check_seed("image", image)
        self.clock.copy_(torch.tensor([seed, image]), non_blocking=True)

    def forward(self, x: Tensor) -> None:
        """Advance the clock past the images of ``x`` ``[N, ...]``."""
        self.clock[1:].add_(x.shape[0])

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Follow the model's device, never its dtype: scales stay float32 under ``.half()``."""
        scales = self.scales
        super()._apply(fn, recurse)
        self.scales = scales.to(self.scales.device)
        return self


def check_seed(name: str, value: int) -> None:
    """Raise unless the clock can hold this: an integer from 0 to ``2**63 - 1``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, allowed: an integer")
    if not 0 <= value <= MAX_SEED:
        raise ValueError(f"{name}: got {value}, allowed: 0 to {MAX_SEED}")
