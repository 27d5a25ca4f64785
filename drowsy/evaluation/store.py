"""Every evaluated point, in an SQLite file, the moment it is known.

A row is one (network, data, configuration, seed, setting). ``put`` commits before it returns, so a
killed search loses at most the point in flight, and several processes may write at once. (A power
cut may cost the last few points, never the file: WAL with ``synchronous = NORMAL``.)

Of classifications, a row of ``points`` has the sums over the images, as it had in files from
before; ``figures`` has all other tasks' sums, and every metric's values of the single images.
Results from before have no such values, and are known without them.

The column of networks is called ``weights``, since files from before hold there a fingerprint of
weights alone. Such rows stay in the file, and match no network: what else it computed is not known.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

from drowsy.evaluation.identity import Context
from drowsy.evaluation.metrics import Counts, NotFinite
from drowsy.knob.metrics import METRICS, Metric
from drowsy.knob.schedule import Setting

VERSION = 1
MEMORY = ":memory:"
# How long a writer waits for another one; a write takes well under a millisecond.
_WAIT_S = 60
_SETTING = re.compile("[0-9]{1,3}(,[0-9]{1,3})*")
_SCHEMA = """
CREATE TABLE contexts (
    id INTEGER PRIMARY KEY,
    weights TEXT NOT NULL, data TEXT NOT NULL, configuration TEXT NOT NULL, seed INTEGER NOT NULL,
    UNIQUE (weights, data, configuration, seed)
);
CREATE TABLE points (
    context INTEGER NOT NULL REFERENCES contexts (id),
    setting TEXT NOT NULL,
    images INTEGER NOT NULL, top1 INTEGER, top5 INTEGER,
    agree INTEGER NOT NULL, divergence REAL NOT NULL,
    PRIMARY KEY (context, setting)
) WITHOUT ROWID;
"""
# Made where it is missing: a file of this version has it since drowsy knows other tasks. A total
# has no type, so that sums of floats stay floats.
_FIGURES = """
CREATE TABLE IF NOT EXISTS figures (
    context INTEGER NOT NULL REFERENCES contexts (id),
    setting TEXT NOT NULL, metric TEXT NOT NULL,
    images INTEGER NOT NULL, total, single BLOB,
    PRIMARY KEY (context, setting, metric)
) WITHOUT ROWID
"""
# Where a point of a classification keeps the sum of each metric; ``figures`` has it as ``total``
# of metrics without a column. ``single`` has the images' values, see ``_packed``.
_COLUMNS = {"top1": "top1", "top5": "top5", "agreement": "agree", "divergence": "divergence"}
_METRICS = [METRICS[name] for name in _COLUMNS]
_INSERT = (
    f"INSERT INTO points (context, setting, images, {', '.join(_COLUMNS.values())}) "
    f"VALUES (?, ?, ?, {', '.join('?' * len(_COLUMNS))}) ON CONFLICT DO NOTHING"
)
_SELECT = f"SELECT setting, images, {', '.join(_COLUMNS.values())} FROM points WHERE context = ?"
_INSERT_FIGURE = "INSERT INTO figures VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_SELECT_FIGURES = "SELECT setting, metric, images, total, single FROM figures WHERE context = ?"
_SELECT_TOTALS = (
    "SELECT setting, metric, images, total, NULL FROM figures"
    " WHERE context = ? AND total IS NOT NULL"
)


class Store:
    """An evaluation store in the file ``path`` (``":memory:"`` for none), made if missing.

    Threads may share one; another process opens its own.

    Raises:
        TypeError: no path.
        ValueError: the file cannot be opened, is no evaluation store, or one of another version. It
            is then as it was.

    Every method, beside what it names itself:
        OSError: the disk is full, the file cannot be written or another process keeps it locked.
        ValueError: the file is damaged, or the store closed.
        RuntimeError: the store is that of a process from which this one was forked.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _checked(path)
        self._ids: dict[str, int] = {}
        self._lock, self._process = threading.RLock(), os.getpid()
        try:
            # Autocommit: every statement is durable on its own unless a BEGIN says otherwise.
            # Threads take turns by the lock.
            self._db = sqlite3.connect(
                self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise ValueError(self._cannot("be opened", error)) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self.close()
            if isinstance(error, sqlite3.OperationalError):
                raise ValueError(self._cannot("be opened", error)) from error
            raise ValueError(f"store {self.path}: not an evaluation store ({error})") from error
        except ValueError:
            self.close()
            raise

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"store {self.path}: got copied or pickled, allowed: its path, as every process opens "
            "a Store of its own"
        )

    def _prepare(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
        if version == 0 and not tables:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
        elif not {"contexts", "points"} <= tables:
            raise ValueError(f"store {self.path}: not an evaluation store (another database)")
        elif version != VERSION:
            raise ValueError(f"store {self.path}: has version {version}, allowed: {VERSION}")
        self._db.execute(_FIGURES)
        self._db.execute("COMMIT")
        # Only now: the journal's mode is a property of the file, and the file may be another's.
        self._use_wal()
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _use_wal(self) -> None:
        """Change the journal's mode, which does not wait for other processes on its own."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _access(self, to: str) -> Iterator[sqlite3.Connection]:
        """The database, for one thread at a time; SQLite's errors tell the file and what failed."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"store {self.path}: was opened by process {self._process}, of which this one is a "
                "fork, allowed: a Store that this process opens"
            )
        with self._lock:
            try:
                yield self._db
            except sqlite3.ProgrammingError as error:
                raise ValueError(f"store {self.path}: is closed") from error
            except sqlite3.OperationalError as error:
                raise OSError(self._cannot(to, error)) from error
            except sqlite3.DatabaseError as error:
                raise ValueError(self._cannot(to, error)) from error

    def _cannot(self, what: str, error: sqlite3.Error) -> str:
        why, folder = str(error), Path(self.path).parent
        if Path(self.path).is_dir():
            why = "it is a folder"
        elif self.path != MEMORY and not folder.is_dir():
            why = f"there is no folder {folder}"
        elif "locked" in why:
            why = f"{why}, for {_WAIT_S:g} s, by another process"
        return f"store {self.path}: cannot {what} ({why})"

    def put(self, context: Context, setting: Setting, counts: Counts) -> None:
        """Keep a result; it outlives this process from the moment this returns.

        Values of the single images are added to a result that is there without them.

        Raises:
            ValueError: the store holds another result for the same point (a sum of floats, as the
                divergence is, may differ), a sum is not finite (``NotFinite``), or one is of a
                metric that nobody knows.
        """
        sums = counts.sums
        if unknown := [name for name in sums if name not in METRICS]:
            raise ValueError(
                f"store {self.path}: got {', '.join(unknown)}, allowed: {', '.join(METRICS)}"
            )
        for name, value in sums.items():
            if value is not None and not math.isfinite(value):
                raise NotFinite(
                    f"{name}: got {value} for setting {setting}, allowed: a finite number; does "
                    "the network put out NaN?"
                )
        if wrong := [name for name, each in counts.values.items() if len(each) != counts.images]:
            raise ValueError(f"values: got others than {counts.images} of {', '.join(wrong)}")
        text = ",".join(map(str, setting))
        with self._access("be written") as database, self._transaction("IMMEDIATE"):
            number, columns = self._id(context), _columns_of(context)
            there = self._rows(number, columns, text).get(tuple(setting))
            if there is None and columns:
                database.execute(_INSERT, (number, text, counts.images, *map(sums.get, columns)))
            if there is not None:
                held, got = _exact(there), _exact(counts)
                if held != got:
                    raise ValueError(
                        f"store {self.path}: holds {held} for setting {text}, got {got}"
                    )
            if there is None or not there.values:
                rows = _figures(counts, columns)
                database.executemany(_INSERT_FIGURE, ((number, text, *row) for row in rows))

    def results(self, context: Context, values: bool = True) -> dict[Setting, Counts]:
        """All results of one context, with the values of single images if these are asked for.

        Raises:
            ValueError: the file is damaged, or holds something else in a row.
        """
        with self._access("be read"), self._transaction("DEFERRED"):
            known = self._known(context)
            return {} if known is None else self._rows(known, _columns_of(context), values=values)

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        """All that a block reads is of one moment, and what it writes is there whole or not."""
        self._db.execute(f"BEGIN {kind}")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite ends some by itself
                self._db.execute("ROLLBACK")
            self._ids.clear()
            raise

    def _rows(
        self,
        number: int,
        columns: Mapping[str, str],
        setting: str | None = None,
        values: bool = True,
    ) -> dict[Setting, Counts]:
        """The results of a context, or its result at one setting."""
        only, key = ("", (number,)) if setting is None else (" AND setting = ?", (number, setting))
        found: dict[Setting, tuple[int, dict[str, Any], dict[str, np.ndarray]]] = {}
        if columns:
            for row in self._db.execute(_SELECT + only, key):
                where, images, sums = self._point(row)
                found[where] = images, sums, {}
        select = _SELECT_FIGURES if values else _SELECT_TOTALS
        for text, name, images, total, single in self._db.execute(select + only, key):
            where = self._figure(text, name, images, total, single)
            if columns and where not in found:
                continue  # of a point that is gone
            at = found.setdefault(where, (images, {}, {}))
            if images != at[0]:
                raise self._wrong(text, f"{name} of {images} images", f"{at[0]} of them")
            if name not in columns:
                at[1][name] = total
            if single is not None:
                at[2][name] = _unpacked(single, images)
        return {where: Counts.of(*parts) for where, parts in found.items()}

    def _point(self, row: Sequence[Any]) -> tuple[Setting, int, dict[str, Any]]:
        """A row of ``_SELECT``, which SQLite does not hold to its columns' types."""
        text, images, *values = row
        good = _is_setting(text) and type(images) is int
        if not good or not all(map(_fits, _METRICS, values, itertools.repeat(images))):
            *counts, last = map(repr, (images, *values))
            raise self._wrong(
                text,
                f"{', '.join(counts)} and {last}",
                "thresholds; a number of images, the counts top1, top5 (or None) and agree of "
                "them, and a finite divergence",
            )
        return tuple(map(int, text.split(","))), images, dict(zip(_COLUMNS, values, strict=True))

    def _figure(self, text: Any, name: Any, images: Any, total: Any, single: Any) -> Setting:
        """Check a row of ``_SELECT_FIGURES``; its setting."""
        good = _is_setting(text) and name in METRICS and type(images) is int and images > 0
        number = total is None or (type(total) in (int, float) and math.isfinite(total))
        sizes = (images, 4 * images) if good else ()
        if not good or not number or not (single is None or _size(single) in sizes):
            got = f"{name!r}, {images!r}, {total!r} and {_size(single)} bytes"
            raise self._wrong(
                text,
                got,
                "thresholds; a metric, a number of images, a finite sum or None, and 1 or 4 bytes "
                "for each image or none",
            )
        return tuple(map(int, text.split(",")))

    def _wrong(self, text: Any, got: str, allowed: str) -> ValueError:
        return ValueError(f"store {self.path}: setting {text!r}: got {got}, allowed: {allowed}")

    def _id(self, context: Context) -> int:
        """The number of a context, which gets one."""
        known = self._known(context)
        if known is None:
            self._db.execute(
                "INSERT OR IGNORE INTO contexts (weights, data, configuration, seed)"
                " VALUES (?, ?, ?, ?)",
                _columns(context),
            )
            known = self._known(context)
            assert known is not None, "it was put there, by this process or another one"
        return known

    def _known(self, context: Context) -> int | None:
        """The number of a context; None for one that has no results."""
        values = _columns(context)
        key = json.dumps(values)
        if key not in self._ids:
            row = self._db.execute(
                "SELECT id FROM contexts WHERE weights = ? AND data = ? AND configuration = ?"
                " AND seed = ?",
                values,
            ).fetchone()
            if row is None:
                return None
            (self._ids[key],) = row
        return self._ids[key]

    def close(self) -> None:
        """Close the file; closing twice changes nothing."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def open_store(store: Store | str | os.PathLike[str] | None) -> Store:
    """A store as it is, that of a path, or one in memory for None."""
    return store if isinstance(store, Store) else Store(MEMORY if store is None else store)


def _checked(path: Any) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"store: got {path!r}, allowed: a path, or {MEMORY!r} for no file")
    text = os.fsdecode(path)
    if not text or "\0" in text:
        # An empty name would be a file that is gone with the process.
        raise ValueError(f"store: got {text!r}, allowed: a path, or {MEMORY!r} for no file")
    return text


def _columns(context: Context) -> tuple[str, str, str, int]:
    configuration = json.dumps(context.configuration, sort_keys=True)
    return context.network, context.data, configuration, context.seed


def _fits(metric: Metric, value: Any, images: int) -> bool:
    """Whether a column of a metric may hold this, of so many images."""
    if metric.is_fraction:
        counted = type(value) is int and 0 <= value <= images
        return counted or (value is None and metric.needs_labels)
    return isinstance(value, float) and math.isfinite(value)


def _exact(counts: Counts) -> tuple[float | None, ...]:
    """What does not depend on how images were batched, as sums of floats do."""
    sums = (value for name, value in counts.sums.items() if name != "divergence")
    return (counts.images, *(value for value in sums if not isinstance(value, float)))


def _columns_of(context: Context) -> Mapping[str, str]:
    """The columns of ``points``, which only classifications have."""
    return {} if "task" in context.configuration else _COLUMNS


def _is_setting(text: Any) -> bool:
    return isinstance(text, str) and _SETTING.fullmatch(text) is not None


def _figures(counts: Counts, columns: Mapping[str, str]) -> Iterator[tuple[Any, ...]]:
    """Rows of what ``points`` has no columns for: metric, images, sum and the images' values."""
    for name, total in counts.sums.items():
        held = None if name in columns else total
        values = counts.values.get(name)
        if held is not None or values is not None:
            yield name, counts.images, held, None if values is None else _packed(values)


def _packed(values: np.ndarray) -> bytes:
    """A byte for each image where all are 0 or 1, else a little-endian float32."""
    small = values.astype(np.uint8) if np.isin(values, (0, 1)).all() else values.astype("<f4")
    return small.tobytes()


def _unpacked(single: bytes, images: int) -> np.ndarray:
    kind = np.uint8 if len(single) == images else np.dtype("<f4")
    return np.frombuffer(single, kind).astype(np.float32)


def _size(single: Any) -> int | None:
    return len(single) if isinstance(single, bytes) else None
