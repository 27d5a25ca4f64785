"""Corrections: what they bring about, that they follow the knob, and that nothing else changes.

Expectations are computed here: pre-activations by torch's own convolution over the parameters in
effect, sleep by ``drowsy.neuron.sleep`` over ``drowsy.sleep.levels``.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy.correction import corrected, layerwise, least_squares
from drowsy.correction.calibrate import calibrate
from drowsy.correction.corrected import Corrected
from drowsy.correction.least_squares import Moments, ridge
from drowsy.evaluation.evaluator import Evaluator
from drowsy.evaluation.measurer import Measurer
from drowsy.evaluation.store import Store
from drowsy.network.calibration import Calibration, Correction
from drowsy.network.net import DrowsyNet
from drowsy.neuron import activate, sleep
from drowsy.sleep import expand_cells, levels, scale

safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
load_file, save_file = safetensors.load_file, safetensors.save_file


def chain(between: nn.Module | None = None) -> nn.Module:
    """Three convolutions with a batch norm, a bias and neither; ``between`` the last two a ReLU."""
    torch.manual_seed(1)
    between = between or nn.ReLU(inplace=True)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=1), between, nn.MaxPool2d(2),
        nn.Conv2d(10, 6, 3, padding=1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5),
    )  # fmt: skip
    nn.init.normal_(model[1].running_mean)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    return model.eval()


class Residual(nn.Module):
    """A block whose last convolution is added to what came before, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.b, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.b(F.relu(self.a(x)))
        y += x
        return self.head(F.relu(y).mean((2, 3)))


class Shared(nn.Module):
    """One convolution called twice; first on what no sleep has touched."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tail = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.relu(self.conv(self.conv(x)))).mean((2, 3))


class Late(nn.Module):
    """As ``Shared``, but asleep before the first of the two calls too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(torch.relu(self.conv(self.stem(x))))).mean((2, 3))


def photos(count: int = 16, side: int = 12) -> Tensor:
    """Smooth images, so that neighbours tell of each other."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.randn(count, 3, side // 3, side // 3, generator=generator)
    return F.interpolate(coarse, (side, side), mode="bicubic")


def converted(model: nn.Module | None = None, slopes: bool = False, **options: Any) -> DrowsyNet:
    options = {"grain": "position", "source": "stratified", "fill": "nearest"} | options
    model = model or chain(nn.PReLU(10, init=-0.4) if slopes else None)
    device = next(model.parameters()).device
    return drowsy.convert(model, photos(2).to(device), **options)


def preactivations(
    net: DrowsyNet, images: Tensor, setting: tuple[int, ...], seed: int = 0
) -> dict[str, Tensor]:
    """Every convolution's sums (the last call's), in float64, asleep at a setting."""
    found: dict[str, Tensor] = {}
    numbers = {id(layer): (i, name) for i, (name, layer) in enumerate(net.layers.items())}

    def hook(layer: drowsy.DrowsyConv2d, args: tuple[Tensor], _: Tensor) -> Tensor:
        i, name = numbers[id(layer)]
        x = args[0]
        weight, bias = layer.parameters_in_effect()
        spec = layer.spec
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        padded = F.pad(x.double(), spec.padding, mode=mode)
        bias = None if bias is None else bias.double()
        z = F.conv2d(padded, weight.double(), bias, spec.stride, 0, spec.dilation, spec.groups)
        found[name] = z
        slopes = None if layer.slopes is None else layer.slopes.double()
        y = activate(z.clone(), layer.activation, slopes).to(x.dtype)
        j = setting[i]
        if j:
            drawn = levels(layer.sleep, tuple(y.shape), torch.tensor([seed, 0]))
            factor = scale(j, net.k, layer.fill)
            y = sleep(y, drawn, j, factor, layer.sleep.grain, layer.fill, layer.table)
        return y

    handles = [layer.register_forward_hook(hook) for layer in net.layers.values()]
    with torch.no_grad():
        net(images.clone())
    for handle in handles:
        handle.remove()
    return found


def awake(layer: drowsy.DrowsyConv2d, z: Tensor, j: int, seed: int = 0) -> Tensor:
    """Which of a layer's neurons are awake, as bools shaped like their pre-activations."""
    drawn = levels(layer.sleep, tuple(z.shape), torch.tensor([seed, 0]))
    return expand_cells(drawn >= j, tuple(z.shape), layer.sleep.grain)


