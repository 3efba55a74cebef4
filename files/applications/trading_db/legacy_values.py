"""How a value of a legacy class becomes one of a unified column, and is shown again. Pure, no I/O."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Context, Decimal, InvalidOperation
from typing import Any

from .errors import Refused

UTC = timezone.utc
# Digits before the point of NUMERIC(20,8), (10,6) and (10,4), by those after it.
WHOLE = {8: 12, 6: 4, 4: 6}
_EXACT = Context(prec=60)


class Kind:
    """How values of one sort are stored and shown; here: as they are.

    `keep`: metadata keeps what the bot gave. `store` gets no None and raises
    Refused where the column can never hold the value.
    """

    keep = False

    def store(self, value: Any) -> Any:
        return value

    def show(self, stored: Any, kept: Any) -> Any:
        return stored


class Kept(Kind):
    """A value that metadata alone holds."""

    keep = True

    def show(self, stored: Any, kept: Any) -> Any:
        return kept


class KeptCount(Kept):
    """SQLite's INTEGER that metadata alone holds."""

    def show(self, stored: Any, kept: Any) -> int | float | None:
        return integer(float(kept) if isinstance(kept, str) else kept)


class Mode(Kept):
    """demo or live: a member of metadata of its own."""

    keep = False


@dataclass(frozen=True)
class Real(Kind):
    """SQLite's REAL. `needed`: the column takes neither NULL nor less than 0."""

    places: int = 8
    needed: bool = False

    keep = True

    def store(self, value: float) -> Decimal | None:
        """The shortest repr, half-even; None where it is too large, then metadata alone holds it."""
        stored = rounded(Decimal(repr(value)), self.places, ROUND_HALF_EVEN)
        if self.needed and (stored is None or stored < 0):
            raise Refused(f"{value!r} is stored nowhere, expected a number from 0 to below 1e{WHOLE[self.places]}")
        return stored

    def show(self, stored: Decimal | None, kept: Any) -> float | None:
        if kept is not None and self.store(float(kept)) == stored:
            return float(kept)
        return None if stored is None else float(stored)


@dataclass(frozen=True)
class Whole(Kind):
    """SQLite's INTEGER, which keeps a fraction that it is given."""

    bits: int = 64

    keep = True

    def store(self, value: float) -> int | None:
        """None where it is too large, then metadata alone holds it."""
        if not math.isfinite(value):
            return None
        stored = round(value)
        return stored if -(2 ** (self.bits - 1)) <= stored < 2 ** (self.bits - 1) else None

    def show(self, stored: int | None, kept: Any) -> int | float | None:
        given = KeptCount().show(stored, kept)
        return given if given is not None and self.store(given) == stored else stored


class LocalTime(Kind):
    """Naive local time as text."""

    keep = True

    def store(self, value: str) -> datetime:
        return datetime.fromisoformat(value).astimezone(UTC)

    def show(self, stored: datetime | None, kept: Any) -> str | None:
        if stored is None:
            return None
        return str(stored.astimezone().replace(tzinfo=None)) if kept is None else str(kept)


class UtcText(Kind):
    """SQLite's CURRENT_TIMESTAMP: UTC in whole seconds, as text."""

    keep = True

    def store(self, value: str) -> datetime:
        return datetime.fromisoformat(value).replace(tzinfo=UTC)

    def show(self, stored: datetime | None, kept: Any) -> str | None:
        if kept is not None:
            return str(kept)
        return None if stored is None else f"{stored.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


class DayText(Kind):
    """A date as text."""

    keep = True

    def store(self, value: str) -> date:
        return date.fromisoformat(value[:10])

    def show(self, stored: date | None, kept: Any) -> str | None:
        return str(kept) if kept is not None and str(kept)[:10] == str(stored) else str(stored)


