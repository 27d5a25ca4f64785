"""The page of a knob: whole, closed to the outside, honest, and the same every time."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import Page, references
from torch import Tensor, nn

from drowsy.evaluation.identity import fingerprint_state
from drowsy.images.view import View
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Schedule
from drowsy.network.net import DrowsyNet
from drowsy.reporting import write_report
from drowsy.reporting.markup import document, tag
from drowsy.reporting.words import number
from drowsy.tuning.knob import Knob
from drowsy.tuning.knobfile import Contents
from drowsy.tuning.maps import sleep_map
from drowsy.tuning.networks import made
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.witness import Witness

RECIPE = Sleep("ours", source="fovea", grain="position", aligned=True)
FULL = (24, 32)
MADE = {
    "task": "classification",
    "labelled": True,
    "images": {"calibration": 11, "search": 22, "report": 33},
    "machine": {"processor": "Abacus 9000", "cores": 4, "threads": 1, "gpu": None},
    "versions": {"torch": "9.9"},
    "command": "tune.py",
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return Net().eval()


def contents_of(model: nn.Module, **more: Any) -> Contents:
    """A knob's contents as a tuner would find them; figures are made up."""
    net, _ = made(model, torch.rand(1, 3, *FULL), RECIPE)
    awake = net.schedule
    net.set(Fraction(1, 2))
    asleep = net.schedule
    small = View.of(FULL, (12, 16), 0.75)

    def point(schedule: Schedule, saving: float, ms: float, top1: float, **more: Any) -> Any:
        loss = {"loss": 0.9 - top1, "interval": (0.9 - top1 - 0.01, 0.9 - top1 + 0.01)}
        return OperatingPoint(schedule, saving, top1=top1, latency_ms=ms, images=33, **loss, **more)

    points = (
        point(awake, 0, 10, 0.9),
        point(awake, 0, 6.25, 0.895, number_format="bfloat16"),
        point(asleep, 0.45, 5.5, 0.885),
        point(asleep, 0.75, 3.5, 0.75, view=small, number_format="bfloat16"),
        point(awake, 0.5, 8.125, 0.5, view=small),
    )
    told: dict[str, Any] = {
        "weights": fingerprint_state(model.state_dict()),
        "witness": Witness.of(model, (3, *FULL)),
        "image": (3, *FULL),
        "recipe": RECIPE,
        "points": points,
        "objective": "top1",
        "cost": "latency",
        "batch": 4,
        "restores": False,
        "levers": {"view": "2 tried", "sleep": "3 tried"},
        "made": MADE,
    }
    return Contents(**(told | more))


@pytest.fixture
def knob(model: nn.Module) -> Knob:
    return Knob(model, contents_of(model))


def page_of(knob: Knob, folder: Path, *given: Any, **more: Any) -> tuple[Page, str]:
    text = write_report(knob, folder / "page.html", *given, **more).read_text(encoding="utf-8")
    return Page(text), text


def test_every_point_is_in_the_table_the_picture_and_among_the_levers(
    knob: Knob, tmp_path: Path
) -> None:
    page, _ = page_of(knob, tmp_path)
    for ms in ("10", "6.25", "5.5", "3.5", "8.12"):
        assert ms in page.texts
    for name in ("0", "1", "2", "3"):
        # Once in the table, once among the levers, once in the picture of each size.
        assert page.texts.count(name) >= 4
    assert "1 more setting, measured and not worth it here" in page.text
    assert len(page.of_class("spare")) == 2
    assert len(page.of_class("chart")) == 2
    # Slices of the discs: two of one lever, the view with two more; in both pictures, and the key.
    for lever, count in (("view", 1), ("format", 2), ("sleep", 2), ("awake", 1)):
        dots = [each for each in page.of_class("dot") if lever in str(each["class"]).split()]
        assert len(dots) == 2 * count + 1, lever
    assert page.text.count(str(View.of(FULL, (12, 16), 0.75))) >= 3
    # What a point of accuracy buys, and what two do.
    cards = "".join(page.texts)
    assert "38%less time for at most 1 pointNumber 1: loses 0.5 points (95%: " in cards
    assert "45%less time for at most 2 pointsNumber 2: loses 1.5 points" in cards


