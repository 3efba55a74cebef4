"""Random legacy rows, awkward values included: each comes out equal, or is rejected whole."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from . import strategies
from .conftest import Legacy, Momentum, Target

# Many rows an example and few examples: a row costs nothing, a run a second.
EXAMPLES = settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
Row = dict[str, Any]


def rows_of(
    tables: dict[str, strategies.Rows], least: int, most: int, **unique: Callable[[Row], Any]
) -> st.SearchStrategy[dict[str, list[Row]]]:
    """Rows of all tables; more than some hundreds in all are more than hypothesis makes at once."""
    return st.fixed_dictionaries(
        {
            name: st.lists(rows, min_size=least, max_size=most, unique_by=unique.get(name))
            for name, rows in tables.items()
        }
    )


def in_utc(text: str, zone: ZoneInfo) -> datetime:
    """An ambiguous local time is the first of both; one that never was has the offset from before the change."""
    found = datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)


def note_of(text: str, zone: ZoneInfo) -> str | None:
    found = datetime.fromisoformat(text)
    if found.tzinfo:
        return None
    first, second = (found.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    assert first is not None
    assert second is not None
    return None if first == second else "ambiguous local time" if first > second else "nonexistent local time"


def same_time(legacy: Row, name: str, original: str | None, stored: datetime | None, zone: ZoneInfo) -> None:
    assert legacy.get(name) == original
    if original is None:
        return
    assert stored == in_utc(original, zone), (name, original)
    assert legacy.get(f"{name}_note") == note_of(original, zone)


def same_number(legacy: Row, name: str, original: Any, stored: Decimal | None, places: int) -> None:
    """The column holds the rounded value, and column or `legacy` the value itself."""
    if original is None:
        assert stored is None
        return
    assert stored is not None
    exact = Decimal(repr(original))
    assert stored == exact.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN), name
    kept = legacy.get(name, stored)
    assert float(kept) == float(original)
    assert math.copysign(1, float(kept)) == math.copysign(1, float(original))


def same_count(legacy: Row, name: str, original: Any, stored: int | None) -> None:
    assert stored == (None if original is None else round(original))
    assert legacy.get(name, stored) == original


def plain(value: Any) -> Any:
    return "\\x" + value.hex() if isinstance(value, bytes) else value


def same_trade(original: Row, row: Row, legacy: Row, zone: ZoneInfo) -> None:
    name = original["trade_id"] if original["trade_id"] is not None else f"legacy_{original['id']}"
    assert row["trade_id"] == f"momentum_001_{name}"
    assert (legacy.get("trade_id"), legacy["mode"]) == (original["trade_id"], plain(original["mode"]))
    assert (row["side"], legacy.get("side", row["side"])) == (original["side"].lower(), original["side"])
    assert (row["symbol"], row["exit_reason"]) == (original["symbol"], original["exit_reason"])
    for column in ("entry_price", "exit_price", "quantity", "position_size_usd", "stop_loss", "take_profit", "pnl_usd"):
        same_number(legacy, column, original[column], row[column], 8)
    for column in ("pnl_pct", "signal_strength"):
        same_number(legacy, column, original[column], row[column], 6)
    same_count(legacy, "holding_time_seconds", original["holding_time_seconds"], row["holding_time_seconds"])
    same_time(legacy, "entry_time", original["entry_time"], row["entry_time"], zone)
    same_time(legacy, "exit_time", original["exit_time"], row["exit_time"], zone)
    assert row["exit_time"] is not None or original["exit_time"] is None
    if original["created_at"] is None:
        assert row["created_at"] == row["entry_time"]


def same_day(original: Row, row: Row, legacy: Row, zone: ZoneInfo) -> None:
    assert str(row["date"]) == original["date"]
    assert (legacy["mode"], legacy.get("open_positions")) == (original["mode"], plain(original["open_positions"]))
    for column in ("starting_equity", "ending_equity", "daily_pnl"):
        same_number(legacy, column, original[column], row[column], 8)
    same_number(legacy, "daily_pnl_pct", original["daily_pnl_pct"], row["daily_pnl_pct"], 6)
    for column, name in (
        ("trades_count", "total_trades"),
        ("wins_count", "winning_trades"),
        ("losses_count", "losing_trades"),
    ):
        same_count(legacy, column, original[column], row[name])
    assert row["calculated_at"] == row["created_at"]
    if original["created_at"] is None:
        assert row["created_at"] == datetime.combine(row["date"], datetime.min.time(), UTC)


def same_event(original: Row, row: Row, legacy: Row, zone: ZoneInfo) -> None:
    words = {"warn": "WARNING", "fatal": "CRITICAL"}
    assert (row["event_type"], row["message"]) == (original["event_type"], original["message"])
    assert row["event_level"] == words.get(original["event_level"].lower(), original["event_level"].upper())
    assert legacy.get("event_level", row["event_level"]) == original["event_level"]
    assert legacy.get("details") == original["details"]
    if row["details_text"] is not None:
        assert exactly(row["details_text"]) == exactly(original["details"])
    same_time(legacy, "event_time", original["event_time"], row["event_time"], zone)


def same_risk(original: Row, row: Row, legacy: Row, zone: ZoneInfo) -> None:
    assert (row["risk_type"], row["action_taken"]) == (original["risk_type"], original["action_taken"])
    for column in ("current_value", "limit_value"):
        same_number(legacy, column, original[column], row[column], 8)
    same_time(legacy, "event_time", original["event_time"], row["event_time"], zone)


def exactly(text: str) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


MOMENTUM: dict[str, tuple[str, Callable[[Row, Row, Row, ZoneInfo], None]]] = {
    "trades": ("trading.trades", same_trade),
    "daily_snapshots": ("trading.risk_metrics", same_day),
    "system_events": ("audit.system_events", same_event),
    "risk_events": ("audit.risk_events", same_risk),
}


def replace_rows(momentum: Momentum, table: str, rows: list[Row]) -> dict[str, Row]:
    """Put the rows into the file; what SQLite made of them, by id."""
    connection: sqlite3.Connection = momentum.connection
    with connection:
        connection.execute(f"DELETE FROM {table}")
        for row in rows:
            # Unique texts may be equal once they are stored.
            connection.execute(
                f"INSERT OR IGNORE INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",
                list(row.values()),
            )
    return {str(row["id"]): dict(row) for row in connection.execute(f"SELECT * FROM {table}")}


def rejected(target: Target, table: str) -> dict[str, Row]:
    found = target.rows('SELECT source_id, "row" FROM migration.rejects WHERE source_table = %s', table)
    return {row["source_id"]: row["row"] for row in found}


def test_momentum(target: Target, momentum: Momentum) -> None:
    target.sql("003_register_momentum_bot.sql")
    seen: Counter[str] = Counter()

    @EXAMPLES
    @given(
        rows_of(
            strategies.MOMENTUM,
            10,
            25,
            trades=lambda row: row["trade_id"] or object(),
            daily_snapshots=lambda row: row["date"],
        )
    )
    def check(tables: dict[str, list[Row]]) -> None:
        name = target.bot("momentum_001")["timezone"]
        target.execute(
            "TRUNCATE trading.trades, trading.positions, trading.risk_metrics, audit.system_events, audit.risk_events"
        )
        originals = {table: replace_rows(momentum, table, rows) for table, rows in tables.items()}
        target.script("migrate_momentum_sqlite_to_postgres.py", "--full", "--accept-rejects", "1000")
        for table, (unified, compare) in MOMENTUM.items():
            rejects = rejected(target, table)
            text = ", details::text AS details_text" if table == "system_events" else ""
            migrated = {
                str(row["metadata"]["legacy"]["id"]): row for row in target.rows(f"SELECT *{text} FROM {unified}")
            }
            assert set(migrated) | set(rejects) == set(originals[table])
            assert not set(migrated) & set(rejects)
            seen[table] += len(migrated)
            for number, row in migrated.items():
                original, legacy = originals[table][number], row["metadata"]["legacy"]
                assert legacy["table"] == table
                compare(original, row, legacy, ZoneInfo(name))
                same_time(legacy, "created_at", original["created_at"], row["created_at"], ZoneInfo("UTC"))
            for number, kept in rejects.items():
                assert set(kept) == set(originals[table][number])
        migrated_trades = set(originals["trades"]) - set(rejected(target, "trades"))
        opened = {
            str(row["position_metadata"]["legacy"]["id"]) for row in target.rows("SELECT * FROM trading.positions")
        }
        assert opened == {number for number in migrated_trades if originals["trades"][number]["exit_time"] is None}
        assert target.script("reconcile.py", "--bot", "momentum_001")["ok"] is True

    for name in strategies.ZONES:
        target.bot("momentum_001")["timezone"] = name
        check()
    # An example may have rejects alone.
    assert set(+seen) == set(MOMENTUM)


# Legacy column -> unified column, where its name is another; the metadata column.
NAMES: dict[str, dict[str, str]] = {
    "trades": {"price": "entry_price", "timestamp": "entry_time", "executed_at": "exit_time", "pnl": "pnl_usd"},
    "positions": {"avg_price": "avg_entry_price"},
    "market_data": {},
    "signals": {},
    "account_balance": {},
    "risk_metrics": {"total_pnl": "daily_pnl"},
}
MAPPED: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("trades", "side"): str.lower,
    ("trades", "status"): lambda v: {"canceled": "cancelled"}.get(v.lower(), v.lower()),
    ("positions", "side"): lambda v: {"buy": "long", "sell": "short"}.get(v.lower(), v.lower()),
    ("positions", "status"): str.lower,
    ("signals", "signal_type"): lambda v: {"close": "close_short"}.get(v.lower(), v.lower()),
}


def insert_all(legacy: Legacy, tables: dict[str, list[Row]]) -> dict[str, dict[int, Row]]:
    """Replace all rows of the source; the rows by id. A signal's execution_id is the place of a trade until then."""
    found: dict[str, dict[int, Row]] = {}
    with closing(legacy.server.connect(legacy.database, "trading_user")) as connection, connection:
        cursor = connection.cursor()
        cursor.execute(f"TRUNCATE {', '.join(f'trading.{table}' for table in tables)} CASCADE")
        # Trades before the signals that name them.
        for table in strategies.SHORTSELLER:
            for row in tables[table]:
                if row.get("execution_id") is not None:
                    places = list(found["trades"])
                    row["execution_id"] = places[row["execution_id"]] if row["execution_id"] < len(places) else None
                columns, marks = ", ".join(row), ", ".join(["%s"] * len(row))
                cursor.execute(
                    f"INSERT INTO trading.{table} ({columns}) VALUES ({marks}) RETURNING id", list(row.values())
                )
                (number,) = cursor.fetchone() or (0,)
                found.setdefault(table, {})[number] = row
    return found


