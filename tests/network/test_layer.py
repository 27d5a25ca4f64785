"""``DrowsyConv2d``: ``nn.Conv2d`` at rate 0, and a knob that turns without a rebuild."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from drowsy.network.layer import DrowsyConv2d
from drowsy.neuron import sleep
from drowsy.sleep import SleepSpec, expand_cells, levels


def drowsy_twin(conv: nn.Conv2d, **options: Any) -> DrowsyConv2d:
    """A drowsy layer made by its constructor, with a convolution's weights loaded into it."""
    layer = DrowsyConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
        dtype=conv.weight.dtype,
        **options,
    )
    layer.load_state_dict(conv.state_dict())
    return layer


def run(module: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return module(x)


# --- rate 0 --------------------------------------------------------------------------------------

GEOMETRIES = [
    *(
        {"stride": stride, "padding": padding, "dilation": dilation}
        for stride, padding, dilation in itertools.product(
            (1, 2, (2, 1)), (0, 1, (1, 2)), (1, (2, 1))
        )
    ),
    *({"padding": "same", "dilation": dilation} for dilation in (1, 2, (1, 2))),
    {"padding": "valid", "stride": 2},
    {"kernel_size": (2, 4), "padding": "same"},
    *({"padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")),
    {"padding": (2, 1), "padding_mode": "reflect", "stride": 2},
    {"padding": "same", "padding_mode": "circular", "kernel_size": (4, 3)},
    {"groups": 2, "padding": 1},
    {"groups": 4, "out_channels": 12, "bias": False},
    {"bias": False, "kernel_size": 1},
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_rate_zero_is_the_convolution_exactly(
    options: dict[str, Any], layout: torch.memory_format
) -> None:
    conv = nn.Conv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **options})
    x = torch.randn(2, 4, 9, 8).contiguous(memory_format=layout)
    expected = run(conv, x)
    for layer in (drowsy_twin(conv), DrowsyConv2d.from_conv(conv)):
        y = run(layer, x)
        assert torch.equal(y, expected)
        assert y.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_is_the_convolution_exactly(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1, dtype=dtype)
    x = torch.randn(2, 4, 7, 7, dtype=dtype)
    y = run(drowsy_twin(conv), x)
    assert y.dtype == dtype
    assert torch.equal(y, run(conv, x))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_input_may_lack_the_batch_dimension(rate: float) -> None:
    layer = DrowsyConv2d(4, 6, 3, rate=rate)
    x = torch.randn(4, 7, 7)
    single = run(layer, x)
    assert single.shape == (6, 5, 5)
    layer.control.reseed(0)
    assert torch.equal(single, run(layer, x[None])[0])


def test_empty_batch_gives_an_empty_output() -> None:
    layer = DrowsyConv2d(4, 6, 3, rate=0.5, padding=1)
    assert run(layer, torch.randn(0, 4, 7, 7)).shape == (0, 6, 7, 7)


# --- asleep --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("fill", ["zero", "rescale"])
@pytest.mark.parametrize("grain", ["neuron", "position:4", "channel", "channel:4", "tile:8x2"])
def test_exactly_the_mapped_neurons_sleep(
    grain: str, fill: str, layout: torch.memory_format
) -> None:
    spec = SleepSpec("bernoulli", grain, stream=3)
    layer = DrowsyConv2d(4, 6, 3, sleep=spec, rate=0.375, fill=fill, activation="sigmoid")
    layer.control.reseed(11, 5)
    x = torch.randn(3, 4, 8, 8).contiguous(memory_format=layout)
    y = run(layer, x)
    awake = run(layer.awake, x)
    drawn = levels(spec, (3, 6, 6, 6), torch.tensor([11, 5]))
    asleep = expand_cells(drawn < 3, (3, 6, 6, 6), spec.grain)
    factor = torch.tensor(8 / 5 if fill == "rescale" else 1.0)
    assert torch.equal(y, torch.where(asleep, torch.zeros(()), awake * factor))
    assert asleep.any()
    assert y.stride() == awake.stride()


@pytest.mark.parametrize("rate", [1 / 8, 3 / 8, 5 / 8, 7 / 8])
def test_rescaling_in_float64_is_as_exact_as_float64(rate: float) -> None:
    layer = DrowsyConv2d(4, 6, 3, rate=rate, fill="rescale").double()
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    y, awake = run(layer, x), run(layer.awake, x)
    # The knob itself holds the factor in float32.
    assert torch.equal(y[y != 0], awake[y != 0] * (8 / (8 - 8 * rate)))
    layer.set(fill="zero")
    layer.control.reseed(0)
    assert torch.equal(run(layer, x) != 0, y != 0)
    layer.control.reseed(0)
    assert torch.equal(run(layer, x)[y != 0], awake[y != 0])


