"""A new source is one class: everything else takes it as it takes the built-in ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import drowsy
from drowsy.evaluation.evaluator import Evaluator
from drowsy.knob.schedule import Schedule
from drowsy.network.layer import DrowsyConv2d
from drowsy.sleep import (
    SOURCES,
    LayerMap,
    SleepSpec,
    Source,
    levels,
    parse_source,
    source_text,
    stored_text,
)


@pytest.fixture(scope="module")
def stripes() -> Iterator[type[Source]]:
    """The source ``stripes``: columns fall asleep one by one, anew from image to image."""

    @dataclass(frozen=True)
    class Stripes(Source):
        name: ClassVar[str] = "stripes"
        revision: ClassVar[int] = 3
        spreads: ClassVar[bool] = True
        single_positions: ClassVar[bool] = True
        step: int = 1
        offsets: tuple[int, ...] = (0,)

        def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
            assert layer.size is not None
            column = torch.arange(layer.cells[0], device=images.device) % layer.size[1]
            start = images * self.step + seed + layer.stream + self.offsets[0]
            level = (column + start[:, None] + layer.phase) % layer.k
            return level[..., None].expand(-1, -1, layer.cells[1])

    yield Stripes
    del SOURCES["stripes"]


def network() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    return model.eval()


def test_text_forms_know_a_new_source(stripes: type[Source]) -> None:
    source = parse_source("stripes:step=2,offsets=3.4")
    assert source == stripes(step=2, offsets=(3, 4))  # type: ignore[call-arg]
    assert source_text(source) == "stripes:step=2,offsets=3.4"
    assert stored_text(source) == "stripes:step=2,offsets=3.4, revision 3"
    spec = SleepSpec("stripes:offsets=7", "position:2", 5, 1, 2)
    assert SleepSpec.parse(str(spec)) == spec
    with pytest.raises(ValueError, match=r"source: got 'dice', allowed: .*lfsr, stripes"):
        parse_source("dice")
    with pytest.raises(ValueError, match="got channel with source stripes, allowed"):
        SleepSpec("stripes", "channel")


def test_a_network_runs_with_a_new_source(stripes: type[Source], tmp_path: Path) -> None:
    model, x = network(), torch.randn(6, 3, 8, 16)
    net = drowsy.convert(model, source="stripes:step=3", seed=5)
    assert {layer.fill for layer in net.layers.values()} == {"interpolate"}  # it spreads sleepers
    net.set(0.5, fill="zero")
    net.control.reseed(2, image=4)
    with torch.inference_mode():
        logits = net(x)
        y = x
        for stream, part in enumerate((model[:2], model[2:4])):
            y = part(y)
            image = torch.arange(4, 10)[:, None]
            asleep = (torch.arange(16) + image * 3 + 2 + stream) % 8 < 4
            y = y.masked_fill(asleep[:, None, None], 0)
        torch.testing.assert_close(logits, model[4:](y))

    net.schedule.save(tmp_path / "schedule.json")
    again = drowsy.convert(model, source="stripes:step=3", seed=5)
    again.set(Schedule.load(tmp_path / "schedule.json"))
    again.control.reseed(2, image=4)
    with torch.inference_mode():
        assert torch.equal(again(x), logits)

    evaluator = Evaluator(net, x, torch.zeros(6, dtype=torch.int64), seed=2, first=4, batch=4)
    counts = evaluator.evaluate((4, 4))
    awake = model(x)
    assert counts.images == 6
    assert counts.top1 == int((logits.argmax(1) == 0).sum())
    assert counts.agree == int((logits.argmax(1) == awake.argmax(1)).sum())


def test_a_layer_of_a_new_source_skips_rows(stripes: type[Source]) -> None:
    sleep = SleepSpec("stripes", "position")
    layer = DrowsyConv2d(16, 24, 3, padding=1, sleep=sleep, rate=0.75)
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        y, awake = layer(x), layer.awake(x)
    asleep = (levels(sleep, (2, 24, 8, 8), torch.tensor([0, 0])) < 6).view(2, 1, 8, 8)
    torch.testing.assert_close(y, awake.masked_fill(asleep, 0))


def test_a_name_is_given_once(stripes: type[Source]) -> None:
    for name, message in (("stripes", "'stripes' is the name of"), ("a;b", "got the name 'a;b'")):
        with pytest.raises(ValueError, match=f"source: {message}"):
            type("Other", (Source,), {"name": name})
    assert SOURCES["stripes"] is stripes
    assert "a;b" not in SOURCES


def test_a_source_must_draw() -> None:
    class Base(Source):  # no name: a base of sources
        pass

    with pytest.raises(TypeError, match="abstract"):
        Base()
    assert Base not in SOURCES.values()


def test_a_source_may_be_defined_anew_and_must_say_how_it_draws() -> None:
    def define(level: int = 0) -> type[Source]:
        @dataclass(frozen=True, slots=True)
        class Again(Source):
            name: ClassVar[str] = "again"

            def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
                shape = (len(images), *layer.cells)
                return torch.full(shape, level, dtype=torch.uint8)

        return Again

    x = torch.ones(1, 1, 4, 4)
    try:
        for level in (7, 0):
            again = define(level)
            assert SOURCES["again"] is again
            layer = DrowsyConv2d(1, 1, 1, sleep=SleepSpec("again"), rate=0.5)
            with torch.inference_mode():
                assert (layer(x) == 0).all() == (level == 0)  # the operator too draws as it says
    finally:
        SOURCES.pop("again", None)
    with pytest.raises(TypeError, match="source 'still': has no draw"):
        type("Still", (Source,), {"name": "still"})
    assert "still" not in SOURCES


DRAWS = {
    "one image": (lambda n, p, c: torch.zeros(1, p, c, dtype=torch.uint8), "drew (1, 16, 2) on"),
    "no channels": (lambda n, p, c: torch.zeros(n, p, 1, dtype=torch.uint8), "drew (3, 16, 1) on"),
    "a map of neurons": (
        lambda n, p, c: torch.zeros(n, c, 4, 4, dtype=torch.uint8),
        "drew (3, 2, 4, 4) on cpu, allowed: [N, PC, CC], here (3, 16, 2) on cpu",
    ),
    "floats": (lambda n, p, c: torch.zeros(n, p, c), "drew torch.float32, allowed: a tensor of"),
    "bits": (lambda n, p, c: torch.zeros(n, p, c) == 0, "drew torch.bool, allowed: a tensor of"),
    "a list": (lambda n, p, c: [0] * n, "drew list, allowed: a tensor of integers"),
    "k": (lambda n, p, c: torch.full((n, p, c), 8), "drew levels from 8 to 8, allowed: 0 to 7"),
    "256": (lambda n, p, c: torch.full((n, p, c), 256), "drew levels from 256 to 256, allowed"),
    "negative": (
        lambda n, p, c: torch.arange(n * p * c).view(n, p, c) % 8 - 1,
        "drew levels from -1 to 6, allowed: 0 to 7",
    ),
    "elsewhere": (
        lambda n, p, c: torch.zeros(n, p, c, dtype=torch.uint8, device="meta"),
        "drew (3, 16, 2) on meta, allowed: [N, PC, CC], here (3, 16, 2) on cpu",
    ),
}


@pytest.mark.parametrize(("drawn", "told"), DRAWS.values(), ids=DRAWS)
def test_what_a_source_draws_must_be_levels(drawn: Any, told: str) -> None:
    """And not what happens to broadcast to them, or wraps around to one."""

    @dataclass(frozen=True)
    class Wrong(Source):
        name: ClassVar[str] = "wrong"

        def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
            return drawn(len(images), *layer.cells)

    try:
        layer = DrowsyConv2d(1, 2, 1, sleep=SleepSpec("wrong"), rate=0.5)
        error = (TypeError, ValueError)
        with torch.inference_mode(), pytest.raises(error, match=re.escape(f"source wrong: {told}")):
            layer(torch.ones(3, 1, 4, 4))
    finally:
        SOURCES.pop("wrong")


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str
)
@pytest.mark.parametrize("k", [2, 128, 256])
def test_levels_may_be_integers_of_any_size(dtype: torch.dtype, k: int) -> None:
    @dataclass(frozen=True)
    class Ramp(Source):
        name: ClassVar[str] = "ramp"

        def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
            most = min(layer.k, torch.iinfo(dtype).max + 1)
            row = torch.arange(layer.cells[0]) % most
            return row.to(dtype)[None, :, None].expand(len(images), -1, layer.cells[1])

    try:
        drawn = levels(SleepSpec("ramp", k=k), (2, 3, 16, 16), torch.tensor([0, 0]))
        most = min(k, torch.iinfo(dtype).max + 1)
        assert torch.equal(drawn[1, :, 2].long(), torch.arange(256) % most)
    finally:
        SOURCES.pop("ramp")


def test_options_are_integers_and_tuples_of_integers_with_defaults() -> None:
    @dataclass(frozen=True)
    class Odd(Source):
        name: ClassVar[str] = "odd"
        w: int = 0
        t: tuple[int, ...] = (3,)

        def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
            raise NotImplementedError

    try:
        for options in ({"t": ()}, {"w": -1}, {"t": (-1, 2)}, {"w": -3, "t": (0,)}, {}):
            spec = SleepSpec(Odd(**options), "position", 5, 3, 1)
            assert SleepSpec.parse(str(spec)) == spec
        assert source_text(Odd(-1, ())) == "odd:w=-1,t="
        for text in (
            "w=1.2",
            "w=",
            "w=--1",
            "w",
            "t=1.",
            "t=.1",
            "w=1,w=2",
            "w=\u0663",
        ):
            with pytest.raises(ValueError, match=r"source odd: got option .*, allowed: w, t, each"):
                parse_source(f"odd:{text}")
    finally:
        SOURCES.pop("odd")
