"""Everything the short seller keeps, in the unified database. One call, one transaction.

A drop-in for the class of this name that kept it in a PostgreSQL of its own:
same methods, arguments, rows and order. Where the database is comes from the
environment (BOT_ID, POSTGRES_*), whatever `config` says. What is different:

- the unified database may be away. A write is then kept beside the bot and
  delivered later, and its row is returned all the same; pending trades, open
  positions, the last balance, today's figures and every row that passed through
  are known from memory; a row that did not raises DatabaseUnavailable, which is
  a psycopg2.OperationalError.
- values that the unified tables have no word for (a side other than buy, sell,
  long or short; a strength above 1): WriteRefused, a psycopg2.IntegrityError.
- where the bot has no balance yet, its initial capital becomes the first one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import date, datetime, time, timezone
from decimal import Decimal
from typing import Any

import psycopg2
from trading_db import Refused, Unavailable
from trading_db.legacy import Column, DriverErrors, LegacyStore, Row, Table
from trading_db.legacy_values import Flag, Integer, Json, Kept, Kind, Moment, Money, Word, decimal, plain_json

SIDES = {"buy": "buy", "sell": "sell", "long": "long", "short": "short"}
POSITION_SIDES = {"long": "long", "short": "short", "buy": "long", "sell": "short"}
STATUSES = {
    "pending": "pending",
    "partially_filled": "partially_filled",
    "filled": "filled",
    "cancelled": "cancelled",
    "canceled": "cancelled",
    "rejected": "rejected",
    "expired": "expired",
}
POSITION_STATUSES = {name: name for name in ("open", "partially_closed", "closed", "liquidated")}
# This bot only opens shorts, so its `close` closes one.
SIGNALS_KNOWN = {
    "long": "long",
    "short": "short",
    "close": "close_short",
    "close_long": "close_long",
    "close_short": "close_short",
    "hold": "hold",
}
_AS_IS, _MONEY, _AMOUNT, _RATIO, _MOMENT = Kind(), Money(), Money(signed=False), Money(4), Moment()

TRADES = Table(
    "trades",
    "trading.trades",
    (
        Column("symbol", "symbol", _AS_IS),
        Column("side", "side", Word(SIDES)),
        Column("quantity", "quantity", _AMOUNT),
        Column("price", "entry_price", _AMOUNT),
        Column("order_id", "", Kept()),
        Column("exchange_order_id", "exchange_order_id", _AS_IS),
        Column("status", "status", Word(STATUSES)),
        Column("strategy", "strategy", _AS_IS),
        Column("timestamp", "entry_time", _MOMENT),
        Column("executed_at", "exit_time", _MOMENT),
        Column("pnl", "pnl_usd", _MONEY),
        Column("fees", "fees", _MONEY),
        Column("notes", "notes", _AS_IS),
    ),
    frozenset({"symbol", "side", "quantity", "price", "status"}),
)
POSITIONS = Table(
    "positions",
    "trading.positions",
    (
        Column("symbol", "symbol", _AS_IS),
        Column("side", "side", Word(POSITION_SIDES)),
        Column("size", "size", _AMOUNT),
        Column("avg_price", "avg_entry_price", _AMOUNT),
        Column("unrealized_pnl", "unrealized_pnl", _MONEY),
        Column("realized_pnl", "realized_pnl", _MONEY),
        Column("status", "status", Word(POSITION_STATUSES)),
        Column("opened_at", "opened_at", _MOMENT),
        Column("closed_at", "closed_at", _MOMENT),
        Column("stop_loss", "stop_loss", _MONEY),
        Column("take_profit", "take_profit", _MONEY),
        Column("leverage", "leverage", Integer()),
    ),
    frozenset({"symbol", "side", "size", "avg_price"}),
    metadata="position_metadata",
    key="position_id",
)
CANDLES = Table(
    "market_data",
    "trading.market_data",
    (
        Column("symbol", "symbol", _AS_IS),
        Column("timestamp", "timestamp", _MOMENT),
        Column("open_price", "open_price", _MONEY),
        Column("high_price", "high_price", _MONEY),
        Column("low_price", "low_price", _MONEY),
        Column("close_price", "close_price", _MONEY),
        Column("volume", "volume", _AMOUNT),
        Column("interval", "interval", _AS_IS),
        Column("created_at", "created_at", _MOMENT),
    ),
    frozenset({"symbol", "timestamp", "open_price", "high_price", "low_price", "close_price", "volume", "interval"}),
)
SIGNALS = Table(
    "signals",
    "trading.signals",
    (
        Column("symbol", "symbol", _AS_IS),
        Column("signal_type", "signal_type", Word(SIGNALS_KNOWN)),
        Column("strength", "strength", _RATIO),
        Column("price", "price", _MONEY),
        Column("timestamp", "timestamp", _MOMENT),
        Column("strategy", "strategy", _AS_IS),
        Column("indicators", "indicators", Json()),
        Column("executed", "executed", Flag()),
        Column(
            "execution_id",
            "",
            _AS_IS,
            "(SELECT coalesce((x.metadata #>> '{legacy,id}')::bigint, x.id) FROM trading.trades AS x"
            " WHERE x.bot_id = t.bot_id AND x.trade_id = t.execution_trade_id)",
        ),
    ),
    frozenset({"symbol", "signal_type", "price"}),
    key="signal_id",
)
BALANCES = Table(
    "account_balance",
    "trading.account_balance",
    (
        Column("total_balance", "total_balance", _MONEY),
        Column("available_balance", "available_balance", _MONEY),
        Column("equity", "equity", _MONEY),
        Column("margin_used", "margin_used", _MONEY),
        Column("unrealized_pnl", "unrealized_pnl", _MONEY),
        Column("timestamp", "timestamp", _MOMENT),
    ),
    frozenset({"total_balance", "available_balance", "equity"}),
)
RISK_METRICS = Table(
    "risk_metrics",
    "trading.risk_metrics",
    (
        Column("date", "date", _AS_IS),
        Column("total_pnl", "daily_pnl", _MONEY),
        Column("max_drawdown", "max_drawdown", _RATIO),
        Column("win_rate", "win_rate", _RATIO),
        Column("profit_factor", "profit_factor", _RATIO),
        Column("sharpe_ratio", "sharpe_ratio", _RATIO),
        Column("total_trades", "total_trades", _AS_IS),
        Column("winning_trades", "winning_trades", _AS_IS),
        Column("losing_trades", "losing_trades", _AS_IS),
    ),
)
STRATEGY = "ema_crossover"
EXECUTED = ("filled", "partially_filled")
ZERO, NONE, MOST = Decimal("0E-8"), Decimal("0E-4"), Decimal("999.9900")
LAST_BALANCE = (
    "id = (SELECT id FROM trading.account_balance WHERE bot_id = %(bot_id)s"
    " ORDER BY timestamp DESC, (metadata #>> '{legacy,id}')::bigint DESC NULLS FIRST, id DESC LIMIT 1)"
)

EXECUTE_SIGNAL = (
    "UPDATE trading.signals SET executed = true, execution_time = %(now)s, execution_trade_id ="
    f" (SELECT trade_id FROM trading.trades AS t WHERE {TRADES.own} AND {TRADES.where_id('trade_id')})"
    f" WHERE {SIGNALS.own} AND {SIGNALS.where_id('signal_id')}"
)


class DatabaseUnavailable(Unavailable, psycopg2.OperationalError):
    """The database cannot answer now."""


class WriteRefused(Refused, psycopg2.IntegrityError):
    """The write breaks a rule of the tables; nothing of it was stored."""


as_psycopg2 = DriverErrors(DatabaseUnavailable, WriteRefused)


class TradeLogger:
    @as_psycopg2
    def __init__(self, config: object = None) -> None:
        # Nobody reads from the network under it: log_trade would wait as well.
        self._lock = threading.RLock()
        self._figures_lock = threading.Lock()
        self._candles: set[tuple[str, datetime, str]] = set()
        self._store = LegacyStore(TRADES, POSITIONS, CANDLES, SIGNALS, BALANCES, RISK_METRICS)
        # While the database answers: what the bot needs to go on while it does not.
        self.get_pending_trades()
        self.get_open_positions()
        self.latest_balance()
        self._filled_on(_today())
        self._figures_of(_today())

    @as_psycopg2
    def log_trade(
        self,
        symbol: str,
        side: str,
        quantity: Any,
        price: Any,
        order_id: str | None = None,
        exchange_order_id: str | None = None,
        notes: str | None = None,
    ) -> Row:
        row = {
            "symbol": symbol,
            "side": side,
            "quantity": _decimal(quantity),
            "price": _decimal(price),
            "order_id": order_id,
            "exchange_order_id": exchange_order_id,
            "status": "pending",
            "strategy": STRATEGY,
            "timestamp": _now(),
            "pnl": ZERO,
            "fees": ZERO,
            "notes": notes,
        }
        with self._lock:
            if order_id is not None and self._store.recall(TRADES, lambda known: bool(known["order_id"] == order_id)):
                raise Refused(f"duplicate key: a trade with order_id {order_id} was logged before")
            client = self._store.client
            trade_id = client.new_trade_id(symbol) if order_id is None else f"{client.bot_id}_{order_id}"
            return self._store.insert(TRADES, row, trade_id=trade_id, created_at=row["timestamp"])

    @as_psycopg2
    def update_trade_status(self, trade_id: int, status: str, fees: Any = None) -> Row | None:
        changes: Row = {"status": status}
        if fees is not None:
            changes["fees"] = _decimal(fees)
        if status in EXECUTED:
            changes["executed_at"] = _now()
        return self._update(TRADES, trade_id, changes)

    @as_psycopg2
    def update_trade_pnl(self, trade_id: int, pnl: Any, fees: Any) -> Row | None:
        return self._update(TRADES, trade_id, {"pnl": _decimal(pnl), "fees": _decimal(fees)})

    @as_psycopg2
    def get_pending_trades(self, limit: int | None = 3) -> list[Row]:
        rows = self._store.known(TRADES, "status = 'pending'", lambda row: row["status"].lower() == "pending")
        pending = [row for row in rows if row["status"] == "pending"]
        return sorted(pending, key=lambda row: row["id"], reverse=True)[:limit]

    @as_psycopg2
    def open_position(
        self, symbol: str, side: str, size: Any, price: Any, stop_loss: Any, take_profit: Any, leverage: int | None
    ) -> Row:
        now = _now()
        row = {
            "symbol": symbol,
            "side": side,
            "size": _decimal(size),
            "avg_price": _decimal(price),
            "unrealized_pnl": ZERO,
            "realized_pnl": ZERO,
            "status": "open",
            "opened_at": now,
            "stop_loss": _decimal(stop_loss),
            "take_profit": _decimal(take_profit),
            "leverage": leverage,
        }
        position_id = self._store.client.new_trade_id(symbol)
        return self._store.insert(POSITIONS, row, position_id=position_id, last_updated=now, created_at=now)

    @as_psycopg2
    def update_position(self, position_id: int, unrealized_pnl: Any) -> Row | None:
        return self._update(POSITIONS, position_id, {"unrealized_pnl": _decimal(unrealized_pnl)}, last_updated=_now())

    @as_psycopg2
    def close_position(self, position_id: int, realized_pnl: Any) -> Row | None:
        now, pnl = _now(), _decimal(realized_pnl)
        changes = {"status": "closed", "closed_at": now, "unrealized_pnl": ZERO, "realized_pnl": pnl}
        return self._update(POSITIONS, position_id, changes, last_updated=now, total_pnl=pnl)

    @as_psycopg2
    def get_open_positions(self) -> list[Row]:
        rows = self._store.known(POSITIONS, "status = 'open'", lambda row: bool(row["status"] == "open"))
        return sorted(rows, key=lambda row: (row["opened_at"], row["id"]))

    @as_psycopg2
    def log_signal(self, symbol: str, signal_type: str, strength: Any, price: Any, indicators: Any) -> Row:
        strength = _decimal(strength, 4)
        if strength is not None and not 0 <= strength <= 1:
            raise Refused(f"signals.strength is {strength}, expected 0 to 1")
        now = _now()
        row = {
            "symbol": symbol,
            "signal_type": signal_type,
            "strength": strength,
            "price": _decimal(price),
            "timestamp": now,
            "strategy": STRATEGY,
            "indicators": plain_json(indicators),
            "executed": False,
        }
        signal_id = self._store.client.new_trade_id(symbol)
        return self._store.insert(SIGNALS, row, signal_id=signal_id, created_at=now)

    @as_psycopg2
    def mark_signal_executed(self, signal_id: int, trade_id: int) -> Row | None:
        row = self._store.find(SIGNALS, signal_id)
        if row is None:
            return None
        if trade_id is not None and self._store.find(TRADES, trade_id) is None:
            raise Refused(f"trades has no row with id {trade_id}, expected the one that executed signal {signal_id}")
        executed = {"signal_id": row["id"], "trade_id": trade_id, "now": _now()}
        changed = row | {"executed": True, "execution_id": trade_id}
        with self._lock:
            self._store.write((EXECUTE_SIGNAL, executed))
            self._store.remember(SIGNALS, [changed])
        return changed

    @as_psycopg2
    def store_candle(self, symbol: str, timestamp: datetime, candle: Sequence[Any], interval: str) -> Row | None:
        """None where the candle is stored already."""
        # Naive times are UTC, as on the legacy server.
        moment = timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=timezone.utc)
        moment = moment.astimezone(timezone.utc)
        names = ("open_price", "high_price", "low_price", "close_price", "volume")
        row: Row = {"symbol": symbol, "timestamp": moment, "interval": interval, "created_at": _now()}
        row |= {name: _decimal(value) for name, value in zip(names, candle, strict=True)}
        prices = [row[name] for name in names[:4]]
        if None not in prices and (row["high_price"] != max(prices) or row["low_price"] != min(prices)):
            raise Refused(f"high and low of the candle of {symbol} at {moment} do not bound open and close: {prices}")
        key = (symbol, moment, interval)
        # A bot stores the running candle over and over.
        if key in self._candles or self._has_candle(key):
            return None
        with self._lock:
            if key in self._candles:
                return None
            stored = self._store.insert(CANDLES, row, conflict="ON CONFLICT DO NOTHING", data_source=self._store.bot_id)
            self._remember_candle(key)
            return stored

    @as_psycopg2
    def log_balance(self, total: Any, available: Any, equity: Any, margin_used: Any, unrealized_pnl: Any) -> Row:
        return self._log_balance("periodic", total, available, equity, margin_used, unrealized_pnl)

    @as_psycopg2
    def latest_balance(self) -> Row:
        rows = self._store.known(BALANCES, LAST_BALANCE, lambda row: True)
        if rows:
            return max(rows, key=lambda row: (row["timestamp"], row["id"]))
        sql = "SELECT initial_capital FROM trading.bots WHERE bot_id = %(bot_id)s"
        (bot,) = self._store.client.fetch(sql, {"bot_id": self._store.bot_id})
        return self._log_balance("initial", *[bot["initial_capital"]] * 3, ZERO, ZERO)

    @as_psycopg2
    def update_risk_metrics(self) -> Row:
        """The figures of today (UTC), computed from today's trades."""
        today = _today()
        with self._figures_lock:
            pnls = [trade["pnl"] for trade in self._filled_on(today)]
            before = self._figures_of(today)
            won = [pnl for pnl in pnls if pnl is not None and pnl > 0]
            lost = [pnl for pnl in pnls if pnl is not None and pnl < 0]
            factor = decimal(sum(won) / -sum(lost), 4) if won and lost else MOST
            row = {
                "id": before["id"] if before else self._store.client.reserve_id(RISK_METRICS.target),
                "date": today,
                "total_pnl": sum((pnl for pnl in pnls if pnl is not None), ZERO),
                "max_drawdown": before["max_drawdown"] if before else NONE,
                "win_rate": decimal(Decimal(len(won)) / len(pnls), 4) if pnls else NONE,
                "profit_factor": min(factor, MOST),
                "sharpe_ratio": before["sharpe_ratio"] if before else NONE,
                "total_trades": len(pnls),
                "winning_trades": len(won),
                "losing_trades": len(lost),
            }
            self._store.write(RISK_METRICS.upsert(row, "(bot_id, date)"))
            self._store.remember(RISK_METRICS, [row])
            return row

    @as_psycopg2
    def row(self, table: str, row_id: int) -> Row | None:
        """A stored row of one of the six tables, None where there is none."""
        if table not in TABLES:
            raise ValueError(f"unknown table {table}")
        return self._store.find(TABLES[table], row_id)

    def close(self) -> None:
        self._store.close()

    def _has_candle(self, key: tuple[str, datetime, str]) -> bool:
        symbol, moment, interval = key
        where = "(symbol, timestamp, interval) = (%(symbol)s, %(moment)s, %(interval)s)"
        try:
            found = bool(self._store.select(CANDLES, where, symbol=symbol, moment=moment, interval=interval))
        except Unavailable:
            # If it is there after all, the delivery leaves it as it is.
            return False
        if found:
            with self._lock:
                self._remember_candle(key)
        return found

    def _remember_candle(self, key: tuple[str, datetime, str]) -> None:
        if len(self._candles) > 5000:
            self._candles.clear()
        self._candles.add(key)

    def _update(self, table: Table, row_id: int, changes: Row, **further: Any) -> Row | None:
        row = self._store.find(table, row_id)
        if row is None:
            return None
        with self._lock:
            # Another thread may have changed it since.
            (row,) = self._store.recall(table, lambda known: bool(known["id"] == row_id)) or [row]
            return self._store.update(table, row, changes, **further)

    def _log_balance(self, kind: str, *amounts: Any) -> Row:
        names = [column.name for column in BALANCES.columns if column.name != "timestamp"]
        row: Row = {name: _decimal(value) for name, value in zip(names, amounts, strict=True)}
        row["timestamp"] = _now()
        equity = ("UPDATE trading.bots SET current_equity = %(equity)s WHERE bot_id = %(bot_id)s", row)
        return self._store.insert(BALANCES, row, equity, snapshot_type=kind, created_at=row["timestamp"])

    def _filled_on(self, day: date) -> list[Row]:
        start = datetime.combine(day, time(), timezone.utc)

        def filled(row: Row) -> bool:
            return bool(row["status"] == "filled" and row["timestamp"] >= start)

        rows = self._store.known(TRADES, "status = 'filled' AND entry_time >= %(start)s", filled, start=start)
        return [row for row in rows if filled(row)]

    def _figures_of(self, day: date) -> Row | None:
        rows = self._store.known(RISK_METRICS, "date = %(day)s", lambda row: bool(row["date"] == day), day=day)
        return rows[0] if rows else None


