"""migrate_momentum_sqlite_to_postgres.py: the Momentum bot's history, row by row."""

from __future__ import annotations

import sqlite3
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from .conftest import Momentum, Target

SCRIPT = "migrate_momentum_sqlite_to_postgres.py"


def table(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(t for t in result["bots"][0]["tables"] if t["target_table"] == name)


def test_trade(target: Target, momentum: Momentum) -> None:
    target.bot("momentum_001")["timezone"] = "Europe/Berlin"
    momentum.trade(
        trade_id="BTC_1", side="SELL", entry_price=0.1 + 0.2, quantity=1 / 3, position_size_usd=0.000001255, stop_loss=1e-05,
        take_profit=5, exit_time="2025-12-01 12:00:00", exit_price=2.000000005, pnl_usd=-1.5, pnl_pct=1.23456789,
        exit_reason="Trailing Stop ✋", holding_time_seconds=14400.5, signal_strength=0.75,
    )  # fmt: skip
    result = target.migrate_momentum()
    (row,) = target.rows("SELECT * FROM trading.trades")
    expected = {
        "trade_id": "momentum_001_BTC_1", "side": "sell", "status": "filled", "entry_price": Decimal("0.3"),
        "quantity": Decimal("0.33333333"), "position_size_usd": Decimal("0.00000126"), "stop_loss": Decimal("0.00001"),
        "take_profit": 5, "exit_price": Decimal("2"), "pnl_usd": Decimal("-1.5"), "pnl_pct": Decimal("1.234568"),
        "exit_reason": "Trailing Stop ✋", "holding_time_seconds": 14400, "signal_strength": Decimal("0.75"), "fees": None,
        # Summer time then, winter time later; created_at is UTC.
        "entry_time": datetime(2025, 6, 1, 10, 0, 0, 123456, UTC),
        "exit_time": datetime(2025, 12, 1, 11, tzinfo=UTC),
        "created_at": datetime(2025, 6, 1, 12, 0, 1, tzinfo=UTC),
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["metadata"]["legacy"] == {
        "table": "trades", "id": 1, "trade_id": "BTC_1", "mode": "live", "side": "SELL",
        "entry_price": 0.1 + 0.2, "quantity": 1 / 3, "position_size_usd": 0.000001255, "exit_price": 2.000000005,
        "pnl_pct": 1.23456789, "holding_time_seconds": 14400.5, "entry_time": "2025-06-01 12:00:00.123456",
        "exit_time": "2025-12-01 12:00:00", "created_at": "2025-06-01 12:00:01",
    }  # fmt: skip
    assert result["bots"][0]["largest_rounding"] == "0.000000005"
    assert target.value("SELECT count(*) FROM trading.positions") == 0


def test_open_trade_is_a_position_until_it_closes(target: Target, momentum: Momentum) -> None:
    momentum.trade(trade_id="open", stop_loss=90, take_profit=120, mode="demo")
    target.migrate_momentum()
    (trade,) = target.rows("SELECT * FROM trading.trades")
    assert (trade["status"], trade["exit_time"]) == ("filled", None)
    (position,) = target.rows("SELECT * FROM trading.positions")
    assert (position["status"], position["side"], position["size"], position["stop_loss"]) == ("open", "long", 2, 90)
    assert (position["avg_entry_price"], position["take_profit"]) == (Decimal("100.5"), 120)
    assert position["entry_trade_ids"] == ["momentum_001_open"]
    assert position["position_metadata"] == {"legacy": {"table": "trades", "id": 1, "mode": "demo"}}
    assert target.value("SELECT total_open_positions FROM analytics.system_health_dashboard") == 0

    momentum.bot.log_trade_exit("open", 110.0, 19.0, 9.5, "Take Profit", 60)
    result = target.migrate_momentum()
    assert (table(result, "trading.trades")["updated"], table(result, "trading.positions")["updated"]) == (1, 1)
    (position,) = target.rows("SELECT * FROM trading.positions")
    assert (position["status"], position["realized_pnl"]) == ("closed", 19)
    assert position["closed_at"] == target.value("SELECT exit_time FROM trading.trades")
    assert target.migrate_momentum()["changed"] is False


def test_other_tables(target: Target, momentum: Momentum) -> None:
    momentum.insert(
        "daily_snapshots", id=3, date="2025-06-01", mode="live", starting_equity=10000.0, ending_equity=10010.5, daily_pnl=10.5,
        daily_pnl_pct=0.105, trades_count=3, wins_count=2, losses_count=1, open_positions=1, created_at="2025-06-01 23:00:00",
    )  # fmt: skip
    momentum.insert("daily_snapshots", id=6, date="2025-06-02", mode="live", starting_equity=10010.5)
    momentum.insert("daily_snapshots", id=9, date="2025-06-03", mode="demo", ending_equity=99999.0)
    for details in ('{"a": 1, "a": 2.50}', "not json", "", '{"x": NaN}', None, '"\\u0000"'):
        momentum.insert(
            "system_events",
            event_time="2025-06-01 10:00:00",
            event_type="T",
            event_level="warn",
            message="ü\nx",
            details=details,
        )
    momentum.insert(
        "risk_events",
        event_time="2025-06-01 10:00:00",
        risk_type="R",
        current_value=1.5,
        limit_value=3,
        action_taken="A",
    )
    target.migrate_momentum()
    day, half, demo = target.rows("SELECT * FROM trading.risk_metrics ORDER BY date")
    assert (day["date"], day["ending_equity"], day["daily_pnl_pct"]) == (
        date(2025, 6, 1),
        Decimal("10010.5"),
        Decimal("0.105"),
    )
    assert (day["total_trades"], day["winning_trades"], day["losing_trades"]) == (3, 2, 1)
    assert day["metadata"]["legacy"]["open_positions"] == 1
    assert day["created_at"] == datetime(2025, 6, 1, 23, tzinfo=UTC)
    assert (half["starting_equity"], half["ending_equity"], half["total_trades"]) == (Decimal("10010.5"), None, None)
    assert demo["metadata"]["legacy"]["mode"] == "demo"
    # The last live day that has an equity.
    assert target.value("SELECT current_equity FROM trading.bots") == Decimal("10010.5")
    events = target.rows("SELECT * FROM audit.system_events ORDER BY id")
    assert [e["details"] for e in events] == [{"a": 2.5}, None, None, None, None, None]
    assert events[1]["metadata"]["legacy"]["details"] == "not json"
    assert {(e["event_level"], e["message"], e["component"]) for e in events} == {("WARNING", "ü\nx", "momentum")}
    (risk,) = target.rows("SELECT * FROM audit.risk_events")
    assert (risk["current_value"], risk["limit_value"], risk["resolved"]) == (Decimal("1.5"), 3, None)


def test_replaced_day_keeps_its_row(target: Target, momentum: Momentum) -> None:
    for equity in (1.0, 2.0):
        momentum.bot.save_daily_snapshot("2025-06-01", "live", 1.0, equity, 0.0, 0.0, 0, 0, 0, 0)
        result = target.migrate_momentum()
    assert table(result, "trading.risk_metrics")["updated"] == 1
    (row,) = target.rows("SELECT * FROM trading.risk_metrics")
    assert (row["ending_equity"], row["metadata"]["legacy"]["id"]) == (2, 2)


def test_trade_that_gets_its_id_later(target: Target, momentum: Momentum) -> None:
    number = momentum.trade()
    target.migrate_momentum()
    assert target.value("SELECT trade_id FROM trading.trades") == f"momentum_001_legacy_{number}"
    momentum.connection.execute("UPDATE trades SET trade_id = 'late'")
    momentum.connection.commit()
    target.migrate_momentum()
    assert target.value("SELECT trade_id FROM trading.trades") == "momentum_001_late"
    (position,) = target.rows("SELECT * FROM trading.positions")
    assert (position["position_id"], position["entry_trade_ids"]) == ("momentum_001_late", ["momentum_001_late"])


def test_times_of_one_bot_do_not_depend_on_the_session(target: Target, momentum: Momentum) -> None:
    target.bot("momentum_001")["timezone"] = "America/New_York"
    target.execute("ALTER ROLE trading_user IN DATABASE " + target.database + " SET timezone = 'Asia/Tokyo'")
    # Skipped by the clocks, repeated by the clocks, and with an offset of its own.
    for text in ("2025-03-09 02:30:00", "2025-11-02 01:30:00", "2025-06-01T12:00:00+02:00"):
        momentum.trade(entry_time=text)
    result = target.migrate_momentum()
    rows = target.rows("SELECT entry_time, metadata -> 'legacy' AS legacy FROM trading.trades ORDER BY id")
    assert [r["entry_time"].isoformat() for r in rows] == [
        "2025-03-09T07:30:00+00:00", "2025-11-02T05:30:00+00:00", "2025-06-01T10:00:00+00:00",
    ]  # fmt: skip
    assert [r["legacy"].get("entry_time_note") for r in rows] == [
        "nonexistent local time",
        "ambiguous local time",
        None,
    ]
    assert (result["bots"][0]["nonexistent_times"], result["bots"][0]["ambiguous_times"]) == (1, 1)


def test_rejects(target: Target, momentum: Momentum) -> None:
    bad: list[tuple[dict[str, object], str]] = [
        ({"side": "sideways"}, "side: unknown side 'sideways': expected one of buy, sell, long, short"),
        ({"entry_time": "yesterday"}, "entry_time: 'yesterday' is not a time"),
        ({"entry_price": float("inf")}, "entry_price: inf is not a finite number"),
        ({"quantity": "many"}, "quantity: 'many' is text, expected a number"),
        ({"quantity": -1.0}, "quantity: -1.0 is below zero"),
        ({"pnl_usd": 1e15}, "pnl_usd: 1000000000000000.0 does not fit"),
        ({"pnl_pct": 123456.0}, "pnl_pct: 123456.0 does not fit"),
        ({"trade_id": "x" * 100}, "would be longer than 100 characters"),
        ({"symbol": b"\x00\xff"}, "symbol: b'\\x00\\xff' is not text"),
        ({"exit_reason": "zero\0byte"}, "exit_reason: the text has a zero byte"),
        ({"trade_id": "legacy_1"}, "trade_id momentum_001_legacy_1 is also that of another legacy row"),
    ]
    momentum.trade()
    numbers = [str(momentum.trade(**changes)) for changes, _ in bad]
    target.sql("003_register_momentum_bot.sql")
    before = target.contents()
    done = target.python(SCRIPT)
    assert done.returncode == 3
    assert f"{len(bad)} rows cannot be migrated, 0 accepted" in done.stderr
    assert f"momentum_001 trades {numbers[0]}: {bad[0][1]}" in done.stderr
    after = target.contents()
    assert {n: v for n, v in after.items() if n[:9] != "migration"} == {
        n: v for n, v in before.items() if n[:9] != "migration"
    }
    found = {r["source_id"]: r for r in target.rows("SELECT * FROM migration.rejects")}
    for number, (changes, reason) in zip(numbers, bad, strict=True):
        assert reason in found[number]["reason"]
        assert found[number]["row"]["symbol"] == ("BTCUSDT" if "symbol" not in changes else "\\x00ff")
        assert found[number]["row"]["entry_time"] == changes.get("entry_time", "2025-06-01 12:00:00.123456")

    result = target.migrate_momentum("--accept-rejects", str(len(bad)))
    assert (table(result, "trading.trades")["inserted"], result["bots"][0]["rejected"]) == (1, len(bad))
    assert target.script("reconcile.py", "--bot", "momentum_001")["ok"] is True


def test_text_that_is_not_utf8_rejects_its_row_alone(target: Target, momentum: Momentum) -> None:
    for _ in range(5):
        momentum.trade()
    momentum.connection.execute("UPDATE trades SET exit_reason = CAST(x'4bff6f' AS TEXT) WHERE id = 3")
    momentum.connection.commit()
    result = target.migrate_momentum("--accept-rejects", "1")
    assert (table(result, "trading.trades")["inserted"], result["bots"][0]["rejected"]) == (4, 1)
    (reject,) = target.rows('SELECT source_id, "row", reason FROM migration.rejects')
    assert (reject["source_id"], reject["reason"]) == ("3", "exit_reason: the text is not valid UTF-8")
    assert reject["row"]["exit_reason"] == "K\\udcffo"
    assert target.script("reconcile.py", "--bot", "momentum_001")["ok"] is True


def test_dry_run_leaves_no_trace(target: Target, momentum: Momentum) -> None:
    momentum.trade()
    before = target.contents()
    files = sorted(momentum.path.parent.iterdir())
    # As on a host where the registration was not run either.
    result = target.script(SCRIPT, "--dry-run")
    assert (result["changed"], result["dry_run"], table(result, "trading.trades")["inserted"]) == (True, True, 1)
    assert target.contents() == before
    assert sorted(momentum.path.parent.iterdir()) == files
    target.migrate_momentum()
    assert target.script(SCRIPT, "--dry-run")["changed"] is False


def test_unregistered_bot(target: Target, momentum: Momentum) -> None:
    momentum.trade()
    done = target.python(SCRIPT)
    assert done.returncode == 5
    assert "momentum_001 is not registered in trading.bots: run 003_register_momentum_bot.sql first" in done.stderr


def test_live_wal_database(target: Target, momentum: Momentum) -> None:
    momentum.connection.execute("PRAGMA journal_mode = WAL")
    momentum.trade()
    assert table(target.migrate_momentum(), "trading.trades")["inserted"] == 1


def test_idle_wal_database_is_left_without_new_files(target: Target, momentum: Momentum) -> None:
    momentum.connection.execute("PRAGMA journal_mode = WAL")
    momentum.trade()
    momentum.connection.close()
    before = (sorted(momentum.path.parent.iterdir()), momentum.path.read_bytes())
    assert table(target.migrate_momentum(), "trading.trades")["inserted"] == 1
    assert (sorted(momentum.path.parent.iterdir()), momentum.path.read_bytes()) == before


def test_unknown_columns_are_kept(target: Target, momentum: Momentum) -> None:
    momentum.connection.execute("ALTER TABLE trades ADD COLUMN broker TEXT")
    momentum.trade(broker="Alpha")
    target.migrate_momentum()
    assert target.value("SELECT metadata #>> '{legacy,broker}' FROM trading.trades") == "Alpha"


def _absent(momentum: Momentum) -> None:
    momentum.path.unlink()


def _no_database(momentum: Momentum) -> None:
    momentum.path.write_text("not a database at all")


def _corrupt(momentum: Momentum) -> None:
    for _ in range(400):
        momentum.trade()
    momentum.connection.close()
    content = bytearray(momentum.path.read_bytes())
    content[4096 * 3 : 4096 * 8] = b"\xa5" * (4096 * 5)
    momentum.path.write_bytes(content)


def _corrupt_where_several_read(momentum: Momentum) -> None:
    columns = "mode, symbol, side, entry_time, entry_price, quantity, position_size_usd, created_at"
    momentum.trade()
    with momentum.connection:
        momentum.connection.execute(
            f"INSERT INTO trades ({columns}) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)"
            f" SELECT {columns} FROM trades, n"
        )
    momentum.connection.close()
    content = bytearray(momentum.path.read_bytes())
    middle = len(content) // 8192 * 4096
    content[middle : middle + 4096 * 5] = b"\xa5" * (4096 * 5)
    momentum.path.write_bytes(content)


def _corrupt_index(momentum: Momentum) -> None:
    momentum.trade(trade_id="a")
    root = momentum.connection.execute("SELECT rootpage FROM sqlite_master WHERE name LIKE 'sqlite_autoindex_trades%'")
    place = (root.fetchone()[0] - 1) * 4096
    momentum.connection.close()
    content = bytearray(momentum.path.read_bytes())
    # Its one entry.
    content[place + 4090 : place + 4096] = b"\xa5" * 6
    momentum.path.write_bytes(content)


def _truncated(momentum: Momentum) -> None:
    for _ in range(400):
        momentum.trade()
    momentum.connection.close()
    momentum.path.write_bytes(momentum.path.read_bytes()[: 4096 * 5])


def _locked(momentum: Momentum) -> None:
    momentum.connection.execute("BEGIN EXCLUSIVE")


def _lacks_column(momentum: Momentum) -> None:
    momentum.connection.execute("ALTER TABLE trades DROP COLUMN pnl_usd")


def _lacks_table(momentum: Momentum) -> None:
    momentum.connection.execute("DROP TABLE risk_events")


def _made_anew(momentum: Momentum) -> None:
    """From a query, which knows no keys: the next row of the bot has no id."""
    momentum.connection.executescript(
        "CREATE TABLE made AS SELECT * FROM trades; DROP TABLE trades; ALTER TABLE made RENAME TO trades"
    )


def _in_mid_transaction(momentum: Momentum) -> None:
    """As its bot leaves it when the machine goes down."""
    journal = momentum.path.with_name(momentum.path.name + "-journal")
    momentum.connection.execute("PRAGMA cache_size = 1")
    momentum.connection.executemany(
        "INSERT INTO system_events (event_time, event_type, event_level, message) VALUES ('2025-06-01', 'T', 'INFO', ?)",
        [("x" * 900,) for _ in range(200)],
    )
    left = {path: path.read_bytes() for path in (momentum.path, journal)}
    momentum.connection.rollback()
    momentum.connection.close()
    for path, content in left.items():
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_absent, "is not there: expected the Momentum bot's SQLite file"),
        (_no_database, "is not an SQLite database"),
        (_corrupt, "is damaged"),
        (_corrupt_where_several_read, "is damaged"),
        (_corrupt_index, "is damaged"),
        (_truncated, "is damaged"),
        (_locked, "was locked for 5 seconds"),
        (_lacks_column, "lacks column trades.pnl_usd"),
        (_lacks_table, "lacks table risk_events"),
        (_made_anew, "lacks the primary key of trades (id INTEGER PRIMARY KEY)"),
        (_in_mid_transaction, "was left in the middle of a transaction (trading.db-journal): start its bot once"),
    ],
)
def test_unusable_file(target: Target, momentum: Momentum, damage: Any, message: str) -> None:
    target.sql("003_register_momentum_bot.sql")
    damage(momentum)
    before = target.contents()
    done = target.python(SCRIPT)
    assert done.returncode == 4, done.stderr
    assert f"error: {momentum.path} {message}" in done.stderr
    assert "Traceback" not in done.stderr
    assert target.contents() == before


