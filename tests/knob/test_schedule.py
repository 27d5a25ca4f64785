"""``Schedule``: a setting as a value, and as a file that refuses what it does not understand."""

from __future__ import annotations

import json
import pickle
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from drowsy._optional import require
from drowsy.files.atomic import replacing, write_json, write_text
from drowsy.knob.schedule import LayerSetting, Schedule


@pytest.fixture
def schedule() -> Schedule:
    return Schedule(
        8,
        {
            "conv1": LayerSetting(Fraction(3, 8), "neuron", "rescale"),
            "conv2": LayerSetting(Fraction(0), "tile:64x32", "zero"),
        },
    )


def altered(schedule: Schedule, field: str, value: Any) -> dict[str, Any]:
    """The JSON form with one field of the file, or of layer conv1, replaced."""
    data = schedule.to_dict()
    (data["layers"]["conv1"] if field in ("rate", "grain", "fill") else data)[field] = value
    return data


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.375, "3/8", "0.375", Fraction(3, 8), 0.375 + 5e-10])
def test_a_rate_may_be_given_in_any_form_and_becomes_exact(rate: Any):
    layer = Schedule(8, {"a": LayerSetting(rate)}).layers["a"]
    assert layer.rate == Fraction(3, 8)
    assert isinstance(layer.rate, Fraction)


def test_rate_zero_may_be_an_int():
    assert Schedule(8, {"a": LayerSetting(0)}).thresholds() == {"a": 0}


def test_thresholds_are_counted_in_kths():
    layers = {"a": LayerSetting("1/4"), "b": LayerSetting("3/16")}
    assert Schedule(16, layers).thresholds() == {"a": 4, "b": 3}


def test_equal_schedules_are_one_key_whatever_the_order_of_layers(schedule: Schedule):
    backwards = Schedule(8, dict(reversed(schedule.layers.items())))
    assert backwards == schedule
    assert {schedule: "found"}[backwards] == "found"
    assert schedule != Schedule(16, schedule.layers)


def test_a_schedule_cannot_be_changed(schedule: Schedule):
    with pytest.raises(TypeError):
        schedule.layers["conv1"] = LayerSetting()  # type: ignore[index]
    with pytest.raises(AttributeError):
        schedule.k = 4  # type: ignore[misc]


def test_a_schedule_does_not_follow_the_mapping_it_was_made_from():
    layers = {"a": LayerSetting("1/8")}
    schedule = Schedule(8, layers)
    layers["b"] = LayerSetting()
    assert set(schedule.layers) == {"a"}


def test_a_schedule_survives_pickling(schedule: Schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize("rate", [1, 1.0, "8/8", -0.125, "-1/8", 0.3, "1/9", 0.125 + 1e-8])
def test_a_rate_that_k_does_not_have_is_refused(rate: Any):
    with pytest.raises(ValueError, match=r"layer a: rate: got .*multiples of 1/8 from 0 to 7/8"):
        Schedule(8, {"a": LayerSetting(rate)})


@pytest.mark.parametrize("rate", [None, True, "half", "1/0", float("nan"), float("inf"), [1]])
def test_what_is_no_number_is_no_rate(rate: Any):
    with pytest.raises(ValueError, match=r"rate: got .*allowed: a number in \[0, 1\)"):
        LayerSetting(rate)


@pytest.mark.parametrize("k", [1, 0, 257, 8.0, True, "8"])
def test_k_is_an_integer_from_2_to_256(k: Any):
    with pytest.raises(ValueError, match=r"k: got .*allowed: an integer from 2 to 256"):
        Schedule(k, {})


def test_layers_are_named_settings():
    with pytest.raises(TypeError, match=r"layer a: got 0\.5, allowed: a LayerSetting"):
        Schedule(8, {"a": 0.5})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="layers: got the name 3, allowed: text"):
        Schedule(8, {3: LayerSetting()})  # type: ignore[dict-item]


# --- files ---------------------------------------------------------------------------------------


def test_the_file_is_as_documented(schedule: Schedule):
    assert json.loads(schedule.to_json()) == {
        "format": "drowsy.schedule",
        "version": 1,
        "k": 8,
        "layers": {
            "conv1": {"rate": "3/8", "grain": "neuron", "fill": "rescale"},
            "conv2": {"rate": "0/8", "grain": "tile:64x32", "fill": "zero"},
        },
    }


