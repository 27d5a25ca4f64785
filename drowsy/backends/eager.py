"""The torch backend: any device, exact, the oracle of every other."""

from __future__ import annotations

from torch import Tensor

from drowsy import neuron
from drowsy.neuron import ConvSpec
from drowsy.sleep import SleepSpec, levels


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor,
    scale: Tensor,
    clock: Tensor,
    spec: ConvSpec,
    sleep: SleepSpec,
    fill: str,
    table: Tensor | None = None,
    detail: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """A drowsy layer: ``[N, C, H, W]`` -> ``[N, OC, OH, OW]``.

    Args:
        x, weight, bias, spec, slopes: as for ``neuron.awake_conv2d``.
        threshold, scale: one element each: the layer's ``j`` and the factor on awake outputs.
        clock: int64 ``(seed, image)``.
        sleep: how the layer's map is drawn.
        fill: what a sleeper outputs: ``zero``, or one of ``drowsy.sleep.NEIGHBOUR_FILLS``.
        table: of ``stencil``, as for ``neuron.sleep``.
        detail: of the network's input, for sources that see it, as for ``sleep.levels``.
    """
    y = neuron.awake_conv2d(x, weight, bias, spec, slopes)
    # On the CPU the threshold is at hand without a synchronisation: rate 0 costs nothing.
    if threshold.device.type == "cpu" and threshold.item() == 0:
        return y
    n, channels, height, width = y.shape
    drawn = levels(sleep, (n, channels, height, width), clock, detail)
    return neuron.sleep(y, drawn, threshold, scale, sleep.grain, fill, table)
