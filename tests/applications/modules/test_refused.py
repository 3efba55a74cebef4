"""A change of a row that the database refused is refused too, and both are kept."""

from __future__ import annotations

from types import ModuleType

from trading_db.outbox import listed

from .conftest import Environment


def test_the_close_of_a_refused_position_is_kept(environment: Environment, modules: dict[str, ModuleType]) -> None:
    environment.use("shortseller_001")
    environment.hurry()
    environment.set("TRADING_DB_WAIT_SECONDS", "0")
    trades = modules["shortseller"].TradeLogger(None)
    environment.target.execute("REVOKE INSERT ON trading.positions FROM trading_bots")
    with environment.away():
        position = trades.open_position("BTCUSDT", "short", 1, 2, 3, None, 10)
        trades.close_position(position["id"], 1)
    client = trades._store.client
    assert client.flush(60)
    assert client.refused_count == 2
    trades.close()
    opened, closed = listed(environment.folder / "shortseller_001", "shortseller_001")
    assert "permission denied for table positions" in (opened.refused or "")
    assert closed.refused == f"trading.positions has no row {position['id']} of bot shortseller_001"
