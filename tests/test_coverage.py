"""The coverage benchmark's own logic, without the libraries that it covers."""

from __future__ import annotations

import copy
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from bench import coverage
from bench.architectures import Architecture, catalogue
from bench.coverage import distance, enliven, examine, finite, leaves, mapped, outputs

converted = drowsy.convert


# --- nested outputs ------------------------------------------------------------------------------


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None


class Boxes(NamedTuple):
    boxes: Tensor
    labels: Tensor


ONE = torch.tensor([1.0, -4.0])
CLOSE = ONE + torch.tensor([0.0, 0.02])


@pytest.mark.parametrize(
    ("expected", "found", "apart", "where"),
    [
        (ONE, CLOSE, 0.005, "output"),
        (ONE, ONE.clone(), 0, ""),
        ((ONE, [ONE, CLOSE]), (ONE, [ONE, ONE]), 0.02 / 3.98, "output[1][1]"),
        ({"a": ONE, "b": {"c": ONE}}, {"a": ONE, "b": {"c": CLOSE}}, 0.005, "output['b']['c']"),
        (OrderedDict(out=ONE), OrderedDict(out=CLOSE), 0.005, "output['out']"),
        (Output(ONE, (ONE,)), Output(ONE, (CLOSE,)), 0.005, "output.hidden[0]"),
        (Output(ONE), Output(ONE), 0, ""),
        (Boxes(ONE, torch.tensor([3])), Boxes(ONE, torch.tensor([4])), math.inf, "output[1]"),
        (None, None, 0, ""),
        ((1, "text", True), (1, "text", True), 0, ""),
        # Numbers are no rounding's victims.
        ((ONE, 1), (ONE, 2), math.inf, "output[1]"),
        (ONE, ONE.double(), math.inf, "output"),
        (ONE, ONE[None], math.inf, "output"),
        (ONE, None, math.inf, "output"),
        (torch.zeros(2), torch.zeros(2), 0, ""),
        (torch.zeros(2), torch.full((2,), 1e-9), math.inf, "output"),
        (torch.zeros(0, 4), torch.zeros(0, 4), 0, ""),
        (torch.tensor([math.nan, 1]), torch.tensor([math.nan, 1]), 0, ""),
        (torch.tensor([math.nan, 1]), torch.tensor([1, math.nan]), math.inf, "output"),
        (torch.tensor([math.inf, 1]), torch.tensor([-math.inf, 1]), math.inf, "output"),
        (torch.tensor([math.inf, 1]), torch.tensor([math.nan, 1]), math.inf, "output"),
        (torch.tensor([math.inf, 1]), torch.tensor([math.inf, 2]), 1, "output"),
        (torch.tensor([True]), torch.tensor([False]), math.inf, "output"),
        ([ONE], [ONE, ONE], math.inf, "1 leaves expected, 2 found"),
        ({"a": ONE}, {"b": ONE}, math.inf, "or other names"),
    ],
)
def test_distance_is_that_of_the_worst_tensor(
    expected: Any, found: Any, apart: float, where: str
) -> None:
    got, told = distance(expected, found)
    assert got == pytest.approx(apart, rel=1e-4)
    assert where in told
    assert bool(told) == bool(apart)


def test_what_cannot_be_compared_is_not_passed_over() -> None:
    with pytest.raises(TypeError, match=r"output\[1\]: got SimpleNamespace, allowed: tensors"):
        list(leaves((ONE, SimpleNamespace(logits=ONE))))


def test_finite_looks_into_everything() -> None:
    assert finite({"a": [ONE, None, 3], "b": (torch.tensor([1]),)})
    assert not finite({"a": [ONE, {"c": torch.tensor([math.nan])}]})


def test_examples_keep_their_form() -> None:
    example = ([ONE, CLOSE], {"x": ONE, "n": 3})
    twice = mapped(lambda x: 2 * x, example)
    assert isinstance(twice, tuple)
    assert distance(twice, ([2 * ONE, 2 * CLOSE], {"x": 2 * ONE, "n": 3}))[0] == 0


