"""Text forms of grains, sources and specifications."""

from __future__ import annotations

import pytest
from drawing import MAPS

from drowsy.sleep import (
    Bernoulli,
    BlueNoise,
    Fovea,
    Grain,
    Lattice,
    Lfsr,
    SleepSpec,
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


@pytest.mark.parametrize(
    "text",
    [
        *("", "bernoulli", "bernoulli;neuron", "bernoulli;neuron;8", "bernoulli;neuron;8;0;0;0"),
        *("bernoulli;neuron;8;-1", "bernoulli;neuron;8;x", "bernoulli;neuron;8;1.5", ";;;"),
        "bernoulli;neuron;8;\u0663",
    ],
)
def test_a_text_of_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"sleep: got '.*', allowed: SOURCE;GRAIN;K;STREAM"):
        SleepSpec.parse(text)
