"""``SettableConv2d``: a convolution, and what can be set of its sleep."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from torch import Tensor

from drowsy.knob.control import Control
from drowsy.network.folded import FoldedConv2d
from drowsy.neuron import RING
from drowsy.sleep import NEIGHBOUR_FILLS, Grain, SleepSpec, check_fill, scale, threshold


class SettableConv2d(FoldedConv2d):
    """The knob of one layer: its rate, which lies in ``control``, and the form of its sleep.

    Attributes:
        control, index: the knob's tensors, and the layer's place in them.
        sleep: source, grain, number of rate steps, stream and phase.
        stencil: the table ``[256, 9, OC]`` of fill ``stencil``, as ``drowsy.neuron.sleep`` takes
            it, or None; a buffer that is not part of ``state_dict``.
    """

    control: Control
    index: int
    sleep: SleepSpec
    stencil: Tensor | None

    @property
    def rate(self) -> Fraction:
        """Fraction of this layer's neurons that sleep."""
        return Fraction(self.control.settings[self.index], self.sleep.k)

    @property
    def fill(self) -> str:
        """What a sleeper outputs, one of ``drowsy.sleep.FILLS``."""
        return self._fill

    def set(
        self,
        *,
        rate: float | Fraction | None = None,
        fill: str | None = None,
        grain: str | Grain | None = None,
    ) -> None:
        """Change rate, fill or grain in place; what is not given stays.

        Raises:
            ValueError: a rate, fill or grain that is not allowed, or a fill that the grain does not
                allow. The layer is then as it was.
        """
        j = threshold(self.rate if rate is None else rate, self.sleep.k)
        self.stage(fill=fill, grain=grain)
        self.control.set_layer(self.index, j, scale(j, self.sleep.k, self._fill))

    def stage(
        self,
        *,
        fill: str | None = None,
        grain: str | Grain | None = None,
        stream: int | None = None,
        phase: int | None = None,
    ) -> None:
        """Change fill, grain, stream and phase without touching ``control``: the network's job."""
        fill, parsed = self.check(fill=fill, grain=grain)
        sleep = self.sleep
        stream = sleep.stream if stream is None else stream
        phase = sleep.phase if phase is None else phase
        if (parsed, stream, phase) != (sleep.grain, sleep.stream, sleep.phase):
            sleep = replace(sleep, grain=parsed, stream=stream, phase=phase)
        elif fill == self._fill:
            return  # what was prepared for the present setting is not prepared anew
        self._set(sleep, fill)

    def restore(self, sleep: SleepSpec, fill: str, backend: str) -> None:
        """Give back what the layer had."""
        self._set(sleep, fill)
        self.backend = backend

    def check(
        self, *, fill: str | None = None, grain: str | Grain | None = None
    ) -> tuple[str, Grain]:
        """The fill and grain that ``stage`` would give the layer; raises where it would."""
        parsed = self.sleep.grain if grain is None else Grain.parse(grain)
        if parsed != self.sleep.grain:
            replace(self.sleep, grain=parsed)  # raises where the source does not take the grain
        return self._check_fill(self._fill if fill is None else fill, parsed), parsed

    def _check_fill(self, fill: str, grain: Grain) -> str:
        if check_fill(fill, grain) == "stencil" and self.stencil is None:
            raise ValueError(
                "fill: got 'stencil' for a layer without a table of weights, allowed: after "
                "drowsy.calibrate_stencils(net, images) or drowsy.load_stencils(net, path)"
            )
        return fill

    def set_stencil(self, table: Tensor) -> None:
        """Install the table of fill ``stencil``; it takes the weight's dtype and device.

        Args:
            table: floating point ``[256, 9, OC]``, finite (``stencil_table`` of
                ``drowsy.correction.stencils``).

        Raises:
            TypeError, ValueError: another table. The layer is then as it was.
        """
        self.check_stencil(table)
        self.stencil = table.detach().to(self.weight).contiguous()

    def check_stencil(self, table: Tensor) -> None:
        """Raise where ``set_stencil`` would."""
        if not isinstance(table, Tensor) or not table.is_floating_point():
            kind = table.dtype if isinstance(table, Tensor) else type(table).__name__
            raise TypeError(f"table: got {kind}, allowed: a floating-point tensor")
        shape = (1 << len(RING), len(RING) + 1, self.out_channels)
        if table.shape != shape:
            raise ValueError(f"table: got shape {tuple(table.shape)}, allowed: {shape}")
        if not table.isfinite().all():
            raise ValueError("table: holds NaN or infinity, allowed: finite numbers")

    @property
    def table(self) -> Tensor | None:
        """The table that the present fill reads: that of ``stencil``, None for the others."""
        return self.stencil if self._fill == "stencil" else None

    def _set(self, sleep: SleepSpec, fill: str) -> None:
        self.sleep, self._fill = sleep, fill
        # The operator takes both as text, made here once and not at every call. To a sleeper
        # ``zero`` and ``rescale`` are one: compiled networks are not compiled anew for the other.
        self._sleep_text = str(sleep)
        self._fill_text = fill if fill in NEIGHBOUR_FILLS else "zero"
