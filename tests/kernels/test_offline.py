"""The core set of kernels compiles for GPUs that are not here, and to the right instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import drowsy_kernels as kernels
import pytest
from drowsy_kernels.offline import ARCHITECTURES, compile_launch

ROOT = Path(__file__).resolve().parents[2]


def run_python(*arguments: str) -> None:
    """Run Python at the root of the checkout, in a process whose kernels are not interpreted."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of the core report."""
    path = tmp_path_factory.mktemp("report") / "core.json"
    run_python("-m", "bench.compile_report", "--core", "--json", str(path))
    return json.loads(path.read_text())["rows"]


def test_every_architecture_without_spills(rows: list[dict[str, Any]]) -> None:
    assert {row["arch"] for row in rows} == set(ARCHITECTURES)
    assert not [row for row in rows if row["spill_bytes"]]


@pytest.mark.parametrize(("arch", "instruction"), [(80, "mma"), (90, "wgmma"), (100, "tcgen05")])
def test_matrix_instructions(rows: list[dict[str, Any]], arch: int, instruction: str) -> None:
    matrix = [
        row
        for row in rows
        if row["arch"] == arch
        and row["kernel"].endswith(("conv2d_kernel", "conv2d_rows_kernel"))
        and "ieee" not in row["case"]
    ]
    assert {name for row in matrix for name in ("fp16", "bf16", "tf32") if name in row["case"]} == {
        "fp16",
        "bf16",
        "tf32",
    }
    assert all(row[instruction] > 0 for row in matrix)


def test_the_oldest_triton_spills_nothing(rows: list[dict[str, Any]]) -> None:
    """By the record that ``python -m bench.compile_report --core --json`` wrote under 3.6."""
    record = json.loads((ROOT / "bench/results/offline/triton-3.6/core.json").read_text())
    assert record["versions"]["triton"].startswith("3.6.")
    recorded = record["rows"]
    assert {(row["case"], row["arch"]) for row in recorded} == {
        (row["case"], row["arch"]) for row in rows
    }, "the record is of other cases: write it anew"
    assert not [row for row in recorded if row["spill_bytes"]]


def main_loops(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of 128 x 128 x 64 tiles, where there is a loop: few K steps may be unrolled."""
    return [
        row
        for row in rows
        if row["case"].startswith("conv2d fp16 128x128x64") and "compact" not in row["case"]
    ]


def test_main_loop_loads_16_bytes_at_a_time(rows: list[dict[str, Any]]) -> None:
    # A K step is 128 x 64 and 64 x 128 halves: 8 vectors of 16 bytes for each of 256 threads, and
    # the entries of a table, a word a row.
    wide = main_loops(rows)
    assert {row["step_loads"] for row in wide} == {8, 9}
    assert {row["case"].split()[-1] for row in wide if row["step_loads"] == 9} == {"table"}


def test_the_main_loop_is_short(rows: list[dict[str, Any]]) -> None:
    """What the first kernel, with masks and offsets made anew in each step, took on sm_90: 148."""
    wide = main_loops(rows)
    lengths = {
        row["case"].split()[-1]: row["step_instructions"] for row in wide if row["arch"] == 90
    }
    assert lengths["128x128x64-w8-s3"] <= 110
    assert lengths["1x1"] <= 80
    assert max(lengths.values()) <= 135


@pytest.mark.parametrize("way", ["", "dense", "1x1", "tiles"])
def test_boxes_load_by_descriptor_alone(rows: list[dict[str, Any]], way: str) -> None:
    """Two copies a K step, one for each operand; no address and no mask in any thread."""
    case = f"conv2d_box bf16 256x128x64-w8-s4 {way}".rstrip()
    (row,) = [row for row in rows if row["case"] == case and row["arch"] == 90]
    assert (row["loop_global_loads"], row["loop_products"]) == (2, 4)
    assert row["step_instructions"] <= 130


def test_persistent_grids_are_resident(rows: list[dict[str, Any]]) -> None:
    """Of programs that share the tiles, none waits for another to end before it begins."""
    multiprocessors = 132
    persistent = [
        row
        for row in rows
        if row["arch"] == 90
        and row["kernel"] in ("awake_conv2d_kernel", "conv2d_rows_kernel", "_conv2d_box_kernel")
    ]
    assert len(persistent) > 10
    assert not [
        (row["case"], row["programs"] / multiprocessors, row["resident"])
        for row in persistent
        if row["programs"] > multiprocessors * row["resident"]
    ]


def test_every_branch_compiles() -> None:
    run_python(str(Path(__file__).with_name("compile_variants.py")))


@pytest.mark.parametrize("check", ["spills", "stores"])
def test_figures_of_the_report(check: str) -> None:
    """They show what is known of a kernel."""
    run_python(str(Path(__file__).with_name("compiled_figures.py")), check)


def test_launches_want_what_is_compiled_ahead() -> None:
    """One kernel serves every layer that it can, and it is there before it is wanted."""
    run_python("-m", "tests.kernels.launch_variants", "views", "networks", "slices", "jobs")


@pytest.mark.skipif(not kernels.interpreted(), reason="kernels are compiled in this process")
def test_interpreted_kernels_are_refused() -> None:
    launch = kernels.Launch(None, (1,), {}, num_warps=4, num_stages=1)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compile_launch(launch, 90)
