#!/usr/bin/env python3
"""Fetch the Shortseller's history into the staging schema legacy_shortseller.

Step 2.3, first half; 002_migrate_shortseller_data.sql then merges it. One
read-only snapshot of the legacy server is streamed into staging in one
transaction, and rows that cannot be migrated are stored in migration.rejects.
The unified tables are not touched.

With --dry-run the merge is carried out as well, reported, and all is rolled back.

Environment: POSTGRES_HOST, POSTGRES_PORT, POSTGRES_DB, POSTGRES_USER,
POSTGRES_PASSWORD, LEGACY_POSTGRES_PASSWORD.
Exit codes: 0 done; 1 failed; 2 usage; 4 source unusable; 5 trading_db unusable.
The last line on stdout is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

# Nothing may appear in the migrations folder, least of all in a dry run.
sys.dont_write_bytecode = True

from migration_engine import settings, target  # noqa: E402
from migration_engine.settings import Bot, Bots  # noqa: E402
from migration_engine.shortseller_source import snapshot  # noqa: E402
from migration_engine.target import Connection, Cursor  # noqa: E402

SCHEMA = "legacy_shortseller"
# A dry run reports rejects; the real merge decides about them.
ALL = 2**31 - 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def stage(cursor: Cursor, bot: Bot) -> dict[str, object]:
    """Stage one bot in the current transaction; its part of the result."""
    started_at = datetime.now(timezone.utc)
    with snapshot(bot, lambda text: say(f"warning: {text}")) as source:
        target.empty_staging(cursor, SCHEMA, [t.name for t in source.tables], bot.bot_id)
        run_id = target.begin_run(cursor, bot.bot_id, f"{bot.legacy['database']} at {bot.legacy['host']}:{bot.legacy['port']}", started_at, source.snapshot_at)
        counts = {}
        for table in source.tables:
            source.copy_into(table, bot.bot_id, cursor, SCHEMA)
            statistics = source.statistics(table)
            target.record_statistics(cursor, run_id, table.name, statistics)
            cursor.execute(f"ANALYZE {SCHEMA}.{table.name}")
            counts[table.name] = statistics.row_count
            say(f"{bot.bot_id}: {table.name}: {statistics.row_count} rows staged")
    target.run_file(cursor, "classify_shortseller.sql")
    target.finish_run(cursor, run_id, {"largest_rounding": "0"})
    cursor.execute("SELECT source_table, source_id, reason FROM migration.rejects WHERE bot_id = %s ORDER BY reject_id", (bot.bot_id,))
    rejects = [{"table": table, "id": source_id, "reason": reason} for table, source_id, reason in cursor.fetchall()]
    if rejects:
        say(f"{bot.bot_id}: {len(rejects)} rows cannot be migrated, the first: {rejects[0]}")
    return {
        "bot_id": bot.bot_id,
        "run_id": run_id,
        "tables": [
            {"source_table": name, "source": count, "rejected": sum(r["table"] == name for r in rejects)}
            for name, count in counts.items()
        ],
        "rejects": rejects[:10],
        "rejected": len(rejects),
        "largest_rounding": "0",
        "snapshot_at": source.snapshot_at.isoformat(),
    }


def run(connection: Connection, bots: Bots, only: str | None, dry_run: bool) -> dict[str, object]:
    """Stage every Shortseller bot, each in a transaction of its own."""
    chosen = bots.of_type("shortseller", only)
    reports: list[dict[str, object]] = []
    changed = False
    for bot in chosen:
        with target.transaction(connection, dry_run) as cursor:
            target.prepare(cursor, "shortseller")
            report = stage(cursor, bot)
            if dry_run:
                target.register(cursor, bots, "shortseller", bot.bot_id)
                merged = target.merge(cursor, "shortseller", [bot.bot_id], ALL)
                report, changed = merged["bots"][0], changed or merged["changed"]
            reports.append(report)
    return {"changed": changed, "dry_run": dry_run, "bots": reports}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bot", help="stage this bot alone")
    parser.add_argument("--dry-run", action="store_true", help="stage and merge, report, and roll everything back")
    parser.add_argument("--bots-file", type=Path, default=settings.DIRECTORY / "bots.json", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)

    def work() -> int:
        bots = settings.load_bots(arguments.bots_file)
        bots.of_type("shortseller", arguments.bot)
        connection = target.connect("stage_shortseller.py")
        try:
            with target.run_lock(connection):
                print(json.dumps(run(connection, bots, arguments.bot, arguments.dry_run)))
        finally:
            connection.close()
        return 0

    return target.run_main(work)


if __name__ == "__main__":
    sys.exit(main())
