#!/usr/bin/env python3
"""Carry the Momentum bots' SQLite history into the unified tables (step 2.4).

Each bot's file is copied as of one moment while the bot goes on writing. The
first run carries all its rows. A later one reads those that can have changed
since, which it knows from the pages of the file that have; with --full it reads
them all again. A bot's rows arrive in one transaction, and only if their hashes
in trading_db are those of the rows that were read.
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
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, TextIO, cast

# Nothing may appear in the migrations folder, least of all in a dry run.
sys.dont_write_bytecode = True

import psycopg2  # noqa: E402
from migration_engine import parallel, settings, sqlite_pages, target  # noqa: E402
from migration_engine.errors import RejectsError, TargetError, UsageError  # noqa: E402
from migration_engine.momentum_loading import Rejects, carry, create_staging  # noqa: E402
from migration_engine.momentum_source import private_copy  # noqa: E402
from migration_engine.progress import say  # noqa: E402
from migration_engine.settings import Bot, Bots  # noqa: E402
from migration_engine.sqlite_pages import Pages  # noqa: E402
from migration_engine.target import Connection  # noqa: E402
from migration_engine.values import find_zone  # noqa: E402


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
        base = target.last_merged(cursor, bot.bot_id)
        if base is not None and (full or base.engine != engine):
            base = None
        with private_copy(Path(path), lambda text: say(f"warning: {text}")) as copy:
            run_id = target.begin_run(
                cursor,
                bot.bot_id,
                str(path),
                started_at,
                copy.snapshot_at,
                mode="full" if base is None else "delta",
                engine=engine,
            )

            @cache
            def inspect() -> Pages | None:
                # Nothing else can be done until a delta knows what changed.
                if base is not None:
                    return sqlite_pages.digests(copy.path, parallel.cores())
                copy.check()
                return sqlite_pages.digests(copy.path)

            rejects = Rejects(bot.bot_id, run_id, cast(TextIO, spool))
            cursor.execute("SAVEPOINT rows")
            carry(cursor, copy, bot, base, inspect, rejects)
            if pages := inspect():
                target.store_pages(cursor, run_id, pages)
        try:
            return target.merge(cursor, "momentum", [bot.bot_id], 2**31 - 1 if dry_run else accepted)
        except psycopg2.Error as error:
            if error.pgcode != RejectsError.sqlstate or dry_run:
                raise
            cursor.execute("ROLLBACK TO SAVEPOINT rows")
            rejects.store(cursor)
            connection.commit()
            raise


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
