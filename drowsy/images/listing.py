"""Which images a folder holds, and which class each of them is of."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from drowsy.files.messages import legible, listed, quoted
from drowsy.files.versioned import read_text

# Those of torchvision's ImageFolder.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Images that are not read, which is told.
_OTHERS = (".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".tga")
# What systems leave in folders, beside what they hide by a dot.
_LEFT_BEHIND = ("__MACOSX", "@eaDir")
LABELS = "labels.csv"
# Labels are int64.
_LABEL = re.compile(r"\s*([+-]?[0-9]{1,18})\s*")

Listed = list[tuple[Path, int | None]]
"""Files with their classes, None for those without labels."""


def list_images(root: Path, labels: Path | None, classes: int | None) -> Listed:
    """Images of a folder, sorted by name; see ``drowsy.images.folders.load_images``."""
    if labels is not None:
        if not labels.exists():
            raise FileNotFoundError(f"labels: no file {legible(labels)}")
        return _of_table(labels, root)
    for table in (root / LABELS, root.parent / LABELS):
        if table.exists():
            check_regular(table, "labels")
            return _of_table(table, root)
    return _of_folders(root, classes)


def class_names(root: Path, classes: int) -> list[str] | None:
    """Names of the classes where a folder has a subfolder for each of them; None elsewhere."""
    if any((folder / LABELS).exists() for folder in (root, root.parent)):
        return None
    _, folders = _inside(root)
    return [folder.name for folder in folders] if len(folders) == classes else None


def check_regular(path: Path, what: str) -> None:
    """Raise ValueError for what only looks like a file: a pipe would wait for a writer forever."""
    if not os.path.isfile(path):
        raise ValueError(f"{what}: {legible(path)} is no regular file, allowed: one")


def check_label(label: int | None, classes: int | None, where: Path) -> None:
    """Raise ValueError unless a label is the number of a class; ``where`` has it."""
    if label is not None and not 0 <= label < (classes or 2**63):
        allowed = "0 to 2**63 - 1" if classes is None else f"0 to {classes - 1}"
        raise ValueError(f"labels: got {label} for {legible(where)}, allowed: {allowed}")


# --- folders -------------------------------------------------------------------------------------


def _of_folders(root: Path, classes: int | None) -> Listed:
    """A folder for each class, in the order of their names; or images without labels."""
    files, folders = _inside(root)
    below = {folder: _files_below(folder, root) for folder in folders}
    _tell_of_others([*files, *itertools.chain.from_iterable(below.values())])
    plain = _images(files)
    by_class = {folder: _images(files) for folder, files in below.items()}
    if not any(by_class.values()):
        return [(path, None) for path in plain]
    if plain:
        raise ValueError(
            f"data: {legible(root)} holds images ({_some(plain)}) beside folders of images "
            f"({_some(folder for folder in folders if by_class[folder])}), allowed: one or the "
            "other"
        )
    _check_folders(root, by_class, classes)
    return [(path, label) for label, paths in enumerate(by_class.values()) for path in paths]


def _check_folders(root: Path, by_class: Mapping[Path, list[Path]], classes: int | None) -> None:
    """Raise ValueError unless the place of each folder among the others is its class."""
    for label, paths in enumerate(by_class.values()):
        for path in paths[:1]:
            check_label(label, classes, path)
    where, count = f"data: {legible(root)} holds", len(by_class)
    nested = [f for f, paths in by_class.items() if paths and f not in {p.parent for p in paths}]
    if nested:
        raise ValueError(
            f"{where} folders whose images are all in folders within ({_some(nested)}), allowed: a "
            "folder with images for each class; are the classes a folder further down?"
        )
    if classes is not None and count != classes:
        # A folder that is missing gives all that follow it the label of the one before.
        raise ValueError(
            f"{where} {count} folders ({_some(by_class)}), which would be classes 0 to {count - 1} "
            f"of {classes}; allowed: {classes} folders, of which some may be empty, or a table "
            f"{LABELS} (columns file,label)"
        )
    if classes is None and count == 1:
        raise ValueError(
            f"{where} one folder of images ({_some(by_class)}), which would be the only class; "
            "allowed: two classes or more, or the path of the folder that holds the images"
        )
    # Where there are as many folders as classes, they may be empty.
    empty = [folder for folder, paths in by_class.items() if not paths]
    if classes is None and empty:
        raise ValueError(
            f"{where} folders without images ({_some(empty)}), allowed: none, unless the number of "
            "classes is given and is that of the folders"
        )


def _files_below(folder: Path, root: Path) -> list[Path]:
    """Files in a folder and in the folders within it, sorted by name.

    Links are followed, and no folder is read twice, so that links in a circle end.
    """
    found, todo, seen = [], [folder], {_identity(root)}
    while todo:
        here = todo.pop()
        if _identity(here) not in seen:
            seen.add(_identity(here))
            files, folders = _inside(here)
            found += files
            todo += folders
    return sorted(found)


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders in a folder, sorted by name, but for what systems hide or leave behind."""
    with os.scandir(folder) as entries:
        seen = [e for e in entries if not e.name.startswith(".") and e.name not in _LEFT_BEHIND]
        files, folders = (
            sorted(folder / entry.name for entry in seen if entry.is_dir() == wanted)
            for wanted in (False, True)
        )
    return files, folders


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _images(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in SUFFIXES]


