"""What sleep is expected to save on the CPU, layer by layer; and calls past the operator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import drowsy
from drowsy import models
from drowsy.network import layer as layers
from drowsy.network.expected import expected_time, expected_times


def network(**options: str) -> drowsy.DrowsyNet:
    model = models.create("cifar_resnet20").to(memory_format=torch.channels_last)
    return drowsy.convert(model, **options)


def images(batch: int = 8) -> Tensor:
    return torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)


def test_every_layer_has_its_times() -> None:
    net = network(source="lattice", grain="position")
    net.set(0.5)
    net.reseed(3, 17)
    times = expected_times(net, images())
    assert net.control.clock.tolist() == [3, 17]
    assert set(net.control.settings) == {4}
    assert times.keys() == net.layers.keys()
    assert sum(own.share for own in times.values()) == pytest.approx(1)
    for own in times.values():
        assert len(own.ratios) == 8
        assert own.ratios[0] == 1
    assert expected_time(times, {}) == pytest.approx(1)
    name = next(iter(times))
    whole = expected_time(times, {name: 4})
    assert whole == pytest.approx(1 + times[name].share * (times[name].ratios[4] - 1))


def test_random_neurons_save_nothing_and_wide_lattices_do() -> None:
    random, lattice = network(), network(source="lattice", grain="position")
    for net, gains in ((random, False), (lattice, True)):
        times = expected_times(net, images(64))
        assert any(own.ratios[6] < 1 for own in times.values()) == gains


def test_batch_dtype_and_layout_count() -> None:
    net = network(source="lattice", grain="position")
    some = [
        expected_times(net, images()),
        expected_times(net, images(1)),
        expected_times(net, images().contiguous()),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        some.append(expected_times(net, images()))
    name = list(net.layers)[-1]
    assert len({own[name].ratios for own in some}) >= 3


def test_layers_elsewhere_are_refused() -> None:
    net = network()
    net.to("meta")
    with pytest.raises(ValueError, match=r"net: got .* on meta, allowed: cpu"):
        expected_times(net, images())


# --- past the operator -------------------------------------------------------------------------


def test_layers_are_called_past_the_operator_only_where_nobody_records_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    past: list[int] = []

    def counting(*arguments: object) -> Tensor:
        past.append(1)
        return direct(*arguments)  # type: ignore[arg-type]

    direct = layers.on_cpu
    monkeypatch.setattr(layers, "on_cpu", counting)
    conv = drowsy.DrowsyConv2d(8, 16, 3, sleep=drowsy.SleepSpec("lattice", "position"), rate=0.5)
    x = torch.randn(2, 8, 9, 9)

    def run(owner: torch.nn.Module = conv) -> Tensor:
        conv.control.reseed(1)
        with torch.inference_mode():
            return owner(x)

    expected = run()
    assert len(past) == 1
    with FlopCounterMode(display=False), torch.inference_mode():
        conv.control.reseed(1)
        seen = conv(x)
    with torch.autocast("cpu"):
        assert run().dtype == torch.bfloat16
    compiled = run(torch.compile(conv, backend="aot_eager", fullgraph=True))
    assert len(past) == 1
    for y in (seen, compiled):
        assert torch.equal(y, expected)


def test_the_factor_in_float64_is_exact() -> None:
    """Past the operator too: that of the rate, not of the float32 that the knob holds."""
    conv = drowsy.DrowsyConv2d(4, 4, 1, bias=False, dtype=torch.float64, rate=5 / 8)
    conv.set(fill="rescale")
    torch.nn.init.ones_(conv.weight)
    with torch.inference_mode():
        y = conv(torch.full((1, 4, 8, 8), 0.25, dtype=torch.float64))
    assert set(y.unique().tolist()) == {0.0, 8 / 3}
