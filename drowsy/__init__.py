"""drowsy: a power-accuracy knob for pretrained CNNs that turns while they run.

net = drowsy.convert(model)                      # weights shared, state_dict keys unchanged
frontier = drowsy.search(net, images, labels)    # measured trade-off, resumable
net.set(frontier.at(saving=0.25))                # in place, per batch if you like
"""

from drowsy import energy
from drowsy._distribution import VERSION
from drowsy.calibrate import Calibration, Correction, calibrate
from drowsy.channels import channel_sensitivity, split_channels, splittable
from drowsy.compare import compare
from drowsy.convert import convert, revert
from drowsy.cost import cost_table, layer_costs
from drowsy.deploy import Deployed, deploy
from drowsy.evaluate import Evaluator
from drowsy.frontier import Frontier, NoSuchPoint, OperatingPoint
from drowsy.layer import DrowsyConv2d
from drowsy.net import DrowsyNet
from drowsy.ray_engine import RayEngine
from drowsy.schedule import LayerSetting, Schedule
from drowsy.search import Measurer, search
from drowsy.sleep import Bernoulli, BlueNoise, Fovea, Grain, Lattice, Lfsr, SleepSpec, Stratified
from drowsy.stages import Stage, align, find_stages, find_ties
from drowsy.stencil import calibrate_stencils, load_stencils, save_stencils
from drowsy.store import Store

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
    "align",
    "calibrate",
    "calibrate_stencils",
    "channel_sensitivity",
    "compare",
    "convert",
    "cost_table",
    "deploy",
    "energy",
    "find_stages",
    "find_ties",
    "layer_costs",
    "load_stencils",
    "revert",
    "save_stencils",
    "search",
    "split_channels",
    "splittable",
]