def same_row(table: str, number: int, original: Row, row: Row, trades: dict[int, str]) -> None:
    kept = row["position_metadata" if table == "positions" else "metadata"]["legacy"]
    assert kept["table"] == table
    for column, value in original.items():
        if column == "order_id":
            assert (row["trade_id"], kept.get(column)) == (f"shortseller_001_{value or f'legacy_{number}'}", value)
        elif column == "execution_id":
            assert (row["execution_trade_id"], kept.get(column)) == (trades.get(value), value)
        elif column == "executed":
            assert (row[column], kept.get(column)) == (bool(value), "null" if value is None else None)
        elif column == "indicators":
            assert (row["indicators_text"] is None) == (value is None)
            assert value is None or exactly(row["indicators_text"]) == exactly(value)
        elif column == "created_at" and value is None:
            assert row[column] == original["timestamp"]
        else:
            convert = MAPPED.get((table, column))
            stored = row[NAMES[table].get(column, column)]
            assert stored == (convert(value) if convert else value), (table, column)
            if convert:
                assert kept.get(column, stored) == value
            else:
                assert column not in kept


def test_shortseller(target: Target, legacy: Legacy) -> None:
    seen: Counter[str] = Counter()

    @EXAMPLES
    @given(
        rows_of(
            strategies.SHORTSELLER,
            8,
            14,
            market_data=lambda row: (row["symbol"], row["timestamp"], row["interval"]),
            risk_metrics=lambda row: row["date"],
        ),
        st.sampled_from(strategies.ZONES),
    )
    def check(tables: dict[str, list[Row]], zone: str) -> None:
        target.bot("shortseller_001")["timezone"] = zone
        originals = insert_all(legacy, tables)
        target.execute(f"TRUNCATE {', '.join(f'trading.{table}' for table in tables)}")
        target.migrate_shortseller("--full", accepted_rejects=1000)
        trades = {
            row["metadata"]["legacy"]["id"]: row["trade_id"] for row in target.rows("SELECT * FROM trading.trades")
        }
        for table in tables:
            rejects = {int(number): row for number, row in rejected(target, table).items()}
            text = ", indicators::text AS indicators_text" if table == "signals" else ""
            found = target.rows(f"SELECT *{text} FROM trading.{table}")
            migrated = {
                row["position_metadata" if table == "positions" else "metadata"]["legacy"]["id"]: row for row in found
            }
            assert len(found) == len(migrated)
            assert set(migrated) | set(rejects) == set(originals[table])
            assert not set(migrated) & set(rejects)
            seen[table] += len(migrated)
            for number, row in migrated.items():
                same_row(table, number, originals[table][number], row, trades)
            for number, kept in rejects.items():
                assert set(kept) >= {name for name, value in originals[table][number].items() if value is not None}
        assert target.script("reconcile.py", "--bot", "shortseller_001")["ok"] is True

    check()
    assert set(+seen) == set(strategies.SHORTSELLER)


