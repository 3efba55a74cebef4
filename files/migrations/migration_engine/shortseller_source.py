"""The Shortseller's PostgreSQL database, read in one read-only snapshot."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import psycopg2
from psycopg2 import sql

from .errors import MigrationError, SourceError
from .settings import Bot, legacy_tables
from .statistics import Statistics
from .target import Cursor

SCHEMA = "trading"
_NUMBERS = {"numeric", "smallint", "integer", "bigint"}
_TEXTS = {"text", "character varying", "character"}
_TIMES = {"timestamp with time zone"}
_TYPES: dict[str, set[str]] = {
    "date": {"date"},
    "indicators": {"jsonb", "json"},
    "executed": {"boolean"},
    **dict.fromkeys(("timestamp", "executed_at", "opened_at", "closed_at", "created_at"), _TIMES),
    **dict.fromkeys(
        ("symbol", "side", "order_id", "exchange_order_id", "status", "strategy", "notes", "interval", "signal_type"), _TEXTS
    ),
}


@dataclass(frozen=True)
class Table:
    """A legacy table as found: the columns we know, their types, and the others."""

    name: str
    columns: list[str]
    types: dict[str, str]
    extra: list[str]


@dataclass(frozen=True)
class Snapshot:
    """An open snapshot. Everything committed before snapshot_at is in it."""

    cursor: Cursor
    snapshot_at: datetime
    tables: list[Table]

    def statistics(self, table: Table) -> Statistics:
        """Count, sums and ranges, computed by the source."""
        numbers = [c for c in table.columns if table.types[c] in _NUMBERS and c not in ("id", "execution_id")]
        times = [c for c in table.columns if table.types[c] in _TIMES or table.types[c] == "date"]
        # NaN is a value of NUMERIC, and would be the sum.
        parts = [sql.SQL("sum({c}::numeric) FILTER (WHERE {c}::numeric <> 'NaN')").format(c=sql.Identifier(c)) for c in numbers]
        for function in ("min", "max"):
            parts += [sql.SQL("{}({})::text").format(sql.SQL(function), sql.Identifier(c)) for c in times]
        self.cursor.execute(
            sql.SQL("SELECT count(*), {} FROM {}").format(sql.SQL(", ").join(parts), sql.Identifier(SCHEMA, table.name))
        )
        row = self.cursor.fetchone()
        assert row is not None
        count, *values = row
        sums, low, high = values[: len(numbers)], values[len(numbers) : -len(times)], values[-len(times) :]
        return Statistics(
            count,
            {c: total if total is not None else Decimal(0) for c, total in zip(numbers, sums, strict=True)},
            {c: value for c, value in zip(times, low, strict=True) if value is not None},
            {c: value for c, value in zip(times, high, strict=True) if value is not None},
        )

    def copy_into(self, table: Table, bot_id: str, target: Cursor, schema: str) -> None:
        """Stream the table into its staging table, server to server through a pipe."""
        extra: sql.Composable = sql.SQL("NULL")
        if table.extra:
            pairs = [sql.SQL("{}, {}").format(sql.Literal(c), sql.Identifier(c)) for c in table.extra]
            extra = sql.SQL("jsonb_strip_nulls(jsonb_build_object({}))").format(sql.SQL(", ").join(pairs))
        columns = sql.SQL(", ").join(sql.Identifier(c) for c in table.columns)
        out = sql.SQL("COPY (SELECT {}, {}, {} FROM {} ORDER BY id) TO STDOUT").format(
            sql.Literal(bot_id), columns, extra, sql.Identifier(SCHEMA, table.name)
        )
        into = sql.SQL("COPY {} (bot_id, {}, extra) FROM STDIN").format(sql.Identifier(schema, table.name), columns)
        _pipe(self.cursor, out.as_string(self.cursor), target, into.as_string(target))


@contextmanager
def snapshot(bot: Bot, warn: Callable[[str], None]) -> Iterator[Snapshot]:
    """Open a REPEATABLE READ, READ ONLY snapshot and check the schema.

    Raises SourceError where the server is down, refuses us, or lacks a table or
    column.
    """
    place = {key: bot.legacy.get(key) for key in ("host", "port", "database", "user")}
    where = f"{place['database']} of {bot.bot_id} at {place['host']}:{place['port']}"
    try:
        connection = psycopg2.connect(
            host=place["host"] or "localhost",
            port=place["port"] or 5432,
            dbname=place["database"],
            user=place["user"],
            password=os.environ.get("LEGACY_POSTGRES_PASSWORD") or None,
            application_name="stage_shortseller.py",
            connect_timeout=10,
            options="-c timezone=UTC -c datestyle=ISO -c default_transaction_read_only=on",
        )
    except psycopg2.OperationalError as error:
        raise SourceError(
            f"cannot connect to {where} as {place['user']}: {str(error).strip()}; start the legacy container, and check "
            "`legacy.postgres` of the bot and LEGACY_POSTGRES_PASSWORD"
        ) from error
    try:
        connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
        with connection.cursor() as cursor:
            # The clock first: the snapshot is taken by the statement after it.
            cursor.execute("SELECT clock_timestamp()")
            row = cursor.fetchone()
            assert row is not None
            connection.rollback()
            tables = _check(cursor, where, warn)
            yield Snapshot(cursor, row[0], tables)
    except psycopg2.Error as error:
        raise SourceError(f"{where} cannot be read: {str(error).strip()}; run this again when it can") from error
    finally:
        connection.close()


def _check(cursor: Cursor, where: str, warn: Callable[[str], None]) -> list[Table]:
    cursor.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = %s ORDER BY table_name, ordinal_position",
        (SCHEMA,),
    )
    found: dict[str, dict[str, str]] = {}
    for table, column, data_type in cursor.fetchall():
        found.setdefault(table, {})[column] = data_type
    problems: list[str] = []
    tables: list[Table] = []
    for name, columns in legacy_tables("shortseller").items():
        types = found.get(name)
        if types is None:
            problems.append(f"table {SCHEMA}.{name} is missing")
            continue
        problems += [f"column {SCHEMA}.{name}.{c} is missing" for c in columns if c not in types]
        problems += [
            f"column {SCHEMA}.{name}.{c} is {types[c]}, expected {' or '.join(sorted(_TYPES.get(c, _NUMBERS)))}"
            for c in columns
            if c in types and types[c] not in _TYPES.get(c, _NUMBERS)
        ]
        extra = [c for c in types if c not in columns]
        if extra:
            warn(f"{where}: {name} has columns this project does not know, kept under `legacy`: {', '.join(extra)}")
        tables.append(Table(name, list(columns), types, extra))
    if problems:
        raise SourceError(
            f"{where} is not as expected: {'; '.join(problems)}; compare it with the Shortseller's init-db.sql"
        )
    return tables


def _pipe(source: Cursor, out: str, target: Cursor, into: str) -> None:
    read_end, write_end = os.pipe()
    failures: list[BaseException] = []

    def feed() -> None:
        try:
            with os.fdopen(write_end, "wb") as stream:
                source.copy_expert(out, stream)
        except BaseException as error:  # handed to the other thread
            failures.append(error)

    feeder = threading.Thread(target=feed, name="copy-out")
    feeder.start()
    arrived: BaseException | None = None
    try:
        with os.fdopen(read_end, "rb") as stream:
            target.copy_expert(into, stream)
    except BaseException as error:
        arrived = error
    feeder.join()
    # A source that broke off looks like an end of data to the target.
    broken = [f for f in failures if not isinstance(f, BrokenPipeError)]
    if arrived is not None:
        if isinstance(arrived, psycopg2.Error):
            raise MigrationError(f"staging failed: {str(arrived).strip()}") from arrived
        raise arrived
    if broken or failures:
        raise (broken or failures)[0]
