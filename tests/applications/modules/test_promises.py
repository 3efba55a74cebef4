"""What the delivered modules promise beyond the classes in whose place they come."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg2
import pytest
from trading_db.outbox import listed

from .conftest import Clock, Environment

Row = dict[str, Any]


@pytest.fixture
def momentum_db(environment: Environment, modules: dict[str, ModuleType], tmp_path: Path) -> Iterator[Any]:
    environment.use("momentum_001")
    database = modules["momentum"].TradeDatabase(tmp_path / "data/trading.db")
    yield database
    database.close()


@pytest.fixture
def trades(environment: Environment, modules: dict[str, ModuleType]) -> Iterator[Any]:
    environment.use("shortseller_001")
    logger = modules["shortseller"].TradeLogger(None)
    yield logger
    logger.close()
    for other in modules["shortseller"]._loggers:
        other.close()
    modules["shortseller"]._loggers.clear()


def quickly(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call that must not hold up a trading loop."""
    began = time.monotonic()
    try:
        return call(*arguments)
    finally:
        # A read that asks in vain takes 3 s, a write half a second; the rest is for a busy machine.
        assert time.monotonic() - began < 10, f"{call} took {time.monotonic() - began:.1f} seconds, expected below 10"


def foreign_rows(environment: Environment) -> None:
    """An open position and a pending trade of another bot, and of the bot's own trial id."""
    for row_id, bot_id in ((77, "lxalgo_001"), (78, "shortseller_001_trial")):
        environment.target.execute(
            "INSERT INTO trading.positions (id, position_id, bot_id, symbol, side, size, avg_entry_price)"
            " VALUES (%s, %s, %s, 'BTCUSDT', 'long', 1, 2)",
            row_id,
            f"{bot_id}_p",
            bot_id,
        )
        environment.target.execute(
            "INSERT INTO trading.trades (id, trade_id, bot_id, symbol, side, quantity, entry_price, entry_time)"
            " VALUES (%s, %s, %s, 'BTCUSDT', 'buy', 1, 2, now())",
            row_id,
            f"{bot_id}_t",
            bot_id,
        )


def test_a_bot_sees_and_changes_its_own_rows_alone(
    environment: Environment, trades: Any, modules: dict[str, ModuleType]
) -> None:
    foreign_rows(environment)
    before = environment.target.rows("SELECT * FROM trading.positions")
    assert trades.get_open_positions() == trades.get_pending_trades() == []
    assert modules["shortseller"].get_active_positions() == []
    for row_id in (77, 78):
        assert trades.row("positions", row_id) is trades.update_position(row_id, 5) is None
        assert trades.close_position(row_id, 5) is trades.update_trade_pnl(row_id, 1, 1) is None
    assert environment.target.rows("SELECT * FROM trading.positions") == before


def test_the_functions_of_the_guide_log_trades_and_find_positions(
    environment: Environment, trades: Any, modules: dict[str, ModuleType]
) -> None:
    logged = [modules["shortseller"].log_trade("BTCUSDT", "sell", 0.01, 45000) for _ in range(30)]
    stored = environment.target.rows(
        "SELECT id, trade_id, quantity FROM trading.trades WHERE bot_id = 'shortseller_001'"
    )
    assert {row["id"] for row in stored} == {row["id"] for row in logged}
    assert len({row["trade_id"] for row in stored}) == 30, "many trades in one second are many trades"
    assert all(row["trade_id"].startswith("shortseller_001_BTCUSDT") for row in stored)
    trades.open_position("BTCUSDT", "short", 1, 2, 3, None, 10)
    (position,) = modules["shortseller"].get_active_positions()
    assert (position["bot_id"], position["status"], position["avg_entry_price"]) == ("shortseller_001", "open", 2)


def test_an_open_trade_is_exposure_until_it_is_left_unless_it_is_a_demo(
    environment: Environment, momentum_db: Any
) -> None:
    exposure = "SELECT symbol, side, exposure_usd FROM analytics.active_positions_summary"
    momentum_db.log_trade_entry("a", "live", "BTCUSDT", "Sell", 100.0, 2.0, 200.0)
    momentum_db.log_trade_entry("b", "demo", "ETHUSDT", "Buy", 100.0, 2.0, 200.0)
    assert environment.target.rows(exposure) == [{"symbol": "BTCUSDT", "side": "short", "exposure_usd": 200}]
    momentum_db.log_trade_exit("a", 90.0, 20.0, 10.0, "Take Profit", 60)
    assert environment.target.rows(exposure) == []
    closed = environment.target.rows("SELECT total_pnl FROM analytics.daily_performance_summary")
    assert closed == [{"total_pnl": 20}]


