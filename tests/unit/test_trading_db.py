"""The parts of the bots' client that need no server: values, statements' parameters, settings, the outbox file."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "files/applications"))
from trading_db import Refused, Settings, TradingDBError, legacy_values, values
from trading_db.columns import convert
from trading_db.outbox import Operation, Outbox, decode, encode, listed

ENVIRONMENT = {"BOT_ID": "momentum_001", "POSTGRES_USER": "momentum_001", "POSTGRES_PASSWORD": "secret"}


@given(st.floats(min_value=-(10**12 - 1), max_value=10**12 - 1))
def test_a_float_is_its_shortest_repr_rounded_half_even(value: float) -> None:
    stored = values.numeric("x", value, 12, 8)
    exact = Decimal(repr(value))
    assert abs(Fraction(stored) - Fraction(exact)) <= Fraction(1, 2 * 10**8)
    assert stored.as_tuple().exponent == -8
    with localcontext() as context:
        context.prec = 400
        assert stored == exact.quantize(Decimal("0.00000001"))
    if -exact.as_tuple().exponent <= 8:  # type: ignore[operator]
        assert float(stored) == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=8, min_value=-(10**12 - 1), max_value=10**12 - 1))
def test_a_decimal_stays_what_it_is_in_whatever_context(value: Decimal) -> None:
    with localcontext() as context:
        context.prec = 5
        stored = values.numeric("x", value, 12, 8)
    assert stored == value
    assert values.numeric("x", str(value), 12, 8) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, "0.10000000"),
        (1e-9, "0E-8"),
        (0.000000005, "0E-8"),
        (0.000000015, "2E-8"),
        (-0.0, "0E-8"),
        (Decimal("0E+50"), "0E-8"),
        (7, "7.00000000"),
        ("45000.5", "45000.50000000"),
    ],
)
def test_amounts(value: Any, expected: str) -> None:
    assert str(values.numeric("x", value, 12, 8)) == expected


class Narrow(float):
    """As numpy's: a float whose repr is not its digits."""

    def __repr__(self) -> str:
        return f"np.float64({float(self)})"


def test_a_float_of_another_class_is_a_float() -> None:
    assert values.numeric("x", Narrow(1.5), 12, 8) == Decimal("1.5")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), "quantity is nan: expected a finite number"),
        (float("-inf"), "quantity is -inf: expected a finite number"),
        (Decimal("sNaN"), "expected a finite number"),
        ("", "expected a number such as"),
        ("1,5", "expected a number such as"),
        (True, "expected a number"),
        (None, None),
        (b"1", "expected Decimal, int, float or decimal text"),
        (10**12, "at most 12 digits before the point"),
        (999999999999.999999999, "at most 12 digits before the point"),
        (-1, "expected at least 0"),
    ],
)
def test_amounts_that_no_column_holds(value: Any, text: str | None) -> None:
    if text is None:
        assert convert("trading.trades", {"quantity": value}) == {"quantity": None}
        return
    with pytest.raises(Refused, match=text):
        convert("trading.trades", {"quantity": value})


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"side": "hold"}, "side is 'hold': expected one of buy, sell, long, short"),
        (
            {"side": None, "colour": 1},
            "trading.trades has no column 'colour' that a bot may set: expected one of trade_id",
        ),
        ({"entry_time": datetime(2026, 1, 1)}, "a time without a zone: expected an aware datetime"),
        ({"entry_time": "2026-01-01"}, "expected an aware datetime"),
        ({"symbol": "a\0b"}, "zero byte"),
        ({"symbol": "\ud800"}, "valid Unicode"),
        ({"symbol": 5}, "expected text"),
        ({"trade_id": "x" * 101}, "at most 100 characters, found 101"),
        ({"metadata": {"x": float("nan")}}, "cannot be kept as JSON"),
        ({"metadata": {"x": "a\0"}}, "zero byte"),
        ({"holding_time_seconds": float("inf")}, "whole number"),
        ({"holding_time_seconds": 2**63}, "64 bits"),
    ],
)
def test_other_values_that_no_column_holds(columns: dict[str, Any], text: str) -> None:
    with pytest.raises(Refused, match=text):
        convert("trading.trades", columns)


def test_values_of_other_kinds() -> None:
    berlin = timezone(timedelta(hours=2))
    found = convert(
        "trading.trades",
        {
            "side": "SELL",
            "status": "Canceled",
            "entry_time": datetime(2026, 5, 4, 14, tzinfo=berlin),
            "holding_time_seconds": 3600.5,
            "metadata": {"a": Decimal("1.10"), "b": datetime(2026, 1, 1, tzinfo=UTC), "c": "\\u0000", "d": {1}},
        },
    )
    assert (found["side"], found["status"], found["holding_time_seconds"]) == ("sell", "cancelled", 3600)
    assert found["entry_time"] == datetime(2026, 5, 4, 12, tzinfo=UTC)
    assert found["entry_time"].tzinfo is UTC
    assert json.loads(found["metadata"]) == {"a": "1.10", "b": "2026-01-01 00:00:00+00:00", "c": "\\u0000", "d": [1]}


PARAMETERS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.decimals(allow_nan=False, allow_infinity=False, max_value=10**20, min_value=-(10**20))
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    | st.datetimes(timezones=st.just(UTC))
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(PARAMETERS), st.dictionaries(st.text("abc", min_size=1), PARAMETERS))
def test_parameters_come_out_of_the_file_as_they_went_in(given_list: list[Any], given_names: dict[str, Any]) -> None:
    operations = (Operation("SELECT %s", given_list, "why"), Operation("SELECT %(a)s", given_names))
    assert decode(encode(operations)) == operations


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_parameter_is_its_shortest_repr(value: float) -> None:
    ((_, (found,), _),) = decode(encode([Operation("SELECT %s", [value])]))
    assert found == Decimal(repr(value))


