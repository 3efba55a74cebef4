"""Signals, orders and fills; balances, candles, risk and events."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from .base import Base
from .outbox import Operation
from .statements import insert, own_fill, upsert_day
from .values import UTC, Amount


class Records(Base):
    """What a bot meant to do, did, and met."""

    # Signals, orders, fills.

    def log_signal(
        self,
        symbol: str,
        signal_type: str,
        *,
        signal_id: str | None = None,
        strength: Amount | None = None,
        confidence: Amount | None = None,
        price: Amount | None = None,
        timestamp: datetime | None = None,
        strategy: str | None = None,
        indicators: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> str:
        """Record a signal (long, short, close_long, close_short, hold; buy and sell count as long and short)."""
        known = self._new_id(signal_id, symbol)
        row = {
            "signal_id": known,
            "symbol": symbol,
            "signal_type": signal_type,
            "strength": strength,
            "confidence": confidence,
            "price": price,
            "timestamp": timestamp or datetime.now(UTC),
            "strategy": strategy,
            "indicators": indicators,
            "metadata": metadata,
        }
        self._insert("trading.signals", f"signal {known}", {**row, **columns})
        return known

    def mark_signal_executed(
        self,
        signal_id: str,
        *,
        trade_id: str | None = None,
        order_id: str | None = None,
        execution_time: datetime | None = None,
    ) -> None:
        """Note that a signal was executed, by which trade or order. Refused if the bot has no such signal."""
        row: dict[str, Any] = {"executed": True, "execution_time": execution_time or datetime.now(UTC)}
        if trade_id is not None:
            row["execution_trade_id"] = trade_id
        if order_id is not None:
            row["execution_order_id"] = order_id
        self._update("trading.signals", "signal_id", signal_id, row)

    def log_order(
        self,
        symbol: str,
        side: str,
        order_type: str,
        quantity: Amount,
        *,
        order_id: str | None = None,
        price: Amount | None = None,
        stop_price: Amount | None = None,
        status: str = "pending",
        exchange_order_id: str | None = None,
        client_order_id: str | None = None,
        submitted_at: datetime | None = None,
        trade_id: str | None = None,
        position_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> str:
        """Record an order. Returns its order_id."""
        known = self._new_id(order_id, symbol)
        row = {
            "order_id": known,
            "symbol": symbol,
            "side": side,
            "order_type": order_type,
            "quantity": quantity,
            "price": price,
            "stop_price": stop_price,
            "status": status,
            "exchange_order_id": exchange_order_id,
            "client_order_id": client_order_id,
            "submitted_at": submitted_at or datetime.now(UTC),
            "trade_id": trade_id,
            "position_id": position_id,
            "order_metadata": metadata,
        }
        self._insert("trading.orders", f"order {known}", {**row, **columns})
        return known

    def update_order(self, order_id: str, **columns: Any) -> None:
        """Set columns of an order, such as status, filled_quantity. Refused if the bot has no such order."""
        self._update("trading.orders", "order_id", order_id, columns)

    def log_fill(
        self,
        exchange: str,
        execution_id: str,
        symbol: str,
        side: str,
        quantity: Amount,
        price: Amount,
        *,
        executed_at: datetime | None = None,
        order_id: str | None = None,
        client_order_id: str | None = None,
        trade_id: str | None = None,
        fee: Amount | None = None,
        fee_currency: str | None = None,
        liquidity: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Record an execution. The same one again changes nothing and is no error.

        Refused if (exchange, execution_id) is that of another bot or symbol.
        """
        row = {
            "exchange": exchange,
            "execution_id": execution_id,
            "symbol": symbol,
            "side": side,
            "quantity": quantity,
            "price": price,
            "executed_at": executed_at or datetime.now(UTC),
            "order_id": order_id,
            "client_order_id": client_order_id,
            "trade_id": trade_id,
            "fee": fee,
            "fee_currency": fee_currency,
            "liquidity": liquidity,
            "reason": reason,
        }
        known = "ON CONFLICT (exchange, execution_id) DO NOTHING"
        fill = insert("trading.fills", self.bot_id, self._with_own_ids(row), known)
        self._store(f"fill {exchange} {execution_id}", [fill, own_fill(fill)])

    # Account, market, risk.

    def log_balance(
        self,
        *,
        total_balance: Amount | None = None,
        available_balance: Amount | None = None,
        equity: Amount | None = None,
        snapshot_type: str = "periodic",
        timestamp: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> None:
        """Record a balance. Its equity, or else its total, becomes the bot's current equity."""
        row = {
            "total_balance": total_balance,
            "available_balance": available_balance,
            "equity": equity,
            "snapshot_type": snapshot_type,
            "timestamp": timestamp or datetime.now(UTC),
            "metadata": metadata,
            **columns,
        }
        operations = [insert("trading.account_balance", self.bot_id, row)]
        known = operations[0].parameters.get("equity", operations[0].parameters.get("total_balance"))
        if known is not None and str((metadata or {}).get("mode")).lower() != "demo":
            operations.append(
                Operation(
                    "UPDATE trading.bots SET current_equity = %(equity)s WHERE bot_id = %(bot_id)s",
                    {"equity": known, "bot_id": self.bot_id},
                )
            )
        self._store("balance", operations)

    def store_candle(
        self,
        symbol: str,
        interval: str,
        timestamp: datetime,
        *,
        open_price: Amount,
        high_price: Amount,
        low_price: Amount,
        close_price: Amount,
        volume: Amount | None = None,
        **columns: Any,
    ) -> None:
        """Store a candle, shared by all bots. One that is there already stays as it is."""
        row = {
            "symbol": symbol,
            "interval": interval,
            "timestamp": timestamp,
            "open_price": open_price,
            "high_price": high_price,
            "low_price": low_price,
            "close_price": close_price,
            "volume": volume,
            **columns,
        }
        candle = insert("trading.market_data", None, row, 'ON CONFLICT (symbol, "interval", timestamp) DO NOTHING')
        self._store(f"candle {symbol} {interval}", [candle])

    def save_risk_metrics(self, day: date, *, metadata: Mapping[str, Any] | None = None, **columns: Any) -> None:
        """Store a day's figures. Columns given replace those of the day's row, others stay."""
        row = {"date": day, "calculated_at": datetime.now(UTC), "metadata": metadata or {}, **columns}
        self._store(f"risk metrics of {day}", [upsert_day(self.bot_id, row)])

    def log_funding_payment(
        self,
        symbol: str,
        funding_time: datetime,
        amount: Amount,
        *,
        position_size: Amount | None = None,
        funding_rate: Amount | None = None,
    ) -> None:
        """Record a funding payment. The same (symbol, funding_time) again changes nothing and is no error."""
        row = {
            "symbol": symbol,
            "funding_time": funding_time,
            "amount": amount,
            "position_size": position_size,
            "funding_rate": funding_rate,
        }
        after = "ON CONFLICT (bot_id, symbol, funding_time) DO NOTHING"
        self._insert("trading.funding_payments", f"funding payment of {symbol}", row, after)

    def heartbeat(self, **details: Any) -> None:
        """Attach details, such as a loop counter, to the heartbeat that runs in the background anyway."""
        self._guard(0)
        details = {**self._details, **details}
        self._instance.describe(details)
        self._details = details

    def log_event(
        self,
        event_type: str,
        level: str = "INFO",
        message: str | None = None,
        *,
        details: Any = None,
        event_time: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> None:
        """Record an event. `level` is DEBUG, INFO, WARNING (or WARN), ERROR, CRITICAL (or FATAL), in any case."""
        row = {
            "event_type": event_type,
            "event_level": level,
            "message": message,
            "details": details,
            "event_time": event_time or datetime.now(UTC),
            "metadata": metadata,
        }
        self._insert("audit.system_events", f"event {event_type}", {**row, **columns})

    def log_risk_event(
        self,
        risk_type: str,
        current_value: Amount | None = None,
        limit_value: Amount | None = None,
        action_taken: str | None = None,
        *,
        event_time: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> None:
        """Record that a limit was met."""
        row = {
            "risk_type": risk_type,
            "current_value": current_value,
            "limit_value": limit_value,
            "action_taken": action_taken,
            "event_time": event_time or datetime.now(UTC),
            "metadata": metadata,
        }
        self._insert("audit.risk_events", f"risk event {risk_type}", {**row, **columns})
