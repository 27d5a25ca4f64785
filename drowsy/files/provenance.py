"""Where a result comes from: machine, versions, commit, command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from drowsy import _distribution


def provenance() -> dict[str, Any]:
    """JSON-able facts about this run; paths are left out."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join([_program(), *map(_without_folders, sys.argv[1:])]),
        "commit": _commit(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": gpu,
        },
        "versions": {
            "python": platform.python_version(),
            "drowsy": _distribution.VERSION,
            **{name: _version(name) for name in ("torch", "triton", "numpy")},
        },
    }


def _program() -> str:
    """What runs: a script by its name, a module as ``python -m`` is told it."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None or spec.name == "__main__":  # of a folder
        return Path(sys.argv[0]).name
    return f"python -m {spec.name.removesuffix('.__main__')}"


def _without_folders(argument: str) -> str:
    return Path(argument).name if os.sep in argument else argument


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _commit() -> str | None:
    """The repository's commit, with ``-dirty`` where one of the two packages differs from it.

    Where they belong to no repository, ``DROWSY_COMMIT`` may tell. Installed in a folder of
    somebody's checkout they are not tracked there: its commit says nothing about them.
    """
    specs = [find_spec(name) for name in ("drowsy", "drowsy_kernels")]
    sources = [Path(spec.origin).resolve() for spec in specs if spec and spec.origin]

    def git(*command: str) -> str:
        line = ["git", "-C", str(sources[0].parent), *command]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", *map(str, sources))
        commit = git("rev-parse", "HEAD")
        folders = [str(source.parent) for source in sources]
        changed = git("status", "--porcelain", "--untracked-files=no", *folders)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("DROWSY_COMMIT")
    return commit + ("-dirty" if changed else "")
