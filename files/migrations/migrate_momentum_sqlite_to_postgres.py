#!/usr/bin/env python3
"""Carry the Momentum bots' SQLite history into the unified tables (step 2.4).

Each bot's file is copied by SQLite's online backup while the bot goes on
writing. The first run carries all its rows. A later one reads those that can
have changed since, which it knows from the pages of the file that have; with
--full it reads them all again. A bot's rows arrive in one transaction, and only
if their hashes in trading_db are those of the rows that were read.
The bots must be registered: 003_register_momentum_bot.sql.

Environment: POSTGRES_HOST, POSTGRES_PORT, POSTGRES_DB, POSTGRES_USER,
POSTGRES_PASSWORD; TMPDIR, the folder of the private copy (default /var/tmp).
Exit codes: 0 done; 1 failed; 2 usage; 3 more rejected rows than accepted;
4 source unusable; 5 trading_db unusable. Where it is not 0, the unified tables
of the bot it names are unchanged. The last line on stdout is the result as JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO, cast

# Nothing may appear in the migrations folder, least of all in a dry run.
sys.dont_write_bytecode = True

import psycopg2  # noqa: E402
from migration_engine import settings, sqlite_pages, target  # noqa: E402
from migration_engine.copytext import ChunkStream, escape  # noqa: E402
from migration_engine.errors import RejectsError, TargetError, UsageError  # noqa: E402
from migration_engine.momentum_mapping import TABLES, Mapper, Reject, reject_of  # noqa: E402
from migration_engine.momentum_source import Copy, private_copy  # noqa: E402
from migration_engine.progress import Progress, say  # noqa: E402
from migration_engine.settings import Bot, Bots  # noqa: E402
from migration_engine.target import Connection, Cursor, SourceTable  # noqa: E402
from migration_engine.values import MONEY, RATIO, find_zone  # noqa: E402

# One row a day, and rewritten under new ids: always read as a whole.
SMALL = ("daily_snapshots",)
BUFFER = 1 << 18


@dataclass
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


@dataclass
class Tally:
    """What was read of a table."""

    read: int = 0
    converted: int = 0
    hash: int = 0


def chunks(
    copy: Copy, mapper: Mapper, ranges: list[tuple[int, int]] | None, staged: bool, tally: Tally, rejects: Rejects
) -> Iterator[str]:
    """The table's rows as COPY text; staged rows end with their legacy id."""
    total = copy.count(mapper.table)
    if ranges is not None:
        total = min(total, sum(high - low + 1 for low, high in ranges))
    progress = Progress(f"{mapper.bot_id}: {mapper.table}", total)
    for rows in copy.batches(mapper.table, mapper.source_columns, ranges):
        found = mapper.convert(rows)
        rejects.add(found.rejects)
        tally.read += len(rows)
        tally.converted += len(found.ids)
        tally.hash += sum(found.hashes)
        if staged:
            yield "".join(f"{line}\t{number}\n" for line, number in zip(found.lines, found.ids, strict=True))
        elif found.lines:
            yield "\n".join(found.lines) + "\n"
        progress.add(len(rows))


def load_new(cursor: Cursor, copy: Copy, mapper: Mapper, rejects: Rejects) -> Tally | None:
    """Stream all rows straight into the unified table, which has none of the bot; None where rows are in each other's way."""
    table = mapper.spec.target
    tally = Tally()
    place = rejects.file.tell()
    cursor.execute("SAVEPOINT loading")
    try:
        cursor.execute("SELECT migration.drop_secondary(%s::regclass, %s)", (table, copy.count(mapper.table)))
        restore = target.one(cursor)[0]
        stream = ChunkStream(chunks(copy, mapper, None, False, tally, rejects))
        cursor.copy_expert(f"COPY {table} ({', '.join(mapper.target_columns)}) FROM STDIN", stream, BUFFER)
        if restore:
            say(f"{mapper.bot_id}: {mapper.table}: {tally.converted} rows stored, building indexes")
        cursor.execute("SELECT migration.restore_secondary(%s::text[])", (restore,))
        cursor.execute(f"ANALYZE {table}")
    except psycopg2.IntegrityError:
        cursor.execute("ROLLBACK TO SAVEPOINT loading")
        rejects.forget_after(place)
        return None
    return tally


