"""Triton's interpreter without what it does in vain: the same results in less than half the time.

``install`` is called by ``conftest``, before any kernel runs.
"""

from __future__ import annotations

import dataclasses
from types import FunctionType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def install() -> None:
    """Change this process's interpreter."""
    _work_out_no_overflows()
    _patch_once_a_launch()


def _work_out_no_overflows() -> None:
    """Sums of 32 bits are made in 64 as well, for a check that only ``debug`` makes."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _patch_once_a_launch() -> None:
    """Every call of a device function patches ``triton.language`` anew, which its launch did."""
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[tuple[bool, bool]] = set()

    def patch_once(function: FunctionType) -> Any:
        names = function.__globals__.values()
        seen = any(each is tl for each in names), any(each is tl.core for each in names)
        if seen in patched:
            return interpreter._LangPatchScope()
        patched.add(seen)
        return patch(function)

    def launch_patched(self: interpreter.GridExecutor, *arguments: Any, **options: Any) -> None:
        try:
            launch(self, *arguments, **options)
        finally:
            patched.clear()

    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launch_patched
