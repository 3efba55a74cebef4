"""What stands in for a bot's legacy database class: the unified tables, seen as rows in the legacy shape.

What a bot gave and its column does not hold verbatim (the last digits of a
float, `Buy`, a naive local time) is kept in the row's metadata: under `given`
in new rows, under `legacy` in migrated ones. It is shown as long as the column
holds what it became; where somebody corrected the column, the column is shown.

A migrated row goes by its legacy id, which a bot may have kept across the
cut-over; a new row goes by its own.

Rows that pass through are remembered, so that a bot can go on with its open
business while the database is away.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ContextDecorator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from . import shared
from .base import Statement
from .errors import Refused, Unavailable
from .legacy_values import Kind

Row = dict[str, Any]
Operation = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Column:
    """A legacy column: the unified column that holds it ("" where metadata alone does), and how.

    `source`: the SQL that reads it, where that is not the column.
    """

    name: str
    target: str
    kind: Kind
    source: str = ""


@dataclass(frozen=True)
class Table:
    """A legacy table: the unified table that holds it. `key`: the unified text id that names migrated rows."""

    name: str
    target: str
    columns: tuple[Column, ...]
    required: frozenset[str] = frozenset()
    metadata: str = "metadata"
    key: str = ""

    @property
    def shared(self) -> bool:
        """Whether the rows belong to no bot."""
        return self.target == "trading.market_data"

    @property
    def own(self) -> str:
        return "true" if self.shared else "bot_id = %(bot_id)s"

    @property
    def legacy_id(self) -> str:
        found = f"({self.metadata} #>> '{{legacy,id}}')::bigint"
        if self.shared:
            found = f"CASE WHEN {self.metadata} #>> '{{legacy,bot_id}}' = %(bot_id)s THEN {found} END"
        return found

    @property
    def shown_id(self) -> str:
        return f"coalesce({self.legacy_id}, t.id)"

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    def where_id(self, parameter: str = "row_id") -> str:
        """Picks the row that the bot knows by the id in a parameter."""
        row_id = f"%({parameter})s"
        migrated = (
            f"{self.metadata} ? 'legacy' AND {self.metadata} #>> '{{legacy,table}}' = '{self.name}'"
            f" AND {self.metadata} #>> '{{legacy,id}}' = {row_id}::bigint::text"
        )
        if self.key:
            migrated += f" AND {self.key} = %(bot_id)s || '_legacy_' || {row_id}::bigint"
        if self.shared:
            migrated += f" AND {self.metadata} #>> '{{legacy,bot_id}}' = %(bot_id)s"
        return f"({migrated} OR id = {row_id} AND NOT {self.metadata} ? 'legacy')"

    def query(self, where: str, rest: str = "") -> str:
        columns = ", ".join(
            f'{column.source or column.target} AS "{column.name}"'
            for column in self.columns
            if column.source or column.target
        )
        return (
            f"SELECT {self.shown_id} AS id, t.id AS row_id, {columns}, {self.metadata} AS metadata_"
            f" FROM {self.target} AS t WHERE {self.own} AND {where} {rest}"
        )

    def show(self, stored: Mapping[str, Any]) -> Row:
        """A row as the legacy class returned it."""
        metadata = stored["metadata_"]
        kept = {**metadata.get("legacy", {}), **metadata.get("given", {})}
        if "mode" in metadata:
            kept["mode"] = metadata["mode"]
        return {"id": stored["id"]} | {
            column.name: column.kind.show(stored.get(column.name), kept.get(column.name)) for column in self.columns
        }

    def store(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Unified columns of legacy values, and what of them metadata keeps. Raises Refused."""
        columns: dict[str, Any] = {}
        given: dict[str, Any] = {}
        for column in self.columns:
            if column.name not in row:
                continue
            value = row[column.name]
            if value is None and column.name in self.required:
                raise Refused(f"NOT NULL constraint failed: {self.name}.{column.name} is None, expected a value")
            if column.target:
                try:
                    columns[column.target] = None if value is None else column.kind.store(value)
                except Refused as error:
                    raise Refused(f"{self.name}.{column.name}: {error}") from None
            if column.kind.keep:
                # JSON has no word for infinity.
                given[column.name] = repr(value) if value in (math.inf, -math.inf) else value
        return columns, given

    def insert(self, row: Mapping[str, Any], further: Mapping[str, Any], conflict: str = "") -> Operation:
        """The statement that stores a row. `conflict`: what to do if there is one of its key."""
        columns, given = self.store(row)
        metadata: dict[str, Any] = {"mode": row["mode"]} if "mode" in row else {}
        if given:
            metadata["given"] = given
        owner = {} if self.shared else {"bot_id": None}
        values = {"id": row["id"], **owner, **columns, **further, self.metadata: json.dumps(metadata)}
        sql, _ = insert(self.target, values)
        return f"{sql} {conflict}", values

    def upsert(self, row: Mapping[str, Any], key: str) -> Operation:
        """As insert; a row of that key is replaced, but keeps its id and where it came from."""
        columns, _ = self.store(row)
        changes = [f"{name} = excluded.{name}" for name in columns if name not in key]
        changes.append(f"{self.metadata} = (old.{self.metadata} - 'mode' - 'given') || excluded.{self.metadata}")
        return self.insert(row, {}, f"ON CONFLICT {key} DO UPDATE SET {', '.join(changes)}")

    def update(self, changes: Mapping[str, Any], further: Mapping[str, Any], where: str) -> Operation:
        """The statement that sets legacy columns, and further unified ones."""
        columns, given = self.store(changes)
        values = {**columns, **further, "given": json.dumps(given)}
        sets = [f"{_quoted(name)} = %({name})s" for name in values if name != "given"]
        sets.append(
            f"{self.metadata} = {self.metadata} ||"
            f" jsonb_build_object('given', coalesce({self.metadata} -> 'given', '{{}}') || %(given)s::jsonb)"
        )
        return f"UPDATE {self.target} AS t SET {', '.join(sets)} WHERE {self.own} AND {where}", values


