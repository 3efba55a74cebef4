"""A private, consistent copy of the Momentum bot's SQLite file, and its rows."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from . import parallel, sqlite_pages
from .errors import SourceError
from .settings import legacy_tables
from .values import UTC

# The bot writes every few seconds, each time for milliseconds.
BUSY_SECONDS = 5.0
# A copy in steps starts again after each write of the bot; so often, before it
# is made in one step, for which a writer waits (a second a gigabyte).
RESTARTS = 20
# Ids that one process reads before it is the next one's turn, and rows from
# which it is worth starting some.
TURN = 2000
MANY = 50_000
T = TypeVar("T")
_PREFIX = "momentum-copy-"
_WAL = b"\x02\x02"
# Every id that SQLite can have.
_ALL = (-(1 << 63), (1 << 63) - 1)


@dataclass(frozen=True)
class Copy:
    """An open copy. Everything committed before snapshot_at is in it. `digests`: of its pages, if asked for."""

    source: Path
    path: Path
    connection: sqlite3.Connection
    snapshot_at: datetime
    extra: dict[str, list[str]]
    digests: bytes | None = None

    def spread(
        self, table: str, work: Callable[[Copy, list[tuple[int, int]] | None], Generator[T, None, None]]
    ) -> Generator[T, None, None]:
        """What `work` makes of a table, on several cores where that is worth it.

        It is given a copy and ranges of ids (None: all), and yields a result for
        each few rows; order is that of the ids, but for what it yields in the end.
        """
        count = self.count(table)
        processes = parallel.cores()
        low, high = self.connection.execute(f"SELECT min(id), max(id) FROM {_quoted(table)}").fetchone()
        # Ids with great gaps would make turns without rows.
        if count < MANY or processes == 1 or high - low > 10 * count:
            return work(self, None)

        def share(number: int, of: int) -> Generator[T, None, None]:
            turns = range(low + number * TURN, high + 1, of * TURN)
            own = replace(self, connection=_connect(self.path))
            return work(own, [(turn, turn + TURN - 1) for turn in turns])

        return parallel.shares(share, processes)

    def check(self) -> None:
        """Raise SourceError where the copy is damaged. Any thread may ask."""
        with closing(_connect(self.path)) as connection:
            problems = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
        if problems != ["ok"]:
            raise SourceError(f"{self.source} is damaged: {'; '.join(problems)}; restore it from a backup")

    def remove(self) -> None:
        """Remove it from the disk before its time, once nothing is read from it any more."""
        self.path.unlink()

    def count(self, table: str) -> int:
        """Rows of a table, as SQLite counts them."""
        found: int = self.connection.execute(f"SELECT count(*) FROM {_quoted(table)}").fetchone()[0]
        return found

    def batches(
        self, table: str, columns: Sequence[str], ranges: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[list[tuple[Any, ...]]]:
        """The rows in the order of their ids, a thousand at a time: all, or those with ids in the ranges.

        The first column is the id.
        """
        names = ", ".join(_quoted(name) for name in columns)
        query = f"SELECT {names} FROM {_quoted(table)} WHERE id BETWEEN ? AND ? ORDER BY id"
        batch: list[tuple[Any, ...]] = []
        for low, high in [_ALL] if ranges is None else ranges:
            cursor = self.connection.execute(query, (low, high))
            while True:
                try:
                    rows = cursor.fetchmany(1000 - len(batch))
                except sqlite3.OperationalError as error:
                    if "decode" not in str(error):
                        raise
                    # What is not UTF-8 must not stop the run: its row is rejected.
                    self.connection.text_factory = methodcaller("decode", "utf-8", "surrogateescape")
                    cursor = self.connection.execute(query, (low, high))
                    continue
                if not rows:
                    break
                low = rows[-1][0] + 1
                batch += rows
                if len(batch) == 1000:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def highest(self, table: str) -> int:
        """The highest id of a table; 0 where it is empty."""
        return self.connection.execute(f"SELECT max(id) FROM {_quoted(table)}").fetchone()[0] or 0

    def absent(self, table: str, ranges: Iterable[tuple[int, int]], highest: int) -> Iterator[int]:
        """Ids from 1 to `highest` in ranges that a table does not have."""
        for low, high in ranges:
            rows = self.connection.execute(f"SELECT id FROM {_quoted(table)} WHERE id BETWEEN ? AND ?", (low, high))
            present = {row[0] for row in rows}
            yield from (number for number in range(max(low, 1), min(high, highest) + 1) if number not in present)


@contextmanager
def private_copy(path: Path, warn: Callable[[str], None], digested: bool = False) -> Iterator[Copy]:
    """Copy the file by SQLite's online backup, and remove the copy in the end.

    `digested`: digest its pages as well. The source is opened read-only, and no
    writer waits for it. Raises SourceError where it is absent, locked, not a
    database, damaged, or lacks a table or column.
    """
    if not path.is_file():
        raise SourceError(
            f"{path} is not there: expected the Momentum bot's SQLite file; "
            "correct `legacy.sqlite` of the bot in the inventory"
        )
    # On disk, not in memory: years of history may be larger than /tmp.
    parent = Path(os.environ.get("TMPDIR") or "/var/tmp")
    _remove_abandoned(parent)
    try:
        size = path.stat().st_size
        free = shutil.disk_usage(parent).free
        if free < 2 * size:
            raise SourceError(
                f"{parent} has {free >> 20} MiB free, a copy of {path} needs {2 * size >> 20}: "
                "free some space, or set TMPDIR to a folder that has it"
            )
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
    except OSError as error:
        raise SourceError(
            f"cannot make a copy of {path} in {parent}: {error}; set TMPDIR to a writable folder"
        ) from error
    try:
        copy = folder / "trading.db"
        snapshot_at, digests = _back_up_and_digest(path, copy) if digested else (_back_up(path, copy), None)
        connection = _connect(copy)
        try:
            try:
                yield Copy(path, copy, connection, snapshot_at, _check(connection, path, warn), digests)
            except sqlite3.DatabaseError as error:
                raise SourceError(f"{path} cannot be read: {error}; restore it from a backup") from error
        finally:
            connection.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def _remove_abandoned(parent: Path) -> None:
    """Remove copies whose process was killed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        pid = folder.name[len(_PREFIX) :].split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and folder.owner() == Path("/proc/self").owner():
            shutil.rmtree(folder, ignore_errors=True)