def test_clock_changes_in_each_zone(target: Target, momentum: Momentum) -> None:
    """Every local time around a change, in a zone whose clocks change so, and the notes of the run."""
    target.sql("003_register_momentum_bot.sql")
    for name in strategies.ZONES:
        zone = ZoneInfo(name)
        target.bot("momentum_001")["timezone"] = name
        target.execute("TRUNCATE audit.risk_events")
        originals = replace_rows(
            momentum, "risk_events", [{"event_time": text, "risk_type": "R"} for text in strategies.CHANGES]
        )
        result = target.script("migrate_momentum_sqlite_to_postgres.py", "--full")
        rows = target.rows("SELECT * FROM audit.risk_events")
        assert len(rows) == len(originals)
        for row in rows:
            legacy = row["metadata"]["legacy"]
            same_time(legacy, "event_time", originals[str(legacy["id"])]["event_time"], row["event_time"], zone)
        notes = [note_of(text, zone) for text in strategies.CHANGES]
        found = result["bots"][0]
        assert found["ambiguous_times"] == notes.count("ambiguous local time")
        assert found["nonexistent_times"] == notes.count("nonexistent local time")
        assert (found["ambiguous_times"], found["nonexistent_times"]) > (0, 0) or name == "UTC"
        assert target.script("reconcile.py", "--bot", "momentum_001")["ok"] is True