TABLES = {table.name: table for table in (TRADES, POSITIONS, CANDLES, SIGNALS, BALANCES, RISK_METRICS)}
_loggers: list[TradeLogger] = []


def _logger() -> TradeLogger:
    """The process's own logger, for bots that call functions."""
    if not _loggers:
        _loggers.append(TradeLogger())
    return _loggers[0]


def log_trade(
    symbol: str,
    side: str,
    quantity: Any,
    price: Any,
    order_id: str | None = None,
    exchange_order_id: str | None = None,
    notes: str | None = None,
) -> Row:
    """Log a trade of this bot; returns its row. Its trade_id is unique, however many fall into a second."""
    return _logger().log_trade(symbol, side, quantity, price, order_id, exchange_order_id, notes)


@as_psycopg2
def get_active_positions() -> list[Row]:
    """Open positions of this bot, and of no other, with all columns of trading.positions."""
    sql = "SELECT * FROM trading.positions WHERE bot_id = %(bot_id)s AND status = 'open' ORDER BY opened_at, id"
    client = _logger()._store.client
    return client.fetch(sql, {"bot_id": client.bot_id})


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _today() -> date:
    return _now().date()


def _decimal(value: Any, places: int = 8) -> Decimal | None:
    return None if value is None else decimal(value, places)
