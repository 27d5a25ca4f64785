"""What others install, what it says of itself, and what they see of a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from importlib.machinery import ModuleSpec
from pathlib import Path
from zipfile import ZipFile

import numpy
import pytest
import torch
import triton

from drowsy import _distribution
from drowsy.files import provenance

ROOT = Path(__file__).resolve().parents[1]
# Packages, and the folders of the checkout that they are made from.
SOURCES = {"drowsy": ROOT / "drowsy", "drowsy_kernels": ROOT / "kernels" / "drowsy_kernels"}


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Standard output of a command that sees neither the checkout nor a user's packages."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "DROWSY_COMMIT")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"PYTHONNOUSERSITE": "1", **variables}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def git(repository: Path, *command: str) -> str:
    """Run git in a repository of the test's own."""
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return run("git", *who, "-C", repository, *command, cwd=repository).strip()


def files(package: Path) -> set[str]:
    """What belongs into the wheel: sources and data, relative to the package."""
    found = (path.relative_to(package) for path in package.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def build(folder: Path) -> Path:
    """The wheel, made from the source distribution as an index's would be."""
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in ("drowsy", "kernels"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    script = "from setuptools import build_meta; print(build_meta.build_sdist('..'))"
    sdist = run(sys.executable, "-c", script, cwd=checkout).split()[-1]
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "wheel", *offline, folder / sdist, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install into a fresh environment beside this one's torch, triton and numpy; its folder."""
    venv.create(folder, with_pip=False, symlinks=True)
    (python,) = folder.glob("bin/python")
    offline = ("--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *offline, wheel, cwd=folder)
    # A folder named in a .pth file is searched last, and .pth files within it are not followed: an
    # editable install there stays out of sight.
    (packages,) = folder.glob("lib/python*/site-packages")
    beside = {str(Path(str(m.__file__)).parents[1]) for m in (torch, triton, numpy)}
    (packages / "beside.pth").write_text("\n".join(sorted(beside)) + "\n")
    return packages


def test_a_wheel_installed_elsewhere_has_everything_and_works(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    assert wheel.name.startswith(f"{_distribution.NAME}-{_distribution.VERSION}-")
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {f"{package}/{file}" for package in SOURCES for file in files(SOURCES[package])}

    # In somebody's checkout, as environments often are.
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    git(theirs, "init", "-q")
    git(theirs, "commit", "-q", "--allow-empty", "-m", "theirs")
    packages = install(wheel, theirs / ".venv")
    empty = theirs / "empty"
    empty.mkdir()
    python = theirs / ".venv" / "bin" / "python"
    script = Path(shutil.copy(ROOT / "tests" / "installed.py", theirs))
    told = json.loads(run(python, script, cwd=empty, TRITON_INTERPRET="1"))
    for package in SOURCES:
        assert Path(told[package]) == packages / package / "__init__.py"
    assert told["version"] == told["distribution"] == told["recorded"] == _distribution.VERSION
    assert told["commit"] is None

    expected = f"drowsy {_distribution.VERSION}\n"
    assert run(python, "-m", "drowsy", "--version", cwd=empty) == expected
    assert run(theirs / ".venv" / "bin" / "drowsy", "--version", cwd=empty) == expected
    assert list(empty.iterdir()) == []


def test_a_record_tells_the_commit_of_both_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lie_in(folder: Path) -> None:
        monkeypatch.setattr(
            provenance,
            "find_spec",
            lambda name: ModuleSpec(name, None, origin=str(folder / name / "__init__.py")),
        )

    def write(folder: Path, text: str) -> None:
        for name in SOURCES:
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "__init__.py").write_text(text)

    monkeypatch.delenv("DROWSY_COMMIT", raising=False)
    write(tmp_path, "")
    lie_in(tmp_path)
    assert provenance.provenance()["commit"] is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "ours")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.provenance()["commit"] == commit
    for name in SOURCES:
        source = tmp_path / name / "__init__.py"
        source.write_text("changed = True\n")
        assert provenance.provenance()["commit"] == f"{commit}-dirty"
        source.write_text("")
    # Reached through a link, as from a folder that gives the package its name.
    (tmp_path / "links").mkdir()
    for name in SOURCES:
        (tmp_path / "links" / name).symlink_to(tmp_path / name)
    lie_in(tmp_path / "links")
    assert provenance.provenance()["commit"] == commit

    write(tmp_path / "site-packages", "")
    lie_in(tmp_path / "site-packages")
    assert provenance.provenance()["commit"] is None
    monkeypatch.setenv("DROWSY_COMMIT", "told")
    assert provenance.provenance()["commit"] == "told"


# What a library does that would use ``kernels``, another project's package, where there is one.
LOOK = """
import importlib, importlib.metadata, importlib.util, sys
sys.path.insert(0, sys.argv[1])
spec = importlib.util.find_spec("kernels")
try:
    importlib.metadata.version("kernels")
except importlib.metadata.PackageNotFoundError:
    # Found but not installed: a package is asked itself, a mere folder is none.
    module = importlib.import_module("kernels") if spec else None
else:
    raise AssertionError("a distribution poses as kernels")
print(getattr(module, "__file__", None), getattr(module, "__version__", None))
try:
    from kernels import get_kernel
except ImportError:
    print("absent")
else:
    print(get_kernel())
"""


def test_the_checkout_does_not_pose_as_another_package(tmp_path: Path) -> None:
    """The checkout comes first on the path; the other package, where there is one, last."""

    def look(*path: Path) -> list[str]:
        paths = os.pathsep.join(map(str, path))
        return run(sys.executable, "-S", "-c", LOOK, ROOT, cwd=tmp_path, PYTHONPATH=paths).split()

    assert look() == ["None", "None", "absent"]
    theirs = tmp_path / "site" / "kernels" / "__init__.py"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("__version__ = '1.2'\ndef get_kernel(): return 'theirs'\n")
    assert look(theirs.parents[1]) == [str(theirs), "1.2", "theirs"]
