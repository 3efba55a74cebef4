"""How a SQLite file is copied while its bot goes on, and how the rows of a copy are read."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "files/migrations"))
from migration_engine import momentum_source
from migration_engine.errors import SourceError
from migration_engine.momentum_source import BATCH, Copy

ROWS = 10 * BATCH


@pytest.mark.parametrize("broken", [(), (1,), (BATCH, BATCH + 1), (6 * BATCH + 7, 8 * BATCH), (ROWS,)])
@pytest.mark.parametrize("ranges", [None, [(1, 10), (BATCH - 100, 7 * BATCH), (ROWS - 100, 2 * ROWS)]])
def test_rows_are_read_once_whatever_their_text_is(
    tmp_path: Path, broken: tuple[int, ...], ranges: list[tuple[int, int]] | None
) -> None:
    path = tmp_path / "trading.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, message TEXT)")
        connection.executemany("INSERT INTO events VALUES (?, ?)", [(n, f"message {n} ✋") for n in range(1, ROWS + 1)])
        for number in broken:
            connection.execute("UPDATE events SET message = CAST(x'4bff' AS TEXT) WHERE id = ?", (number,))
    with closing(sqlite3.connect(path)) as connection:
        copy = Copy(path, path, connection, datetime.now(UTC), {})
        batches = list(copy.batches("events", ["id", "message"], ranges))
    wanted = [n for n in range(1, ROWS + 1) if ranges is None or any(low <= n <= high for low, high in ranges)]
    expected = [(n, "K\udcff" if n in broken else f"message {n} ✋") for n in wanted]
    assert [row for batch in batches for row in batch] == expected
    assert all(len(batch) == BATCH for batch in batches[:-1])


ACCOUNTS = 400


class Bot:
    """A writer that moves money from one end of its file to the other, and is never made to wait."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        self.connection.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, amount INTEGER, filler TEXT)")
        self.connection.execute("BEGIN")
        rows = [(number, 100, "x" * 1000) for number in range(1, ACCOUNTS + 1)]
        self.connection.executemany("INSERT INTO accounts VALUES (?, ?, ?)", rows)
        self.connection.execute("COMMIT")
        self.trades = 0

    def trade(self) -> None:
        self.trades += 1
        self.connection.execute("BEGIN")
        self.connection.execute("UPDATE accounts SET amount = amount - 1 WHERE id = 1")
        self.connection.execute("UPDATE accounts SET amount = amount + 1 WHERE id = ?", (ACCOUNTS,))
        self.connection.execute("COMMIT")


def trades_in(copy: Path) -> int:
    """How many of the bot's trades are in a copy, which must hold each as a whole."""
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        total, given = connection.execute("SELECT sum(amount), 100 - min(amount) FROM accounts").fetchone()
    assert total == 100 * ACCOUNTS
    return int(given)


@pytest.fixture
def after_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Has something happen after the first, second, ... step of a copy; steps are two pages."""
    monkeypatch.setattr(momentum_source, "STEP", 8192)
    connect = sqlite3.connect

    def install(happens: Callable[[int], None]) -> None:
        steps = 0

        class Reader(sqlite3.Connection):
            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                nonlocal steps
                done = super().execute(sql, *arguments)
                if sql == "COMMIT":
                    steps += 1
                    happens(steps)
                return done

        monkeypatch.setattr(sqlite3, "connect", partial(connect, factory=Reader))

    return install


@pytest.mark.parametrize("writes", [0, 1, momentum_source.RESTARTS - 1, 10_000])
def test_a_copy_is_of_one_moment(tmp_path: Path, after_steps: Any, writes: int) -> None:
    bot = Bot(tmp_path / "trading.db")
    before: list[int] = []

    def trade(step: int) -> None:
        before.append(bot.trades)
        # A step beyond the middle, or the copy would always begin again before it is there.
        if bot.trades < writes and step % 30 == 29:
            bot.trade()

    after_steps(trade)
    momentum_source.back_up(tmp_path / "trading.db", tmp_path / "copy.db")
    # The last step saw what the copy has.
    assert trades_in(tmp_path / "copy.db") == before[-1]
    assert before[-1] == min(writes, momentum_source.RESTARTS)


def test_a_bot_that_turns_to_wal_is_copied_with_its_log(tmp_path: Path, after_steps: Any) -> None:
    bot = Bot(tmp_path / "trading.db")

    def turn(step: int) -> None:
        if step == 10:
            assert bot.connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
            bot.trade()

    after_steps(turn)
    momentum_source.back_up(tmp_path / "trading.db", tmp_path / "copy.db")
    assert trades_in(tmp_path / "copy.db") == bot.trades == 1
    assert [path.name for path in tmp_path.glob("copy.db*")] == ["copy.db"]


# A bot of another process, whose locks are its own. It says what it sees of the file's mode.
WAL_BOT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("UPDATE accounts SET amount = amount")
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0], flush=True)
    except sqlite3.OperationalError as error:
        print(error, flush=True)
"""


def test_a_database_in_wal_mode_stays_in_it_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Bot(tmp_path / "trading.db").connection.close()
    seen: list[str] = []
    command = [sys.executable, "-c", WAL_BOT, str(tmp_path / "trading.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"

        class Reader(sqlite3.Connection):
            def backup(self, *arguments: Any, **options: Any) -> None:
                assert other.stdin is not None
                assert other.stdout is not None
                print("turn back", file=other.stdin, flush=True)
                seen.append(other.stdout.readline())
                super().backup(*arguments, **options)

        monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Reader))
        momentum_source.back_up(tmp_path / "trading.db", tmp_path / "copy.db")
        other.stdin.close()
    assert seen == ["database is locked\n"]
    assert trades_in(tmp_path / "copy.db") == 0


def test_a_copy_has_the_bytes_of_its_source_even_if_that_shrinks(tmp_path: Path, after_steps: Any) -> None:
    bot = Bot(tmp_path / "trading.db")

    def shrink(step: int) -> None:
        # All but the end is copied.
        if step == ACCOUNTS // 8:
            bot.connection.execute("DELETE FROM accounts WHERE id > 10")
            bot.connection.execute("VACUUM")

    after_steps(shrink)
    momentum_source.back_up(tmp_path / "trading.db", tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_bytes() == (tmp_path / "trading.db").read_bytes()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Bot(tmp_path / "trading.db")

    def full(*arguments: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "sendfile", full)
    with pytest.raises(SourceError, match=r"cannot be copied: .*No space left on device"):
        momentum_source.back_up(tmp_path / "trading.db", tmp_path / "copy.db")
