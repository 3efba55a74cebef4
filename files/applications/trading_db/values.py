"""Exact conversion of single values. Pure functions, no I/O.

Each takes the name of what it converts, for the text of the refusal.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, timezone
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import Any

from .errors import Refused

# What a bot may pass for an amount; text is the exchange's decimal text.
Amount = Decimal | int | float | str

UTC = timezone.utc
# Wide enough for every float's shortest repr at eight places.
_EXACT = Context(prec=400)
_ZERO_BYTE = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def decimal(name: str, value: Any) -> Decimal:
    """The exact value; of a float, that of its shortest repr."""
    if isinstance(value, bool):
        raise Refused(f"{name} is {value!r}: expected a number")
    try:
        if isinstance(value, Decimal):
            exact = value
        elif isinstance(value, float):
            exact = Decimal(float.__repr__(value))
        elif isinstance(value, numbers.Integral):
            exact = Decimal(int(value))
        elif isinstance(value, (str, numbers.Real)):
            # numpy's narrow floats are no float; their text is the shortest one.
            exact = Decimal(str(value))
        else:
            raise Refused(f"{name} is {value!r} ({type(value).__name__}): expected Decimal, int, float or decimal text")
    except InvalidOperation:
        raise Refused(f"{name} is {value!r}: expected a number such as Decimal('0.01') or '0.01'") from None
    if not exact.is_finite():
        raise Refused(f"{name} is {value!r}: expected a finite number; leave it out (None) where it is not known")
    return exact


def numeric(name: str, value: Any, whole: int, places: int) -> Decimal:
    """The value as NUMERIC(whole + places, places) stores it, rounded half-even."""
    exact = decimal(name, value)
    if not exact or exact.adjusted() < whole:
        stored = exact.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN, _EXACT)
        if not stored or stored.adjusted() < whole:
            return stored if stored else stored.copy_abs()  # No negative zero.
    raise Refused(f"{name} is {value!r}: expected at most {whole} digits before the point")


def product(name: str, value: Any, by_name: str, by: Any) -> Decimal:
    """The exact product of two amounts, whatever the bot has set for its own decimals."""
    return _EXACT.multiply(decimal(name, value), decimal(by_name, by))


def integer(name: str, value: Any, bits: int) -> int:
    """A whole number of so many bits; a float, such as seconds with a fraction, is rounded half-even."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Decimal)) or not math.isfinite(value):
        raise Refused(f"{name} is {value!r}: expected a whole number")
    whole = round(value)
    if not -(2 ** (bits - 1)) <= whole < 2 ** (bits - 1):
        raise Refused(f"{name} is {value!r}: expected a whole number of {bits} bits")
    return int(whole)


def text(name: str, value: Any, limit: int | None = None) -> str:
    """Text that PostgreSQL can hold."""
    if not isinstance(value, str):
        raise Refused(f"{name} is {value!r} ({type(value).__name__}): expected text")
    if "\0" in value:
        raise Refused(f"{name} is {value!r}: expected text without a zero byte")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(f"{name} is {value!r}: expected text that is valid Unicode") from None
    if limit is not None and len(value) > limit:
        raise Refused(f"{name} is {value!r}: expected at most {limit} characters, found {len(value)}")
    return str(value)


def moment(name: str, value: Any) -> datetime:
    """A time in UTC."""
    if not isinstance(value, datetime):
        raise Refused(f"{name} is {value!r}: expected an aware datetime such as datetime.now(timezone.utc)")
    if value.utcoffset() is None:
        raise Refused(
            f"{name} is {value!r}, a time without a zone: expected an aware datetime; "
            "use datetime.now(timezone.utc), or say its zone with value.replace(tzinfo=ZoneInfo('Europe/Berlin'))"
        )
    utc = value.astimezone(UTC)
    return datetime.combine(utc.date(), utc.time(), UTC)


def day(name: str, value: Any) -> date:
    """A calendar date, also from its text YYYY-MM-DD."""
    if isinstance(value, datetime):
        return moment(name, value).date()
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise Refused(f"{name} is {value!r}: expected a date, or text YYYY-MM-DD") from None


def chosen(name: str, value: Any, known: Mapping[str, str]) -> str:
    """The unified word for the one given, whatever its case."""
    word = known.get(value.strip().lower()) if isinstance(value, str) else None
    if word is None:
        raise Refused(f"{name} is {value!r}: expected one of {', '.join(known)}")
    return word


def json_text(name: str, value: Any) -> str:
    """JSON that jsonb accepts. What JSON does not know (Decimal, a time, ...) becomes its text."""
    try:
        found = json.dumps(value, default=_json_default, allow_nan=False, ensure_ascii=False)
        found.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(
            f"{name} cannot be kept as JSON ({error}): expected dicts, lists, texts and finite numbers"
        ) from None
    if _ZERO_BYTE.search(found):
        raise Refused(f"{name} cannot be kept as JSON: expected text without a zero byte")
    return found


def _json_default(value: Any) -> Any:
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return str(value)


# Parameters of a statement, as JSON keeps them in the outbox.


class JsonText(str):
    """The text of a JSON value, to be told from other text."""


def pack(name: str, value: Any) -> Any:
    """A statement's parameter as JSON that unpack turns back."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, JsonText):
        return {"json": str(value)}
    if isinstance(value, str):
        return text(name, value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, (numbers.Real, Decimal)):
        return {"numeric": f"{decimal(name, value):f}"}
    if isinstance(value, datetime):
        return {"time": moment(name, value).isoformat()}
    if isinstance(value, date):
        return {"date": value.isoformat()}
    if isinstance(value, Mapping):
        return {"json": json_text(name, value)}
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, memoryview)):
        return {"array": [pack(name, item) for item in value]}
    raise Refused(
        f"{name} is {value!r} ({type(value).__name__}): expected None, bool, int, float, Decimal, str, "
        "an aware datetime, a date, a list of these or a dict"
    )


_UNPACK: dict[str, Callable[[str], Any]] = {
    "numeric": Decimal,
    "time": datetime.fromisoformat,
    "date": date.fromisoformat,
    "json": str,
}


def unpack(packed: Any) -> Any:
    """The parameter that pack was given, for psycopg2."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "array":
        return [unpack(item) for item in content]
    return _UNPACK[kind](content)
