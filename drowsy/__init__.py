"""drowsy: a power-accuracy knob for pretrained CNNs that turns while they run.

knob = drowsy.tune(model, images, labels)    # every lever, measured on this machine, resumable
print(knob)                                  # its points: what they do, ms, loss
knob.set(saving=0.5)                         # or max_loss=0.01, latency_ms=8, joules=0.2
logits = knob(batch)

net = drowsy.convert(model)                  # sleep alone: weights shared, turned per batch
net.set(0.25)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from drowsy import energy
from drowsy._distribution import VERSION
from drowsy.correction.calibrate import calibrate
from drowsy.correction.stencils import calibrate_stencils, load_stencils, save_stencils
from drowsy.deployment.deploy import Deployed, deploy
from drowsy.evaluation.evaluator import Evaluator
from drowsy.evaluation.measurer import Measurer
from drowsy.evaluation.store import Store
from drowsy.graph.convert import convert, revert
from drowsy.graph.stages import Stage, align, find_stages, find_ties
from drowsy.images.folders import load_images
from drowsy.knob.costs import cost_table, layer_costs, network_cost
from drowsy.knob.frontier import Frontier, NoSuchPoint
from drowsy.knob.point import OperatingPoint
from drowsy.knob.schedule import LayerSetting, Schedule
from drowsy.network.calibration import Calibration, Correction
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.searches.methods import search
from drowsy.sleep import (
    Bernoulli,
    BlueNoise,
    Detail,
    Fovea,
    Grain,
    Lattice,
    Lfsr,
    SleepSpec,
    Stratified,
)
from drowsy.tuning.knob import Knob
from drowsy.tuning.loading import load
from drowsy.tuning.tune import tune

if TYPE_CHECKING:
    from drowsy.comparison.compare import compare
    from drowsy.evaluation.ray_engine import RayEngine
    from drowsy.governor import Governor
    from drowsy.reporting.page import write_report
    from drowsy.tuning.clips.knob import VideoKnob
    from drowsy.video.stream import Stream

__version__ = VERSION

__all__ = [
    "Bernoulli",
    "BlueNoise",
    "Calibration",
    "Correction",
    "Deployed",
    "Detail",
    "DrowsyConv2d",
    "DrowsyNet",
    "Evaluator",
    "Fovea",
    "Frontier",
    "Governor",
    "Grain",
    "Knob",
    "Lattice",
    "LayerSetting",
    "Lfsr",
    "Measurer",
    "NoSuchPoint",
    "OperatingPoint",
    "RayEngine",
    "Schedule",
    "SleepSpec",
    "Stage",
    "Store",
    "Stratified",
    "Stream",
    "VideoKnob",
    "align",
    "calibrate",
    "calibrate_stencils",
    "compare",
    "convert",
    "cost_table",
    "deploy",
    "energy",
    "find_stages",
    "find_ties",
    "layer_costs",
    "load",
    "load_images",
    "load_stencils",
    "network_cost",
    "revert",
    "save_stencils",
    "search",
    "tune",
    "write_report",
]

# Imported when they are first asked for: what few programs use must not slow down the others.
_LATER = {
    "compare": "drowsy.comparison.compare",
    "Governor": "drowsy.governor.governor",
    "RayEngine": "drowsy.evaluation.ray_engine",
    "Stream": "drowsy.video.stream",
    "VideoKnob": "drowsy.tuning.clips.knob",
    "write_report": "drowsy.reporting.page",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