def stage(cursor: Cursor, copy: Copy, mapper: Mapper, ranges: list[tuple[int, int]] | None, rejects: Rejects) -> Tally:
    """Stream rows into the staging table, and take out those that are in each other's way."""
    tally = Tally()
    stream = ChunkStream(chunks(copy, mapper, ranges, True, tally, rejects))
    staged = f"staged_{mapper.table}"
    cursor.copy_expert(f"COPY {staged} ({', '.join(mapper.target_columns)}, _source_id) FROM STDIN", stream, BUFFER)
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


def carry(cursor: Cursor, copy: Copy, bot: Bot, base: target.BaseRun | None, digests: bytes, rejects: Rejects) -> None:
    """Load or stage all tables of a bot, and record what was found."""
    mappers = [Mapper(table, bot.bot_id, find_zone(bot.timezone), copy.extra[table]) for table in TABLES]
    known = {table: target.rejected_ids(cursor, bot.bot_id, table) for table in TABLES}
    found: dict[str, SourceTable] = {}
    for mapper in mappers:
        table = mapper.table
        ranges = None
        if base is not None and base.page_digests is not None and table not in SMALL:
            ranges = sqlite_pages.changed_ranges(copy.path, copy.connection, table, base.page_digests, digests)
        if ranges is not None:
            rejected = [n for n in map(int, known[table]) if not any(low <= n <= high for low, high in ranges)]
            ranges = sorted([*ranges, *((number, number) for number in rejected)])
        tally = None
        if ranges is None and target.is_first(cursor, "momentum", table, bot.bot_id):
            tally = load_new(cursor, copy, mapper, rejects)
        loaded = tally is not None
        if tally is None:
            tally = stage(cursor, copy, mapper, ranges, rejects)
        count = copy.count(table)
        found[table] = SourceTable(
            table,
            count,
            tally.read,
            ranges is None,
            tally.converted if loaded else None,
            tally.hash,
            mapper.canonical_sql(),
        )
        target.record_table(cursor, rejects.run_id, found[table])
        say(f"{bot.bot_id}: {table}: {tally.read} of {count} rows read, {tally.converted} converted")
    rejects.store(cursor)
    for table, now in found.items():
        # Their number says whether rows are gone; their ids, which.
        if not now.whole and base is not None:
            new = target.count_new(cursor, "momentum", table, bot.bot_id, known[table])
            if now.row_count != base.row_counts[table] + new:
                lines = (f"{bot.bot_id}\t{table}\t{number}\n" for number in copy.ids(table))
                cursor.copy_expert("COPY migration.source_ids FROM STDIN", ChunkStream(lines), BUFFER)
    target.finish_run(
        cursor,
        rejects.run_id,
        {
            "timezone": bot.timezone,
            "largest_rounding": _plain(max(m.largest_rounding[MONEY.places] for m in mappers)),
            "largest_ratio_rounding": _plain(max(m.largest_rounding[RATIO.places] for m in mappers)),
            "ambiguous_times": sum(m.notes["ambiguous"] for m in mappers),
            "nonexistent_times": sum(m.notes["nonexistent"] for m in mappers),
        },
    )


