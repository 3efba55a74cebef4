"""Whole rows of the Momentum bot, without a database."""

from __future__ import annotations

import json
import sys
from datetime import UTC
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "files/migrations"))
from migration_engine import momentum_columns, momentum_mapping, values
from migration_engine import settings as inventory
from migration_engine.errors import UsageError
from migration_engine.momentum_mapping import Mapper, Reject, row_hashes

from tests.database import strategies

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
    # Without it a row is none that a batch converts on the spot.
    "created_at": "2025-06-01 12:00:01",
}


def unescaped(field: str) -> str | None:
    """What COPY reads from a field."""
    if field == "\\N":
        return None
    for mark, text in (("\\\\", "\0"), ("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t"), ("\0", "\\")):
        field = field.replace(mark, text)
    return field


def convert(
    table: str, row: dict[str, Any], extra: tuple[str, ...] = (), zone: str = "UTC"
) -> dict[str, str | None] | Reject:
    """The unified columns of a row, or its reject; by columns and by row."""
    mapper = Mapper(table, "momentum_001", values.find_zone(zone), extra)
    source = [row.get(name) for name in mapper.source_columns]
    found = mapper.convert([source])
    result = mapper.convert_row(source)
    if isinstance(result, Reject):
        assert found.rejects == [result]
        return result
    assert (found.ids, found.lines, found.hashes) == (
        [row["id"]],
        [result[0].encode()],
        row_hashes([result[1].encode()]),
    )
    return dict(zip(mapper.target_columns, map(unescaped, result[0].split("\t")), strict=True))


def stored(
    table: str, row: dict[str, Any], extra: tuple[str, ...] = (), zone: str = "UTC"
) -> tuple[dict[str, str | None], dict[str, Any]]:
    """The unified columns and the `legacy` of a row that converts."""
    found = convert(table, row, extra, zone)
    assert isinstance(found, dict), found
    legacy: dict[str, Any] = json.loads(found["metadata"] or "")["legacy"]
    return found, legacy


def test_the_mapping_knows_every_legacy_column() -> None:
    for table, columns in inventory.legacy_tables("momentum").items():
        assert ["id", *(field.source for field in momentum_mapping.TABLES[table].fields)] == columns


def test_every_column_is_stored_or_kept() -> None:
    for table, spec in momentum_mapping.TABLES.items():
        for field in spec.fields:
            assert field.targets or isinstance(field.kind, momentum_columns.Kept), (table, field.source)


def test_missing_created_at_is_the_entry() -> None:
    row, legacy = stored("trades", TRADE | {"created_at": None}, zone="Europe/Berlin")
    assert (row["entry_time"], row["created_at"]) == ("2025-06-01 12:00:00+02", "2025-06-01 10:00:00+00")
    assert "created_at" not in legacy
    row, _ = stored("daily_snapshots", {"id": 1, "date": "2025-06-01", "mode": "live"})
    assert row["created_at"] == row["calculated_at"] == "2025-06-01 00:00:00+00"


@pytest.mark.parametrize("text", ["2025-06-01 12:00:00.5", "2025-06-01 12:00:00.12", "2025-06-01 12:00:00.123400"])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
def test_missing_created_at_has_the_fraction_of_the_entry(text: str, zone: str) -> None:
    row, _ = stored("trades", TRADE | {"entry_time": text, "created_at": None}, zone=zone)
    expected, _ = values.moment(text, values.find_zone(zone))
    assert values.moment(row["created_at"], UTC)[0] == expected


