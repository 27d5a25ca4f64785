"""The knob: points by request, one for a block of a thread, and its file."""

from __future__ import annotations

import contextvars
import copy
import pickle
import threading
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import drowsy
from drowsy.correction.stencils import calibrate_stencils
from drowsy.energy import Measurement
from drowsy.evaluation.identity import fingerprint_state
from drowsy.files.provenance import provenance
from drowsy.images.view import View
from drowsy.knob.frontier import NoSuchPoint
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import Schedule
from drowsy.tuning.knob import Knob, load
from drowsy.tuning.knobfile import Contents
from drowsy.tuning.machine import SIZES
from drowsy.tuning.networks import made
from drowsy.tuning.recipe import Sleep
from drowsy.tuning.witness import Witness

RECIPE = Sleep("ours", source="lattice", grain="position", fill="stencil", aligned=True)
FULL = (24, 24)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x)).relu()
        return self.head(self.two(x).relu().mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return Net().eval()


def contents_of(model: nn.Module) -> Contents:
    """A knob's contents as a tuner would find them; figures are made up."""
    images = torch.rand(8, 3, *FULL)
    net, _ = made(model, images[:1], RECIPE)
    calibrate_stencils(net, images)
    stencils = {name: layer.stencil for name, layer in net.layers.items()}
    net.set(Fraction(1, 2), fill="stencil")
    asleep = net.schedule
    drowsy.calibrate(net, images)
    calibration = net.calibration
    net.set(0)
    awake = net.schedule
    small = View.of(FULL, (16, 16), 0.8)

    def point(schedule: Schedule, saving: float, ms: float, top1: float, **more: Any) -> Any:
        loss = {"loss": 0.9 - top1, "interval": (0.9 - top1 - 0.01, 0.9 - top1 + 0.01)}
        return OperatingPoint(schedule, saving, top1=top1, latency_ms=ms, images=8, **loss, **more)

    points = (
        point(awake, 0, 10, 0.9),
        point(awake, 0, 6, 0.89, number_format="bfloat16"),
        point(awake, 0.5, 4, 0.8, view=small, number_format="bfloat16"),
        point(asleep, 0.45, 5, 0.85),
        point(asleep, 0.75, 7, 0.5, view=small),
    )
    return Contents(
        weights=fingerprint_state(model.state_dict()),
        witness=Witness.of(model, (3, *FULL)),
        image=(3, *FULL),
        recipe=RECIPE,
        points=points,
        objective="top1",
        cost="latency",
        batch=4,
        restores=False,
        stencils=stencils,
        calibrations={None: calibration},
        levers={"view": "2 tried"},
        made=provenance(),
    )


def test_points_are_found_by_what_is_asked(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    # What is slower than a better point is none.
    assert [point.latency_ms for point in knob.points] == [10, 6, 5, 4]
    assert knob.set(saving=0.4).latency_ms == 6
    assert knob.set(saving=0.45).latency_ms == 5
    assert knob.set(latency_ms=5.5).latency_ms == 5
    assert knob.set(max_loss=0.011).latency_ms == 6
    assert knob.set(saving=0) is knob.awake
    assert knob.set(-1) is knob.points[-1] is knob.point
    with pytest.raises(NoSuchPoint, match=r"saves 70.0% of the time; the most is 60"):
        knob.set(saving=0.7)
    with pytest.raises(NoSuchPoint, match=r"nearest: 4 \(saves 60.0% of the time, top1 80.0%\)"):
        knob.set(latency_ms=1)
    for wrong in ({}, {"saving": 1.0}, {"saving": 0.1, "latency_ms": 3}, {"point": 9}):
        with pytest.raises((ValueError, LookupError), match="allowed"):
            knob.set(**wrong)
    assert knob.point is knob.points[-1]


def test_another_name_for_a_request_is_told_the_names(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    allowed = "allowed: point, saving, max_loss, latency_ms, joules"
    with pytest.raises(TypeError, match=f"Knob.set: got 'savings', {allowed}"):
        knob.set(savings=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=f"Knob.at: got 'latency', {allowed}"), knob.at(latency=5):  # type: ignore[call-arg]
        pass


def test_requests_that_are_none_are_told_what_was_called(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    several = {"saving": 0.1, "latency_ms": 3}
    for wrong, told in (({}, "nothing"), (several, "saving, latency_ms")):
        with pytest.raises(ValueError, match=f"^set: got {told}, allowed: a point, or one of"):
            knob.set(**wrong)
        with (
            pytest.raises(ValueError, match=f"^at: got {told}, allowed: a point, or"),
            knob.at(**wrong),
        ):
            pass
    for number in (0.5, True, Fraction(1, 2)):
        told = r"^point: got .*, allowed: 0 to 3, or a point; .* by its name: saving="
        with pytest.raises(ValueError, match=told):
            knob.set(number)
    assert knob.point is knob.awake


def test_every_point_computes_what_one_would_by_hand(model: nn.Module) -> None:
    contents = contents_of(model)
    knob = Knob(model, contents)
    images = torch.rand(4, 3, *FULL)
    with torch.inference_mode():
        assert torch.allclose(knob(images), model(images), atol=1e-5)
        for point in knob.points:
            knob.set(point)
            knob.reseed(3)
            found = knob(images)
            number_format = point.number_format
            net, _ = made(model, images[:1], RECIPE, number_format)
            for name, layer in net.layers.items():
                layer.set_stencil(contents.stencils[name])
            if number_format is None:
                net.calibration = contents.calibrations[None]
            net.set(point.schedule)
            net.reseed(3)
            shown = images if point.view is None else point.view(images)
            if number_format:
                shown = shown.bfloat16()
            shown = shown.contiguous(memory_format=torch.channels_last)
            assert torch.equal(found, net(shown).float())
            assert found.dtype == torch.float32


def test_a_block_has_its_own_point_in_its_thread_alone(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    images = torch.rand(4, 3, *FULL)
    outputs = {}
    for point in knob.points[:2]:
        knob.set(point)
        outputs[point.latency_ms] = knob(images)
    knob.set(0)
    seen: dict[str, Any] = {}
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with knob.at(latency_ms=6) as point:
            seen["held"] = knob(images)
            seen["point"] = point is knob.point
            entered.set()
            left.wait(20)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(20)
    assert knob.point is knob.awake
    here = knob(images)
    left.set()
    thread.join(20)
    assert seen["point"]
    assert torch.equal(seen["held"], outputs[6])
    assert torch.equal(here, outputs[10])
    with pytest.raises(ZeroDivisionError), knob.at(1):
        raise ZeroDivisionError
    assert knob.point is knob.awake


def test_a_file_gives_the_knob_back(model: nn.Module, tmp_path: Path) -> None:
    knob = Knob(model, contents_of(model))
    path = tmp_path / "net.drowsy"
    knob.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load(path, copy.deepcopy(model))
    assert again.points == knob.points
    assert again.contents.levers == knob.contents.levers
    images = torch.rand(4, 3, *FULL)
    for one, other in zip(knob.points, again.points, strict=True):
        knob.set(one)
        again.set(other)
        knob.reseed(5)
        again.reseed(5)
        assert torch.equal(knob(images), again(images))
    again.save(tmp_path / "again.drowsy")
    assert path.read_bytes() == (tmp_path / "again.drowsy").read_bytes()


def test_a_file_of_other_weights_or_another_machine_is_told(
    model: nn.Module, tmp_path: Path
) -> None:
    contents = contents_of(model)
    path = tmp_path / "net.drowsy"
    Knob(model, contents).save(path)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.one.bias += 1
    with pytest.raises(ValueError, match="tuned for other weights"):
        load(path, other)
    elsewhere = {**provenance(), "machine": {"processor": "another one"}}
    Knob(model, replace(contents, made=elsewhere)).save(path)
    with pytest.warns(UserWarning, match="another machine .processor another one"):
        load(path, model)
    # The same machine, where torch had other threads.
    machine = provenance()["machine"]
    fewer = {**provenance(), "machine": {**machine, "threads": 1000}}
    Knob(model, replace(contents, made=fewer)).save(path)
    told = r"of another number of threads on this machine \(1000, here \d+ threads?\)"
    with pytest.warns(UserWarning, match=told):
        load(path, model)


def test_what_is_no_file_is_named(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.drowsy"
    knob = Knob(model, contents_of(model))
    knob.save(path)
    with pytest.raises(IsADirectoryError, match=r"knob: .* is a folder, allowed: a file"):
        load(tmp_path, model)
    with pytest.raises(FileNotFoundError, match="knob: no file"):
        load(tmp_path / "other", model)
    with pytest.raises(TypeError, match="knob: got 3, allowed: the path of a file"):
        load(3, model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model: got NoneType, allowed: an nn\.Module"):
        load(path, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="training mode"):
        load(path, Net())
    with pytest.raises(IsADirectoryError, match="is a folder, allowed: a file"):
        knob.save(tmp_path)
    with pytest.raises(OSError, match=r"cannot be written there .*: '/proc/net.drowsy'"):
        knob.save("/proc/net.drowsy")
    with pytest.raises(OSError, match="cannot be written there"):
        knob.save(path / "within")
    with pytest.raises(TypeError, match="path: got 3"):
        knob.save(3)  # type: ignore[arg-type]
    assert [each.name for each in tmp_path.iterdir()] == ["net.drowsy"]


def test_a_file_whose_outputs_cannot_be_restored_is_refused(
    model: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "net.drowsy"
    Knob(model, replace(contents_of(model), restores=True)).save(path)
    with pytest.raises(ValueError, match="points: got a view of part of the picture"):
        load(path, model)


def test_any_byte_changed_is_refused_or_read_right(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "net.drowsy"
    knob = Knob(model, contents_of(model))
    knob.save(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = torch.randint(0, len(whole), (150,), generator=torch.Generator().manual_seed(0))
    early = torch.randint(0, header, (150,), generator=torch.Generator().manual_seed(1))
    refused = 0
    for place in (*map(int, places), *map(int, early), 0, 7, header - 1, len(whole) - 1):
        broken = bytearray(whole)
        broken[place] ^= 1 + place % 255
        path.write_bytes(broken)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read = load(path, model)
        except ValueError:
            refused += 1
            continue
        assert read.points == knob.points
        images = torch.rand(2, 3, *FULL)
        assert torch.equal(read(images), knob(images))
    assert refused > 290
    for length in (0, 4, 100, header, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="knob"):
            load(path, model)


def test_the_table_tells_what_every_point_does(model: nn.Module) -> None:
    about = {"images": {"search": 9, "report": 300}}
    knob = Knob(model, replace(contents_of(model), made=about))
    knob.set(saving=0.4)
    lines = str(knob).splitlines()
    assert lines[-2] == (
        "* in force; saved: of the time; lost: against the network awake, on 300 images that "
        "nothing was chosen on"
    )
    assert lines[2].split()[:2] == ["awake", "0%"]
    assert lines[3].startswith("*  bfloat16")
    assert "16 px of the middle 0.79, bfloat16" in lines[5]
    assert "% asleep" in lines[4]
    assert lines[-1] == "view: 2 tried"
    assert repr(knob) == "Knob(4 points, at bfloat16: saves 40.0% of the time)"


def test_a_point_computes_the_same_whichever_was_in_force_before(model: nn.Module) -> None:
    knob, images = Knob(model, contents_of(model)), torch.rand(4, 3, *FULL)

    def run(point: OperatingPoint) -> torch.Tensor:
        knob._machine.reseed(0)
        with knob.at(point):
            return knob(images)

    points = knob.contents.points
    alone = [run(point) for point in points]
    assert any(knob._machine.nets[None].calibration.points.values())
    for before in points:
        for point, wanted in zip(points, alone, strict=True):
            run(before)
            torch.testing.assert_close(run(point), wanted)
    with torch.inference_mode():
        torch.testing.assert_close(run(points[0]), model(images))


def test_measuring_drops_what_is_slower_here(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    knob.set(saving=0.4)
    held = knob.point
    knob.measure(torch.rand(2, 3, *FULL), seconds=0.2)
    assert knob.batch == 2
    assert len(knob.contents.points) == 5
    times = [point.latency_ms for point in knob.points]
    assert times == sorted(times, reverse=True)
    assert all(0 < ms < 1000 for ms in times)
    assert knob.point.schedule == held.schedule or knob.point is knob.awake


def test_measuring_in_a_block_turns_nothing_outside(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    with knob.at(-1):
        knob.measure(torch.rand(2, 3, *FULL), seconds=0.05)
    assert knob.point is knob.awake


def test_measuring_that_fails_changes_nothing(model: nn.Module) -> None:
    elsewhere = replace(contents_of(model), made={"machine": "another"}, measured_here=False)
    knob = Knob(model, elsewhere)
    points = knob.points
    with pytest.raises(ValueError, match=r"allowed: \[N, 3, H, W\]"):
        knob.measure(torch.rand(2, 5, *FULL))
    for wrong in (None, "x", True):
        with pytest.raises(TypeError, match="seconds: got"):
            knob.measure(torch.rand(2, 3, *FULL), seconds=wrong)  # type: ignore[arg-type]
    for wrong in (0, -1, float("nan"), float("inf"), 1e300, 10**400):
        with pytest.raises(ValueError, match="seconds: got"):
            knob.measure(seconds=wrong)
    assert knob.contents.made == elsewhere.made
    assert (knob.batch, knob.points) == (4, points)


def test_measuring_without_a_meter_changes_no_knob_by_joules(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(device: str) -> None:
        raise drowsy.energy.NoMeter("nothing here")

    monkeypatch.setattr("drowsy.tuning.knob.Meter", none)
    monkeypatch.setattr("drowsy.tuning.measuring.Meter", none)
    known = contents_of(model)
    metered = [replace(point, joules=point.latency_ms) for point in known.points]
    knob = Knob(model, replace(known, cost="joules", points=tuple(metered)))
    told, batch = str(knob), knob.batch
    with pytest.raises(drowsy.energy.NoMeter, match="nothing here"):
        knob.measure(torch.rand(2, 3, *FULL), seconds=0.05)
    # A meter that stands still tells no more.
    still = SimpleNamespace(
        measure_idle=lambda: None, measure=lambda run: Measurement("measure", 5.0, (), 9)
    )
    monkeypatch.setattr("drowsy.tuning.knob.Meter", lambda device: still)
    monkeypatch.setattr("drowsy.tuning.measuring.Meter", lambda device: still)
    with pytest.raises(drowsy.energy.NoMeter, match="metered no energy in 5 s"):
        knob.measure(torch.rand(2, 3, *FULL), seconds=0.05)
    assert (str(knob), knob.batch) == (told, batch)
    knob.save(tmp_path / "knob")
    assert str(load(tmp_path / "knob", model)) == told


def test_images_are_checked(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    with pytest.raises(TypeError, match="images: got int"):
        knob(3)
    with pytest.raises(TypeError, match=r"images: got ndarray, .* as torch.from_numpy makes"):
        knob(torch.rand(2, 3, *FULL).numpy())
    with pytest.raises(ValueError, match=r"allowed: \[N, 3, H, W\]"):
        knob(torch.rand(2, 4, *FULL))


def test_saying_what_points_do_moves_no_clock(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    images = torch.rand(4, 3, *FULL)
    with knob.at(saving=0.45):
        knob.reseed(3)
        found = knob(images)
        knob.reseed(3)
        assert "asleep" in str(knob)
        assert torch.equal(knob(images), found)


class OneSize(Net):
    """Its linear layer takes maps of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 24 * 24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x)).relu()
        return self.head(self.two(x).relu().flatten(1))


def test_a_network_of_one_size_takes_no_other() -> None:
    """At fewer pixels its features are scaled to that size: no image may slip in so."""
    model = OneSize().eval()
    knob = Knob(model, contents_of(model))
    for point in knob.contents.points:
        knob.set(point)
        assert knob(torch.rand(2, 3, *FULL)).shape == (2, 5)
        for size in ((16, 16), (48, 48), (24, 30)):
            with pytest.raises(ValueError, match=f"images: got {size[0]} x {size[1]} pixels"):
                knob(torch.rand(2, 3, *size))
            with pytest.raises(ValueError, match="allowed: 24 x 24, the one size"):
                knob.sleep_map(torch.rand(2, 3, *size))


class Pooled(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.max_pool2d(x, 8))


def test_a_size_that_the_network_does_not_take_is_named() -> None:
    model = Pooled().eval()
    knob = Knob(model, contents_of(model))
    assert knob(torch.rand(2, 3, 40, 32)).shape == (2, 5)
    with pytest.raises(ValueError, match="images: got 4 x 4 pixels, which the model does not take"):
        knob(torch.rand(2, 3, 4, 4))


def test_autocast_changes_no_point(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    images = torch.rand(4, 3, *FULL)
    for point in knob.points:
        knob.set(point)
        knob.reseed(3)
        alone = knob(images)
        knob.reseed(3)
        with torch.autocast("cpu", torch.bfloat16):
            found = knob(images)
        assert found.dtype == torch.float32
        assert torch.equal(found, alone)


def test_a_deep_copy_has_a_point_and_a_clock_of_its_own(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    images = torch.rand(4, 3, *FULL)
    knob.set(saving=0.45)
    twin = copy.deepcopy(knob)
    assert twin.point is knob.point
    for each in (knob, twin):
        each.reseed(3)
    found = knob(images)
    knob(images)
    assert torch.equal(twin(images), found)
    twin.set(0)
    assert knob.point is not twin.point
    assert "*" in str(twin)
    # A shallow one turns alone, too.
    shallow = copy.copy(knob)
    shallow.set(0)
    assert knob.point.latency_ms == 5
    assert torch.equal(shallow(images), twin(images))


def test_a_copy_made_in_a_block_is_set_to_the_point_of_the_block(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    images = torch.rand(4, 3, *FULL)
    with knob.at(saving=0.45) as point:
        knob.reseed(3)
        expected = knob(images)
        copies = copy.deepcopy(knob), copy.copy(knob)
        for each in copies:
            assert each.point is point
            each.reseed(3)
            assert torch.equal(each(images), expected)
        with pytest.raises(TypeError, match=r"knob.save\(path\)"):
            pickle.dumps(knob)
        with copies[0].at(0):
            assert knob.point is point
    assert knob.point is knob.awake
    assert copies[0].point is copies[1].point is point


def test_a_point_held_for_a_knob_that_is_gone_is_nobody_elses(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    gone = copy.copy(knob)
    with gone.at(saving=0.45):
        context = contextvars.copy_context()
        assert context.run(getattr, gone, "point") is not knob.awake
    lay_at = id(gone)
    del gone
    twins = [copy.copy(knob) for _ in range(100)]
    assert lay_at in map(id, twins)
    for twin in twins:
        assert context.run(getattr, twin, "point") is knob.awake


def test_a_knob_is_saved_and_not_pickled(model: nn.Module, tmp_path: Path) -> None:
    knob = Knob(model, contents_of(model))
    with pytest.raises(TypeError, match=r"Knob: got pickled .* allowed: knob.save\(path\)"):
        pickle.dumps(knob)
    with pytest.raises(TypeError, match=r"knob.save\(path\)"):
        torch.save({"knob": knob}, tmp_path / "knob.pt")


class Maps(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.norm(self.one(x)).relu())


def test_shapes_of_few_sizes_are_remembered_and_cost_one_image() -> None:
    model = Maps().eval()
    contents = contents_of(model)
    points = tuple(p for p in contents.points if p.view is None)
    small = replace(points[0], view=View.of(FULL, (16, 16)), latency_ms=3)
    knob = Knob(model, replace(contents, restores=True, points=(*points, small)))
    seen: list[tuple[int, ...]] = []
    machine = knob._machine
    machine.nets[None].register_forward_hook(lambda net, given, y: seen.append(given[0].shape))
    knob.set(small)
    assert knob(torch.rand(6, 3, 30, 40)).shape == (6, 8, 30, 40)
    assert seen == [(1, 3, 30, 40)]
    knob(torch.rand(6, 3, 30, 40))
    assert len(seen) == 1
    for width in range(8, 8 + 2 * SIZES):
        knob(torch.rand(1, 3, 8, width))
    assert len(machine._wholes) == SIZES
    # The last ones.
    assert (8, 7 + 2 * SIZES) in machine._wholes
    assert (30, 40) not in machine._wholes


def test_sleep_maps_are_of_a_layer_and_of_images_further_on(model: nn.Module) -> None:
    knob = Knob(model, contents_of(model))
    images = torch.rand(8, 3, *FULL)
    asleep = next(n for n, point in enumerate(knob.points) if knob.share_asleep(point))
    whole = knob.sleep_map(images, asleep)
    # Both layers share their maps here: of each, and of both, the same places sleep.
    assert torch.equal(knob.sleep_map(images, asleep, layer="one"), (whole > 0).float())
    assert torch.equal(knob.sleep_map(images[1:], asleep, first=1), whole[1:])
    assert not torch.equal(knob.sleep_map(images[1:], asleep), whole[1:])
    with pytest.raises(ValueError, match="layer: got 'three', allowed: one, two, or None"):
        knob.sleep_map(images, asleep, layer="three")