def insert(target: str, values: Mapping[str, Any]) -> Operation:
    """The statement that stores a row of a unified table; its bot_id is the bot's in any case."""
    names = ", ".join(map(_quoted, values))
    return f"INSERT INTO {target} AS old ({names}) VALUES ({', '.join(f'%({name})s' for name in values)})", values


def _quoted(name: str) -> str:
    return f'"{name}"'


class DriverErrors(ContextDecorator):
    """Turns what the client raises into what the bot catches: exceptions of its own driver."""

    def __init__(self, unavailable: type[Unavailable], refused: type[Refused]) -> None:
        self._unavailable, self._refused = unavailable, refused

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for general, special in ((Unavailable, self._unavailable), (Refused, self._refused)):
            if isinstance(error, general) and not isinstance(error, special):
                raise special(str(error)) from error


class LegacyStore:
    """The legacy tables of one bot."""

    # Rows remembered of a table: far more than a bot has open.
    REMEMBERED = 5000
    # So long (seconds) no call waits for a database that has just not answered.
    SPARED = 5.0

    def __init__(self, *tables: Table) -> None:
        # Nobody reads from the network under it: who writes would wait as well.
        self._lock = threading.RLock()
        self._memory: dict[str, OrderedDict[int, Row]] = {table.name: OrderedDict() for table in tables}
        self.client = shared.acquire()
        self.bot_id = self.client.bot_id
        self.client.keep_ids(*(table.target for table in tables))
        self._asked_in_vain = float("-inf")

    def close(self) -> None:
        shared.release(self.client)

    def select(self, table: Table, where: str = "true", rest: str = "", **parameters: Any) -> list[Row]:
        """Rows in legacy shape, from the database alone."""
        rows = self.client.fetch(table.query(where, rest), {"bot_id": self.bot_id, **parameters})
        return [table.show(row) for row in rows]

    def _ask(self, table: Table, where: str, **parameters: Any) -> list[Row]:
        """As select, for what memory can answer."""
        if time.monotonic() < self._asked_in_vain + self.SPARED:
            raise Unavailable("the database has just not answered: ask again in some seconds")
        try:
            return self.select(table, where, **parameters)
        except Unavailable:
            self._asked_in_vain = time.monotonic()
            raise

    def known(self, table: Table, where: str, kept: Callable[[Row], bool], **parameters: Any) -> list[Row]:
        """The rows of a bot's open business: `where` in SQL, the same in Python.

        While the database is away, as this process last knew them, which is how
        they are: nobody else writes the bot's rows. Ask once while it answers.
        """
        with self._lock:
            snapshot = dict(self._memory[table.name])
        before = [row for row in snapshot.values() if kept(row)]
        try:
            rows = self._ask(table, where, **parameters)
        except Unavailable:
            with self._lock:
                # What is open stays remembered longest.
                rows = self.recall(table, kept)
                self.remember(table, rows)
            return rows
        with self._lock:
            memory = self._memory[table.name]
            newer = self._newer(table, snapshot)
            for row in before:
                if row["id"] not in newer:
                    memory.pop(row["id"], None)
            rows = [row for row in rows if row["id"] not in newer]
            self.remember(table, rows)
        return rows + [dict(row) for row in newer.values() if kept(row)]

    def find(self, table: Table, row_id: int | None) -> Row | None:
        """The row that the bot knows by that id. Raises Unavailable where neither database nor memory can tell."""
        if row_id is None:
            return None
        with self._lock:
            snapshot = dict(self._memory[table.name])
        try:
            rows = self._ask(table, table.where_id(), row_id=row_id)
        except Unavailable:
            rows = self.recall(table, lambda row: bool(row["id"] == row_id))
            if not rows:
                raise
        with self._lock:
            row = self._newer(table, snapshot).get(row_id, rows[0] if rows else None)
            self.remember(table, [] if row is None else [row])
        return None if row is None else dict(row)

    def _newer(self, table: Table, snapshot: Mapping[int, Row]) -> dict[int, Row]:
        """What other threads have remembered since: newer than an answer that was asked for before."""
        return {row_id: row for row_id, row in self._memory[table.name].items() if row is not snapshot.get(row_id)}

    def recall(self, table: Table, kept: Callable[[Row], bool]) -> list[Row]:
        """What is remembered, without asking."""
        with self._lock:
            return [dict(row) for row in self._memory[table.name].values() if kept(row)]

    def remember(self, table: Table, rows: Iterable[Row]) -> None:
        with self._lock:
            memory = self._memory[table.name]
            for row in rows:
                memory[row["id"]] = dict(row)
                memory.move_to_end(row["id"])
            while len(memory) > self.REMEMBERED:
                memory.popitem(last=False)

    def write(self, *operations: Operation, unmatched: str | None = None) -> None:
        """Store statements as one transaction; `unmatched` is why it is refused where the first changes no row."""
        given: list[Statement] = [(sql, {**values, "bot_id": self.bot_id}) for sql, values in operations]
        if unmatched is not None:
            given[0] = (*given[0][:2], unmatched)
        self.client.write(given)

    def insert(
        self, table: Table, values: Mapping[str, Any], *also: Operation, conflict: str = "", **further: Any
    ) -> Row:
        """Store a new row, and what else belongs to it; returns the row."""
        row_id = self.client.reserve_id(table.target)
        self.write(table.insert({"id": row_id, **values}, further, conflict), *also)
        row = {"id": row_id} | {column.name: values.get(column.name) for column in table.columns}
        self.remember(table, [row])
        return row

    def update(self, table: Table, row: Row, changes: Row, **further: Any) -> Row:
        """Change a row; returns it as it is then."""
        sql, values = table.update(changes, further, table.where_id())
        gone = f"{table.target} has no row {row['id']} of bot {self.bot_id}"
        self.write((sql, {**values, "row_id": row["id"]}), unmatched=gone)
        row = {**row, **changes}
        self.remember(table, [row])
        return row
