"""A private, consistent copy of the Momentum bot's SQLite file, and its rows."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from . import parallel
from .errors import SourceError
from .settings import legacy_tables
from .values import UTC

# The bot writes every few seconds, each time for milliseconds.
BUSY_SECONDS = 5.0
# So many bytes are copied at once. A copy in steps starts again after each write
# of the bot; so often, before it is made in one step, for which a writer waits
# (about a second a gigabyte).
STEP = 1 << 22
RESTARTS = 20
# Rows that are converted at once: the processor's cache has room for their texts.
BATCH = 250
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
    """An open copy. Everything committed before snapshot_at is in it."""

    source: Path
    path: Path
    connection: sqlite3.Connection
    snapshot_at: datetime
    extra: dict[str, list[str]]

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

    def count(self, table: str) -> int:
        """Rows of a table, as SQLite counts them."""
        found: int = self.connection.execute(f"SELECT count(*) FROM {_quoted(table)}").fetchone()[0]
        return found

    def batches(
        self, table: str, columns: Sequence[str], ranges: Sequence[tuple[int, int]] | None = None
    ) -> Iterator[list[tuple[Any, ...]]]:
        """The rows in the order of their ids, BATCH at a time: all, or those with ids in the ranges.

        The first column is the id.
        """
        names = ", ".join(_quoted(name) for name in columns)
        query = f"SELECT {names} FROM {_quoted(table)} WHERE id BETWEEN ? AND ? ORDER BY id"
        batch: list[tuple[Any, ...]] = []
        for low, high in [_ALL] if ranges is None else ranges:
            cursor = self.connection.execute(query, (low, high))
            while True:
                try:
                    rows = cursor.fetchmany(BATCH - len(batch))
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
                if len(batch) == BATCH:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def highest(self, table: str) -> int:
        """The highest id of a table; 0 where it is empty."""
        return self.connection.execute(f"SELECT max(id) FROM {_quoted(table)}").fetchone()[0] or 0

    def absent(self, table: str, ranges: Iterable[tuple[int, int]], highest: int) -> Iterator[int]:
        """Ids from 1 to `highest` in ranges that a table does not have."""
        query = f"SELECT id FROM {_quoted(table)} WHERE id BETWEEN ? AND ? ORDER BY id"
        for low, high in ranges:
            at = max(low, 1)
            for (number,) in self.connection.execute(query, (at, high)):
                yield from range(at, number)
                at = number + 1
            yield from range(at, min(high, highest) + 1)


@contextmanager
def private_copy(path: Path, warn: Callable[[str], None]) -> Iterator[Copy]:
    """Copy the file as of one moment, and remove the copy in the end.

    The source is opened read-only, and no writer waits for it. Raises
    SourceError where it is absent, locked, not a database, damaged, or lacks a
    table or column.
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
        snapshot_at = back_up(path, copy)
        connection = _connect(copy)
        try:
            try:
                yield Copy(path, copy, connection, snapshot_at, _check(connection, path, warn))
            except sqlite3.OperationalError as error:
                raise SourceError(f"the copy of {path} cannot be read: {error}; run this again") from error
            except sqlite3.DatabaseError as error:
                raise SourceError(f"{path} is damaged: {error}; restore it from a backup") from error
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


def back_up(path: Path, copy: Path) -> datetime:
    """Copy the file; everything committed before the time given is in the copy. Raises SourceError."""
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
        _copy(path, copy, "immutable=1" if idle else "mode=ro")
        after = path.stat()
        if not idle or (
            not wal.exists() and (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        ):
            return snapshot_at
    raise SourceError(
        f"{path} is opened and closed again and again: expected one steady writer or none; run this again"
    )


def _copy(path: Path, copy: Path, mode: str) -> None:
    try:
        copied = False
        if mode == "mode=ro":
            with closing(_reader(path, mode)) as source:
                copied = _copy_in_steps(source, path, copy)
        if not copied:
            # Not by the same connection: it has lost its lock, see there.
            with closing(_reader(path, mode)) as source:
                _copy_at_once(source, copy)
    except (sqlite3.OperationalError, OSError) as error:
        if "readonly" in str(error):
            raise SourceError(
                f"{path} was left in the middle of a transaction ({path.name}-journal): start its bot once, so that SQLite "
                "rolls the transaction back, then run this again"
            ) from error
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


def _reader(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None)


def _copy_in_steps(source: sqlite3.Connection, path: Path, copy: Path) -> bool:
    """As the online backup does it, but many pages with one call; False where the file alone is not the database.

    While a connection reads, nobody writes to the file. A step is a millisecond
    or two, and the bot can write in between; then the copy starts again.
    """
    version: object = None
    restarts, place, sent = -1, 0, 1
    # A process that closes a file drops its locks on it, SQLite's too: not before the last step.
    with path.open("rb") as pages, copy.open("r+b", buffering=0) as target:
        while sent:
            source.execute("BEGIN")
            # Begins to read, and differs if another connection has written.
            found = source.execute("PRAGMA data_version").fetchone()
            if found != version:
                version, place = found, 0
                restarts += 1
                target.seek(0)
                if source.execute("PRAGMA journal_mode").fetchone() == ("wal",):
                    source.execute("COMMIT")
                    return False
            while sent := os.sendfile(target.fileno(), pages.fileno(), place, STEP):
                place += sent
                if restarts < RESTARTS:
                    break
            source.execute("COMMIT")
        # An earlier one may have been longer. A file emptied before it is written would be flushed at its close.
        target.truncate(place)
    return True


def _copy_at_once(source: sqlite3.Connection, copy: Path) -> None:
    """By SQLite's online backup: nobody waits for a reader of a database in WAL mode."""
    copy.unlink()
    copy.touch(mode=0o600)
    with closing(sqlite3.connect(copy, isolation_level=None)) as target:
        # The copy is private and short-lived: nothing is lost with it.
        target.execute("PRAGMA synchronous = OFF")
        # Reads from here on, or says that it may not: the backup would try for ever.
        source.execute("BEGIN")
        source.execute("PRAGMA data_version").fetchone()
        source.backup(target)
        # The copy is read by one process: it needs no files beside it.
        target.execute("PRAGMA journal_mode = DELETE")


def _check(connection: sqlite3.Connection, path: Path, warn: Callable[[str], None]) -> dict[str, list[str]]:
    """Name what is missing; return the columns nobody knows, by table."""
    extra: dict[str, list[str]] = {}
    missing: list[str] = []
    for table, columns in legacy_tables("momentum").items():
        described = connection.execute(f"PRAGMA table_info({_quoted(table)})").fetchall()
        found = [str(name) for _, name, *_ in described]
        if not found:
            missing.append(f"table {table}")
            continue
        missing += [f"column {table}.{name}" for name in columns if name not in found]
        keys = [(name, kind.upper()) for _, name, kind, _, _, key in described if key]
        # Else ids may be NULL or there twice, and say nothing about where a row lies.
        if "id" in found and keys != [("id", "INTEGER")]:
            missing.append(f"the primary key of {table} (id INTEGER PRIMARY KEY)")
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
