"""Convolutions split by channel, and the estimate of what each channel's sleep costs."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy import models
from drowsy.channels import channel_sensitivity, split_channels, splittable
from drowsy.neuron import sleep
from drowsy.sleep import SleepSpec, levels

SLEEPS = SleepSpec("lattice", "position")


def lively(name: str) -> nn.Module:
    """A registered network with random weights and statistics, none of them the defaults."""
    torch.manual_seed(3)
    model = models.create(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 2)
    return model


def chain() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3, bias=False), nn.SiLU(inplace=True),
        nn.Conv2d(5, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    ).eval()  # fmt: skip


def random_order(model: nn.Module) -> dict[str, Tensor]:
    modules = dict(model.named_modules())
    return {name: torch.randn(modules[name].out_channels) for name in splittable(model)}


# --- what can be split ---------------------------------------------------------------------------


def test_convolutions_between_dense_ones_can_be_split() -> None:
    assert splittable(chain()) == ["0", "4"]
    # The second convolution of a block is added to the sum that every later block reads.
    assert splittable(models.create("resnet18").eval()) == [
        f"layer{stage}.{block}.conv1" for stage, block in itertools.product(range(1, 5), range(2))
    ]
    # Squeezed channels are read by two convolutions.
    assert "features.3.squeeze" in splittable(models.create("squeezenet1_1").eval())
    # Its readers are grouped.
    assert splittable(models.create("caffenet_cifar").eval()) == []


class Odd(nn.Module):
    """Convolutions none of which can be split, but for ``plain``."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.twice = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.seen, self.grouped = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)
        self.mixed, self.end = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.seen(self.plain(x))
        mixed = self.mixed(self.grouped(x))
        return self.end(self.twice(self.twice(mixed.softmax(1)))), x


def test_what_anything_else_reads_is_left_whole() -> None:
    assert splittable(Odd().eval()) == ["plain"]


def test_a_convolution_of_two_names_runs_twice() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1))
    model[3] = nn.Conv2d(3, 3, 1)
    model.add_module("again", model[0])
    model.add_module("end", nn.Conv2d(3, 2, 1))
    # Neither the one that runs twice nor what it reads.
    assert splittable(model.eval()) == ["2"]
    model.again = nn.Conv2d(3, 3, 1)
    assert splittable(model.eval()) == ["0", "2", "3", "again"]


# --- splitting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "squeezenet1_1", "cifar_resnet20"])
def test_a_split_network_computes_the_same(name: str, parts: int) -> None:
    model, images = lively(name), torch.randn(2, 3, 67, 67)
    before = copy.deepcopy(model.state_dict())
    split = split_channels(model, random_order(model), parts)
    with torch.no_grad():
        want, got = model(images.clone()), split(images.clone())
        net = drowsy.convert(split, source="lattice", grain="position")
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(images.clone()), want, rtol=1e-4, atol=1e-5)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
    split_names = {name.rpartition(".")[0] for name in net.layers if name[-1].isdigit()}
    assert split_names >= set(splittable(model))


def test_parts_hold_the_channels_in_order_of_sensitivity_and_sleep_apart() -> None:
    model = chain()
    order = {"0": torch.tensor([5.0, 0.0, 4.0, 1.0, 3.0, 2.0]), "4": torch.arange(5.0)}
    split = split_channels(model, order)
    assert torch.equal(split.get_submodule("0.0").weight, model[0].weight[[1, 3, 5]])
    assert torch.equal(split.get_submodule("0.1").weight, model[0].weight[[4, 2, 0]])
    assert torch.equal(split.get_submodule("1.1").running_var, model[1].running_var[[4, 2, 0]])
    assert torch.equal(split.get_submodule("4.1").weight, model[4].weight[3:, [1, 3, 5, 4, 2, 0]])
    net = drowsy.convert(split, source="lattice", grain="position", fill="zero")
    assert list(net.layers) == ["0.0", "0.1", "4.0", "4.1", "6"]
    net.set({"0.0": 0.5})
    images = torch.randn(2, 3, 8, 8)
    seen: dict[str, Tensor] = {}
    for name in ("0.0", "0.1"):
        net.layers[name].register_forward_hook(lambda _, __, y, name=name: seen.update({name: y}))
    with torch.no_grad():
        net(images)
        awake = model[:3](images)
    torch.testing.assert_close(seen["0.1"], awake[:, [4, 2, 0]])
    drawn = levels(net.layers["0.0"].sleep, (2, 3, 8, 8), torch.tensor([0, 0]))
    want = sleep(awake[:, [1, 3, 5]], drawn, 4, 1.0, net.layers["0.0"].sleep.grain)
    torch.testing.assert_close(seen["0.0"], want)


