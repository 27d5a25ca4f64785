"""An engine that corrects the network at every setting before it evaluates it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from drowsy.correction.calibrate import BATCH, calibrate
from drowsy.evaluation.engine import Result, Workload
from drowsy.evaluation.identity import fingerprint_data, fingerprint_network
from drowsy.knob.schedule import Setting
from drowsy.network.calibration import Calibration
from drowsy.network.net import DrowsyNet

# Calibrations that an engine keeps.
_KEPT = 8


@dataclass(frozen=True)
class Corrected:
    """An ``Engine`` that corrects the network at every setting it evaluates.

    A search then goes by what its settings lose once they are calibrated. Settings share no work,
    so that each costs a calibration and a whole evaluation; few images will do for the affine one.
    The last few calibrations are kept, for other seeds and other images.

    Args: as for ``calibrate``.
    """

    images: Tensor
    reconstruct: bool = False
    seed: int = 0
    batch: int = BATCH
    _kept: dict[tuple[str, tuple[str, ...], Setting], Calibration] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def facts(self) -> dict[str, Any]:
        """What decides a result beside the setting; ``Measurer`` keeps results apart by it."""
        kind = "reconstructed" if self.reconstruct else "affine"
        facts = [kind, fingerprint_data(self.images, None), self.seed]
        # A batch decides which images choose a ridge; the usual one is unnamed, as in old stores.
        return {"calibration": facts if self.batch == BATCH else [*facts, self.batch]}

    def evaluate(
        self, work: Workload, settings: Mapping[int, Sequence[Setting]]
    ) -> Iterator[Result]:
        """See ``drowsy.evaluation.engine.Engine``; the network is given back as it was."""
        net = work.net
        network = fingerprint_network(net)
        with net.kept():
            net.calibration = None
            if work.baseline is None:
                work = replace(work, baseline=work.evaluator(0).logits())
            for seed, todo in settings.items():
                # Of one seed, so that maps are drawn once for all settings.
                evaluator = work.evaluator(seed)
                for setting in todo:
                    net.calibration = None
                    net.set(net.schedule_of(setting))
                    net.calibration = self._of(net, network, setting)
                    yield seed, setting, evaluator.evaluate(setting)

    def calibration(self, net: DrowsyNet, setting: Setting) -> Calibration:
        """What a network is corrected by at a setting; it is given back as it was."""
        with net.kept():
            net.calibration = None
            network = fingerprint_network(net)
            net.set(net.schedule_of(setting))
            return self._of(net, network, setting)

    def _of(self, net: DrowsyNet, network: str, setting: Setting) -> Calibration:
        """Of the setting in force, for the network of this fingerprint."""
        key = (network, net.sleeps, setting)
        if key not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = calibrate(
                net, self.images, reconstruct=self.reconstruct, seed=self.seed, batch=self.batch
            )
        return self._kept[key]
