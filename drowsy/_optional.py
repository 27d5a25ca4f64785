"""Packages that only some uses need."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Raises:
        ImportError: it cannot be imported; says why, and the pip line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} cannot be imported ({error}); install it with: {pip_line(extra)}"
        ) from error


def pip_line(extra: str) -> str:
    """What installs the packages of an extra: no index has ours, so that it is said in a clone."""
    return f'pip install -e ".[{extra}]", in the clone of drowsy'
