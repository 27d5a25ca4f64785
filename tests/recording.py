"""What evaluations leave behind: a network and an engine that write down what they do."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import drowsy
from drowsy.evaluation.engine import Engine, Result, Workload
from drowsy.knob.schedule import Setting


@fx.wrap
def record(logits: Tensor, file: str, seconds: float) -> Tensor:
    """Append this process's number to the file; take some time."""
    with open(file, "ab", buffering=0) as log:
        log.write(b"%d\n" % os.getpid())
    time.sleep(seconds)
    return logits


@fx.wrap
def die_half_asleep(x: Tensor) -> Tensor:
    """Kill the process where exactly half of the values are 0."""
    if (x == 0).float().mean() == 0.5:
        os.kill(os.getpid(), 9)
    return x


class Recording(nn.Module):
    """Three convolutions; every inference of a batch takes ``seconds`` and is a line in a file."""

    def __init__(self, file: str, seconds: float) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.conv3, self.fc = nn.Conv2d(8, 12, 3), nn.Linear(12, 6)
        self.file, self.seconds = file, seconds

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        x = self.conv3(nn.functional.max_pool2d(x, 2)).relu()
        return record(self.fc(x.mean((2, 3))), self.file, self.seconds)


class Named(nn.Module):
    """Outputs by name, of no known form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.conv2(self.conv1(x).relu())
        return {"map": x[:, :2], "mean": x.mean((2, 3))}


def closeness(outputs: Any, awake: Any, targets: Any) -> Tensor:
    """A metric of one's own."""
    return -(outputs.mean - targets).abs().mean(1)


class Deadly(nn.Module):
    """Ends its process at rate 1/2, and at no other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(die_half_asleep(self.conv(x)).mean((2, 3)))


def recording_net(file: Path, seconds: float = 0.005, k: int = 6) -> drowsy.DrowsyNet:
    """The network, with the same weights every time."""
    torch.manual_seed(0)
    return drowsy.convert(Recording(str(file), seconds).eval(), k=k)


def images_and_labels() -> tuple[Tensor, Tensor]:
    """One batch."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(40, 3, 12, 12, generator=generator)
    return images, torch.randint(0, 6, (40,), generator=generator)


def inferences(file: Path) -> Counter[int]:
    """How many inferences each other process made."""
    made = Counter(map(int, file.read_text().split())) if file.exists() else Counter()
    # This one runs the network once to count multiplications.
    del made[os.getpid()]
    return made


def search_on(store: str, file: Path) -> None:
    """An exhaustive search into a store, for a process of its own."""
    torch.set_num_threads(1)
    images, labels = images_and_labels()
    with drowsy.Store(store) as opened:
        drowsy.search(recording_net(file), images, labels, store=opened, method="exhaustive")


class Counting:
    """An engine's results, counted; calls ``at`` with their number before each is given out."""

    def __init__(self, engine: Engine, at: Callable[[int], None] = lambda _: None) -> None:
        self.engine, self.at = engine, at
        self.seen: Counter[tuple[int, Setting]] = Counter()

    def evaluate(
        self, work: Workload, settings: Mapping[int, Sequence[Setting]]
    ) -> Iterator[Result]:
        for seed, setting, counts in self.engine.evaluate(work, settings):
            self.seen[seed, setting] += 1
            self.at(self.seen.total())
            yield seed, setting, counts
