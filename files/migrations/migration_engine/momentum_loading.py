"""Carries the rows of a copy of the Momentum bot's file into trading_db.

Rows go straight into a unified table that has none of the bot; else into a
temporary staging table of the same shape, to be merged.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timezone
from decimal import Decimal
from typing import TextIO, TypeAlias

import psycopg2

from . import sqlite_pages, target
from .copytext import copy_from, escape
from .momentum_mapping import TABLES, Mapper, Reject, reject_of
from .momentum_source import Copy
from .progress import Progress, say
from .settings import Bot
from .sqlite_pages import Pages
from .target import BaseRun, Cursor, SourceTable
from .values import MONEY, RATIO, find_zone

# One row a day, and rewritten under new ids: always read as a whole.
SMALL = ("daily_snapshots",)


@dataclass(frozen=True)
class Part:
    """Some rows as COPY text, and what there is to know of them."""

    text: bytes
    read: int
    converted: int
    hash: int
    rejects: list[Reject]
    # By the last part of a process: largest roundings by decimal places, and notes.
    met: tuple[dict[int, Decimal], dict[str, int]] | None = None


Parts: TypeAlias = Generator[Part, None, None]


@dataclass
class Tally:
    """What was read of a table."""

    read: int = 0
    converted: int = 0
    hash: int = 0
    largest_rounding: dict[int, Decimal] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        self.read += part.read
        self.converted += part.converted
        self.hash += part.hash
        if part.met:
            for places, rounding in part.met[0].items():
                self.largest_rounding[places] = max(rounding, self.largest_rounding.get(places, rounding))
            for note, count in part.met[1].items():
                self.notes[note] = self.notes.get(note, 0) + count


@dataclass(frozen=True)
class Rejects:
    """Rejected rows on their way to migration.rejects, on disk: there may be many."""

    bot_id: str
    run_id: int
    file: TextIO

    def add(self, rejects: Sequence[Reject]) -> None:
        for r in rejects:
            fields = (str(self.run_id), self.bot_id, r.source_table, str(r.source_id), r.row, r.reason)
            self.file.write("\t".join(map(escape, fields)) + "\n")

    def forget_after(self, place: int) -> None:
        self.file.seek(place)
        self.file.truncate()

    def store(self, cursor: Cursor) -> None:
        """Replace the bot's rejects: a rejected row is read again in every run."""
        self.file.seek(0)
        cursor.execute("DELETE FROM migration.rejects WHERE bot_id = %s", (self.bot_id,))
        cursor.copy_expert(
            'COPY migration.rejects (run_id, bot_id, source_table, source_id, "row", reason) FROM STDIN', self.file
        )
        self.file.seek(0, 2)


def create_staging(cursor: Cursor) -> None:
    """Temporary tables in the shape of what a mapper gives, and the legacy id."""
    for name, table in TABLES.items():
        columns = ", ".join(Mapper(name, "", timezone.utc).target_columns)
        cursor.execute(
            f"CREATE TEMP TABLE staged_{name} ON COMMIT DROP AS SELECT {columns}, '' AS _source_id FROM {table.target} LIMIT 0"
        )


def convert(copy: Copy, mapper: Mapper, ranges: Sequence[tuple[int, int]] | None, staged: bool) -> Parts:
    """The rows in ranges of ids, or all; staged rows end with their legacy id."""
    for rows in copy.batches(mapper.table, mapper.source_columns, ranges):
        found = mapper.convert(rows)
        lines = found.lines
        if staged:
            lines = [b"%b\t%d" % (line, number) for line, number in zip(lines, found.ids, strict=True)]
        text = b"\n".join([*lines, b""])
        yield Part(text, len(rows), len(found.ids), sum(found.hashes), found.rejects)
    yield Part(b"", 0, 0, 0, [], (mapper.largest_rounding, mapper.notes))


def copy_rows(
    cursor: Cursor,
    into: str,
    copy: Copy,
    mapper: Mapper,
    ranges: list[tuple[int, int]] | None,
    staged: bool,
    rejects: Rejects,
) -> Tally:
    """Stream rows into a table; what was read."""
    total = copy.count(mapper.table)
    if ranges is not None:
        total = min(total, sum(high - low + 1 for low, high in ranges))
    progress = Progress(f"{mapper.bot_id}: {mapper.table}", total)
    tally = Tally()

    def texts(parts: Parts) -> Iterator[bytes]:
        for part in parts:
            rejects.add(part.rejects)
            tally.add(part)
            progress.add(part.read)
            if part.text:
                yield part.text

    def work(own: Copy, turns: Sequence[tuple[int, int]] | None) -> Parts:
        return convert(own, mapper, turns, staged)

    with closing(copy.spread(mapper.table, work) if ranges is None else work(copy, ranges)) as found:
        copy_from(cursor, into, texts(found))
    return tally


