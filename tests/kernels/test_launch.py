"""Launchers and their plans, and what compiled launches demand beyond interpreted ones."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import fields

import drowsy_kernels
import pytest
import torch
from drowsy_kernels.launch import Launch, interpreted, launched, plan_of, planned
from torch import Tensor
from triton.backends.nvidia.compiler import CUDAOptions
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction

MODULES = [module.name for module in pkgutil.iter_modules(drowsy_kernels.__path__)]
# What Triton's launcher refuses as keywords, or takes for itself.
RESERVED = {"device", "device_type", "grid", "stream", "warmup"} | {
    field.name for field in fields(CUDAOptions)
}


@pytest.mark.parametrize("module", MODULES)
def test_no_argument_has_a_name_of_the_launchers(module: str) -> None:
    for name, kernel in vars(importlib.import_module(f"drowsy_kernels.{module}")).items():
        if isinstance(kernel, (JITFunction, InterpretedFunction)):
            taken = RESERVED & set(inspect.signature(kernel.fn).parameters)
            assert not taken, f"{name}: {', '.join(taken)}"


PLANS = [name for name in drowsy_kernels.__all__ if name.startswith("plan_")]


@pytest.mark.parametrize("name", PLANS)
def test_a_launcher_shows_what_it_takes(name: str) -> None:
    """To readers and tools: its own name, parameters and docstring."""
    launcher = getattr(drowsy_kernels, name.removeprefix("plan_"))
    parameters = inspect.signature(launcher).parameters
    assert launcher.__name__ == name.removeprefix("plan_")
    assert launcher.__doc__
    assert len(parameters) > 1
    assert not {"args", "kwargs"} & set(parameters)


def test_every_launcher_has_a_plan() -> None:
    assert len(PLANS) == 17


def test_a_launcher_runs_its_plan_and_a_plan_runs_nothing() -> None:
    ran: list[str] = []

    class Noted(Launch):
        def run(self, device: torch.device) -> None:
            ran.append(f"{self.kernel} on {device}")

    @launched
    def doubled(x: Tensor, *, times: int = 2) -> Tensor:
        launches = (Noted(name, (1,), {}, 4, 1) for name in ("first", "second"))
        return planned(x * times, *launches, on=("x", x))

    plan_doubled = plan_of(doubled)
    x = torch.ones(1)
    result, launches = plan_doubled(x, times=3)
    assert (result.item(), [launch.kernel for launch in launches], ran) == (
        3,
        ["first", "second"],
        [],
    )
    if interpreted():
        assert doubled(x).item() == 2
        assert ran == ["first on cpu", "second on cpu"]
    with pytest.raises(ValueError, match="x: got a tensor on meta"):
        doubled(x.to("meta"))
    assert plan_doubled(x.to("meta"))[0].is_meta