def test_it_tells_how_it_was_measured_and_what_it_does_not_say(
    model: nn.Module, tmp_path: Path
) -> None:
    contents = contents_of(model)
    page, _ = page_of(Knob(model, contents), tmp_path)
    for said in (
        "11 to calibrate, 22 to choose points by, 33 to report on; disjoint",
        "a batch of 4 on Abacus 9000, 4 cores, 1 thread",
        "not metered",
        "They bet on what matters being in the middle",
        "Losses are of 33 images, which are few",
        "Nothing is said of energy",
        contents.weights,
        "2 tried",
        "No example pictures were given",
    ):
        assert said in page.text, said
    assert "slower here than awake" not in page.text
    assert "not the one that this page was written on" not in page.text

    # Neither bets, nor few images, nor without joules; slower than awake, on another machine.
    points = [
        replace(point, view=None, images=5000, joules=0.5 + n, latency_ms=10.0 + n)
        for n, point in enumerate(contents.points[:3])
    ]
    other = replace(
        contents,
        points=tuple(points),
        cost="macs",
        recipe=replace(RECIPE, source="lattice"),
        measured_here=False,
    )
    page, _ = page_of(Knob(model, other), tmp_path)
    assert "bet on what matters" not in page.text
    assert "which are few" not in page.text
    assert "Nothing is said of energy" not in page.text
    assert "not the one that this page was written on" in page.text
    assert "Multiplications saved are no time saved. Point 1 took longer" in page.text
    assert len(page.of_class("slow")) == 3  # of two points awake's times are less; and the legend
    assert "J / image" in page.text
    assert "multiplications, % of awake" in page.text
    assert "milliseconds for a batch of 4" in page.text


def test_it_shows_views_and_sleep_on_the_images(knob: Knob, tmp_path: Path) -> None:
    images_open = pytest.importorskip("PIL.Image", reason="needs Pillow").open
    images = torch.rand(2, 3, *FULL)
    before = knob.point, [net.control.clock.tolist() for net in knob._machine.nets.values()]
    page, _ = page_of(knob, tmp_path, images, mean=(0, 0, 0), std=(1, 1, 1))
    after = knob.point, [net.control.clock.tolist() for net in knob._machine.nets.values()]
    assert before == after
    addresses = [each["href"] for name, each in page.tags if name == "image"]
    pictures = []
    for address in addresses:
        kind, _, data = str(address).partition(";base64,")
        assert kind == "data:image/png"
        pictures.append(images_open(io.BytesIO(base64.b64decode(data))))
    # The two, what the view makes of the first, and two maps for each of two points that sleep.
    sizes = [picture.size for picture in pictures]
    assert sizes[:3] == [(32, 24), (32, 24), (16, 12)]
    assert len(sizes) == 3 + 2 * 2
    shown = torch.tensor(list(pictures[0].tobytes())).view(24, 32, 3).permute(2, 0, 1)
    assert torch.equal(shown, (255 * images[0]).round().long())
    assert {each["href"] for name, each in page.tags if name == "use"} == {"#picture0", "#picture1"}
    assert len(page.of_class("frame")) == 1
    # The view leaves out as much left as right: 4 of 32 pixels.
    assert "M4.00 3.00h24.00v18.00h-24.00Z" in str(page.of_class("veil")[0]["d"])
    veil = torch.tensor(list(pictures[3].tobytes())).view(24, 32, 4)[..., 3]
    share = knob.sleep_map(images, knob.points[2])[0]
    assert torch.equal(veil, (255 * 0.85 * share).round().long())
    assert "No example pictures" not in page.text


