"""A knob's file is data from a stranger: what it holds is refused at load, or works as it says."""

from __future__ import annotations

import copy
import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_knob import FULL, Net, contents_of
from torch import Tensor, nn

from drowsy.files.tensors import read_described, write_tensors
from drowsy.tuning.knob import Knob, load
from drowsy.tuning.knobfile import _checksum

Tensors = dict[str, Tensor]
Change = Callable[[Tensors, Any], object]
# Of the run of mutations below; it stops at whichever comes first.
_MUTATIONS, _SECONDS = 400, 8.0


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(1)
    return Net().eval()


@pytest.fixture(scope="module")
def whole(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensors, Any]:
    """Tensors and header of a file as they should be."""
    path = tmp_path_factory.mktemp("knob") / "net.drowsy"
    torch.manual_seed(0)
    Knob(model, contents_of(model)).save(path)
    return read_described(path, "knob")


def written(path: Path, tensors: Tensors, about: Any) -> Path:
    """A file of these, with the checksum that belongs to them."""
    if isinstance(about, dict):
        about = {name: each for name, each in about.items() if name != "checksum"}
        about["checksum"] = _checksum(json.loads(json.dumps(about)), tensors)
    # What the writer would refuse: a stranger's need not.
    path.unlink(missing_ok=True)
    write_tensors(path, tensors, 0)
    text = path.read_bytes()
    size = int.from_bytes(text[:8], "little")
    header = json.loads(text[8 : 8 + size])
    header["__metadata__"] = {"drowsy": json.dumps(about)}
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + text[8 + size :])
    return path


def quiet_load(path: Path, model: nn.Module) -> Knob:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(path, model)


def test_what_is_written_again_is_read(
    model: nn.Module, whole: tuple[Tensors, Any], tmp_path: Path
) -> None:
    knob = quiet_load(written(tmp_path / "a.drowsy", *whole), model)
    assert len(knob.points) == 4


def at(*place: Any, value: Any) -> Change:
    """Change one place of the header."""

    def change(tensors: Tensors, about: Any) -> None:
        for each in place[:-1]:
            about = about[each]
        about[place[-1]] = value

    return change


def points(change: Callable[[list[Any]], object]) -> Change:
    return lambda tensors, about: change(about["points"])


def tensor(change: Callable[[Tensors], object]) -> Change:
    return lambda tensors, about: change(tensors)


