"""What the bots' client promises while the servers are up."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from trading_db import Refused, Trade, TradingDB, TradingDBError
from trading_db.columns import TABLES, Choice, Day, Flag, Json, Kind, Number, Text, Texts, Time, Whole

from tests.applications.conftest import BOT, Opener
from tests.database.conftest import Target

NOW = datetime(2026, 5, 4, 12, 30, 15, 123456, UTC)


def count(target: Target, table: str, where: str = "true") -> int:
    found: int = target.value(f"SELECT count(*) FROM {table} WHERE {where}")
    return found


def test_a_trade_from_entry_to_exit(db: TradingDB, target: Target) -> None:
    trade = db.log_trade_entry(
        "BTCUSDT", "Buy", 0.1, "45000.5", entry_time=NOW, position=True, fees=1.5, metadata={"mode": "live"}
    )
    assert re.fullmatch(r"momentum_001_BTCUSDT_\d{8}T\d{12}_[0-9a-f]{10}", trade.trade_id)
    (row,) = db.get_open_trades()
    assert row["id"] == trade.id
    assert row["trade_id"] == trade.trade_id
    assert (row["side"], row["quantity"], row["entry_price"]) == ("buy", Decimal("0.1"), Decimal("45000.5"))
    assert row["position_size_usd"] == Decimal("4500.05")
    assert row["entry_time"] == NOW
    assert row["entry_time"].tzinfo is UTC
    (position,) = db.get_open_positions(symbol="BTCUSDT", mode="live")
    assert (position["position_id"], position["side"]) == (trade.trade_id, "long")

    db.log_trade_exit(
        trade.trade_id, 46000, pnl_usd=99.95, exit_reason="Trailing Stop", exit_time=NOW + timedelta(hours=1), fees=2
    )
    assert db.get_open_trades() == []
    assert db.get_open_positions() == []
    found = db.get_trade(trade.trade_id)
    assert found is not None
    assert (found["pnl_usd"], found["fees"], found["holding_time_seconds"]) == (Decimal("99.95"), Decimal("3.5"), 3600)
    (closed,) = target.rows("SELECT * FROM trading.positions")
    assert (closed["status"], closed["realized_pnl"], closed["size"]) == ("closed", Decimal("99.95"), Decimal("0.1"))
    assert closed["exit_trade_ids"] == [trade.trade_id]


def test_an_exit_that_is_logged_again_counts_its_fees_once(db: TradingDB) -> None:
    trade = db.log_trade_entry("BTCUSDT", "sell", 1, 10, fees=1)
    db.log_trade_exit(trade.trade_id, 9, pnl_usd=1, fees=2)
    db.log_trade_exit(trade.trade_id, 8, pnl_usd=2, fees=2)
    found = db.get_trade(trade.trade_id)
    assert found is not None
    assert (found["exit_price"], found["pnl_usd"], found["fees"]) == (8, 2, 3)


def test_an_exit_that_is_logged_again_reduces_a_shared_position_once(db: TradingDB, target: Target) -> None:
    trades = [db.log_trade_entry("BTCUSDT", "buy", size, 10).trade_id for size in (2, 3)]
    db.open_position("BTCUSDT", "long", 5, 10, entry_trade_ids=trades)
    for _ in range(2):
        db.log_trade_exit(trades[0], 11, pnl_usd=2)
    (position,) = db.get_open_positions()
    assert (position["status"], position["size"], position["realized_pnl"]) == ("partially_closed", 3, 2)
    assert position["exit_trade_ids"] == trades[:1]
    db.log_trade_exit(trades[1], 12, pnl_usd=6)
    assert target.rows("SELECT status, realized_pnl, exit_trade_ids FROM trading.positions") == [
        {"status": "closed", "realized_pnl": 8, "exit_trade_ids": trades}
    ]


def test_a_partial_close_splits_the_trade(db: TradingDB, target: Target) -> None:
    trade = db.log_trade_entry("ETHUSDT", "LONG", 3, 2000, position=True, metadata={"mode": "live"})
    part = db.log_partial_close(trade.trade_id, 1, 2100, pnl_usd=100, fees=1)
    assert part.trade_id != trade.trade_id
    rows = {row["trade_id"]: row for row in target.rows("SELECT * FROM trading.trades")}
    assert (rows[part.trade_id]["quantity"], rows[part.trade_id]["exit_price"]) == (1, 2100)
    assert rows[part.trade_id]["id"] == part.id
    assert rows[part.trade_id]["metadata"] == {"mode": "live", "partial_of": trade.trade_id}
    assert (rows[trade.trade_id]["quantity"], rows[trade.trade_id]["position_size_usd"]) == (2, 4000)
    (position,) = db.get_open_positions()
    assert (position["status"], position["size"], position["realized_pnl"]) == ("partially_closed", 2, 100)

    with pytest.raises(Refused, match="the last part of a trade is closed by log_trade_exit"):
        db.log_partial_close(trade.trade_id, 2, 2100)
    db.log_trade_exit(trade.trade_id, 2200, pnl_usd=400)
    assert target.value("SELECT sum(quantity) FROM trading.trades") == 3
    assert target.value("SELECT sum(pnl_usd) FROM trading.trades") == 500
    assert target.rows("SELECT status, realized_pnl FROM trading.positions") == [
        {"status": "closed", "realized_pnl": Decimal(500)}
    ]
    assert target.value("SELECT sum(total_pnl) FROM analytics.daily_performance_summary") == 500


def test_a_partial_close_of_a_migrated_trade_leaves_its_origin_alone(db: TradingDB, target: Target) -> None:
    target.execute(
        "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time, metadata) VALUES"
        " ('momentum_001_7', 'momentum_001', 'A', 'buy', 4, 1, now(),"
        """ '{"legacy": {"table": "trades", "id": 7, "mode": "demo"}}')"""
    )
    part = db.log_partial_close("7", 1, 2)
    found = db.get_trade(part.trade_id)
    assert found is not None
    assert found["metadata"] == {"mode": "demo", "partial_of": "momentum_001_7"}
    assert [row["trade_id"] for row in db.get_open_trades(mode="demo")] == ["momentum_001_7"]


def test_ids_of_a_bot_are_found_under_its_own_names(db: TradingDB) -> None:
    trade = db.log_trade_entry("BTCUSDT", "Buy", 1, 1, trade_id="T-1")
    assert trade.trade_id == "momentum_001_T-1"
    db.update_trade("T-1", status="Cancelled", notes="never filled")
    assert db.get_open_trades() == []
    order = db.log_order("BTCUSDT", "Sell", "Limit", 1, order_id="O-1", price=2, trade_id="T-1")
    db.update_order("O-1", status="filled", filled_quantity=1)
    (row,) = db.fetch("SELECT * FROM trading.orders")
    assert (row["order_id"], row["trade_id"], row["status"]) == (order, trade.trade_id, "filled")


@pytest.mark.parametrize(
    "change",
    [
        lambda db: db.log_trade_exit("unknown", 1),
        lambda db: db.update_trade("unknown", notes="x"),
        lambda db: db.update_position("unknown", current_price=1),
        lambda db: db.close_position("unknown"),
        lambda db: db.mark_signal_executed("unknown"),
        lambda db: db.update_order("unknown", status="filled"),
    ],
)
def test_a_change_of_a_row_that_is_not_there_is_refused(db: TradingDB, change: Callable[[TradingDB], None]) -> None:
    with pytest.raises(Refused, match=r"has no \w+ momentum_001_unknown of bot momentum_001"):
        change(db)
    assert db.refused_count == 1


def test_positions(db: TradingDB) -> None:
    known = db.open_position("BTCUSDT", "Sell", 2, 100, stop_loss=120, metadata={"mode": "live"})
    db.update_position(known, current_price=90, unrealized_pnl=20)
    (row,) = db.get_open_positions()
    assert (row["side"], row["unrealized_pnl"], row["position_metadata"]) == ("short", 20, {"mode": "live"})
    db.close_position(known, exit_price=80, realized_pnl=40, status="liquidated")
    assert db.get_open_positions() == []
    (row,) = db.fetch("SELECT * FROM trading.positions")
    assert (row["status"], row["realized_pnl"], row["total_pnl"], row["unrealized_pnl"]) == ("liquidated", 40, 40, 0)


def test_the_other_records(db: TradingDB, target: Target) -> None:
    signal = db.log_signal("BTCUSDT", "Buy", strength=0.75, indicators={"ema": Decimal("1.50"), "rsi": 30.1})
    db.mark_signal_executed(signal, trade_id="T-1")
    for _ in range(2):
        db.log_fill("bybit", "E-1", "BTCUSDT", "Buy", 1, 100, fee="0.01", liquidity="Maker")
        db.store_candle("BTCUSDT", "1h", NOW, open_price=1, high_price=3, low_price=1, close_price=2, volume=5)
        db.log_funding_payment("BTCUSDT", NOW, -0.5, funding_rate=0.0001)
    db.log_balance(total_balance=10100, equity=10200)
    db.log_balance(equity=5, metadata={"mode": "demo"})
    db.save_risk_metrics(date(2026, 5, 4), total_trades=1, win_rate=0.5, metadata={"mode": "live"})
    db.save_risk_metrics(date(2026, 5, 4), total_trades=2, metadata={"note": "later"})
    db.log_event("startup", "warn", "up", details={"at": NOW})
    db.log_risk_event("daily_loss", 4.5, 5, "none")

    (row,) = target.rows("SELECT * FROM trading.signals")
    assert (row["signal_type"], row["executed"], row["execution_trade_id"]) == ("long", True, "momentum_001_T-1")
    assert row["indicators"] == {"ema": "1.50", "rsi": 30.1}
    assert target.rows("SELECT execution_id, fee, liquidity FROM trading.fills") == [
        {"execution_id": "E-1", "fee": Decimal("0.01"), "liquidity": "maker"}
    ]
    assert count(target, "trading.market_data") == 1
    assert target.value("SELECT amount FROM trading.funding_payments") == Decimal("-0.5")
    assert count(target, "trading.account_balance") == 2
    assert target.value("SELECT current_equity FROM trading.bots WHERE bot_id = %s", BOT) == 10200
    (row,) = target.rows("SELECT * FROM trading.risk_metrics")
    assert (row["total_trades"], row["win_rate"]) == (2, Decimal("0.5"))
    assert row["metadata"] == {"mode": "live", "note": "later"}
    assert target.value("SELECT event_level FROM audit.system_events") == "WARNING"
    assert target.value("SELECT current_value FROM audit.risk_events") == Decimal("4.5")
    assert db.refused_count == 0


def test_a_fill_whose_execution_is_anothers_is_refused(db: TradingDB, opener: Opener, target: Target) -> None:
    other = opener(bot_id="lxalgo_001", user="lxalgo_001")
    other.log_fill("bybit", "E-1", "BTCUSDT", "Buy", 1, 100)
    db.log_fill("bybit", "E-2", "BTCUSDT", "Buy", 1, 100)
    db.log_fill("binance", "E-1", "BTCUSDT", "Buy", 1, 100)
    for execution, symbol in (("E-1", "BTCUSDT"), ("E-2", "ETHUSDT")):
        with pytest.raises(Refused, match=f"execution {execution} of bybit is stored already, of another bot or "):
            db.log_fill("bybit", execution, symbol, "Buy", 1, 100)
    assert count(target, "trading.fills") == 3
    assert (db.refused_count, other.refused_count) == (2, 0)


def test_a_thousand_trades_of_one_moment_have_a_thousand_ids(db: TradingDB, target: Target) -> None:
    found: list[Trade] = []

    def trade() -> None:
        for _ in range(250):
            found.append(db.log_trade_entry("BTCUSDT", "Buy", 1, 1, entry_time=NOW))

    threads = [threading.Thread(target=trade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = target.rows("SELECT trade_id, id FROM trading.trades")
    assert {(row["trade_id"], row["id"]) for row in rows} == {(t.trade_id, t.id) for t in found}
    assert len({t.trade_id for t in found}) == len({t.id for t in found}) == len(rows) == 1000


def test_statements_of_a_bots_own(db: TradingDB, target: Target) -> None:
    sql = "INSERT INTO audit.system_events (bot_id, event_type, message, details) VALUES (%s, %s, %s, %s)"
    assert db.write([(sql, (BOT, "one", "50 %", {"a": [1, None]})), (sql, (BOT, "two", None, None))])
    rows = target.rows("SELECT event_type, message, details FROM audit.system_events ORDER BY event_type")
    assert rows == [
        {"event_type": "one", "message": "50 %", "details": {"a": [1, None]}},
        {"event_type": "two", "message": None, "details": None},
    ]
    assert db.fetch("SELECT %(a)s::numeric AS a, %(b)s::timestamptz AS b", {"a": 0.1, "b": NOW}) == [
        {"a": Decimal("0.1"), "b": NOW}
    ]
    assert db.fetch("SELECT count(*) AS n FROM audit.system_events WHERE message LIKE '50%'") == [{"n": 1}]


@pytest.mark.parametrize(
    ("sql", "parameters", "text"),
    [
        ("COMMIT", (), "not one statement"),
        ("SET search_path = x", (), "not one statement"),
        ("SELECT 1; COMMIT", (), "not one statement"),
        ("SELECT %s", (), None),
        ("SELECT %s", (1, 2), "do not fit"),
        ("SELECT %(a)s", {"b": 1}, "do not fit"),
        ("SELECT %s", (datetime(2026, 1, 1),), "without a zone"),
        ("SELECT %s", (float("nan"),), "finite"),
        ("SELECT %s", (object(),), "expected None"),
    ],
)
def test_statements_that_cannot_be_stored_are_refused_at_once(
    db: TradingDB, sql: str, parameters: Any, text: str | None
) -> None:
    with pytest.raises(Refused, match=text):
        db.write([(sql, parameters)])
    assert db.refused_count == (1 if text is None else 0)


def test_reads_cannot_write(db: TradingDB) -> None:
    with pytest.raises(Refused, match="read-only"):
        db.fetch("INSERT INTO audit.system_events (bot_id, event_type) VALUES ('momentum_001', 'x') RETURNING id")


def test_another_bots_rows_cannot_be_reached(db: TradingDB, opener: Opener, target: Target) -> None:
    other = opener(bot_id="lxalgo_001", user="lxalgo_001")
    foreign = other.log_trade_entry("BTCUSDT", "Buy", 1, 1)
    assert db.fetch("SELECT * FROM trading.trades") == []
    with pytest.raises(Refused, match="row-level security"):
        db.write([("INSERT INTO audit.system_events (bot_id, event_type) VALUES (%s, 'x')", ("lxalgo_001",))])
    db.write([("UPDATE trading.trades SET notes = 'x' WHERE trade_id = %s", (foreign.trade_id,))])
    assert count(target, "trading.trades", "notes IS NOT NULL") == 0
    with pytest.raises(TradingDBError, match="shows no bot lxalgo_001"):
        opener(bot_id="lxalgo_001", outbox=db._settings.outbox / "else")


def test_a_trial_id_is_the_bots_own(opener: Opener, target: Target) -> None:
    trial = opener(bot_id="momentum_001_trial")
    trial.log_trade_entry("BTCUSDT", "Buy", 1, 1)
    assert count(target, "trading.trades", "bot_id = 'momentum_001_trial'") == 1
    assert len(trial.get_recent_trades()) == 1


def test_a_closed_client_says_so(db: TradingDB) -> None:
    assert db.close()
    with pytest.raises(TradingDBError, match="closed"):
        db.log_event("x")


def test_two_threads_close_a_client_once(db: TradingDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a file that is closed twice may be another file's by then."""
    flush, closed, released = db.flush, [], []
    both = threading.Barrier(2)

    def slow_flush(timeout: float | None = None) -> bool:
        # Both are here, where nothing keeps one out.
        with suppress(threading.BrokenBarrierError):
            both.wait(2)
        return flush(timeout)

    def close(file: int) -> None:
        released.append(file)
        os_close(file)

    holder, os_close = db._outbox._holder, os.close
    monkeypatch.setattr(db, "flush", slow_flush)
    monkeypatch.setattr(os, "close", close)
    threads = [threading.Thread(target=lambda: closed.append(db.close())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert closed == [True, True]
    assert released.count(holder) == 1


def type_of(kind: Kind) -> str:
    """The PostgreSQL type that a kind stands for."""
    match kind:
        case Text(limit=limit):
            return f"character varying({limit})" if limit else "text"
        case Number(whole=whole, places=places):
            return f"numeric({whole + places},{places})"
        case Whole(bits=bits):
            return {32: "integer", 64: "bigint"}[bits]
    return {
        Choice: "text",
        Time: "timestamp with time zone",
        Day: "date",
        Flag: "boolean",
        Json: "jsonb",
        Texts: "text[]",
    }[type(kind)]


def rule_of(kind: Kind) -> set[tuple[str, str]]:
    """What a CHECK of the column has to say."""
    match kind:
        case Choice(known=known):
            return {("=", word) for word in known.values()}
        case Number(low=low, high=high, above=above):
            limits = {(">" if above else ">=", str(low)), ("<=", str(high))}
        case Whole(low=low):
            limits = {(">=", str(low))}
        case _:
            limits = set()
    return {(sign, limit) for sign, limit in limits if limit != "None"}


def test_columns_are_those_of_the_database(target: Target) -> None:
    for table, columns in TABLES.items():
        rows = target.rows(
            "SELECT attname, format_type(atttypid, atttypmod) AS type, coalesce((SELECT pg_get_constraintdef(c.oid)"
            "  FROM pg_constraint c WHERE c.conrelid = attrelid AND contype = 'c' AND conkey = ARRAY[attnum]), '') AS rule"
            " FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
            " AND attname NOT IN ('id', 'bot_id', 'created_at', 'updated_at')",
            table,
        )
        assert {name: type_of(kind) for name, kind in columns.items()} == {r["attname"]: r["type"] for r in rows}, table
        for row in rows:
            words = {("=", word) for word in re.findall(r"'(\w+)'::text", row["rule"])}
            limits = set(re.findall(r"(>=|>|<=) \(?(\d+)", row["rule"]))
            assert rule_of(columns[row["attname"]]) == words | limits, (table, row)