def test_without_a_normalisation_images_show_all_their_range(knob: Knob, tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    images = 7 * torch.rand(1, 3, *FULL) - 3
    page, _ = page_of(knob, tmp_path, images)
    address = next(str(each["href"]) for name, each in page.tags if name == "image")
    picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    values = picture.tobytes()
    assert (min(values), max(values)) == (0, 255)


def test_nothing_is_fetched_from_elsewhere(knob: Knob, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    page, text = page_of(knob, tmp_path, torch.rand(1, 3, *FULL))
    found = list(references(page))
    assert len(found) > 3
    assert all(each.startswith(("data:", "#")) for each in found)
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    policy = next(each["content"] for _, each in page.tags if "http-equiv" in each)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


EVIL = """<script>alert("1")</script>' onload="x" & </style><img src=http://e.vil> \x1b[31m\ud800"""


def test_whatever_comes_from_a_file_or_a_user_is_text(model: nn.Module, tmp_path: Path) -> None:
    evil: dict[str, Any] = dict.fromkeys(("task", "command", "commit", "data"), EVIL)
    evil |= {"machine": {"processor": EVIL, "gpu": EVIL}, "versions": {EVIL: EVIL}}
    evil |= {"images": {"search": EVIL}, "network": {"model": EVIL}}
    contents = contents_of(model, made=evil, levers={EVIL: EVIL}, weights=EVIL)
    knob = Knob(model, contents)
    plain, _ = page_of(Knob(model, contents_of(model)), tmp_path)
    for name in (None, EVIL):
        page, text = page_of(knob, tmp_path, name=name)
        names = {name for name, _ in page.tags}
        assert names <= {name for name, _ in plain.tags}
        assert "script" not in names
        assert not any("onload" in each for _, each in page.tags)
        assert all(each.startswith(("data:", "#")) for each in references(page))
        assert "\x1b" not in text
        shown = EVIL.replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
        assert page.text.count(shown) >= 8


def test_the_same_knob_gives_the_same_bytes(model: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="needs Pillow")
    images = torch.rand(2, 3, *FULL)
    pages = []
    for name in ("one", "other"):
        knob = Knob(model, contents_of(model))
        if name == "other":
            # What is in force, and how often it ran, is none of a report's business.
            knob.set(2)
            knob(images)
        pages.append(write_report(knob, tmp_path / name, images).read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize("objective", ["psnr", "score"])
def test_other_metrics_are_in_their_own_unit(
    model: nn.Module, tmp_path: Path, objective: str
) -> None:
    contents = contents_of(model)
    points = tuple(
        replace(point, others={objective: 30 - n}, loss=float(n), interval=(n - 0.25, n + 0.25))
        for n, point in enumerate(contents.points)
    )
    page, _ = page_of(Knob(model, replace(contents, objective=objective, points=points)), tmp_path)
    unit = " (dB)" if objective == "psnr" else ""
    assert f"lost{unit}" in page.texts
    assert "1.750 to 2.250" in page.text
    assert bool(page.of_class("deal")) == (objective == "psnr")


def test_a_knob_without_milliseconds_or_anything_told_has_a_page(
    model: nn.Module, tmp_path: Path
) -> None:
    contents = contents_of(model, cost="macs", made={}, levers={})
    points = [replace(each, latency_ms=None, loss=None, interval=None) for each in contents.points]
    page, _ = page_of(Knob(model, replace(contents, points=tuple(points))), tmp_path)
    assert "a machine that the file does not tell" in page.text
    assert len(page.of_class("chart")) == 2
    alone = replace(contents, points=tuple(points[:1]))
    page, _ = page_of(Knob(model, alone), tmp_path)
    assert "1 setting of one network" in page.text


@pytest.mark.parametrize(
    ("given", "more", "message"),
    [
        ((torch.rand(9, 3, *FULL),), {}, "images: got 9, allowed: 1 to 8"),
        ((torch.rand(1, 4, *FULL),), {}, r"allowed: \[N, 3, H, W\]"),
        ((torch.full((1, 3, *FULL), torch.nan),), {}, "images: number 0 holds NaN"),
        ((), {"classes": ["cat"]}, "classes: got some, allowed: None of a Knob"),
        ((), {"name": " "}, "name: got ' ', allowed: a text"),
        ((), {"mean": (0, 0, 0)}, "mean, std: got .*, allowed: both, or none"),
        ((), {"mean": (0, 0), "std": (1, 1, 1)}, r"mean: got \(0, 0\), allowed: 3 numbers"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(
    knob: Knob, tmp_path: Path, given: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        write_report(knob, tmp_path / "page.html", *given, **more)
    assert list(tmp_path.iterdir()) == []


def test_only_a_knob_has_a_report(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="knob: got str, allowed: a Knob or a VideoKnob"):
        write_report("net.drowsy", tmp_path / "page.html")  # type: ignore[arg-type]


def test_sleep_maps_are_those_that_layers_draw(model: nn.Module) -> None:
    """Where a layer fills with zeros, its zeros are its sleepers."""
    net, _ = made(model, torch.rand(1, 3, *FULL), replace(RECIPE, fill="zero", aligned=False))
    assert isinstance(net, DrowsyNet)
    net.set({"one": Fraction(1, 2), "two": Fraction(1, 4)})
    with torch.no_grad():
        for layer in net.layers.values():
            # Whoever is awake is above zero.
            layer.weight.abs_()
            layer.bias.abs_().add_(1)  # type: ignore[union-attr]
        net.refresh()
    images = torch.rand(2, 3, *FULL)
    outputs = {}
    handles = [
        layer.register_forward_hook(lambda m, i, y, name=name: outputs.update({name: y}))
        for name, layer in net.layers.items()
    ]
    net.reseed(3)
    with torch.inference_mode():
        net(images)
    for handle in handles:
        handle.remove()
    zeros = {name: (y == 0).float().mean(1) for name, y in outputs.items()}
    assert 0.4 < zeros["one"].mean() < 0.6
    work = {"one": 24 * 32 * 4 * 27, "two": 12 * 16 * 4 * 36}
    large = zeros["two"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    wanted = (work["one"] * zeros["one"] + work["two"] * large) / sum(work.values())
    net.reseed(3)
    assert torch.allclose(sleep_map(net, images), wanted)
    for name, share in zeros.items():
        net.reseed(3)
        assert torch.allclose(sleep_map(net, images, name), share)
    assert not any(layer._forward_hooks for layer in net.layers.values())
    net.set(0)
    assert torch.equal(sleep_map(net, images), torch.zeros(2, 24, 32))


def test_text_is_escaped_by_construction() -> None:
    text = document('a<b>"&', "p > b {}", tag("p", "<i>", tag("b", "x"), "\n&", title='"<>'))
    assert "p > b {}" in text
    assert "<i>" not in text
    page = Page(text)
    assert 'a<b>"&' in page.text
    assert ("p", {"title": '"<>'}) in page.tags


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (347.486, "347"), (46.63, "46.6"), (100, "100"), (8.4254, "8.43"), (0.5, "0.5"),
        (-0.25, "\u22120.25"), (1368.2, "1,368"), (0.00123, "0.0012"), (2e-7, "2.00e\u221207"),
        (-0.00001, "\u22121.00e\u221205"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text
