"""trading_db: connection, run lock, the SQL beside this package, and runs."""

from __future__ import annotations

import os
import sys
import traceback
from binascii import hexlify
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import psycopg2
import psycopg2.extensions
from psycopg2.extras import Json

from .copytext import copy_from
from .errors import MigrationError, RejectsError, TargetError, UsageError
from .settings import DIRECTORY, Bots
from .sqlite_pages import Pages

# Rows are counted and compared by 1024 ids: a shift rounds down, below zero too, here and in SQL.
BLOCK_BITS = 10
Connection: TypeAlias = psycopg2.extensions.connection
Cursor: TypeAlias = psycopg2.extensions.cursor

# Errors the SQL raises on purpose, by SQLSTATE.
_RAISED = {"MG002": UsageError, "MG003": RejectsError, "MG005": TargetError, "55P03": TargetError}


def connect(name: str) -> Connection:
    """Connect as POSTGRES_* of the environment says; `name` is what others see."""
    host, port = os.environ.get("POSTGRES_HOST", "localhost"), os.environ.get("POSTGRES_PORT", "5432")
    database, user = os.environ.get("POSTGRES_DB", "trading_db"), os.environ.get("POSTGRES_USER", "trading_user")
    try:
        connection = psycopg2.connect(
            host=host,
            port=port,
            dbname=database,
            user=user,
            password=os.environ.get("POSTGRES_PASSWORD") or None,
            application_name=name,
            connect_timeout=10,
            # A killed client must not leave its server process at work.
            options="-c timezone=UTC -c datestyle=ISO -c client_connection_check_interval=1s",
        )
    except psycopg2.OperationalError as error:
        raise TargetError(
            f"cannot connect to {database} at {host}:{port} as {user}: {str(error).strip()}; "
            "check POSTGRES_HOST, POSTGRES_PORT and POSTGRES_PASSWORD, and that trading_postgres runs"
        ) from error
    with errors_named(), transaction(connection) as cursor:
        cursor.execute(
            "SELECT to_regclass('trading.risk_metrics') IS NOT NULL AND to_regclass('migration.ledger') IS NOT NULL"
        )
        if not one(cursor)[0]:
            raise TargetError(f"{database} at {host}:{port} has no unified schema: run 001_unified_schema.sql first")
    return connection


@contextmanager
def errors_named() -> Iterator[None]:
    """Turn database errors into this package's, with their exit codes."""
    try:
        yield
    except psycopg2.Error as error:
        text = (error.diag.message_primary or str(error)).strip()
        code = error.pgcode or ""
        if isinstance(error, (psycopg2.OperationalError, psycopg2.InterfaceError)) and code not in _RAISED:
            raise TargetError(f"{text}; nothing is half done: check trading_postgres, then run this again") from error
        raise _RAISED.get(code, MigrationError)(text) from error


@contextmanager
def transaction(connection: Connection, dry_run: bool = False) -> Iterator[Cursor]:
    """Commit at the end; roll back on any error, and always in a dry run."""
    try:
        with connection.cursor() as cursor:
            yield cursor
        connection.rollback() if dry_run else connection.commit()
    except BaseException:
        # A server that went away has rolled back itself.
        with suppress(psycopg2.Error):
            connection.rollback()
        raise


@contextmanager
def run_lock(connection: Connection) -> Iterator[None]:
    """Keep other migrations out until the session ends, or say who is at work."""
    with errors_named(), transaction(connection) as cursor:
        cursor.execute("SET LOCAL migration.lock_scope = 'session'")
        run_file(cursor, "run_lock.sql")
    yield


def run_file(cursor: Cursor, name: str) -> None:
    """Execute a file of lib/ in the current transaction."""
    # %% and parameters are not wanted here: the text goes as it is.
    cursor.execute((DIRECTORY / "lib" / name).read_text(encoding="utf-8"))


