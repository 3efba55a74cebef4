#!/usr/bin/env python3
"""Compare the live sources with trading_db (step 2.6), at any hour.

For each bot and table, in a snapshot on both sides: rows at the source =
migrated + rejected + pending, sums of amounts, ranges of times, the hash of each
row, what is open one by one; ids that are doubled or orphaned. A row that can
have changed at the source since the last migration is pending; the next run
carries it. Reads only, and no bot waits for it.

Environment: POSTGRES_HOST, POSTGRES_PORT, POSTGRES_DB, POSTGRES_USER,
POSTGRES_PASSWORD; the password of a legacy server in
LEGACY_POSTGRES_PASSWORD_<BOT_ID>, such as LEGACY_POSTGRES_PASSWORD_SHORTSELLER_001,
or LEGACY_POSTGRES_PASSWORD.
Exit codes: 0 all equal; 1 differences, named on stderr; 2 usage; 4 a source is
unusable; 5 trading_db unusable. Prints a table; the last line on stdout is the
report as JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Nothing may appear in the migrations folder.
sys.dont_write_bytecode = True

from migration_engine import settings, target  # noqa: E402
from migration_engine.errors import UsageError  # noqa: E402
from migration_engine.progress import say  # noqa: E402
from migration_engine.reconciliation import reconcile_bot  # noqa: E402

NUMBERS = ("source", "migrated", "rejected", "pending", "missing_at_source", "deleted_since")


def as_table(report: dict[str, Any]) -> str:
    """The report for people."""
    names = ("rows", "migrated", "rejected", "pending", "gone at source", "gone since")
    rows = [("bot", "source", "target", *names, "open", "verdict")]
    for bot in report["bots"]:
        for table in bot["tables"]:
            shown = "/".join(str(table["open"][side]) for side in ("source", "target")) if table["open"] else "-"
            rows.append(
                (
                    bot["bot_id"],
                    table["source_table"],
                    table["target_table"],
                    *(str(table[name]) for name in NUMBERS),
                    shown,
                    "equal" if table["ok"] else "DIFFERS",
                )
            )
        if not bot["tables"] or bot["differences"]:
            rows.append((bot["bot_id"], *["-"] * 9, "equal" if bot["ok"] else "DIFFERS"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 3 <= i <= 9 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text + "\n", encoding="utf-8")
    os.replace(beside, path)


def legacy_password(bot_id: str) -> str | None:
    """The password of the legacy server of a bot."""
    name = "LEGACY_POSTGRES_PASSWORD_" + re.sub(r"[^A-Z0-9]", "_", bot_id.upper())
    return os.environ.get(name) or os.environ.get("LEGACY_POSTGRES_PASSWORD")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bot", help="compare this bot alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there as well")
    parser.add_argument("--bots-file", type=Path, default=settings.DIRECTORY / "bots.json", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    # Millions of short-lived tuples, no cycles: the collector would only search.
    gc.disable()

    def work() -> int:
        bots = [b for b in settings.load_bots(arguments.bots_file).bots if arguments.bot in (None, "", b.bot_id)]
        if not bots:
            raise UsageError(f"bots.json has no bot {arguments.bot}; correct --bot")
        connection = target.connect("reconcile.py")
        report: dict[str, Any] = {"ok": True, "compared_at": datetime.now(timezone.utc).isoformat(), "bots": []}
        try:
            connection.set_session(isolation_level="REPEATABLE READ", readonly=True)
            for bot in bots:
                with target.transaction(connection) as cursor:
                    found = reconcile_bot(
                        cursor, bot, legacy_password(bot.bot_id), lambda text: say(f"warning: {text}")
                    )
                report["bots"].append(found)
        finally:
            connection.close()
        report["ok"] = all(bot["ok"] for bot in report["bots"])
        if arguments.json:
            write(arguments.json, json.dumps(report, indent=2))
        print(as_table(report))
        print(json.dumps(report))
        for bot in report["bots"]:
            for text in bot["differences"]:
                say(f"{bot['bot_id']}: {text}")
            for table in bot["tables"]:
                for text in table["differences"]:
                    say(f"{bot['bot_id']}: {table['source_table']}: {text}")
        return 0 if report["ok"] else 1

    return target.run_main(work)


if __name__ == "__main__":
    sys.exit(main())