@pytest.mark.parametrize(
    "changed",
    [{"side": "Hold"}, {"entry_price": -1.0}, {"quantity": float("inf")}, {"symbol": None}, {"quantity": 1e13}],
    ids=str,
)
def test_what_no_table_can_hold_is_refused_whole(
    environment: Environment, momentum_db: Any, changed: dict[str, Any]
) -> None:
    trade = {"symbol": "BTCUSDT", "side": "Buy", "entry_price": 1.0, "quantity": 1.0} | changed
    with pytest.raises(sqlite3.IntegrityError, match=f"{next(iter(changed))}|not finite"):
        momentum_db.log_trade_entry("a", "live", **trade, position_size_usd=1.0)
    assert environment.target.value("SELECT count(*) FROM trading.trades") == 0
    assert momentum_db.get_open_trades() == []


def test_a_trade_id_is_used_once(
    environment: Environment, momentum_db: Any, trades: Any, modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    momentum_db.log_trade_entry("a", "live", "BTCUSDT", "Buy", 1.0, 1.0, 1.0)
    momentum_db.log_trade_exit("a", 1.0, 1.0, 1.0, None, None)
    with pytest.raises(sqlite3.IntegrityError, match="a was logged before"):
        momentum_db.log_trade_entry("a", "live", "BTCUSDT", "Buy", 1.0, 1.0, 1.0)
    # After a restart the database alone knows it.
    momentum_db.close()
    environment.use("momentum_001")
    again = modules["momentum"].TradeDatabase(tmp_path / "data/trading.db")
    with closing(again), pytest.raises(sqlite3.IntegrityError, match="trades_trade_id_key"):
        again.log_trade_entry("a", "live", "BTCUSDT", "Buy", 1.0, 1.0, 1.0)
    assert environment.target.value("SELECT count(*) FROM trading.trades") == 1


def test_the_exit_of_a_trade_that_is_not_there_is_kept(
    environment: Environment, momentum_db: Any, modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    momentum_db.log_trade_exit("a", 2.0, 1.0, 1.0, None, None)
    momentum_db.log_trade_entry("a", "live", "BTCUSDT", "Buy", 1.0, 1.0, 1.0)
    momentum_db.log_trade_exit("a", 2.0, 1.0, 1.0, None, None)
    momentum_db.close()
    # Another process uses the trade_id again; the database, when it is back, has it already.
    environment.hurry()
    again = modules["momentum"].TradeDatabase(tmp_path / "data/trading.db")
    with closing(again):
        with environment.away():
            again.log_trade_entry("a", "live", "BTCUSDT", "Buy", 5.0, 1.0, 1.0)
            again.log_trade_exit("a", 6.0, 7.0, 7.0, None, None)
        assert again._store.client.flush(60)
    reasons = [str(entry.refused) for entry in listed(environment.folder / "momentum_001", "momentum_001")]
    assert ["no such trade a" in reason for reason in reasons] == [True, False, True]
    assert "trades_trade_id_key" in reasons[1]
    trades = environment.target.rows("SELECT exit_price, pnl_usd FROM trading.trades")
    assert trades == [{"exit_price": 2, "pnl_usd": 1}]
    assert environment.target.rows("SELECT current_price FROM trading.positions") == [{"current_price": 2}]


def test_momentum_goes_on_while_the_database_is_away(
    environment: Environment, momentum_db: Any, modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    first = momentum_db.log_trade_entry("a", "live", "BTCUSDT", "Buy", 1.0, 0.1 + 0.2, 1.0)
    # What was there when the bot started, it knows as well.
    momentum_db.close()
    environment.hurry()
    momentum_db = modules["momentum"].TradeDatabase(tmp_path / "data/trading.db")
    with environment.away():
        second = quickly(momentum_db.log_trade_entry, "b", "demo", "BTCUSDT", "SELL", 1.0, 2.0, 2.0)
        unnamed = quickly(momentum_db.log_trade_entry, None, "live", "BTCUSDT", "buy", 1.0, 2.0, 2.0)
        opened = quickly(momentum_db.get_open_trades)
        assert [trade["id"] for trade in opened] == [unnamed, second, first]
        assert [trade["id"] for trade in momentum_db.get_open_trades("demo")] == [second]
        quickly(momentum_db.log_trade_exit, "a", 2.0, 1 / 3, 100.0, "Take Profit", 7)
        assert [trade["id"] for trade in quickly(momentum_db.get_open_trades)] == [unnamed, second]
        with pytest.raises(sqlite3.IntegrityError):
            quickly(momentum_db.log_trade_entry, "b", "demo", "BTCUSDT", "SELL", 1.0, 2.0, 2.0)
        quickly(momentum_db.log_event, "E", "WARN", "away", None)
        quickly(momentum_db.log_risk_event, "R", 1.0, 2.0, None)
        quickly(momentum_db.save_daily_snapshot, "2026-06-01", "live", 1.0, 2.0, 1.0, 1.0, 1, 1, 0, 2)
        with pytest.raises(sqlite3.OperationalError):
            quickly(momentum_db.get_performance_stats)
    assert momentum_db._store.client.flush(60)
    recent = momentum_db.get_recent_trades()
    assert [trade["id"] for trade in recent] == [unnamed, second, first]
    assert recent[:2] == opened[:2], "what was shown meanwhile is what was stored"
    assert (recent[2]["quantity"], recent[2]["pnl_usd"], recent[2]["exit_reason"]) == (0.1 + 0.2, 1 / 3, "Take Profit")
    assert [event["message"] for event in momentum_db.get_recent_events()] == ["away"]
    assert momentum_db.get_daily_snapshots()[0]["ending_equity"] == 2.0
    assert environment.target.value("SELECT count(*) FROM audit.risk_events") == 1
    momentum_db.close()


def test_shortseller_goes_on_while_the_database_is_away(
    environment: Environment, trades: Any, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One day's figures.
    Clock(monkeypatch, modules["shortseller"]).moment = datetime.now(UTC)
    before = trades.log_trade("BTCUSDT", "Sell", 1, 2, "o-1")
    position = trades.open_position("BTCUSDT", "short", 1, 2, 3, None, 10)
    # What was there when the bot started, it knows as well.
    trades.close()
    environment.hurry()
    trades = modules["shortseller"].TradeLogger(None)
    minute = datetime(2026, 6, 1, tzinfo=UTC)
    made: list[tuple[str, Row]] = []

    def note(table: str, call: Callable[..., Any], *arguments: Any) -> Row:
        row: Row = quickly(call, *arguments)
        made.append((table, row))
        return row

    with environment.away():
        assert quickly(trades.get_pending_trades) == [before]
        filled = note("trades", trades.update_trade_status, before["id"], "filled", Decimal("0.5"))
        assert (filled["status"], filled["price"], filled["executed_at"] is None) == ("filled", 2, False)
        other = note("trades", trades.log_trade, "ETHUSDT", "BUY", 0.1, "3.5", "o-2")
        assert other.keys() == before.keys()
        with pytest.raises(psycopg2.IntegrityError):
            quickly(trades.log_trade, "ETHUSDT", "BUY", 1, 1, "o-2")
        note("trades", trades.update_trade_pnl, before["id"], Decimal("-1.5"), Decimal(1))
        assert [trade["id"] for trade in quickly(trades.get_pending_trades)] == [other["id"]]
        assert quickly(trades.get_open_positions) == [position]
        note("positions", trades.update_position, position["id"], Decimal("0.25"))
        note("positions", trades.close_position, position["id"], Decimal("0.25"))
        assert quickly(trades.get_open_positions) == []
        noted = note("signals", trades.log_signal, "ETHUSDT", "close", 0.5, 3.5, {"ema": 1.5})
        note("signals", trades.mark_signal_executed, noted["id"], other["id"])
        note("market_data", trades.store_candle, "ETHUSDT", minute, [1, 2, 1, 2, 5], "1m")
        assert quickly(trades.store_candle, "ETHUSDT", minute, [1, 2, 1, 2, 5], "1m") is None
        balance = note("account_balance", trades.log_balance, 1, 2, 3, 4, 5)
        assert quickly(trades.latest_balance) == balance
        figures = note("risk_metrics", trades.update_risk_metrics)
        assert (figures["total_trades"], figures["losing_trades"], figures["total_pnl"]) == (1, 1, Decimal("-1.5"))
        with pytest.raises(psycopg2.OperationalError):
            quickly(trades.row, "trades", 2**30)
    # A new one remembers nothing: what was returned meanwhile is what was stored.
    assert trades._store.client.flush(60)
    trades.close()
    environment.use("shortseller_001")
    trades = modules["shortseller"].TradeLogger(None)
    last = {(table, row["id"]): row for table, row in made}
    for (table, row_id), row in last.items():
        assert trades.row(table, row_id) == row
    trades.close()
    assert environment.target.value("SELECT current_equity FROM trading.bots WHERE bot_id = 'shortseller_001'") == 3


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    began = time.monotonic()
    call(*arguments)
    return time.monotonic() - began


@pytest.fixture
def patient_trades(environment: Environment, trades: Any, modules: dict[str, ModuleType]) -> Iterator[Any]:
    """A logger whose reads wait so long that a call shows whether it waits for one."""
    trades.close()
    environment.set("TRADING_DB_WAIT_SECONDS", "0.5")
    environment.set("TRADING_DB_READ_SECONDS", "8")
    environment.set("TRADING_DB_STATEMENT_SECONDS", "1")
    logger = modules["shortseller"].TradeLogger(None)
    yield logger
    logger.close()


def wait_for_trouble(trades: Any) -> None:
    deadline = time.monotonic() + 30
    while trades._store.client._delivery.trouble is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def candle(trades: Any, minute: int) -> None:
    trades.store_candle("BTCUSDT", datetime(2026, 6, 1, 12, minute, tzinfo=UTC), [1, 2, 1, 2, 5], "1m")


def test_one_candle_waits_for_a_database_that_is_away_and_no_other_call_with_it(
    environment: Environment, patient_trades: Any
) -> None:
    with environment.away():
        first = threading.Thread(target=candle, args=(patient_trades, 0))
        first.start()
        time.sleep(0.5)
        assert seconds(patient_trades.log_trade, "BTCUSDT", "Sell", 1, 2) < 4
        first.join()
        wait_for_trouble(patient_trades)
        assert sum(seconds(candle, patient_trades, minute) for minute in range(1, 5)) < 4
    candle(patient_trades, 5)
    assert patient_trades._store.client.flush(60)
    assert environment.target.value("SELECT count(*) FROM trading.market_data") == 6


def test_rows_that_are_known_are_changed_without_asking_a_database_that_is_away(
    environment: Environment, patient_trades: Any
) -> None:
    trade = patient_trades.log_trade("BTCUSDT", "Sell", 1, 2)
    position = patient_trades.open_position("BTCUSDT", "short", 1, 2, 3, None, 10)
    noted = patient_trades.log_signal("BTCUSDT", "short", 0.5, 2, None)
    with environment.away():
        patient_trades.log_balance(1, 2, 3, 4, 5)
        wait_for_trouble(patient_trades)
        for call, *arguments in (
            (patient_trades.update_trade_status, trade["id"], "filled"),
            (patient_trades.update_trade_pnl, trade["id"], 5, 1),
            (patient_trades.update_position, position["id"], 5),
            (patient_trades.close_position, position["id"], 5),
            (patient_trades.mark_signal_executed, noted["id"], trade["id"]),
            (candle, patient_trades, 0),
        ):
            # Not because the last call has just asked in vain.
            patient_trades._store._asked_in_vain = float("-inf")
            assert seconds(call, *arguments) < 4, call
    assert patient_trades.row("trades", trade["id"])["pnl"] == 5
    assert patient_trades.row("positions", position["id"])["status"] == "closed"
    assert patient_trades.row("signals", noted["id"])["execution_id"] == trade["id"]


def test_a_backup_has_the_legacy_schema_and_appears_whole_or_not_at_all(
    environment: Environment, momentum_db: Any, modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    def schema(path: str) -> list[Any]:
        with closing(sqlite3.connect(path)) as file:
            found = file.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
            return [(name, " ".join(sql.split())) for name, sql in found]

    old = modules["legacy momentum"].TradeDatabase(str(tmp_path / "old.db"))
    old.close()
    momentum_db.log_trade_entry("a", "live", "BTCUSDT", "Buy", 1.0, 0.1 + 0.2, 1.0)
    path = momentum_db.backup()
    assert Path(path).parent == tmp_path / "data"
    assert Path(path).name.startswith("trading_backup_")
    assert schema(path) == schema(str(tmp_path / "old.db"))
    content = Path(path).read_bytes()
    momentum_db.close()
    environment.hurry()
    with (
        closing(modules["momentum"].TradeDatabase(tmp_path / "data/trading.db")) as again,
        environment.away(),
        pytest.raises(sqlite3.OperationalError),
    ):
        again.backup(path)
    assert Path(path).read_bytes() == content
    assert [file.name for file in Path(path).parent.iterdir()] == [Path(path).name]


def test_a_bot_that_cannot_reach_the_database_hears_of_it_from_its_own_driver(
    environment: Environment, modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    environment.set("TRADING_DB_START_SECONDS", "1")
    with environment.away():
        environment.use("momentum_001")
        with pytest.raises(sqlite3.OperationalError):
            modules["momentum"].TradeDatabase(tmp_path / "trading.db")
        environment.use("shortseller_001")
        with pytest.raises(psycopg2.OperationalError):
            modules["shortseller"].TradeLogger(None)
