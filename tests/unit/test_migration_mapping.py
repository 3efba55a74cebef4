"""Whole rows of the Momentum bot, without a database."""

from __future__ import annotations

import json
import sys
from datetime import UTC
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "files/migrations"))
from migration_engine import momentum_mapping, settings
from migration_engine.errors import UsageError
from migration_engine.momentum_mapping import Mapper, rejected_statistics

TRADE: dict[str, Any] = {
    "id": 7,
    "trade_id": "t",
    "mode": "live",
    "symbol": "BTCUSDT",
    "side": "Buy",
    "entry_time": "2025-06-01 12:00:00",
    "entry_price": 1.5,
    "quantity": 2.0,
    "position_size_usd": 3.0,
}


def stage(table: str, row: dict[str, Any], extra: tuple[str, ...] = ()) -> tuple[Mapper, dict[str, Any]]:
    mapper = Mapper(table, "momentum_001", UTC, extra)
    staged = mapper.stage([row.get(name) for name in mapper.source_columns])
    return mapper, dict(zip(mapper.staging_columns, staged, strict=True))


def test_the_mapping_knows_every_legacy_column() -> None:
    for table, columns in settings.legacy_tables("momentum").items():
        assert ["id", *(field.source for field in momentum_mapping.TABLES[table])] == columns


def test_every_column_is_staged_or_kept() -> None:
    for table, fields in momentum_mapping.TABLES.items():
        for field in fields:
            assert field.target or field.convert is momentum_mapping._kept, (table, field.source)


def test_missing_created_at_is_the_entry() -> None:
    _, staged = stage("trades", TRADE)
    assert staged["created_at"] == staged["entry_time"] == "2025-06-01T12:00:00+00:00"
    assert "created_at" not in json.loads(staged["legacy"])


def test_a_rejected_row_is_kept_whole_with_every_reason() -> None:
    row = TRADE | {"side": "up", "entry_price": None, "pnl_usd": float("inf"), "exit_reason": b"\xff", "symbol": "a\0b"}
    mapper, staged = stage("trades", row)
    assert mapper.rejected == 1
    assert staged["legacy"] is None
    for reason in ("side: unknown side 'up'", "entry_price: is missing", "pnl_usd: inf is not", "exit_reason: b'\\xff'", "zero byte"):
        assert reason in staged["_reject"]
    original = json.loads(staged["_row"])
    assert set(original) == set(mapper.source_columns)
    assert (original["pnl_usd"], original["exit_reason"], original["symbol"]) == ("inf", "\\xff", "a\\0b")


def test_statistics_count_rejected_rows_as_far_as_they_convert() -> None:
    mapper = Mapper("trades", "momentum_001", UTC)
    rows = [TRADE, TRADE | {"id": 8, "side": "up", "quantity": 0.125, "entry_time": "2025-07-01 12:00:00"}]
    staged = [mapper.stage([row.get(name) for name in mapper.source_columns]) for row in rows]
    statistics = mapper.statistics()
    assert statistics.row_count == 2
    assert statistics.sums["quantity"] == Decimal("2.125")
    assert statistics.maxima["entry_time"] == "2025-07-01T12:00:00+00:00"
    reject = staged[1][mapper.staging_columns.index("_row")]
    assert reject is not None
    rest = statistics.minus(rejected_statistics("trades", "momentum_001", UTC, [json.loads(reject)]))
    assert (rest.row_count, rest.sums["quantity"], rest.sums["entry_price"]) == (1, Decimal(2), Decimal("1.5"))


def test_unknown_columns_are_kept() -> None:
    _, staged = stage("trades", TRADE | {"broker": "Alpha", "raw": b"\x01"}, ("broker", "raw"))
    legacy = json.loads(staged["legacy"])
    assert (legacy["broker"], legacy["raw"]) == ("Alpha", "\\x01")


def test_negative_zero_is_kept() -> None:
    _, staged = stage("trades", TRADE | {"pnl_usd": -0.0})
    assert json.loads(staged["legacy"])["pnl_usd"] == "-0.0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is not a list of bots"),
        ("nonsense", "is not a list of bots"),
        ('[{"bot_type": "momentum"}]', "is not a list of bots"),
        ('[{"bot_id": "x", "bot_type": "grid"}]', "x has bot_type grid; expected shortseller, momentum, lxalgo"),
    ],
)
def test_unusable_bots(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings.parse_bots(text)


def test_one_bot_of_a_type() -> None:
    bots = settings.parse_bots('[{"bot_id": "a", "bot_type": "momentum"}, {"bot_id": "b", "bot_type": "momentum"}]')
    assert [b.bot_id for b in bots.of_type("momentum", None)] == ["a", "b"]
    assert [b.bot_id for b in bots.of_type("momentum", "b")] == ["b"]
    with pytest.raises(UsageError, match="expected one of a, b"):
        bots.of_type("momentum", "c")
