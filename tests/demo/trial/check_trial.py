"""Looks up every write that the bots of a trial run noted, under their trial ids.

    PGPASSWORD=... python3 check_trial.py --dsn DSN --notes FOLDER

Prints a line for each bot and table. Exit codes: 0 all is there; 1 something is not, or nothing was noted.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extras import RealDictCursor

SIDES = {"long": "long", "short": "short", "buy": "buy", "sell": "sell"}
# The unified column of each noted one, where its name differs.
SHORTSELLER: dict[str, dict[str, str]] = {
    "trades": {"price": "entry_price", "timestamp": "entry_time", "executed_at": "exit_time", "pnl": "pnl_usd"},
    "positions": {"avg_price": "avg_entry_price"},
    "signals": {},
    "account_balance": {},
    "risk_metrics": {"total_pnl": "daily_pnl"},
}
# What a bot's class says otherwise than the unified row, and what is shown by another of its columns.
PASSED_OVER = {"id", "order_id", "execution_id", "signal_type", "indicators", "max_drawdown", "date"}


def latest(path: Path) -> dict[tuple[str, Any], dict[str, Any]]:
    """The noted values of each row, by table and id, the later ones over the earlier ones."""
    rows: dict[tuple[str, Any], dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        row = entry["row"]
        key = row.get("id", (row.get("message"), row.get("current_value")))
        rows.setdefault((entry["table"], key if not isinstance(key, list) else tuple(key)), {}).update(row)
    return rows


def alike(noted: Any, stored: Any) -> bool:
    """Whether a stored value is the noted one, which went through JSON and through a column of 8 or 4 places."""
    if noted is None or stored is None:
        return noted is stored
    if isinstance(stored, Decimal):
        value = noted if isinstance(noted, str) else repr(noted)
        return Decimal(value).quantize(Decimal(1).scaleb(stored.as_tuple().exponent), ROUND_HALF_EVEN) == stored  # type: ignore[arg-type]
    if isinstance(stored, datetime):
        return datetime.fromisoformat(noted) == stored
    return bool(noted == stored)


def differences(noted: Mapping[str, Any], stored: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    for column, value in noted.items():
        if column in PASSED_OVER:
            continue
        expected = SIDES[value.lower()] if column == "side" else value
        found = stored[names.get(column, column)]
        if not alike(expected, found):
            yield f"{column} is {found}; expected {expected}"


def check(cursor: RealDictCursor, bot: str, notes: Path, tables: Mapping[str, Mapping[str, str]]) -> bool:
    """Compare one bot's noted rows by id; print what was found."""
    rows, good = latest(notes), True
    for table, names in tables.items():
        noted = {key: row for (name, key), row in rows.items() if name == table}
        cursor.execute(f"SELECT * FROM trading.{table} WHERE bot_id = %s", (bot,))
        stored = {row["id"]: row for row in cursor.fetchall()}
        problems = [f"{table} {key} is not there" for key in noted.keys() - stored.keys()]
        for key in noted.keys() & stored.keys():
            problems += [f"{table} {key}: {text}" for text in differences(noted[key], stored[key], names)]
        print(f"{bot} {table}: {len(noted)} noted, {len(stored)} stored, {len(problems)} differences")
        for problem in problems[:5]:
            print(f"  {problem}")
        good = good and not problems and len(noted) > 0
    return good


def check_events(cursor: RealDictCursor, bot: str, notes: Path) -> bool:
    """Compare what has no id at the bot: texts of events, values of risk events."""
    good = True
    for table, column in (("events", "message"), ("risk_events", "current_value")):
        noted = sorted(str(key[0] if key[0] is not None else key[1]) for name, key in latest(notes) if name == table)
        unified = "audit.system_events" if table == "events" else "audit.risk_events"
        kind = " AND event_type = 'HEARTBEAT'" if table == "events" else ""
        cursor.execute(f"SELECT {column} FROM {unified} WHERE bot_id = %s{kind}", (bot,))
        stored = [row[column] for row in cursor.fetchall()]
        missing = [text for text in noted if not any(alike(text, value) for value in stored)]
        print(f"{bot} {unified}: {len(noted)} noted, {len(stored)} stored, {len(missing)} missing")
        good = good and not missing and len(stored) >= len(noted)
    return good


def candles(cursor: RealDictCursor, notes: Path) -> None:
    """Remove the candles that the trial made up: they are shared, and belong to no bot."""
    ids = [key for name, key in latest(notes) if name == "market_data"]
    cursor.execute("DELETE FROM trading.market_data WHERE id = ANY(%s)", (ids,))
    print(f"market_data: {len(ids)} noted, {cursor.rowcount} stored and removed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--notes", required=True, type=Path)
    arguments = parser.parse_args()
    with psycopg2.connect(arguments.dsn) as connection, connection.cursor(cursor_factory=RealDictCursor) as cursor:
        shortseller, momentum = (arguments.notes / f"{name}.jsonl" for name in ("shortseller_001", "momentum"))
        found = [
            check(cursor, "shortseller_001_trial", shortseller, SHORTSELLER),
            check(cursor, "momentum_001_trial", momentum, {"trades": {}}),
            check_events(cursor, "momentum_001_trial", momentum),
        ]
        cursor.execute(
            "SELECT count(*) AS n, count(exit_time) AS closed FROM trading.trades WHERE bot_id = 'lxalgo_001_trial'"
        )
        trades = cursor.fetchall()[0]
        print(f"lxalgo_001_trial trades: {trades['n']} stored, {trades['closed']} of them closed")
        found.append(trades["n"] > 0)
        candles(cursor, shortseller)
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