def prepare(cursor: Cursor, bot_type: str) -> None:
    """Make sure that bookkeeping, staging tables and merge functions are the current ones."""
    cursor.execute("SET LOCAL client_min_messages = warning")
    for name in ("bookkeeping.sql", f"staging_{bot_type}.sql", "register.sql", "merge.sql"):
        run_file(cursor, name)


@dataclass(frozen=True)
class BaseRun:
    """The last merged run of a bot: what the next one builds upon.

    The dictionaries but `position` are by source table, `blocks` by number of
    a block below that; `highest` is the highest id ever seen.
    """

    run_id: int
    merged_at: datetime
    engine: str | None
    position: dict[str, Any] | None
    rejected: dict[str, list[str]]
    blocks: dict[str, dict[str, int]]
    highest: dict[str, int]


def last_merged(cursor: Cursor, bot_id: str) -> BaseRun | None:
    """The last run of a bot whose rows are in the unified tables."""
    cursor.execute(
        "SELECT run_id, merged_at, engine, position, rejected, blocks, notes -> 'highest' FROM migration.runs r CROSS JOIN LATERAL"
        " (SELECT json_object_agg(source_table, t.rejected) AS rejected,"
        " json_object_agg(source_table, t.blocks) AS blocks"
        " FROM migration.source_tables t WHERE t.run_id = r.run_id) AS found"
        " WHERE bot_id = %s AND merged_at IS NOT NULL ORDER BY run_id DESC LIMIT 1",
        (bot_id,),
    )
    row = cursor.fetchone()
    if row is None:
        return None
    run_id, merged_at, engine, position, rejected, blocks, highest = row
    return BaseRun(run_id, merged_at, engine, position, rejected or {}, blocks or {}, highest or {})


def begin_run(
    cursor: Cursor,
    bot_id: str,
    source: str,
    started_at: datetime,
    snapshot_at: datetime,
    *,
    mode: str,
    engine: str,
    position: dict[str, Any] | None = None,
) -> int:
    """Record a run and make it the current one of the transaction."""
    cursor.execute(
        "INSERT INTO migration.runs (bot_id, source, started_at, snapshot_at, staged_at, mode, engine, position)"
        " VALUES (%s, %s, %s, %s, clock_timestamp(), %s, %s, %s) RETURNING run_id",
        (bot_id, source, started_at, snapshot_at, mode, engine, Json(position)),
    )
    run_id: int = one(cursor)[0]
    cursor.execute(
        "SELECT set_config('migration.bot_id', %s, true), set_config('migration.run_id', %s, true)",
        (bot_id, str(run_id)),
    )
    return run_id


def store_pages(cursor: Cursor, run_id: int, pages: Pages) -> None:
    """Store what sqlite_pages made of the file that a run read."""
    # By COPY, or the server would log them.
    lines = (b"%d\t%d\t\\\\x%b\n" % (run_id, number, hexlify(part)) for number, part in enumerate(pages.parts()))
    copy_from(cursor, "migration.page_digests", lines)


def stored_pages(cursor: Cursor, run_id: int) -> Pages | None:
    """What a run stored of its file."""
    query = "SELECT digests FROM migration.page_digests WHERE run_id = %s ORDER BY part"
    return Pages.of(part for (part,) in stream(cursor, query, (run_id,), at_once=1))


@dataclass(frozen=True)
class SourceTable:
    """What a run found in a table of its source: see migration.source_tables."""

    name: str
    row_count: int
    staged: int
    whole: bool
    loaded: int | None
    hash: int
    canonical: str
    blocks: dict[int, int] | None = None


def record_table(cursor: Cursor, run_id: int, bot_id: str, table: SourceTable) -> None:
    """Store what a run found in a table, once its rejects are stored."""
    cursor.execute(
        "INSERT INTO migration.source_tables (run_id, source_table, row_count, staged, whole, loaded, hash, canonical, rejected, blocks)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            run_id,
            table.name,
            table.row_count,
            table.staged,
            table.whole,
            table.loaded,
            table.hash,
            table.canonical,
            rejected_ids(cursor, bot_id, table.name),
            None if table.blocks is None else Json(table.blocks),
        ),
    )


