"""The client that bots use: everything is scoped by the bot's id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from types import TracebackType
from typing import Any, NamedTuple

from .settings import Settings
from .values import Amount

Row = dict[str, Any]


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
        raise NotImplementedError

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
        raise NotImplementedError

    @property
    def refused_count(self) -> int:
        """How many writes the database refused; they are kept in the outbox file, see `python -m trading_db status`."""
        raise NotImplementedError

    @property
    def pending_count(self) -> int:
        """How many writes wait for the database."""
        raise NotImplementedError

    def __enter__(self) -> TradingDB:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, timeout: float = 10.0) -> bool:
        """Deliver what waits, end the instance. Returns whether everything was delivered; the rest is kept on disk."""
        raise NotImplementedError

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all writes so far are delivered or refused. Returns whether they are."""
        raise NotImplementedError

    # Trades.

    def new_trade_id(self, symbol: str) -> str:
        """A trade id of this bot that nobody else will ever get."""
        raise NotImplementedError

    def own_id(self, legacy_id: str) -> str:
        """An id of the bot's own making, prefixed with the bot's id as the migration does, unless it is already."""
        raise NotImplementedError

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
        raise NotImplementedError

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
        to the entry's. Refused if the bot has no such trade.
        """
        raise NotImplementedError

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
        raise NotImplementedError

    def update_trade(self, trade_id: str, **columns: Any) -> None:
        """Set columns of a trade, such as status, fees, pnl_usd, stop_loss. Refused if the bot has no such trade."""
        raise NotImplementedError

    def get_trade(self, trade_id: str) -> Row | None:
        """A trade of this bot."""
        raise NotImplementedError

    def get_open_trades(self, *, symbol: str | None = None, mode: str | None = None) -> list[Row]:
        """Trades without an exit (cancelled, rejected and expired ones are none), newest first."""
        raise NotImplementedError

    def get_recent_trades(self, limit: int = 50, *, symbol: str | None = None, mode: str | None = None) -> list[Row]:
        """Trades, newest first. `mode` is metadata's (demo, live), also of migrated rows."""
        raise NotImplementedError

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
        raise NotImplementedError

    def update_position(self, position_id: str, **columns: Any) -> None:
        """Set columns of a position, such as size, current_price, unrealized_pnl. Refused if the bot has none such."""
        raise NotImplementedError

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
        """Close a position (status closed or liquidated): size 0, no unrealized PnL. `realized_pnl` is the total."""
        raise NotImplementedError

    def get_open_positions(self, *, symbol: str | None = None, mode: str | None = None) -> list[Row]:
        """Positions that are open or partially closed, newest first."""
        raise NotImplementedError

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
        raise NotImplementedError

    def mark_signal_executed(
        self,
        signal_id: str,
        *,
        trade_id: str | None = None,
        order_id: str | None = None,
        execution_time: datetime | None = None,
    ) -> None:
        """Note that a signal was executed, by which trade or order. Refused if the bot has no such signal."""
        raise NotImplementedError

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
        raise NotImplementedError

    def update_order(self, order_id: str, **columns: Any) -> None:
        """Set columns of an order, such as status, filled_quantity. Refused if the bot has no such order."""
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

    def save_risk_metrics(self, day: date, *, metadata: Mapping[str, Any] | None = None, **columns: Any) -> None:
        """Store a day's figures. Columns given replace those of the day's row, others stay."""
        raise NotImplementedError

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
        raise NotImplementedError

    def heartbeat(self, **details: Any) -> None:
        """Attach details, such as a loop counter, to the heartbeat that runs in the background anyway."""
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

    # Statements of a bot's own.

    def write(self, operations: Sequence[tuple[str, Sequence[Any] | Mapping[str, Any]]]) -> bool:
        """Store statements, delivered as one transaction, exactly once, in order with all other writes.

        Returns whether they were delivered by the time the call returned. If the
        database refuses one of them, none is stored. Parameters may be what SQL
        knows: None, bool, int, float, Decimal, str, aware datetime, date, a list
        of these (an array) or a dict (JSON).
        """
        raise NotImplementedError

    def fetch(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> list[Row]:
        """Rows of a query, in a read-only transaction, after all earlier writes. Raises Unavailable rather than wait on."""
        raise NotImplementedError