def spread(z: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel's neurons that are kept."""
    channels = [each[kept] for each, kept in zip(z.unbind(1), keep.unbind(1), strict=True)]
    return (
        torch.stack([each.mean() for each in channels]),
        torch.stack([each.std(correction=0) for each in channels]),
    )


def outputs(net: DrowsyNet, images: Tensor) -> Tensor:
    net.reseed(0)
    with torch.inference_mode():
        return net(images.clone())


# --- affine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grain": "neuron", "source": "bernoulli", "fill": "rescale"},
        {"grain": "channel:2", "source": "stratified", "fill": "auto"},
        {"grain": "tile:2x2", "source": "bernoulli", "fill": "zero"},
        {"source": "lattice", "fill": "interpolate"},
        {"grain": "position:4", "source": "bluenoise", "fill": "interpolate"},
        {"grain": "position", "source": "lfsr:width=8,taps=8.6.5.4", "fill": "zero"},
        {"source": "lattice", "fill": "stencil"},
        {"fold_bn": False},
        {"slopes": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("reconstruct", [False, True])
def test_each_channel_gets_the_awake_mean_and_deviation(
    options: dict[str, Any], reconstruct: bool
) -> None:
    images, seed = photos(), 5
    stencil = options.get("fill") == "stencil"
    net = converted(**(options | ({"fill": "zero"} if stencil else {})))
    if stencil:
        drowsy.calibrate_stencils(net, images)
        net.set(0, fill="stencil")
    setting = (4, 3, 2)
    wanted = preactivations(net, images, (0, 0, 0))
    plain = preactivations(net, images, setting, seed)
    net.set(net.schedule_of(setting))
    found = calibrate(net, images, reconstruct=reconstruct, seed=seed, batch=5)
    assert list(found.points) == [setting]
    # The first layer sees the images themselves.
    assert list(found.points[setting]) == ["3", "6"]
    corrected = preactivations(net, images, setting, seed)
    for name, j in zip(("3", "6"), setting[1:], strict=True):
        keep = awake(net.layers[name], plain[name], j, seed)
        spreads = (spread(each[name], keep) for each in (corrected, wanted, plain))
        for own, want, before in zip(*spreads, strict=True):
            torch.testing.assert_close(own, want, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(before, want, rtol=1e-4, atol=1e-5)
    assert (found.points[setting]["3"].delta is not None) == reconstruct


def test_a_residual_layer_makes_up_for_the_other_summand() -> None:
    images = photos()
    net = converted(Residual().eval())
    setting = (4, 4, 4)
    net.set(0.5)
    wanted = preactivations(net, images, (0, 0, 0))
    calibrate(net, images)
    own = preactivations(net, images, setting)
    assert list(net.corrected) == ["a", "b"]

    def total(sums: dict[str, Tensor], asleep: bool) -> Tensor:
        stem = F.relu(sums["stem"])
        if asleep:
            layer = net.layers["stem"]
            drawn = levels(layer.sleep, tuple(stem.shape), torch.tensor([0, 0]))
            stem = sleep(stem, drawn, 4, 1.0, layer.sleep.grain, layer.fill)
        return sums["b"] + stem

    # The mean of the sum is that of the network awake; that of the layer alone is not.
    keep = awake(net.layers["b"], own["b"], 4)
    whole, drowsy_sum = (spread(total(*args), keep)[0] for args in ((wanted, False), (own, True)))
    torch.testing.assert_close(drowsy_sum, whole, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(spread(own["b"], keep)[0], spread(wanted["b"], keep)[0], rtol=1e-3)


def test_constant_channels_keep_their_scale() -> None:
    model = chain()
    with torch.no_grad():
        model[3].weight[2] = 0
    net = converted(model)
    net.set(0.5)
    correction = calibrate(net, photos()).points[4, 4, 4]["3"]
    assert correction.scale[2] == 1
    assert correction.bias[2] == pytest.approx(float(net.layers["3"].bias.detach()[2]))


# --- reconstruction -------------------------------------------------------------------------------


class Attenuated(nn.Module):
    """A layer whose inputs can be attenuated by known factors, channel by channel."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, conv.in_channels, 1), conv
        self.last = nn.Conv2d(conv.out_channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(self.first(x))).mean((2, 3))


CONVS: dict[str, Callable[[], nn.Conv2d]] = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "no bias": lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "1x1": lambda: nn.Conv2d(4, 6, 1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "dilated": lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "strided": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(0, 1)),
    "same": lambda: nn.Conv2d(4, 6, (2, 3), padding="same"),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
}


@pytest.mark.parametrize("name", CONVS)
def test_reconstruction_recovers_a_known_linear_relation(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the ridge's pull the weights come out divided by the factors."""
    torch.manual_seed(3)
    net = converted(Attenuated(CONVS[name]()).eval(), grain="neuron", fill="zero")
    # One channel of outputs is one cell; of those awake, the rescaled flavour scales all alike.
    factors = torch.tensor([0.5, 2.0, 0.8, 1.25])
    images = torch.randn(24, 3, 12, 12)
    with torch.no_grad():
        net.layers["first"].weight.copy_(torch.randn(4, 3, 1, 1))

    def attenuate(y: Tensor, *_: Any) -> Tensor:
        return y * factors[: y.shape[1], None, None] if y.shape[1] == 4 else y.clone()

    monkeypatch.setattr(layerwise, "sleep", attenuate)
    monkeypatch.setattr(least_squares, "RIDGES", (1e-5,))
    net.set({"first": 0.5})
    found = calibrate(net, images, reconstruct=True).points[4, 0, 0]
    layer, each = net.layers["conv"], found["conv"]
    assert each.delta.shape == layer.weight.shape
    # Nothing varies less than it should, so that the affine correction has next to nothing to do.
    torch.testing.assert_close(each.scale, torch.ones(layer.out_channels), rtol=1e-2, atol=0)
    # Inputs that are linear combinations of each other have many weights, but one output.
    x = net.layers["first"].awake(images)
    with torch.no_grad():
        corrected, bias = net.layers["conv"].parameters_in_effect()
        scaled = layer.weight * each.scale[:, None, None, None]
        torch.testing.assert_close(corrected, scaled + each.delta)
        small = factors[None, :, None, None] * x
        spec, pad = layer.spec, layer.spec.padding
        mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        small = F.pad(small, pad, mode=mode)
        own = F.conv2d(small, corrected, bias, spec.stride, 0, spec.dilation, spec.groups)
        plain = F.conv2d(
            small, layer.weight, layer.bias, spec.stride, 0, spec.dilation, spec.groups
        )
        wanted = F.conv2d(
            F.pad(x, pad, mode=mode), layer.weight, layer.bias, spec.stride, 0, spec.dilation,
            spec.groups,
        )  # fmt: skip
    assert (own - wanted).square().mean() < 1e-3 * (plain - wanted).square().mean()


def test_a_ridge_finds_weights_and_constant_far_from_the_origin() -> None:
    """Against numpy's least squares; and nothing changes where nothing is to be learned."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 5, generator=generator)
    weight, constant = torch.randn(5, 3, generator=generator), torch.tensor([1.0, -2.0, 0.5])
    b = a @ weight + constant
    fit, held = Moments(), Moments()
    fit.add(a[:3000], b[:3000])
    held.add(a[3000:], b[3000:])
    found, offset = ridge(fit, held)
    # The least ridge pulls the weights by 3%.
    torch.testing.assert_close(found, weight / 1.03, rtol=0.02, atol=0.02)
    torch.testing.assert_close(offset, constant, rtol=0.05, atol=0.05)
    assert held.error(found, offset) == pytest.approx(
        float((a[3000:] @ found + offset - b[3000:]).square().sum(1).mean()), rel=1e-3
    )
    noise, other = Moments(), Moments()
    noise.add(a[:40], torch.randn(40, 3, generator=generator) + 0.3)
    other.add(a[40:80], torch.randn(40, 3, generator=generator) - 0.3)
    zero, nothing = ridge(noise, other)
    assert not zero.any()
    assert not nothing.any()


@pytest.mark.parametrize("seed", range(6))
def test_no_ridge_is_worse_than_no_change_on_what_is_held_out(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(seed)
    fit, held = Moments(), Moments()
    for moments, count in ((fit, 60), (held, 20)):
        a = torch.randn(count, 30, generator=generator)
        moments.add(a, torch.randn(count, 4, generator=generator) + 0.1 * a[:, :4])
    # The fit alone: what is held out then judges it.
    monkeypatch.setattr(Moments, "__add__", lambda self, other: self)
    weight, constant = ridge(fit, held)
    nothing = held.error(torch.zeros_like(weight), torch.zeros_like(constant))
    assert held.error(weight, constant) <= nothing


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_inputs_far_from_zero_are_reconstructed_as_well(offset: float) -> None:
    """Sums of squares of large numbers have no digits left for what varies."""
    torch.manual_seed(0)
    model = Attenuated(nn.Conv2d(4, 6, 3)).eval()
    with torch.no_grad():
        model.first.bias.fill_(offset)
    net = converted(model)
    net.set({"first": 0.5})
    images, fresh = photos(40), photos(56)[40:]
    wanted = preactivations(net, fresh, (0, 0, 0))["conv"]
    plain = preactivations(net, fresh, (4, 0, 0))["conv"]
    calibrate(net, images, reconstruct=True)
    own = preactivations(net, fresh, (4, 0, 0))["conv"]
    ratio = (own - wanted).square().mean() / (plain - wanted).square().mean()
    assert ratio < 0.8


@pytest.mark.parametrize("fill", ["zero", "nearest", "interpolate", "stencil"])
def test_reconstruction_is_closer_on_images_it_has_not_seen(fill: str) -> None:
    images, fresh = photos(60), photos(80)[60:]
    net = converted(source="lattice", fill="zero" if fill == "stencil" else fill)
    if fill == "stencil":
        drowsy.calibrate_stencils(net, images)
        net.set(0, fill=fill)
    setting = (4, 4, 4)
    net.set(0.5)
    wanted = preactivations(net, fresh, (0, 0, 0))
    errors: dict[str, list[float]] = {}
    for name, options in (("none", None), ("affine", {}), ("reconstruct", {"reconstruct": True})):
        net.calibration = None
        if options is not None:
            calibrate(net, images, **options)
        own = preactivations(net, fresh, setting)
        errors[name] = [float((own[n] - wanted[n]).square().mean()) for n in ("3", "6")]
    for none, reconstructed in zip(errors["none"], errors["reconstruct"], strict=True):
        assert reconstructed < none
    assert sum(errors["reconstruct"]) < sum(errors["affine"])


def test_where_all_positions_sleep_all_are_fitted() -> None:
    """One image of one position, asleep at 7/8: nobody may be awake."""
    net = converted(source="bernoulli")
    net.set(0.875)
    found = calibrate(net, photos(4, 3), reconstruct=True, seed=3)
    assert all(c.delta.isfinite().all() for c in found.points[7, 7, 7].values())


def test_positions_and_maps_follow_the_seed() -> None:
    net = converted()
    net.set(0.5)
    first, again, other = (
        calibrate(net, photos(40), reconstruct=True, seed=seed).points[4, 4, 4]["6"].delta
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- what is corrected ----------------------------------------------------------------------------


def test_a_layer_that_runs_twice_is_corrected_for_its_first_inputs() -> None:
    net = converted(Shared().eval())
    wanted = preactivations(net, photos(), (0, 0))["tail"]
    net.set(0.5)
    found = calibrate(net, photos())
    # The first call of ``conv`` sees the images, and the network has one weight for both.
    assert list(found.points[4, 4]) == ["tail"]
    own = preactivations(net, photos(), (4, 4))["tail"]
    keep = awake(net.layers["tail"], own, 4)
    torch.testing.assert_close(spread(own, keep)[1], spread(wanted, keep)[1], rtol=1e-4, atol=1e-5)
    late = converted(Late().eval())
    late.set(0.5)
    assert list(calibrate(late, photos(), reconstruct=True).points[4, 4]) == ["conv"]


def test_layers_before_the_first_sleeper_are_left_alone() -> None:
    net = converted()
    net.set({"3": 0.5})
    assert list(calibrate(net, photos()).points[0, 4, 0]) == ["6"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reconstruct", [False, True])
def test_networks_of_other_dtypes(dtype: torch.dtype, reconstruct: bool) -> None:
    images = photos(24)
    whole, net = converted(), converted().to(dtype)
    corrections = []
    for each, pixels in ((whole, images), (net, images.to(dtype))):
        each.set(0.5)
        corrections.append(calibrate(each, pixels, reconstruct=reconstruct).points[4, 4, 4])
    for name in ("3", "6"):
        for part in ("scale", "bias", "delta"):
            own, want = (getattr(c[name], part) for c in corrections[::-1])
            if want is not None:
                assert own.dtype == torch.float32
                torch.testing.assert_close(own, want, rtol=0.05, atol=0.02)
        weight, _ = net.layers[name].parameters_in_effect()
        assert weight.dtype == dtype
    assert outputs(net, images.to(dtype)).isfinite().all()


def test_loaders_and_frontiers_are_taken() -> None:
    net, images = converted(), photos()
    settings = [(2, 2, 2), (4, 4, 4)]
    points = Measurer(net, images).measure([(0, 0, 0), *settings]).values()
    frontier = drowsy.Frontier(points, "agreement")
    whole = calibrate(net, images, frontier)
    assert set(whole.points) == {
        tuple(p.schedule.thresholds().values()) for p in frontier.points
    } - {(0, 0, 0)}
    loader = [(part, torch.zeros(len(part))) for part in images.split(6)]
    for given in (loader, (part for part in images.split(6))):
        parts = calibrate(net, given, frontier)
        for setting, name in itertools.product(whole.points, ("3", "6")):
            assert torch.equal(parts.points[setting][name].bias, whole.points[setting][name].bias)


# --- the knob -------------------------------------------------------------------------------------


@pytest.fixture
def calibrated() -> DrowsyNet:
    """Calibrated at 2/8 and 4/8, and at rate 0 now."""
    net = converted()
    schedules = [net.schedule_of((j,) * 3) for j in (2, 4)]
    calibrate(net, photos(), schedules, reconstruct=True)
    return net


def test_rate_0_stays_the_network_itself(calibrated: DrowsyNet) -> None:
    images, model = photos(), chain()
    plain = converted(model)
    for setting in (0, 0.5, 0):
        calibrated.set(setting)
    assert calibrated.corrected_for == (0, 0, 0)
    assert not calibrated.corrected
    assert torch.equal(outputs(calibrated, images), outputs(plain, images))
    torch.testing.assert_close(outputs(calibrated, images), model(images).detach())
    for j in (0, 4):
        plain.set(plain.schedule_of((j,) * 3))
        calibrated.set(plain.schedule)
        same = torch.equal(outputs(calibrated, images), outputs(plain, images))
        assert same == (j == 0)


def test_the_nearest_point_is_in_force_and_a_warning_says_so(calibrated: DrowsyNet) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrated.set(0.25)
        exact = outputs(calibrated, photos())
        calibrated.set(0.5)
        assert calibrated.corrected_for == (4, 4, 4)
    shares = calibrated.calibration.shares
    assert sum(shares) == pytest.approx(1)
    told = r"\(3, 2, 2\) was not calibrated; .* \(2, 2, 2\) is in"
    with pytest.warns(UserWarning, match=told) as warned:
        calibrated.set({"0": 0.375, "3": 0.25, "6": 0.25})
    assert [each.filename for each in warned] == [__file__]
    assert calibrated.corrected_for == (2, 2, 2)
    nearest, distance = calibrated.calibration.nearest((3, 2, 2))
    assert nearest == (2, 2, 2)
    assert distance == pytest.approx(shares[0] / 8)
    with pytest.warns(UserWarning, match=r"correction of \(0, 0, 0\)"):
        calibrated.set({"0": 0.125, "3": 0, "6": 0})
    assert not calibrated.corrected
    calibrated.set(0.25)
    assert torch.equal(outputs(calibrated, photos()), exact)


def test_other_sleepers_than_those_calibrated_for_are_told(calibrated: DrowsyNet) -> None:
    calibrated.set(0.5)
    with pytest.warns(UserWarning, match=r"other sleepers: layer 0 has '.*zero', and had '.*near"):
        calibrated.set(0.5, fill="zero")
    told = r"layer 0 has '.*channel.*', and had '.*position"
    with pytest.warns(UserWarning, match=told) as warned:
        calibrated.set_grain("channel")
    assert [each.filename for each in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrated.set(0)
    net = converted(source="bernoulli")
    net.set(0.5)
    with pytest.warns(UserWarning, match=r"'bernoulli.*', and had 'stratified"):
        net.calibration = calibrated.calibration


def addresses(net: DrowsyNet) -> list[int]:
    """Of what the layers that a point corrects compute with."""
    return [t.data_ptr() for n in ("3", "6") for t in net.layers[n].parameters_in_effect()]


def test_corrections_are_written_in_place(calibrated: DrowsyNet) -> None:
    before = addresses(calibrated)
    seen = []
    for setting in (0.25, 0, 0.5, 0.25):
        calibrated.set(setting)
        seen.append(calibrated.layers["3"].parameters_in_effect()[0].clone())
        assert addresses(calibrated) == before
    calibrated.refresh()
    Evaluator(calibrated, photos()).logits()
    assert addresses(calibrated) == before
    assert torch.equal(seen[0], seen[3])
    assert torch.equal(seen[1], calibrated.layers["3"].weight)
    assert not torch.equal(seen[0], seen[2])


def test_buffers_made_in_inference_mode_can_be_written_outside_of_it() -> None:
    net = converted(fold_bn=False)
    with torch.inference_mode():
        calibrate(net, photos(), [net.schedule_of((4, 4, 4))])
    net.set(0.5)
    with torch.inference_mode():
        net.set(0)
    net.set(0.5)
    assert net.corrected_for == (4, 4, 4)


def test_taking_the_calibration_back_leaves_the_network_as_it_was(calibrated: DrowsyNet) -> None:
    plain = converted()
    calibrated.calibration = None
    assert calibrated.corrected_for is None
    for net in (calibrated, plain):
        net.set(0.5)
    assert torch.equal(outputs(calibrated, photos()), outputs(plain, photos()))
    layer = calibrated.layers["6"]
    assert layer.corrected_weight is None
    assert layer.parameters_in_effect()[0] is layer.weight


def test_parameters_and_state_are_untouched() -> None:
    net, images = converted(), photos()
    before = copy.deepcopy(net.state_dict())
    schedule, clock = net.schedule, net.control.clock.clone()
    calibrate(net, images, [net.schedule_of((4, 4, 4))], reconstruct=True)
    assert net.schedule == schedule
    assert torch.equal(net.control.clock, clock)
    net.set(0.5)
    state = net.state_dict()
    assert list(state) == list(before) == list(chain().state_dict())
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_streams_come_back_after_schedules_that_share_them() -> None:
    other = converted()
    drowsy.align(other, torch.zeros(1, 3, 12, 12))
    other.set(0.5)
    net = converted()
    assert other.schedule.layers["3"].stream == 0
    calibrate(net, photos(), [other.schedule])
    assert [layer.sleep.stream for layer in net.layers.values()] == [0, 1, 2]


def test_the_network_is_as_it_was_after_an_error(
    calibrated: DrowsyNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated.set(0.5)
    before, fixed = outputs(calibrated, photos()), calibrated.calibration
    clock = calibrated.control.clock.clone()
    with pytest.raises(ValueError, match="schedule: has k = 4"):
        calibrate(calibrated, photos(), [drowsy.Schedule(4)])
    monkeypatch.setattr(layerwise.Call, "output", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        calibrate(calibrated, photos(), [calibrated.schedule_of((1, 1, 1))])
    assert calibrated.calibration is not None
    assert calibrated.calibration.points.keys() == fixed.points.keys()
    assert calibrated.corrected_for == (4, 4, 4)
    assert torch.equal(calibrated.control.clock, clock)
    assert torch.equal(outputs(calibrated, photos()), before)


# --- copies and files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
def test_copies_are_calibrated_and_independent(
    copied: Callable[[DrowsyNet], DrowsyNet], calibrated: DrowsyNet
) -> None:
    images = photos()
    calibrated.set(0.5)
    expected = outputs(calibrated, images)
    other = copied(calibrated)
    assert torch.equal(outputs(other, images), expected)
    other.set(0)
    assert torch.equal(outputs(calibrated, images), expected)
    other.set(0.5)
    assert torch.equal(outputs(other, images), expected)
    assert other.corrected.keys() == calibrated.corrected.keys()


def test_moving_to_another_dtype_and_back(calibrated: DrowsyNet) -> None:
    images = photos()
    calibrated.set(0.5)
    expected = outputs(calibrated, images)
    calibrated.double()
    torch.testing.assert_close(outputs(calibrated, images.double()).float(), expected)
    calibrated.set(0.25)
    calibrated.set(0.5)
    torch.testing.assert_close(outputs(calibrated, images.double()).float(), expected)
    calibrated.to(memory_format=torch.channels_last)
    torch.testing.assert_close(outputs(calibrated, images.double()).float(), expected)


def test_corrections_go_where_the_network_goes(calibrated: DrowsyNet) -> None:
    calibrated.set(0.5)
    there = copy.deepcopy(calibrated).to("meta")
    parts = [
        part
        for corrections in (there.corrected, *there.calibration.points.values())
        for each in corrections.values()
        for part in vars(each).values()
    ]
    assert len(parts) == 3 * 2 * 3
    assert {part.device.type for part in parts} == {"meta"}
    assert {part.dtype for part in parts} == {torch.float32}


def test_new_weights_are_corrected_again(calibrated: DrowsyNet) -> None:
    calibrated.set(0.5)
    layer, each = calibrated.layers["3"], calibrated.corrected["3"]
    state = {name: 2 * tensor for name, tensor in calibrated.state_dict().items()}
    calibrated.load_state_dict(state)
    weight, bias = layer.parameters_in_effect()
    factor = each.scale[:, None, None, None]
    torch.testing.assert_close(weight, layer.weight * factor + each.delta)
    assert torch.equal(bias, each.bias)
    with torch.no_grad():
        layer.weight.add_(1)
    calibrated.refresh()
    torch.testing.assert_close(layer.parameters_in_effect()[0], layer.weight * factor + each.delta)
    calibrated.set(0)
    assert torch.equal(layer.parameters_in_effect()[0], layer.weight)


def test_a_file_gives_the_same_corrections(calibrated: DrowsyNet, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    calibrated.calibration.points[1, 1, 1] = {}
    calibrated.calibration.sleeps[1, 1, 1] = calibrated.sleeps
    calibrated.calibration.save(path)
    loaded, own = Calibration.load(path), calibrated.calibration
    for name in ("k", "layers", "shares", "norms"):
        assert getattr(loaded, name) == getattr(own, name)
    assert list(loaded.points) == list(own.points)
    assert loaded.sleeps == own.sleeps
    net = converted()
    net.set(0.5)
    net.calibration = loaded
    for setting in (0.5, 0.25, 0.125):
        for each in (net, calibrated):
            each.set(setting)
        assert net.corrected_for == calibrated.corrected_for
        assert torch.equal(outputs(net, photos()), outputs(calibrated, photos()))


def test_a_calibration_of_other_weights_is_told(calibrated: DrowsyNet) -> None:
    made, other = calibrated.calibration, converted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.half().calibration = made
    with torch.no_grad():
        other.layers["3"].weight.mul_(1.02)
    nets = (calibrated, other.float())
    was, now = (float(net.layers["3"].weight.detach().norm()) for net in nets)
    told = f"other weights: those of layer 3 have norm {now:.4g}, and had {was:.4g}"
    with pytest.warns(UserWarning, match=told) as warned:
        other.calibration = made
    assert [each.filename for each in warned] == [__file__]


def test_names_with_slashes_survive_a_file(tmp_path: Path) -> None:
    one = torch.ones(2)
    points = {(4,): {"a/b/c": Correction(one, 2 * one)}}
    made = Calibration(8, ("a/b/c",), (1.0,), (1.0,), points, {(4,): ("asleep",)})
    made.save(tmp_path / "c.safetensors")
    found = Calibration.load(tmp_path / "c.safetensors").points[4,]["a/b/c"]
    assert torch.equal(found.bias, 2 * one)
    assert found.delta is None


# --- what is measured -----------------------------------------------------------------------------


def labelled() -> tuple[Tensor, Tensor]:
    return photos(44)[24:], torch.arange(20) % 5


@pytest.mark.parametrize("reconstruct", [False, True])
def test_the_engine_calibrates_at_every_setting(reconstruct: bool) -> None:
    net, (images, labels) = converted(), labelled()
    settings, seeds = [(0, 0, 0), (4, 4, 4), (2, 0, 6)], (0, 3)
    engine = Corrected(photos(24), reconstruct=reconstruct)
    with Store(":memory:") as store:
        measurer = Measurer(net, images, labels, seeds=seeds, store=store, engine=engine)
        measurer.measure(settings)
        assert (net.calibration, net.control.settings) == (None, [0, 0, 0])
        plain = Measurer(net, images, labels, seeds=seeds, store=store)
        assert not plain.known()
        for seed, setting in itertools.product(seeds, settings):
            by_hand = converted()
            by_hand.set(by_hand.schedule_of(setting))
            baseline = Evaluator(by_hand, images, labels).logits()
            calibrate(by_hand, photos(24), reconstruct=reconstruct)
            evaluator = Evaluator(by_hand, images, labels, seed=seed, baseline=baseline)
            expected = evaluator.evaluate(setting)
            assert store.results(measurer.context(seed))[setting] == expected
            uncorrected = Evaluator(converted(), images, labels, seed=seed).evaluate(setting)
            assert (expected.divergence == uncorrected.divergence) == (not any(setting))
    other = Corrected(photos(24), reconstruct=reconstruct, seed=1)
    assert len({str(e.facts) for e in (engine, other, Corrected(photos(12)))}) == 3


def test_an_engine_keeps_a_few_calibrations_of_the_network_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, (images, _) = converted(), labelled()
    calls = []

    def counted(*args: Any, **options: Any) -> Calibration:
        calls.append(1)
        return calibrate(*args, **options)

    monkeypatch.setattr(corrected, "calibrate", counted)
    engine = Corrected(photos(24))
    settings = [(1, 1, j) for j in range(8)]

    def measure() -> list[drowsy.OperatingPoint]:
        # Of seeds and images, none costs a calibration.
        seeds, calls[:] = (0, 1), []
        measurers = [Measurer(net, p, seeds=seeds, engine=engine) for p in (images, images[:5])]
        return [p for m in measurers for p in m.measure(settings).values()]

    first = measure()
    assert len(calls) == 8
    assert measure() == first
    assert not calls
    net.set(0, fill="zero")
    other = measure()
    assert len(calls) == 8
    fresh = converted(fill="zero")
    expected = Measurer(fresh, images, seeds=(0, 1), engine=Corrected(photos(24)))
    assert other[:8] == list(expected.measure(settings).values())


def test_a_correction_in_force_is_told_by_the_key_and_spares_rate_0() -> None:
    net, (images, labels) = converted(), labelled()
    plain = Measurer(net, images, labels)
    awake, drowsy_point = (0, 0, 0), (4, 4, 4)
    uncorrected = plain.measure([awake, drowsy_point])
    assert "corrected" not in plain.context(0).configuration
    calibrate(net, photos(24), [net.schedule_of(drowsy_point)])
    keys = set()
    for setting in (0, 0.5):
        net.set(setting)
        keys.add(str(Measurer(net, images, labels).context(0).configuration))
        evaluator = Evaluator(net, images, labels)
        assert torch.equal(evaluator.logits(), Evaluator(converted(), images).logits())
    assert len(keys) == 2
    assert str(plain.context(0).configuration) in keys
    measured = plain.measure([awake, drowsy_point])
    assert measured[awake] == uncorrected[awake]
    assert measured[awake].agreement == 1.0
    assert Measurer(net, images, labels).measure([awake]) == {awake: uncorrected[awake]}
    assert measured[drowsy_point].divergence < uncorrected[drowsy_point].divergence
    # As the network itself computes it, under the maps of the images' places.
    logits = outputs(net, images)
    agree = (logits.argmax(1) == outputs(converted(), images).argmax(1)).float().mean()
    assert measured[drowsy_point].agreement == pytest.approx(float(agree))
    assert net.corrected_for == drowsy_point
    assert net.corrected


# --- deployed -------------------------------------------------------------------------------------


def wide() -> nn.Module:
    """Weights that a kernel reads where they lie (16 channels), and such as it copies."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 5, 1),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("follows", [True, False])
def test_deployed_networks_follow_corrections(
    follows: bool, triton_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drowsy.deployment.deploy import Deployed

    model = wide() if follows else chain()[:7].eval()
    net = converted(model.to(triton_device)).to(memory_format=torch.channels_last)
    images = photos(2, 6).to(triton_device).contiguous(memory_format=torch.channels_last)
    fast = drowsy.deploy(net, images, graph=False)
    schedules = [net.schedule_of((j,) * 3) for j in (2, 4)]
    builds = []
    build = Deployed._build
    monkeypatch.setattr(Deployed, "_build", lambda self: builds.append(1) or build(self))

    def check() -> None:
        net.reseed(0)
        own = fast(images)
        torch.testing.assert_close(own, outputs(net, images), rtol=1e-4, atol=1e-4)

    calibrate(net, images, schedules)
    check()
    for setting in (0.25, 0.5, 0, 0.25):
        net.set(setting)
        check()
    # Buffers appear once; from then on the graph reads them where they are.
    assert len(builds) == (1 if follows else 5)
    net.calibration = None
    check()
    assert len(builds) == (2 if follows else 6)


# --- files of another kind ------------------------------------------------------------------------


def test_files_that_hold_something_else_are_refused(calibrated: DrowsyNet, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    calibrated.calibration.save(path)
    tensors = load_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"c\.safetensors is not a whole calibration file"):
        Calibration.load(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"c\.safetensors: format: got None, allowed: 'drowsy.cal"):
        Calibration.load(path)
    for broken in (
        whole.replace(b'\\"version\\": 2', b'\\"version\\": 9'),
        whole.replace(b'\\"shares\\"', b'\\"shires\\"'),
        whole.replace(b"0/3/scale", b"7/3/scale"),
        whole.replace(b"0/3/scale", b"0/3/shale"),
    ):
        assert broken != whole
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"calibration: .*c\.safetensors"):
            Calibration.load(path)


def described(path: Path, **changes: Any) -> None:
    """Write a calibration whose header or tensors (those with a slash) are changed."""
    parts = {f"0/a/{part}": torch.ones(2) for part in ("scale", "bias")}
    tensors = parts | {name: value for name, value in changes.items() if "/" in name}
    header = {
        "format": "drowsy.calibration",
        "version": 2,
        "k": 8,
        "layers": ["a", "b"],
        "shares": [0.5, 0.5],
        "norms": [1.0, 2.0],
        "settings": [[4, 4], [0, 7]],
        "sleeps": [["asleep", "asleep"]] * 2,
    } | {name: value for name, value in changes.items() if "/" not in name}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, {"drowsy": json.dumps(header)})


def test_a_calibration_by_its_format_is_read(tmp_path: Path) -> None:
    described(tmp_path / "c.safetensors", **{"0/a/scale": torch.ones(2).double()})
    found = Calibration.load(tmp_path / "c.safetensors")
    assert found.points.keys() == found.sleeps.keys() == {(4, 4), (0, 7)}
    assert found.points[0, 7] == {}
    assert found.points[4, 4]["a"].scale.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *[("k", k, "k: got .*, allowed: an integer from 2 to 2") for k in (1, 8.0, True, 10**400)],
        *[
            ("layers", names, "layers: got .*, allowed: names, each once")
            for names in ("ab", ["a", 1], ["a", "a"], [["a"], ["b"]])
        ],
        *[
            (name, numbers, f"{name}: got .*, allowed: 2 finite numbers, 0 or more")
            for name in ("shares", "norms")
            for numbers in (
                [math.nan, 1], [1, math.inf], [-0.5, 1], [10**400, 1], ["1", 1], [True, 1], [1],
                None,
            )
        ],
        *[
            ("settings", settings, "settings: got .*, allowed: lists of 2 integers from 0 to 7, ea")
            for settings in (
                [[4, 4], [0, math.nan]], [[4, 4], [0, -1]], [[4, 4], [0, 7.0]], [[4, 4], [0, 8]],
                [[4, 4], [0, True]], [[4, 4], [0]], [[4, 4], [4, 4]], [[4, 4], 3], {"4": 4}, 7,
            )
        ],
        *[
            ("sleeps", sleeps, "sleeps: got .*, allowed: 2 lists of 2 texts")
            for sleeps in ([["x", "x"]], [["x", "x"], ["x"]], [["x", "x"], ["x", 1]], "xx", None)
        ],
        ("note", "x", "unknown note; allowed: format, k, layers"),
        *[
            (f"0/a/{part}", value * torch.ones(2), f"0/a/{part}: got torch.*, allowed: finite")
            for part in ("scale", "bias", "delta")
            for value in (math.nan, math.inf)
        ],
        ("0/a/scale", torch.ones(2, dtype=torch.int32), "0/a/scale: got torch.int32, .*, allowed"),
        ("0/a/bias", None, "0/a: missing bias"),
        ("0/b/delta", torch.ones(2), "0/b: missing bias, scale"),
        *[
            (name, torch.ones(2), f"got a tensor '{name}', allowed: POINT/LAYER/PART with scale")
            for name in ("2/a/scale", "-1/a/scale", "00/a/scale", "0/c/scale", "0/a/shale", "/a/b")
        ],
    ],
    ids=lambda value: str(value)[:24],
)  # fmt: skip
def test_a_calibration_of_other_values_is_refused(
    name: str, value: Any, message: str, tmp_path: Path
) -> None:
    described(tmp_path / "c.safetensors", **{name: value})
    with pytest.raises(ValueError, match=rf"calibration: .*c\.safetensors: {message}"):
        Calibration.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("1" + "0" * 5000, "got an integer of 5001 digits"),
        ('{"k": 8, "k": 4}', "k: given more than once"),
        ('{"k": 8', "not valid JSON"),
        ("8", "got int, allowed: an object"),
    ],
    ids=["deep", "long", "twice", "cut", "number"],
)
def test_a_header_that_is_no_calibrations_is_refused(
    header: str, message: str, tmp_path: Path
) -> None:
    save_file({"0/a/scale": torch.ones(2)}, tmp_path / "c.safetensors", {"drowsy": header})
    with pytest.raises(ValueError, match=rf"calibration: .*c\.safetensors: {message}"):
        Calibration.load(tmp_path / "c.safetensors")


