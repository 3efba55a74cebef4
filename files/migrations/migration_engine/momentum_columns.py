"""How a column of a Momentum table is converted, value by value or many at once. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from . import values
from .values import UTC, Column, Unmappable

if TYPE_CHECKING:
    from .momentum_mapping import Mapper

NULL = "\\N"


@dataclass
class Cells:
    """One column of a batch: its texts, and its members of `legacy` where it keeps any.

    `slow` collects the places of rows that need convert_row.
    """

    slow: set[int]
    texts: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def skip(self, place: int) -> None:
        self.slow.add(place)
        self.texts.append("")
        self.kept.append("")


class Kind:
    """How values of one sort are converted."""

    def exact(self, mapper: Mapper, name: str, value: Any, legacy: dict[str, Any]) -> str | None:
        """The text to store of a value that is not None. Raises Unmappable."""
        raise NotImplementedError

    def many(self, mapper: Mapper, name: str, column: Sequence[Any], slow: set[int]) -> Cells:
        """The same for a column, None included."""
        cells = Cells(slow)
        for place, value in enumerate(column):
            if value is None:
                cells.texts.append(NULL)
                cells.kept.append("")
            else:
                cells.skip(place)
        return cells

    def canonical(self, text: str) -> str:
        """What sql() gives for a stored text."""
        return text

    def sql(self, stored: str) -> str:
        """The stored text, from the column that holds it."""
        return f"{stored}::text"


class Number(Kind):
    """Decimal of the shortest repr, rounded half-even; a rounded one keeps its original."""

    def __init__(self, column: Column, signed: bool = True) -> None:
        self.column = column
        self.signed = signed
        self._format = f"%.{column.places}f"
        # Rounding must not reach the bound, and repr gives no exponent between these.
        self._low, self._high = 1e-4, float(10**column.whole - 1)

    def exact(self, mapper: Mapper, name: str, value: Any, legacy: dict[str, Any]) -> str:
        if not self.signed and isinstance(value, (int, float)) and value < 0:
            raise Unmappable(f"{value!r} is below zero")
        result = values.number(value, self.column)
        if result.rounding or (result.units == 0 and result.text[0] == "-"):
            legacy[name] = plain(value)
            mapper.note_rounding(self.column, result.rounding)
        return f"{Decimal(result.text if result.units else 0):.{self.column.places}f}"

    def many(self, mapper: Mapper, name: str, column: Sequence[Any], slow: set[int]) -> Cells:
        cells = Cells(slow)
        texts, kept = cells.texts.append, cells.kept.append
        places, low, high, form = self.column.places, self._low, self._high, self._format
        signed, start = self.signed, f', "{name}": '
        # Digits cut off that are nearer to a half than any before: see note_rounding.
        below, above = mapper.nearest[places]
        for place, value in enumerate(column):
            if value is None:
                texts(NULL)
                kept("")
                continue
            if type(value) is float and (low <= value < high or (signed and -high < value <= -low)):
                text = repr(value)
                end = text.find(".") + places + 1
                cut = text[end:]
                if not cut:
                    texts(text.ljust(end, "0"))
                    kept("")
                    continue
                # The binary value rounds as its shortest repr does, but for a tie.
                if not (below < cut < above or cut == "5"):
                    texts(text[:end] if cut < "5" else form % value)
                    kept(start + text)
                    continue
            legacy: dict[str, Any] = {}
            try:
                text = self.exact(mapper, name, value, legacy)
            except Unmappable:
                cells.skip(place)
                continue
            below, above = mapper.nearest[places]
            texts(text)
            kept(start + jsonb_value(legacy[name]) if legacy else "")
        return cells


class Integer(Kind):
    """A whole number of so many bits; a fraction is rounded and kept."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def exact(self, mapper: Mapper, name: str, value: Any, legacy: dict[str, Any]) -> str | None:
        whole, verbatim = values.integer(value, self.bits)
        if not verbatim:
            legacy[name] = plain(value)
        return str(whole)

    def many(self, mapper: Mapper, name: str, column: Sequence[Any], slow: set[int]) -> Cells:
        cells = Cells(slow)
        bound = 1 << (self.bits - 1)
        for place, value in enumerate(column):
            if value is None:
                cells.texts.append(NULL)
            elif type(value) is int and -bound <= value < bound:
                cells.texts.append(str(value))
            else:
                cells.skip(place)
        cells.kept.clear()
        return cells


