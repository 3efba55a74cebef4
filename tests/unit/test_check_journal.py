"""The comparison of the bots' journals with trading_db, without a database."""

from __future__ import annotations

import importlib.util
import json
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("check_journal", ROOT / "tests/legacy/check_journal.py")
assert _spec is not None
assert _spec.loader is not None
check_journal = importlib.util.module_from_spec(_spec)
# A dataclass looks its module up.
sys.modules["check_journal"] = check_journal
_spec.loader.exec_module(check_journal)

BERLIN = ZoneInfo("Europe/Berlin")
MOMENTUM = "momentum_001"
SHORTSELLER = "shortseller_001"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def line(table: str, row: dict[str, Any], at: str = "2026-01-01T12:00:00+00:00", **more: Any) -> str:
    entry = {"seq": 1, "at": at, "table": table, "id": row["id"], "op": "insert", "row": row, **more}
    return json.dumps(entry) + "\n"


def entry(table: str, row: dict[str, Any], bot: str = MOMENTUM) -> Any:
    return check_journal.parse_journal(bot, line(table, row))[0]


RISK_EVENT = {
    "id": 7,
    "event_time": "2026-01-01 13:00:00.123456",
    "risk_type": "DRAWDOWN",
    "current_value": 0.1 + 0.2,
    "limit_value": 5.0,
    "action_taken": None,
    "created_at": "2026-01-01 12:00:00",
}
UNIFIED_RISK_EVENT = {
    "event_time": utc("2026-01-01T12:00:00.123456"),
    "risk_type": "DRAWDOWN",
    "current_value": Decimal("0.30000000"),
    "limit_value": Decimal("5.00000000"),
    "action_taken": None,
    "created_at": utc("2026-01-01T12:00:00"),
    "metadata": {
        "legacy": {
            "table": "risk_events",
            "id": 7,
            "event_time": "2026-01-01 13:00:00.123456",
            "current_value": Decimal("0.30000000000000004"),
        }
    },
}
KEY = (MOMENTUM, "risk_events", 7)
CONTEXTS = {MOMENTUM: check_journal.Context(MOMENTUM, "momentum", BERLIN)}


def versions(*values: float) -> list[Any]:
    return [entry("risk_events", RISK_EVENT | {"current_value": value}) for value in values]


def compare(found: dict[str, Any] | None, *values: float) -> tuple[Any, list[str]]:
    rows = {} if found is None else {KEY: UNIFIED_RISK_EVENT | found}
    tallies, failures = check_journal.compare({KEY: versions(*values)}, rows, CONTEXTS)
    return tallies[MOMENTUM, "risk_events"], failures


def test_a_row_with_equal_values_passes() -> None:
    tally, failures = compare({}, 0.1 + 0.2)
    assert (tally.due, tally.equal, failures) == (1, 1, [])


def test_a_later_journaled_version_passes() -> None:
    tally, failures = compare({"current_value": Decimal("9.00000000")}, 0.3, 4.0, 9.0)
    assert (tally.later, failures) == (1, [])


def test_a_rounded_number_has_to_be_kept() -> None:
    _, failures = compare({"metadata": {"legacy": {"event_time": "2026-01-01 13:00:00.123456"}}}, 0.1 + 0.2)
    assert "legacy.current_value is None, expected Decimal('0.30000000000000004')" in failures[0]


def test_a_missing_row_is_named() -> None:
    tally, failures = compare(None, 0.3)
    assert tally.missing == 1
    assert failures == ["momentum_001 risk_events 7 (journal line 1) -> audit.risk_events: missing"]


def test_a_different_value_is_named_with_both_values() -> None:
    tally, failures = compare({"current_value": Decimal("0.30000001")}, 0.3, 4.0)
    assert tally.different == 1
    assert "current_value is Decimal('0.30000001'), expected 0.30000000" in failures[0]


def test_a_time_read_in_the_wrong_zone_is_different() -> None:
    _, failures = compare({"event_time": utc("2026-01-01T13:00:00.123456")}, 0.3)
    assert "event_time" in failures[0]