def test_unknown_time_zone(target: Target, momentum: Momentum) -> None:
    target.bot("momentum_001")["timezone"] = "Mars/Olympus"
    done = target.python(SCRIPT)
    assert done.returncode == 2
    assert "unknown time zone 'Mars/Olympus'" in done.stderr


def test_unreachable_target(target: Target, momentum: Momentum, monkeypatch: pytest.MonkeyPatch) -> None:
    target.database = "nowhere"
    done = target.python(SCRIPT)
    assert done.returncode == 5
    assert "cannot connect to nowhere at 127.0.0.1" in done.stderr


def test_private_copy_is_private_and_removed(
    tmp_path: Path, momentum: Momentum, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from .conftest import MIGRATIONS

    sys.path.insert(0, str(MIGRATIONS))
    from migration_engine.momentum_source import private_copy

    folder = tmp_path / "scratch"
    folder.mkdir()
    abandoned = folder / "momentum-copy-999999999-x"
    abandoned.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    with private_copy(momentum.path, print) as copy:
        (made,) = folder.iterdir()
        assert made.stat().st_mode & 0o777 == 0o700
        assert {f.stat().st_mode & 0o777 for f in made.iterdir()} == {0o600}
        assert copy.count("trades") == 0
        assert isinstance(copy.connection, sqlite3.Connection)
    assert list(folder.iterdir()) == []


def test_an_open_trade_that_is_not_utf_8_stops_no_reconciliation(target: Target, momentum: Momentum) -> None:
    """With so many rows that other processes read them."""
    target.bots = [bot for bot in target.bots if bot["bot_type"] == "momentum"]
    momentum.trade(symbol="spoilt")
    momentum.connection.execute(
        "WITH RECURSIVE n (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM n WHERE n < 50000)"
        " INSERT INTO trades (mode, symbol, side, entry_time, entry_price, exit_time, quantity, position_size_usd)"
        " SELECT 'live', 'X', 'Buy', '2025-06-01 10:00:00', 1, '2025-06-01 11:00:00', 1, 1 FROM n"
    )
    momentum.connection.execute("UPDATE trades SET symbol = CAST(X'ff' AS TEXT) WHERE symbol = 'spoilt'")
    momentum.connection.commit()
    target.migrate_momentum("--accept-rejects", "1")
    (bot,) = target.script("reconcile.py")["bots"]
    assert [t["rejected"] for t in bot["tables"] if t["source_table"] == "trades"] == [1]