def load_new(
    cursor: Cursor, copy: Copy, mapper: Mapper, rejects: Rejects, meanwhile: Callable[[], object]
) -> Tally | None:
    """All rows straight into the unified table, which has none of the bot; None where rows are in each other's way.

    While the server builds the indexes, `meanwhile` is called.
    """
    table = mapper.spec.target
    place = rejects.file.tell()
    cursor.execute("SAVEPOINT loading")
    try:
        cursor.execute("SELECT migration.drop_indexes(%s::regclass, %s)", (table, copy.count(mapper.table)))
        restore = target.one(cursor)[0]
        tally = copy_rows(cursor, f"{table} ({', '.join(mapper.target_columns)})", copy, mapper, None, False, rejects)
        if restore:
            say(f"{mapper.bot_id}: {mapper.table}: {tally.converted} rows stored, building indexes")
        with ThreadPoolExecutor(1) as beside:
            done = beside.submit(meanwhile)
            cursor.execute("SELECT migration.restore_indexes(%s::text[])", (restore,))
        done.result()
        cursor.execute("SELECT migration.analyze(%s::regclass)", (table,))
    except psycopg2.IntegrityError:
        cursor.execute("ROLLBACK TO SAVEPOINT loading")
        rejects.forget_after(place)
        return None
    return tally


def stage(cursor: Cursor, copy: Copy, mapper: Mapper, ranges: list[tuple[int, int]] | None, rejects: Rejects) -> Tally:
    """Rows into the staging table, without those that are in each other's way."""
    staged = f"staged_{mapper.table}"
    columns = ", ".join([*mapper.target_columns, "_source_id"])
    tally = copy_rows(cursor, f"{staged} ({columns})", copy, mapper, ranges, True, rejects)
    cursor.execute(f"ANALYZE {staged}")
    if mapper.table == "trades":
        target.run_file(cursor, "classify_momentum.sql")
        reasons = dict(cursor.fetchall())
        for source_id, reason in reasons.items():
            number = int(source_id)
            (row,) = next(copy.batches(mapper.table, mapper.source_columns, [(number, number)]))
            rejects.add([reject_of(mapper, row, reason)])
            tally.hash -= sum(mapper.convert([row]).hashes)
        tally.converted -= len(reasons)
        cursor.execute(f"DELETE FROM {staged} WHERE _source_id = ANY (%s)", (list(reasons),))
    return tally


def carry(
    cursor: Cursor, copy: Copy, bot: Bot, base: BaseRun | None, pages: Callable[[], Pages | None], rejects: Rejects
) -> None:
    """Load or stage all tables of a bot, and record what was found. `pages`: of the copy."""
    # The copy first: the processes that read it are to begin small.
    later, earlier = (pages(), target.stored_pages(cursor, base.run_id)) if base else (None, None)
    known = {table: target.rejected_ids(cursor, bot.bot_id, table, base) for table in TABLES}
    found: list[SourceTable] = []
    tallies: list[Tally] = []
    # A bot that numbers its rows anew may have had higher ones.
    highest = {table: max(copy.highest(table), base.highest[table] if base else 0) for table in TABLES}
    for table in TABLES:
        mapper = Mapper(table, bot.bot_id, find_zone(bot.timezone), copy.extra[table])
        ranges = None
        if base is not None and table not in SMALL:
            ranges = sqlite_pages.changed_ranges(copy.path, copy.connection, table, earlier, later)
        # Ids with great gaps cannot be gone through one by one.
        if ranges is not None and highest[table] <= 10 * copy.count(table) + 100_000:
            target.note_gone(cursor, bot.bot_id, table, copy.absent(table, ranges, highest[table]))
            rejected = [n for n in map(int, known[table]) if not any(low <= n <= high for low, high in ranges)]
            ranges = sorted([*ranges, *((number, number) for number in rejected)])
        else:
            ranges = None
        tally = None
        if ranges is None and target.is_first(cursor, "momentum", table, bot.bot_id):
            tally = load_new(cursor, copy, mapper, rejects, pages)
        loaded = tally is not None
        if tally is None:
            tally = stage(cursor, copy, mapper, ranges, rejects)
        tallies.append(tally)
        count = copy.count(table)
        found.append(
            SourceTable(
                table,
                count,
                tally.read,
                ranges is None,
                tally.converted if loaded else None,
                tally.hash,
                mapper.canonical_sql(),
            )
        )
        say(f"{bot.bot_id}: {table}: {tally.read} of {count} rows read, {tally.converted} converted")
    rejects.store(cursor)
    for now in found:
        target.record_table(cursor, rejects.run_id, bot.bot_id, now)
    target.finish_run(
        cursor,
        rejects.run_id,
        {
            "timezone": bot.timezone,
            "highest": highest,
            "largest_rounding": _plain(max(t.largest_rounding[MONEY.places] for t in tallies)),
            "largest_ratio_rounding": _plain(max(t.largest_rounding[RATIO.places] for t in tallies)),
            "ambiguous_times": sum(t.notes["ambiguous"] for t in tallies),
            "nonexistent_times": sum(t.notes["nonexistent"] for t in tallies),
        },
    )


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"
