"""The Drowsy Neuron in eager torch: the exact semantics every backend is held to.

Source: DrowsyNet, section III-A. In a layer's output a neuron is

    0                                   if it sleeps,
    scale * act(sum(x * w) + bias)      otherwise,

with ``scale = 1 / (1 - r)`` for the *rescaled* neuron and 1 for the *non-rescaled* one. The paper
writes the ReLU into the equation; here any activation stands in its place, a PReLU with its slopes.

Beyond the paper, a sleeper may take its value from awake neurons of its own image and channel,
which are then not scaled:

- ``nearest``: the nearest awake neuron of the 5x5 window around it, of equally near ones the first
  by (row, column); 0 where nobody in the window is awake.
- ``interpolate``: the mean of the awake neurons of the 3x3 window, weighted by the inverse of their
  squared distance; where there are none, the same over the 5x5 window; else 0.
- ``stencil``: a constant plus a weighted sum of the awake neurons of the 3x3 window. Weights and
  constant are the channel's own, for each of the 256 sets of awake neighbours, from a table that
  ``drowsy.correction.stencils`` makes of the layer's outputs on sample images.

Positions outside of the map do not count. A sleeper's own value is never read.
"""

from drowsy.neuron.asleep import SAME_SIZE, clear_, sleep
from drowsy.neuron.awake import (
    ACTIVATIONS,
    NO_ACTIVATION,
    Activation,
    ConvSpec,
    activate,
    autocast_dtype,
    awake_conv2d,
    check_activation,
    padded,
    padded_input,
)
from drowsy.neuron.fixed import FixedSleep
from drowsy.neuron.size import ConvSize
from drowsy.neuron.stencil import RING

__all__ = [
    "ACTIVATIONS",
    "NO_ACTIVATION",
    "RING",
    "SAME_SIZE",
    "Activation",
    "ConvSize",
    "ConvSpec",
    "FixedSleep",
    "activate",
    "autocast_dtype",
    "awake_conv2d",
    "check_activation",
    "clear_",
    "padded",
    "padded_input",
    "sleep",
]