def rejected_ids(cursor: Cursor, bot_id: str, table: str, base: BaseRun | None = None) -> list[str]:
    """Ids of a table's rows that were rejected last, or by the run to build upon."""
    cursor.execute("SELECT source_id FROM migration.rejects WHERE bot_id = %s AND source_table = %s", (bot_id, table))
    found = {row[0] for row in cursor.fetchall()}
    return sorted(found.union(base.rejected.get(table, ()) if base else ()))


def is_first(cursor: Cursor, bot_type: str, table: str, bot_id: str) -> bool:
    """Whether the unified table that a source table goes into has no row of the bot."""
    cursor.execute(
        "SELECT migration.is_first(m, %s) FROM migration.mappings m WHERE bot_type = %s AND source_table = %s ORDER BY step LIMIT 1",
        (bot_id, bot_type, table),
    )
    found: bool = one(cursor)[0]
    return found


def new_by_block(cursor: Cursor, bot_type: str, table: str, bot_id: str, known: Sequence[str]) -> dict[int, int]:
    """How many rows of a source table are new to the run that is built upon, by block of ids; it rejected `known`."""
    cursor.execute(
        "SELECT n.id >> %s, count(*) FROM (SELECT m FROM migration.mappings m WHERE bot_type = %s AND source_table = %s"
        " ORDER BY step LIMIT 1) AS first, migration.new_ids(first.m, %s, %s::text[]) AS n (id) GROUP BY 1",
        (BLOCK_BITS, bot_type, table, bot_id, list(known)),
    )
    return dict(cursor.fetchall())


def ids_of(block: int) -> tuple[int, int]:
    """First and last id of a block."""
    return block << BLOCK_BITS, (block + 1 << BLOCK_BITS) - 1


def note_gone(cursor: Cursor, bot_id: str, table: str, ids: Iterable[int]) -> None:
    """Store ids that the source does not have."""
    lines = (f"{bot_id}\t{table}\t{number}\n".encode() for number in ids)
    copy_from(cursor, "migration.gone_ids", lines)
    if cursor.rowcount:
        cursor.execute("ANALYZE migration.gone_ids")


def finish_run(cursor: Cursor, run_id: int, notes: Mapping[str, Any]) -> None:
    """Complete the record of a staging run."""
    cursor.execute(
        "UPDATE migration.runs SET staged_at = clock_timestamp(), notes = %s WHERE run_id = %s", (Json(notes), run_id)
    )


def register(cursor: Cursor, bots: Bots, bot_type: str, only: str | None) -> None:
    """Register the bots of a type as their SQL file does: for a dry run before it."""
    cursor.execute("SELECT migration.register_bots(%s::jsonb, %s, %s)", (bots.text, bot_type, only or ""))


def merge(cursor: Cursor, bot_type: str, bot_ids: Sequence[str], accepted: int) -> dict[str, Any]:
    """Merge what is staged; the result object."""
    cursor.execute("SELECT migration.merge(%s, %s::text[], %s)", (bot_type, list(bot_ids), accepted))
    result: dict[str, Any] = one(cursor)[0]
    return result


def stream(cursor: Cursor, query: str, parameters: Any = None, at_once: int = 2000) -> Iterator[tuple[Any, ...]]:
    """The rows of a query, of which the client holds some at a time; one such query a connection."""
    with cursor.connection.cursor("stream") as rows:
        rows.itersize = at_once
        rows.execute(query, parameters)
        yield from rows


def one(cursor: Cursor) -> Sequence[Any]:
    """The row that a query must give."""
    row = cursor.fetchone()
    assert row is not None
    return row


def run_main(work: Callable[[], int]) -> int:
    """Run a command; an expected error becomes its message and exit code."""
    try:
        with errors_named():
            return work()
    except MigrationError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        print(
            f"error: unexpected {type(error).__name__}: {error}; nothing is half done: report this bug", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing is half done: run this again", file=sys.stderr)
        return 1