LAYERS = ("points", 3, "schedule", "layers")
HOSTILE: dict[str, tuple[Change, str]] = {
    "unknown layer": (
        lambda t, a: a["points"][3]["schedule"]["layers"].update(
            three=a["points"][3]["schedule"]["layers"].pop("two")
        ),
        "point 3: got other layers than the network has .three, two.",
    ),
    "layer left out": (
        lambda t, a: a["points"][3]["schedule"]["layers"].pop("two"),
        "point 3: got other layers",
    ),
    "no stencils": (
        lambda t, a: [t.pop(n) for n in [*t] if n.startswith("stencil/")],
        "point 0: layer one: fill: got .stencil. for a layer without a table",
    ),
    "stencil of no layer": (
        tensor(lambda t: t.update({"stencil/three": t["stencil/one"].clone()})),
        "stencils: got one of three",
    ),
    "stencil of another shape": (
        tensor(lambda t: t.update({"stencil/one": t["stencil/one"][:9]})),
        "layer one: table: got shape",
    ),
    "stencil of integers": (
        tensor(lambda t: t.update({"stencil/one": t["stencil/one"].long()})),
        "layer one: table: got torch.int64",
    ),
    "another k": (at("points", 3, "schedule", "k", value=16), "point 3: .*k = 16.* k = 8"),
    "a recipe's k": (at("recipe", "k", value=3), "k = "),
    "a recipe's k of no number": (at("recipe", "k", value="8"), "recipe: k: got '8'"),
    "a recipe's source": (at("recipe", "source", value="magic"), "recipe: source"),
    "a recipe's grain": (
        at("recipe", "grain", value="channel"),
        "recipe: fill: got .stencil. with grain channel",
    ),
    "a recipe's pattern": (at("recipe", "skip", value=["re:(.+)+x"]), "recipe: skip"),
    "a recipe's parts": (at("recipe", "scaling", value=["a"]), "recipe: scaling"),
    "a recipe's field": (at("recipe", "more", value=1), "recipe: unknown more"),
    "no number": (at("points", 1, "latency_ms", value=math.nan), "points: got nan"),
    "infinity": (at("points", 1, "latency_ms", value=math.inf), "points: got inf"),
    "below zero": (at("points", 1, "latency_ms", value=-1), "latency_ms: got -1"),
    "no time at all": (at("points", 0, "latency_ms", value=0), "point 0: latency_ms: got 0"),
    "not measured": (at("points", 1, "latency_ms", value=None), "latency_ms: got None"),
    "no objective": (at("points", 1, "top1", value=None), "point 1: top1: got None"),
    "a huge number": (
        at("points", 1, "latency_ms", value=10**300),
        "points: got 1000+, allowed: up to",
    ),
    "text for a number": (at("points", 1, "top1", value="1"), "point 1: top1: got '1'"),
    "an objective that is a loss": (at("objective", value="divergence"), "objective: got"),
    "an objective that is a list": (at("objective", value=[]), "objective: got"),
    "a cost that is an object": (at("cost", value={}), "cost: got"),
    "an image of gigabytes": (at("image", value=[3, 30000, 30000]), "image: got"),
    "an image of other channels": (at("image", value=[4, *FULL]), "image: got|view"),
    "a batch without end": (at("batch", value=10**9), "batch: got"),
    "no points": (at("points", value=[]), "points: got 0 of them"),
    "points without end": (points(lambda p: p.extend(p[:1] * 2000)), "points: got 2005 of them"),
    "the same point twice": (points(lambda p: p.append(p[2])), "one setting twice"),
    "nobody awake": (points(lambda p: p.pop(0)), "got none awake"),
    "an interval upside down": (at("points", 1, "interval", value=[1, 0]), "interval: got"),
    "a view of other images": (at("points", 2, "view", "full", value=[99, 99]), "view: got"),
    "levers that are a list": (at("levers", value=[1]), "levers: got"),
    "made of nothing": (at("made", value=None), "made: got"),
    "a correction that is gone": (
        at("calibrations", "own", "settings", 0, value=[1, 1]),
        "point 3: got a setting without its correction",
    ),
    "a correction of other layers": (
        at("calibrations", "own", "layers", value=["one", "three"]),
        "calibration",
    ),
    "a correction of no format": (at("calibrations", "int8", value={}), "calibrations: got 'int8'"),
    "a correction that nobody has": (
        lambda t, a: a["calibrations"].update(float16=a["calibrations"]["own"]),
        "calibrations: got one of float16",
    ),
    "a tensor of no kind": (tensor(lambda t: t.update(more=torch.zeros(1))), "got a tensor 'more'"),
    "a witness that is no number": (
        tensor(lambda t: t["witness/output 0"].fill_(math.nan)),
        "witness output 0: got",
    ),
    "a witness of something else": (
        tensor(lambda t: t["witness/output 0"].add_(1)),
        "another network",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name(
    model: nn.Module, whole: tuple[Tensors, Any], tmp_path: Path, name: str
) -> None:
    tensors = {each: tensor.clone() for each, tensor in whole[0].items()}
    about = copy.deepcopy(whole[1])
    change, message = HOSTILE[name]
    change(tensors, about)
    path = written(tmp_path / "net.drowsy", tensors, about)
    with pytest.raises(ValueError, match=message) as raised:
        quiet_load(path, model)
    assert str(raised.value).startswith("knob: ")
    assert str(path) in str(raised.value)


class Deep(Net):
    """Takes no image of a pixel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.nn.functional.max_pool2d(x, 8))


def test_a_view_that_the_network_does_not_take_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Deep().eval()
    torch.manual_seed(0)
    contents = contents_of(model)
    path = tmp_path / "net.drowsy"
    Knob(model, contents).save(path)
    tensors, about = read_described(path, "knob")
    about["points"][4]["view"].update(middle=[4, 4], size=[4, 4])
    with pytest.raises(ValueError, match=r"view: got 4 px of the middle 0.17, allowed"):
        quiet_load(written(path, tensors, about), model)


# --- mutations -----------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 255, 2**31, 10**30, 0.5, -0.5, math.nan, math.inf, -math.inf,
    1e300, "", "a", "0", "1/8", "7/8", "9/8", "re:.*", "\u001b[2J", "stencil", "zero", "neuron",
    "channel", "bfloat16", "float32", [], [1], [0, 0], ["a"], {}, {"a": 1}, [[]], "x" * 3000,
)  # fmt: skip


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a value of JSON."""
    if not isinstance(value, (dict, list)):
        return
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*before, key)
        yield from places(each, (*before, key))


def mutate(chance: random.Random, tensors: Tensors, about: Any) -> None:
    """Change the header or a tensor in one of the ways that a file can be wrong."""
    if chance.random() < 0.15:
        name = chance.choice(sorted(tensors))
        one = tensors.pop(name)
        ways: list[Callable[[], Any]] = [
            lambda: None,
            lambda: tensors.update({name + "x": one}),
            lambda: tensors.update({name: one[..., :1]}),
            lambda: tensors.update({name: one.long()}),
            lambda: tensors.update({name: one * math.nan}),
            lambda: tensors.update({name: one.reshape(-1)}),
        ]
        chance.choice(ways)()
        return
    *way, last = chance.choice([p for p in places(about) if p[0] not in ("format", "weights")])
    inside = about
    for each in way:
        inside = inside[each]
    kind = chance.random()
    if kind < 0.7:
        inside[last] = chance.choice(VALUES)
    elif kind < 0.8:
        del inside[last]
    elif isinstance(inside, list):
        inside.insert(chance.randrange(len(inside) + 1), copy.deepcopy(chance.choice(inside)))
        chance.shuffle(inside)
    else:
        inside[chance.choice(["a", "two", "k", "fill", "own"])] = inside.pop(last)


def behaves(knob: Knob, again: Path, model: nn.Module) -> None:
    """Everything that one does with a knob works, and it is what its file says."""
    images = torch.rand(2, 3, *FULL)
    assert str(knob)
    assert "\u001b" not in str(knob)
    assert len(knob.rows()) >= 1
    found = {}
    for n, point in enumerate(knob.contents.points):
        knob.set(point)
        knob.reseed(1)
        found[n] = knob(images)
        assert found[n].shape == (2, 5)
    # In any order.
    for n, point in reversed([*enumerate(knob.contents.points)]):
        knob.set(point)
        knob.reseed(1)
        assert torch.equal(knob(images), found[n])
    knob.save(again)
    assert quiet_load(again, model).contents.points == knob.contents.points


def test_mutated_files_are_refused_or_work(
    model: nn.Module, whole: tuple[Tensors, Any], tmp_path: Path
) -> None:
    chance = random.Random(20_17)
    stop = time.monotonic() + _SECONDS
    tried = refused = worked = 0
    while tried < _MUTATIONS and time.monotonic() < stop:
        tried += 1
        tensors, about = dict(whole[0]), copy.deepcopy(whole[1])
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            mutate(chance, tensors, about)
        path = written(tmp_path / "net.drowsy", tensors, about)
        try:
            knob = quiet_load(path, model)
        except ValueError as error:
            refused += str(path) in str(error)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            behaves(knob, tmp_path / "again.drowsy", model)
        worked += 1
    assert refused + worked == tried
    assert refused > 30
    assert worked  # how many, goes by the seconds
