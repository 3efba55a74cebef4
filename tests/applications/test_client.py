"""What the bots' client promises while the servers are up."""

from __future__ import annotations

import pytest
from trading_db import Refused, TradingDB

from tests.database.conftest import Target


def test_a_trade_from_entry_to_exit(db: TradingDB, target: Target) -> None:
    trade = db.log_trade_entry("BTCUSDT", "Buy", 0.1, "45000.5", position=True, fees=1.5, metadata={"mode": "live"})
    assert trade.trade_id.startswith("momentum_001_BTCUSDT_")
    (row,) = db.get_open_trades()
    assert row["id"] == trade.id
    db.log_trade_exit(trade.trade_id, 46000, pnl_usd=99.95, fees=2)
    assert db.get_open_trades() == []
    assert db.get_open_positions() == []
