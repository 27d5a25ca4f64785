"""Benchmarks run on a quiet machine: ``python -m pytest bench --benchmark-enable``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from drowsy import models
from drowsy.record import provenance


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Put what a result depends on into the recorded JSON, and leave out the host's name."""
    machine_info.pop("node", None)
    machine_info["drowsy"] = provenance()


@pytest.fixture
def photographs() -> Tensor:
    """A batch of natural-looking inputs: smooth noise, not zeros, ``[8, 3, 224, 224]``."""
    coarse = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=224, mode="bicubic")
    return images.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Any:
    """The registry network that a benchmark names, channels_last, in eval mode."""
    torch.manual_seed(0)
    return models.create(request.param).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
