#!/usr/bin/env python3
"""Fetch the Shortseller's history into the staging schema legacy_shortseller.

Step 2.3, first half; 002_migrate_shortseller_data.sql then merges it. One
read-only snapshot of the legacy server is streamed into staging in one
transaction, and rows that cannot be migrated are stored in migration.rejects.
The unified tables are not touched. After the first merge only those rows are
fetched that can have changed since, which the rows themselves tell by the
transaction that wrote them; with --full all are fetched again.

With --dry-run the merge is carried out as well, reported, and all is rolled back.

Environment: POSTGRES_HOST, POSTGRES_PORT, POSTGRES_DB, POSTGRES_USER,
POSTGRES_PASSWORD, LEGACY_POSTGRES_PASSWORD.
Exit codes: 0 done; 1 failed; 2 usage; 4 source unusable; 5 trading_db unusable.
The last line on stdout is the result as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

# Nothing may appear in the migrations folder, least of all in a dry run.
sys.dont_write_bytecode = True

from migration_engine import settings, target  # noqa: E402
from migration_engine.progress import Progress, say  # noqa: E402
from migration_engine.settings import Bot, Bots  # noqa: E402
from migration_engine.shortseller_source import Snapshot, Table, snapshot  # noqa: E402
from migration_engine.target import Connection, Cursor, SourceTable, ids_of  # noqa: E402

SCHEMA = "legacy_shortseller"
# A dry run reports rejects; the real merge decides about them.
ALL = 2**31 - 1
# One row a day, each from all days before: always fetched as a whole.
SMALL = ("risk_metrics",)
# So many blocks of ids are looked up one by one.
FEW_BLOCKS = 500
# By which staged rows are joined, beside their ids: no other statistics are needed.
JOINED = {
    "trades": ("trade_id",),
    "market_data": ("symbol", '"interval"', "timestamp"),
    "signals": ("execution_id",),
    "risk_metrics": ("date",),
}


def stage(cursor: Cursor, bot: Bot, full: bool) -> dict[str, object]:
    """Stage one bot in the current transaction; its part of the result."""
    started_at = datetime.now(timezone.utc)
    with snapshot(bot, lambda text: say(f"warning: {text}")) as source:
        engine = bot.engine()
        base = target.last_merged(cursor, bot.bot_id)
        if base is not None and (full or base.engine != engine):
            base = None
        changed = source.position.changed_since(base.position) if base else None
        cursor.execute("SELECT legacy_shortseller.empty_staging(%s)", (bot.bot_id,))
        cursor.execute("DELETE FROM migration.gone_ids WHERE bot_id = %s", (bot.bot_id,))
        run_id = target.begin_run(
            cursor,
            bot.bot_id,
            f"{bot.legacy['database']} at {bot.legacy['host']}:{bot.legacy['port']}",
            started_at,
            source.snapshot_at,
            mode="full" if changed is None else "delta",
            engine=engine,
            position=dataclasses.asdict(source.position),
        )
        known = {table.name: target.rejected_ids(cursor, bot.bot_id, table.name, base) for table in source.tables}
        counts = {}
        for table in source.tables:
            condition = "true" if changed is None or table.name in SMALL else _again(table.name, changed, known)
            found_blocks = source.blocks(table, condition)
            blocks = {block: rows for block, (rows, _) in found_blocks.items()}
            count, staged = sum(blocks.values()), sum(again for _, again in found_blocks.values())
            where = condition if condition == "true" else _within(found_blocks, condition)
            if staged:
                progress = Progress(f"{bot.bot_id}: {table.name}", staged)
                source.copy_into(table, bot.bot_id, cursor, SCHEMA, where, progress)
                columns = ", ".join(("bot_id", "id", "_reject", *JOINED.get(table.name, ())))
                cursor.execute(f"ANALYZE {SCHEMA}.{table.name} ({columns})")
            canonical = table.canonical_sql()
            counts[table.name] = SourceTable(table.name, count, staged, condition == "true", None, 0, canonical, blocks)
            say(f"{bot.bot_id}: {table.name}: {staged} of {count} rows staged")
        target.run_file(cursor, "classify_shortseller.sql")
        for table in source.tables:
            found = counts[table.name]
            if not found.whole and base is not None:
                _note_gone(cursor, bot, source, table, found, base)
            # What was rejected cannot arrive.
            cursor.execute(
                f"SELECT coalesce(sum(_hash), 0) FROM {SCHEMA}.{table.name} WHERE bot_id = %s AND _reject IS NULL",
                (bot.bot_id,),
            )
            target.record_table(cursor, run_id, bot.bot_id, dataclasses.replace(found, hash=target.one(cursor)[0]))
    target.finish_run(cursor, run_id, {"largest_rounding": "0"})
    cursor.execute(
        "SELECT source_table, source_id, reason FROM migration.rejects WHERE bot_id = %s ORDER BY reject_id",
        (bot.bot_id,),
    )
    rejects = [{"table": table, "id": source_id, "reason": reason} for table, source_id, reason in cursor.fetchall()]
    if rejects:
        say(f"{bot.bot_id}: {len(rejects)} rows cannot be migrated, the first: {rejects[0]}")
    return {
        "bot_id": bot.bot_id,
        "run_id": run_id,
        "mode": "full" if changed is None else "delta",
        "tables": [
            {
                "source_table": name,
                "source": found.row_count,
                "staged": found.staged,
                "rejected": sum(r["table"] == name for r in rejects),
            }
            for name, found in counts.items()
        ],
        "rejects": rejects[:10],
        "rejected": len(rejects),
        "largest_rounding": "0",
        "snapshot_at": source.snapshot_at.isoformat(),
    }


def _note_gone(
    cursor: Cursor, bot: Bot, source: Snapshot, table: Table, found: SourceTable, base: target.BaseRun
) -> None:
    """Store the ids that are absent where the number of rows says that some are gone."""
    new = target.new_by_block(cursor, "shortseller", table.name, bot.bot_id, base.rejected[table.name])
    before = {int(block): rows for block, rows in base.blocks[table.name].items()}
    now = found.blocks or {}
    lost = sorted(b for b in before.keys() | now.keys() if now.get(b, 0) != before.get(b, 0) + new.get(b, 0))
    if lost:
        target.note_gone(cursor, bot.bot_id, table.name, source.absent(table, lost))


def _again(table: str, changed: str, rejected: dict[str, list[str]]) -> str:
    """The condition that a row must be read again: it can have changed, was rejected, or follows such a trade."""

    def within(column: str, name: str) -> str:
        return f"{column} IN ({', '.join(['NULL', *map(str, map(int, rejected[name]))])})"

    conditions = [changed, within("id", table)]
    if table == "signals":
        conditions.append(f"execution_id IN (SELECT id FROM trading.trades WHERE {changed})")
        conditions.append(within("execution_id", "trades"))
    return "(" + " OR ".join(conditions) + ")"


def _within(blocks: dict[int, tuple[int, int]], condition: str) -> str:
    """The condition, for rows of those blocks alone where some meet it: by the index on ids, where these are few."""
    met = sorted(block for block, (_, again) in blocks.items() if again)
    if len(met) > min(FEW_BLOCKS, len(blocks) // 4):
        return condition
    ranges = ("id BETWEEN {} AND {}".format(*ids_of(block)) for block in met)
    return f"({' OR '.join(['false', *ranges])}) AND {condition}"


def run(connection: Connection, bots: Bots, only: str | None, full: bool, dry_run: bool) -> dict[str, object]:
    """Stage every Shortseller bot, each in a transaction of its own."""
    chosen = bots.of_type("shortseller", only)
    reports: list[dict[str, object]] = []
    changed = False
    for bot in chosen:
        with target.transaction(connection, dry_run) as cursor:
            target.prepare(cursor, "shortseller")
            report = stage(cursor, bot, full)
            if dry_run:
                target.register(cursor, bots, "shortseller", bot.bot_id)
                merged = target.merge(cursor, "shortseller", [bot.bot_id], ALL)
                report, changed = merged["bots"][0], changed or merged["changed"]
            reports.append(report)
    return {"changed": changed, "dry_run": dry_run, "bots": reports}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bot", help="stage this bot alone")
    parser.add_argument("--full", action="store_true", help="fetch every row again, not only what can have changed")
    parser.add_argument("--dry-run", action="store_true", help="stage and merge, report, and roll everything back")
    parser.add_argument("--bots-file", type=Path, default=settings.DIRECTORY / "bots.json", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)

    def work() -> int:
        bots = settings.load_bots(arguments.bots_file)
        bots.of_type("shortseller", arguments.bot)
        connection = target.connect("stage_shortseller.py")
        try:
            with target.run_lock(connection):
                print(json.dumps(run(connection, bots, arguments.bot, arguments.full, arguments.dry_run)))
        finally:
            connection.close()
        return 0

    return target.run_main(work)


if __name__ == "__main__":
    sys.exit(main())
