"""What LXAlgo keeps in the unified database, where it kept nothing before.

A write returns without waiting for long while the database is away: it is
kept beside the bot and delivered later, in order, exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from trading_db import shared
from trading_db.values import Amount

STRATEGY = "lx_multi_indicator"


class DatabaseConnector:
    """The bot that the environment names (BOT_ID, POSTGRES_*), and its rows alone."""

    def __init__(self) -> None:
        self._db = shared.acquire()
        self.bot_id = self._db.bot_id

    def log_trade_entry(self, symbol: str, side: str, quantity: Amount, price: Amount, **columns: Any) -> str:
        """Log a trade that was entered, and the position that it opens under the same id. Returns its trade_id.

        `columns`: more of trading.trades, such as stop_loss, take_profit, signal_strength.
        """
        columns = {"strategy": STRATEGY, "position": True, **columns}
        return self._db.log_trade_entry(symbol, side, quantity, price, **columns).trade_id

    def log_trade_exit(self, trade_id: str, price: Amount, pnl_usd: Amount | None = None, **columns: Any) -> None:
        """Log that a trade was left at a price; its position is closed as well."""
        self._db.log_trade_exit(trade_id, price, pnl_usd=pnl_usd, **columns)

    def get_open_trades(self, symbol: str | None = None) -> list[dict[str, Any]]:
        """Trades that were entered and not left, newest first, also those of an earlier run."""
        return self._db.get_open_trades(symbol=symbol)

    def open_position(self, symbol: str, side: str, size: Amount, price: Amount, **columns: Any) -> str:
        """Record a position that no single trade opened. Returns its position_id."""
        return self._db.open_position(symbol, side, size, price, **{"strategy": STRATEGY, **columns})

    def update_position(self, position_id: str, **columns: Any) -> None:
        """Set columns of a position, such as current_price, unrealized_pnl."""
        self._db.update_position(position_id, **columns)

    def close_position(self, position_id: str, realized_pnl: Amount | None = None, **columns: Any) -> None:
        """Close a position that no single trade opened."""
        self._db.close_position(position_id, realized_pnl=realized_pnl, **columns)

    def get_open_positions(self, symbol: str | None = None) -> list[dict[str, Any]]:
        """Positions that are not closed, newest first."""
        return self._db.get_open_positions(symbol=symbol)

    def log_signal(
        self,
        symbol: str,
        signal_type: str,
        strength: Amount | None = None,
        price: Amount | None = None,
        indicators: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> str:
        """Record a signal: long, short, close_long, close_short or hold. Returns its signal_id."""
        columns = {"strategy": STRATEGY, **columns}
        return self._db.log_signal(
            symbol, signal_type, strength=strength, price=price, indicators=indicators, **columns
        )

    def mark_signal_executed(self, signal_id: str, trade_id: str) -> None:
        """Note which trade a signal led to."""
        self._db.mark_signal_executed(signal_id, trade_id=trade_id)

    def get_signal(self, signal_id: str) -> dict[str, Any] | None:
        """A signal of this bot."""
        query = "SELECT * FROM trading.signals WHERE bot_id = %(bot_id)s AND signal_id = %(signal_id)s"
        rows = self._db.fetch(query, {"bot_id": self.bot_id, "signal_id": signal_id})
        return rows[0] if rows else None

    def log_balance(self, equity: Amount, snapshot_type: str = "periodic") -> None:
        """Record what the bot is worth."""
        self._db.log_balance(total_balance=equity, equity=equity, snapshot_type=snapshot_type)

    def get_equity(self) -> Decimal:
        """What the bot was worth last, its initial capital to begin with."""
        sql = "SELECT coalesce(current_equity, initial_capital) AS equity FROM trading.bots WHERE bot_id = %(bot_id)s"
        (bot,) = self._db.fetch(sql, {"bot_id": self.bot_id})
        equity: Decimal = bot["equity"]
        return equity

    def heartbeat(self, **details: Any) -> None:
        """Attach details to the sign of life that is sent in the background anyway."""
        self._db.heartbeat(**details)

    def close(self) -> None:
        """Deliver what waits."""
        shared.release(self._db)
