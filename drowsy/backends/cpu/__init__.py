"""The torch backend on the CPU: pure torch operations that skip the work of sleepers.

A layer runs in one of four ways:

``sublattices``
    A lattice's awake positions are a union of regular grids: a checkerboard is two of them. Each
    grid is the same convolution with a larger stride.
``rows``
    The input windows of awake positions, wherever they lie, are gathered into a matrix that is
    multiplied by the weights.
``channels``
    Images in which the same channels are awake are convolved with the weights of these channels.
``mask``
    Everything is computed and sleepers are cleared, as in ``backends.eager``. This is the way of
    grain ``neuron``, and of every layer where skipping costs more than it saves.

Which way wins is recorded per layer shape: ``drowsy.backends.cpu.crossover``.
"""

from drowsy.backends.cpu.ways import Call, conv2d, run

__all__ = ["Call", "conv2d", "run"]