# --- weights that show what is wrong -------------------------------------------------------------


class Frozen(nn.Module):
    """Batch norm as libraries freeze it: all of it in buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            self.register_buffer(name, torch.full((channels,), value))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class Small(nn.Module):
    """A branch scaled by 1e-6, a norm whose weight is 0, a frozen one; takes named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        nn.init.zeros_(self.norm.weight)
        self.branch = nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        self.frozen = Frozen(8)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.stem(pixels)))
        return {"features": self.frozen(x + self.scale * self.branch(x))}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def test_every_layer_has_a_part_in_what_is_compared(images: Tensor) -> None:
    torch.manual_seed(0)
    model = Small()
    enliven(model, images)
    assert not model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    before = outputs(model, images)
    names = [name for name, _ in model.named_parameters()]
    names += [f"frozen.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    for name in names:
        other = copy.deepcopy(model)
        changed = dict(other.named_parameters()) | dict(other.named_buffers())
        changed[name].data[0] *= 1.5
        assert distance(before, outputs(other, images))[0] > 10 * coverage.TOLERANCE, name


def test_statistics_are_near_those_of_the_inputs_and_off_them(images: Tensor) -> None:
    torch.manual_seed(0)
    model = Small()
    enliven(model, images)
    with torch.no_grad():
        x = model.stem(images)
    mean, deviation = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0).sqrt()
    off = (model.norm.running_mean - mean) / deviation
    spread = model.norm.running_var.sqrt() / deviation
    assert 0.05 < off.abs().max() <= 0.5
    assert spread.min() > 0.7
    assert spread.max() < 1.42
    assert (spread - 1).abs().max() > 0.05


