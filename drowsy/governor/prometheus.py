"""Governors' states as Prometheus metrics; ``prometheus-client`` comes with the extra ``metrics``.

Nothing is counted while the network runs: what is in force is asked for when it is scraped.

    from prometheus_client import start_http_server

    from drowsy.governor.prometheus import export

    export(governor)
    start_http_server(9100)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from drowsy._optional import require
from drowsy.governor.governor import Governor, State

_GAUGES: dict[str, tuple[str, Callable[[State], float | None]]] = {
    "saving": ("Fraction of multiplications saved", lambda state: state.point.saving),
    "loss": ("Metric of the awake network less this point's", lambda state: state.point.loss),
    "feasible": ("1 where a point holds all budgets, else 0", lambda state: state.feasible),
}
_BY_BUDGET: dict[str, tuple[str, Callable[[State], Mapping[str, float]]]] = {
    "budget": ("What is allowed, in the budget's unit", lambda state: state.budgets),
    "expected": ("What the point in force is expected to take", lambda state: state.expected),
}
_COUNTS: dict[str, tuple[str, Callable[[State], Mapping[str, int]]]] = {
    "measurements": ("Measurements of what a budget bounds", lambda state: state.measured),
    "over_budget": ("Measurements that were over it", lambda state: state.over),
}


class Collector:
    """Tells the states of governors, by name, to a registry. Made by ``export``."""

    def __init__(self) -> None:
        self._client = require("prometheus_client.core", "metrics")
        self.governors: WeakValueDictionary[str, Governor] = WeakValueDictionary()

    def describe(self) -> list[Any]:
        """Nothing ahead of the first scrape."""
        return []

    def collect(self) -> Iterable[Any]:
        """Prometheus' metric families."""
        states = {name: governor.state for name, governor in sorted(self.governors.items())}
        gauge, counter = self._client.GaugeMetricFamily, self._client.CounterMetricFamily
        for name, (text, value) in _GAUGES.items():
            yield self._family(gauge, name, text, {n: {"": value(s)} for n, s in states.items()})
        for name, (text, values) in _BY_BUDGET.items():
            yield self._family(gauge, name, text, {n: values(s) for n, s in states.items()})
        changes = {n: {"": s.changes} for n, s in states.items()}
        yield self._family(counter, "changes", "Changes of the point", changes)
        for name, (text, counts) in _COUNTS.items():
            yield self._family(counter, name, text, {n: counts(s) for n, s in states.items()})

    def _family(
        self, kind: Any, name: str, text: str, values: Mapping[str, Mapping[str, float | None]]
    ) -> Any:
        """One metric of all governors; by budget where its values have names."""
        by_budget = any(key for each in values.values() for key in each)
        labels = ["governor", "budget"] if by_budget else ["governor"]
        family = kind(f"drowsy_governor_{name}", text, labels=labels)
        for governor, each in values.items():
            for budget, value in each.items():
                if value is not None:
                    family.add_metric([governor, budget][: len(labels)], float(value))
        return family


_COLLECTORS: WeakKeyDictionary[Any, Collector] = WeakKeyDictionary()


def export(governor: Governor, *, name: str = "main", registry: Any = None) -> None:
    """Let Prometheus scrape a governor, as long as there is one.

    Args:
        name: the label ``governor`` of its metrics. A name that is given again is the later's.
        registry: of ``prometheus_client``; its default one if none is given.

    Raises:
        ImportError: no ``prometheus_client``.
    """
    registry = registry or require("prometheus_client", "metrics").REGISTRY
    collector = _COLLECTORS.get(registry)
    if collector is None:
        collector = _COLLECTORS[registry] = Collector()
        registry.register(collector)
    collector.governors[name] = governor
