#!/usr/bin/env python3
"""Carry the Momentum bots' SQLite history into the unified tables (step 2.4).

Each bot's file is copied by SQLite's online backup while the bot goes on
writing; the copy is converted row by row, staged, and merged in one
transaction. A second run carries what is new or changed and nothing else.
The bots must be registered: 003_register_momentum_bot.sql.

Environment: POSTGRES_HOST, POSTGRES_PORT, POSTGRES_DB, POSTGRES_USER,
POSTGRES_PASSWORD; TMPDIR, the folder of the private copy (default /var/tmp).
Exit codes: 0 done; 1 failed; 2 usage; 3 more rejected rows than accepted;
4 source unusable; 5 trading_db unusable. Where it is not 0, the unified tables
are unchanged. The last line on stdout is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

# Nothing may appear in the migrations folder, least of all in a dry run.
sys.dont_write_bytecode = True

from migration_engine import settings, target  # noqa: E402
from migration_engine.copytext import LineStream, line  # noqa: E402
from migration_engine.errors import TargetError, UsageError  # noqa: E402
from migration_engine.momentum_mapping import TABLES, Mapper  # noqa: E402
from migration_engine.momentum_source import Copy, private_copy  # noqa: E402
from migration_engine.settings import Bot, Bots  # noqa: E402
from migration_engine.target import Connection, Cursor  # noqa: E402
from migration_engine.values import MONEY, RATIO, find_zone  # noqa: E402

SCHEMA = "legacy_momentum"
PROGRESS_EVERY = 250_000


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def lines(copy: Copy, mapper: Mapper) -> Iterator[str]:
    """The table's staged rows as COPY text."""
    for row in copy.rows(mapper.table, mapper.source_columns):
        yield line(mapper.stage(row))
        if mapper.row_count % PROGRESS_EVERY == 0:
            say(f"{mapper.bot_id}: {mapper.table}: {mapper.row_count} rows")


def stage_table(cursor: Cursor, copy: Copy, bot: Bot, table: str) -> Mapper:
    """Stream one table into staging; the mapper that counted it."""
    mapper = Mapper(table, bot.bot_id, find_zone(bot.timezone), copy.extra[table])
    columns = ", ".join(mapper.staging_columns)
    cursor.copy_expert(f"COPY {SCHEMA}.{table} ({columns}) FROM STDIN", LineStream(lines(copy, mapper)), 1 << 18)
    cursor.execute(f"ANALYZE {SCHEMA}.{table}")
    say(f"{bot.bot_id}: {table}: {mapper.row_count} rows staged")
    return mapper


def stage(cursor: Cursor, bot: Bot) -> None:
    """Copy the bot's file and stage it in the current transaction."""
    started_at = datetime.now(timezone.utc)
    path = bot.legacy.get("sqlite_path")
    if not path:
        raise UsageError(f"bots.json has no legacy.sqlite_path for {bot.bot_id}: set `legacy.sqlite` in the inventory")
    with private_copy(Path(path), lambda text: say(f"warning: {text}")) as copy:
        target.empty_staging(cursor, SCHEMA, list(TABLES), bot.bot_id)
        run_id = target.begin_run(cursor, bot.bot_id, str(path), started_at, copy.snapshot_at)
        mappers = []
        for table in TABLES:
            mapper = stage_table(cursor, copy, bot, table)
            statistics = mapper.statistics()
            # The source's own count, not that of the rows that arrived.
            statistics.row_count = copy.count(table)
            target.record_statistics(cursor, run_id, table, statistics)
            mappers.append(mapper)
    target.run_file(cursor, "classify_momentum.sql")
    target.finish_run(
        cursor,
        run_id,
        {
            "timezone": bot.timezone,
            "largest_rounding": _plain(max(m.largest_rounding[MONEY.places] for m in mappers)),
            "largest_ratio_rounding": _plain(max(m.largest_rounding[RATIO.places] for m in mappers)),
            "ambiguous_times": sum(m.notes["ambiguous"] for m in mappers),
            "nonexistent_times": sum(m.notes["nonexistent"] for m in mappers),
        },
    )


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"


def run(connection: Connection, bots: Bots, only: str | None, accepted: int, dry_run: bool) -> dict[str, object]:
    """Stage, then merge: two transactions, so that rejects outlive a merge that stops on them."""
    chosen = bots.of_type("momentum", only)
    ids = [bot.bot_id for bot in chosen]
    with target.transaction(connection, dry_run) as cursor:
        target.prepare(cursor, "momentum")
        if dry_run:
            target.register(cursor, bots, "momentum", only)
        cursor.execute("SELECT bot_id FROM trading.bots WHERE bot_id = ANY (%s)", (ids,))
        unknown = sorted(set(ids) - {row[0] for row in cursor.fetchall()})
        if unknown:
            raise TargetError(
                f"{', '.join(unknown)} is not registered in trading.bots: run 003_register_momentum_bot.sql first"
            )
        for bot in chosen:
            stage(cursor, bot)
        if dry_run:
            result = target.merge(cursor, "momentum", ids, 2**31 - 1)
            connection.rollback()
    if not dry_run:
        with target.transaction(connection) as cursor:
            result = target.merge(cursor, "momentum", ids, accepted)
    for report in result["bots"]:
        for table in report["tables"]:
            say(
                f"{report['bot_id']}: {table['source_table']} -> {table['target_table']}: {table['inserted']} inserted, "
                f"{table['updated']} updated, {table['unchanged']} unchanged, {table['rejected']} rejected"
            )
    return {**result, "dry_run": dry_run}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bot", help="migrate this bot alone")
    parser.add_argument("--dry-run", action="store_true", help="do everything, report, and roll it back")
    parser.add_argument("--accept-rejects", type=int, default=0, metavar="N", help="rejected rows to do without")
    parser.add_argument("--bots-file", type=Path, default=settings.DIRECTORY / "bots.json", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.accept_rejects < 0:
        parser.error("--accept-rejects is below zero")

    def work() -> int:
        bots = settings.load_bots(arguments.bots_file)
        for bot in bots.of_type("momentum", arguments.bot):
            find_zone(bot.timezone)
        connection = target.connect("migrate_momentum_sqlite_to_postgres.py")
        try:
            with target.run_lock(connection):
                print(json.dumps(run(connection, bots, arguments.bot, arguments.accept_rejects, arguments.dry_run)))
        finally:
            connection.close()
        return 0

    return target.run_main(work)


if __name__ == "__main__":
    sys.exit(main())
