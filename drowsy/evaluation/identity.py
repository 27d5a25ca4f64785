"""What a result belongs to: network and images by fingerprint, and all else that decides it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from drowsy.evaluation.computation import feed, fingerprint_value, tell
from drowsy.network.layer import DrowsyConv2d
from drowsy.sleep import stored_text


@dataclass(frozen=True)
class Context:
    """What a result depends on besides the rates.

    Args:
        network: ``fingerprint_network``.
        data: ``fingerprint_data`` of images and labels.
        configuration: JSON-able: k, each layer's record (``LayerRecord.stored``), and what else is
            not as ever: a task, an engine's facts, a reference, corrections, a stretch of the
            images.
        seed: of the sleep maps.
    """

    network: str
    data: str
    configuration: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class LayerRecord:
    """How a layer sleeps, as far as that decides results; its rate aside.

    Args:
        source: as ``drowsy.sleep.stored_text`` tells it.
        grain, fill: their text forms.
        stream: None for the stream that ``convert`` gave the layer.
        phase: in the stream's cycle.
        table: fingerprint of the table that the fill reads; None where it reads none.
    """

    source: str
    grain: str
    fill: str
    stream: int | None
    phase: int
    table: str | None

    @classmethod
    def of(cls, layer: DrowsyConv2d, table: str | None) -> LayerRecord:
        """The record of a layer as it is, whose fill's table has this fingerprint."""
        sleep = layer.sleep
        # A phase is told with its stream, the layer's own included.
        own = sleep.stream == layer.index and sleep.phase == 0
        return cls(
            stored_text(sleep.source),
            str(sleep.grain),
            layer.fill,
            None if own else sleep.stream,
            sleep.phase,
            table,
        )

    def stored(self) -> list[Any]:
        """As a configuration holds it: what goes without saying is left out."""
        told: list[Any] = [self.source, self.grain, self.fill]
        if self.stream is not None:
            told.append(self.stream)
        if self.phase > 0:
            told.append(self.phase)
        if self.table is not None:
            told.append(self.table)
        return told


def fingerprint_network(net: nn.Module) -> str:
    """SHA-256 of what a network computes: its graph, classes, attributes and every tensor.

    The same in every process and on every device, for a copy and for a network converted again;
    whatever the knob says. See ``drowsy.evaluation.computation``.
    """
    return hashlib.sha256(json.dumps(tell(net)).encode()).hexdigest()


def fingerprint_state(state: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and values; device and memory format do not count.

    Entries that are no tensors (``nn.Module.get_extra_state``) are told as attributes are.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if isinstance(state[name], Tensor):
            feed(digest, name, state[name])
        else:
            digest.update(f"{name} {fingerprint_value(state[name])}\n".encode())
    return digest.hexdigest()


def fingerprint_data(images: Tensor, labels: Any) -> str:
    """SHA-256 over the images as the network sees them, and their labels or other targets."""
    digest = hashlib.sha256()
    feed(digest, "images", images)
    if isinstance(labels, Tensor):
        feed(digest, "labels", labels)
    elif labels is not None:
        digest.update(f"labels {fingerprint_value(labels)}".encode())
    return digest.hexdigest()