def migrate(connection: Connection, bots: Bots, bot: Bot, accepted: int, full: bool, dry_run: bool) -> dict[str, Any]:
    """Everything of one bot in one transaction; rejects outlive a run that stops on them."""
    started_at = datetime.now(timezone.utc)
    path = bot.legacy.get("sqlite_path")
    if not path:
        raise UsageError(f"bots.json has no legacy.sqlite_path for {bot.bot_id}: set `legacy.sqlite` in the inventory")
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool, target.transaction(connection, dry_run) as cursor:
        target.prepare(cursor, "momentum")
        if dry_run:
            target.register(cursor, bots, "momentum", bot.bot_id)
        cursor.execute("SELECT set_config('TimeZone', %s, true)", (bot.timezone,))
        create_staging(cursor)
        engine = bot.engine()
        base = None if full else target.base_run(cursor, bot.bot_id, engine)
        with private_copy(Path(path), lambda text: say(f"warning: {text}")) as copy:
            if base is None:
                copy.check()
            digests = sqlite_pages.digests(copy.path)
            run_id = target.begin_run(
                cursor,
                bot.bot_id,
                str(path),
                started_at,
                copy.snapshot_at,
                mode="full" if base is None else "delta",
                engine=engine,
                page_digests=digests,
            )
            rejects = Rejects(bot.bot_id, run_id, cast(TextIO, spool))
            cursor.execute("SAVEPOINT rows")
            carry(cursor, copy, bot, base, digests, rejects)
        try:
            return target.merge(cursor, "momentum", [bot.bot_id], 2**31 - 1 if dry_run else accepted)
        except psycopg2.Error as error:
            if error.pgcode != RejectsError.sqlstate or dry_run:
                raise
            cursor.execute("ROLLBACK TO SAVEPOINT rows")
            rejects.store(cursor)
            connection.commit()
            raise


def create_staging(cursor: Cursor) -> None:
    """Temporary tables in the shape of what a mapper gives, and the legacy id."""
    for name, table in TABLES.items():
        columns = ", ".join(Mapper(name, "", timezone.utc).target_columns)
        cursor.execute(
            f"CREATE TEMP TABLE staged_{name} ON COMMIT DROP AS SELECT {columns}, '' AS _source_id FROM {table.target} LIMIT 0"
        )


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"


def run(
    connection: Connection, bots: Bots, only: str | None, accepted: int, full: bool, dry_run: bool
) -> dict[str, object]:
    """Migrate every Momentum bot, one after the other."""
    chosen = bots.of_type("momentum", only)
    ids = [bot.bot_id for bot in chosen]
    with target.transaction(connection) as cursor:
        cursor.execute("SELECT bot_id FROM trading.bots WHERE bot_id = ANY (%s)", (ids,))
        unknown = sorted(set(ids) - {row[0] for row in cursor.fetchall()})
    if unknown and not dry_run:
        raise TargetError(
            f"{', '.join(unknown)} is not registered in trading.bots: run 003_register_momentum_bot.sql first"
        )
    results = [migrate(connection, bots, bot, accepted, full, dry_run) for bot in chosen]
    return {
        "changed": any(r["changed"] for r in results),
        "bots": [report for r in results for report in r["bots"]],
        "dry_run": dry_run,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bot", help="migrate this bot alone")
    parser.add_argument("--full", action="store_true", help="read every row again, not only what can have changed")
    parser.add_argument("--dry-run", action="store_true", help="do everything, report, and roll it back")
    parser.add_argument("--accept-rejects", type=int, default=0, metavar="N", help="rejected rows a bot may do without")
    parser.add_argument("--bots-file", type=Path, default=settings.DIRECTORY / "bots.json", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.accept_rejects < 0:
        parser.error("--accept-rejects is below zero")
    # Millions of short-lived tuples, no cycles: the collector would only search.
    gc.disable()

    def work() -> int:
        bots = settings.load_bots(arguments.bots_file)
        for bot in bots.of_type("momentum", arguments.bot):
            find_zone(bot.timezone)
        connection = target.connect("migrate_momentum_sqlite_to_postgres.py")
        try:
            with target.run_lock(connection):
                result = run(
                    connection, bots, arguments.bot, arguments.accept_rejects, arguments.full, arguments.dry_run
                )
                print(json.dumps(result))
        finally:
            connection.close()
        return 0

    return target.run_main(work)


if __name__ == "__main__":
    sys.exit(main())