def test_only_what_is_named_is_split() -> None:
    split = split_channels(chain(), {"4": torch.arange(5.0)})
    net = drowsy.convert(split)
    assert list(net.layers) == ["0", "4.0", "4.1", "6"]


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parts: got 1, allowed: 2 or more"):
        split_channels(chain(), {}, 1)
    with pytest.raises(ValueError, match=r"sensitivity: '6' cannot be split; what can be: 0, 4"):
        split_channels(chain(), {"6": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"sensitivity: 4: got shape \(6,\).*allowed: \(5,\)"):
        split_channels(chain(), {"4": torch.zeros(6)})
    with pytest.raises(ValueError, match=r"for 6 parts, .*at most 5 parts"):
        split_channels(chain(), {"4": torch.zeros(5)}, 6)


# --- sensitivity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["nearest", "interpolate"])
def test_the_estimate_is_the_divergence_of_each_channel_alone(fill: str) -> None:
    """Against the KL divergence with that channel asleep; on images smooth enough for two terms."""
    torch.manual_seed(4)
    first = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh())
    rest = nn.Sequential(nn.Conv2d(6, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 5))
    model = nn.Sequential(*first, *rest).eval()
    images = 2 * F.avg_pool2d(torch.randn(4000, 3, 18, 18), 7, 1)
    found = channel_sensitivity(model, images, SLEEPS, fill=fill, batch=1000)
    # The second convolution is read by a linear layer.
    assert list(found) == ["0"]
    with torch.no_grad():
        y = first(images)
        want = rest(y).log_softmax(1)
        shape = (1000, 6, 10, 10)
        drawn = [levels(SLEEPS, shape, torch.tensor([0, i])) for i in range(0, 4000, 1000)]
        slept = sleep(y, torch.cat(drawn), 4, 1.0, SLEEPS.grain, fill)
        measured = []
        for channel in range(6):
            changed = y.clone()
            changed[:, channel] = slept[:, channel]
            got = rest(changed).log_softmax(1)
            measured.append(F.kl_div(got, want, log_target=True, reduction="batchmean"))
    torch.testing.assert_close(found["0"].float(), torch.stack(measured), rtol=0.15, atol=0)


def test_estimates_are_reproducible_and_leave_no_trace() -> None:
    model, images = lively("cifar_resnet20"), torch.randn(6, 3, 32, 32)
    before = copy.deepcopy(model.state_dict())
    first, second = (channel_sensitivity(model, images, SLEEPS, batch=4) for _ in range(2))
    other = channel_sensitivity(model, images, SLEEPS, batch=4, seed=1)
    for name in first:
        assert torch.equal(first[name], second[name])
        assert not torch.equal(first[name], other[name])
        assert first[name].dtype == torch.float64
        assert first[name].isfinite().all()
        assert (first[name] >= 0).all()
    assert all(parameter.grad is None for parameter in model.parameters())
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
    awake = channel_sensitivity(model, images, SLEEPS, rate=0)
    assert all((each == 0).all() for each in awake.values())


def test_bad_arguments_are_refused() -> None:
    model, images = chain(), torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"fill: got 'stencil', allowed: fills that need no"):
        channel_sensitivity(model, images, SLEEPS, fill="stencil")
    with pytest.raises(ValueError, match=r"rate: got 0\.3"):
        channel_sensitivity(model, images, SLEEPS, rate=0.3)
    with pytest.raises(ValueError, match=r"batch: got 0, allowed: 1 or more"):
        channel_sensitivity(model, images, SLEEPS, batch=0)
    with pytest.raises(ValueError, match=r"model: is in training mode"):
        channel_sensitivity(chain().train(), images, SLEEPS)