def test_networks_that_say_nothing_are_refused(images: Tensor) -> None:
    class Infinite(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0

    class Counts(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    with pytest.raises(ValueError, match="outputs are not finite"):
        enliven(Infinite(), images)
    with pytest.raises(ValueError, match="a second call gives other outputs"):
        enliven(Counts(), images)


def test_a_rounding_of_a_narrow_output_is_no_difference_where_it_is_let() -> None:
    one = {"wide": torch.ones(3, dtype=torch.float64), "narrow": torch.ones(3)}
    other = {"wide": one["wide"].clone(), "narrow": torch.full((3,), 1 - 2.0**-24)}
    assert distance(one, other)[0] == 2.0**-24
    assert distance(one, other, rounded=True) == (0.0, "")
    other["wide"] += 2.0**-24
    assert distance(one, other, rounded=True)[0] == 2.0**-24
    other["narrow"] -= 2.0**-22
    assert distance(one, other, rounded=True)[0] > 2.0**-23


# --- one network ---------------------------------------------------------------------------------


@pytest.fixture
def model(images: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    enliven(model, images)
    return model


def stand_in(monkeypatch: pytest.MonkeyPatch, convert: Callable[[nn.Module], Any]) -> None:
    monkeypatch.setattr(drowsy, "convert", lambda model, example: convert(model))


def test_a_network_that_converts(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, lambda model: converted(model, skip=["branch"]))
    row = examine(model, {"pixels": images})
    assert (row["verdict"], row["reason"], row["half"]) == ("graph", "", "runs")
    assert (row["convolutions"], row["drowsy"]) == (2, 1)
    assert row["left"] == {"left awake, as asked": 1}
    assert 0 <= row["difference"] < 1e-5
    assert (row["compared_in"], row["random"]) == ("float32", False)


def test_a_network_without_a_graph(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Graphless:
        graph = None

        def __init__(self, model: nn.Module) -> None:
            self.net = converted(model)
            self.layers, self.report = self.net.layers, self.net.report
            self.set, self.reseed = self.net.set, self.net.reseed

        def __call__(self, *args: Any, **named: Any) -> Any:
            return self.net(*args, **named)

    stand_in(monkeypatch, Graphless)
    assert examine(model, (images,))["verdict"] == "module"


def folded_wrongly(model: nn.Module) -> Any:
    net = converted(model)
    net.layers["stem"].norm.running_mean[0] *= 0.9
    net.refresh()
    return net


def test_a_wrong_fold_is_wrong(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, lambda model: folded_wrongly(copy.deepcopy(model)))
    row = examine(model, images)
    assert (row["verdict"], row["compared_in"]) == ("wrong", "float64")
    assert row["reason"].startswith("at rate 0: output['features'] by ")
    assert row["difference"] > coverage.TOLERANCE_64


def test_other_outputs_are_wrong(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Listed(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.net = converted(model)
            self.layers, self.report = self.net.layers, self.net.report

        def forward(self, x: Tensor) -> Any:
            return list(self.net(x).values())

    stand_in(monkeypatch, Listed)
    row = examine(model, images)
    assert (row["verdict"], row["difference"]) == ("wrong", None)


def test_a_changed_original_is_wrong(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(model: nn.Module) -> Any:
        net = converted(copy.deepcopy(model))
        model.stem.bias.data[0] += 0.01
        return net

    stand_in(monkeypatch, changing)
    row = examine(model, images)
    assert (row["verdict"], row["reason"]) == (
        "wrong",
        "the network it was made from has changed",
    )


def test_amplified_rounding_is_told_from_a_fault(images: Tensor) -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(3e4 * self.norm(self.conv(x)))

    torch.manual_seed(0)
    model = Steep()
    enliven(model, images)
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, converted)
        row = examine(model, images)
    assert (row["verdict"], row["compared_in"]) == ("graph", "float64")
    assert row["difference"] < coverage.TOLERANCE_64


def test_refusals_are_told_and_errors_are_not_taken_for_them(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(error: Exception) -> Callable[[nn.Module], Any]:
        def convert(model: nn.Module) -> Any:
            raise error

        return convert

    stand_in(monkeypatch, refusing(ValueError("model: has none\n  of them")))
    row = examine(model, images)
    assert (row["verdict"], row["reason"]) == ("refused", "model: has none of them")
    stand_in(monkeypatch, refusing(AttributeError("no attribute")))
    with pytest.raises(AttributeError, match="no attribute"):
        examine(model, images)


def test_outputs_that_no_rate_changes_are_told(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x.mean() + 0 * self.conv(x)

    model = Deaf()
    enliven(model, images)
    stand_in(monkeypatch, converted)
    row = examine(model, images)
    assert (row["verdict"], row["half"]) == ("graph", "no output follows the knob")


def test_faults_at_half_are_told(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 1 / self.conv(x)

    model = Inverse()
    enliven(model, images)
    stand_in(monkeypatch, lambda model: converted(model, fill="zero"))
    row = examine(model, images)
    assert (row["verdict"], row["half"]) == ("graph", "outputs are not finite")

    class Raising(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.net = converted(model)
            self.graph, self.layers, self.report = self.net.graph, self.net.layers, self.net.report
            self.reseed = self.net.reseed

        def set(self, rate: float) -> None:
            self.net = None

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    stand_in(monkeypatch, Raising)
    row = examine(model, images)
    assert (row["verdict"], row["half"]) == (
        "graph",
        "TypeError: 'NoneType' object is not callable",
    )


# --- in a process of its own ---------------------------------------------------------------------


def sleeping() -> nn.Module:
    time.sleep(60)
    raise AssertionError


def hoarding() -> nn.Module:
    return nn.Linear(2**16, 2**16)


def leaving() -> nn.Module:
    os._exit(3)


def raising() -> nn.Module:
    raise KeyError("encoder")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (sleeping, "not done within 1 s"),
        (hoarding, "before it is converted: RuntimeError: "),
        (leaving, "its process ended with 3"),
        (raising, "before it is converted: KeyError: 'encoder'"),
    ],
)
def test_a_network_that_fails_takes_nothing_along(
    build: Callable[[], nn.Module], reason: str
) -> None:
    architecture = Architecture("library", "name", build, lambda: ONE)
    row = coverage.run_apart(architecture, 1 if build is sleeping else 60, 4)
    assert (row["library"], row["name"], row["verdict"]) == ("library", "name", "failed")
    assert row["reason"].startswith(reason)
    assert row["seconds"] >= 0


def test_a_network_is_examined_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, converted)
    architecture = Architecture("library", "name", Small, lambda: torch.randn(2, 3, 9, 9))
    row = coverage.run_apart(architecture, 120, 8)
    assert (row["verdict"], row["half"], row["drowsy"]) == ("graph", "runs", 2)


# --- which, and the tables -----------------------------------------------------------------------


def test_names_are_unique_and_patterns_choose() -> None:
    names = [str(each) for each in catalogue()]
    assert len(names) == len(set(names)) > 280
    assert coverage.chosen([]) != []
    assert [str(each) for each in coverage.chosen(["timm/resnet18", "monai/VN*"])] == [
        "timm/resnet18",
        "monai/VNet",
    ]
    with pytest.raises(ValueError, match="patterns: 'timm/nothing' fits no network, allowed: "):
        coverage.chosen(["monai/*", "timm/nothing"])


def record() -> dict[str, Any]:
    def row(library: str, name: str, verdict: str, reason: str = "", **more: Any) -> dict[str, Any]:
        return {
            "library": library,
            "name": name,
            "verdict": verdict,
            "reason": reason,
            "seconds": 1.5,
        } | more

    runs = {"convolutions": 10, "drowsy": 8, "left": {"a | b": 2}, "half": "runs"}
    rows = [
        row("one", "net", "graph", **runs),
        row("one", "other", "module", **runs | {"half": "outputs are not finite"}),
        row("one", "bad", "wrong", "at rate 0: output", convolutions=4, drowsy=4, left={"x": 1}),
        row("two", "none", "refused", "model: " + "x" * 300, convolutions=5),
        row("two", "late", "failed", "not done within 1 s"),
    ]
    return {"commit": "0123456789abcdef", "versions": {"torch": "2.14"}, "networks": rows}


def test_tables() -> None:
    rows = record()["networks"]
    counts = coverage.counts_table(rows).splitlines()
    assert counts[2:] == [
        "| one | 3 | 1 | 1 | 0 | 1 | 0 | 1 | 16 of 20 |",
        "| two | 2 | 0 | 0 | 1 | 0 | 1 | 0 | 0 of 0 |",
        "| all | 5 | 1 | 1 | 1 | 1 | 1 | 1 | 16 of 20 |",
    ]
    assert counts[0].count("|") == counts[2].count("|")
    faults = coverage.faults_table(rows).splitlines()
    assert faults[2:] == [
        "| one/other | not at 1/2 | outputs are not finite |",
        "| one/bad | wrong | at rate 0: output |",
        "| two/none | refused | model: " + "x" * 230 + "... |",
        "| two/late | failed | not done within 1 s |",
    ]
    assert coverage.left_table(rows).splitlines()[2:] == ["| a \\| b | 4 | 2 |"]
    assert coverage.faults_table(rows[:1]) == "None."
    assert coverage.left_table(rows[2:]) == "None."


def test_lines_tell_what_is_amiss() -> None:
    lines = [coverage.line(row) for row in record()["networks"]]
    assert [text.split()[:2] for text in lines[:2]] == [
        ["one/net", "graph"],
        ["one/other", "module"],
    ]
    assert lines[0].endswith("8/10    1.5 s")
    assert lines[1].endswith("at rate 1/2: outputs are not finite")
    assert lines[4].endswith("not done within 1 s")


def test_a_page_is_filled_from_the_record(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    written = Path(__file__).parents[1] / "docs" / "study" / "coverage" / "README.md"
    page.write_text(written.read_text())
    coverage.write_page(page, record())
    text = page.read_text()
    assert "Commit 0123456789ab; torch 2.14. 5 networks took 8 s." in text
    for table in (coverage.counts_table, coverage.faults_table, coverage.left_table):
        assert table(record()["networks"]) in text
