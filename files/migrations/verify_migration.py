#!/usr/bin/env python3
"""Verify all migrations (step 2.6): does trading_db hold what the sources held?

For each bot and table, against the statistics that the source gave in the
snapshot of the last run: rows at the source = migrated + rejected, sums of
every number, ranges of every time; each migrated row against its staged
original; ids that are doubled, orphaned or of unknown origin. Reads only.

Environment: POSTGRES_HOST, POSTGRES_PORT, POSTGRES_DB, POSTGRES_USER,
POSTGRES_PASSWORD.
Exit codes: 0 all equal; 1 differences, named on stderr; 2 usage; 5 trading_db
unusable. Prints a table; the last line on stdout is the report as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Nothing may appear in the migrations folder.
sys.dont_write_bytecode = True

from migration_engine import settings, target  # noqa: E402
from migration_engine.errors import UsageError  # noqa: E402
from migration_engine.verification import verify_bot  # noqa: E402


def as_table(report: dict[str, Any]) -> str:
    """The report for people."""
    rows = [("bot", "source", "target", "rows", "migrated", "rejected", "gone at source", "verdict")]
    for bot in report["bots"]:
        for table in bot["tables"]:
            rows.append(
                (
                    bot["bot_id"],
                    table["source_table"],
                    table["target_table"],
                    *(str(table[name]) for name in ("source", "migrated", "rejected", "missing_at_source")),
                    "equal" if table["ok"] else "DIFFERS",
                )
            )
        if not bot["tables"]:
            rows.append((bot["bot_id"], "-", "-", "-", "-", "-", "-", "equal" if bot["ok"] else "DIFFERS"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numbers = range(3, 7)
    return "\n".join(
        "  ".join(
            cell.rjust(widths[i]) if i in numbers else cell.ljust(widths[i]) for i, cell in enumerate(row)
        ).rstrip()
        for row in rows
    )


def write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text + "\n", encoding="utf-8")
    os.replace(beside, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bot", help="verify this bot alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    parser.add_argument("--bots-file", type=Path, default=settings.DIRECTORY / "bots.json", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)

    def work() -> int:
        bots = [b for b in settings.load_bots(arguments.bots_file).bots if arguments.bot in (None, "", b.bot_id)]
        if not bots:
            raise UsageError(f"bots.json has no bot {arguments.bot}: correct --bot")
        connection = target.connect("verify_migration.py")
        try:
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            with target.transaction(connection) as cursor:
                found = [verify_bot(cursor, bot) for bot in bots]
        finally:
            connection.close()
        report = {
            "ok": all(bot["ok"] for bot in found),
            "verified_at": datetime.now(timezone.utc).isoformat(),
            "bots": found,
        }
        print(as_table(report))
        for bot in found:
            for text in bot["differences"]:
                print(f"difference: {bot['bot_id']}: {text}", file=sys.stderr)
            for table in bot["tables"]:
                for text in table["differences"]:
                    print(f"difference: {bot['bot_id']}: {table['source_table']} in {table['target_table']}: {text}", file=sys.stderr)
        if not report["ok"]:
            print("Run the migration again; what differs still was changed by hand.", file=sys.stderr)
        if arguments.json:
            write(arguments.json, json.dumps(report, indent=2))
        print(json.dumps(report))
        return 0 if report["ok"] else 1

    return target.run_main(work)


if __name__ == "__main__":
    sys.exit(main())