def test_every_inference_draws_new_maps_and_reseeding_repeats_them() -> None:
    layer = DrowsyConv2d(2, 6, 1, rate=0.5)
    x = torch.randn(1, 2, 8, 8).expand(4, -1, -1, -1)
    first, second = run(layer, x), run(layer, x)
    maps = {bytes((image == 0).flatten().tolist()) for image in torch.cat([first, second])}
    assert len(maps) == 8
    layer.control.reseed(0)
    assert torch.equal(run(layer, x), first)
    layer.control.reseed(0, image=4)
    assert torch.equal(run(layer, x), second)


def test_clock_counts_images_at_any_rate() -> None:
    layer = DrowsyConv2d(2, 3, 1)
    layer.control.reseed(7, 100)
    run(layer, torch.randn(3, 2, 4, 4))
    layer.set(rate=0.5)
    run(layer, torch.randn(2, 2, 4, 4))
    run(layer, torch.randn(2, 4, 4))
    assert layer.control.clock.tolist() == [7, 106]


def test_set_changes_only_what_is_given() -> None:
    layer = DrowsyConv2d(2, 3, 1, rate=0.25, fill="rescale")
    control = layer.control
    assert (layer.rate, layer.fill) == (Fraction(1, 4), "rescale")
    assert control.scales.item() == pytest.approx(8 / 6)
    layer.set(rate=0.5)
    assert (layer.rate, layer.fill, control.scales.item()) == (Fraction(1, 2), "rescale", 2)
    layer.set(fill="zero")
    assert (layer.rate, layer.fill, control.scales.item()) == (Fraction(1, 2), "zero", 1)
    layer.set(grain="channel")
    assert (layer.rate, str(layer.sleep.grain)) == (Fraction(1, 2), "channel")
    asleep = run(layer, torch.randn(8, 2, 4, 4)) == 0
    assert torch.equal(asleep.all((2, 3)), asleep.any((2, 3)))
    assert asleep.any()


@pytest.mark.parametrize(
    "change",
    [{"rate": 0.3}, {"fill": "nap"}, {"grain": "row"}, {"fill": "nearest", "grain": "channel"}],
)
def test_failed_set_changes_nothing(change: dict[str, Any]) -> None:
    layer = DrowsyConv2d(2, 3, 1, rate=0.25, fill="rescale")
    given = {"rate": 0.5, "fill": "zero", "grain": "channel", **change}
    with pytest.raises(ValueError, match=next(iter(change))):
        layer.set(**given)
    assert (layer.rate, layer.fill, str(layer.sleep.grain)) == (Fraction(1, 4), "rescale", "neuron")
    assert layer.control.scales.item() == pytest.approx(8 / 6)


@pytest.mark.parametrize("fill", ["nearest", "interpolate"])
def test_sleepers_take_from_awake_neighbours(fill: str) -> None:
    spec = SleepSpec(grain="position:4", stream=3)
    layer = DrowsyConv2d(4, 6, 3, sleep=spec, rate=0.375, fill=fill, activation="sigmoid")
    layer.control.reseed(11, 5)
    x = torch.randn(3, 4, 8, 8)
    y, awake = run(layer, x), run(layer.awake, x)
    drawn = levels(spec, (3, 6, 6, 6), torch.tensor([11, 5]))
    assert torch.equal(y, sleep(awake, drawn, 3, 1.0, spec.grain, fill))
    assert layer.control.scales.item() == 1
    assert (y > 0).all()


@pytest.mark.parametrize("fill", ["nearest", "interpolate"])
def test_fill_and_grain_must_go_together_in_either_order(fill: str) -> None:
    layer = DrowsyConv2d(2, 3, 1, rate=0.25, fill=fill)
    with pytest.raises(ValueError, match=f"fill: got '{fill}' with grain channel, allowed: zero"):
        layer.set(grain="channel", rate=0.5)
    assert (layer.rate, layer.fill, str(layer.sleep.grain)) == (Fraction(1, 4), fill, "neuron")
    layer.set(grain="channel", fill="rescale")
    with pytest.raises(ValueError, match=f"fill: got '{fill}' with grain channel, allowed: zero"):
        layer.set(fill=fill, rate=0.5)
    assert (layer.rate, layer.fill) == (Fraction(1, 4), "rescale")
    layer.set(grain="position", fill=fill)
    assert (layer.fill, str(layer.sleep.grain)) == (fill, "position")


