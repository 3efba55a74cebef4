"""Random legacy rows, awkward values included: each comes out equal, or is rejected whole."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .conftest import Legacy, Momentum, Target

# Many rows an example and few examples: a row costs nothing, a run a second.
EXAMPLES = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ANY_TEXT = TEXT | st.sampled_from(["", "\\N", "NULL", "a\tb\nc\\d\r", "zero\0byte", "Größe 📈"])
REAL = (
    st.floats(-1e6, 1e6)
    | st.floats(allow_nan=False)
    | st.sampled_from([0.1 + 0.2, 1e-05, 1 / 3, 2.000000005, 0.000000015, -0.0, 5e-324, 1e12, 999999999999.99, 9999.9999999])
    | st.integers(-(10**9), 10**9)
)
LOCAL = st.datetimes(datetime(2000, 1, 1), datetime(2030, 1, 1)).map(str) | st.sampled_from(
    ["2025-10-26 02:30:00", "2025-03-30 02:30:00", "2025-06-01T12:00:00.5+02:00"]
)
UTC_TIME = st.none() | st.datetimes(datetime(2000, 1, 1), datetime(2030, 1, 1)).map(lambda d: str(d.replace(microsecond=0)))
SIDE = st.sampled_from(["Buy", "SELL", "long", "Short", "buy", "sideways"])
TRADE = st.fixed_dictionaries(
    {
        "trade_id": st.none() | st.integers(0, 10**12).map(str),
        "mode": st.sampled_from(["live", "demo"]),
        "symbol": ANY_TEXT,
        "side": SIDE,
        "entry_time": LOCAL,
        "entry_price": REAL,
        "exit_time": st.none() | LOCAL,
        "exit_price": st.none() | REAL,
        "quantity": REAL,
        "position_size_usd": REAL | st.sampled_from(["text", b"blob"]),
        "stop_loss": st.none() | REAL,
        "take_profit": st.none() | REAL,
        "pnl_usd": st.none() | REAL,
        "pnl_pct": st.none() | st.floats(-200, 200) | REAL,
        "exit_reason": st.none() | ANY_TEXT,
        "holding_time_seconds": st.none() | st.integers(0, 10**7) | st.floats(0, 1e7),
        "signal_strength": st.none() | st.floats(0, 1),
        "created_at": UTC_TIME,
    }
)
EVENT = st.fixed_dictionaries(
    {
        "event_time": LOCAL,
        "event_type": ANY_TEXT,
        "event_level": st.sampled_from(["INFO", "warning", "Error", "LOUD"]),
        "message": st.none() | ANY_TEXT,
        "details": st.none() | ANY_TEXT | st.recursive(st.none() | st.floats() | TEXT, st.lists, max_leaves=5).map(json.dumps),
        "created_at": UTC_TIME,
    }
)
ZONE = ZoneInfo("Europe/Berlin")


def in_utc(text: str, zone: Any) -> datetime:
    found = datetime.fromisoformat(text)
    return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)


def same_number(legacy: dict[str, Any], name: str, original: Any, stored: Decimal | None, places: int) -> None:
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


def replace_rows(momentum: Momentum, table: str, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Put the rows into the file; what SQLite made of them, by id."""
    connection: sqlite3.Connection = momentum.connection
    with connection:
        connection.execute(f"DELETE FROM {table}")
    for row in rows:
        momentum.insert(table, **row)
    return {str(row["id"]): dict(row) for row in connection.execute(f"SELECT * FROM {table}")}


def rejected(target: Target, table: str) -> dict[str, dict[str, Any]]:
    found = target.rows("SELECT source_id, \"row\" FROM migration.rejects WHERE source_table = %s", table)
    return {row["source_id"]: row["row"] for row in found}


