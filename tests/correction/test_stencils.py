"""Fill ``stencil``: its weights against numpy's least squares, and their life in a network."""

from __future__ import annotations

import copy
import csv
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy.cli.main import main
from drowsy.correction import stencils
from drowsy.correction.stencils import stencil_table, window_moments
from drowsy.evaluation.measurer import Measurer
from drowsy.files.tensors import write_tensors
from drowsy.neuron import RING, sleep
from drowsy.sleep import Grain, levels


def table_of(y: Tensor) -> Tensor:
    moments = window_moments(y)
    return stencil_table(moments.mean, moments.covariance)


def smooth(*shape: int, generator: torch.Generator) -> Tensor:
    """Maps whose neurons resemble their neighbours, each channel in its own way."""
    n, channels, height, width = shape
    noise = torch.randn(n, channels, height + 4, width + 4, generator=generator).double()
    blur = torch.rand(channels, 1, 5, 5, generator=generator).double()
    offset = torch.randn(channels, 1, 1, generator=generator).double()
    return F.conv2d(noise, blur, groups=channels) + 3 * offset


def windows_of(y: Tensor) -> np.ndarray:
    """The whole windows of each channel ``[C, M, 9]``, the centre first, one by one."""
    n, channels, height, width = y.shape
    found = [
        [
            [y[image, c, i + dy, u + dx].item() for dy, dx in ((0, 0), *RING)]
            for image, i, u in itertools.product(
                range(n), range(1, height - 1), range(1, width - 1)
            )
        ]
        for c in range(channels)
    ]
    return np.array(found)


# --- moments and weights -------------------------------------------------------------------------


