"""What the probe reads, and that it leaves no trace of having read it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "files/migrations/legacy_schema.json").read_text())["momentum"]

_spec = importlib.util.spec_from_file_location("preflight_probe", ROOT / "plugins/modules/preflight_probe.py")
assert _spec is not None
assert _spec.loader is not None
probe = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(probe)


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        file.name: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns) for file in folder.iterdir()
    }


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    before = snapshot(folder)
    yield
    assert snapshot(folder) == before


def write(path: Path, program: str) -> None:
    """Run a writer in a process of its own, as the bot is one."""
    header = f"import os, sqlite3\nc = sqlite3.connect({str(path)!r})\n"
    subprocess.run([sys.executable, "-c", header + textwrap.dedent(program)], check=True)


def create(path: Path, journal: str = "delete", rows: int = 100) -> None:
    tables = ";".join(f"CREATE TABLE {name} ({', '.join(columns)})" for name, columns in SCHEMA["tables"].items())
    write(
        path,
        f"""
        c.execute("PRAGMA journal_mode={journal}")
        c.executescript({tables!r})
        c.executemany(
            "INSERT INTO trades (id, side, mode, entry_time, created_at) VALUES (?, 'Buy', 'live',"
            " '2026-07-01T14:00:00.123456', '2026-07-01 12:00:00')",
            [(n,) for n in range({rows})],
        )
        c.commit()
        c.close()
        """,
    )


@contextmanager
def bot(path: Path, *statements: str) -> Iterator[None]:
    """A process that holds the file as the statements leave it."""
    program = f"""
import sqlite3, sys
c = sqlite3.connect({str(path)!r}, isolation_level=None)
for statement in {statements!r}:
    c.execute(statement).fetchall()
