"""Networks of other libraries by name, with what their own configurations say of images."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from drowsy.images.preprocess import IMAGENET_MEAN, IMAGENET_STD

_PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
_IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


@dataclass(frozen=True)
class Found:
    """A network of a library.

    Attributes:
        make: with the library's weights (True), or with random ones.
        preprocess: arguments of ``Preprocess``; ``crop`` is None where it takes any size.
        classes: that it tells apart, of the library's weights.
        told: how images are prepared otherwise than the library does.
    """

    make: Callable[[bool], nn.Module]
    preprocess: Mapping[str, Any]
    classes: int
    told: Sequence[str] = ()


def find(given: str, classes: int | None) -> Found | None:
    """The network ``LIBRARY:NAME``; None where that names no library.

    Args:
        given: what the command line names.
        classes: of the last layer; None for the library's own.

    Raises:
        ImportError: the library is not installed; says what installs it.
        ValueError: it has no such network.
        OSError: a configuration that cannot be fetched.
    """
    library, _, name = given.partition(":")
    if library not in LIBRARIES or not name:
        return None
    look, package = LIBRARIES[library]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"model: got {given!r}, and {package} cannot be imported ({error}); "
            f"install it with: pip install {package}"
        ) from error
    return look(module, name, classes)


def _timm(timm: ModuleType, name: str, classes: int | None) -> Found:
    if not timm.is_model(name):
        raise ValueError(f"model: got timm:{name}, allowed: a name of timm.list_models()")
    config = timm.get_pretrained_cfg(name)
    about = {} if config is None else config.to_dict()
    data = timm.data.resolve_data_config({}, pretrained_cfg=about)
    _, height, width = data["input_size"]
    more = {} if classes is None else {"num_classes": classes}
    return Found(
        lambda trained: timm.create_model(name, pretrained=trained, **more),
        {
            "resize": math.floor(min(height, width) / data["crop_pct"]),
            "crop": min(height, width),
            "mean": tuple(data["mean"]),
            "std": tuple(data["std"]),
        },
        about.get("num_classes") or 1000,
        [
            *_shape(height, width),
            *_interpolation(data["interpolation"]),
            *([] if data["crop_mode"] == "center" else [f"{data['crop_mode']} is not cropped so"]),
        ],
    )


def _torchvision(torchvision: ModuleType, name: str, classes: int | None) -> Found:
    models = torchvision.models
    if name not in models.list_models():
        raise ValueError(
            f"model: got torchvision:{name}, allowed: a name of torchvision.models.list_models()"
        )
    published = list(models.get_model_weights(name))
    weights = models.get_model_weights(name).DEFAULT if published else None
    more: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        # Else a network with random weights would fetch those of its backbone.
        more["weights_backbone"] = None

    def make(trained: bool) -> nn.Module:
        if trained and weights is None:
            raise ValueError(f"torchvision has no weights for {name}")
        return models.get_model(name, weights=weights if trained else None, **more)

    if weights is None:
        return Found(make, {"resize": None, "crop": None, **_IMAGENET}, 1000)
    preset = weights.transforms()
    crop, resize = (_one(getattr(preset, each, None)) for each in ("crop_size", "resize_size"))
    scale = {each: tuple(getattr(preset, each, _PLAIN[each])) for each in _PLAIN}
    told = _interpolation(preset.interpolation.value) if crop else []
    count = len(weights.meta.get("categories", ())) or 1000
    return Found(make, {"resize": resize, "crop": crop, **scale}, count, told)


def _hf(transformers: ModuleType, name: str, classes: int | None) -> Found:
    config = transformers.AutoConfig.from_pretrained(name)
    if classes is not None:
        config.num_labels = classes
    auto = transformers.AutoModelForImageClassification

    def make(trained: bool) -> nn.Module:
        return auto.from_pretrained(name) if trained else auto.from_config(config)

    # Every way to prepare images is in this, whatever the class.
    said = transformers.AutoImageProcessor.from_pretrained(name).to_dict()
    told = []
    size, cut = said.get("size") or {}, said.get("crop_size")
    resize = size.get("shortest_edge", size.get("height"))
    if resize is None:
        raise ValueError(f"model: hf:{name} prepares images by {said}, allowed: a square of pixels")
    crop = _one(cut) if said.get("do_center_crop") and cut else resize
    if "crop_pct" in said and resize == crop and resize < 384:
        # As ConvNeXt's does.
        resize = int(resize / said["crop_pct"])
    elif "height" in size and not said.get("do_center_crop"):
        told = [f"scaled to {size['height']} x {size['width']} there, here the middle is cut out"]
    normal = said.get("do_normalize", True)
    scale = {"mean": said["image_mean"], "std": said["image_std"]} if normal else _PLAIN
    told += _interpolation({0: "nearest", 2: "bilinear", 3: "bicubic"}.get(said.get("resample")))
    return Found(
        make,
        {"resize": resize, "crop": crop, **{each: tuple(v) for each, v in scale.items()}},
        config.num_labels,
        told,
    )


# How to look a network up, and the package that it is in.
LIBRARIES: dict[str, tuple[Callable[[ModuleType, str, int | None], Found], str]] = {
    "timm": (_timm, "timm"),
    "torchvision": (_torchvision, "torchvision"),
    "hf": (_hf, "transformers"),
}


def _one(size: Any) -> int | None:
    """One side of what may be a side, a list of one or two, or a mapping."""
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    return min(size) if isinstance(size, Sequence) and size else size or None


def _interpolation(name: str | None) -> list[str]:
    if name in (None, "bilinear"):
        return []
    return [f"its images are scaled by {name} interpolation, here by bilinear"]


def _shape(height: int, width: int) -> list[str]:
    return [] if height == width else [f"its images are {height} x {width}, here square"]