def test_a_calibration_of_nan_is_not_saved(calibrated: DrowsyNet, tmp_path: Path) -> None:
    made = dataclasses.replace(calibrated.calibration, norms=(math.nan,) * 3)
    with pytest.raises(ValueError, match="JSON compliant"):
        made.save(tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["a rate", "a schedule", "a point", "a list", "an iterator"])
def test_one_point_may_stand_alone(form: str) -> None:
    net, images = converted(), photos()
    net.set(0.5)
    given: dict[str, Any] = {
        "a rate": 0.5,
        "a schedule": net.schedule,
        "a point": drowsy.OperatingPoint(net.schedule, saving=0.5),
        "a list": [0.5],
        "an iterator": iter([net.schedule]),
    }
    expected = calibrate(net, images)
    found = calibrate(net, images, given[form])
    assert found.points.keys() == expected.points.keys()
    for setting, corrections in expected.points.items():
        for name, each in corrections.items():
            assert torch.equal(found.points[setting][name].scale, each.scale)


def test_an_engine_that_corrects_follows_weights_that_change() -> None:
    net, images = converted(), photos()
    engine, setting = Corrected(images[:4]), (4,) * len(net.layers)
    measurer = Measurer(net, images, engine=engine)
    before = measurer.counts([setting])
    with torch.no_grad():
        for layer in net.layers.values():
            layer.weight.mul_(1.5)
        net.refresh()
    after = measurer.counts([setting])
    assert after == Measurer(net, images, engine=Corrected(images[:4])).counts([setting])
    assert after != before
