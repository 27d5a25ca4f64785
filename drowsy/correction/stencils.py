"""Weights of the ``stencil`` fill: what its awake neighbours tell about a sleeper.

A layer's awake outputs on sample images, which need no labels, have a mean and a covariance over
the 3x3 windows of each channel. From these follows the linear least-squares prediction of the
centre from any set of its neighbours (simple kriging): one calibration serves every source, rate
and grain of single positions. There are 256 sets, and a layer holds the weights of all of them, so
that a fill is a look-up and at most eight products.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from drowsy.correction.interception import layers_doing
from drowsy.files.messages import legible, listed
from drowsy.files.tensors import read_tensors, write_tensors
from drowsy.images.checks import check_batch, check_images
from drowsy.knob.schedule import named
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet, check_network
from drowsy.neuron import RING

# Added to the neighbours' variances, as a fraction of the mean variance of a window's places:
# enough that few or identical samples give no wild weights.
_RIDGE = 1e-3
# Outputs whose windows are laid out at a time, each nine float64: about as much as caches hold.
_PART = 1 << 16
_WINDOW = ((0, 0), *RING)


@dataclass(frozen=True)
class Moments:
    """Of the values in the 3x3 windows of each channel: the centre, then ``drowsy.neuron.RING``.

    Args:
        count: number of windows.
        mean: float64 ``[C, 9]``.
        scatter: float64 ``[C, 9, 9]``, sums of products of deviations from the mean.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of windows (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        share = other.count / count
        between = apart[:, :, None] * apart[:, None, :] * (self.count * share)
        return Moments(count, self.mean + apart * share, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Tensor:
        """Float64 ``[C, 9, 9]``."""
        return self.scatter / self.count


def window_moments(y: Tensor) -> Moments:
    """Moments of the windows that lie within the maps ``[N, C, H, W]``, ``N >= 1``.

    Where maps are lower or narrower than a window, windows are as low or narrow, and the places
    that they lack are 0: uncorrelated with any other.
    """
    parts = y.split(max(1, _PART // y[0].numel()))
    total = _window_moments(parts[0])
    for part in parts[1:]:
        total += _window_moments(part)
    return total


def _window_moments(y: Tensor) -> Moments:
    maps = y.transpose(0, 1).contiguous().double()
    parts = [_scatter(part) for part in maps.split(max(1, _PART // maps[0].numel()))]
    counts, means, scatters = zip(*parts, strict=True)
    return Moments(counts[0], torch.cat(means), torch.cat(scatters))


def _scatter(maps: Tensor) -> tuple[int, Tensor, Tensor]:
    """Count, mean and scatter of the windows of ``[C, N, H, W]``."""
    channels, images, height, width = maps.shape
    margin_y, margin_x = int(height >= 3), int(width >= 3)
    inner = (height - 2 * margin_y, width - 2 * margin_x)
    places = []
    for dy, dx in _WINDOW:
        if abs(dy) <= margin_y and abs(dx) <= margin_x:
            place = maps.narrow(2, margin_y + dy, inner[0]).narrow(3, margin_x + dx, inner[1])
        else:
            place = maps.new_zeros(()).expand(channels, images, *inner)
        places.append(place)
    windows = torch.stack(places, dim=1).flatten(2)
    mean = windows.mean(dim=2)
    windows -= mean[:, :, None]
    return windows.shape[2], mean, windows @ windows.transpose(1, 2)


def stencil_table(mean: Tensor, covariance: Tensor) -> Tensor:
    """The table of fill ``stencil``, as ``drowsy.neuron.sleep`` takes it.

    Args:
        mean, covariance: float64 ``[C, 9]`` and ``[C, 9, 9]`` of windows, the centre first.

    Returns:
        float64 ``[256, 9, C]``: by set of awake neighbours (bit ``i`` is ``RING[i]``) the weights
        of the eight, 0 for those asleep, and the constant.
    """
    bits = torch.arange(len(RING), device=mean.device)
    awake = (torch.arange(1 << len(RING), device=mean.device)[:, None] >> bits & 1).double()
    variance = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)
    # No less than this, or a channel that never moves would divide by 0.
    ridge = (_RIDGE * variance).clamp_min(torch.finfo(torch.float64).tiny)
    # Of sleepers only the ridge is left, and their weights come out as 0. [256, C, 8, 8]
    pairs = awake[:, None, :, None] * awake[:, None, None, :]
    products = covariance[:, 1:, 1:] * pairs + ridge[:, None, None] * torch.eye(len(RING)).to(mean)
    weights = torch.linalg.solve(products, covariance[:, 1:, 0] * awake[:, None])
    constant = mean[:, 0] - (weights * mean[:, 1:]).sum(dim=2)
    return torch.cat([weights.transpose(1, 2), constant[:, None]], dim=1).contiguous()


def calibrate_stencils(net: DrowsyNet, images: Tensor, *, batch: int = 50) -> None:
    """Give every layer whose grain has cells of single positions the table of fill ``stencil``.

    The network sees the images with all neurons awake; its rates, its fills and its clock stay as
    they are. ``net.set(rate, fill="stencil")`` puts the tables to use. Calibrate again after
    changing weights.

    Args:
        net: a converted network.
        images: float ``[N, C, H, W]``, finite, of the network's dtype and device: a sample of what
            it will see, other images than those that its accuracy is measured on.
        batch: images per forward pass.

    Raises:
        TypeError, ValueError: an argument outside of what is listed here, no layer with such a
            grain, one that does not run, or one whose outputs are not finite.
    """
    check_network(net)
    check_images(images)
    check_batch(batch)
    found: dict[str, Moments] = {}
    wanted = _fillable(net)

    def gather(name: str, layer: DrowsyConv2d, x: Tensor) -> Tensor:
        y = layer.awake(x)
        if name in wanted and y.numel():
            moments = window_moments(y if y.dim() == 4 else y[None])
            found[name] = found[name] + moments if name in found else moments
        return y

    net.settle(images[:1].clone())
    with torch.no_grad():
        with layers_doing(net, gather):
            for part in images.split(batch):
                # A network may overwrite its input.
                net(part.clone())
        if idle := [name for name in wanted if name not in found]:
            raise ValueError(f"net: {', '.join(idle)} did not run, allowed: layers that do")
        # As files hold them, so that a network of float64 computes the same by those that it reads.
        tables = {name: stencil_table(m.mean, m.covariance).float() for name, m in found.items()}
    install_stencils(wanted, tables)


def _fillable(net: DrowsyNet) -> dict[str, DrowsyConv2d]:
    """Layers whose grain lets sleepers have awake neighbours; there is at least one."""
    layers = {n: one for n, one in net.layers.items() if one.sleep.grain.of_single_positions}
    if not layers:
        grains = dict.fromkeys(str(layer.sleep.grain) for layer in net.layers.values())
        raise ValueError(
            f"net: got grain {', '.join(grains)}, allowed: in one layer at least a grain of single "
            "positions (neuron, position, position:G, tile:1xN)"
        )
    return layers


def save_stencils(net: DrowsyNet, path: str | os.PathLike[str]) -> None:
    """Write the tables of a network's layers to a safetensors file, whole or not at all.

    Raises:
        ValueError: no layer has a table.
        ImportError: safetensors is not installed.
    """
    check_network(net)
    tables = {n: layer.stencil for n, layer in net.layers.items() if layer.stencil is not None}
    if not tables:
        raise ValueError("net: no layer has a table, allowed: after drowsy.calibrate_stencils")
    write_tensors(path, tables)


def load_stencils(net: DrowsyNet, path: str | os.PathLike[str]) -> None:
    """Give every layer whose grain has cells of single positions its table from a file.

    The file may hold tables of other layers too.

    Raises:
        FileNotFoundError: no file there.
        ValueError: a file that is truncated or of another format, that lacks a layer, or whose
            tables do not fit the layers. The network is then as it was.
        ImportError: safetensors is not installed.
    """
    check_network(net)
    layers = _fillable(net)
    tables = read_tensors(path, "stencils")
    if missing := [name for name in layers if name not in tables]:
        raise ValueError(f"stencils: {legible(path)} has no table for {listed(missing)}")
    try:
        install_stencils(layers, tables)
    except ValueError as error:
        raise ValueError(f"stencils: {legible(path)}: {error}") from error


def install_stencils(layers: Mapping[str, DrowsyConv2d], tables: Mapping[str, Tensor]) -> None:
    """Give all layers their tables, or, where one does not fit (ValueError), none of them any."""
    for name, layer in layers.items():
        named(name, layer.check_stencil, tables[name])
    for name, layer in layers.items():
        layer.set_stencil(tables[name])