class Text(Kind):
    """Text as it is; `keep`: under `legacy` too."""

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep

    def exact(self, mapper: Mapper, name: str, value: Any, legacy: dict[str, Any]) -> str | None:
        text = values.text(value)
        if self.keep:
            legacy[name] = text
        return text

    def many(self, mapper: Mapper, name: str, column: Sequence[Any], slow: set[int]) -> Cells:
        cells = Cells(slow)
        texts, kept = cells.texts.append, cells.kept.append
        keep, start = self.keep, f', "{name}": "'
        for place, value in enumerate(column):
            # Nothing that JSON or COPY would escape.
            if value is None:
                texts(NULL)
                kept("")
            elif type(value) is str and value.isprintable() and "\\" not in value and '"' not in value:
                texts(value)
                kept(f'{start}{value}"' if keep else "")
            else:
                cells.skip(place)
        if not keep:
            cells.kept.clear()
        return cells


class Kept(Text):
    """Any value, under `legacy` alone."""

    def __init__(self) -> None:
        super().__init__(keep=True)

    def exact(self, mapper: Mapper, name: str, value: Any, legacy: dict[str, Any]) -> str | None:
        legacy[name] = values.text(value) if isinstance(value, str) else plain(value)
        return None

    def many(self, mapper: Mapper, name: str, column: Sequence[Any], slow: set[int]) -> Cells:
        numbers = {place for place, value in enumerate(column) if type(value) is int}
        cells = super().many(mapper, name, column, set() if numbers else slow)
        for place in numbers:
            cells.kept[place] = f', "{name}": {column[place]}'
        slow |= cells.slow - numbers
        return cells


class TradeId(Text):
    """The bot's own name of a trade behind the bot's id; without one, the row's id."""

    LONGEST = 100

    def __init__(self) -> None:
        super().__init__(keep=True)

    def many(self, mapper: Mapper, name: str, column: Sequence[Any], slow: set[int]) -> Cells:
        cells = super().many(mapper, name, column, slow)
        prefix = mapper.bot_id + "_"
        longest = self.LONGEST - len(prefix)
        for place, text in enumerate(cells.texts):
            if text == NULL:
                cells.texts[place] = f"{prefix}legacy_{mapper.ids[place]}"
            elif len(text) > longest:
                slow.add(place)
            else:
                cells.texts[place] = prefix + text
        return cells


class Choice(Kind):
    """The unified word for a legacy one; another spelling is kept."""

    def __init__(self, known: dict[str, str]) -> None:
        self.known = known

    def exact(self, mapper: Mapper, name: str, value: Any, legacy: dict[str, Any]) -> str | None:
        word = values.chosen(value, name, self.known)
        if word != value:
            legacy[name] = value
        return word

    def many(self, mapper: Mapper, name: str, column: Sequence[Any], slow: set[int]) -> Cells:
        cells = Cells(slow)
        seen: dict[Any, tuple[str, str]] = {}
        for place, value in enumerate(column):
            found = seen.get(value)
            if found is None:
                word = self.known.get(value.lower()) if type(value) is str else None
                if word is None:
                    cells.skip(place)
                    continue
                found = seen[value] = (word, "" if word == value else f', "{name}": "{value}"')
            cells.texts.append(found[0])
            cells.kept.append(found[1])
        return cells


class Moment(Kind):
    """A time; its text is kept, because it alone says what the clock showed."""

    _REST = re.compile(r":[0-5]\d:[0-5]\d(?:\.\d{6})?", re.ASCII).fullmatch

    def __init__(self, local: bool) -> None:
        self.local = local

    def exact(self, mapper: Mapper, name: str, value: Any, legacy: dict[str, Any]) -> str | None:
        zone = mapper.zone if self.local else UTC
        when, note = values.moment(value, zone)
        legacy[name] = value
        if note:
            mapper.notes[note] += 1
            legacy[f"{name}_note"] = f"{note} local time"
        try:
            return postgres_text(when, zone)
        except OverflowError as error:
            raise Unmappable(f"{value!r} is not a time: {error}") from None

    def many(self, mapper: Mapper, name: str, column: Sequence[Any], slow: set[int]) -> Cells:
        cells = Cells(slow)
        texts, kept = cells.texts.append, cells.kept.append
        rest, start = self._REST, f', "{name}": "'
        zone = mapper.zone if self.local else UTC
        offsets = mapper.offsets[self.local]
        for place, value in enumerate(column):
            if value is None:
                texts(NULL)
                kept("")
                continue
            if type(value) is not str or not rest(value, 13):
                cells.skip(place)
                continue
            hour = value[:13]
            offset = offsets.get(hour)
            if offset is None:
                offset = offsets[hour] = hour_offset(hour, zone)
            if not offset:
                cells.skip(place)
                continue
            kept(f'{start}{value}"')
            texts(value + offset if value[-1] != "0" or len(value) == 19 else value.rstrip("0").rstrip(".") + offset)
        if len(offsets) > 50_000:
            offsets.clear()
        return cells

    def sql(self, stored: str) -> str:
        # Local times in the session's time zone, which is the bot's.
        return f"{stored}::text" if self.local else f"({stored} AT TIME ZONE 'UTC')::text || '+00'"