def test_momentum_trades(target: Target, momentum: Momentum) -> None:
    target.bot("momentum_001")["timezone"] = "Europe/Berlin"
    target.sql("003_register_momentum_bot.sql")

    @EXAMPLES
    @given(st.lists(TRADE, min_size=30, max_size=80, unique_by=lambda row: row["trade_id"] or object()))
    def check(rows: list[dict[str, Any]]) -> None:
        target.execute("DELETE FROM trading.trades")
        target.execute("DELETE FROM trading.positions")
        originals = replace_rows(momentum, "trades", rows)
        target.script("migrate_momentum_sqlite_to_postgres.py", "--accept-rejects", "1000")
        rejects = rejected(target, "trades")
        migrated = {row["metadata"]["legacy"]["id"]: row for row in target.rows("SELECT * FROM trading.trades")}
        assert {str(number) for number in migrated} | set(rejects) == set(originals)
        assert not {str(number) for number in migrated} & set(rejects)
        for number, row in migrated.items():
            compare_trade(originals[str(number)], row)
        for number, kept in rejects.items():
            assert set(kept) == set(originals[number])
        opened = {str(row["position_metadata"]["legacy"]["id"]) for row in target.rows("SELECT * FROM trading.positions")}
        assert opened == {str(n) for n in migrated if originals[str(n)]["exit_time"] is None}
        assert target.script("verify_migration.py", "--bot", "momentum_001")["ok"] is True

    check()


def compare_trade(original: dict[str, Any], row: dict[str, Any]) -> None:
    legacy = row["metadata"]["legacy"]
    name = original["trade_id"] if original["trade_id"] is not None else f"legacy_{original['id']}"
    assert row["trade_id"] == f"momentum_001_{name}"
    assert (legacy.get("trade_id"), legacy["mode"]) == (original["trade_id"], original["mode"])
    assert (row["side"], legacy.get("side", row["side"])) == (original["side"].lower(), original["side"])
    assert (row["symbol"], row["exit_reason"]) == (original["symbol"], original["exit_reason"])
    for column in ("entry_price", "exit_price", "quantity", "position_size_usd", "stop_loss", "take_profit", "pnl_usd"):
        same_number(legacy, column, original[column], row[column], 8)
    for column in ("pnl_pct", "signal_strength"):
        same_number(legacy, column, original[column], row[column], 6)
    seconds = original["holding_time_seconds"]
    assert legacy.get("holding_time_seconds", row["holding_time_seconds"]) == seconds
    for column, zone in (("entry_time", ZONE), ("exit_time", ZONE), ("created_at", UTC)):
        assert legacy.get(column) == original[column]
        if original[column] is not None:
            assert row[column] == in_utc(original[column], zone)


def test_momentum_events(target: Target, momentum: Momentum) -> None:
    target.sql("003_register_momentum_bot.sql")

    @EXAMPLES
    @given(st.lists(EVENT, min_size=30, max_size=80))
    def check(rows: list[dict[str, Any]]) -> None:
        target.execute("DELETE FROM audit.system_events")
        originals = replace_rows(momentum, "system_events", rows)
        target.script("migrate_momentum_sqlite_to_postgres.py", "--accept-rejects", "1000")
        rejects = rejected(target, "system_events")
        migrated = {row["metadata"]["legacy"]["id"]: row for row in target.rows("SELECT *, details::text AS json FROM audit.system_events")}
        assert {str(number) for number in migrated} | set(rejects) == set(originals)
        for number, row in migrated.items():
            original, legacy = originals[str(number)], row["metadata"]["legacy"]
            assert (row["event_type"], row["message"]) == (original["event_type"], original["message"])
            assert (row["event_level"], legacy.get("event_level", row["event_level"])) == (original["event_level"].upper(), original["event_level"])
            assert legacy.get("details") == original["details"]
            if row["json"] is not None:
                found, expected = (json.loads(text, parse_float=Decimal, parse_int=Decimal) for text in (row["json"], original["details"]))
                assert found == expected
            assert row["event_time"] == in_utc(original["event_time"], UTC)
        assert target.script("verify_migration.py", "--bot", "momentum_001")["ok"] is True

    check()


