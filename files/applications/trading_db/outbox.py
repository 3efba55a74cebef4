"""What a bot has written and the database has not yet: a SQLite file beside the bot.

An entry is durable before it is acknowledged, leaves the file once it is
delivered, and stays with its reason where the database refuses it. One process
at a time has the file; a lock beside it says which.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .errors import TradingDBError
from .values import pack, unpack

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entries (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    summary TEXT NOT NULL,
    operations TEXT NOT NULL,
    refused TEXT
);
CREATE INDEX IF NOT EXISTS entries_refused ON entries (sequence) WHERE refused IS NOT NULL;
-- Row ids that the database has given to this bot and no row has yet.
CREATE TABLE IF NOT EXISTS ids (target TEXT NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (target, id)) WITHOUT ROWID;
"""


class OutboxError(TradingDBError):
    """The outbox cannot be used: nothing is acknowledged without it."""


class OutboxUnwritable(OutboxError):
    """The outbox cannot be written now; what is in it is sound."""


class Operation(NamedTuple):
    """A statement of an entry. Where it changes no row, `unmatched` is why the entry is refused, if given."""

    sql: str
    parameters: Any
    unmatched: str | None = None


@dataclass(frozen=True)
class Entry:
    """One write: its operations are one transaction."""

    sequence: int
    summary: str
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Listed:
    """An entry as an operator sees it."""

    sequence: int
    created_at: str
    summary: str
    operations: str
    refused: str | None


def encode(operations: Iterable[Operation]) -> str:
    """Operations as the file keeps them. Raises Refused for a parameter that SQL does not know."""
    return json.dumps([[o.sql, _packed(o.parameters), o.unmatched] for o in operations], ensure_ascii=False)


def _packed(parameters: Any) -> Any:
    if isinstance(parameters, dict):
        return {name: pack(name, value) for name, value in parameters.items()}
    return [pack(f"parameter {number}", value) for number, value in enumerate(parameters, start=1)]


def decode(text: str) -> tuple[Operation, ...]:
    """What encode was given."""
    return tuple(
        Operation(
            sql,
            {name: unpack(value) for name, value in parameters.items()}
            if isinstance(parameters, dict)
            else [unpack(value) for value in parameters],
            unmatched,
        )
        for sql, parameters, unmatched in json.loads(text)
    )