class Day(Kind):
    """A calendar date."""

    def exact(self, mapper: Mapper, name: str, value: Any, legacy: dict[str, Any]) -> str | None:
        return values.day(value).isoformat()

    def many(self, mapper: Mapper, name: str, column: Sequence[Any], slow: set[int]) -> Cells:
        cells = Cells(slow)
        for place, value in enumerate(column):
            try:
                cells.texts.append(values.day(value).isoformat())
            except Unmappable:
                cells.skip(place)
        cells.kept.clear()
        return cells


class Details(Kind):
    """Text that may be JSON: jsonb reorders keys and drops doubles, so the text is kept."""

    def exact(self, mapper: Mapper, name: str, value: Any, legacy: dict[str, Any]) -> str | None:
        legacy[name] = values.text(value)
        return value if values.is_json(value) else None

    def canonical(self, text: str) -> str:
        return "json"

    def sql(self, stored: str) -> str:
        return f"CASE WHEN {stored} IS NOT NULL THEN 'json' END"


dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def jsonb_order(name: str) -> tuple[int, bytes]:
    text = name.encode("utf-8")
    return len(text), text


def jsonb_value(value: Any) -> str:
    return f"{Decimal(repr(value)):f}" if isinstance(value, float) else dump(value)


def jsonb_text(members: dict[str, Any]) -> str:
    """An object of plain values as jsonb shows it."""
    shown = (
        f"{dump(name)}: {jsonb_value(value)}"
        for name, value in sorted(members.items(), key=lambda member: jsonb_order(member[0]))
    )
    return "{" + ", ".join(shown) + "}"


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def plain(value: Any) -> Any:
    """The value as jsonb can hold it: numbers as they are, all else as text."""
    if isinstance(value, float):
        return value if value - value == 0 and repr(value) != "-0.0" else repr(value)
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, str):
        return value.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def hour_offset(hour: str, zone: tzinfo) -> str:
    """How PostgreSQL shows the zone's offset in a local hour; "" where that is not one offset, or no hour."""
    try:
        start = datetime.fromisoformat(f"{hour}:00:00")
    except ValueError:
        return ""
    # ISO 8601 has more spellings than this one.
    if str(start)[:13] != hour:
        return ""
    if zone is UTC:
        return "+00"
    # At the ends of time the same moment in UTC may be none.
    if start.year in (1, 9999):
        return ""
    ends = (start, start + timedelta(hours=1) - timedelta(microseconds=1))
    found = {offset_text(end.replace(tzinfo=zone, fold=fold)) for end in ends for fold in (0, 1)}
    return found.pop() if len(found) == 1 else ""


def offset_text(when: datetime) -> str:
    offset = when.utcoffset()
    assert offset is not None
    seconds = abs(offset) // timedelta(seconds=1)
    text = f"{'-' if offset < timedelta(0) else '+'}{seconds // 3600:02d}"
    if seconds % 3600:
        text += f":{seconds % 3600 // 60:02d}"
    return text + (f":{seconds % 60:02d}" if seconds % 60 else "")


def postgres_text(when: datetime, zone: tzinfo) -> str:
    """A moment as PostgreSQL shows it in a zone."""
    local = when.astimezone(zone)
    text = local.replace(tzinfo=None).isoformat(" ")
    return (text.rstrip("0") if local.microsecond else text) + offset_text(local)


def in_utc(text: str) -> str:
    """The same moment, or the start of the day, in UTC."""
    # Python 3.10 reads no short fraction, and no offset without minutes.
    text = re.sub(r"\.\d+", lambda found: found[0].ljust(7, "0"), text)
    when = datetime.fromisoformat(text + ":00" if text[-3] in "+-" else text)
    return postgres_text(when if when.tzinfo else when.replace(tzinfo=UTC), UTC)
