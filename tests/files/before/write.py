"""Write the files of this folder, with ``drowsy`` as it was before its modules lay in folders.

    PYTHONPATH=CHECKOUT:KERNELS python tests/files/before/write.py

CHECKOUT is commit 7148ff8 of this repository, KERNELS a folder in which ``drowsy_kernels`` links to
its folder ``kernels``. Weights and images are of exact arithmetic, so that the fingerprints that
the store keeps are the same on every machine; ``tests/files/test_before.py`` makes them again.
"""

import pickle
import sqlite3
from pathlib import Path

import torch
from torch import Tensor, nn

import drowsy

HERE = Path(__file__).parent
SETTINGS = [(0, 0, 0), (4, 4, 4), (2, 0, 6)]


def exact(*shape: int) -> Tensor:
    """Numbers from -1/2 to 1/2 without an order that shows; the same everywhere."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7919 + 1) % 257 - 128).float().view(shape) / 256


def model() -> nn.Module:
    return filled(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 5),
        )
    )  # fmt: skip


def small_model() -> nn.Module:
    """One channel: the table of fill ``stencil`` has 2,304 numbers a channel."""
    return filled(
        nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    )


def filled(made: nn.Module) -> nn.Module:
    state = {
        name: torch.tensor(0) if name.endswith("tracked") else exact(*tensor.shape)
        for name, tensor in made.state_dict().items()
    }
    state |= {"1.running_var": torch.ones(4)} if "1.running_var" in state else {}
    made.load_state_dict(state)
    return made.eval()


def images() -> Tensor:
    return exact(12, 3, 8, 8)


def labels() -> Tensor:
    return torch.arange(12) % 5


def nets() -> dict[str, drowsy.DrowsyNet]:
    """Networks of every kind of key in a store, but for what files hold: tables, corrections."""
    aligned = drowsy.convert(model(), source="lattice", grain="position")
    drowsy.align(aligned, images()[:1], grain=None, step=1)
    return {
        "bernoulli": drowsy.convert(model()),
        "lfsr": drowsy.convert(model(), source="lfsr:width=8,taps=8.6.5.4", grain="tile:4x2"),
        "lattice": drowsy.convert(model(), source="lattice"),
        "bluenoise": drowsy.convert(model(), source="bluenoise"),
        "aligned": aligned,
    }


def measured(net: drowsy.DrowsyNet, store: drowsy.Store | None) -> drowsy.Measurer:
    return drowsy.Measurer(net, images(), labels(), seeds=(0, 1), store=store)


def main() -> None:
    net, small = drowsy.convert(model(), source="stratified"), drowsy.convert(small_model())
    drowsy.calibrate_stencils(small, images())
    drowsy.save_stencils(small, HERE / "stencils.safetensors")
    small.set(0, fill="stencil")
    with drowsy.Store(HERE / "store.sqlite") as store:
        for made in nets().values():
            measured(made, store).measure(SETTINGS)
        measured(small, store).measure([(0,), (4,)])
        points = measured(net, None).measure([(j, j, j) for j in range(8)])
        frontier = drowsy.Frontier(points.values(), "agreement")
        frontier.save(HERE / "frontier.json")
        aligned = nets()["aligned"]
        aligned.set({"0": 0.5, "5": 0.25})
        aligned.schedule.save(HERE / "schedule.json")
        net.set(0.5)
        calibration = drowsy.calibrate(net, images(), reconstruct=True)
        calibration.save(HERE / "calibration.safetensors")
        measured(net, store).measure(SETTINGS)
    # The same rows, on pages that hold little more than them.
    with sqlite3.connect(HERE / "store.sqlite") as database:
        for line in ("PRAGMA journal_mode = DELETE", "PRAGMA page_size = 512", "VACUUM"):
            database.execute(line)

    (HERE / "network.pickle").write_bytes(pickle.dumps(drowsy.convert(small_model())))


if __name__ == "__main__":
    main()
