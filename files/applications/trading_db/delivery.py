"""The thread that brings the outbox into the database: in order, exactly once, for ever trying.

Each transaction moves last_sequence in delivery.outboxes and writes its
entries. Whether a transaction was committed when its answer was lost does not
matter: the next one finds out, because it waits for that row.
"""

from __future__ import annotations

import logging
import random
import threading
import time

import psycopg2

from .connection import Connection, cause, is_final
from .errors import SecondInstance, TradingDBError, Unavailable
from .instance import Instance
from .outbox import Entry, Outbox, OutboxError, OutboxUnwritable, encode
from .settings import Settings
from .statements import insert

_BATCH = 100
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
NOTICE = "notice of a refused write"
_log = logging.getLogger("trading_db")

_REGISTER = """INSERT INTO delivery.outboxes (bot_id, outbox_id, last_sequence)
VALUES (%(bot_id)s, %(outbox_id)s, %(sequence)s) ON CONFLICT DO NOTHING"""
_KNOWN = """SELECT last_sequence FROM delivery.outboxes WHERE bot_id = %(bot_id)s AND outbox_id = %(outbox_id)s"""
_ADVANCE = """UPDATE delivery.outboxes SET last_sequence = %(last)s
WHERE bot_id = %(bot_id)s AND outbox_id = %(outbox_id)s AND last_sequence < %(first)s"""
_RESERVE = """SELECT nextval(pg_get_serial_sequence(%(table)s, 'id')) FROM generate_series(1, %(count)s)"""

_GIVEN_OUT = """SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence(%(table)s, 'id')::regclass), 0)"""


class _Refusal(Exception):
    """The database refuses an entry."""


class _Canceled(Exception):
    """The database ends a statement of an entry, as it does when that takes too long."""