MONEY = st.decimals(Decimal(-(10**12)) + 1, Decimal(10**12) - 1, places=8)
AMOUNT = st.decimals(0, Decimal(10**12) - 1, places=8)
INSTANT = st.datetimes(datetime(2000, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
SHORT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SHORTSELLER: dict[str, tuple[dict[str, st.SearchStrategy[Any]], dict[str, str], str]] = {
    "trades": (
        {
            "symbol": SHORT, "side": SIDE, "quantity": AMOUNT, "price": AMOUNT, "order_id": st.none() | st.uuids().map(str),
            "exchange_order_id": st.none() | SHORT, "status": st.sampled_from(["FILLED", "canceled", "pending", "odd"]),
            "strategy": SHORT, "timestamp": INSTANT, "executed_at": st.none() | INSTANT, "pnl": st.none() | MONEY,
            "fees": st.none() | MONEY, "notes": st.none() | TEXT,
        },
        {"price": "entry_price", "timestamp": "entry_time", "executed_at": "exit_time", "pnl": "pnl_usd"},
        "metadata",
    ),
    "positions": (
        {
            "symbol": SHORT, "side": SIDE, "size": AMOUNT, "avg_price": AMOUNT, "unrealized_pnl": st.none() | MONEY,
            "realized_pnl": st.none() | MONEY, "status": st.sampled_from(["open", "Closed", "gone"]), "opened_at": INSTANT,
            "closed_at": st.none() | INSTANT, "stop_loss": st.none() | MONEY, "take_profit": st.none() | MONEY,
            "leverage": st.none() | st.integers(0, 20000),
        },
        {"avg_price": "avg_entry_price"},
        "position_metadata",
    ),
    "signals": (
        {
            "symbol": SHORT, "signal_type": st.sampled_from(["long", "SHORT", "close", "buy"]),
            "strength": st.none() | st.decimals(0, Decimal("1.2"), places=4), "price": MONEY, "timestamp": INSTANT,
            "strategy": SHORT, "indicators": st.none() | st.just('{"ema": 1.50, "note": "✂"}'), "executed": st.none() | st.booleans(),
        },
        {},
        "metadata",
    ),
}  # fmt: skip
MAPPED: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("trades", "side"): str.lower,
    ("trades", "status"): lambda v: {"canceled": "cancelled"}.get(v.lower(), v.lower()),
    ("positions", "side"): lambda v: {"buy": "long", "sell": "short"}.get(v.lower(), v.lower()),
    ("positions", "status"): str.lower,
    ("signals", "signal_type"): lambda v: {"close": "close_short"}.get(v.lower(), v.lower()),
    ("signals", "executed"): bool,
    ("signals", "indicators"): lambda v: v and json.loads(v),
}


def test_shortseller(target: Target, legacy: Legacy) -> None:
    rows_of = st.fixed_dictionaries(
        {table: st.lists(st.fixed_dictionaries(columns), min_size=20, max_size=40) for table, (columns, _, _) in SHORTSELLER.items()}
    )

    @EXAMPLES
    @given(rows_of)
    def check(tables: dict[str, list[dict[str, Any]]]) -> None:
        for table in SHORTSELLER:
            legacy.execute(f"TRUNCATE trading.{table} CASCADE")
        target.execute("TRUNCATE trading.trades, trading.positions, trading.signals, trading.account_balance")
        originals = {t: {legacy.insert(t, **row): row for row in rows} for t, rows in tables.items()}
        target.migrate_shortseller(accepted_rejects=1000)
        for table, (columns, names, metadata) in SHORTSELLER.items():
            rejects = rejected(target, table)
            migrated = {row[metadata]["legacy"]["id"]: row for row in target.rows(f"SELECT * FROM trading.{table}")}
            assert set(migrated) | {int(n) for n in rejects} == set(originals[table])
            assert not set(migrated) & {int(n) for n in rejects}
            for number, row in migrated.items():
                kept = row[metadata]["legacy"]
                for column in columns:
                    value = originals[table][number][column]
                    if column == "order_id":
                        name = value or f"legacy_{number}"
                        assert (row["trade_id"], kept.get(column)) == (f"shortseller_001_{name}", value)
                        continue
                    convert = MAPPED.get((table, column))
                    stored = row[names.get(column, column)]
                    assert stored == (convert(value) if convert else value), (table, column)
                    if convert and isinstance(value, str) and column != "indicators" and stored != value:
                        assert kept[column] == value
        assert target.script("verify_migration.py", "--bot", "shortseller_001")["ok"] is True

    check()
