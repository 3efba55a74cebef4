"""How a column of a Momentum table is converted, value by value or many at once. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
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
        signed, low, high, form = self.signed, self._low, self._high, self._format
        places, start = self.column.places, f', "{name}": '
        # Digits cut off that are nearer to a half than any before: see note_rounding.
        below, above = mapper.nearest[places]
        for place, value, text in zip(range(len(column)), column, shortest(column), strict=True):
            if value is None:
                texts(NULL)
                kept("")
                continue
            if type(value) is float and (low <= value < high or (signed and -high < value <= -low)):
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
        start = f', "{name}": "'
        cells = Cells(slow)
        kinds = set(map(type, column))
        if kinds == {str} and _is_plain("".join(column)):
            cells.texts = list(column)
            if self.keep:
                cells.kept = [f'{start}{value}"' for value in column]
            return cells
        for place, value in enumerate(column):
            if value is None:
                cells.texts.append(NULL)
                cells.kept.append("")
            elif type(value) is str and _is_plain(value):
                cells.texts.append(value)
                cells.kept.append(f'{start}{value}"')
            else:
                cells.skip(place)
        if not self.keep:
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
        unusual: set[int] = set()
        cells = super().many(mapper, name, column, unusual)
        for place in unusual:
            if type(column[place]) is int:
                cells.kept[place] = f', "{name}": {column[place]}'
            else:
                slow.add(place)
        return cells


class TradeId(Text):
    """The bot's own name of a trade behind the bot's id; without one, the row's id."""

    LONGEST = 100

    def __init__(self) -> None:
        super().__init__(keep=True)

    def many(self, mapper: Mapper, name: str, column: Sequence[Any], slow: set[int]) -> Cells:
        cells = super().many(mapper, name, column, slow)
        prefix = mapper.bot_id + "_"
        cells.texts = [
            f"{prefix}legacy_{number}" if text == NULL else prefix + text
            for number, text in zip(mapper.ids, cells.texts, strict=True)
        ]
        if max(map(len, cells.texts)) > self.LONGEST:
            slow.update(place for place, text in enumerate(cells.texts) if len(text) > self.LONGEST)
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
    _LINES = re.compile(r"(?:.{13}:[0-5]\d:[0-5]\d(?:\.\d{6})?\n)+", re.ASCII).fullmatch

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
        start = f', "{name}": "'
        zone = mapper.zone if self.local else UTC
        offsets = mapper.offsets[self.local]
        if len(offsets) > 50_000:
            offsets.clear()
        if offset := self._common_offset(column, zone, offsets):
            texts = [(value if value[-1] != "0" else _shown(value)) + offset for value in column]
            return Cells(slow, texts, [f'{start}{value}"' for value in column])
        cells = Cells(slow)
        for place, value in enumerate(column):
            if value is None:
                cells.texts.append(NULL)
                cells.kept.append("")
            elif type(value) is str and self._REST(value, 13) and (offset := _offset_of(value[:13], zone, offsets)):
                cells.texts.append(_shown(value) + offset)
                cells.kept.append(f'{start}{value}"')
            else:
                cells.skip(place)
        return cells

    def _common_offset(self, column: Sequence[Any], zone: tzinfo, offsets: dict[str, str]) -> str:
        """The offset of all times of a column, where all are of the usual shape and it is one; else ""."""
        if set(map(type, column)) != {str}:
            return ""
        lines = "\n".join(column) + "\n"
        if lines.count("\n") != len(column) or not self._LINES(lines):
            return ""
        found = {_offset_of(hour, zone, offsets) for hour in {value[:13] for value in column}}
        return found.pop() if len(found) == 1 else ""

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
        kept = "{row}.metadata #>> '{legacy,details}'"
        # In this order: what was changed by hand need not be JSON.
        same = f"CASE WHEN pg_input_is_valid({kept}, 'jsonb') THEN {stored} = ({kept})::jsonb END"
        return f"CASE WHEN {same} THEN 'json' ELSE {stored}::text END"


def _is_plain(text: str) -> bool:
    """Whether neither JSON nor COPY would escape anything."""
    return text.isprintable() and "\\" not in text and '"' not in text


def _number_writer() -> Callable[[Sequence[Any]], str]:
    """Writes numbers as a JSON list, doubles by their shortest repr; most time goes there, and ujson needs half of it."""
    with suppress(ImportError):
        import ujson

        # Version 1 cuts digits off.
        if ujson.dumps(2 / 3) == repr(2 / 3):
            return ujson.dumps
    return json.JSONEncoder(separators=(",", ":")).encode


_numbers = _number_writer()


def shortest(column: Sequence[Any]) -> list[str]:
    """The repr of each double of a column whose size is from 0.0001 to 10**12; of other values, any text."""
    try:
        texts = _numbers(column)[1:-1].split(",")
    except (TypeError, ValueError, OverflowError):
        texts = []
    return texts if len(texts) == len(column) else list(map(repr, column))


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


def _offset_of(hour: str, zone: tzinfo, known: dict[str, str]) -> str:
    found = known.get(hour)
    if found is None:
        found = known[hour] = hour_offset(hour, zone)
    return found


def _shown(value: str) -> str:
    """A time of the usual shape as PostgreSQL shows it: without zeros that end a fraction."""
    return value if value[-1] != "0" or len(value) == 19 else value.rstrip("0").rstrip(".")


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
