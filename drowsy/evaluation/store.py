"""Every evaluated point, in an SQLite file, the moment it is known.

A row is one (network, data, configuration, seed, setting). ``put`` commits before it returns, so a
killed search loses at most the point in flight, and several processes may write at once. (A power
cut may cost the last few points, never the file: WAL with ``synchronous = NORMAL``.)

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from drowsy.evaluation.identity import Context
from drowsy.evaluation.metrics import Counts
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
# Where a point keeps the sum of each metric.
_COLUMNS = {"top1": "top1", "top5": "top5", "agreement": "agree", "divergence": "divergence"}
_METRICS = [METRICS[name] for name in _COLUMNS]
_INSERT = (
    f"INSERT INTO points (context, setting, images, {', '.join(_COLUMNS.values())}) "
    f"VALUES (?, ?, ?, {', '.join('?' * len(_COLUMNS))}) ON CONFLICT DO NOTHING"
)
_SELECT = f"SELECT setting, images, {', '.join(_COLUMNS.values())} FROM points WHERE context = ?"


class Store:
    """An evaluation store in the file ``path`` (``":memory:"`` for none), made if missing.

    Threads may share one; a process that was forked opens its own.

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

        Raises:
            ValueError: the store holds another result for the same point (divergence, a sum of
                floats, may differ), a sum is not finite, or one is of a metric that a store has no
                column for.
        """
        sums = counts.sums
        if unknown := [name for name in sums if name not in _COLUMNS]:
            raise ValueError(
                f"store {self.path}: got {', '.join(unknown)}, allowed: {', '.join(_COLUMNS)}"
            )
        for name, value in sums.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"{name}: got {value} for setting {setting}, allowed: a finite number; does "
                    "the network put out NaN?"
                )
        text = ",".join(map(str, setting))
        with self._access("be written") as database:
            key = (self._id(context), text)
            values = (*key, counts.images, *map(sums.get, _COLUMNS))
            if database.execute(_INSERT, values).rowcount:
                return
            row = database.execute(f"{_SELECT} AND setting = ?", key).fetchone()
        held, got = (_exact(each) for each in (self._read(row)[1], counts))
        if held != got:
            raise ValueError(f"store {self.path}: holds {held} for setting {text}, got {got}")

    def results(self, context: Context) -> dict[Setting, Counts]:
        """All results of one context.

        Raises:
            ValueError: the file is damaged, or holds something else in a row.
        """
        with self._access("be read") as database:
            known = self._known(context)
            rows = () if known is None else database.execute(_SELECT, (known,)).fetchall()
        return dict(map(self._read, rows))

    def _read(self, row: Sequence[Any]) -> tuple[Setting, Counts]:
        """A row of ``_SELECT``, which SQLite does not hold to its columns' types."""
        text, images, *values = row
        good = isinstance(text, str) and _SETTING.fullmatch(text) and type(images) is int
        if not good or not all(map(_fits, _METRICS, values, itertools.repeat(images))):
            *counts, last = map(repr, (images, *values))
            raise ValueError(
                f"store {self.path}: setting {text!r}: got {', '.join(counts)} and {last}, "
                "allowed: thresholds; a number of images, the counts top1, top5 (or None) and "
                "agree of them, and a finite divergence"
            )
        return tuple(map(int, text.split(","))), Counts.of(
            images, dict(zip(_COLUMNS, values, strict=True))
        )

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
    """What does not depend on how images were batched, as the divergence does."""
    return (counts.images, *(v for name, v in counts.sums.items() if name != "divergence"))
