"""The client that bots use: everything is scoped by the bot's id."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from types import TracebackType
from typing import Any, NamedTuple

import psycopg2

from .connection import Pool, cause, is_final
from .delivery import Delivery
from .errors import Refused, SecondInstance, TradingDBError, Unavailable
from .instance import VERSION, Instance
from .outbox import Operation, Outbox, decode, encode
from .settings import Settings
from .statements import checked, exit_trade, insert, split_trade, update, upsert_day
from .values import UTC, Amount, product

Row = dict[str, Any]
# Columns that name a row of the bot.
_REFERENCES = {
    *("trade_id", "order_id", "position_id", "execution_trade_id", "execution_order_id"),
    *("entry_trade_ids", "exit_trade_ids"),
}
_log = logging.getLogger("trading_db")


class Trade(NamedTuple):
    """A trade that was logged: its text id, unique over all bots, and its row id."""

    trade_id: str
    id: int


class TradingDB:
    """One bot's way to trading_db; one instance a process, used by any number of threads.

    A write is stored durably beside the bot before the call returns and is
    delivered in order, exactly once. The call waits for the delivery for at most
    TRADING_DB_WAIT_SECONDS; it returns either way, and raises Refused if the
    database has refused the write by then. A read waits until all that was
    written before it is in the database, or raises Unavailable: it is never stale.

    Amounts may be Decimal, int, float (by its shortest repr) or the exchange's
    decimal text. Times are aware datetimes; None means now. Rows come as dicts
    with Decimal amounts and UTC times. `**columns` are further columns of the
    table by their names.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process = os.getpid()
        self._closed = False
        self._details: dict[str, Any] = {}
        self._reads = Pool(settings)
        self._outbox = Outbox(settings.outbox, settings.bot_id)
        self._instance = Instance(settings, VERSION, self._flag_second_instance)
        self._delivery = Delivery(settings, self._outbox, self._instance)
        try:
            self._delivery.begin()
        except BaseException:
            self._outbox.close()
            raise
        atexit.register(self.close, 2.0)

    @classmethod
    def from_environment(cls) -> TradingDB:
        """The client that the environment describes (see Settings). Claims the bot's instance.

        Raises Unavailable if the database does not answer within TRADING_DB_START_SECONDS,
        SecondInstance if another instance of the bot is alive.
        """
        return cls(Settings.from_environment())

    @property
    def bot_id(self) -> str:
        """The bot that everything is scoped by."""
        return self._settings.bot_id

    @property
    def refused_count(self) -> int:
        """How many writes the database refused; they are kept in the outbox file, see `python -m trading_db status`."""
        return self._outbox.refused_count()

    @property
    def pending_count(self) -> int:
        """How many writes wait for the database."""
        return self._outbox.pending_count()

    def __enter__(self) -> TradingDB:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, timeout: float = 10.0) -> bool:
        """Deliver what waits, end the instance. Returns whether everything was delivered; the rest is kept on disk."""
        if self._closed or self._process != os.getpid():
            return True
        deadline = time.monotonic() + timeout
        done = self.flush(timeout)
        self._closed = True
        self._delivery.stop(max(1.0, deadline - time.monotonic()))
        self._reads.close()
        self._outbox.close()
        atexit.unregister(self.close)
        return done

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all writes so far are delivered or refused. Returns whether they are."""
        seconds = self._settings.read_seconds if timeout is None else timeout
        return self._delivery.wait_for(self._outbox.last_sequence(), seconds)

    # Trades.

    def new_trade_id(self, symbol: str) -> str:
        """A trade id of this bot that nobody else will ever get."""
        moment = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}_{secrets.token_hex(5)}"
        return f"{self.bot_id}_{symbol[: 98 - len(self.bot_id) - len(moment)]}_{moment}"

    def own_id(self, legacy_id: str) -> str:
        """An id of the bot's own making, prefixed with the bot's id as the migration does, unless it is already."""
        prefix = f"{self.bot_id}_"
        return legacy_id if legacy_id.startswith(prefix) else prefix + legacy_id

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
        to the entry's. An exit logged again replaces the first. Refused if the bot
        has no such trade.
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
        """Record an execution. The same (exchange, execution_id) again changes nothing and is no error."""
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
        self._insert(
            "trading.fills", f"fill {exchange} {execution_id}", row, "ON CONFLICT (exchange, execution_id) DO NOTHING"
        )

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

    # Statements of a bot's own.

    def write(self, operations: Sequence[tuple[str, Sequence[Any] | Mapping[str, Any]]]) -> bool:
        """Store statements, delivered as one transaction, exactly once, in order with all other writes.

        Returns whether they were delivered by the time the call returned. If the
        database refuses one of them, none is stored. Parameters may be what SQL
        knows: None, bool, int, float, Decimal, str, aware datetime, date, a list
        of these (an array) or a dict (JSON).
        """
        if not operations:
            return True
        found = [checked(sql, parameters) for sql, parameters in operations]
        return self._store(f"statements of the bot: {found[0].sql.strip()[:60]}", found)

    def fetch(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> list[Row]:
        """Rows of a query, in a read-only transaction, after all earlier writes. Raises Unavailable rather than wait on."""
        operation = checked(sql, parameters or ())
        deadline = time.monotonic() + self._settings.read_seconds
        self._guard(self._settings.read_seconds)
        if not self.flush(max(0.0, deadline - time.monotonic())):
            raise Unavailable(
                f"{self.pending_count} writes wait for the database ({self._delivery.trouble or 'it is slow'}), so a read "
                f"would not know them: expected {self._settings.where} within {self._settings.read_seconds:g} s; the "
                "writes are safe; ask again, or see python -m trading_db status"
            )
        pause = 0.05
        while True:
            try:
                left = max(0.05, deadline - time.monotonic())
                return self._reads.rows(operation.sql, _parameters(operation.parameters), left)
            except Exception as error:
                if is_final(error):
                    raise Refused(f"the query cannot be answered ({cause(error)}): {sql.strip()[:200]}") from error
                if not isinstance(error, psycopg2.Error):
                    raise
                if time.monotonic() + pause > deadline:
                    raise Unavailable(
                        f"{self._settings.where} did not answer within {self._settings.read_seconds:g} s "
                        f"({cause(error)}): ask again when it is back"
                    ) from error
            time.sleep(pause)
            pause *= 2

    # How.

    def _guard(self, seconds: float) -> None:
        """Raises if this client may not go on."""
        if self._closed:
            raise TradingDBError("this TradingDB is closed: expected a call before close(); make another one")
        if self._process != os.getpid():
            raise TradingDBError(
                f"this TradingDB belongs to process {self._process}, and this is {os.getpid()}: expected one process; "
                "after a fork, let the parent write"
            )
        if self._instance.in_doubt and self._delivery.trouble is None:
            self._delivery.beat_now(seconds)
        if self._instance.superseded is not None:
            raise SecondInstance(self._instance.superseded)
        if self._delivery.failure is not None:
            raise self._delivery.failure

    def _store(self, summary: str, operations: Sequence[Operation]) -> bool:
        """Keep a write and wait for its delivery. Returns whether it was delivered in time."""
        return self._keep(summary, lambda: operations)

    def _write_trade(self, summary: str, trade_id: str, operations: Callable[[int], Sequence[Operation]]) -> Trade:
        """Keep a write that needs a row id."""
        taken: list[int] = []

        def with_id() -> Sequence[Operation]:
            row_id = self._outbox.take_id()
            if row_id is None:
                raise Unavailable(
                    f"all {self._settings.id_reserve} reserved row ids are used up while {self._settings.where} is away "
                    f"({self._delivery.trouble}): nothing of this trade was stored; bring the database back, and raise "
                    "TRADING_DB_ID_RESERVE in the bot's .env for longer outages"
                )
            taken.append(row_id)
            return operations(row_id)

        self._keep(summary, with_id)
        return Trade(trade_id, taken[0])

    def _keep(self, summary: str, operations: Callable[[], Sequence[Operation]]) -> bool:
        deadline = time.monotonic() + self._settings.wait_seconds
        self._guard(self._settings.wait_seconds)
        with self._outbox.transaction():
            sequence = self._outbox.append(summary, encode(operations()))
        self._delivery.wake()
        if not self._delivery.wait_for(sequence, max(0.0, deadline - time.monotonic())):
            return False
        reason = self._outbox.refusal(sequence)
        if reason is not None:
            raise Refused(
                f"{summary} was refused by the database: {reason}. Nothing of it was stored; it is kept in "
                f"{self._outbox.path}: see python -m trading_db status"
            )
        return True

    def _insert(self, table: str, summary: str, columns: Mapping[str, Any], after: str = "") -> None:
        self._store(summary, [insert(table, self.bot_id, self._with_own_ids(columns), after)])

    def _update(self, table: str, key: str, row: str, columns: Mapping[str, Any]) -> None:
        known = self.own_id(row)
        operation = update(table, self.bot_id, key, known, self._with_own_ids(columns))
        self._store(f"change of {key} {known}", [operation])

    def _new_id(self, given: str | None, symbol: str) -> str:
        return self.new_trade_id(symbol) if given is None else self.own_id(given)

    def _with_own_ids(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """References to rows of the bot as those rows are named."""
        found = dict(columns)
        for name in _REFERENCES & found.keys():
            value = found[name]
            if isinstance(value, str):
                found[name] = self.own_id(value)
            elif value is not None:
                found[name] = [self.own_id(item) for item in value]
        return found

    def _rows(
        self, table: str, condition: str, order: str, values: Mapping[str, Any], metadata: str = "metadata"
    ) -> list[Row]:
        conditions = ["bot_id = %(bot_id)s", condition]
        if values.get("symbol") is not None:
            conditions.append("symbol = %(symbol)s")
        if values.get("mode") is not None:
            conditions.append(f"coalesce({metadata} ->> 'mode', {metadata} #>> '{{legacy,mode}}') = %(mode)s")
        sql = f"SELECT * FROM {table} WHERE {' AND '.join(conditions)} ORDER BY {order}"
        return self.fetch(sql, {"bot_id": self.bot_id, **values})

    def _flag_second_instance(self, text: str) -> None:
        _log.warning("%s", text)
        row = {"event_type": "second_instance", "event_level": "WARNING", "component": "trading_db", "message": text}
        self._outbox.append("event second_instance", encode([insert("audit.system_events", self.bot_id, row)]))


def _parameters(given: Any) -> Any:
    """Parameters as psycopg2 takes them."""
    return decode(encode([Operation("", given)]))[0].parameters or None
