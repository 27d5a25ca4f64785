"""Who imports whom in ``drowsy``: rooms, floors, arrows and circles, read from the source.

    python -m bench.imports            # of this checkout
    python -m bench.imports OTHER      # of another one, to compare

Nothing is imported. Imports within functions and under ``TYPE_CHECKING`` count as any other.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

Graph = Mapping[str, Set[str]]


def modules(checkout: Path) -> dict[str, Path]:
    """Dotted names of the modules of ``drowsy``, and their files."""
    found = {}
    for path in sorted((checkout / "drowsy").rglob("*.py")):
        parts = path.relative_to(checkout).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[tuple[str, str | None]]:
    """``(module, name)`` of every import in a file; no name where a module itself is imported."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise ValueError(f"{path}:{node.lineno}: a relative import, allowed: whole names")
            yield from ((node.module, alias.name) for alias in node.names)


def imports(checkout: Path) -> dict[str, set[str]]:
    """The modules of ``drowsy`` that each of them imports."""
    files = modules(checkout)
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        graph[module] = set()
        for source, name in imported(path):
            whole = f"{source}.{name}"
            target = whole if whole in files else source
            if target in files and target != module:
                graph[module].add(target)
    return graph


def room(module: str) -> str:
    """The folder (or module at the top) of ``drowsy`` that a module lies in."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def circles(graph: Graph) -> list[set[str]]:
    """Sets of modules that import each other, directly or by way of others."""
    reached = {module: _reachable(graph, module) for module in graph}
    found: list[set[str]] = []
    for module in graph:
        if module in reached[module] and not any(module in circle for circle in found):
            found.append({other for other in reached[module] if module in reached[other]})
    return found


def floors(graph: Graph) -> dict[str, int]:
    """How high each module stands: one floor above the highest that it imports; circles are one."""
    whole = {module: frozenset({module}) for module in graph}
    for circle in circles(graph):
        whole |= dict.fromkeys(circle, frozenset(circle))
    known: dict[frozenset[str], int] = {}

    def floor(group: frozenset[str]) -> int:
        if group not in known:
            below = {whole[other] for module in group for other in graph[module]} - {group}
            known[group] = 1 + max(map(floor, below), default=0)
        return known[group]

    return {module: floor(whole[module]) for module in graph}


def _reachable(graph: Graph, module: str) -> set[str]:
    seen: set[str] = set()
    front = list(graph[module])
    while front:
        other = front.pop()
        if other not in seen:
            seen.add(other)
            front.extend(graph[other])
    return seen


def main() -> None:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).parents[1])
    checkout = parser.parse_args().checkout
    graph = imports(checkout)
    between = {
        (room(module), room(other))
        for module, others in graph.items()
        for other in others
        if room(module) != room(other)
    }
    height = floors(graph)
    lines = {
        module: len(path.read_text(encoding="utf-8").splitlines())
        for module, path in modules(checkout).items()
    }
    longest = sorted(lines, key=lines.__getitem__, reverse=True)
    print(f"{len(graph)} modules in {len({room(module) for module in graph})} rooms")
    rooms = {room(module): set[str]() for module in graph}
    for one, other in between:
        rooms[one].add(other)
    print(f"{max(floors(rooms).values())} floors of rooms, {max(height.values())} of modules")
    print(f"{sum(map(len, graph.values()))} arrows, {len(between)} between rooms")
    print(f"{len(circles(graph))} circles")
    for circle in circles(graph):
        print(f"  {', '.join(sorted(circle))}")
    print(f"{sum(count > 400 for count in lines.values())} files over 400 lines; the longest:")
    for module in longest[:5]:
        print(f"  {lines[module]:4} {module}")


if __name__ == "__main__":
    main()
