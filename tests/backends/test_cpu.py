"""The CPU backend's ways of skipping against the eager oracle, and the choice between them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import drowsy
from bench import cpu_crossover
from drowsy import neuron
from drowsy.backends import cpu, eager
from drowsy.backends.cpu import crossover
from drowsy.backends.cpu.crossover import Layer, candidates, estimate, fastest, grids
from drowsy.neuron import ConvSpec
from drowsy.sleep import (
    FILLS,
    NEIGHBOUR_FILLS,
    SleepSpec,
    detail_map,
    lattice_tables,
    levels,
)

GEOMETRIES = {
    "3x3": (3, ConvSpec((1, 1), (1, 1, 1, 1))),
    "1x1": (1, ConvSpec()),
    "1x1-stride2": (1, ConvSpec((2, 2))),
    "7x7-stride2": (7, ConvSpec((2, 2), (3, 3, 3, 3))),
    "3x3-stride2x1-uneven": (3, ConvSpec((2, 1), (0, 2, 1, 0))),
    "3x3-dilated": (3, ConvSpec((1, 1), (2, 2, 2, 2), dilation=(2, 2))),
    "3x3-reflect": (3, ConvSpec((1, 1), (1, 1, 1, 1), "reflect")),
    "3x3-circular": (3, ConvSpec((1, 1), (1, 1, 1, 1), "circular")),
}
# The clock stands before the end of a block of images whose phases are drawn together.
CLOCK = (77, 254)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors are small, and waiting threads are slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def draw(
    generator: torch.Generator,
    kernel: int,
    dtype: torch.dtype = torch.float64,
    size: tuple[int, int, int, int] = (3, 5, 13, 10),
    filters: int = 8,
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias, channels_last."""
    x = torch.randn(size, dtype=dtype, generator=generator)
    weight = torch.randn(filters, size[1], kernel, kernel, dtype=dtype, generator=generator)
    bias = torch.randn(filters, dtype=dtype, generator=generator)
    last = torch.channels_last
    return x.to(memory_format=last), weight.to(memory_format=last), bias


def written(x: Tensor, weight: Tensor, spec: ConvSpec) -> tuple[Tensor, Tensor, ConvSpec]:
    """As the ways take a layer: other paddings than of zeros are part of the input."""
    x, spec = neuron.padded(x, spec)
    return x, weight, spec


