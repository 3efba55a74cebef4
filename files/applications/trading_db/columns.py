"""The tables that a bot writes: their columns, and what each can hold.

As files/migrations/001_unified_schema.sql has them, so that a value that the
database would refuse is refused in the call that brought it. A test compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from . import values
from .errors import Refused
from .values import JsonText


class Kind:
    """What a column can hold."""

    def convert(self, name: str, value: Any) -> Any:
        """The value as the column holds it. Raises Refused."""
        raise NotImplementedError


@dataclass(frozen=True)
class Number(Kind):
    """NUMERIC(whole + places, places), from `low` (or above it) to `high`."""

    whole: int
    places: int
    low: int | None = None
    high: int | None = None
    above: bool = False

    def convert(self, name: str, value: Any) -> Decimal:
        number = values.numeric(name, value, self.whole, self.places)
        if self.low is not None and (number < self.low or (self.above and number == self.low)):
            raise Refused(f"{name} is {value!r}: expected {'more than' if self.above else 'at least'} {self.low}")
        if self.high is not None and number > self.high:
            raise Refused(f"{name} is {value!r}: expected at most {self.high}")
        return number


@dataclass(frozen=True)
class Whole(Kind):
    """INTEGER or BIGINT."""

    bits: int
    low: int | None = None

    def convert(self, name: str, value: Any) -> int:
        number = values.integer(name, value, self.bits)
        if self.low is not None and number < self.low:
            raise Refused(f"{name} is {value!r}: expected at least {self.low}")
        return number


@dataclass(frozen=True)
class Text(Kind):
    """TEXT or VARCHAR(limit)."""

    limit: int | None = None

    def convert(self, name: str, value: Any) -> str:
        return values.text(name, value, self.limit)


@dataclass(frozen=True)
class Choice(Kind):
    """TEXT with a CHECK: the words it allows, and others that mean one of them."""

    known: Mapping[str, str]

    def convert(self, name: str, value: Any) -> str:
        return values.chosen(name, value, self.known)


class Time(Kind):
    """TIMESTAMPTZ."""

    def convert(self, name: str, value: Any) -> Any:
        return values.moment(name, value)


class Day(Kind):
    """DATE."""

    def convert(self, name: str, value: Any) -> Any:
        return values.day(name, value)


class Flag(Kind):
    """BOOLEAN."""

    def convert(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise Refused(f"{name} is {value!r}: expected True or False")
        return value


class Json(Kind):
    """JSONB."""

    def convert(self, name: str, value: Any) -> JsonText:
        return JsonText(values.json_text(name, value))


class Texts(Kind):
    """TEXT[]."""

    def convert(self, name: str, value: Any) -> list[str]:
        if isinstance(value, str):
            raise Refused(f"{name} is {value!r}: expected a list of texts")
        return [values.text(name, item) for item in value]


def choice(*words: str, **others: str) -> Choice:
    """The words a column allows; `others` are words of the bots and the exchanges that mean one of them."""
    return Choice({word.lower(): word for word in words} | others)


MONEY = Number(12, 8)
PRICE = Number(12, 8, low=0)
QUANTITY = Number(12, 8, low=0, above=True)
RATIO = Number(4, 6)
WIDE_RATIO = Number(6, 6)
SHARE = Number(4, 6, low=0, high=1)
TEXT, ID = Text(), Text(100)
TIME, DAY, FLAG, JSON, TEXTS = Time(), Day(), Flag(), Json(), Texts()
INTEGER, BIGINT = Whole(32), Whole(64)
ORDER_SIDE = choice("buy", "sell")

TABLES: dict[str, dict[str, Kind]] = {
    "trading.trades": {
        "trade_id": ID,
        "symbol": TEXT,
        "exchange_order_id": TEXT,
        "side": choice("buy", "sell", "long", "short"),
        "trade_type": TEXT,
        "quantity": PRICE,
        "entry_price": PRICE,
        "exit_price": MONEY,
        "avg_fill_price": MONEY,
        "position_size_usd": MONEY,
        "leverage": RATIO,
        "stop_loss": MONEY,
        "take_profit": MONEY,
        "trailing_stop_pct": RATIO,
        "status": choice(
            "pending", "partially_filled", "filled", "cancelled", "rejected", "expired", canceled="cancelled"
        ),
        "entry_time": TIME,
        "exit_time": TIME,
        "holding_time_seconds": BIGINT,
        "pnl_usd": MONEY,
        "pnl_pct": RATIO,
        "fees": MONEY,
        "commission": MONEY,
        "slippage": MONEY,
        "exit_reason": TEXT,
        "strategy": TEXT,
        "signal_strength": RATIO,
        "confidence_score": RATIO,
        "strategy_params": JSON,
        "market_regime": TEXT,
        "entry_conditions": JSON,
        "exit_conditions": JSON,
        "notes": TEXT,
        "metadata": JSON,
    },
    "trading.positions": {
        "position_id": ID,
        "symbol": TEXT,
        # An exchange names a position by the order that opens it.
        "side": choice("long", "short", buy="long", sell="short"),
        "size": PRICE,
        "avg_entry_price": PRICE,
        "current_price": MONEY,
        "leverage": RATIO,
        "unrealized_pnl": MONEY,
        "realized_pnl": MONEY,
        "total_pnl": MONEY,
        "unrealized_pnl_pct": RATIO,
        "stop_loss": MONEY,
        "take_profit": MONEY,
        "trailing_stop_pct": RATIO,
        "highest_price": MONEY,
        "lowest_price": MONEY,
        "status": choice("open", "partially_closed", "closed", "liquidated"),
        "opened_at": TIME,
        "closed_at": TIME,
        "last_updated": TIME,
        "entry_trade_ids": TEXTS,
        "exit_trade_ids": TEXTS,
        "strategy": TEXT,
        "entry_signal": JSON,
        "position_metadata": JSON,
        "notes": TEXT,
    },
    "trading.signals": {
        "signal_id": ID,
        "symbol": TEXT,
        "signal_type": choice("long", "short", "close_long", "close_short", "hold", buy="long", sell="short"),
        "strength": SHARE,
        "confidence": SHARE,
        "price": MONEY,
        "suggested_stop_loss": MONEY,
        "suggested_take_profit": MONEY,
        "suggested_position_size": MONEY,
        "timestamp": TIME,
        "valid_until": TIME,
        "strategy": TEXT,
        "indicators": JSON,
        "market_conditions": JSON,
        "executed": FLAG,
        "execution_time": TIME,
        "execution_order_id": ID,
        "execution_trade_id": ID,
        "rejected": FLAG,
        "rejection_reason": TEXT,
        "passed_filters": JSON,
        "outcome": TEXT,
        "outcome_pnl": MONEY,
        "notes": TEXT,
        "metadata": JSON,
    },
    "trading.orders": {
        "order_id": ID,
        "symbol": TEXT,
        "exchange_order_id": TEXT,
        "client_order_id": TEXT,
        "order_type": choice("market", "limit", "stop_market", "stop_limit", "trailing_stop"),
        "side": ORDER_SIDE,
        "quantity": QUANTITY,
        "filled_quantity": PRICE,
        "remaining_quantity": PRICE,
        "price": PRICE,
        "avg_fill_price": PRICE,
        "stop_price": PRICE,
        "status": choice(
            "pending",
            "submitted",
            "partially_filled",
            "filled",
            "cancelled",
            "rejected",
            "expired",
            "failed",
            canceled="cancelled",
        ),
        "submitted_at": TIME,
        "filled_at": TIME,
        "fees": MONEY,
        "commission": MONEY,
        "order_purpose": TEXT,
        "position_id": ID,
        "trade_id": ID,
        "rejection_reason": TEXT,
        "error_code": TEXT,
        "retry_count": Whole(32, low=0),
        "order_metadata": JSON,
    },
    "trading.fills": {
        "exchange": TEXT,
        "execution_id": TEXT,
        "symbol": TEXT,
        "order_id": ID,
        "client_order_id": TEXT,
        "trade_id": ID,
        "side": ORDER_SIDE,
        "price": PRICE,
        "quantity": QUANTITY,
        "fee": MONEY,
        "fee_currency": TEXT,
        "liquidity": choice("maker", "taker"),
        "reason": TEXT,
        "executed_at": TIME,
    },
    "trading.account_balance": {
        "total_balance": MONEY,
        "available_balance": MONEY,
        "locked_balance": MONEY,
        "equity": MONEY,
        "margin_used": MONEY,
        "margin_available": MONEY,
        "margin_level": WIDE_RATIO,
        "unrealized_pnl": MONEY,
        "realized_pnl": MONEY,
        "daily_pnl": MONEY,
        "timestamp": TIME,
        "snapshot_type": choice("periodic", "trade_open", "trade_close", "deposit", "withdrawal", "manual", "initial"),
        "data_source": TEXT,
        "metadata": JSON,
    },
    "trading.market_data": {
        "symbol": TEXT,
        "interval": TEXT,
        "timestamp": TIME,
        "exchange": TEXT,
        "open_price": MONEY,
        "high_price": MONEY,
        "low_price": MONEY,
        "close_price": MONEY,
        "volume": PRICE,
        "quote_volume": MONEY,
        "trades_count": BIGINT,
        "taker_buy_volume": MONEY,
        "taker_sell_volume": MONEY,
        "ema_20": MONEY,
        "ema_50": MONEY,
        "ema_200": MONEY,
        "rsi_14": RATIO,
        "atr_14": MONEY,
        "data_source": TEXT,
        "metadata": JSON,
    },
    "trading.risk_metrics": {
        "date": DAY,
        **dict.fromkeys(("starting_equity", "ending_equity", "daily_pnl"), MONEY),
        **dict.fromkeys(("daily_pnl_pct", "daily_return"), RATIO),
        **dict.fromkeys(("total_trades", "winning_trades", "losing_trades", "breakeven_trades"), INTEGER),
        "win_rate": RATIO,
        **dict.fromkeys(("gross_profit", "gross_loss", "net_profit"), MONEY),
        "profit_factor": WIDE_RATIO,
        **dict.fromkeys(("avg_win", "avg_loss", "largest_win", "largest_loss", "max_drawdown"), MONEY),
        "max_drawdown_pct": RATIO,
        "current_drawdown": MONEY,
        **dict.fromkeys(("sharpe_ratio", "sortino_ratio", "calmar_ratio"), WIDE_RATIO),
        **dict.fromkeys(("avg_leverage", "max_leverage"), RATIO),
        **dict.fromkeys(("avg_position_size", "max_exposure"), MONEY),
        **dict.fromkeys(("avg_holding_time_hours", "shortest_trade_hours", "longest_trade_hours"), WIDE_RATIO),
        "calculated_at": TIME,
        "metadata": JSON,
    },
    "trading.funding_payments": {
        "symbol": TEXT,
        "funding_time": TIME,
        "position_size": MONEY,
        "funding_rate": MONEY,
        "amount": MONEY,
    },
    "audit.system_events": {
        "event_time": TIME,
        "event_type": TEXT,
        "event_level": choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", warn="WARNING", fatal="CRITICAL"),
        "component": TEXT,
        "message": TEXT,
        "details": JSON,
        "symbol": TEXT,
        "order_id": ID,
        "trade_id": ID,
        "error_code": TEXT,
        "stack_trace": TEXT,
        "metadata": JSON,
    },
    "audit.risk_events": {
        "event_time": TIME,
        "risk_type": TEXT,
        "current_value": MONEY,
        "limit_value": MONEY,
        "threshold_pct": RATIO,
        "action_taken": TEXT,
        "positions_affected": INTEGER,
        "trades_cancelled": INTEGER,
        "resolved": FLAG,
        "resolved_at": TIME,
        "resolution_notes": TEXT,
        "metadata": JSON,
    },
}


def convert(table: str, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the table's columns hold them. None stays None."""
    known = TABLES[table]
    for name in columns:
        if name not in known:
            raise Refused(f"{table} has no column {name!r} that a bot may set: expected one of {', '.join(known)}")
    return {name: None if value is None else known[name].convert(name, value) for name, value in columns.items()}