# --- as a module ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_has_the_convolutions_keys(bias: bool) -> None:
    conv = nn.Conv2d(2, 3, 3, bias=bias)
    norm = nn.BatchNorm2d(3).eval()
    assert drowsy_twin(conv).state_dict().keys() == conv.state_dict().keys()
    folded = DrowsyConv2d.from_conv(conv, norm=norm)
    assert folded.state_dict().keys() == conv.state_dict().keys()
    assert dict(folded.named_parameters()).keys() == dict(conv.named_parameters()).keys()


def test_parameters_are_shared_with_the_convolution() -> None:
    conv = nn.Conv2d(2, 3, 3)
    layer = DrowsyConv2d.from_conv(conv)
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    with torch.no_grad():
        conv.weight.zero_()
    assert torch.equal(run(layer, torch.randn(1, 2, 4, 4)), run(conv, torch.randn(1, 2, 4, 4)))


def _copies(layer: DrowsyConv2d) -> dict[str, DrowsyConv2d]:
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    return {
        "deepcopy": copy.deepcopy(layer),
        "pickle": pickle.loads(pickle.dumps(layer)),
        "torch.save": torch.load(saved, weights_only=False),
    }


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("with_norm", [False, True])
def test_copy_sleeps_alike_and_has_its_own_knob(way: str, with_norm: bool) -> None:
    norm = nn.BatchNorm2d(3).eval() if with_norm else None
    layer = DrowsyConv2d.from_conv(nn.Conv2d(2, 3, 3), norm=norm, activation="relu")
    layer.set(rate=0.5, fill="nearest" if with_norm else "rescale", grain="position:2")
    layer.control.reseed(3, 9)
    copied = _copies(layer)[way]
    x = torch.randn(2, 2, 6, 6)
    assert torch.equal(run(copied, x), run(layer, x))
    copied.set(rate=0.25)
    assert layer.rate == Fraction(1, 2)
    assert copied.control.clock.tolist() == layer.control.clock.tolist() == [3, 11]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_change_of_dtype_leaves_the_knob_as_it_was(dtype: torch.dtype) -> None:
    layer = DrowsyConv2d(2, 3, 3, rate=0.375, fill="rescale").to(dtype)
    control = layer.control
    assert layer.weight.dtype == dtype
    assert (control.scales.dtype, control.scales.item()) == (
        torch.float32,
        torch.tensor(8 / 5).item(),
    )
    assert (control.thresholds.dtype, control.clock.dtype) == (torch.int32, torch.int64)
    assert run(layer, torch.randn(1, 2, 5, 5, dtype=dtype)).dtype == dtype


def test_repr_tells_what_the_neuron_does() -> None:
    layer = DrowsyConv2d(2, 3, 3, stride=2, activation="relu", rate=0.25, fill="rescale")
    text = repr(layer)
    for part in ("2, 3, kernel_size=(3, 3), stride=(2, 2)", "relu", "rate=1/4", "rescale"):
        assert part in text


def test_gradient_is_refused_and_not_silently_missing() -> None:
    layer = DrowsyConv2d(2, 3, 3, rate=0.5)
    x = torch.randn(1, 2, 5, 5)
    with pytest.raises(RuntimeError, match=r"for inference.*no gradient.*torch\.inference_mode"):
        layer(x)
    layer.requires_grad_(False)
    assert layer(x).shape == (1, 3, 3, 3)
    with pytest.raises(RuntimeError, match="no gradient"):
        layer(x.requires_grad_())
    with torch.no_grad():
        assert layer(x).shape == (1, 3, 3, 3)


# --- tracing and compilation ---------------------------------------------------------------------


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = DrowsyConv2d(2, 8, 3, padding=1, activation="relu", rate=0.5, fill="rescale")
        self.second = DrowsyConv2d(
            8, 4, 3, sleep=SleepSpec("stratified", stream=1), rate=0.25, fill="interpolate"
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def reseed(self) -> None:
        self.first.control.reseed(0)
        self.second.control.reseed(0)


def test_compiled_layer_follows_the_knob_without_recompiling() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = _Pair().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 2, 6, 6)
    outputs = []
    for rate, seed in ((0.5, 0), (0.0, 0), (0.875, 0), (0.875, 1), (0.5, 0)):
        model.first.set(rate=rate)
        model.first.control.reseed(seed)
        model.second.control.reseed(seed)
        with torch._dynamo.config.patch(error_on_recompile=True):
            outputs.append(run(compiled, x))
        model.first.control.reseed(seed)
        model.second.control.reseed(seed)
        torch.testing.assert_close(outputs[-1], run(model, x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert torch.equal(outputs[0], outputs[4])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(outputs[:4], 2))


def test_compiled_layer_draws_new_maps_every_inference() -> None:
    torch._dynamo.reset()
    model = _Pair().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 2, 6, 6)
    outputs = [run(compiled, x) for _ in range(3)]
    assert model.first.control.clock.tolist() == [0, 6]
    model.reseed()
    for output in outputs:
        torch.testing.assert_close(output, run(model, x))


