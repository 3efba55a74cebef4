"""Connections through PgBouncer, in transaction pooling.

Nothing outlives a transaction: settings are SET LOCAL, there are no prepared
statements, cursors or locks of a session. Every answer is awaited with a
deadline of our own, because a server that is frozen keeps its connections.
"""

from __future__ import annotations

import queue
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2 import extensions

from .settings import Settings
from .values import UTC

CONNECT_SECONDS = 5.0
# Beyond the statement's own timeout, for the way and the pooler's queue.
_GRACE_SECONDS = 5.0
# SQLSTATE classes of what will never be accepted, however often it is tried.
_FINAL = frozenset({"0A", "21", "22", "23", "2B", "2F", "34", "38", "39", "3F", "42", "44", "54", "P0"})
Parameters = Any
Cursor = Any


class NoAnswer(psycopg2.OperationalError):
    """The server did not answer in time."""


def is_final(error: Exception) -> bool:
    """Whether the database refuses the statement as such, so that trying again is no use."""
    if isinstance(error, psycopg2.Error):
        if error.pgcode is None:
            return type(error) is psycopg2.ProgrammingError  # psycopg2 itself cannot make a statement of it.
        return error.pgcode[:2] in _FINAL
    return isinstance(error, (TypeError, ValueError, LookupError))  # Parameters do not fit their marks.


def cause(error: Exception) -> str:
    """An error of psycopg2 in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    code = getattr(error, "pgcode", None)
    return (lines[0] if lines else type(error).__name__) + (f" [{code}]" if code else "")


class Connection:
    """One connection, used by one thread at a time."""

    def __init__(self, settings: Settings, seconds: float = CONNECT_SECONDS, **options: Any) -> None:
        self._statement_seconds = settings.statement_seconds
        deadline = time.monotonic() + seconds
        found = _addresses(settings.host, settings.port, seconds)
        self._raw = psycopg2.connect(
            # One name for each address. With addresses libpq looks nothing up.
            host=",".join([settings.host] * len(found)),
            hostaddr=",".join(found),
            port=settings.port,
            dbname=settings.database,
            user=settings.user,
            password=settings.password,
            application_name=settings.bot_id,
            client_encoding="UTF8",
            async_=1,
            **options,
        )
        try:
            self._wait(deadline)
        except BaseException:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether the connection is open and outside a transaction."""
        return not self._raw.closed and self._raw.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE

    def close(self) -> None:
        with suppress(psycopg2.Error):
            self._raw.close()

    def execute(self, sql: str, parameters: Parameters = None, seconds: float | None = None) -> Cursor:
        """Run a statement and wait for its result."""
        limit = self._statement_seconds + _GRACE_SECONDS if seconds is None else seconds
        cursor = self._raw.cursor()
        cursor.execute(sql, parameters)
        self._wait(time.monotonic() + limit)
        return cursor

    @contextmanager
    def transaction(
        self, first: str = "", parameters: Parameters = None, *, read_only: bool = False, seconds: float | None = None
    ) -> Iterator[Cursor]:
        """A transaction; yields the cursor of its first statement, which travels with BEGIN.

        It commits at the end, or rolls back and raises what went wrong. Whoever
        hears of a lost connection does not know whether it was committed.
        """
        limit = min(self._statement_seconds, seconds or self._statement_seconds)
        try:
            # What is delivered is deleted here: it has to be durable there.
            yield self.execute(
                f"BEGIN {'READ ONLY' if read_only else 'READ WRITE'}; "
                f"SET LOCAL statement_timeout = {max(1, int(limit * 1000))}; SET LOCAL synchronous_commit = on; {first}",
                parameters,
                seconds,
            )
            done = self.execute("COMMIT", seconds=seconds)
            if done.statusmessage != "COMMIT":
                raise psycopg2.InternalError(f"COMMIT was answered with {done.statusmessage}")
        except BaseException as error:
            self._leave(error)
            raise

    def _leave(self, error: BaseException) -> None:
        """Roll back, or drop a connection that may still be at work."""
        if isinstance(error, Exception) and not isinstance(error, NoAnswer) and not self._raw.closed:
            with suppress(psycopg2.Error):
                self.execute("ROLLBACK", seconds=CONNECT_SECONDS)
        if not self.usable:
            self.close()

    def _wait(self, deadline: float) -> None:
        while True:
            state = self._raw.poll()
            if state == extensions.POLL_OK:
                return
            events = select.POLLIN if state == extensions.POLL_READ else select.POLLOUT
            waiting = select.poll()
            waiting.register(self._raw.fileno(), events)
            left = deadline - time.monotonic()
            if left <= 0:
                self.close()
                raise NoAnswer("the server did not answer in time")
            waiting.poll(left * 1000 + 1)


def _addresses(host: str, port: int, seconds: float) -> list[str]:
    """The addresses of a host.

    libpq would look them up while it holds the interpreter's lock: no thread of
    the bot would run. The resolver knows no deadline, so it has a thread of its own.
    """
    answers: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(address[0]) for *_, address in found)))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=resolve, name="trading_db resolver", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise NoAnswer(f"the host name {host} was not resolved in time") from None
    if isinstance(answer, Exception):
        raise psycopg2.OperationalError(f"the host name {host} cannot be resolved: {answer}") from answer
    return answer


def _in_utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


class Pool:
    """Connections for reads by any thread; an idle one is taken again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    def rows(self, sql: str, parameters: Parameters, seconds: float) -> list[dict[str, Any]]:
        """The rows of a query, in a read-only transaction."""
        deadline = time.monotonic() + seconds
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None or not connection.usable:
            connection = Connection(self._settings, min(CONNECT_SECONDS, seconds))
        with connection.transaction(read_only=True, seconds=max(0.05, deadline - time.monotonic())):
            cursor = connection.execute(sql, parameters, max(0.05, deadline - time.monotonic()))
            names = [column.name for column in cursor.description or ()]
            found = [dict(zip(names, map(_in_utc, row), strict=True)) for row in (cursor.fetchall() if names else ())]
        with self._lock:
            self._idle.append(connection)
        return found

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
