"""What Prometheus scrapes of governors."""

from __future__ import annotations

import gc

import pytest
from test_governor import Knob, run

from drowsy.governor import Governor
from drowsy.governor.prometheus import export

client = pytest.importorskip("prometheus_client")


def test_the_state_of_every_governor() -> None:
    registry = client.CollectorRegistry()
    knobs = [Knob(), Knob()]
    governors = [Governor(each, latency_ms=18, now=each.now) for each in knobs]
    for name, governor in zip("ab", governors, strict=True):
        export(governor, name=name, registry=registry)
    run(governors[0], knobs[0], 40)
    text = client.generate_latest(registry).decode()
    assert 'drowsy_governor_saving{governor="a"} 0.2' in text
    assert 'drowsy_governor_loss{governor="b"} 0.0' in text
    assert 'drowsy_governor_budget{budget="latency_ms",governor="a"} 18.0' in text
    assert 'drowsy_governor_expected{budget="latency_ms",governor="a"} 1' in text
    changes = registry.get_sample_value("drowsy_governor_changes_total", {"governor": "a"})
    assert changes == governors[0].state.changes
    measured = {"governor": "a", "budget": "latency_ms"}
    assert registry.get_sample_value("drowsy_governor_measurements_total", measured) == 38
    assert registry.get_sample_value("drowsy_governor_over_budget_total", measured) == 0
    del governors, governor
    gc.collect()
    assert 'governor="' not in client.generate_latest(registry).decode()