def test_only_the_last_version_before_the_snapshot_is_due() -> None:
    text = "".join(
        line("trades", {"id": 1, "pnl": pnl}, at)
        for pnl, at in [
            ("1", "2026-01-01T12:00:01+00:00"),
            ("2", "2026-01-01T12:00:02+00:00"),
            ("3", "2026-01-01T12:00:03+00:00"),
        ]
    ) + line("trades", {"id": 2, "pnl": "1"}, "2026-01-01T12:00:04+00:00")
    due = check_journal.due_versions(check_journal.parse_journal(SHORTSELLER, text), utc("2026-01-01T12:00:02.500000"))
    assert list(due) == [(SHORTSELLER, "trades", 1)]
    assert [version.row["pnl"] for version in due[SHORTSELLER, "trades", 1]] == ["2", "3"]


def test_a_replaced_snapshot_is_the_same_day() -> None:
    first = entry("daily_snapshots", {"id": 3, "date": "2026-01-01"})
    replaced = entry("daily_snapshots", {"id": 4, "date": "2026-01-01"})
    assert first.key == replaced.key


def test_a_cut_off_last_line_is_no_entry() -> None:
    text = line("trades", {"id": 1}) + '{"seq": 2, "at": "2026'
    assert len(check_journal.parse_journal(SHORTSELLER, text)) == 1


def test_a_broken_line_in_the_middle_is_an_error() -> None:
    with pytest.raises(check_journal.JournalError, match="shortseller_001: line 1"):
        check_journal.parse_journal(SHORTSELLER, '{"seq": 2\n' + line("trades", {"id": 1}))


@pytest.mark.parametrize(
    ("original", "stored"),
    [
        ("0.30000000000000004", "0.3"),
        ("1E-5", "0.00001000"),
        ("2.000000005", "2.00000000"),
        ("2.000000015", "2.00000002"),
        ("-0.0", "0"),
        (5, "5.00000000"),
    ],
)
def test_money_is_rounded_half_even_to_eight_places(original: str | int, stored: str) -> None:
    assert check_journal.number(original).matches(Decimal(stored))


def test_money_rounded_otherwise_is_different() -> None:
    assert not check_journal.number("2.000000005").matches(Decimal("2.00000001"))
    assert not check_journal.number("1").matches(None)
    assert not check_journal.number(None).matches(Decimal(0))


def test_the_hour_that_a_zone_repeats_may_be_read_either_way() -> None:
    twice = check_journal.moment("2025-10-26 02:30:00", BERLIN)
    assert twice.matches(utc("2025-10-26T00:30:00"))
    assert twice.matches(utc("2025-10-26T01:30:00"))
    assert not twice.matches(utc("2025-10-26T02:30:00"))


@pytest.mark.parametrize("text", ['{"value": NaN}', "not json", "", '{"cut": '])
def test_details_that_are_no_json_stand_in_the_metadata(text: str) -> None:
    assert check_journal.details(text).matches((None, text))
    assert not check_journal.details(text).matches((None, None))


def test_details_that_are_json_stand_in_the_column() -> None:
    expected = check_journal.details('{"latency_ms": 12.5}')
    assert expected.matches(({"latency_ms": Decimal("12.5")}, None))
    assert not expected.matches(({"latency_ms": Decimal("12.4")}, None))
    assert check_journal.details(None).matches((None, None))


def test_a_trade_without_an_id_is_known_by_its_row() -> None:
    assert check_journal.trade_id(SHORTSELLER, None, 12) == "shortseller_001_legacy_12"
    assert check_journal.trade_id(SHORTSELLER, "abc", 12) == "shortseller_001_abc"


def test_a_signal_names_the_trade_that_its_execution_became() -> None:
    row = {
        "id": 1,
        "symbol": "BTCUSDT",
        "signal_type": "close",
        "strength": "0.5000",
        "price": "1",
        "timestamp": "2026-01-01T00:00:00+00:00",
        "strategy": "ema",
        "indicators": None,
        "executed": True,
        "execution_id": 12,
    }
    context = check_journal.Context(SHORTSELLER, "shortseller", trade_ids={12: "shortseller_001_abc"})
    expected = check_journal.shortseller_signal(row, context)
    assert expected["signal_type"].matches("close_short")
    assert expected["execution_trade_id"].matches("shortseller_001_abc")
    assert not expected["execution_trade_id"].matches(None)


def test_a_day_is_found_by_its_date() -> None:
    expected = check_journal.day("2026-01-01")
    assert expected.matches(date(2026, 1, 1))
