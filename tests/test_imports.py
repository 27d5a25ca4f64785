"""The house's rule: a room imports only from rooms to its left, never from one of its own group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.imports import circles, floors, imported, imports, modules, room

CHECKOUT = Path(__file__).resolve().parents[1]
# Rooms from the ground up; those of one group do not know each other.
GROUPS = (
    {"_distribution", "net"},
    {"_optional"},
    {"files"},
    {"sleep", "images", "sensors"},
    {"neuron"},
    {"knob", "backends", "models"},
    {"network"},
    {"graph", "energy", "governor"},
    {"evaluation", "deployment"},
    {"searches", "correction", "video"},
    {"tuning"},
    {"study", "comparison", "reporting"},
    {"live"},
    {"cli", "__init__"},
    {"__main__"},
)
LEVEL = {name: level for level, group in enumerate(GROUPS) for name in group}
# Only these reach through the wall to the kernels.
BEHIND_THE_WALL = ("drowsy.backends.triton", "drowsy.deployment", "drowsy.graph.inspection")


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return imports(CHECKOUT)


def test_rooms_import_only_from_rooms_to_their_left(graph: dict[str, set[str]]) -> None:
    assert {room(module) for module in graph} <= LEVEL.keys()
    against = [
        f"{module} -> {other}"
        for module, others in graph.items()
        for other in others
        if room(module) != room(other) and LEVEL[room(other)] >= LEVEL[room(module)]
    ]
    assert not against


def test_nothing_goes_in_circles(graph: dict[str, set[str]]) -> None:
    assert circles(graph) == []


def test_no_file_is_long() -> None:
    lines = {name: path.read_text().count("\n") for name, path in modules(CHECKOUT).items()}
    assert {name: count for name, count in lines.items() if count > 500} == {}


def test_only_three_rooms_know_the_kernels() -> None:
    knowing = {
        name
        for name, path in modules(CHECKOUT).items()
        if any(source.split(".")[0] == "drowsy_kernels" for source, _ in imported(path))
    }
    assert {name for name in knowing if not name.startswith(BEHIND_THE_WALL)} == set()
    kernels = list((CHECKOUT / "kernels").rglob("*.py"))
    assert kernels
    for path in kernels:
        assert not any(source.split(".")[0] == "drowsy" for source, _ in imported(path)), path


def test_circles_and_floors_are_found() -> None:
    ring = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(ring) == [{"b", "c"}]
    assert floors(ring) == {"a": 2, "b": 1, "c": 1, "d": 3}


def test_lazy_and_type_checking_imports_count(tmp_path: Path) -> None:
    folder = tmp_path / "drowsy" / "room"
    folder.mkdir(parents=True)
    (tmp_path / "drowsy" / "__init__.py").write_text("")
    (folder / "__init__.py").write_text("")
    (folder / "low.py").write_text("def f():\n    from drowsy.room import high\n")
    (folder / "high.py").write_text("if TYPE_CHECKING:\n    from drowsy.room.low import f\n")
    assert circles(imports(tmp_path)) == [{"drowsy.room.low", "drowsy.room.high"}]


def test_a_command_starts_without_what_only_compilers_and_plots_need() -> None:
    heavy = ("torch._dynamo", "torch._inductor", "triton.compiler", "sympy", "matplotlib", "ray")
    code = f"import sys, drowsy.cli.main; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
