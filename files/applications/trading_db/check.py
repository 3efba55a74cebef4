"""Proof that a bot's environment reaches the unified database as it should. Leaves no row behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import psycopg2

from .connection import Connection, cause
from .settings import Settings
from .statements import insert
from .values import UTC

Fact = tuple[bool, str]
_SYMBOL = "CHECK"


class _Undo(Exception):
    """Ends a transaction that must not be committed."""


def facts(settings: Settings) -> Iterator[Fact]:
    """Each fact as it is proven: whether it holds, and its text. Raises psycopg2.Error if nobody answers."""
    yield _outbox(settings)
    connection = Connection(settings)
    try:
        yield True, f"connected to {settings.where}"
        yield _pooled(settings)
        found = _rolled_back(connection, lambda: _registered(connection, settings))
        yield found
        if not found[0]:
            return
        yield _rolled_back(connection, lambda: _written(connection, settings))
        if settings.user in (settings.bot_id, settings.bot_id.removesuffix("_trial")):
            yield _rolled_back(connection, lambda: _others_refused(connection, settings))
            yield _rolled_back(connection, lambda: _others_unseen(connection, settings))
        else:
            yield True, f"isolation is off: role {settings.user} is not the bot's own and may write for every bot"
    finally:
        connection.close()


def _outbox(settings: Settings) -> Fact:
    try:
        settings.outbox.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.outbox) as file:
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
    except OSError as error:
        return False, f"the outbox folder {settings.outbox.absolute()} cannot be written: {error.strerror}"
    return True, f"the outbox folder {settings.outbox.absolute()} can be written"


def _pooled(settings: Settings) -> Fact:
    """PostgreSQL takes any setting at the start of a connection, PgBouncer refuses those it cannot keep."""
    try:
        Connection(settings, options="-c geqo=on").close()
    except psycopg2.Error as error:
        if "unsupported startup parameter" in str(error):
            return True, "the server is reached through PgBouncer"
        raise
    return False, (
        f"{settings.host}:{settings.port} is PostgreSQL itself, expected PgBouncer: "
        "correct POSTGRES_HOST and POSTGRES_PORT (pgbouncer, 6432) in the bot's .env"
    )


def _rolled_back(connection: Connection, prove: Callable[[], Fact]) -> Fact:
    found: list[Fact] = []
    try:
        with connection.transaction():
            found.append(prove())
            raise _Undo
    except _Undo:
        return found[0]
    except psycopg2.Error as error:
        if error.pgcode is None:
            raise
        return False, f"a statement was refused: {cause(error)}; run playbooks/phase2_data_migration.yml"


def _registered(connection: Connection, settings: Settings) -> Fact:
    known = connection.execute("SELECT status FROM trading.bots WHERE bot_id = %s", (settings.bot_id,)).fetchone()
    connection.execute("SELECT FROM delivery.outboxes WHERE bot_id = %s", (settings.bot_id,))
    if known is None:
        return False, f"trading.bots shows no {settings.bot_id} to {settings.user}: expected it to be registered"
    return True, f"{settings.bot_id} is registered, its status is {known[0]}"


def _trade(settings: Settings, bot_id: str) -> Any:
    return insert(
        "trading.trades",
        bot_id,
        {
            "trade_id": f"{bot_id}_{_SYMBOL}_{os.getpid()}",
            "symbol": _SYMBOL,
            "side": "buy",
            "quantity": "0.00000001",
            "entry_price": "12345.12345678",
            "entry_time": datetime.now(UTC),
            "metadata": {"mode": "demo"},
        },
    )


def _written(connection: Connection, settings: Settings) -> Fact:
    trade = _trade(settings, settings.bot_id)
    connection.execute(trade.sql, trade.parameters)
    row = connection.execute(
        "SELECT bot_id, quantity, entry_price, entry_time FROM trading.trades"
        " WHERE bot_id = %(bot_id)s AND trade_id = %(trade_id)s",
        trade.parameters,
    ).fetchone()
    expected = tuple(trade.parameters[name] for name in ("bot_id", "quantity", "entry_price", "entry_time"))
    if row != expected:
        return False, f"a trade written reads back as {row}, expected {expected}"
    return True, f"a trade of {settings.bot_id} is written, reads back with every digit, and is rolled back"


def _others_refused(connection: Connection, settings: Settings) -> Fact:
    trade = _trade(settings, "another_bot")
    try:
        connection.execute(trade.sql, trade.parameters)
    except psycopg2.errors.InsufficientPrivilege:
        return True, "a trade of another bot is refused"
    except psycopg2.errors.ForeignKeyViolation:
        pass
    return False, f"role {settings.user} may write trades of another bot: expected row level security to refuse it"


def _others_unseen(connection: Connection, settings: Settings) -> Fact:
    own = (settings.user, f"{settings.user}_trial")
    cursor = connection.execute(
        "SELECT bot_id FROM trading.trades WHERE bot_id NOT IN %s UNION SELECT bot_id FROM trading.bots WHERE bot_id NOT IN %s LIMIT 1",
        (own, own),
    )
    row = cursor.fetchone()
    if row is not None:
        return False, f"role {settings.user} sees rows of {row[0]}: expected row level security to hide them"
    return True, "no row of another bot can be seen"
