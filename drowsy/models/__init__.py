"""The networks that ``drowsy`` is measured on, defined in plain torch.

    model = models.load("caffenet_cifar")                              # ships with the package
    model = models.load("resnet18", "weights/resnet18.safetensors")
    model = models.create("vgg16")                                     # random weights

Any other ``nn.Module`` converts as well; these are here so that studies need no second package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from drowsy.images import preprocess
from drowsy.images.preprocess import Preprocess
from drowsy.models.caffenet import CaffeNet, CaffeNetCifar
from drowsy.models.checkpoint import load_weights
from drowsy.models.cifar_resnet import cifar_resnet20, cifar_resnet56
from drowsy.models.resnet import resnet18, resnet50
from drowsy.models.squeezenet import SqueezeNet11
from drowsy.models.vgg import VGG16

__all__ = ["MODELS", "ModelInfo", "Preprocess", "create", "load"]


@dataclass(frozen=True)
class ModelInfo:
    """One network of the registry.

    Args:
        name: what ``create`` and ``load`` call it.
        build: makes the network with random weights; takes ``num_classes``.
        preprocess: what its published weights expect of an image.
        num_classes: classes of its published weights.
        weights: safetensors file that ships with the package, if one does.
    """

    name: str
    build: Callable[..., nn.Module]
    preprocess: Preprocess
    num_classes: int
    weights: Path | None = None


_imagenet = partial(Preprocess, 256, mean=preprocess.IMAGENET_MEAN, std=preprocess.IMAGENET_STD)
_CAFFE = Preprocess(256, 227, preprocess.CAFFE_MEAN, preprocess.CAFFE_STD)
_CIFAR = Preprocess(None, 32, preprocess.CIFAR_MEAN, preprocess.CIFAR_STD)
# The CIFAR ResNets were trained with ImageNet's constants.
_CIFAR_RESNET = Preprocess(None, 32, preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD)
_CAFFENET_CIFAR = Path(__file__).parent / "weights" / "caffenet_cifar.safetensors"

MODELS: dict[str, ModelInfo] = {
    info.name: info
    for info in (
        ModelInfo("caffenet", CaffeNet, _CAFFE, 1000),
        ModelInfo("caffenet_cifar", CaffeNetCifar, _CIFAR, 10, _CAFFENET_CIFAR),
        ModelInfo("cifar_resnet20", cifar_resnet20, _CIFAR_RESNET, 10),
        ModelInfo("cifar_resnet56", cifar_resnet56, _CIFAR_RESNET, 10),
        ModelInfo("resnet18", resnet18, _imagenet(224), 1000),
        ModelInfo("resnet50", resnet50, _imagenet(224), 1000),
        ModelInfo("squeezenet1_1", SqueezeNet11, _imagenet(227), 1000),
        ModelInfo("vgg16", VGG16, _imagenet(224), 1000),
    )
}


def create(name: str, num_classes: int | None = None) -> nn.Module:
    """Make a network with random weights, in eval mode.

    Args:
        name: a key of ``MODELS``.
        num_classes: outputs of the last layer, 1 or more; by default the published number.

    Raises:
        ValueError: an unknown name, or no classes.
        TypeError: a number of classes that is not an integer.
    """
    info = _info(name)
    if num_classes is None:
        num_classes = info.num_classes
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"num_classes: got {num_classes!r}, allowed: an integer")
    if num_classes < 1:
        raise ValueError(f"num_classes: got {num_classes}, allowed: 1 or more")
    return info.build(num_classes=num_classes).eval()


def load(name: str, weights: str | Path | None = None) -> nn.Module:
    """Make a network with weights from a safetensors file, float32, in eval mode on the CPU.

    Args:
        name: a key of ``MODELS``.
        weights: file with exactly the network's parameters, floating point of any width; by
            default the one that ships with the package.

    Raises:
        ValueError: an unknown name, no ``weights`` for a network that ships without, a file that
            is not safetensors or is truncated, or one that does not fit the network.
        FileNotFoundError: no such file.
        ImportError: safetensors is not installed.
    """
    info = _info(name)
    path = info.weights if weights is None else Path(weights)
    if path is None:
        raise ValueError(
            f"weights: {name} ships without weights; give a safetensors file, as "
            "safetensors.torch.save_file writes of a model's state_dict (drowsy tune "
            f"torchvision:{name} takes torchvision's, where that has this network)"
        )
    # No memory and no random numbers are spent on weights that are replaced.
    with torch.device("meta"):
        model = create(name)
    load_weights(model, path)
    return model


def _info(name: str) -> ModelInfo:
    if name not in MODELS:
        raise ValueError(f"model: got {name!r}, allowed: {', '.join(MODELS)}")
    return MODELS[name]
