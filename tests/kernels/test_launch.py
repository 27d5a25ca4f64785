"""What a compiled launch demands of kernels, and an interpreted one does not."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import fields

import drowsy_kernels
import pytest
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
