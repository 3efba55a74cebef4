"""Trades and positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from .base import Base, Row, Trade
from .statements import exit_trade, insert, split_trade
from .values import UTC, Amount, product


class Trades(Base):
    """What a bot holds and held."""

    def log_trade_entry(
        self,
        symbol: str,
        side: str,
        quantity: Amount,
        price: Amount,
        *,
        trade_id: str | None = None,
        entry_time: datetime | None = None,
        status: str = "filled",
        position_size_usd: Amount | None = None,
        stop_loss: Amount | None = None,
        take_profit: Amount | None = None,
        leverage: Amount | None = None,
        strategy: str | None = None,
        signal_strength: Amount | None = None,
        confidence_score: Amount | None = None,
        exchange_order_id: str | None = None,
        fees: Amount | None = None,
        metadata: Mapping[str, Any] | None = None,
        position: bool = False,
        **columns: Any,
    ) -> Trade:
        """Log a trade that was entered. A given trade_id is prefixed with the bot's id.

        `position` opens a position in the same transaction, whose position_id is
        the trade's id, as the migration does for open trades.
        """
        known = self._new_id(trade_id, symbol)
        entry_time = entry_time or datetime.now(UTC)
        row = {
            "trade_id": known,
            "symbol": symbol,
            "side": side,
            "quantity": quantity,
            "entry_price": price,
            "entry_time": entry_time,
            "status": status,
            "position_size_usd": position_size_usd,
            "stop_loss": stop_loss,
            "take_profit": take_profit,
            "leverage": leverage,
            "strategy": strategy,
            "signal_strength": signal_strength,
            "confidence_score": confidence_score,
            "exchange_order_id": exchange_order_id,
            "fees": fees,
            "metadata": metadata,
        }
        if position_size_usd is None:
            row["position_size_usd"] = product("quantity", quantity, "price", price)
        also = []
        if position:
            opened = {
                "position_id": known,
                "symbol": symbol,
                "side": side,
                "size": quantity,
                "avg_entry_price": price,
                "opened_at": entry_time,
                "last_updated": entry_time,
                "leverage": leverage,
                "stop_loss": stop_loss,
                "take_profit": take_profit,
                "strategy": strategy,
                "entry_trade_ids": [known],
                "position_metadata": metadata,
            }
            also.append(insert("trading.positions", self.bot_id, opened))
        return self._write_trade(
            f"entry of trade {known}",
            known,
            lambda row_id: [insert("trading.trades", self.bot_id, {**row, **columns}, row_id=row_id), *also],
        )

    def log_trade_exit(
        self,
        trade_id: str,
        exit_price: Amount,
        *,
        pnl_usd: Amount | None = None,
        pnl_pct: Amount | None = None,
        exit_reason: str | None = None,
        holding_time_seconds: int | None = None,
        exit_time: datetime | None = None,
        fees: Amount | None = None,
        **columns: Any,
    ) -> None:
        """Log a trade's exit; the position that was opened with it is closed as well.

        `holding_time_seconds` is computed where it is not given; `fees` are added
        to the entry's. An exit logged again replaces the trade's first one; its
        position has counted that one and stays. Refused if the bot has no such trade.
        """
        known = self.own_id(trade_id)
        row = {
            "exit_price": exit_price,
            "exit_time": exit_time or datetime.now(UTC),
            "pnl_usd": pnl_usd,
            "pnl_pct": pnl_pct,
            "exit_reason": exit_reason,
            "holding_time_seconds": holding_time_seconds,
            "fees": fees,
        }
        self._store(f"exit of trade {known}", exit_trade(self.bot_id, known, {**row, **columns}))

    def log_partial_close(
        self,
        trade_id: str,
        quantity: Amount,
        price: Amount,
        *,
        pnl_usd: Amount | None = None,
        pnl_pct: Amount | None = None,
        fees: Amount | None = None,
        exit_reason: str | None = None,
        exit_time: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Trade:
        """Split the closed part off an open trade. Returns the closed part, a trade of its own.

        The part has the trade's entry and its own exit, PnL and fees; the open
        trade keeps the rest of the quantity. So sums over trades stay right, and
        a part's PnL counts on its own day. The part's metadata names the trade
        as `partial_of`. The position that was opened with the trade becomes
        partially_closed. Refused if the trade is not open or not larger than
        the part: the last part is closed by log_trade_exit.
        """
        known = self.own_id(trade_id)
        part = self.new_trade_id("part")
        row = {
            "quantity": quantity,
            "exit_price": price,
            "exit_time": exit_time or datetime.now(UTC),
            "pnl_usd": pnl_usd,
            "pnl_pct": pnl_pct,
            "fees": fees,
            "exit_reason": exit_reason,
            "metadata": metadata or {},
        }
        return self._write_trade(
            f"partial close of trade {known}",
            part,
            lambda row_id: split_trade(self.bot_id, known, part, row_id, row),
        )

    def update_trade(self, trade_id: str, **columns: Any) -> None:
        """Set columns of a trade, such as status, fees, pnl_usd, stop_loss. Refused if the bot has no such trade."""
        self._update("trading.trades", "trade_id", trade_id, columns)

    def get_trade(self, trade_id: str) -> Row | None:
        """A trade of this bot."""
        found = self._rows("trading.trades", "trade_id = %(trade_id)s", "id", {"trade_id": self.own_id(trade_id)})
        return found[0] if found else None

    def get_open_trades(self, *, symbol: str | None = None, mode: str | None = None) -> list[Row]:
        """Trades without an exit (cancelled, rejected and expired ones are none), newest first."""
        open_ = "exit_time IS NULL AND status NOT IN ('cancelled', 'rejected', 'expired')"
        return self._rows("trading.trades", open_, "entry_time DESC, id DESC", {"symbol": symbol, "mode": mode})

    def get_recent_trades(self, limit: int = 50, *, symbol: str | None = None, mode: str | None = None) -> list[Row]:
        """Trades, newest first. `mode` is metadata's (demo, live), also of migrated rows."""
        values = {"symbol": symbol, "mode": mode, "limit": int(limit)}
        return self._rows("trading.trades", "true", "entry_time DESC, id DESC LIMIT %(limit)s", values)

    # Positions.

    def open_position(
        self,
        symbol: str,
        side: str,
        size: Amount,
        avg_entry_price: Amount,
        *,
        position_id: str | None = None,
        opened_at: datetime | None = None,
        leverage: Amount | None = None,
        stop_loss: Amount | None = None,
        take_profit: Amount | None = None,
        strategy: str | None = None,
        entry_trade_ids: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> str:
        """Record an open position. Returns its position_id. Side buy counts as long, sell as short."""
        known = self._new_id(position_id, symbol)
        opened_at = opened_at or datetime.now(UTC)
        row = {
            "position_id": known,
            "symbol": symbol,
            "side": side,
            "size": size,
            "avg_entry_price": avg_entry_price,
            "opened_at": opened_at,
            "last_updated": opened_at,
            "leverage": leverage,
            "stop_loss": stop_loss,
            "take_profit": take_profit,
            "strategy": strategy,
            "entry_trade_ids": entry_trade_ids,
            "position_metadata": metadata,
        }
        self._insert("trading.positions", f"position {known}", {**row, **columns})
        return known

    def update_position(self, position_id: str, **columns: Any) -> None:
        """Set columns of a position, such as size, current_price, unrealized_pnl. Refused if the bot has none such."""
        row = {"last_updated": datetime.now(UTC), **columns}
        self._update("trading.positions", "position_id", position_id, row)

    def close_position(
        self,
        position_id: str,
        *,
        exit_price: Amount | None = None,
        realized_pnl: Amount | None = None,
        closed_at: datetime | None = None,
        status: str = "closed",
        exit_trade_ids: Sequence[str] = (),
        **columns: Any,
    ) -> None:
        """Close a position (status closed or liquidated); it keeps its size. `realized_pnl` is the total."""
        closed_at = closed_at or datetime.now(UTC)
        row = {"closed_at": closed_at, "last_updated": closed_at, "status": status, "unrealized_pnl": 0, **columns}
        for name, value in (("current_price", exit_price), ("realized_pnl", realized_pnl), ("total_pnl", realized_pnl)):
            if value is not None:
                row[name] = value
        if exit_trade_ids:
            row["exit_trade_ids"] = exit_trade_ids
        self._update("trading.positions", "position_id", position_id, row)

    def get_open_positions(self, *, symbol: str | None = None, mode: str | None = None) -> list[Row]:
        """Positions that are open or partially closed, newest first."""
        return self._rows(
            "trading.positions",
            "status IN ('open', 'partially_closed')",
            "opened_at DESC, id DESC",
            {"symbol": symbol, "mode": mode},
            "position_metadata",
        )
