"""The Shortseller's PostgreSQL database, read in one read-only snapshot."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg2

from .errors import MigrationError, SourceError
from .parallel import wide_pipe
from .progress import Progress
from .settings import Bot, legacy_tables
from .target import BLOCK_BITS, Cursor, ids_of, one

SCHEMA = "trading"
# The hash of a canonical text {} on either server: migration.hash_sql.
ROW_HASH = "hashtextextended({}, 0)"
_BUFFER = 1 << 18
_INTEGERS = {"smallint", "integer", "bigint"}
_NUMBERS = {"numeric", *_INTEGERS}
_TEXTS = {"text", "character varying", "character"}
_TIMES = {"timestamp with time zone"}
_TYPES: dict[str, set[str]] = {
    "date": {"date"},
    "indicators": {"jsonb", "json"},
    "executed": {"boolean"},
    **dict.fromkeys(("timestamp", "executed_at", "opened_at", "closed_at", "created_at"), _TIMES),
    **dict.fromkeys(
        ("symbol", "side", "order_id", "exchange_order_id", "status", "strategy", "notes", "interval", "signal_type"),
        _TEXTS,
    ),
}


# Legacy column -> the same value from the unified row {row} and what it keeps
# under `legacy` (l). A kept spelling counts only while the column still agrees.
_SIDE = "CASE lower(l.side) WHEN 'buy' THEN 'long' WHEN 'sell' THEN 'short' ELSE lower(l.side) END"
_STATUS = "CASE lower(l.status) WHEN 'canceled' THEN 'cancelled' ELSE lower(l.status) END"
_SIGNAL = "CASE lower(l.signal_type) WHEN 'close' THEN 'close_short' ELSE lower(l.signal_type) END"
_TRADE_ID = "{row}.bot_id || '_' || coalesce(l.order_id, 'legacy_' || l.id)"
RESTORED: dict[str, dict[str, str]] = {
    "trades": {
        "side": "CASE WHEN lower(l.side) = {row}.side THEN l.side ELSE {row}.side END",
        "price": "{row}.entry_price",
        "order_id": f"CASE WHEN {_TRADE_ID} = {{row}}.trade_id THEN l.order_id ELSE {{row}}.trade_id END",
        "status": f"CASE WHEN {_STATUS} = {{row}}.status THEN l.status ELSE {{row}}.status END",
        "timestamp": "{row}.entry_time",
        "executed_at": "{row}.exit_time",
        "pnl": "{row}.pnl_usd",
    },
    "positions": {
        "side": f"CASE WHEN {_SIDE} = {{row}}.side THEN l.side ELSE {{row}}.side END",
        "avg_price": "{row}.avg_entry_price",
        "status": "CASE WHEN lower(l.status) = {row}.status THEN l.status ELSE {row}.status END",
    },
    "market_data": {},
    "signals": {
        "signal_type": f"CASE WHEN {_SIGNAL} = {{row}}.signal_type THEN l.signal_type ELSE {{row}}.signal_type END",
        "executed": "CASE WHEN l.executed IS NULL OR {row}.executed THEN {row}.executed END",
        "execution_id": "l.execution_id",
    },
    "account_balance": {},
    "risk_metrics": {"total_pnl": "{row}.daily_pnl"},
}
# What a row keeps under `legacy` beside its table and id, from the legacy row:
# what no column of the unified table holds verbatim.
_STATUSES = "'pending', 'partially_filled', 'filled', 'cancelled', 'rejected', 'expired'"
_SIGNALS = "'long', 'short', 'close_long', 'close_short', 'hold'"
KEPT: dict[str, dict[str, str]] = {
    "trades": {
        "order_id": "order_id",
        "side": "CASE WHEN side <> lower(side) THEN side END",
        "status": f"CASE WHEN status NOT IN ({_STATUSES}) THEN status END",
    },
    "positions": {
        "side": "CASE WHEN side NOT IN ('long', 'short') THEN side END",
        "status": "CASE WHEN status <> lower(status) THEN status END",
    },
    "market_data": {"bot_id": "{bot}"},
    "signals": {
        "execution_id": "execution_id",
        "executed": "CASE WHEN executed IS NULL THEN 'null'::text END",
        "signal_type": f"CASE WHEN signal_type NOT IN ({_SIGNALS}) THEN signal_type END",
    },
    "account_balance": {},
    "risk_metrics": {},
}


@dataclass(frozen=True)
class Table:
    """A legacy table as found: the columns we know, their types, and the others."""

    name: str
    columns: list[str]
    types: dict[str, str]
    extra: list[str]

    def _canonical(self, values: dict[str, str], exact: set[str], extra: str) -> str:
        parts = []
        for column in self.columns:
            value = values[column]
            if self.types[column] in _NUMBERS and column not in exact:
                value = f"trim_scale(({value})::numeric)"
            elif self.types[column] == "json":
                value = f"{value}::jsonb"
            parts.append(f"coalesce({value}::text, E'\\x01')")
        if self.extra:
            parts.append(f"({extra})::text")
        return f"concat_ws(E'\\x1f', {', '.join(parts)})"

    def canonical_at_source(self) -> str:
        """The canonical text of a row: what all its columns hold, as an SQL expression."""
        values = {column: _quoted(column) for column in self.columns}
        if self.name == "market_data":
            values["created_at"] = "coalesce(created_at, timestamp)"
        integers = {column for column in self.columns if self.types[column] in _INTEGERS}
        return self._canonical(values, integers, self.extra_sql())

    def canonical_sql(self) -> str:
        """The same text from the row {row} of the unified table."""
        metadata = "position_metadata" if self.name == "positions" else "metadata"
        values = (
            {column: f"{{row}}.{_quoted(column)}" for column in self.columns} | {"id": "l.id"} | RESTORED[self.name]
        )
        members = "{" + ",".join(("table", "id", *KEPT[self.name])) + "}"
        extra = f"({{row}}.{metadata} -> 'legacy') - '{members}'::text[]"
        shown = self._canonical(values, {"id"}, extra)
        # No subquery over the members, because that would keep other processes from helping.
        return re.sub(r"\bl\.(\w+)", rf"({{row}}.{metadata} #>> '{{legacy,\1}}')", shown)

    def metadata_at_source(self, bot_id: str) -> str:
        """What `metadata` is to hold, as an SQL expression: text, because building jsonb there costs thrice that."""
        kept = "".join(
            f""", ', "{name}": ' || to_json({value.format(bot=_literal(bot_id) + "::text")})"""
            for name, value in KEPT[self.name].items()
        )
        text = f"""concat('{{"legacy": {{"table": "{self.name}", "id": ', id{kept}, '}}}}')"""
        return (
            f"jsonb_build_object('legacy', {self.extra_sql()} || ({text}::jsonb -> 'legacy'))" if self.extra else text
        )

    def extra_sql(self) -> str:
        """Unknown columns as one JSON object: what is in them, nulls inside JSON too, but no NULL.

        A name that `legacy` has a use for gets an underscore.
        """
        taken = {"table", "id", *KEPT[self.name], *self.extra}
        parts = []
        for column in self.extra:
            name = column
            if name in ("table", "id", *KEPT[self.name]):
                while name in taken:
                    name += "_"
                taken.add(name)
            value = _quoted(column)
            parts.append(
                f"CASE WHEN {value} IS NULL THEN '{{}}' ELSE jsonb_build_object({_literal(name)}, {value}) END"
            )
        return f"({' || '.join(parts)})" if parts else "NULL"


@dataclass(frozen=True)
class Position:
    """Where a snapshot stands in the server's history: transactions before `xmin` are in it.

    `server` tells one history from another, and one definition of the tables.
    """

    server: str
    xmin: int
    xmax: int

    def changed_since(self, before: dict[str, Any] | None) -> str | None:
        """The condition that a row can have changed since a position; None: it cannot be told.

        A row names the transaction that wrote it. All that the earlier snapshot
        did not see have numbers from its xmin on, subtransactions included.
        """
        if before is None or before["server"] != self.server:
            return None
        age = self.xmax - int(before["xmin"])
        # Rows name transactions by their last 32 bits.
        if not 0 <= age < 1 << 31:
            return None
        return f"age(xmin) <= (SELECT age('{int(before['xmin']) & 0xFFFFFFFF}'::xid))"


@dataclass(frozen=True)
class Snapshot:
    """An open snapshot. Everything committed before snapshot_at is in it."""

    cursor: Cursor
    snapshot_at: datetime
    position: Position
    tables: list[Table]

    def count(self, table: Table) -> int:
        """All rows of a table."""
        self.cursor.execute(f"SELECT count(*) FROM {SCHEMA}.{table.name}")
        return int(one(self.cursor)[0])

    def blocks(self, table: Table, condition: str) -> dict[int, tuple[int, int]]:
        """How many rows there are, and how many meet a condition, by block of ids: one look at each row."""
        self.cursor.execute(
            f"SELECT id >> {BLOCK_BITS}, count(*), count(*) FILTER (WHERE {condition}) FROM {SCHEMA}.{table.name} GROUP BY 1"
        )
        return {block: (rows, met) for block, rows, met in self.cursor.fetchall()}

    def absent(self, table: Table, blocks: Iterable[int]) -> Iterator[int]:
        """Ids of blocks that a table does not have."""
        for block in blocks:
            first, last = ids_of(block)
            self.cursor.execute(f"SELECT id FROM {SCHEMA}.{table.name} WHERE id BETWEEN {first} AND {last}")
            present = {row[0] for row in self.cursor.fetchall()}
            yield from (number for number in range(first, last + 1) if number not in present)

    def copy_into(
        self, table: Table, bot_id: str, target: Cursor, schema: str, condition: str, progress: Progress
    ) -> None:
        """Stream rows into their staging table, server to server through a pipe.

        In COPY's binary format: no number or time is written and read as text.
        """
        target.execute(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0",
            (f"{schema}.{table.name}",),
        )
        types = dict(target.fetchall())
        # By its text, or a fraction in a column of whole numbers would be rounded.
        way = {
            column: "::text" if table.types[column] == "numeric" != types[column] else "" for column in table.columns
        }
        sent = ", ".join(f"{_quoted(column)}{way[column]}::{types[column]}" for column in table.columns)
        metadata, hashed = table.metadata_at_source(bot_id), ROW_HASH.format(table.canonical_at_source())
        if not table.extra:
            # The binary format of jsonb is a version and the text.
            metadata = f"chr(1) || {metadata}"
        made = {"extra": table.extra_sql(), "metadata": metadata, "_hash": hashed}
        if table.name == "trades":
            made["trade_id"] = f"concat({_literal(bot_id + '_')}, coalesce(order_id, concat('legacy_', id)))"
        out = (
            f"COPY (SELECT {_literal(bot_id)}, {sent}, {', '.join(made.values())}"
            f" FROM {SCHEMA}.{table.name} WHERE {condition} ORDER BY id) TO STDOUT (FORMAT binary)"
        )
        columns = ["bot_id", *map(_quoted, table.columns), *made]
        into = f"COPY {schema}.{table.name} ({', '.join(columns)}) FROM STDIN (FORMAT binary)"
        name = bot_id.encode()
        _pipe(self.cursor, out, target, into, struct.pack(">hi", len(columns), len(name)) + name, progress)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def snapshot(bot: Bot, warn: Callable[[str], None], password: str | None = None) -> Iterator[Snapshot]:
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
            password=password or os.environ.get("LEGACY_POSTGRES_PASSWORD") or None,
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
            names = ", ".join(_literal(f"{SCHEMA}.{name}") for name in legacy_tables("shortseller"))
            # The clock first: the snapshot is taken by the statement after it.
            cursor.execute("SELECT clock_timestamp()")
            snapshot_at = one(cursor)[0]
            connection.rollback()
            cursor.execute(
                # A copy of a database keeps the transactions of its rows, and is another one.
                # Rows are not written again either where their table gets or loses a column,
                # or is another one now.
                "SELECT concat_ws('/', system_identifier, timeline_id,"
                " (SELECT oid FROM pg_database WHERE datname = current_database()),"
                f" (WITH RECURSIVE tables (oid) AS (SELECT to_regclass(name)::oid FROM unnest(ARRAY[{names}]) AS name"
                " UNION SELECT inhrelid FROM pg_inherits JOIN tables ON inhparent = oid)"
                " SELECT md5(string_agg(concat_ws(' ', attrelid::bigint, attnum, attname, atttypid::bigint, atttypmod),"
                " E'\\n' ORDER BY attrelid, attnum))"
                " FROM pg_attribute JOIN tables ON attrelid = oid WHERE attnum > 0 AND NOT attisdropped)),"
                " txid_snapshot_xmin(now), txid_snapshot_xmax(now)"
                " FROM pg_control_system(), pg_control_checkpoint(), txid_current_snapshot() AS now"
            )
            position = Position(*one(cursor))
            yield Snapshot(cursor, snapshot_at, position, _check(cursor, where, warn))
    except psycopg2.Error as error:
        if error.cursor is not None and error.cursor.connection is not connection:
            raise
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


class _Counted(io.RawIOBase):
    """A stream whose rows are counted as they pass, but for one between two reads."""

    def __init__(self, stream: io.FileIO, begin: bytes, progress: Progress) -> None:
        self._stream = stream
        self._begin = begin
        self._progress = progress

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._progress.add(data.count(self._begin))
        return data


def _pipe(source: Cursor, out: str, target: Cursor, into: str, begin: bytes, progress: Progress) -> None:
    """Copy rows, each of which begins with the bytes `begin`."""
    read_end, write_end = wide_pipe()
    failures: list[BaseException] = []

    def feed() -> None:
        try:
            with os.fdopen(write_end, "wb", _BUFFER) as stream:
                source.copy_expert(out, stream)
        except BaseException as error:  # handed to the other thread
            failures.append(error)

    feeder = threading.Thread(target=feed, name="copy-out")
    feeder.start()
    arrived: BaseException | None = None
    try:
        with os.fdopen(read_end, "rb", 0) as stream:
            target.copy_expert(into, _Counted(stream, begin, progress), _BUFFER)
    except BaseException as error:
        arrived = error
    feeder.join()
    # The target calls a source that broke off an unexpected end of data; a source
    # calls a target that did a broken pipe.
    for failure in failures:
        if not isinstance(failure, BrokenPipeError):
            raise failure
    if isinstance(arrived, psycopg2.Error):
        raise MigrationError(f"staging failed: {str(arrived).strip()}") from arrived
    if arrived or failures:
        raise arrived or failures[0]
