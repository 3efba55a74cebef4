"""Single values: what goes in comes out equal, or is refused with a reason."""

from __future__ import annotations

import json
import math
import re
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "files/migrations"))
from migration_engine import copytext, values
from migration_engine.errors import UsageError
from migration_engine.values import MONEY, RATIO, Unmappable

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/St_Johns",
    "Asia/Kathmandu",
]


@given(st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(10**15), 10**15))
def test_a_number_is_its_shortest_repr_rounded_half_even(value: float) -> None:
    for column in (MONEY, RATIO):
        try:
            found = values.number(value, column)
        except Unmappable:
            assert not math.isfinite(value) or abs(value) >= 10**column.whole - 1
            continue
        exact = Decimal(repr(value))
        assert abs(exact) < 10**column.whole
        assert Decimal(found.text) * 10**column.places == found.units
        assert abs(exact - Decimal(found.text)) == found.rounding <= Decimal(5).scaleb(-column.places - 1)
        if found.rounding == Decimal(5).scaleb(-column.places - 1):
            assert found.units % 2 == 0
        if not found.rounding:
            assert float(found.text) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1 + 0.2, "0.30000000"),
        (0.000000125, "0.00000012"),
        (0.000000135, "0.00000014"),
        (2.000000005, "2.00000000"),
        (1e-05, "0.00001000"),
        (5, "5"),
        (700.0, "700.0"),
        (-0.0, "-0.0"),
        (1e11, "100000000000.0"),
        (999999999999.9999, "999999999999.9999"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert values.number(value, MONEY).text == text


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e12, -1e300, "1.5", b"1", True, None])
def test_what_is_no_number_of_the_column(value: object) -> None:
    with pytest.raises(Unmappable):
        values.number(value, MONEY)


def test_a_ratio_that_rounds_up_out_of_its_column() -> None:
    with pytest.raises(Unmappable, match="does not fit"):
        values.number(9999.9999999, RATIO)


@given(st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31)), st.sampled_from(ZONES))
def test_naive_times_are_local_times_of_the_zone(naive: datetime, name: str) -> None:
    zone = values.find_zone(name)
    found, note = values.moment(str(naive), zone)
    assert found.utcoffset() == timedelta(0)
    back = found.astimezone(zone).replace(tzinfo=None)
    assert (back == naive) == (note != "nonexistent")


@given(st.datetimes(), st.integers(-15 * 60 + 1, 15 * 60 - 1))
def test_an_offset_in_the_text_wins(naive: datetime, minutes: int) -> None:
    offset = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    try:
        expected = (naive - timedelta(minutes=minutes)).replace(tzinfo=UTC)
    except OverflowError:
        return
    assert values.moment(f"{naive}{offset}", ZoneInfo("Asia/Tokyo")) == (expected, None)


@pytest.mark.parametrize(
    ("text", "expected", "note"),
    [
        ("2025-03-30 02:30:00", "2025-03-30T01:30:00+00:00", "nonexistent"),
        ("2025-10-26 02:30:00", "2025-10-26T00:30:00+00:00", "ambiguous"),
        ("2025-10-26 03:30:00", "2025-10-26T02:30:00+00:00", None),
        ("2025-06-01T12:00", "2025-06-01T10:00:00+00:00", None),
        ("2025-06-01 12:00:00.5", "2025-06-01T10:00:00.500000+00:00", None),
        ("2025-06-01 12:00:00Z", "2025-06-01T12:00:00+00:00", None),
        ("2025-06-01 12:00:00.123456789", "2025-06-01T10:00:00.123456+00:00", None),
    ],
)
def test_times(text: str, expected: str, note: str | None) -> None:
    found, seen = values.moment(text, values.find_zone("Europe/Berlin"))
    assert (found.isoformat(), seen) == (expected, note)


@pytest.mark.parametrize(
    "value", ["", "now", "2025-13-01 00:00:00", "2025-06-01", "20250601", 1748772000, "2025-06-01 25:00"]
)
def test_what_is_no_time(value: object) -> None:
    with pytest.raises(Unmappable, match="is not a time"):
        values.moment(value, UTC)


@pytest.mark.parametrize("value", ["2025-02-30", "2025-1-1", "2025-06-01 00:00:00", 20250601, None])
def test_what_is_no_date(value: object) -> None:
    with pytest.raises(Unmappable, match="is not a date"):
        values.day(value)


def test_unknown_zone() -> None:
    with pytest.raises(UsageError, match="unknown time zone"):
        values.find_zone("Mars/Olympus")


@pytest.mark.parametrize(
    ("value", "expected"), [(3, (3, True)), (2.5, (2, False)), (3.5, (4, False)), (7.0, (7, False))]
)
def test_integers(value: float, expected: tuple[int, bool]) -> None:
    assert values.integer(value, 32) == expected


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, float("inf"), float("nan"), "3"])
def test_what_is_no_integer(value: object) -> None:
    with pytest.raises(Unmappable):
        values.integer(value, 32)


@pytest.mark.parametrize("value", ["{}", "[1, 2.50, 1e400]", "null", '"text"', '{"a": 1, "a": 2}', ' {"ü": "📈"} '])
def test_json(value: str) -> None:
    assert values.is_json(value)


@pytest.mark.parametrize(
    "value",
    ["", "text", "{'a': 1}", '{"a": NaN}', "[Infinity]", '"\\u0000"', '"\\ud800"', "1e99999", '{"a"', "[" * 3000],
)
def test_what_jsonb_would_refuse(value: str) -> None:
    assert not values.is_json(value)


SANE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | SANE, st.lists
    )
)
def test_all_sane_json_is_json(value: object) -> None:
    assert values.is_json(json.dumps(value))
    assert values.is_json(json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize("value", ["a\0b", "\udc80", b"x", 5])
def test_what_is_no_text(value: object) -> None:
    with pytest.raises(Unmappable):
        values.text(value)


@given(
    st.lists(st.lists(SANE | st.sampled_from(["\\N", "\\.", "a\tb\nc\\d\r"]), min_size=1)).map(
        lambda rows: [("\t".join(map(copytext.escape, row)) + "\n").encode() for row in rows]
    ),
    st.integers(1, 64),
)
def test_a_stream_of_lines_is_read_in_any_pieces(lines: list[bytes], size: int) -> None:
    stream = copytext.ChunkStream(lines)
    pieces = []
    while piece := stream.read(size):
        assert len(piece) <= size
        pieces.append(piece)
    assert b"".join(pieces) == b"".join(lines)
    assert copytext.ChunkStream(lines).read() == b"".join(lines[:1])
    assert all(line.count(b"\n") == 1 and b"\r" not in line for line in lines)


@given(SANE | st.sampled_from(["\\N", "\\.", "a\tb\nc\\d\r", "\\t", "\\\\n", ""]))
def test_an_escaped_field_is_read_as_it_was(text: str) -> None:
    field = copytext.escape(text)
    assert not set(field) & set("\t\n\r")
    assert field != "\\N"
    marks = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}
    assert re.sub(r"\\(.)", lambda found: marks[found[1]], field) == text
