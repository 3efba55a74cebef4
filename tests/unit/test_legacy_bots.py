"""The legacy bots' code paths that need no server."""

from __future__ import annotations

import importlib
import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

FILES = Path(__file__).parents[2] / "tests/legacy/roles/legacy/files"


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    """Momentum's modules under the names they have in their container."""
    names = ["journal", "seed_momentum", "database.trade_database", "main"]
    path, known, caching = list(sys.path), set(sys.modules), sys.dont_write_bytecode
    sys.path[:0] = [str(FILES / "momentum"), str(FILES)]
    # The folder is what gets installed.
    sys.dont_write_bytecode = True
    loaded: dict[str, ModuleType] = {name.split(".")[-1]: importlib.import_module(name) for name in names}
    yield SimpleNamespace(**loaded)
    sys.path[:], sys.dont_write_bytecode = path, caching
    for name in set(sys.modules) - known:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(FILES)):
            del sys.modules[name]


@pytest.fixture
def database(modules: SimpleNamespace, tmp_path: Path) -> Iterator[Any]:
    opened = modules.trade_database.TradeDatabase(str(tmp_path / "data/trading.db"))
    yield opened
    opened.close()


@pytest.fixture
def berlin() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


def enter(database: Any, trade_id: str | None, mode: str = "live") -> int:
    row_id: int = database.log_trade_entry(trade_id, mode, "BTCUSDT", "Buy", 67000.5, 0.1 + 0.2, 20100.15)
    return row_id


def test_a_trade_is_entered_and_left(database: Any) -> None:
    row_id = enter(database, "a")
    assert [trade["id"] for trade in database.get_open_trades()] == [row_id]
    database.log_trade_exit("a", 68000.0, 300.0, 1.5, "Trailing Stop", 7200)
    assert database.get_open_trades() == []
    trade = database.get_recent_trades(limit=1)[0]
    assert (trade["quantity"], trade["exit_reason"]) == (0.30000000000000004, "Trailing Stop")
    stats = database.get_performance_stats(mode="live", days=1)
    assert (stats["total_trades"], stats["wins"], stats["win_rate"], stats["avg_holding_hours"]) == (1, 1, 100, 2)


def test_modes_are_told_apart_and_the_newest_comes_first(database: Any) -> None:
    first, second, third = enter(database, "a"), enter(database, None, "demo"), enter(database, "c")
    assert [trade["id"] for trade in database.get_recent_trades()] == [third, second, first]
    assert [trade["id"] for trade in database.get_recent_trades(mode="demo")] == [second]


def test_times_are_naive_and_local_but_created_at_is_utc(database: Any, berlin: None) -> None:
    enter(database, "a")
    trade = database.get_recent_trades()[0]
    entered, created = (datetime.fromisoformat(trade[name]) for name in ("entry_time", "created_at"))
    assert entered.tzinfo is None
    assert entered - created > timedelta(minutes=59)
    assert "." not in trade["created_at"]


def test_a_snapshot_replaces_that_of_its_day(database: Any) -> None:
    for equity in (1.0, 2.0):
        database.save_daily_snapshot("2026-01-01", "live", 1.0, equity, None, None, 0, 0, 0, 0)
    snapshot = database.get_daily_snapshots()
    assert [(day["id"], day["ending_equity"]) for day in snapshot] == [(2, 2.0)]


def test_details_are_json_or_the_text_as_it_is(database: Any) -> None:
    for details in ({"a": 1}, "plain", None):
        database.log_event("TEST", "INFO", "message", details)
    assert [event["details"] for event in database.get_recent_events()] == [None, "plain", '{"a": 1}']


def test_a_backup_holds_the_rows(database: Any) -> None:
    enter(database, "a")
    copy = sqlite3.connect(database.backup())
    assert copy.execute("SELECT count(*) FROM trades").fetchone() == (1,)
    copy.close()


def seeded(modules: SimpleNamespace, path: Path, seed: int) -> dict[str, list[Any]]:
    database = modules.trade_database.TradeDatabase(str(path))
    assert modules.seed_momentum.seed(database.conn, seed, 500, 60, 50, 40) is not None
    assert modules.seed_momentum.seed(database.conn, seed, 500, 60, 50, 40) is None
    tables = ("trades", "daily_snapshots", "system_events", "risk_events")
    rows = {table: [tuple(row) for row in database.conn.execute(f"SELECT * FROM {table}")] for table in tables}
    database.close()
    return rows