print("ready", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.kill()


def read(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = probe.sqlite_facts({"path": path.name}, SCHEMA, str(path.parent), 60.0)
    return facts


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "trading.db"


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_database_that_nobody_holds(database: Path, journal: str) -> None:
    create(database, journal)
    with untouched(database.parent):
        facts = read(database)
    assert (facts["state"], facts["journal"]) == ("ok", journal)
    assert facts["columns"]["trades"] == SCHEMA["tables"]["trades"]
    assert facts["size"] == database.stat().st_size


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_database_that_its_bot_holds_open(database: Path, journal: str) -> None:
    create(database, journal)
    with bot(database, "INSERT INTO trades (side) VALUES ('hodl')"), untouched(database.parent):
        facts = read(database)
    assert facts["state"] == "ok"
    # The row is in the write-ahead log alone: it has to be seen there.
    assert [found for found in facts["unknown"] if found["column"] == "side"] == [
        {"table": "trades", "column": "side", "rows": 1, "values": ["hodl"]}
    ]


def test_a_bot_in_the_middle_of_a_transaction(database: Path) -> None:
    create(database)
    with (
        bot(database, "BEGIN", "INSERT INTO trades (side) VALUES ('hodl')"),
        untouched(database.parent),
    ):
        assert read(database)["unknown"] == []


@pytest.mark.parametrize(
    ("journal", "statements"),
    [
        ("delete", ["BEGIN EXCLUSIVE"]),
        ("wal", ["PRAGMA locking_mode = EXCLUSIVE", "INSERT INTO trades (side) VALUES ('buy')"]),
        ("wal", ["PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"]),
    ],
)
def test_a_locked_database(database: Path, journal: str, statements: list[str]) -> None:
    create(database, journal)
    with bot(database, *statements), untouched(database.parent):
        assert read(database)["state"] == "locked"


@pytest.mark.parametrize("lost", ["", "-shm"])
def test_a_write_ahead_log_whose_writer_died(database: Path, lost: str) -> None:
    create(database, "wal")
    write(database, "c.execute(\"INSERT INTO trades (side) VALUES ('hodl')\"); c.commit(); os._exit(0)")
    if lost:
        os.unlink(f"{database}{lost}")
    with untouched(database.parent):
        facts = read(database)
    assert facts["state"] == "ok"
    assert facts.get("unfinished", False) == bool(lost)
    assert facts["unknown"]


def test_a_rollback_journal_whose_writer_died(database: Path) -> None:
    create(database)
    write(
        database,
        """
        c.execute("PRAGMA cache_size = 1")
        c.executemany("INSERT INTO trades (symbol) VALUES (?)", [("x" * 900,)] * 3000)
        os._exit(0)
        """,
    )
    assert database.with_name("trading.db-journal").exists()
    with untouched(database.parent):
        facts = read(database)
    assert (facts["state"], facts["unfinished"]) == ("ok", True)
    assert facts["unknown"] == []


def test_a_corrupt_page(database: Path) -> None:
    create(database, rows=5000)
    with database.open("r+b") as file:
        file.seek(4096 * 12)
        file.write(b"\xff" * 4096 * 3)
    with untouched(database.parent):
        facts = read(database)
    assert facts["state"] == "corrupt"
    assert facts["error"]


def test_a_file_that_is_no_database(database: Path) -> None:
    database.write_text("trades are elsewhere")
    assert read(database)["state"] == "corrupt"


def test_an_absent_file_and_a_folder_in_its_place(database: Path) -> None:
    assert read(database)["state"] == "absent"
    database.mkdir()
    assert read(database)["state"] == "unreadable"


def test_a_check_that_would_hold_up_the_bot_is_broken_off(database: Path) -> None:
    create(database, rows=5000)
    facts = probe.sqlite_facts({"path": database.name}, SCHEMA, str(database.parent), -1.0)
    assert facts["state"] == "unchecked"
    assert facts["columns"]["trades"]


def test_an_unknown_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "run", lambda *_: (1, "", "Error: No such volume: gone"))
    facts = probe.sqlite_facts({"path": "trading.db", "volume": "gone"}, SCHEMA, "/", 2.0)
    assert facts["state"] == "absent"
    assert facts["error"] == "volume gone: Error: No such volume: gone"


def test_a_file_in_a_named_volume(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create(database)
    monkeypatch.setattr(probe, "run", lambda *_: (0, str(database.parent), ""))
    facts = probe.sqlite_facts({"path": "trading.db", "volume": "data"}, SCHEMA, "/", 2.0)
    assert (facts["state"], facts["path"]) == ("ok", str(database))


def test_the_offset_of_naive_times_is_observed(database: Path) -> None:
    create(database)
    observed = read(database)["observed"]
    assert len(observed) == probe.OBSERVED_ROWS
    assert observed[0] == {"at": 1782907200, "offset": 7200}


@pytest.mark.parametrize(
    ("local", "utc"),
    [
        ("2026-07-01T14:05:00", "2026-07-01 12:00:00"),  # imported later
        ("2026-06-01T14:00:00", "2026-07-01 12:00:00"),
        (None, "2026-07-01 12:00:00"),
        ("yesterday", "2026-07-01 12:00:00"),
    ],
)
def test_rows_that_say_nothing_of_a_time_zone(local: str | None, utc: str) -> None:
    assert probe.observed_offsets([(local, utc)]) == []


def test_values_are_compared_in_any_case_and_null_is_unknown() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (side)")
    sides = [("Buy",), ("SELL",), ("hodl",), ("hodl",), (None,)]
    connection.executemany("INSERT INTO t VALUES (?)", sides)
    sql = probe.unknown_values_sql('"t"', "side", ["buy", "sell", "o'clock"])
    assert connection.execute(sql).fetchall() == [("hodl", 2), (None, 1)]


@pytest.mark.parametrize(
    "bot", [{}, {"legacy": "trading.db", "folder": 7}, {"legacy": {"sqlite": True, "postgres": []}}]
)
def test_a_bot_described_badly_is_no_failure(tmp_path: Path, bot: dict[str, Any]) -> None:
    schemas = {"momentum": SCHEMA, "shortseller": {}}
    facts = probe.bot_facts(bot, {"base_dir": str(tmp_path), "legacy_schema": schemas, "sqlite_lock_seconds": 2.0}, [])
    assert set(facts) == {"folder", "env"}


def test_secrets_are_never_returned(tmp_path: Path) -> None:
    file = tmp_path / ".env.database"
    file.write_text("# A=1\nPOSTGRES_PASSWORD=geheim\nREDIS_PASSWORD=''\nnonsense\n")
    facts = probe.env_file_facts(str(file))
    assert facts["keys"] == {"POSTGRES_PASSWORD": True, "REDIS_PASSWORD": False}
    assert "geheim" not in json.dumps(facts)


def test_a_listener_is_named_with_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = [one for one in probe.listener_facts(probe.process_names()) if one["port"] == port]
    assert [(one["address"], f"(pid {os.getpid()})" in one["holder"]) for one in found] == [("127.0.0.1", True)]


def test_the_disk_of_a_folder_that_is_still_to_be_made(tmp_path: Path) -> None:
    facts = probe.disk_facts(str(tmp_path / "database" / "backups"))
    assert facts["path"] == str(tmp_path)
    assert facts["free"] > 0


def test_a_command_that_is_missing_is_an_answer() -> None:
    code, output, error = probe.run(["no-such-command"])
    assert (code, output) == (127, "")
    assert "no-such-command" in error