def _back_up_and_digest(path: Path, copy: Path) -> tuple[datetime, bytes]:
    """_back_up, and the digests of the copy: meanwhile made of the source, which holds if nobody wrote to it.

    The backup has a process of its own, because whoever closes a file drops the
    locks of his process on it, SQLite's too.
    """
    began, before = time.time(), path.stat()
    with parallel.beside(lambda: _back_up(path, copy)) as copied:
        digests = b""
        # What cannot be read is told by the backup. A database in WAL mode is more than its file.
        with suppress(OSError), path.open("rb") as stream:
            if stream.read(20)[18:] != _WAL:
                digests = sqlite_pages.digests(path)
        snapshot_at = copied()
    after = path.stat()
    # A file system's clock ticks every few milliseconds.
    if digests and before.st_mtime < began - 0.1 and before.st_mtime_ns == after.st_mtime_ns:
        return snapshot_at, sqlite_pages.digests_of_backup(digests, copy)
    return snapshot_at, sqlite_pages.digests(copy, parallel.cores())


def _back_up(path: Path, copy: Path) -> datetime:
    try:
        header = path.open("rb").read(20)
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read: {error.strerror}; run this as an account that may read it"
        ) from error
    if header[:16] != b"SQLite format 3\0":
        raise SourceError(
            f"{path} is not an SQLite database: expected the Momentum bot's trading.db; restore it from a backup"
        )
    copy.touch(mode=0o600)
    wal = path.with_name(path.name + "-wal")
    for _ in range(3):
        # A database in WAL mode that nobody has open has no -wal file, and even
        # a read-only connection would leave one behind. Read it as immutable,
        # and make sure that nobody opened it meanwhile.
        idle = header[18:20] == _WAL and not wal.exists()
        before = path.stat()
        snapshot_at = datetime.fromtimestamp(time.time(), UTC)
        _copy_pages(path, copy, "immutable=1" if idle else "mode=ro")
        after = path.stat()
        if not idle or (
            not wal.exists() and (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        ):
            return snapshot_at
    raise SourceError(
        f"{path} is opened and closed again and again: expected one steady writer or none; run this again"
    )


def _copy_pages(path: Path, copy: Path, mode: str) -> None:
    moved = time.monotonic()
    left = restarts = 0

    def watch(status: int, remaining: int, _total: int) -> None:
        nonlocal left, restarts, moved
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            # A slow copy meets many short locks, and none of them stops it.
            if time.monotonic() > moved + BUSY_SECONDS:
                raise sqlite3.OperationalError("database is locked")
        else:
            moved = time.monotonic()
            if remaining > left > 0:
                # The bot wrote between two steps.
                restarts += 1
                if restarts == RESTARTS:
                    raise _KeepsChanging
        left = remaining

    try:
        source = sqlite3.connect(
            f"file:{quote(str(path))}?{mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
        )
        try:
            in_wal = source.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            target = sqlite3.connect(copy, isolation_level=None)
            try:
                # The copy is private and short-lived: nothing is lost with it.
                target.execute("PRAGMA synchronous = OFF")
                try:
                    # Nobody waits for a reader of a database in WAL mode. Else a
                    # step is some milliseconds, and the bot can write in between.
                    source.backup(target, pages=-1 if in_wal else 1000, progress=watch, sleep=0.05)
                except _KeepsChanging:
                    source.backup(target, pages=-1, progress=watch, sleep=0.05)
                # The copy is read by one process: it needs no files beside it.
                target.execute("PRAGMA journal_mode = DELETE")
            finally:
                target.close()
        finally:
            source.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise SourceError(
                f"{path} was locked for {BUSY_SECONDS:.0f} seconds: expected a bot that holds its lock only while it "
                "writes; find the process with `fuser -v` and end what keeps it, then run this again"
            ) from error
        raise SourceError(
            f"{path} cannot be copied: {error}; run this as an account that may read the file and its folder"
        ) from error
    except sqlite3.DatabaseError as error:
        raise SourceError(f"{path} is damaged: {error}; restore it from a backup") from error


class _KeepsChanging(Exception):
    """A copy in steps never came to its end."""


def _check(connection: sqlite3.Connection, path: Path, warn: Callable[[str], None]) -> dict[str, list[str]]:
    """Name what is missing; return the columns nobody knows, by table."""
    extra: dict[str, list[str]] = {}
    missing: list[str] = []
    for table, columns in legacy_tables("momentum").items():
        found = [str(row[1]) for row in connection.execute(f"PRAGMA table_info({_quoted(table)})")]
        if not found:
            missing.append(f"table {table}")
            continue
        missing += [f"column {table}.{name}" for name in columns if name not in found]
        extra[table] = [name for name in found if name not in columns]
        if extra[table]:
            warn(
                f"{path}: {table} has columns this project does not know, kept under `legacy`: {', '.join(extra[table])}"
            )
    if missing:
        raise SourceError(
            f"{path} lacks {', '.join(missing)}: expected the schema of the Momentum bot; "
            "check that `legacy.sqlite` of the bot names the right file"
        )
    return extra


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