def test_the_engine_reads_no_short_fraction_by_fromisoformat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.10, which the host may have, refuses a fraction that has neither three nor six digits."""
    import datetime as module
    import re

    class Strict(module.datetime):
        @classmethod
        def fromisoformat(cls, text: str) -> Any:
            assert not re.search(r"\.(\d{1,2}|\d{4,5})(?!\d)", text), text
            return module.datetime.fromisoformat(text)

    monkeypatch.setattr(momentum_columns, "datetime", Strict)
    row, _ = stored("trades", TRADE | {"entry_time": "2025-06-01 12:00:00.500000", "created_at": None})
    assert row["created_at"] == "2025-06-01 12:00:00.5+00"


@pytest.mark.parametrize("zone", strategies.ZONES + ["America/New_York"])
@pytest.mark.parametrize(
    "text",
    [
        "9999-12-31 23:59:59",
        "9999-12-31 23:59:59+00:00",
        "9999-12-31 12:00:00",
        "0001-01-01 00:00:00",
        "0001-01-01 00:00:00Z",
    ],
)
def test_the_ends_of_time_stop_no_run(zone: str, text: str) -> None:
    for column in ("entry_time", "exit_time", "created_at"):
        found = convert("trades", TRADE | {column: text}, zone=zone)
        if isinstance(found, Reject):
            assert f"{column}: '{text}' is not a time" in found.reason


def test_a_rejected_row_is_kept_whole_with_every_reason() -> None:
    row = TRADE | {"side": "up", "entry_price": None, "pnl_usd": float("inf"), "exit_reason": b"\xff", "symbol": "a\0b"}
    found = convert("trades", row)
    assert isinstance(found, Reject)
    for reason in (
        "side: unknown side 'up'",
        "entry_price: is missing",
        "pnl_usd: inf is not",
        "exit_reason: b'\\xff'",
        "zero byte",
    ):
        assert reason in found.reason
    original = json.loads(found.row)
    assert set(original) == {"id", *(field.source for field in momentum_mapping.TABLES["trades"].fields)}
    assert (original["pnl_usd"], original["exit_reason"], original["symbol"]) == ("inf", "\\xff", "a\\0b")


def test_unknown_columns_are_kept() -> None:
    _, legacy = stored(
        "trades", TRADE | {"broker": "Alpha", "raw": b"\x01", "note": "a\tb"}, ("broker", "raw", "note", "empty")
    )
    assert (legacy["broker"], legacy["raw"], legacy["note"]) == ("Alpha", "\\x01", "a\tb")
    assert "empty" not in legacy


@pytest.mark.parametrize("name", ["table", "entry_time_note"])
def test_an_unknown_column_whose_name_is_taken_is_not_lost(name: str) -> None:
    _, legacy = stored("trades", TRADE | {name: "precious"}, (name,))
    assert "precious" in legacy.values()


def test_negative_zero_is_kept() -> None:
    row, legacy = stored("trades", TRADE | {"pnl_usd": -0.0, "stop_loss": -1e-9})
    assert (row["pnl_usd"], legacy["pnl_usd"]) == ("0.00000000", "-0.0")
    assert (row["stop_loss"], legacy["stop_loss"]) == ("0.00000000", -1e-9)


@pytest.mark.parametrize(
    ("zone", "text", "expected", "note"),
    [
        ("Europe/Berlin", "2025-03-30 02:30:00", "2025-03-30 03:30:00+02", "nonexistent"),
        ("Europe/Berlin", "2025-10-26 02:30:00", "2025-10-26 02:30:00+02", "ambiguous"),
        ("Europe/Berlin", "2025-10-26 03:00:00", "2025-10-26 03:00:00+01", None),
        ("Australia/Lord_Howe", "2025-10-05 02:15:00", "2025-10-05 02:45:00+11", "nonexistent"),
        ("Australia/Lord_Howe", "2025-10-05 02:30:00", "2025-10-05 02:30:00+11", None),
        ("Australia/Lord_Howe", "2025-04-06 01:45:00", "2025-04-06 01:45:00+11", "ambiguous"),
        ("Australia/Lord_Howe", "2025-04-06 01:15:00", "2025-04-06 01:15:00+11", None),
        ("Australia/Lord_Howe", "2025-04-06 02:00:00", "2025-04-06 02:00:00+10:30", None),
        ("America/St_Johns", "2006-04-02 00:00:59", "2006-04-02 00:00:59-03:30", None),
        ("America/St_Johns", "2006-04-02 00:30:00", "2006-04-02 01:30:00-02:30", "nonexistent"),
        ("America/St_Johns", "2006-10-28 23:30:00", "2006-10-28 23:30:00-02:30", "ambiguous"),
        ("Asia/Kathmandu", "1986-01-01 00:10:00", "1986-01-01 00:25:00+05:45", "nonexistent"),
        ("Asia/Kathmandu", "1985-12-31 23:59:59.900000", "1985-12-31 23:59:59.9+05:30", None),
    ],
)
def test_local_times(zone: str, text: str, expected: str, note: str | None) -> None:
    row, legacy = stored("trades", TRADE | {"entry_time": text}, zone=zone)
    assert row["entry_time"] == expected
    assert legacy["entry_time"] == text
    assert legacy.get("entry_time_note") == (f"{note} local time" if note else None)


TIES = [0.000000125, 0.000000135, 2.000000005, 2.000000015, 1.1234565, 1.1234575, 0.5000005, 9.0000025, 1234.000000025]


def test_ties_are_rounded_half_even_in_a_batch() -> None:
    # In one batch: once it met a tie, only a tie has a rounding as large.
    ties = [sign * value for value in TIES for sign in (1, -1)]
    mapper = Mapper("trades", "momentum_001", UTC)
    rows = [TRADE | {"id": n, "trade_id": None, "pnl_usd": value, "pnl_pct": value} for n, value in enumerate(ties)]
    found = mapper.convert([[row.get(name) for name in mapper.source_columns] for row in rows])
    for value, line in zip(ties, found.lines, strict=True):
        row = dict(zip(mapper.target_columns, map(unescaped, line.decode().split("\t")), strict=True))
        for column, places in (("pnl_usd", 8), ("pnl_pct", 6)):
            expected = Decimal(repr(value)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)
            assert Decimal(row[column] or "") == expected, value
            assert json.loads(row["metadata"] or "")["legacy"].get(column, value) == value


@pytest.mark.parametrize("table", strategies.MOMENTUM)
@pytest.mark.parametrize("zone", strategies.ZONES)
@settings(
    max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(data=st.data())
def test_many_rows_convert_as_each_of_them_does(table: str, zone: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(strategies.nearly_usual(table) | strategies.MOMENTUM[table], min_size=1, max_size=40))
    extra = data.draw(st.sampled_from([(), (), ("broker",)]))
    together, apart = (Mapper(table, "momentum_001", values.find_zone(zone), extra) for _ in range(2))
    batch = [(number, *row.values(), *(f"extra {number}" for _ in extra)) for number, row in enumerate(rows, 1)]
    found = together.convert(batch)
    results = [(row[0], apart.convert_row(row)) for row in batch]
    rejects = [result for _, result in results if isinstance(result, Reject)]
    good = [(number, *result) for number, result in results if not isinstance(result, Reject)]
    assert found.rejects == rejects
    assert list(zip(found.ids, found.lines, found.hashes, strict=True)) == [
        (number, line.encode(), row_hashes([canonical.encode()])[0]) for number, line, canonical in good
    ]
    # The slow path counts once, whoever takes it.
    assert together.notes == apart.notes
    assert together.largest_rounding == apart.largest_rounding
    # In a second batch the mapper knows roundings and hours already.
    assert together.convert(batch).lines == found.lines


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_times_that_share_a_column_are_not_mistaken_for_each_other(zone: str) -> None:
    twice = "2025-06-01 12:00:00\n2025-06-01 12:00:00"
    assert isinstance(convert("trades", TRADE | {"entry_time": twice}, zone=zone), Reject)
    times = ["2025-10-25 12:00:00", "2025-10-26 12:00:00.500000"]
    mapper = Mapper("trades", "momentum_001", values.find_zone(zone))
    rows = [TRADE | {"id": n, "trade_id": None, "entry_time": text} for n, text in enumerate(times)]
    batch = [[row.get(name) for name in mapper.source_columns] for row in rows]
    alone = [mapper.convert_row(row) for row in batch]
    assert mapper.convert(batch).lines == [found[0].encode() for found in alone if not isinstance(found, Reject)]


@pytest.mark.parametrize("library", ["ujson", "json"])
@given(column=st.lists(st.floats(1e-4, 1e12) | st.floats(-1e12, -1e-4), min_size=1, max_size=50))
def test_a_column_of_doubles_is_written_by_their_shortest_repr(library: str, column: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if library == "json":
            patch.setitem(sys.modules, "ujson", None)
        patch.setattr(momentum_columns, "_numbers", momentum_columns._number_writer())
        assert momentum_columns.shortest(column) == list(map(repr, column))


def test_a_library_that_cuts_digits_off_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ujson.dumps", lambda column: str(round(column, 9)))
    assert momentum_columns._number_writer()([2 / 3, None]) == f"[{2 / 3!r},null]"


@given(st.lists(strategies.REAL | st.none(), min_size=1, max_size=50))
def test_numbers_of_a_column_are_those_of_their_values(column: list[float | None]) -> None:
    rows = [(number, "2025-06-01 12:00:00", "R", value, None, None, None) for number, value in enumerate(column)]
    mapper = Mapper("risk_events", "momentum_001", UTC)
    lines = dict(zip(*(lambda found: (found.ids, found.lines))(mapper.convert(rows)), strict=True))
    for number, value in enumerate(column):
        if number not in lines:
            continue
        text = lines[number].decode().split("\t")[2]
        assert (text == "\\N") == (value is None)
        if value is not None:
            assert Decimal(text) == Decimal(values.number(value, values.MONEY).text)
            assert len(text.partition(".")[2]) == 8


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
        inventory.parse_bots(text)


def test_one_bot_of_a_type() -> None:
    bots = inventory.parse_bots('[{"bot_id": "a", "bot_type": "momentum"}, {"bot_id": "b", "bot_type": "momentum"}]')
    assert [b.bot_id for b in bots.of_type("momentum", None)] == ["a", "b"]
    assert [b.bot_id for b in bots.of_type("momentum", "b")] == ["b"]
    with pytest.raises(UsageError, match="expected one of a, b"):
        bots.of_type("momentum", "c")


def test_the_engine_digest_knows_all_that_decides_how_a_row_is_migrated() -> None:
    def engine(**changes: object) -> str:
        bot = {
            "bot_id": "a",
            "bot_type": "momentum",
            "timezone": "UTC",
            "legacy": {"sqlite_path": "/x"},
            "exchange": "bybit",
        }
        (found,) = inventory.parse_bots(json.dumps([bot | changes])).bots
        return found.engine()

    assert engine() == engine(description="no matter")
    digests = [engine(), engine(timezone="Europe/Berlin"), engine(legacy={"sqlite_path": "/y"}), engine(exchange="okx")]
    digests += [engine(bot_id="b"), engine(initial_capital=5)]
    assert len(set(digests)) == len(digests)