def both(
    way: str,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    j: int,
    spec: ConvSpec,
    sleep: SleepSpec,
    scale: float = 1.0,
    image: int = CLOCK[1],
    slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output of a way, and of the oracle."""
    x, weight, bias = tensors
    inputs, _, left = written(x, weight, spec)
    layer, clock = Layer.of(inputs, weight, left), torch.tensor([CLOCK[0], image])
    assert way in candidates(layer, sleep)
    seen = detail_map(x)
    with torch.inference_mode():
        call = cpu.Call(inputs, weight, bias, j, scale, clock, layer, sleep, slopes, seen)
        y = cpu.run(call, way)
        knob = torch.tensor(j), torch.tensor(scale), clock
        expected = eager.conv2d(x, weight, bias, *knob, spec, sleep, "zero", None, seen, slopes)
    return y, expected


def check(y: Tensor, expected: Tensor) -> None:
    """Equal to the last bits, with the same sleepers and the same layout."""
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(y == 0, expected == 0)
    assert y.stride() == expected.stride()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    ("way", "source", "grain"),
    [
        ("sublattices", "lattice", "position"),
        ("sublattices", "lattice", "position:3"),
        ("rows", "lattice", "position"),
        ("rows", "stratified", "position:4"),
        ("rows", "bernoulli", "tile:6x5"),
        ("rows", "lattice", "tile:4x8"),
        ("rows", "lfsr", "position"),
        ("channels", "lattice", "channel"),
        ("channels", "stratified", "channel:3"),
        ("channels", "bernoulli", "channel:4"),
        ("channels", "lattice", "tile:999x2"),
        ("mask", "lattice", "neuron"),
        ("mask", "lattice", "tile:7x3"),
        ("mask", "stratified", "position"),
        ("mask", "bernoulli", "channel"),
        ("rows", "fovea", "position:4"),
        ("mask", "fovea", "neuron"),
        ("rows", "bluenoise", "position:4"),
        ("mask", "bluenoise", "neuron"),
        ("rows", "detail", "position:4"),
        ("mask", "detail", "neuron"),
    ],
)
def test_every_way_is_the_oracle(
    way: str, source: str, grain: str, geometry: str, generator: torch.Generator
) -> None:
    kernel, spec = GEOMETRIES[geometry]
    tensors = draw(generator, kernel)
    for j in (1, 4, 6, 7):
        check(*both(way, tensors, j, spec, SleepSpec(source, grain, 8, 3, phase=j % 4), scale=1.5))


@pytest.mark.parametrize(("j", "way"), [(2, "rows"), (4, "sublattices"), (6, "sublattices")])
def test_fovea_runs_as_the_lattice_where_it_is_one(
    j: int, way: str, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    ways: list[str] = []

    def last(layer: Layer, sleep: SleepSpec, *_: object) -> str:
        ways.append(candidates(layer, sleep)[-1])
        return ways[-1]

    monkeypatch.setattr(cpu.ways, "fastest", last)
    x, weight, bias = draw(generator, 3)
    arguments = (
        x, weight, bias, torch.tensor(j), torch.tensor(1.0), torch.tensor(CLOCK),
        ConvSpec(padding=(1, 1, 1, 1)), SleepSpec("fovea", "position", 8, 3), "zero",
    )  # fmt: skip
    with torch.inference_mode():
        check(cpu.conv2d(*arguments), eager.conv2d(*arguments))
    assert ways == [way]


@pytest.mark.parametrize("k", [2, 3, 6, 8, 16])
def test_sublattices_for_any_number_of_rates(k: int, generator: torch.Generator) -> None:
    tensors = draw(generator, 3)
    for j in range(1, k):
        spec = ConvSpec(padding=(1, 1, 1, 1), activation="relu")
        check(*both("sublattices", tensors, j, spec, SleepSpec("lattice", "position", k)))


@pytest.mark.parametrize("activation", ["none", "relu", "silu", "leaky_relu:0.1"])
@pytest.mark.parametrize("way", ["rows", "sublattices", "mask"])
def test_activations_and_no_bias(way: str, activation: str, generator: torch.Generator) -> None:
    x, weight, _ = draw(generator, 3)
    spec = ConvSpec(padding=(1, 1, 1, 1), activation=activation)
    check(*both(way, (x, weight, None), 4, spec, SleepSpec("lattice", "position")))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("way", "source", "grain"),
    [
        ("sublattices", "lattice", "position:3"),
        ("rows", "stratified", "position:4"),
        ("channels", "bernoulli", "channel:3"),
        ("mask", "lattice", "neuron"),
    ],
)
def test_slopes_are_a_channels(
    way: str, source: str, grain: str, shared: bool, generator: torch.Generator
) -> None:
    slopes = torch.linspace(-2, 3, 8, dtype=torch.float64)
    slopes = slopes[:1].expand(8) if shared else slopes
    spec = ConvSpec(padding=(1, 1, 1, 1), activation="prelu")
    check(*both(way, draw(generator, 3), 4, spec, SleepSpec(source, grain), slopes=slopes))


@pytest.mark.parametrize(
    ("way", "size"),
    [
        ("channels", (3, 4, 1, 1)),  # one position is all positions
        *((way, size) for way in ("rows", "sublattices") for size in ((2, 4, 1, 9), (5, 4, 2, 3))),
    ],
)
def test_small_maps(way: str, size: tuple[int, int, int, int], generator: torch.Generator) -> None:
    tensors = draw(generator, 3, size=size)
    spec = ConvSpec(padding=(1, 1, 1, 1))
    for j in (1, 4, 7):
        check(*both(way, tensors, j, spec, SleepSpec("lattice", "position")))


@pytest.mark.parametrize("way", ["rows", "sublattices", "channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_that_of_the_dense_convolution(
    way: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    # Sums of 576 products; more than one chunk of rows.
    exact = draw(generator, 3, size=(2, 64, 33, 32), filters=24)
    tensors = tuple(tensor.to(dtype) for tensor in exact)
    exact = tuple(tensor.double() for tensor in tensors)
    spec = ConvSpec(padding=(1, 1, 1, 1), activation="relu")
    sleep = SleepSpec("lattice", "channel:8" if way == "channels" else "position")
    y, dense = both(way, tensors, 4, spec, sleep, scale=2.0)  # type: ignore[arg-type]
    _, expected = both(way, exact, 4, spec, sleep, scale=2.0)  # type: ignore[arg-type]
    budget = (dense.double() - expected).abs().max() + torch.finfo(dtype).eps * 576**0.5
    assert (y.double() - expected).abs().max() <= budget
    assert torch.equal((y == 0) | (expected == 0), expected == 0)


@pytest.mark.parametrize("way", ["rows", "sublattices", "channels"])
def test_sleepers_of_a_poisoned_image_are_zero(way: str, generator: torch.Generator) -> None:
    x, weight, bias = draw(generator, 3)
    x[1] = torch.nan
    sleep = SleepSpec("lattice", "channel:2" if way == "channels" else "position")
    y, expected = both(way, (x, weight, bias), 4, ConvSpec(padding=(1, 1, 1, 1)), sleep)
    assert torch.equal(y.isnan(), expected.isnan())
    assert y[1].isnan().any()
    assert not y[[0, 2]].isnan().any()


@pytest.mark.parametrize("fill", NEIGHBOUR_FILLS)
@pytest.mark.parametrize(
    ("source", "grain"),
    [
        ("lattice", "position"),
        ("fovea", "position"),
        ("lattice", "position:3"),
        ("bernoulli", "position"),
        ("detail", "position"),
    ],
)
@pytest.mark.parametrize("size", [(3, 5, 13, 10), (2, 5, 1, 6), (5, 5, 3, 3)])
def test_fills_from_awake_neighbours(
    fill: str,
    source: str,
    grain: str,
    size: tuple[int, int, int, int],
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, weight, bias = draw(generator, 3, size=size)
    seen = detail_map(x)
    x[0, 0, 0, 0] = torch.inf
    spec, sleep = ConvSpec(padding=(1, 1, 1, 1)), SleepSpec(source, grain)
    table = torch.randn(256, 9, 8, dtype=torch.float64, generator=generator)
    for j in range(1, 8):
        knob = (torch.tensor(j), torch.tensor(1.0), torch.tensor(CLOCK))
        arguments = (*knob, spec, sleep, fill, table)
        expected = eager.conv2d(x, weight, bias, *arguments, detail=seen)
        for way in candidates(Layer.of(x, weight, spec), sleep):
            monkeypatch.setattr(cpu.ways, "fastest", lambda *_, way=way: way)
            y = cpu.conv2d(x, weight, bias, *arguments, detail=seen)
            torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
            assert y.stride() == expected.stride()


@pytest.mark.parametrize("fill", NEIGHBOUR_FILLS)
@pytest.mark.parametrize("source", ["lattice", "fovea", "stratified"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fills_in_short_formats_err_as_the_specification_does(
    fill: str,
    source: str,
    dtype: torch.dtype,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what is copied is copied bit for bit."""
    x, weight, bias = (each.to(dtype) for each in draw(generator, 3, size=(4, 16, 15, 14)))
    table = (torch.randn(256, 9, 8, generator=generator) / 3).to(dtype)
    spec, sleep = ConvSpec(padding=(1, 1, 1, 1)), SleepSpec(source, "position")
    for j in (1, 2, 4, 7):
        knob = (torch.tensor(j), torch.tensor(1.0), torch.tensor(CLOCK))
        rest = (*knob, spec, sleep, fill)
        expected = eager.conv2d(x, weight, bias, *rest, table)
        exact = eager.conv2d(x.double(), weight.double(), bias.double(), *rest, table.double())
        error = (expected.double() - exact).abs().max()
        budget = error + torch.finfo(dtype).eps * 144**0.5 * exact.abs().max()
        for way in candidates(Layer.of(x, weight, spec), sleep):
            monkeypatch.setattr(cpu.ways, "fastest", lambda *_, way=way: way)
            y = cpu.conv2d(x, weight, bias, *rest, table)
            assert y.dtype == dtype
            assert (y.double() - exact).abs().max() <= budget
            if way == "mask" and fill == "nearest":
                assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("source", ["lattice", "fovea", "bernoulli"])
@pytest.mark.parametrize("grain", ["neuron", "position"])
def test_masked_layers_are_the_specification_bit_for_bit(
    source: str, grain: str, last: bool, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """In either layout, with maps looked up or drawn; whatever a sleeper held."""
    x, weight, bias = (each.to(dtype) for each in draw(generator, 3, size=(5, 5, 13, 10)))
    if not last:
        x, weight = x.contiguous(), weight.contiguous()
    x[1, 2, 3, 4] = torch.nan
    spec, sleep = ConvSpec(padding=(1, 1, 1, 1)), SleepSpec(source, grain)
    layer, clock = Layer.of(x, weight, spec), torch.tensor(CLOCK)
    for j in (1, 4, 7):
        y = cpu.run(cpu.Call(x, weight, bias, j, 1.5, clock, layer, sleep), "mask")
        expected = eager.conv2d(
            x, weight, bias, torch.tensor(j), torch.tensor(1.5), clock, spec, sleep, "zero"
        )
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        assert y.stride() == expected.stride()


# --- maps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grain", ["position", "position:3", "tile:6x2", "channel", "neuron"])
def test_maps_are_those_of_the_specification(grain: str, generator: torch.Generator) -> None:
    x, weight, bias = draw(generator, 3, size=(9, 5, 7, 6))
    sleep = SleepSpec("lattice", grain, 8, 5, phase=3)
    layer = Layer.of(x, weight, ConvSpec())
    for clock in (torch.tensor([2**40 + 3, 2**32 - 4]), torch.tensor([0, 510])):
        call = cpu.Call(x, weight, bias, 4, 1.0, clock, layer, sleep)
        assert torch.equal(call.levels(), levels(sleep, layer.output, clock))


@pytest.mark.parametrize("k", [2, 3, 4, 6, 8, 12, 16, 32, 256])
def test_grids_cover_the_awake_once(k: int) -> None:
    tile, _ = lattice_tables(k)
    for j in sorted({1, k // 4, k // 3, k // 2, 3 * k // 4, k - 1} - {0}):
        covered = torch.zeros(tile.shape, dtype=torch.int64)
        for spacing, starts in grids(k, j).items():
            for y, x in starts.tolist():
                covered[y::spacing, x::spacing] += 1
        assert torch.equal(covered, (tile >= j).long())


def test_lattices_are_few_grids() -> None:
    found = {j: {s: len(starts) for s, starts in grids(8, j).items()} for j in (2, 4, 6, 7)}
    # A checkerboard is two grids of spacing 2, its half one, its quarter two of spacing 4.
    assert found == {2: {2: 2, 4: 4}, 4: {2: 2}, 6: {2: 1}, 7: {4: 2}}


# --- choice ------------------------------------------------------------------------------------


def layer_of(
    channels: int, size: int, filters: int, kernel: int, groups: int = 1, last: bool = True
) -> Layer:
    spec = ConvSpec(padding=(kernel // 2,) * 4, groups=groups)
    weight = (filters, channels // groups, kernel, kernel)
    return Layer((8, channels, size, size), weight, spec, last)


@pytest.mark.parametrize(
    "layer",
    [layer_of(64, 56, 64, 3, groups=64), layer_of(64, 56, 64, 3, last=False)],
    ids=["depthwise", "contiguous"],
)
def test_what_cannot_skip_is_masked(layer: Layer) -> None:
    assert candidates(layer, SleepSpec("lattice", "position")) == ("mask",)


def test_single_neurons_are_masked() -> None:
    assert candidates(layer_of(64, 56, 64, 3), SleepSpec("bernoulli", "neuron")) == ("mask",)


@pytest.fixture
def no_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty table."""
    path = tmp_path / "crossover.json"
    path.write_text(json.dumps({"version": crossover.VERSION, "entries": []}))
    use_table(path, monkeypatch)
    return path


def use_table(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "TABLE", path)
    crossover._table.cache_clear()
    crossover._choose.cache_clear()


@pytest.fixture(autouse=True)
def _forget_tables() -> Iterator[None]:
    yield
    crossover._table.cache_clear()
    crossover._choose.cache_clear()


@pytest.mark.usefixtures("no_table")
def test_estimates_skip_where_there_is_much_to_multiply() -> None:
    sleep = SleepSpec("lattice", "position")
    wide, narrow = layer_of(256, 14, 256, 3), layer_of(16, 8, 16, 1)
    assert fastest(wide, sleep, 4, torch.float32) != "mask"
    assert fastest(wide, sleep, 1, torch.float32) == "mask"
    assert fastest(narrow, sleep, 4, torch.float32) == "mask"
    assert fastest(wide, sleep, 4, torch.float64) == "mask"


def test_estimates_fall_with_the_rate() -> None:
    layer = layer_of(128, 28, 128, 3)
    for way, grain in (("rows", "position"), ("channels", "channel:16")):
        sleep = SleepSpec("stratified", grain)
        costs = [estimate(way, layer, sleep, j) for j in range(1, 8)]
        assert costs == sorted(costs, reverse=True)


def test_the_table_is_followed_near_its_batch(
    no_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep, layer = SleepSpec("lattice", "position"), layer_of(256, 14, 256, 3)
    ways = "mask mask mask mask mask rows rows"
    entry = {"layer": layer.name, "dtype": "float32", "source": "lattice", "grain": "position"}
    entry |= {"unit": "none", "threads": 1, "ways": ways, "ratios": [1.0] * 5 + [0.5, 0.25]}
    record = {"version": crossover.VERSION, "entries": [entry | {"batch": 16}]}
    no_table.write_text(json.dumps(record))
    use_table(no_table, monkeypatch)
    assert [fastest(layer, sleep, j, torch.float32) for j in range(1, 8)] == ways.split()
    record["entries"][0]["batch"] = 17  # type: ignore[index]
    no_table.write_text(json.dumps(record))
    use_table(no_table, monkeypatch)
    assert fastest(layer, sleep, 4, torch.float32) != "mask"


def test_the_table_is_followed_for_its_format_and_threads(
    no_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one CPU's instructions took says nothing of another's, nor one thread of many."""
    sleep, layer = SleepSpec("lattice", "position"), layer_of(16, 8, 16, 1)
    entry = {"layer": layer.name, "dtype": "bfloat16", "unit": "amx_tile", "batch": 8}
    entry |= {"source": "lattice", "grain": "position", "threads": 2}
    entry |= {"ways": " ".join(["rows"] * 7), "ratios": [0.75] * 7}
    no_table.write_text(json.dumps({"version": crossover.VERSION, "entries": [entry]}))
    use_table(no_table, monkeypatch)
    followed = []
    for unit, threads in (("amx_tile", 1), ("amx_tile", 5), ("avx512_bf16", 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for name in ("amx_tile", "avx512_bf16"):
            supported = lambda unit=unit, name=name: unit == name  # noqa: E731
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", supported, raising=False)
        crossover._choose.cache_clear()
        followed.append(fastest(layer, sleep, 4, torch.bfloat16) == "rows")
        ratio = crossover.expected(layer, sleep, 4, torch.bfloat16)
        assert (ratio == 0.75) == followed[-1]
        assert fastest(layer, sleep, 4, torch.float32) == "mask"
    assert followed == [True, False, False]


@pytest.mark.usefixtures("no_table")
def test_expectations() -> None:
    """Time over that awake: falls with the rate, counts draws and fills, is 1 at rate 0."""
    wide, narrow = layer_of(256, 14, 256, 3), layer_of(16, 8, 16, 1)
    sleep = SleepSpec("lattice", "position")
    ratios = [crossover.expected(wide, sleep, j, torch.float32) for j in (0, 2, 4, 6)]
    assert ratios[0] == 1
    assert ratios[1] > ratios[2] > ratios[3]
    assert ratios[3] < 0.6
    assert crossover.expected(narrow, sleep, 4, torch.float32) > 1
    assert crossover.expected(wide, SleepSpec(), 4, torch.float32) > 1
    filled = [crossover.expected(wide, sleep, 4, torch.float32, fill) for fill in FILLS]
    assert filled[0] == filled[1] < filled[2] < filled[3] < filled[4]
    # Of other formats nothing is known but that they are masked.
    assert crossover.expected(wide, sleep, 4, torch.float64) > 1


def test_a_table_of_another_version_is_refused(
    no_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_table.write_text(json.dumps({"version": 99, "entries": []}))
    use_table(no_table, monkeypatch)
    with pytest.raises(ValueError, match=r"crossover.json: got version 99, allowed: 2"):
        fastest(layer_of(64, 14, 64, 3), SleepSpec("lattice", "position"), 4, torch.float32)


def test_the_shipped_table_names_known_ways() -> None:
    record = json.loads(crossover.TABLE.read_text())
    assert record["version"] == crossover.VERSION
    assert record["entries"]
    for entry in record["entries"]:
        ways = entry["ways"].split()
        assert len(ways) == crossover.TABLE_K - 1
        assert set(ways) <= set(crossover.WAYS)
        assert len(entry["ratios"]) == crossover.TABLE_K - 1


def test_the_command_records_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, times = tmp_path / "table.json", tmp_path / "times.json"
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(cpu_crossover, "SETTINGS", (("lattice", "position"),))
    options = ["--networks", "caffenet_cifar", "--batch", "1", "--rounds", "1"]
    cpu_crossover.main([*options, "--table", str(table), "--times", str(times)])
    cpu_crossover.main([*options, "--table", str(table), "--times", str(times)])
    rows, raw = json.loads(table.read_text()), json.loads(times.read_text())
    assert len(rows["entries"]) == len(raw["entries"]) == 2  # the others have groups
    assert {"dense", "mask", "rows", "sublattices"} <= raw["entries"][0].keys()
    use_table(table, monkeypatch)
    net = drowsy.convert(drowsy.models.create("caffenet_cifar"), source="lattice", grain="position")
    layer = next(iter(net.layers.values()))
    x = torch.randn(1, 3, 32, 32).to(memory_format=torch.channels_last)
    sizes = Layer.of(x, layer.weight, layer.spec)
    entry = next(e for e in rows["entries"] if e["layer"] == sizes.name)
    assert fastest(sizes, layer.sleep, 4, torch.float32) == entry["ways"].split()[3]


# --- whole networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("grain", ["position", "channel:16", "tile:16x64"])
def test_a_network_skips_as_it_masks(grain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same output, batch after batch, whichever way its layers run; and compiled shapes agree."""
    model = drowsy.models.create("cifar_resnet20").to(memory_format=torch.channels_last)
    net = drowsy.convert(model, source="lattice", grain=grain)
    net.set(0.5)
    images = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)
    outputs = []
    for prefer in ("mask", "skip"):
        monkeypatch.setattr(
            cpu.ways,
            "fastest",
            lambda layer, sleep, *_, prefer=prefer: candidates(layer, sleep)[
                0 if prefer == "mask" else -1
            ],
        )
        net.reseed(3)
        with torch.inference_mode():
            outputs.append(torch.cat([net(images[:4]), net(images[4:])]))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_layout_is_what_compilers_are_told(generator: torch.Generator) -> None:
    for last in (True, False):
        x, weight, _ = draw(generator, 3, torch.float32, (2, 16, 9, 8), 24)
        if not last:
            x, weight = x.contiguous(), weight.contiguous()
        layer = drowsy.DrowsyConv2d(
            16, 24, 3, bias=False, sleep=SleepSpec("lattice", "position"), rate=0.5
        )
        layer.weight.data = weight
        with torch.inference_mode():
            y = layer(x)
        told = torch.nn.functional.conv2d(x, weight)
        assert y.stride() == told.stride()


@pytest.mark.parametrize("grain", ["tile:4x3", "position"])
def test_nobody_awake_is_no_row(grain: str, generator: torch.Generator) -> None:
    tensors = draw(generator, 3, size=(1, 5, 5, 4), filters=3)
    sleepers = 0
    for image in range(20):
        y, expected = both(
            "rows", tensors, 7, ConvSpec(), SleepSpec("bernoulli", grain), image=image
        )
        check(y, expected)
        sleepers += not expected.any()
    assert 0 < sleepers < 20


def test_neuron_module_clears_in_place() -> None:
    y = torch.full((1, 2, 2, 2), torch.nan)
    asleep = torch.tensor([[[True]] * 4])
    assert neuron.clear_(y, asleep, SleepSpec(grain="position").grain) is y
    assert (y == 0).all()