def test_the_same_seed_gives_the_same_history_once(modules: SimpleNamespace, tmp_path: Path) -> None:
    first = seeded(modules, tmp_path / "a.db", 1)
    assert {table: len(rows) for table, rows in first.items()} == {
        "trades": 500,
        "daily_snapshots": 60,
        "system_events": 50,
        "risk_events": 40,
    }
    assert seeded(modules, tmp_path / "b.db", 1) == first
    assert seeded(modules, tmp_path / "c.db", 2) != first


def test_the_history_holds_the_awkward_values(modules: SimpleNamespace, tmp_path: Path) -> None:
    seeded(modules, tmp_path / "a.db", 1)
    conn = sqlite3.connect(tmp_path / "a.db")

    def values(sql: str) -> set[Any]:
        return {row[0] for row in conn.execute(sql)}

    assert values("SELECT DISTINCT mode FROM trades") == {"demo", "live"}
    assert {"Buy", "SELL", "Long", "short"} <= values("SELECT DISTINCT side FROM trades")
    assert None in values("SELECT trade_id FROM trades")
    assert None in values("SELECT trade_id FROM trades WHERE exit_time IS NULL")
    assert {0.1 + 0.2, 1e-05, 5.0} <= values("SELECT quantity FROM trades")
    assert values("SELECT 1 FROM trades WHERE length(entry_price || '') > 12") == {1}
    assert values("SELECT 1 FROM daily_snapshots WHERE ending_equity IS NULL") == {1}
    assert {None, "", '{"value": NaN, "limit": Infinity}'} <= values("SELECT details FROM system_events")
    conn.close()


def test_a_journal_goes_on_after_a_torn_line(modules: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "bot.jsonl"
    journal = modules.journal.Journal(path)
    journal.append("trades", {"id": 1, "price": 0.1 + 0.2}, "insert")
    journal.close()
    with path.open("a") as file:
        file.write('{"seq": 2, "at": "20')
    journal = modules.journal.Journal(path)
    journal.append("trades", {"id": 2, "price": None}, "insert")
    journal.close()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(entry["seq"], entry["id"]) for entry in entries] == [(1, 1), (1, 2)]
    assert entries[0]["row"]["price"] == 0.30000000000000004


def test_a_write_that_was_not_journaled_any_more_is_recovered(modules: SimpleNamespace, tmp_path: Path) -> None:
    journal = modules.journal.Journal(tmp_path / "bot.jsonl")
    for row_id in (1, 2, 3):
        journal.append("trades", {"id": row_id, "status": "pending"}, "insert")
    stored = {1: {"id": 1, "status": "pending"}, 2: {"id": 2, "status": "filled"}}
    journal.recover(lambda table, journaled: stored.get(journaled["id"]))
    journal.close()
    last = (tmp_path / "bot.jsonl").read_text().splitlines()[3:]
    assert [(json.loads(line)["id"], json.loads(line)["op"]) for line in last] == [(2, "recover")]


def test_a_replaced_row_is_recovered_once(modules: SimpleNamespace, tmp_path: Path) -> None:
    journal = modules.journal.Journal(tmp_path / "bot.jsonl")
    for row_id in (1, 2, 3):
        journal.append("daily_snapshots", {"id": row_id, "date": "2026-01-01"}, "replace")
    for _ in range(2):
        journal.recover(lambda table, journaled: {"id": 4, "date": journaled["date"]})
    journal.close()
    assert [json.loads(line)["id"] for line in (tmp_path / "bot.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_the_bot_journals_rows_as_they_are_stored(modules: SimpleNamespace, database: Any, tmp_path: Path) -> None:
    random.seed(3)
    settings = SimpleNamespace(max_positions=3)
    journal = modules.journal.Journal(tmp_path / "bot.jsonl")
    reader = modules.main.ReadBack(database.db_path)
    bot = modules.main.Bot(settings, database, journal, reader)
    for number in range(1, 70):
        bot.tick(number)
    reader.close()
    journal.close()
    latest: dict[tuple[str, Any], dict[str, Any]] = {}
    for line in (tmp_path / "bot.jsonl").read_text().splitlines():
        entry = json.loads(line)
        key = modules.main.KEYS[entry["table"]]
        latest[entry["table"], entry["row"][key]] = entry["row"]
    assert {table for table, _ in latest} == {"trades", "daily_snapshots", "system_events", "risk_events"}
    for table in {table for table, _ in latest}:
        stored = [dict(row) for row in database.conn.execute(f"SELECT * FROM {table}")]
        key = modules.main.KEYS[table]
        assert {row[key]: row for row in stored} == {
            identity: row for (name, identity), row in latest.items() if name == table
        }