def test_settings_and_their_defaults() -> None:
    found = Settings.from_environment(ENVIRONMENT | {"TRADING_DB_WAIT_SECONDS": "0", "POSTGRES_PORT": "5999"})
    assert (found.host, found.port, found.database, found.wait_seconds) == ("pgbouncer", 5999, "trading_db", 0)
    assert (found.outbox, found.second_instance) == (Path("outbox"), "refuse")
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("BOT_ID", "", "BOT_ID is not set: expected the bot's id"),
        ("BOT_ID", "Momentum", "BOT_ID is 'Momentum'"),
        ("POSTGRES_PASSWORD", "", "POSTGRES_PASSWORD is not set"),
        ("POSTGRES_PORT", "x", "POSTGRES_PORT is 'x': expected a port such as 6432"),
        ("TRADING_DB_WAIT_SECONDS", "-1", "TRADING_DB_WAIT_SECONDS is '-1'"),
        ("TRADING_DB_WAIT_SECONDS", "nan", "TRADING_DB_WAIT_SECONDS is 'nan'"),
        ("TRADING_DB_READ_SECONDS", "0", "TRADING_DB_READ_SECONDS is '0'"),
        ("TRADING_DB_SECOND_INSTANCE", "ignore", "expected refuse or flag"),
        ("TRADING_DB_ID_RESERVE", "0", "TRADING_DB_ID_RESERVE is '0'"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, text: str) -> None:
    with pytest.raises(TradingDBError, match=text):
        Settings.from_environment(ENVIRONMENT | {name: value})


def test_the_outbox_keeps_its_entries_and_numbers_over_a_restart(tmp_path: Path) -> None:
    box = Outbox(tmp_path, "bot")
    for name in ("one", "two", "three"):
        box.append(name, encode([Operation("SELECT 1", [name])]))
    box.add_ids("trading.trades", [7, 8])
    assert box.take_id("trading.trades") == 7
    box.refuse(1, "because")
    box.delivered(2)
    known = box.outbox_id
    box.close()
    box = Outbox(tmp_path, "bot")
    assert box.outbox_id == known
    assert [entry.summary for entry in box.pending(0, 10)] == ["three"]
    assert (box.last_sequence(), box.refused_count(), box.pending_count()) == (3, 1, 1)
    assert (box.take_id("trading.trades"), box.take_id("trading.trades")) == (8, None)
    box.delivered(3)
    assert box.append("four", "[]") == 4
    assert [(e.summary, e.refused) for e in listed(tmp_path, "bot")] == [("one", "because"), ("four", None)]
    assert (tmp_path / "bot.outbox").stat().st_mode & 0o777 == 0o600
    box.close()


def test_an_entry_whose_parameters_cannot_be_kept_takes_no_id(tmp_path: Path) -> None:
    box = Outbox(tmp_path, "bot")
    box.add_ids("trading.trades", [7])

    def append() -> None:
        with box.transaction():
            box.take_id("trading.trades")
            encode([Operation("SELECT %s", [object()])])

    with pytest.raises(Refused, match="parameter 1"):
        append()
    assert box.take_id("trading.trades") == 7
    box.close()


@pytest.mark.parametrize("damage", ["text", "zeros in the middle", "torn"])
def test_a_damaged_outbox_is_named_with_a_remedy(tmp_path: Path, damage: str) -> None:
    box = Outbox(tmp_path, "bot")
    for number in range(200):
        box.append(f"entry {number}", "x" * 200)
    box.close()
    path = tmp_path / "bot.outbox"
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(
        {
            "text": b"not a database, but long enough to be taken for one" * 20,
            "zeros in the middle": content[:half] + bytes(8192) + content[half + 8192 :],
            "torn": content[:half],
        }[damage]
    )
    with pytest.raises(
        TradingDBError, match=r"bot\.outbox cannot be used .*: stop the bot, move bot\.outbox\* to"
    ) as caught:
        Outbox(tmp_path, "bot")
    assert ".recover" in str(caught.value)
    path.unlink()
    Outbox(tmp_path, "bot").close()


def test_an_outbox_of_another_bot_is_refused(tmp_path: Path) -> None:
    Outbox(tmp_path, "one").close()
    (tmp_path / "one.outbox").rename(tmp_path / "two.outbox")
    with pytest.raises(TradingDBError, match="is the outbox of one, expected two"):
        Outbox(tmp_path, "two")


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    box = Outbox(tmp_path, "bot")
    with pytest.raises(TradingDBError, match=f"held by process {os.getpid()} on"):
        Outbox(tmp_path, "bot")
    box.close()
    Outbox(tmp_path, "bot").close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TradingDBError, match=r"cannot be written.*set TRADING_DB_OUTBOX"):
        Outbox(tmp_path / "file", "bot")


def test_dates() -> None:
    assert values.day("x", "2026-05-04") == values.day("x", date(2026, 5, 4)) == date(2026, 5, 4)
    with pytest.raises(Refused, match="expected a date"):
        values.day("x", "4.5.2026")


@pytest.mark.parametrize("value", [-2.6e-20, Decimal("-0.000000004"), Decimal("-0"), -0.0])
def test_a_legacy_zero_has_no_sign(value: float | Decimal) -> None:
    assert str(legacy_values.decimal(value)) == "0E-8"