def test_moments_are_numpys(generator: torch.Generator) -> None:
    y = smooth(3, 2, 5, 6, generator=generator)
    moments = window_moments(y)
    for c, windows in enumerate(windows_of(y)):
        assert moments.count == len(windows) == 3 * 3 * 4
        np.testing.assert_allclose(moments.mean[c], windows.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(
            moments.covariance[c], np.cov(windows.T, bias=True), rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("part", [1, 150, 1 << 16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_do_not_depend_on_parts(
    part: int,
    layout: torch.memory_format,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An offset beside which the variance is lost if it is not taken from the mean.
    y = smooth(7, 5, 6, 5, generator=generator) * 1e-3 + 1e4
    whole = window_moments(y)
    monkeypatch.setattr(stencils, "_PART", part)
    parts = window_moments(y[:3].contiguous(memory_format=layout)) + window_moments(y[3:])
    assert parts.count == whole.count
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(parts.covariance, whole.covariance, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize("ridge", [1e-3, 1e-9])
def test_weights_are_numpys_least_squares(
    ridge: float, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stencils, "_RIDGE", ridge)
    y = smooth(2, 2, 7, 8, generator=generator)
    table = table_of(y)
    assert table.shape == (256, 9, 2)
    for c, windows in enumerate(windows_of(y)):
        apart = windows - windows.mean(axis=0)
        strength = np.sqrt(ridge * apart.var(axis=0).mean() * len(apart))
        for number in range(256):
            awake = [bit for bit in range(8) if number >> bit & 1]
            places = [bit + 1 for bit in awake]
            # The ridge is samples of its own, one for each neighbour.
            samples = np.vstack([apart[:, places], strength * np.eye(len(awake))])
            target = np.concatenate([apart[:, 0], np.zeros(len(awake))])
            expected = np.zeros(9)
            expected[awake] = np.linalg.lstsq(samples, target, rcond=None)[0]
            mean = windows.mean(axis=0)
            expected[8] = mean[0] - expected[:8] @ mean[1:]
            np.testing.assert_allclose(table[number, :, c], expected, rtol=1e-9, atol=1e-10)


def test_known_linear_relation_is_recovered(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows repeat above and below, columns grow by a step: two neighbours tell everything."""
    monkeypatch.setattr(stencils, "_RIDGE", 1e-12)
    column = torch.randn(40, 3, 1, 9, generator=generator, dtype=torch.float64)
    y = column.expand(40, 3, 8, 9) + torch.tensor([1.0, -2.0, 5.0]).view(3, 1, 1)
    table = table_of(y)
    above, below = RING.index((-1, 0)), RING.index((1, 0))
    either = table[1 << above | 1 << below]
    torch.testing.assert_close(either[[above, below]].sum(0), torch.ones(3).double())
    torch.testing.assert_close(either[8], torch.zeros(3).double(), atol=1e-6, rtol=0)
    # Every second row sleeps; the last one has a neighbour above alone.
    levels = (torch.arange(8 * 9) // 9 % 2 == 0).byte().view(1, -1, 1).expand(40, -1, -1)
    asleep = (levels < 1).view(40, 1, 8, 9).expand_as(y)
    slept = sleep(
        y.masked_fill(asleep, torch.nan), levels, 1, 1.0, Grain("position"), "stencil", table
    )
    torch.testing.assert_close(slept, y, rtol=1e-6, atol=1e-6)


def test_prediction_beats_the_mean_of_neighbours_and_the_mean(generator: torch.Generator) -> None:
    known, new = smooth(9, 4, 12, 12, generator=generator).chunk(2, dim=2)[0].split((8, 1))
    table, grain = table_of(known), Grain("position")
    levels = torch.randint(0, 8, (1, 6 * 12, 1), dtype=torch.uint8, generator=generator)
    errors = {
        fill: (sleep(new, levels, 4, 1.0, grain, fill, table) - new).square().sum().item()
        for fill in ("zero", "nearest", "interpolate", "stencil")
    }
    assert min(errors, key=errors.__getitem__) == "stencil", errors


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 9), (8, 2), (2, 2), (3, 3)])
def test_small_maps_have_weights_along_what_they_have(
    size: tuple[int, int], generator: torch.Generator
) -> None:
    y = smooth(20, 3, *size, generator=generator)
    table = table_of(y)
    assert table.isfinite().all()
    for bit, (dy, dx) in enumerate(RING):
        used = (size[0] > 2 or dy == 0) and (size[1] > 2 or dx == 0)
        assert (table[255, bit] != 0).all() == used
    mean = y.mean((0, 2, 3)) if min(size) < 3 else y[:, :, 1, 1].mean(0)
    if max(size) < 3 or size == (3, 3):
        torch.testing.assert_close(table[0, 8], mean)


def test_channels_that_never_move_are_predicted_as_they_are() -> None:
    y = torch.zeros(2, 3, 6, 6)
    y[:, 1] = 2.5
    # Moves at the border alone: its centre never, some of its neighbours in step.
    y[:, 2, :, 0] = torch.tensor([1.0, 2.0])[:, None]
    table = table_of(y)
    assert table.isfinite().all()
    torch.testing.assert_close(table[:, :8, 0], torch.zeros(256, 8).double())
    for number in (0, 5, 255):
        told = table[number, 8] + table[number, :8].sum(0) * torch.tensor([0, 2.5, 0])
        torch.testing.assert_close(told, torch.tensor([0, 2.5, 0]).double(), rtol=1e-2, atol=1e-9)


# --- in a network --------------------------------------------------------------------------------


def make(grain: str = "position", **options: Any) -> drowsy.DrowsyNet:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2),
        nn.BatchNorm2d(5), nn.PReLU(5, -0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 4),
    )  # fmt: skip
    return drowsy.convert(model.eval(), grain=grain, source="lattice", **options)


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return smooth(6, 3, 12, 10, generator=generator).float()


@pytest.fixture
def net(images: Tensor) -> drowsy.DrowsyNet:
    made = make()
    drowsy.calibrate_stencils(made, images)
    return made


def run(net: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return net(x)


def tables(net: drowsy.DrowsyNet) -> dict[str, Tensor | None]:
    return {name: layer.stencil for name, layer in net.layers.items()}


def test_tables_are_those_of_awake_outputs(images: Tensor) -> None:
    net = make()
    net.set(0.5)
    net.reseed(3, 8)
    before, keys = images.clone(), net.state_dict().keys()
    drowsy.calibrate_stencils(net, images, batch=4)
    assert net.schedule.layers["0"].rate == 0.5
    assert net.control.clock.tolist() == [3, 8]
    assert torch.equal(images, before)
    assert net.state_dict().keys() == keys
    outputs = run(net.original[:2], images), run(net.original[:5], images)
    for layer, y in zip(net.layers.values(), outputs, strict=True):
        assert layer.stencil is not None
        torch.testing.assert_close(layer.stencil, table_of(y).float(), rtol=1e-3, atol=1e-4)


def test_layer_fills_from_its_table(net: drowsy.DrowsyNet, images: Tensor) -> None:
    net.set({"0": 0.5}, fill="stencil")
    assert {setting.fill for setting in net.schedule.layers.values()} == {"stencil"}
    layer = net.layers["0"]
    drawn = levels(layer.sleep, (6, 6, 12, 10), torch.tensor([5, 2]))
    awake = run(net.original[:2], images)
    net.reseed(5, 2)
    expected = sleep(awake, drawn, 4, 1.0, layer.sleep.grain, "stencil", layer.stencil)
    torch.testing.assert_close(run(layer.compute, images), expected, rtol=1e-4, atol=1e-5)


def test_compiled_and_exported_networks_read_their_tables(
    net: drowsy.DrowsyNet, images: Tensor
) -> None:
    net.set(0.5, fill="stencil")
    net.reseed(3)
    expected = [run(net, images) for _ in range(2)]
    torch._dynamo.reset()
    net.reseed(3)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close([run(compiled, images) for _ in range(2)], expected)
    net.reseed(3)
    with torch.no_grad():
        exported = torch.export.export(net, (images,)).module()
        net.reseed(3)
        torch.testing.assert_close([exported(images) for _ in range(2)], expected)


def test_input_that_the_network_overwrites_stays(images: Tensor) -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.sub_(1))

    net, before = drowsy.convert(Overwriting().eval()), images.clone()
    drowsy.calibrate_stencils(net, images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_keep_their_tables(
    copy_of: Callable[[drowsy.DrowsyNet], drowsy.DrowsyNet], net: drowsy.DrowsyNet, images: Tensor
) -> None:
    net.set(0.5, fill="stencil")
    copied = copy_of(net)
    net.reseed(1)
    copied.reseed(1)
    assert torch.equal(run(copied, images), run(net, images))
    # A calibration of the copy is its own.
    expected = tables(net)
    drowsy.calibrate_stencils(copied, images * 2)
    assert tables(net) == expected
    assert not torch.equal(copied.layers["0"].stencil, net.layers["0"].stencil)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tables_follow_the_network(
    dtype: torch.dtype, net: drowsy.DrowsyNet, images: Tensor
) -> None:
    net.set(0.5, fill="stencil")
    net.reseed(2)
    expected = run(net, images)
    net.to(dtype)
    assert {table.dtype for table in tables(net).values() if table is not None} == {dtype}
    net.reseed(2)
    torch.testing.assert_close(run(net, images.to(dtype)).float(), expected, rtol=0.05, atol=0.02)
    drowsy.calibrate_stencils(net, images.to(dtype))
    assert net.layers["0"].stencil.dtype == dtype


def test_layers_whose_grain_has_no_neighbours_get_none(images: Tensor) -> None:
    net = make(fill="zero")
    net.layers["2"].stage(grain="channel")
    drowsy.calibrate_stencils(net, images)
    assert net.layers["0"].stencil is not None
    assert net.layers["2"].stencil is None
    with pytest.raises(ValueError, match=r"layer 2: fill: got 'stencil' with grain channel"):
        net.set(0.5, fill="stencil")
    net.layers["2"].stage(grain="position")
    before = net.schedule
    with pytest.raises(ValueError, match=r"layer 2: fill: got 'stencil' .*calibrate_stencils"):
        net.set(0.5, fill="stencil")
    assert net.schedule == before


def test_outputs_that_are_not_finite_leave_the_network_as_it_was(
    net: drowsy.DrowsyNet, images: Tensor
) -> None:
    before = tables(net)
    with torch.no_grad():
        net.layers["2"].bias[1] = torch.inf
        net.refresh()
    with pytest.raises(ValueError, match="layer 2: table: holds NaN or infinity"):
        drowsy.calibrate_stencils(net, images)
    assert tables(net) == before


def test_results_of_other_tables_are_other_results(net: drowsy.DrowsyNet, images: Tensor) -> None:
    measurer = Measurer(net, images)
    plain = measurer.context(0)
    net.set(0, fill="stencil")
    with_table = measurer.context(0)
    assert with_table != plain
    assert measurer.context(0) == with_table == Measurer(copy.deepcopy(net), images).context(0)
    drowsy.calibrate_stencils(net, images[:3])
    assert measurer.context(0) != with_table
    # Tables that no fill reads do not count.
    net.set(0, fill="auto")
    assert measurer.context(0) == plain
    source, *others = plain.configuration["layers"]["0"]
    assert source.startswith("lattice")
    assert others == ["position", net.layers["0"].fill]


@pytest.mark.parametrize("aligned", [False, True])
def test_deployed_network_reads_the_present_tables(
    aligned: bool, net: drowsy.DrowsyNet, images: Tensor, triton_device: torch.device
) -> None:
    net, x = net.to(triton_device), images.to(triton_device)
    if aligned:
        drowsy.align(net, x)
    net.set({"0": 0.5, "2": 0.25}, fill="stencil")
    fast = drowsy.deploy(net, x, graph=False)
    for other in (x, x * 3 - 1):
        drowsy.calibrate_stencils(net, other)
        outputs = []
        for way in (net, fast):
            net.reseed(9)
            outputs.append(run(way, x))  # type: ignore[arg-type]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    assert {step.output for step in fast.steps} == {"full"}


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_come_back_from_a_file(
    dtype: torch.dtype, net: drowsy.DrowsyNet, images: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "tables" / "net.safetensors"
    net.to(dtype)
    drowsy.calibrate_stencils(net, images.to(dtype))
    drowsy.save_stencils(net, path)
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]
    other = make().to(dtype)
    drowsy.load_stencils(other, path)
    for name, table in tables(net).items():
        assert torch.equal(other.layers[name].stencil, table)
    # A network that leaves some layers awake takes what it needs.
    fewer = make(skip=["0"]).to(dtype)
    drowsy.load_stencils(fewer, path)
    assert torch.equal(fewer.layers["2"].stencil, net.layers["2"].stencil)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.full((256, 9, 6), torch.nan), "table: holds NaN or infinity"),
        (torch.full((256, 9, 6), -torch.inf), "table: holds NaN or infinity"),
        (torch.ones(256, 9, 6, dtype=torch.int64), "table: got torch.int64, allowed: a float"),
        (torch.ones(256, 9, 5), r"table: got shape \(256, 9, 5\), allowed: \(256, 9, 6\)"),
    ],
    ids=["nan", "infinity", "integers", "shape"],
)
def test_a_file_of_other_tables_is_refused_by_name_and_changes_nothing(
    net: drowsy.DrowsyNet, table: Tensor, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    before = tables(net)
    write_tensors(path, before | {"0": table})
    with pytest.raises(ValueError, match=rf"stencils: .*other\.safetensors: layer 0: {message}"):
        drowsy.load_stencils(net, path)
    assert all(torch.equal(table, before[name]) for name, table in tables(net).items())


def test_command_line_calibrates_and_uses_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        folder = tmp_path / "images" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "stencilnet.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(4, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    shared = ["--model", "stencilnet:build", "--data", "images", "--crop", "12", "--classes", "2"]
    assert main(["stencils", *shared, "--images", "0:4", "--out", "w.safetensors"]) == 0
    assert "weights of 1 layer from 4 images" in capsys.readouterr().out
    use = ["--fill", "stencil", "--stencils", "w.safetensors", "--out", "study", "--k", "4"]
    assert main(["uniform", *shared, "--images", "4:8", *use]) == 0
    with open(tmp_path / "study" / "uniform.csv", newline="") as file:
        assert {row["fill"] for row in csv.DictReader(file)} == {"rescale", "zero", "stencil"}
    assert main(["uniform", *shared, "--fill", "stencil", "--out", "study"]) == 2
    assert "fill: got 'stencil' alone, allowed: with --stencils FILE" in capsys.readouterr().err
