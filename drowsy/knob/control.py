"""The knob: everything that changes while a network runs, held in tensors.

Rates, scales, seed and image counter are read by the layers from these buffers at every inference,
on the device. Turning the knob is a write of a few bytes: no layer is rebuilt, nothing recompiles,
nothing synchronises, and a captured CUDA graph sees the new values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from drowsy.knob.turns import Turns
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
        self._own = self.thresholds, self.scales, self.clock
        self.turns = Turns()
        self._since: dict[int, int] = {}
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

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Give back settings, scales and clock."""
        tensors = (self.thresholds, self.scales, self.clock)
        settings, before = list(self.settings), [tensor.clone() for tensor in tensors]
        try:
            yield
        finally:
            self.settings, self.version = settings, self.version + 1
            for tensor, held in zip(
                (self.thresholds, self.scales, self.clock), before, strict=True
            ):
                tensor.copy_(held)

    @contextmanager
    def nobody_asleep(self) -> Iterator[None]:
        """Let nobody sleep for a while."""
        with self.kept():
            self.settings, self.version = [0] * len(self.settings), self.version + 1
            self.thresholds.zero_()
            self.scales.fill_(1)
            yield

    def awake(self, index: int) -> bool:
        """Whether nobody of layer ``index`` sleeps, told without a synchronisation.

        False where it cannot be told: other tensors than those that were written to are in the
        places of the buffers (``torch.func.functional_call``).
        """
        return self.settings[index] == 0 and self._buffers["thresholds"] is self._own[0]

    def present(self) -> Tensor:
        """The clock itself, where tracers have put another tensor in its place."""
        return self._own[2]

    def reseed(self, seed: int, image: int = 0) -> None:
        """Restart the sleep maps at this seed and image index (each 0 to ``2**63 - 1``)."""
        check_seed("seed", seed)
        check_seed("image", image)
        self._since.clear()
        self.clock.copy_(torch.tensor([seed, image]), non_blocking=True)

    def advance(self, images: int) -> None:
        """Advance the clock past so many images.

        Not for an export to ONNX, whose maps are those of the moment.
        """
        if not exporting_onnx():
            self.clock[1:].add_(images)

    def called_alone(self, layer: int, images: int) -> None:
        """Note that a layer is about to run on so many images outside of its network's call.

        There nobody tells when an inference is over: it is when a layer runs again.
        """
        if layer in self._since:
            self.advance(max(self._since.values()))
            self._since.clear()
        self._since[layer] = images

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Follow the model's device, never its dtype: scales stay float32 under ``.half()``."""
        scales = self.scales
        super()._apply(fn, recurse)
        self.scales = scales.to(self.scales.device)
        self._own = self.thresholds, self.scales, self.clock
        return self


def exporting_onnx() -> bool:
    """Whether ``torch.onnx.export`` is looking."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return traced and torch.onnx.is_in_onnx_export()


@contextmanager
def untraced() -> Iterator[None]:
    """Compute with numbers that tracers do not see."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        with _disable_current_modes():
            yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def check_seed(name: str, value: int) -> None:
    """Raise unless the clock can hold this: an integer from 0 to ``2**63 - 1``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, allowed: an integer")
    if not 0 <= value <= MAX_SEED:
        raise ValueError(f"{name}: got {value}, allowed: 0 to {MAX_SEED}")