def test_exported_layer_sleeps_as_it_did() -> None:
    model = _Pair().eval()
    x = torch.randn(2, 2, 6, 6)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
    assert [str(node.target) for node in program.graph.nodes].count("drowsy.conv2d.default") == 2
    model.reseed()
    expected = [run(model, x) for _ in range(2)]
    model.reseed()
    exported = program.module()
    with torch.no_grad():
        torch.testing.assert_close([exported(x) for _ in range(2)], expected)


def test_symbolic_trace_goes_through_the_layer() -> None:
    model = _Pair().eval()
    x = torch.randn(2, 2, 6, 6)
    traced = fx.symbolic_trace(model)
    expected = run(model, x)
    model.reseed()
    assert torch.equal(run(traced, x), expected)


@pytest.mark.parametrize("fill", ["zero", "nearest", "interpolate", "stencil"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": "same", "kernel_size": (2, 4)},
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "bias": False},
        {"groups": 2, "padding": 1, "padding_mode": "reflect", "dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_operator_passes_torchs_own_checks(
    options: dict[str, Any], layout: torch.memory_format, fill: str
) -> None:
    dtype = options.get("dtype", torch.float32)
    layer = DrowsyConv2d(
        **{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **options}, rate=0.5
    ).requires_grad_(False)
    x = torch.randn(2, 4, 7, 7, dtype=dtype).contiguous(memory_format=layout)
    arguments = (
        x,
        layer.weight,
        layer.bias,
        layer.control.thresholds,
        layer.control.scales,
        layer.control.clock,
        torch.randn(256, 9, layer.out_channels, dtype=x.dtype),
        0,
        *layer.spec.arguments(),
        str(layer.sleep),
        fill,
        "torch",
    )
    torch.library.opcheck(
        torch.ops.drowsy.conv2d.default,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


# --- batch norm ----------------------------------------------------------------------------------


def _norm(channels: int, *, affine: bool = True) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-3, affine=affine).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 4)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folded_norm_computes_what_the_pair_did(cached: bool, bias: bool, affine: bool) -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2, bias=bias).double()
    norm = _norm(6, affine=affine).double()
    layer = DrowsyConv2d.from_conv(conv, norm=norm, cache_folded=cached)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(run(layer, x), run(nn.Sequential(conv, norm), x))


def test_live_norm_is_followed_and_cached_norm_waits_for_refresh() -> None:
    conv, norm = nn.Conv2d(2, 3, 3), _norm(3)
    live = DrowsyConv2d.from_conv(conv, norm=norm, cache_folded=False)
    cached = DrowsyConv2d.from_conv(conv, norm=norm)
    x = torch.randn(1, 2, 5, 5)
    before = run(cached, x)
    norm.running_mean.add_(1)
    after = run(nn.Sequential(conv, norm), x)
    assert torch.equal(run(cached, x), before)
    torch.testing.assert_close(run(live, x), after)
    cached.refresh()
    torch.testing.assert_close(run(cached, x), after)
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_norm_is_folded_in_float32(dtype: torch.dtype) -> None:
    conv, norm = nn.Conv2d(4, 6, 3).to(dtype), _norm(6).to(dtype)
    weight, bias = DrowsyConv2d.from_conv(conv, norm=norm).parameters_in_effect()
    exact = DrowsyConv2d.from_conv(
        copy.deepcopy(conv).double(), norm=copy.deepcopy(norm).double()
    ).parameters_in_effect()
    # One rounding, at the end: half a unit in the last place (a whole one where float32 tips it).
    for value, reference in zip((weight, bias), exact, strict=True):
        assert value.dtype == dtype
        torch.testing.assert_close(
            value.double(), reference, rtol=torch.finfo(dtype).eps * 0.51, atol=1e-7
        )


def test_norm_without_running_statistics_is_refused() -> None:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    with pytest.raises(ValueError, match=r"norm: .*running statistics"):
        DrowsyConv2d.from_conv(nn.Conv2d(2, 3, 3), norm=norm)