def _tell_of_others(paths: Iterable[Path]) -> None:
    """Warn of images of formats that are not read."""
    others = [path for path in paths if path.suffix.lower() in _OTHERS]
    if others:
        warnings.warn(
            f"data: {len(others)} images are passed over ({_some(others)}), allowed: "
            f"{', '.join(SUFFIXES)}",
            stacklevel=5,
        )


def _some(paths: Iterable[Path]) -> str:
    return listed(path.name for path in paths)


# --- tables --------------------------------------------------------------------------------------


def _of_table(table: Path, root: Path) -> Listed:
    """The files that a table names, beside it or under ``images/``, sorted by name."""
    where = f"labels: {legible(table)}"
    label_of: dict[str, str | None] = {}
    for line, row in _rows(table):
        name = row["file"]
        if not name:
            raise ValueError(f"{where}, line {line}: names no file")
        if name in label_of:
            raise ValueError(f"{where} names {legible(name)} twice, allowed: once")
        label_of[name] = row["label"]
    found: dict[Path, int] = {}
    for name, text in sorted(label_of.items()):
        path = _find(name, root, where)
        if path in found:
            raise ValueError(f"{where} names {legible(name)} twice, by other names, allowed: once")
        match = _LABEL.fullmatch(text or "")
        if match is None:
            raise ValueError(
                f"{where} gives {quoted(text)} for {legible(name)}, allowed: an integer of up "
                "to 18 digits"
            )
        found[path] = int(match[1])
    return list(found.items())


def _rows(table: Path) -> list[tuple[int, dict[str, str | None]]]:
    """Rows by column, each with the number of its line."""
    where = f"labels: {legible(table)}"
    try:
        reader = csv.DictReader(io.StringIO(read_text(table, "CSV"), newline=""))
        columns = list(reader.fieldnames or ())
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{where} cannot be read as CSV ({legible(error)})") from error
    if not {"file", "label"} <= set(columns) or len({*columns}) < len(columns):
        raise ValueError(
            f"{where} has columns {quoted(columns)}, allowed: file and label, each name once"
        )
    for line, row in rows:
        if None in row:
            raise ValueError(
                f"{where}, line {line}: has more cells than the {len(columns)} columns"
            )
    return rows


def _find(name: str, root: Path, where: str) -> Path:
    """The file that a table names."""
    if os.path.isabs(name) or ".." in Path(name).parts:
        raise ValueError(f"{where} names {legible(name)}, allowed: files in {legible(root)}")
    for path in (root / name, root / "images" / name):
        if os.path.exists(path):  # which pathlib's raises where a name is too long
            return path
    raise FileNotFoundError(f"{where} names {legible(name)}, which is not in {legible(root)}")
