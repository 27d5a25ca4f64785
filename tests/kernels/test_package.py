"""How ``drowsy_kernels`` loads, and what it says where it cannot run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import drowsy_kernels
import pytest


def run_python(code: str, **variables: str) -> str:
    """Standard output of a fresh, uninterpreted Python that sees no GPU."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), CUDA_VISIBLE_DEVICES="")
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_refuses_a_wrong_name() -> None:
    source = Path(drowsy_kernels.__file__)
    spec = importlib.util.spec_from_file_location("kernels", source)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match="drowsy_kernels"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_imports_without_gpu_and_without_drowsy() -> None:
    code = "import sys, drowsy_kernels as k; print(k.interpreted(), 'drowsy' in sys.modules)"
    assert run_python(code).split() == ["False", "False"]
    assert run_python(code, TRITON_INTERPRET="1").split() == ["True", "False"]


def test_cpu_tensors_without_the_interpreter_say_what_to_do() -> None:
    code = (
        "import torch, drowsy_kernels as k\n"
        "x = torch.zeros(1, 1, 1, 1)\n"
        "try: k.conv2d(x, k.pack_weight(x))\n"
        "except ValueError as error: print(error)"
    )
    assert "TRITON_INTERPRET=1" in run_python(code)