@dataclass(frozen=True)
class Word(Kind):
    """The unified word for a legacy one. `otherwise`: for an unknown one; "": there is none such."""

    known: Mapping[str, str]
    otherwise: str = ""

    keep = True

    def store(self, value: str) -> str:
        word = self.known.get(value.strip().lower(), self.otherwise)
        if not word:
            raise Refused(f"{value!r} is unknown, expected one of {', '.join(self.known)}")
        return word

    def show(self, stored: str | None, kept: Any) -> str | None:
        if isinstance(kept, str) and self.known.get(kept.strip().lower(), self.otherwise) == stored:
            return kept
        return stored


class JsonText(Kind):
    """Text that may be JSON: the column holds it if it is an object or a list, metadata always."""

    keep = True

    def store(self, value: str) -> str | None:
        try:
            parsed = json.loads(value)
            text = json.dumps(parsed, allow_nan=False)
        except (ValueError, RecursionError):
            return None
        return text if isinstance(parsed, (dict, list)) and "\\u0000" not in text and "\\ud" not in text else None

    def show(self, stored: Any, kept: Any) -> str | None:
        if kept is not None:
            return str(kept)
        return None if stored is None else json.dumps(stored)


class Json(Kind):
    """A JSONB column of both."""

    def store(self, value: Any) -> str:
        return json.dumps(value)


class Flag(Kind):
    """A boolean that may have been NULL in the legacy table."""

    def show(self, stored: bool, kept: Any) -> bool | None:
        return None if kept == "null" and not stored else stored


@dataclass(frozen=True)
class Money(Kind):
    """A DECIMAL column of so many places, rounded as PostgreSQL does."""

    places: int = 8
    signed: bool = True

    def store(self, value: Any) -> Decimal:
        if not self.signed and value < 0:
            raise Refused(f"{value} is below zero")
        return decimal(value, self.places)

    def show(self, stored: Decimal | None, kept: Any) -> Decimal | None:
        return None if stored is None else stored.quantize(Decimal(1).scaleb(-self.places), ROUND_HALF_UP, _EXACT)


class Moment(Kind):
    """An aware time, shown in UTC."""

    def show(self, stored: datetime | None, kept: Any) -> datetime | None:
        return None if stored is None else stored.astimezone(UTC)


class Integer(Kind):
    """A whole number that the unified table keeps as NUMERIC."""

    def show(self, stored: Decimal | None, kept: Any) -> int | None:
        return None if stored is None else int(stored)


def rounded(value: Decimal, places: int, rounding: str) -> Decimal | None:
    """The number in so many places; None where it has too many digits before the point."""
    if value.is_finite() and value.adjusted() <= WHOLE[places]:
        stored = value.quantize(Decimal(1).scaleb(-places), rounding, _EXACT)
        if stored.adjusted() < WHOLE[places]:
            # NUMERIC knows no zero below zero.
            return stored or stored.copy_abs()
    return None


def decimal(value: Any, places: int = 8) -> Decimal:
    """What a DECIMAL column of a legacy table makes of a number. Raises Refused."""
    try:
        number = Decimal(repr(float(value)) if isinstance(value, float) else str(value))
    except InvalidOperation:
        raise Refused(f"{value!r} is not a number") from None
    stored = rounded(number, places, ROUND_HALF_UP)
    if stored is None:
        raise Refused(f"{value} does not fit, expected less than 1e{WHOLE[places]}")
    return stored


def real(value: Any) -> float | None:
    """What SQLite's REAL column makes of a value: NULL of NaN. Raises Refused."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Refused(f"{value!r} is not a number") from None
    return number if number == number else None


def integer(value: Any) -> int | float | None:
    """What SQLite's INTEGER column makes of a value. Raises Refused."""
    number = real(value)
    if number is None or not number.is_integer() or not -(2.0**63) < number < 2.0**63:
        return number
    return int(value)


def plain_json(value: Any) -> Any:
    """What a JSONB column gives back of a value. Raises Refused."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise Refused(f"the value is no JSON: {error}") from None


def text(value: Any) -> str | None:
    """A value as text that PostgreSQL can hold."""
    if value is None:
        return None
    return str(value).replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")
