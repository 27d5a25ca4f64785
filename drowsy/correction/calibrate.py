"""Corrections for a network that sleeps, from unlabelled images, one set for each operating point.

Sleep shifts the statistics of everything behind it: a filled map is smoother than the one it stands
for, so the pre-activations of the next layer shrink, and the error grows from layer to layer. A
correction counters that where it arises. The drowsy network and the same network awake see the same
images, layer by layer, and every layer whose input differs is corrected for the drowsy input that
it really gets, the layers before it being corrected already:

- the *affine* correction gives the pre-activations of each channel's awake neurons the mean and the
  standard deviation that they have when all are awake: a factor on its weights and a new bias,
  nothing more to store or to run. (What sleepers would compute does not count: it is thrown away);
- *reconstruction* changes the weights themselves: by least squares, the pre-activations of the
  awake neurons come as close as they can to those of the network awake. A ridge holds the weights
  to what they were; images that the fit did not see choose how strongly, to the point that the
  bias alone changes, or nothing. (As layers are reconstructed after channels were pruned: He et
  al., "Channel pruning for accelerating very deep neural networks", ICCV 2017.) What least squares
  predict varies less than what they predict it of, and a network whose every layer shrinks is
  less sure of its answers; so the affine correction follows.

A layer that ends in a residual addition also makes up for what the other summand has lost.

A layer that runs several times in an inference, at one size or at several, has one correction: for
its first input, if that differs from the one awake. All its calls compute with it, and what runs
after them is corrected for what then comes out of them. (The later inputs are no guide: they follow
from the correction.)

A network without a graph is corrected in two forwards of all images at once (``by_forward``), to
the same corrections but for one thing: nobody tells which layers end in a residual addition, so
that each makes up for its own losses alone. Of a layer whose outputs have other shapes asleep than
awake (where they decide what runs on how many regions, say) the affine correction still is right.
What runs asleep alone is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from drowsy.correction.by_forward import corrections_by_forward
from drowsy.correction.by_graph import corrections_by_graph
from drowsy.images.checks import check_batch, check_images
from drowsy.knob.control import check_seed
from drowsy.knob.costs import layer_shares, network_cost
from drowsy.knob.frontier import Frontier
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Schedule
from drowsy.network.calibration import Calibration, weight_norms
from drowsy.network.net import DrowsyNet, check_network

# Images that a reconstruction takes, at least.
FEWEST = 4
# Images of a forward pass, where no other number is asked for.
BATCH = 32

Point = Schedule | OperatingPoint | float | Fraction


def calibrate(
    net: DrowsyNet,
    images: Tensor | Iterable[Any],
    points: Frontier | Point | Iterable[Point] | None = None,
    *,
    reconstruct: bool = False,
    seed: int = 0,
    batch: int = BATCH,
    progress: bool = False,
) -> Calibration:
    """Correct a network at its operating points; neither labels nor training are needed.

    From then on ``net.set`` puts the correction of the nearest calibrated point in force, and warns
    where that is not the very point, or where it was made for other sleepers (another grain, fill
    or source). Rate 0 is never corrected.

    Args:
        net: a converted network; its weights, rates and sleep maps stay as they are.
        images: ``[N, C, H, W]`` as the network takes them, or a loader of batches (a tensor, or a
            tuple that begins with it). A hundred is enough for the affine correction, and
            reconstruction gains from every one. All are held in memory, with the activations that
            are needed at one layer; and without a graph, to reconstruct, with 16,000 or more
            pre-activations of every channel of every layer.
        points: a frontier; schedules, operating points or rates of all layers, one or several; None
            for the setting in force.
        reconstruct: also change weights (see above): better, at the price of a copy of the weights
            for each point.
        seed: of the sleep maps that are drawn for the images, and of the positions that are fitted.
        batch: images per forward pass; without a graph, per convolution.
        progress: show a progress bar (needs tqdm).

    Returns:
        the calibration, which is also ``net.calibration``; ``save`` it beside the frontier.

    Raises:
        ValueError: no images, images that are not finite, fewer than 4 for ``reconstruct``, a
            schedule that does not fit the network, a layer whose outputs are not finite, or one
            whose outputs have other shapes asleep than awake where it is to be reconstructed.
        TypeError: a network that is not converted, or points that are none.
    """
    check_network(net)
    pixels = _gathered(images)
    check_images(pixels)
    if reconstruct and len(pixels) < FEWEST:
        raise ValueError(
            f"images: got {len(pixels)}, allowed: {FEWEST} or more to reconstruct from"
        )
    check_batch(batch)
    check_seed("seed", seed)
    settings = _settings(net, points)
    net.settle(pixels[:1])
    corrections = corrections_by_forward if net.graph is None else corrections_by_graph
    with net.kept():
        net.calibration = None
        shares = layer_shares(network_cost(net, pixels.shape[1:]).convolutions)
        calibration = Calibration(
            net.k,
            tuple(net.layers),
            tuple(shares.get(name, 0.0) for name in net.layers),
            weight_norms(net.layers),
        )
        for each in settings:
            net.set(each)
            setting = tuple(net.control.settings)
            if any(setting):
                calibration.sleeps[setting] = net.sleeps
                calibration.points[setting] = corrections(
                    net, pixels, reconstruct, seed, batch, progress
                )
    net.calibration = calibration
    return calibration


def _settings(net: DrowsyNet, points: Any) -> list[Point]:
    """What ``net.set`` is to be given for each point."""
    if points is None:
        return [net.schedule]
    if isinstance(points, Frontier):
        return list(points.points)
    if _is_setting(points):
        points = [points]
    if not isinstance(points, Iterable) or isinstance(points, (str, Mapping)):
        raise _no_points(points)
    found = list(points)
    for point in found:
        if not _is_setting(point):
            raise _no_points(point)
    return found


def _is_setting(point: Any) -> bool:
    """Whether this tells every layer's rate, as a mapping of some layers does not."""
    setting = getattr(point, "schedule", point)
    return isinstance(setting, (Schedule, int, float, Fraction)) and not isinstance(setting, bool)


def _no_points(given: Any) -> TypeError:
    return TypeError(
        f"points: got {given!r}, allowed: a Frontier, or Schedules, OperatingPoints or rates"
    )


def _gathered(images: Tensor | Iterable[Any]) -> Tensor:
    if isinstance(images, Tensor):
        return images
    given = images if isinstance(images, Iterable) else ()
    batches = [each[0] if isinstance(each, (tuple, list)) else each for each in given]
    if not batches or not all(isinstance(each, Tensor) for each in batches):
        raise ValueError("images: got no batches of tensors, allowed: a tensor or a loader of them")
    return torch.cat(batches)
