"""What every test shares: Triton's interpreter where there is no GPU, the data folder, seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker a core: its torch, and that of the interpreters it starts, must not take them all.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    # Must be set before Triton is first imported, which ``import torch`` leaves to later.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if os.environ.get("TRITON_INTERPRET") == "1":
    import quick_interpreter

    quick_interpreter.install()

GPU_FIXTURES = {"triton_device", "cuda_device"}


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with the real images and weights: DROWSY_DATA, or `shared` beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("DROWSY_DATA", beside))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real images in {folder}: set DROWSY_DATA to the folder that has them")
    return folder


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests whose tensors lie on a GPU where there is one; ``-m gpu`` selects them."""
    for item in items:
        if GPU_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Global random numbers (weights of fresh layers, ``torch.randn``) repeat in every test."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still for ``tune``, which is given seconds here, and no system tells of others.

    So a busy machine cuts nothing off, and is not warned of. Tests about that set their own.
    """
    monkeypatch.setattr("drowsy.tuning.clock.now", lambda: 0.0)
    monkeypatch.setattr("drowsy.tuning.waiting._TASKS", Path("nowhere"))


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """float32 means float32, where cuDNN would take TF32. A test about TF32 asks for it itself."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    yield
    cudnn.allow_tf32, matmul.allow_tf32 = before


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of the test's own, for draws that must not depend on what ran before."""
    return torch.Generator().manual_seed(20_17)


@pytest.fixture(scope="session")
def triton_device() -> torch.device:
    """Where Triton kernels run here: CUDA, or the CPU under Triton's interpreter."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.skip("Triton kernels need CUDA or TRITON_INTERPRET=1")


@pytest.fixture(scope="session")
def cuda_device() -> torch.device:
    """For what an interpreter has not: CUDA graphs, much memory, speed."""
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    return torch.device("cuda")