class Outbox:
    """The file of one bot, held by this process. Usable by several threads."""

    def __init__(self, folder: Path, bot_id: str) -> None:
        self.path = folder / f"{bot_id}.outbox"
        self._lock = threading.RLock()
        # The thread that is inside a transaction.
        self._inside: int | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._holder = _hold(folder / f"{bot_id}.lock")
        except OSError as error:
            raise OutboxError(
                f"the outbox folder {folder.absolute()} cannot be written ({error.strerror}): expected a folder of "
                f"user {os.getuid()}; make it writable for that user, or set TRADING_DB_OUTBOX"
            ) from error
        try:
            with self._errors_named():
                self._db = self._open(bot_id)
        except BaseException:
            os.close(self._holder)
            raise

    def _open(self, bot_id: str) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=10)
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise sqlite3.OperationalError(f"journal_mode is {mode}, expected wal")
            db.execute("PRAGMA synchronous = FULL")
            problems = [text for (text,) in db.execute("PRAGMA quick_check(3)") if text != "ok"]
            if problems:
                raise sqlite3.DatabaseError("; ".join(problems))
            db.executescript(_SCHEMA)
            db.execute("INSERT OR IGNORE INTO meta VALUES ('bot_id', ?), ('outbox_id', ?)", (bot_id, str(uuid.uuid4())))
            meta = dict(db.execute("SELECT key, value FROM meta"))
            self.path.chmod(0o600)
            _sync_folder(self.path.parent)
        except BaseException:
            db.close()
            raise
        if meta["bot_id"] != bot_id:
            db.close()
            raise OutboxError(
                f"{self.path.absolute()} is the outbox of {meta['bot_id']}, expected {bot_id}: "
                f"give it back its name, {meta['bot_id']}.outbox, and start the bot again"
            )
        self.outbox_id = meta["outbox_id"]
        return db

    def close(self) -> None:
        """Let the file and its lock go."""
        with self._lock, suppress(sqlite3.Error):
            self._db.close()
        os.close(self._holder)

    @property
    def interrupted(self) -> bool:
        """Whether this thread is inside a transaction, as it is where a signal handler interrupts it."""
        return self._inside == threading.get_ident()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and durable at its end. Raises OutboxError."""
        with self._lock, self._errors_named():
            if self.interrupted:
                yield
                return
            try:
                self._inside = threading.get_ident()
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._inside = None

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise _explained(self.path.absolute(), error) from error

    # What the bot does.

    def append(self, summary: str, operations: str) -> int:
        """Keep an entry (encoded operations). Returns its sequence number: it is durable."""
        with self.transaction():
            cursor = self._db.execute("INSERT INTO entries (summary, operations) VALUES (?, ?)", (summary, operations))
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def take_id(self, table: str) -> int | None:
        """A row id reserved for a table, never given again; None if there is none left."""
        with self.transaction():
            (found,) = self._db.execute("SELECT min(id) FROM ids WHERE target = ?", (table,)).fetchone()
            self._db.execute("DELETE FROM ids WHERE target = ? AND id = ?", (table, found))
            return None if found is None else int(found)

    def last_sequence(self) -> int:
        """The number of the newest entry ever kept."""
        found = self._value("SELECT max(seq) FROM sqlite_sequence WHERE name = 'entries'")
        return found or 0

    def refusal(self, sequence: int) -> str | None:
        """Why the database refused an entry, if it did."""
        with self._lock, self._errors_named():
            row = self._db.execute("SELECT refused FROM entries WHERE sequence = ?", (sequence,)).fetchone()
            return row[0] if row else None

    def refused_count(self) -> int:
        return self._value("SELECT count(*) FROM entries WHERE refused IS NOT NULL") or 0

    def pending_count(self) -> int:
        return self._value("SELECT count(*) FROM entries WHERE refused IS NULL") or 0

    def id_count(self, table: str) -> int:
        return self._value("SELECT count(*) FROM ids WHERE target = ?", table) or 0

    def _value(self, query: str, *parameters: str) -> int | None:
        with self._lock, self._errors_named():
            found: int | None = self._db.execute(query, parameters).fetchone()[0]
            return found

    # What the delivery does.

    def pending(self, after: int, limit: int) -> list[Entry]:
        """The entries to be delivered next, in order."""
        with self._lock, self._errors_named():
            rows = self._db.execute(
                "SELECT sequence, summary, operations FROM entries"
                " WHERE sequence > ? AND refused IS NULL ORDER BY sequence LIMIT ?",
                (after, limit),
            ).fetchall()
        return [Entry(sequence, summary, decode(operations)) for sequence, summary, operations in rows]

    def delivered(self, through: int) -> None:
        """Let go of the entries up to a number; those that were refused stay."""
        with self.transaction():
            self._db.execute("DELETE FROM entries WHERE sequence <= ? AND refused IS NULL", (through,))

    def refuse(self, sequence: int, reason: str) -> None:
        """Set an entry aside."""
        with self.transaction():
            self._db.execute("UPDATE entries SET refused = ? WHERE sequence = ?", (reason, sequence))

    def send_again(self) -> int:
        """Put the entries that were refused behind the others, in their order. Returns how many."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO entries (created_at, summary, operations)"
                " SELECT created_at, summary, operations FROM entries WHERE refused IS NOT NULL ORDER BY sequence"
            )
            return self._db.execute("DELETE FROM entries WHERE refused IS NOT NULL").rowcount

    def add_ids(self, table: str, ids: Sequence[int]) -> None:
        """Keep row ids that the database has reserved."""
        with self.transaction():
            self._db.executemany("INSERT OR IGNORE INTO ids VALUES (?, ?)", [(table, number) for number in ids])

    def newest_ids(self) -> list[tuple[str, int]]:
        """The highest row id that is kept of each table."""
        with self._lock, self._errors_named():
            return self._db.execute("SELECT target, max(id) FROM ids GROUP BY target").fetchall()

    def forget_ids(self) -> None:
        """Let go of the row ids, where they may be others' by now."""
        with self.transaction():
            self._db.execute("DELETE FROM ids")

    def continue_after(self, sequence: int) -> None:
        """Number new entries from there on, if that is ahead.

        A file that was put back from a copy has forgotten numbers that the
        database knows as delivered, and that its row ids were used.
        """
        with self.transaction():
            if self.last_sequence() < sequence:
                self._db.execute("DELETE FROM sqlite_sequence WHERE name = 'entries'")
                self._db.execute("INSERT INTO sqlite_sequence VALUES ('entries', ?)", (sequence,))
                self.forget_ids()


def listed(folder: Path, bot_id: str) -> list[Listed]:
    """All entries of a bot's outbox, read beside the process that has it. Empty where there is no file."""
    path = folder / f"{bot_id}.outbox"
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as db:
            rows = db.execute("SELECT sequence, created_at, summary, operations, refused FROM entries ORDER BY 1")
            return [Listed(*row) for row in rows]
    except sqlite3.DatabaseError as error:
        raise _explained(path.absolute(), error) from error


def holder(folder: Path, bot_id: str) -> str | None:
    """Which process has the outbox, if one has."""
    try:
        file = os.open(folder / f"{bot_id}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(file, 200).decode(errors="replace").strip() or "another process"
    finally:
        os.close(file)
    return None


def _hold(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _locked(file):
        other = os.read(file, 200).decode(errors="replace").strip() or "another process"
        os.close(file)
        raise OutboxError(
            f"the outbox {path.with_suffix('.outbox').absolute()} is held by {other}: expected one process a bot; "
            "stop that one, or give this one a bot id or a TRADING_DB_OUTBOX of its own"
        )
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    return file


def _locked(file: int) -> bool:
    """Take the lock. Whoever asks for the holder has it for a moment, so once is not enough."""
    for _ in range(10):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _explained(path: Path, error: sqlite3.DatabaseError) -> OutboxError:
    """What happened to the file, and what to do about it."""
    cause = str(error)
    if "full" in cause or "disk I/O" in cause:
        return OutboxUnwritable(
            f"the outbox {path} cannot be written ({cause}), the write is not stored: free space on its disk"
        )
    if "readonly" in cause or "unable to open" in cause:
        return OutboxUnwritable(
            f"the outbox {path} cannot be written ({cause}), the write is not stored: make it and its folder writable "
            f"for user {os.getuid()}"
        )
    if "locked" in cause:
        return OutboxUnwritable(
            f"the outbox {path} cannot be written ({cause}), the write is not stored: end the program that has it open"
        )
    return OutboxError(
        f"the outbox {path} cannot be used ({cause}), nothing was stored: stop the bot, move {path.name}* to another "
        f"folder, start the bot, which begins a new outbox, and look into the old one with "
        f"`sqlite3 {path.name} .recover` for entries that were not delivered"
    )
