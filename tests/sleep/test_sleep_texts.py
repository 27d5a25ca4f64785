"""Text forms of grains, sources and specifications."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from drawing import MAPS
from torch import Tensor

from drowsy.sleep import (
    SOURCES,
    Bernoulli,
    BlueNoise,
    Detail,
    Fovea,
    Grain,
    Lattice,
    LayerMap,
    Lfsr,
    SleepSpec,
    Source,
    Stratified,
    parse_source,
    source_text,
)


@pytest.mark.parametrize(
    "text", ["neuron", "position", "position:64", "channel", "channel:64", "tile:16x32"]
)
def test_grain_reads_its_text_back(text: str) -> None:
    assert str(Grain.parse(text)) == text
    assert Grain.parse(Grain.parse(text)) == Grain.parse(text)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Bernoulli(), "bernoulli"),
        (Stratified(), "stratified"),
        (Lattice(), "lattice"),
        (Fovea(), "fovea"),
        (BlueNoise(), "bluenoise"),
        (Detail(), "detail"),
        (Lfsr(), "lfsr"),
        (Lfsr(8, (8, 6, 5, 4)), "lfsr:width=8,taps=8.6.5.4"),
        (Lfsr(engines=2, seeding=(1, 7)), "lfsr:engines=2,seeding=1.7"),
    ],
)
def test_source_reads_its_text_back(source: Bernoulli | Lfsr, text: str) -> None:
    assert source_text(source) == text
    assert parse_source(text) == source
    assert parse_source(source) is source


@pytest.mark.parametrize(("source", "grain"), MAPS)
def test_spec_reads_its_text_back(source: str, grain: str) -> None:
    for spec in (SleepSpec(source, grain, 12, 2**32 - 1), SleepSpec(source, grain, 12, 3, 7)):
        assert SleepSpec.parse(str(spec)) == spec


# --- texts of strangers --------------------------------------------------------------------------


@pytest.fixture
def odd() -> Iterator[type[Source]]:
    """A source whose options may be negative and none."""

    @dataclass(frozen=True)
    class Odd(Source):
        name: ClassVar[str] = "odd"
        w: int = 1
        t: tuple[int, ...] = (1, 2)

        def draw(self, layer: LayerMap, images: Tensor, seed: Tensor) -> Tensor:
            return torch.zeros(len(images), *layer.cells)

    yield Odd
    del SOURCES["odd"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"t": ()}, "odd:t="),
        ({"w": -1}, "odd:w=-1"),
        ({"w": -3, "t": (-1, 0, -2)}, "odd:w=-3,t=-1.0.-2"),
        ({"w": 10**18 - 1, "t": (7,)}, "odd:w=999999999999999999,t=7"),
    ],
)
def test_every_option_is_read_back(odd: type[Source], options: dict[str, Any], text: str) -> None:
    source = odd(**options)
    assert source_text(source) == text
    assert parse_source(text) == source
    spec = SleepSpec(source)
    assert SleepSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "options",
    [
        {"w": 1.5},
        {"w": False},
        {"w": "1,t=3"},
        {"t": [3]},
        {"t": (1.5,)},
        {"w": 10**18},
        {"w": None},
    ],
    ids=str,
)
def test_an_option_that_has_no_text_is_refused(odd: type[Source], options: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"source: got .*Odd\(.*allowed: options that are integers"
    ):
        SleepSpec(odd(**options))


def test_a_registers_width_is_an_integer() -> None:
    with pytest.raises(ValueError, match="source: got Lfsr"):
        SleepSpec(Lfsr(width=8.0, taps=(8, 6, 5, 4)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lfsr:width=8.9", r"source lfsr: got option 'width=8\.9', allowed: width, taps"),
        ("lfsr:width=8,width=9", "source lfsr: got option 'width=9', .*each once"),
        ("lfsr:width", "source lfsr: got option 'width', allowed"),
        ("lfsr:taps", "source lfsr: got option 'taps', allowed"),
        ("lfsr:width=\uff18", "source lfsr: got option 'width=\uff18', allowed"),
        ("lfsr:width=" + "9" * 5000, r"source lfsr: got option 'width=9+\.\.\.9+', allowed"),
        ("lfsr:width=1_0", "source lfsr: got option 'width=1_0', allowed"),
        ("lattice:\x1b[2J=1", r"source lattice: got option '\\x1b\[2J=1', allowed: none"),
        ("dice\n", r"source: got 'dice\\n', allowed: bernoulli"),
    ],
)
def test_a_source_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_source(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bernoulli",
        "bernoulli;neuron",
        "bernoulli;neuron;8",
        "bernoulli;neuron;8;0;0;0",
        "bernoulli;neuron;8;0.5",
        "bernoulli;neuron;8;-1",
        "bernoulli;neuron; 8;0",
        "bernoulli;neuron;8;1_0",
        "bernoulli;neuron;8;\uff11",
        "bernoulli;neuron;8;" + "9" * 5000,
    ],
    ids=lambda text: text[:30],
)
def test_a_specification_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"sleep: got '.*', allowed: SOURCE;GRAIN;K;STREAM or "):
        SleepSpec.parse(text)


@pytest.mark.parametrize(
    "text", ["tile:9999999999x1", "tile:1x" + "9" * 5000, "channel:\uff11", "channel:01"]
)
def test_a_grain_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"grain: got '.*', allowed: neuron, position") as told:
        Grain.parse(text)
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    "sizes", [(1.5, 1), (1, True), (1, "2"), (-1, 1), (10**9, 1), (math.nan, 1)], ids=str
)
def test_sizes_of_cells_are_integers(sizes: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"grain: got kind='tile', .*with positive G, M, N"):
        Grain("tile", *sizes)


@pytest.mark.parametrize("name", ["stream", "phase"])
@pytest.mark.parametrize("number", [1.5, 2.0, True, "1", None, -1, 2**32, 10**400])
def test_streams_and_phases_are_integers(name: str, number: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name}: got .*, allowed: 0 to 4294967295, an integer"):
        SleepSpec(**{name: number})
