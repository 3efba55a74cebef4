"""The ground of the client: keeping writes, waiting for their delivery, reading."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg2

from .connection import Pool, cause, is_final
from .delivery import Delivery
from .errors import Refused, SecondInstance, TradingDBError, Unavailable
from .instance import VERSION, Instance
from .outbox import Operation, Outbox, decode, encode
from .settings import Settings
from .statements import checked, insert, update
from .values import UTC

Row = dict[str, Any]
Parameters = Sequence[Any] | Mapping[str, Any]
Statement = tuple[str, Parameters] | tuple[str, Parameters, str]
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


class Base:
    """What every kind of record is written and read by."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process = os.getpid()
        self._closing = threading.RLock()
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

    def close(self, timeout: float = 10.0) -> bool:
        """Deliver what waits, end the instance. Returns whether everything was delivered; the rest is kept on disk.

        Called by a signal handler in the middle of a write it returns False and leaves the closing to the process's end.
        """
        if self._process != os.getpid():
            return True
        if self._outbox.interrupted:
            return False
        # Of two threads the second one waits for the first.
        with self._closing:
            if self._closed:
                return True
            self._closed = True
            deadline = time.monotonic() + timeout
            try:
                done = self.flush(timeout)
            except BaseException:
                self._closed = False
                raise
            self._delivery.stop(max(1.0, deadline - time.monotonic()))
            self._reads.close()
            self._outbox.close()
            atexit.unregister(self.close)
            return done

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all writes so far are delivered or refused. Returns whether they are."""
        seconds = self._settings.read_seconds if timeout is None else timeout
        return self._delivery.wait_for(self._outbox.last_sequence(), seconds)

    def new_trade_id(self, symbol: str) -> str:
        """A trade id of this bot that nobody else will ever get."""
        moment = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}_{secrets.token_hex(5)}"
        return f"{self.bot_id}_{symbol[: 98 - len(self.bot_id) - len(moment)]}_{moment}"

    def own_id(self, legacy_id: str) -> str:
        """An id of the bot's own making, prefixed with the bot's id as the migration does, unless it is already."""
        prefix = f"{self.bot_id}_"
        return legacy_id if legacy_id.startswith(prefix) else prefix + legacy_id

    # Statements of a bot's own.

    def write(self, operations: Sequence[Statement]) -> bool:
        """Store statements, delivered as one transaction, exactly once, in order with all other writes.

        A statement is its SQL, its parameters and, where it has to change a row, why it is refused if there is none.
        Returns whether they were delivered by the time the call returned. If the
        database refuses one of them, none is stored. Parameters may be what SQL
        knows: None, bool, int, float, Decimal, str, aware datetime, date, a list
        of these (an array) or a dict (JSON).
        """
        if not operations:
            return True
        found = [checked(sql, given)._replace(unmatched=why[0] if why else None) for sql, given, *why in operations]
        return self._store(f"statements of the bot: {found[0].sql.strip()[:60]}", found)

    def keep_ids(self, *tables: str) -> None:
        """Have row ids of tables at hand for reserve_id, also while the database is away."""
        for table in tables:
            self._delivery.keep_ids(table, self._settings.read_seconds)

    def reserve_id(self, table: str) -> int:
        """The id of a row to be written to a table of keep_ids: nobody else ever gets it."""
        self._guard(self._settings.wait_seconds)
        return self._take_id(table)

    def fetch(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> list[Row]:
        """Rows of a query, in a read-only transaction, after all earlier writes. Raises Unavailable rather than wait on,
        and at once if it is known that nothing is delivered now."""
        operation = checked(sql, parameters or ())
        # Where the delivery is in trouble already, a read is not likely to do better: it waits no longer than a write.
        trouble = self._delivery.trouble
        seconds = self._settings.read_seconds
        if trouble is not None:
            seconds = min(seconds, self._settings.wait_seconds)
        deadline = time.monotonic() + seconds
        self._guard(seconds)
        if not self.flush(0 if trouble is not None else max(0.0, deadline - time.monotonic())):
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
                if is_final(error) or isinstance(error, psycopg2.errors.ReadOnlySqlTransaction):
                    raise Refused(f"the query cannot be answered ({cause(error)}): {sql.strip()[:200]}") from error
                if not isinstance(error, psycopg2.Error):
                    raise
                if time.monotonic() + pause > deadline:
                    raise Unavailable(
                        f"{self._settings.where} did not answer within {seconds:g} s ({cause(error)}): "
                        "ask again when it is back"
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
        if self._outbox.interrupted:
            raise Unavailable(
                "a signal handler interrupted a write of this thread and called the client: nothing of this call was "
                "stored; let the handler set a flag, and call where the bot's loop sees it"
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
            taken.append(self._take_id("trading.trades"))
            return operations(taken[0])

        self._keep(summary, with_id)
        return Trade(trade_id, taken[0])

    def _take_id(self, table: str) -> int:
        row_id = self._outbox.take_id(table)
        if row_id is None:
            raise Unavailable(
                f"all {self._settings.id_reserve} reserved row ids are used up for {table} while {self._settings.where} is "
                f"away ({self._delivery.trouble or 'or the outbox has no room for more'}): nothing of this row was stored; "
                "bring the database back, and raise TRADING_DB_ID_RESERVE in the bot's .env for longer outages"
            )
        return row_id

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
