"""The route of a straightforward script: read all rows, convert, insert row lists.

    python row_lists.py momentum <bot id> <SQLite file>
    python row_lists.py shortseller <bot id> <connection string of the legacy server>

A process of its own, so that its memory is its own. Maps as docs/data-mapping.md
says, for history without rows that cannot be migrated. Environment: as the
engine's scripts.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg2
from psycopg2.extras import Json, RealDictCursor, execute_values

PAGE_ROWS = 1000
MONEY = Decimal("0.00000001")
RATIO = Decimal("0.000001")
NUMBERS = {
    "entry_price": MONEY,
    "exit_price": MONEY,
    "quantity": MONEY,
    "position_size_usd": MONEY,
    "stop_loss": MONEY,
    "take_profit": MONEY,
    "pnl_usd": MONEY,
    "pnl_pct": RATIO,
    "signal_strength": RATIO,
}
STATUSES = {"pending", "partially_filled", "filled", "cancelled", "rejected", "expired"}

Row = dict[str, Any]


def momentum_row(bot_id: str, source: Row) -> Row:
    """A row of SQLite's trades as columns of trading.trades."""
    legacy = {"table": "trades", "id": source["id"], "mode": source["mode"]}
    row: Row = {
        "bot_id": bot_id,
        "symbol": source["symbol"],
        "side": source["side"].lower(),
        "status": "filled",
        "fees": None,
    }
    if row["side"] != source["side"]:
        legacy["side"] = source["side"]
    row["trade_id"] = f"{bot_id}_{source['trade_id'] or 'legacy_' + str(source['id'])}"
    if source["trade_id"]:
        legacy["trade_id"] = source["trade_id"]
    for name, quantum in NUMBERS.items():
        value = source[name]
        row[name] = None
        if value is not None:
            exact = Decimal(repr(value))
            row[name] = exact.quantize(quantum)
            if row[name] != exact:
                legacy[name] = value
    for name in ("entry_time", "exit_time", "created_at"):
        value = source[name]
        row[name] = None
        if value is not None:
            row[name] = datetime.fromisoformat(value).replace(tzinfo=UTC)
            legacy[name] = value
    row["exit_reason"] = source["exit_reason"]
    row["holding_time_seconds"] = source["holding_time_seconds"]
    row["metadata"] = Json({"legacy": legacy})
    return row


def shortseller_row(bot_id: str, source: Row) -> Row:
    """A row of the legacy server's trading.trades as columns of the unified one."""
    legacy = {"table": "trades", "id": source["id"]}
    side, status = source["side"].lower(), source["status"].lower().replace("canceled", "cancelled")
    if source["order_id"] is not None:
        legacy["order_id"] = source["order_id"]
    if side != source["side"]:
        legacy["side"] = source["side"]
    if source["status"] not in STATUSES:
        legacy["status"] = source["status"]
    return {
        "bot_id": bot_id,
        "trade_id": f"{bot_id}_{source['order_id'] or 'legacy_' + str(source['id'])}",
        "symbol": source["symbol"],
        "exchange_order_id": source["exchange_order_id"],
        "side": side,
        "quantity": source["quantity"],
        "entry_price": source["price"],
        "entry_time": source["timestamp"],
        "exit_time": source["executed_at"],
        "pnl_usd": source["pnl"],
        "fees": source["fees"],
        "status": status,
        "strategy": source["strategy"],
        "notes": source["notes"],
        "created_at": source["timestamp"],
        "metadata": Json({"legacy": legacy}),
    }


def read_momentum(path: str) -> list[Row]:
    """All rows of SQLite's trades, by id."""
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM trades ORDER BY id")]


def read_shortseller(connection_string: str) -> list[Row]:
    """All rows of the legacy server's trading.trades, by id."""
    with closing(psycopg2.connect(connection_string)) as connection:
        cursor = connection.cursor(cursor_factory=RealDictCursor)
        cursor.execute("SELECT * FROM trading.trades ORDER BY id")
        return [dict(row) for row in cursor.fetchall()]


def insert(rows: Sequence[Row]) -> None:
    """Insert rows of equal keys into trading.trades, in one transaction."""
    columns = list(rows[0])
    target = psycopg2.connect(
        host=os.environ["POSTGRES_HOST"],
        port=os.environ["POSTGRES_PORT"],
        dbname=os.environ["POSTGRES_DB"],
        user=os.environ["POSTGRES_USER"],
        password=os.environ["POSTGRES_PASSWORD"],
    )
    with closing(target), target, target.cursor() as cursor:
        execute_values(
            cursor,
            f"INSERT INTO trading.trades ({', '.join(columns)}) VALUES %s ON CONFLICT DO NOTHING",
            [tuple(row.values()) for row in rows],
            page_size=PAGE_ROWS,
        )


def main(argv: Sequence[str]) -> int:
    kind, bot_id, source = argv
    if kind == "momentum":
        insert([momentum_row(bot_id, row) for row in read_momentum(source)])
    else:
        insert([shortseller_row(bot_id, row) for row in read_shortseller(source)])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
