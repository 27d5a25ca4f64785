"""Sleep maps: which neurons sleep in an inference, drawn exactly the same on every backend.

A *source* draws a **level map**, not a bitmap: an integer in ``0 .. k-1`` for every grain cell. A
cell sleeps at rate ``j/k`` when its level is below ``j``. Levels do not depend on the rate, so the
maps of one layer are nested (a higher rate only adds sleepers), a change of rate never redraws
anything, and a study of ``k`` rates draws once.

Everything random comes from Philox-4x32-10 evaluated at a counter made of (cell, image, layer
stream). Nothing depends on the order of evaluation, so eager and Triton, CPU and GPU, and any split
into batches agree bit for bit.

Shapes: a convolution's output is ``N x C x OH x OW`` with positions ``p = y * OW + x``. A grain
groups neurons into cells of ``cell_p`` positions by ``cell_c`` channels; a level map is a uint8
tensor ``[N, PC, CC]`` with ``PC = ceil(OH * OW / cell_p)`` and ``CC = ceil(C / cell_c)``.

Reading order: ``grain`` and ``source`` say what is drawn and by whom; ``independent``, ``lattice``,
``fovea``, ``bluenoise``, ``detail`` and ``lfsr`` are the sources; ``spec`` is all of a layer's
choice; ``maps`` draws it.
"""

# Sources are listed in the order in which they are imported.
# isort: off
from drowsy.sleep.independent import Bernoulli, Stratified
from drowsy.sleep.lattice import Lattice, Phased, lattice_levels, lattice_phases, lattice_tables
from drowsy.sleep.fovea import Fovea
from drowsy.sleep.bluenoise import BlueNoise
from drowsy.sleep.detail import Detail, detail_grid, detail_map
from drowsy.sleep.lfsr import Lfsr, lfsr_rates
# isort: on

from drowsy.sleep.counters import MASK32, philox
from drowsy.sleep.fills import FILLS, NEIGHBOUR_FILLS, check_fill, scale
from drowsy.sleep.grain import Grain
from drowsy.sleep.maps import asleep, expand_cells, levels, pack_bitmap, unpack_bitmap
from drowsy.sleep.rates import DEFAULT_K, MAX_K, threshold
from drowsy.sleep.source import SOURCES, LayerMap, Source, parse_source, source_text, stored_text
from drowsy.sleep.spec import SleepSpec, simplest

__all__ = [
    "DEFAULT_K",
    "FILLS",
    "MASK32",
    "MAX_K",
    "NEIGHBOUR_FILLS",
    "SOURCES",
    "Bernoulli",
    "BlueNoise",
    "Detail",
    "Fovea",
    "Grain",
    "Lattice",
    "LayerMap",
    "Lfsr",
    "Phased",
    "SleepSpec",
    "Source",
    "Stratified",
    "asleep",
    "check_fill",
    "detail_grid",
    "detail_map",
    "expand_cells",
    "lattice_levels",
    "lattice_phases",
    "lattice_tables",
    "levels",
    "lfsr_rates",
    "pack_bitmap",
    "parse_source",
    "philox",
    "scale",
    "simplest",
    "source_text",
    "stored_text",
    "threshold",
    "unpack_bitmap",
]
