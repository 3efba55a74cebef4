"""Exact conversion of single legacy values. Pure functions, no I/O."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .errors import UsageError

UTC = timezone.utc
# Wide enough for every float's shortest repr at eight places.
_EXACT = Context(prec=60)
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?\s*(Z|z|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class Unmappable(ValueError):
    """The value has no place in its column; the text is the reason."""


@dataclass(frozen=True)
class Column:
    """NUMERIC(whole + places, places)."""

    whole: int
    places: int


MONEY = Column(12, 8)
RATIO = Column(4, 6)


class Number(NamedTuple):
    """A number as the column stores it: `units` of 10^-places, and the error of rounding."""

    text: str
    units: int
    rounding: Decimal


_NO_ROUNDING = Decimal(0)
_QUANTUM = {column.places: Decimal(1).scaleb(-column.places) for column in (MONEY, RATIO)}


def number(value: Any, column: Column) -> Number:
    """Decimal of the shortest repr, rounded half-even to the column's places.

    Raises Unmappable for text, bytes, infinities and values too large.
    """
    if type(value) is not float and type(value) is not int:
        kind = {"str": "text", "bytes": "a blob"}.get(type(value).__name__, type(value).__name__)
        raise Unmappable(f"{value!r} is {kind}, expected a number")
    text = repr(value)
    if "e" in text or "n" in text:  # an exponent, inf or nan
        return _rounded(text, column)
    whole, _, fraction = text.partition(".")
    if len(fraction) > column.places:
        return _rounded(text, column)
    if len(whole) > column.whole + (whole[0] == "-"):
        raise Unmappable(f"{text} does not fit: expected at most {column.whole} digits before the point")
    return Number(text, int(whole + fraction.ljust(column.places, "0")), _NO_ROUNDING)


def _rounded(text: str, column: Column) -> Number:
    exact = Decimal(text)
    if not exact.is_finite():
        raise Unmappable(f"{text} is not a finite number")
    if exact.adjusted() < column.whole:
        stored = exact.quantize(_QUANTUM[column.places], ROUND_HALF_EVEN, _EXACT)
        if stored.adjusted() < column.whole:
            units = int(stored.scaleb(column.places, _EXACT))
            return Number(f"{stored:f}", units, abs(_EXACT.subtract(exact, stored)))
    raise Unmappable(f"{text} does not fit: expected at most {column.whole} digits before the point")


def integer(value: Any, bits: int) -> tuple[int, bool]:
    """A whole number of so many bits, and whether it is the value itself.

    A float is rounded half-even: SQLite keeps one where a program wrote seconds
    with a fraction into an INTEGER column.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unmappable(f"{value!r} is not a number")
    if isinstance(value, float) and not abs(value) < 2.0**63:
        raise Unmappable(f"{value!r} does not fit into {bits} bits")
    whole = round(value)
    if not -(2 ** (bits - 1)) <= whole < 2 ** (bits - 1):
        raise Unmappable(f"{value!r} does not fit into {bits} bits")
    return whole, type(value) is int


def text(value: Any) -> str:
    """Text that PostgreSQL can hold."""
    if not isinstance(value, str):
        raise Unmappable(f"{value!r} is not text")
    if "\0" in value:
        raise Unmappable("the text has a zero byte")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise Unmappable("the text is not valid UTF-8") from None
    return value


def find_zone(name: str) -> tzinfo:
    """The time zone of that name, for naive times."""
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"unknown time zone {name!r}: expected a name of the tz database such as Europe/Berlin "
            "(package tzdata); correct `timezone` of the bot in the inventory"
        ) from error


def moment(value: Any, zone: tzinfo) -> tuple[datetime, str | None]:
    """A time in UTC from its text, and a note where the local time is not one moment.

    Naive text is local time of `zone`; an offset in the text wins. In an hour
    that the clocks repeat the first occurrence is taken ("ambiguous"); in one
    that they skip, the offset from before the change ("nonexistent").
    """
    if not isinstance(value, str):
        raise Unmappable(f"{value!r} is not a time: expected text such as 2025-01-31 23:59:59.123456")
    match = _TIME.fullmatch(value.strip())
    if not match:
        raise Unmappable(f"{value!r} is not a time: expected text such as 2025-01-31 23:59:59.123456")
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    try:
        naive = datetime(
            int(year),
            int(month),
            int(day),
            int(hour),
            int(minute),
            int(second or 0),
            int((fraction or "0")[:6].ljust(6, "0")),
        )
        if offset:
            return (naive - _offset(offset)).replace(tzinfo=UTC), None
        if zone is UTC:
            return naive.replace(tzinfo=UTC), None
        local = naive.replace(tzinfo=zone)
        first, second_time = local.utcoffset(), local.replace(fold=1).utcoffset()
        assert first is not None and second_time is not None
        note = None if first == second_time else "ambiguous" if first > second_time else "nonexistent"
        return (naive - first).replace(tzinfo=UTC), note
    except (ValueError, OverflowError) as error:
        raise Unmappable(f"{value!r} is not a time: {error}") from None


def _offset(suffix: str) -> timedelta:
    if suffix in "Zz":
        return timedelta(0)
    digits = suffix[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if hours > 15 or minutes > 59:
        raise ValueError(f"offset {suffix} out of range")
    return timedelta(hours=hours, minutes=minutes) * (-1 if suffix[0] == "-" else 1)


def day(value: Any) -> date:
    """A calendar date from YYYY-MM-DD."""
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        raise Unmappable(f"{value!r} is not a date: expected YYYY-MM-DD")
    try:
        return date.fromisoformat(value)
    except ValueError as error:
        raise Unmappable(f"{value!r} is not a date: {error}") from None


def is_json(value: str) -> bool:
    """Whether PostgreSQL's jsonb accepts the text."""

    def refuse(token: str) -> Any:
        raise ValueError(token)

    def bounded(token: str) -> Any:
        # jsonb keeps numbers as NUMERIC, which ends far beyond any real value.
        if abs(Decimal(token).adjusted()) > 1000:
            raise ValueError(token)
        return 0

    if not value or "\\u0000" in value:
        return False
    try:
        json.dumps(json.loads(value, parse_constant=refuse, parse_float=bounded), ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError, ArithmeticError):
        return False
    return True


def chosen(value: Any, name: str, known: dict[str, str]) -> str:
    """The unified word for a legacy one, whatever its case."""
    word = known.get(value.lower()) if isinstance(value, str) else None
    if word is None:
        raise Unmappable(f"unknown {name} {value!r}: expected one of {', '.join(known)}")
    return word
