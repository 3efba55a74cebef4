"""Proves that this bot can record trades, positions and signals. Run in the bot's folder, with its environment:

    pytest test_database_operations.py -v

Everything is written under the bot's trial id, <BOT_ID>_trial, never under its
own, and removed again, in the end and before the next run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from database.db_connector import DatabaseConnector
from psycopg2 import sql
from trading_db import Settings

# Tables that hold what the tests and the client write; a bot may delete only its trial id's rows.
WRITTEN = (
    "trading.signals",
    "trading.positions",
    "trading.trades",
    "trading.account_balance",
    "trading.bot_heartbeats",
    "audit.system_events",
    "delivery.outboxes",
)


def remove_trial_rows(settings: Settings) -> None:
    assert settings.bot_id.endswith("_trial"), f"{settings.bot_id} is no trial id: nothing was removed"
    connection = psycopg2.connect(
        host=settings.host,
        port=settings.port,
        dbname=settings.database,
        user=settings.user,
        password=settings.password,
    )
    try:
        with connection, connection.cursor() as cursor:
            for table in WRITTEN:
                name = sql.Identifier(*table.split("."))
                cursor.execute(sql.SQL("DELETE FROM {} WHERE bot_id = %s").format(name), (settings.bot_id,))
    finally:
        connection.close()


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DatabaseConnector]:
    """The connector of the trial id; tmp_path has its outbox."""
    monkeypatch.setenv("BOT_ID", os.environ["BOT_ID"].removesuffix("_trial") + "_trial")
    monkeypatch.setenv("TRADING_DB_OUTBOX", str(tmp_path))
    settings = Settings.from_environment()
    remove_trial_rows(settings)
    connector = DatabaseConnector()
    yield connector
    connector.close()
    remove_trial_rows(settings)


def only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    assert len(rows) == 1
    return rows[0]


def test_trade_logging(db: DatabaseConnector) -> None:
    trade_id = db.log_trade_entry(symbol="BTCUSDT", side="buy", quantity=0.01, price=45000)

    assert trade_id is not None
    assert trade_id.startswith(db.bot_id)
    trade = only(db.get_open_trades())
    assert (trade["trade_id"], trade["bot_id"], trade["symbol"], trade["side"]) == (
        trade_id,
        db.bot_id,
        "BTCUSDT",
        "buy",
    )
    assert (trade["quantity"], trade["entry_price"]) == (Decimal("0.01"), Decimal(45000))
    assert trade["position_size_usd"] == Decimal(450)

    second = db.log_trade_entry(symbol="BTCUSDT", side="buy", quantity=0.01, price=45000)
    assert second != trade_id, "two trades in one second are two trades"

    db.log_trade_exit(trade_id, 46000, pnl_usd=10)
    assert only(db.get_open_trades("BTCUSDT"))["trade_id"] == second


def test_position_tracking(db: DatabaseConnector) -> None:
    trade_id = db.log_trade_entry(symbol="ETHUSDT", side="buy", quantity="0.5", price="3000.25")
    position = only(db.get_open_positions("ETHUSDT"))
    assert (position["position_id"], position["side"], position["status"]) == (trade_id, "long", "open")
    assert (position["size"], position["avg_entry_price"]) == (Decimal("0.5"), Decimal("3000.25"))

    db.update_position(trade_id, current_price="3010.25", unrealized_pnl=5)
    position = only(db.get_open_positions("ETHUSDT"))
    assert (position["current_price"], position["unrealized_pnl"]) == (Decimal("3010.25"), Decimal(5))

    db.log_trade_exit(trade_id, "3010.25", pnl_usd=5)
    assert db.get_open_positions("ETHUSDT") == []


def test_signal_logging(db: DatabaseConnector) -> None:
    signal_id = db.log_signal("SOLUSDT", "long", strength=0.75, price=172.345, indicators={"rsi_14": 28.5})
    trade_id = db.log_trade_entry(symbol="SOLUSDT", side="buy", quantity=1, price=172.345)
    db.mark_signal_executed(signal_id, trade_id)

    signal = db.get_signal(signal_id)
    assert signal is not None
    assert (signal["bot_id"], signal["signal_type"], signal["strategy"]) == (db.bot_id, "long", "lx_multi_indicator")
    assert (signal["strength"], signal["price"]) == (Decimal("0.75"), Decimal("172.345"))
    assert signal["indicators"] == {"rsi_14": 28.5}
    assert (signal["executed"], signal["execution_trade_id"]) == (True, trade_id)