@pytest.mark.parametrize(
    "grain",
    ["neuron", "position", "position:64", "channel", "channel:16", "tile:64x32", "tile:1x1"],
)
@pytest.mark.parametrize("k", [2, 7, 8, 256])
def test_what_was_saved_is_loaded(tmp_path: Path, k: int, grain: str):
    layers = {
        "a": LayerSetting(Fraction(k - 1, k), grain, "rescale"),
        "β.0": LayerSetting(fill="interpolate"),
        "c": LayerSetting(grain="position:8", fill="nearest", stream=2**32 - 1, phase=3),
    }
    schedule = Schedule(k, layers)
    schedule.save(tmp_path / "s.json")
    assert Schedule.load(tmp_path / "s.json") == schedule
    assert list(Schedule.load(tmp_path / "s.json").layers) == ["a", "β.0", "c"]
    assert Schedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "drowsy.frontier", "format: got 'drowsy.frontier', allowed: 'drowsy.schedule'"),
        ("version", 2, "version: got 2, allowed: 1"),
        ("version", True, "version: got True, allowed: 1"),
        ("k", "8", "k: got '8', allowed: an integer from 2 to 256"),
        ("layers", [], r"layers: got \[\], allowed: an object"),
        ("comment", "hi", "unknown comment; allowed: format, k, layers, version"),
        ("rate", "9/8", "layer conv1: rate: got 9/8, allowed: multiples of 1/8"),
        ("rate", "half", "layers: conv1: rate: got 'half', allowed: a number"),
        ("rate", None, "layers: conv1: rate: got None, allowed: a number"),
        *[
            ("rate", text, f"layers: conv1: rate: got '{text}', allowed: a number")
            for text in ("1e100000000", "1E-100000000", "1e1_000_000", "3e99999")
        ],
        ("rate", 10**400, "layer conv1: rate: got 10+, allowed: multiples of 1/8"),
        ("rate", -(10**400), "layer conv1: rate: got -10+, allowed: multiples of 1/8"),
        ("rate", "1e999", "layer conv1: rate: got 10+, allowed: multiples of 1/8"),
        ("k", 10**400, "k: got 10+, allowed: an integer from 2 to 256"),
        ("grain", "row", "layers: conv1: grain: got 'row', allowed: neuron, position"),
        ("grain", "tile:0x4", "layers: conv1: grain: got 'tile:0x4', allowed: neuron, position"),
        ("grain", 3, "layers: conv1: grain: got 3, allowed: neuron, position"),
        ("fill", "doze", "layers: conv1: fill: got 'doze', allowed: zero, rescale"),
        ("fill", ["zero"], r"layers: conv1: fill: got \['zero'\], allowed: zero, rescale"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_field_is_named_with_its_file(
    tmp_path: Path, schedule: Schedule, field: str, value: Any, message: str
):
    path = tmp_path / "bad.json"
    write_json(path, altered(schedule, field, value))
    with pytest.raises(ValueError, match=rf"bad\.json: {message}"):
        Schedule.load(path)


@pytest.mark.parametrize("field", ["k", "layers"])
def test_a_missing_field_is_named(schedule: Schedule, field: str):
    data = schedule.to_dict()
    del data[field]
    with pytest.raises(ValueError, match=f"schedule: missing {field}"):
        Schedule.from_dict(data)


def test_a_missing_or_unknown_field_of_a_layer_is_named(schedule: Schedule):
    data = schedule.to_dict()
    data["layers"]["conv1"] = {"rate": "1/8", "grain": "neuron"}
    with pytest.raises(ValueError, match="schedule: layers: conv1: missing fill"):
        Schedule.from_dict(data)
    data["layers"]["conv1"] = {"rate": "1/8", "grain": "neuron", "fill": "zero", "seed": 1}
    with pytest.raises(ValueError, match="schedule: layers: conv1: unknown seed"):
        Schedule.from_dict(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"layers": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ('{"k": 1' + "0" * 5000 + "}", "got an integer of 5001 digits, allowed: as many as 4300"),
        ('{"k": -1' + "0" * 5000 + "}", "got an integer of 5002 digits, allowed"),
    ],
    ids=["list", "objects", "integer", "negative"],
)
def test_json_that_python_cannot_read_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"odd\.json: {message}"):
        Schedule.load(path)


def test_a_file_of_many_names_is_read_at_once(tmp_path: Path):
    path = tmp_path / "many.json"
    names = [str(number) for number in range(200_000)]
    path.write_text(json.dumps(dict.fromkeys(names)).replace('"199999"', '"7"'))
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"many\.json: 7: given more than once"):
        Schedule.load(path)
    assert time.perf_counter() - start < 10, "seconds; a search for each of the names takes minutes"


def test_a_layer_given_twice_is_refused(schedule: Schedule):
    text = schedule.to_json().replace("conv2", "conv1")
    with pytest.raises(ValueError, match="conv1: given more than once"):
        Schedule.from_json(text)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, schedule: Schedule):
    text = schedule.to_json().rstrip()
    path = tmp_path / "cut.json"
    for length in range(0, len(text), 7):
        path.write_text(text[:length])
        with pytest.raises(ValueError, match=r"cut\.json: not valid JSON .*truncated"):
            Schedule.load(path)


def test_what_is_no_schedule_file_is_refused(tmp_path: Path):
    binary, array = tmp_path / "image.json", tmp_path / "array.json"
    binary.write_bytes(b"\x89PNG\xff\xfe")
    array.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"image\.json: not valid JSON"):
        Schedule.load(binary)
    with pytest.raises(ValueError, match=r"array\.json: got list, allowed: an object"):
        Schedule.load(array)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        Schedule.load(tmp_path / "none.json")


# --- files that are whole or not there, and packages that may be missing -------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "result.txt"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the new")
            raise RuntimeError("out of paper")

    with pytest.raises(RuntimeError, match="out of paper"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_until_the_write_is_done_readers_see_the_old_file(tmp_path: Path):
    path = tmp_path / "folder" / "result.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_json_holds_no_nan_and_a_refused_one_leaves_no_file(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_told_with_the_line_that_installs_it():
    with pytest.raises(ImportError, match=r'no_such_package.*pip install -e "\.\[plot\]"'):
        require("no_such_package", "plot")
    assert require("json", "plot") is json