class Delivery(threading.Thread):
    """The sender of one outbox, and the pulse of its instance."""

    def __init__(self, settings: Settings, outbox: Outbox, instance: Instance) -> None:
        super().__init__(name="trading_db delivery", daemon=True)
        self._settings = settings
        self._outbox = outbox
        self._instance = instance
        self._connection: Connection | None = None
        self._changed = threading.Condition()
        self._position = 0
        self._singly_until = 0
        # The entry that was canceled last, and how often.
        self._canceled = (0, 0)
        self._stopping = False
        self._woken = False
        self._beat_wanted = False
        # Tables of which row ids are kept.
        self._tables = ["trading.trades"]
        # Row ids that the outbox had no room for yet.
        self._homeless: dict[str, list[int]] = {}
        # Why nothing is delivered now.
        self.trouble: str | None = None
        # Why nothing will be any more.
        self.failure: TradingDBError | None = None

    # For the threads of the bot.

    def begin(self) -> None:
        """Reach the database, claim the instance, start the thread. Raises Unavailable, SecondInstance."""
        deadline = time.monotonic() + self._settings.start_seconds
        pause = _FIRST_PAUSE
        while True:
            try:
                self._connection = Connection(self._settings)
                self._prepare(self._connection)
                break
            except psycopg2.Error as error:
                self._disconnect()
                if is_final(error):
                    raise TradingDBError(
                        f"{self._settings.where} is not what the client expects ({cause(error)}): expected the unified "
                        "schema and the bots' access; run playbooks/phase2_data_migration.yml"
                    ) from error
                if time.monotonic() + pause > deadline:
                    raise Unavailable(
                        f"{self._settings.where} did not answer within {self._settings.start_seconds:g} s "
                        f"({cause(error)}): start it, or correct POSTGRES_* in the bot's .env"
                    ) from error
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            except BaseException:
                self._disconnect()
                raise
        self.start()

    def wake(self) -> None:
        """There is something to deliver."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def wait_for(self, sequence: int, seconds: float) -> bool:
        """Wait until an entry and all before it are delivered or refused. Returns whether they are."""
        with self._changed:
            self._changed.wait_for(lambda: self._position >= sequence or self.failure or self._stopping, seconds)
            return self._position >= sequence

    def beat_now(self, seconds: float) -> None:
        """Have a heartbeat, and wait for it."""
        with self._changed:
            self._beat_wanted = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._beat_wanted or self.trouble or self.failure, seconds)

    def keep_ids(self, table: str, seconds: float) -> None:
        """Keep row ids of a table from now on; wait for the first."""
        with self._changed:
            if table not in self._tables:
                self._tables.append(table)
            self._woken = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._outbox.id_count(table) or self.trouble or self.failure, seconds)

    def stop(self, seconds: float) -> None:
        """End the thread and the instance."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.join(seconds)

    # The thread.

    def run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping:
            try:
                self._work()
                pause = _FIRST_PAUSE
            except SecondInstance as error:
                _log.critical("%s", error)
            except Exception as error:
                if isinstance(error, OutboxError) and not isinstance(error, OutboxUnwritable):
                    self._fail(error)
                    return
                self._disconnect()
                self._note_trouble(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, _LONGEST_PAUSE)
        try:
            if self._connection is not None:
                self._instance.end(self._connection)
        except psycopg2.Error as error:
            _log.warning("the instance could not be ended (%s): a successor waits for 30 s", cause(error))
        self._disconnect()

    def _work(self) -> None:
        """Deliver what there is, or wait for it."""
        if self._connection is None:
            self._connection = Connection(self._settings)
        if self._beat_wanted or self._instance.due_in <= 0:
            try:
                self._instance.beat(self._connection)
            finally:
                with self._changed:
                    self._beat_wanted = False
                    self._changed.notify_all()
        newest = self._outbox.last_sequence()
        entries = self._outbox.pending(self._position, 1 if self._position < self._singly_until else _BATCH)
        if entries:
            self._deliver(self._connection, entries)
        else:
            self._arrive(newest, in_file=False)
        self._reserve_ids(self._connection)
        self._note_no_trouble()
        with self._changed:
            if not entries:
                self._changed.wait_for(
                    lambda: self._woken or self._stopping or self._beat_wanted, max(0.0, self._instance.due_in)
                )
            self._woken = False

    def _prepare(self, connection: Connection) -> None:
        with connection.transaction(
            "SELECT FROM trading.bots WHERE bot_id = %(bot_id)s", {"bot_id": self._settings.bot_id}
        ) as cursor:
            if cursor.rowcount != 1:
                raise TradingDBError(
                    f"{self._settings.where} shows no bot {self._settings.bot_id}: expected it in trading.bots; register "
                    "it with playbooks/phase2_data_migration.yml, or correct BOT_ID and POSTGRES_USER in the bot's .env"
                )
        self._position = self._known_position(connection, 0)
        self._outbox.continue_after(self._position)
        self._outbox.delivered(self._position)
        self._check_ids(connection)
        self._instance.claim(connection)
        self._reserve_ids(connection)

    def _known_position(self, connection: Connection, otherwise: int) -> int:
        """How far the database has this outbox; a database that does not know it starts where it is told."""
        parameters = {**self._parameters(), "sequence": otherwise}
        with connection.transaction(_REGISTER, parameters):
            (known,) = connection.execute(_KNOWN, parameters).fetchone()
            return int(known)

    def _check_ids(self, connection: Connection) -> None:
        """Raises TradingDBError if entries may have row ids that the database would give out again."""
        for table, newest in self._outbox.newest_ids():
            with connection.transaction(_GIVEN_OUT, {"table": table}, read_only=True) as cursor:
                (last,) = cursor.fetchone()
            if last >= newest:
                continue
            if self._outbox.pending_count() or self._outbox.refused_count():
                raise TradingDBError(
                    f"{self._settings.where} gave out row id {last} of {table} last, but {self._outbox.path} has {newest} "
                    "from it, and entries that it does not have: it was put back from a backup; move its sequences ahead "
                    "as docs/client.md says, then start the bot"
                )
            self._outbox.forget_ids()

    def _reserve_ids(self, connection: Connection) -> None:
        for table in tuple(self._tables):
            missing = self._settings.id_reserve - self._outbox.id_count(table)
            if missing * 2 >= self._settings.id_reserve:
                if table not in self._homeless:
                    with connection.transaction(_RESERVE, {"table": table, "count": missing}) as cursor:
                        self._homeless[table] = [number for (number,) in cursor.fetchall()]
                try:
                    self._outbox.add_ids(table, self._homeless[table])
                except OutboxUnwritable as error:
                    # Deliveries free the disk, so they must go on.
                    _log.error("row ids of %s cannot be kept for now: %s", table, error)
                    continue
                del self._homeless[table]
                with self._changed:
                    self._changed.notify_all()

    def _deliver(self, connection: Connection, entries: list[Entry]) -> None:
        first, last = entries[0].sequence, entries[-1].sequence
        try:
            with connection.transaction(_ADVANCE, {**self._parameters(), "first": first, "last": last}) as advanced:
                news = advanced.rowcount == 1
                for entry in entries if news else ():
                    self._execute(connection, entry)
        except _Canceled:
            self._singly_until = last  # What comes before it need not wait.
            raise
        except _Refusal as refusal:
            if len(entries) > 1:
                self._singly_until = last
            else:
                self._set_aside(entries[0], str(refusal))
            return
        position = last if news else self._known_position(connection, first - 1)
        # Before anybody is woken: a read would take it for away.
        self._note_no_trouble()
        self._arrive(position)

    def _execute(self, connection: Connection, entry: Entry) -> None:
        for operation in entry.operations:
            try:
                cursor = connection.execute(operation.sql, operation.parameters or None)
            except psycopg2.errors.QueryCanceled as error:
                sequence, times = self._canceled
                times = times + 1 if sequence == entry.sequence else 1
                self._canceled = (entry.sequence, times)
                raise _Canceled(
                    f"{entry.summary} (entry {entry.sequence}) was canceled, try {times}: {cause(error)}; if it needs "
                    "longer, raise TRADING_DB_STATEMENT_SECONDS in the bot's .env and start the bot again"
                ) from error
            except Exception as error:
                if is_final(error):
                    raise _Refusal(cause(error)) from error
                raise
            if cursor.rowcount == 0 and operation.unmatched:
                raise _Refusal(operation.unmatched)

    def _set_aside(self, entry: Entry, reason: str) -> None:
        text = f"{entry.summary} was refused by the database: {reason}"
        _log.error("%s; it is kept in %s: see python -m trading_db status", text, self._outbox.path)
        with self._outbox.transaction():
            self._outbox.refuse(entry.sequence, reason)
            if entry.summary != NOTICE:
                event = {"event_type": "write_refused", "event_level": "ERROR", "component": "trading_db"}
                details = {"sequence": entry.sequence, "outbox": self._outbox.outbox_id}
                notice = insert(
                    "audit.system_events", self._settings.bot_id, {**event, "message": text, "details": details}
                )
                self._outbox.append(NOTICE, encode([notice]))
        self._note_no_trouble()
        self._arrive(entry.sequence, in_file=False)

    def _arrive(self, position: int, in_file: bool = True) -> None:
        if in_file:
            try:
                self._outbox.delivered(position)
            except OutboxError as error:
                # The database knows; a full disk must not stop the delivery that would free it.
                _log.error("delivered entries stay in the file for now: %s", error)
        with self._changed:
            self._position = max(self._position, position)
            self._changed.notify_all()

    def _parameters(self) -> dict[str, object]:
        return {"bot_id": self._settings.bot_id, "outbox_id": self._outbox.outbox_id}

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _fail(self, error: TradingDBError) -> None:
        if not self._stopping:
            _log.critical("the delivery has ended: %s", error)
        self._disconnect()
        with self._changed:
            self.failure = error
            self._changed.notify_all()

    def _note_trouble(self, error: Exception) -> None:
        found = cause(error)
        if found != self.trouble:
            _log.warning("nothing is delivered for now, writes are kept: %s: %s", self._settings.where, found)
        with self._changed:
            self.trouble = found
            self._changed.notify_all()

    def _note_no_trouble(self) -> None:
        if self.trouble is not None:
            _log.info("%s answers again", self._settings.where)
            self.trouble = None


def send_again(settings: Settings, outbox: Outbox) -> int:
    """Queue once more what was refused; the bot is stopped. Returns how much. Raises psycopg2.Error."""
    connection = Connection(settings)
    try:
        parameters = {"bot_id": settings.bot_id, "outbox_id": outbox.outbox_id}
        with connection.transaction(_KNOWN, parameters, read_only=True) as cursor:
            known = cursor.fetchone()
    finally:
        connection.close()
    with outbox.transaction():
        # What has a number that the database knows counts as delivered.
        outbox.continue_after(known[0] if known else 0)
        return outbox.send_again()
