"""drowsy: a power-accuracy knob for pretrained CNNs that turns while they run.

net = drowsy.convert(model)                      # weights shared, state_dict keys unchanged
frontier = drowsy.search(net, images, labels)    # measured trade-off, resumable
net.set(frontier.at(saving=0.25))                # in place, per batch if you like
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
from drowsy.knob.costs import cost_table, layer_costs, network_cost
from drowsy.knob.frontier import Frontier, NoSuchPoint, OperatingPoint
from drowsy.knob.schedule import LayerSetting, Schedule
from drowsy.network.calibration import Calibration, Correction
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.searches.methods import search
from drowsy.sleep import Bernoulli, BlueNoise, Fovea, Grain, Lattice, Lfsr, SleepSpec, Stratified

if TYPE_CHECKING:
    from drowsy.comparison.compare import compare
    from drowsy.evaluation.ray_engine import RayEngine
    from drowsy.video.stream import Stream

__version__ = VERSION

__all__ = [
    "Bernoulli",
    "BlueNoise",
    "Calibration",
    "Correction",
    "Deployed",
    "DrowsyConv2d",
    "DrowsyNet",
    "Evaluator",
    "Fovea",
    "Frontier",
    "Grain",
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
    "load_stencils",
    "network_cost",
    "revert",
    "save_stencils",
    "search",
]

# Imported when they are first asked for: what few programs use must not slow down the others.
_LATER = {
    "compare": "drowsy.comparison.compare",
    "RayEngine": "drowsy.evaluation.ray_engine",
    "Stream": "drowsy.video.stream",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
