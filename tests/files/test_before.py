"""Files written before the modules lay in folders are read as they were, or refused by name."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from torch import Tensor

import drowsy
from drowsy.evaluation.engine import Result, Workload
from drowsy.evaluation.identity import fingerprint_state
from drowsy.knob.schedule import Setting

pytest.importorskip("safetensors", reason="needs safetensors")

BEFORE = Path(__file__).parent / "before"
# What the files were made of, made again with today's code.
MADE: dict[str, Any] = run_path(str(BEFORE / "write.py"))
STRATIFIED = "stratified;neuron;8;{}, interpolate"


class Nothing:
    """An engine for stores that know every result."""

    def evaluate(
        self, work: Workload, settings: Mapping[int, Sequence[Setting]]
    ) -> Iterator[Result]:
        raise AssertionError(f"was asked for {settings}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[drowsy.Store]:
    # Opened, a store's file changes its journal's mode.
    with drowsy.Store(shutil.copy(BEFORE / "store.sqlite", tmp_path)) as opened:
        yield opened


def calibrated() -> drowsy.DrowsyNet:
    net = drowsy.convert(MADE["model"](), source="stratified")
    net.set(0.5)
    net.calibration = drowsy.Calibration.load(BEFORE / "calibration.safetensors")
    return net


def with_stencils() -> drowsy.DrowsyNet:
    net = drowsy.convert(MADE["small_model"]())
    drowsy.load_stencils(net, BEFORE / "stencils.safetensors")
    net.set(0, fill="stencil")
    return net


NETS = {name: lambda name=name: MADE["nets"]()[name] for name in MADE["nets"]()}
NETS |= {"stencils": with_stencils, "calibrated": calibrated}


@pytest.mark.parametrize("name", NETS)
def test_a_store_holds_every_point_by_the_weights_alone(name: str, store: drowsy.Store) -> None:
    net, images, labels = NETS[name](), MADE["images"](), MADE["labels"]()
    settings = [(0,), (4,)] if len(net.layers) == 1 else MADE["SETTINGS"]
    measurer = drowsy.Measurer(net, images, labels, seeds=(0, 1), store=store)
    weights = fingerprint_state(net.state_dict())
    held = [
        store.results(replace(context, network=weights)) for context in measurer.contexts().values()
    ]
    assert all(results.keys() == set(settings) for results in held)
    # What else those networks computed is not known, so that nothing is taken from there.
    assert not measurer.known()
    fresh = measurer.counts(settings)
    for setting in settings:
        for was, now in zip((each[setting] for each in held), fresh[setting], strict=True):
            assert was.divergence == pytest.approx(now.divergence, rel=1e-3, abs=1e-5)
            assert replace(was, divergence=0) == replace(now, divergence=0)
    # Beside the rows of then, in the same file.
    again = drowsy.Measurer(net, images, labels, seeds=(0, 1), store=store, engine=Nothing())
    assert again.counts(settings) == fresh


def test_a_store_that_lacks_a_point_is_asked_for_it(store: drowsy.Store) -> None:
    net = NETS["bernoulli"]()
    lacking = drowsy.Measurer(
        net, MADE["images"](), MADE["labels"](), seeds=(0, 1), store=store, engine=Nothing()
    )
    with pytest.raises(AssertionError, match=r"was asked for .*\(1, 0, 0\)"):
        lacking.counts([(1, 0, 0)])


def test_a_frontier() -> None:
    frontier = drowsy.Frontier.load(BEFORE / "frontier.json")
    assert (frontier.objective, frontier.cost, len(frontier)) == ("agreement", "macs", 6)
    assert frontier.reference == frontier.points[0]
    assert frontier.reference.agreement == 1
    net = drowsy.convert(MADE["model"](), source="stratified")
    settings = [tuple(point.schedule.thresholds().values()) for point in frontier.points]
    measured = drowsy.Measurer(net, MADE["images"](), MADE["labels"](), seeds=(0, 1))
    fresh = measured.measure(settings)
    # Its savings were of the convolutions alone; now the linear layer counts too.
    convolutions = 64 * (4 * 27 + 4 * 36 + 4 * 4)
    part = convolutions / (convolutions + 256 * 5)
    for setting, point in zip(settings, frontier.points, strict=True):
        assert point.divergence == pytest.approx(fresh[setting].divergence, rel=1e-3, abs=1e-5)
        assert fresh[setting].saving == pytest.approx(part * point.saving)
        alike = {"divergence": 0, "spread": None, "saving": 0}
        assert replace(point, **alike) == replace(fresh[setting], **alike)


def test_a_schedule(tmp_path: Path) -> None:
    schedule = drowsy.Schedule.load(BEFORE / "schedule.json")
    net = NETS["aligned"]()
    net.set({"0": Fraction(1, 2), "5": Fraction(1, 4)})
    assert schedule == net.schedule
    assert schedule.layers["3"].phase == 1
    schedule.save(tmp_path / "s.json")
    assert (tmp_path / "s.json").read_bytes() == (BEFORE / "schedule.json").read_bytes()


def assert_same_tensors(path: Path, other: Path) -> None:
    load_file = pytest.importorskip("safetensors.torch").load_file
    one, two = load_file(path), load_file(other)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_calibration(tmp_path: Path) -> None:
    net = calibrated()
    found, setting = drowsy.Calibration.load(BEFORE / "calibration.safetensors"), (4, 4, 4)
    assert (found.k, found.layers) == (8, ("0", "3", "5"))
    assert list(found.points) == [setting]
    assert found.sleeps == {setting: tuple(STRATIFIED.format(stream) for stream in range(3))}
    assert net.corrected.keys() == {"3", "5"}
    net.calibration = None
    again = drowsy.calibrate(net, MADE["images"](), reconstruct=True)
    assert again.shares == found.shares
    assert again.norms == pytest.approx(found.norms)
    for name, each in found.points[setting].items():
        for part, tensor in vars(each).items():
            now: Tensor = getattr(again.points[setting][name], part)
            torch.testing.assert_close(tensor, now, rtol=1e-3, atol=1e-4)
    found.save(tmp_path / "c.safetensors")
    assert_same_tensors(tmp_path / "c.safetensors", BEFORE / "calibration.safetensors")


def test_a_file_of_stencils(tmp_path: Path) -> None:
    net = with_stencils()
    table = net.layers["0"].stencil
    drowsy.save_stencils(net, tmp_path / "s.safetensors")
    assert_same_tensors(tmp_path / "s.safetensors", BEFORE / "stencils.safetensors")
    drowsy.calibrate_stencils(net, MADE["images"]())
    torch.testing.assert_close(net.layers["0"].stencil, table, rtol=1e-3, atol=1e-4)


def test_a_pickled_network_is_refused() -> None:
    refused = r"drowsy\.net\._unpickle: is of an earlier version .* convert the model again"
    pickled = (BEFORE / "network.pickle").read_bytes()
    with pytest.raises(ImportError, match=refused):
        pickle.loads(pickled)
    with pytest.raises(ImportError, match=r"code finds DrowsyNet in drowsy"):
        from drowsy.net import DrowsyNet  # noqa: F401
    # One of today's is read.
    net = drowsy.convert(MADE["small_model"]())
    assert list(pickle.loads(pickle.dumps(net)).layers) == list(net.layers)
