"""What operations cost on the machine at hand, and how good they are."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from drowsy.energy import Meter
from drowsy.knob.frontier import check_cost
from drowsy.tuning.journal import Journal
from drowsy.tuning.timing import in_turns, timed
from drowsy.tuning.waiting import Waiting
from drowsy.tuning.workbench import Operation, Workbench

# Of two ways that take turns.
_SECONDS = 0.5
# Of what takes so many times as long as the model one call tells enough.
_HOPELESS = 4.0


class Rig:
    """A workbench with a clock.

    Args:
        model: the network as it is, by which costs are told.
        workbench: made of it.
        cost: ``latency``, ``joules`` or ``macs``.
        batch: images a batch, for the first two.
        journal: of what is measured.

    Attributes:
        compiling: seconds that first calls took beyond second ones, as for kernels that are
            compiled then: of all that was measured, in runs before too.
        waiting: for cores, of all that was measured, in runs before too.

    Raises:
        ValueError: an unknown cost.
        NoMeter: joules, and nothing here can meter them.
    """

    def __init__(
        self, model: nn.Module, workbench: Workbench, cost: str, batch: int, journal: Journal
    ) -> None:
        check_cost(cost)
        self.workbench, self.cost, self.journal = workbench, cost, journal
        self._model, self.compiling, self.waiting = model, 0.0, Waiting()
        self._known: set[str] = set()
        images = workbench.images("search")
        # As many as the batch asks for, the same ones again where there are fewer.
        times = -(-batch // len(images))
        like = next(model.parameters())
        self.images = images.repeat(times, 1, 1, 1)[:batch].to(like.dtype).contiguous()
        self._meter = Meter(str(images.device)) if cost == "joules" else None
        if self._meter is not None:
            self._meter.measure_idle()

    def spent(self, operation: Operation) -> float:
        """Cost of an operation as a fraction of the model's."""
        if self.cost == "macs":
            return 1 - operation.saving
        return self.measured(operation)

    def measured(self, operation: Operation) -> float:
        """Milliseconds, or joules where these are the cost, as a fraction of the model's.

        Raises:
            NoMeter: joules, and the meter tells none.
        """
        key = self._key(operation)
        found = float(self.waiting.timed(self.journal, key, lambda: self._measured(operation)))
        if key not in self._known:
            self._known.add(key)
            self.compiling += self.journal.get(_compiling(key), float)
        return found

    def _measured(self, operation: Operation) -> float:
        net = operation.net
        with net.kept(), torch.inference_mode():
            net.set(net.schedule_of(operation.setting))
            run = self._run(operation)
            first, second = (timed(run, self.images.is_cuda) for _ in range(2))
            self.journal.get(
                _compiling(self._key(operation)), lambda: 1e-3 * max(first - second, 0)
            )
            runs = {"model": lambda: self._model(self.images), "operation": run}
            if self._meter is not None:
                own, joules = (self._meter.measure(run).known_per_call() for run in runs.values())
                return joules / own
            own = max(timed(runs["model"], self.images.is_cuda) for _ in range(2))
            if second > _HOPELESS * own:
                return second / own
            taken = in_turns(runs, _SECONDS, cuda=self.images.is_cuda)
        pairs = zip(taken["operation"], taken["model"], strict=True)
        return statistics.median(own / whole for own, whole in pairs)

    def _run(self, operation: Operation) -> Callable[[], object]:
        net, view = operation.net, operation.view
        weight = next(iter(net.layers.values())).weight

        def run() -> Tensor:
            shown = view(self.images).to(weight.dtype)
            return net(shown.contiguous(memory_format=torch.channels_last))

        return run

    def _key(self, operation: Operation) -> str:
        """By what a cost is known: of how much of a picture is shown, only the pixels matter."""
        shown = f"{self.cost}: {operation.view.size}, {operation.number_format}"
        if not any(operation.setting):
            return shown
        net = operation.net
        sleeps = sorted({str(layer.sleep) for layer in net.layers.values()})
        told = json.dumps([sleeps, net.schedule_of(operation.setting).to_dict()])
        return f"{shown}, asleep {hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _compiling(key: str) -> str:
    return f"{key}: compiling"
