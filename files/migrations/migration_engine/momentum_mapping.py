"""How the Momentum bot's SQLite rows become rows of the unified tables. Pure, no I/O.

A row either converts completely or is rejected with every reason. What its
unified columns do not hold verbatim goes into `metadata` under `legacy`.

`Mapper.convert_row` says what is right, for any row. `Mapper.convert` gives the
same for many rows at once, column by column: values of the usual shape are
converted on the spot, a row with any other is left to convert_row.

A row is written as PostgreSQL itself would show it, so that its hash is that of
the row in the unified table (`Mapper.canonical_sql`): equal hashes prove that
it arrived.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from itertools import repeat
from typing import Any

from . import values
from .copytext import escape
from .values import MONEY, RATIO, UTC, Column, Unmappable

SIDES = {"buy": "buy", "sell": "sell", "long": "long", "short": "short"}
LEVELS = {
    "debug": "DEBUG",
    "info": "INFO",
    "warning": "WARNING",
    "warn": "WARNING",
    "error": "ERROR",
    "critical": "CRITICAL",
    "fatal": "CRITICAL",
}
_NULL = "\\N"


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
                cells.texts.append(_NULL)
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


@dataclass(frozen=True)
class Field:
    """One source column: the columns of the unified table it fills, and how.

    No `targets`: the value lives under `legacy` alone.
    """

    source: str
    targets: tuple[str, ...]
    kind: Kind
    required: bool = False


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
            legacy[name] = _plain(value)
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
                texts(_NULL)
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
                    texts(form % value)
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
            kept(start + _jsonb_value(legacy[name]) if legacy else "")
        return cells


class Integer(Kind):
    """A whole number of so many bits; a fraction is rounded and kept."""

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def exact(self, mapper: Mapper, name: str, value: Any, legacy: dict[str, Any]) -> str | None:
        whole, verbatim = values.integer(value, self.bits)
        if not verbatim:
            legacy[name] = _plain(value)
        return str(whole)

    def many(self, mapper: Mapper, name: str, column: Sequence[Any], slow: set[int]) -> Cells:
        cells = Cells(slow)
        bound = 1 << (self.bits - 1)
        for place, value in enumerate(column):
            if value is None:
                cells.texts.append(_NULL)
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
                texts(_NULL)
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
        legacy[name] = values.text(value) if isinstance(value, str) else _plain(value)
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
            if text == _NULL:
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
            return _postgres_text(when, zone)
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
                texts(_NULL)
                kept("")
                continue
            if type(value) is not str or not rest(value, 13):
                cells.skip(place)
                continue
            hour = value[:13]
            offset = offsets.get(hour)
            if offset is None:
                offset = offsets[hour] = _hour_offset(hour, zone)
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


@dataclass(frozen=True)
class Converted:
    """Rows that converted (COPY lines without their end, hashes, ids, in the same order) and rejected ones."""

    ids: list[int]
    lines: list[bytes]
    hashes: list[int]
    rejects: list[Reject]

    def without(self, ids: set[int]) -> Converted:
        """The same without some rows."""
        stay = [place for place, number in enumerate(self.ids) if number not in ids]
        return Converted(
            [self.ids[place] for place in stay],
            [self.lines[place] for place in stay],
            [self.hashes[place] for place in stay],
            self.rejects,
        )


@dataclass(frozen=True)
class Reject:
    """A row that has no place in the unified tables: all of it as JSON, and every reason."""

    source_table: str
    source_id: int
    row: str
    reason: str


class Mapper:
    """Maps one bot's rows of one table, and keeps count of what it had to round or interpret."""

    def __init__(self, table: str, bot_id: str, zone: tzinfo, extra: Sequence[str] = ()) -> None:
        self.table = table
        self.bot_id = bot_id
        self.zone = zone
        self.extra = tuple(extra)
        self.spec = TABLES[table]
        self.source_columns = ["id", *(f.source for f in self.spec.fields), *self.extra]
        self.target_columns = [t for f in self.spec.fields for t in f.targets]
        self.target_columns += ["metadata", *self.spec.constants, "bot_id"]
        self._tail = "".join(f"\t{value}" for value in (*self.spec.constants.values(), bot_id))
        self.largest_rounding = {MONEY.places: Decimal(0), RATIO.places: Decimal(0)}
        # Per places: texts of cut-off digits between which a larger rounding lies.
        self.nearest = dict.fromkeys(self.largest_rounding, ("", ":"))
        self.notes = {"ambiguous": 0, "nonexistent": 0}
        # Local (True) and UTC hours, and the offset that PostgreSQL shows in them.
        self.offsets: dict[bool, dict[str, str]] = {True: {}, False: {}}
        self.ids: Sequence[int] = ()
        # Members of `legacy` in the order of jsonb: by length, then by name.
        self._kept_order = sorted(
            (i for i, f in enumerate(self.spec.fields)), key=lambda i: _jsonb_order(self.spec.fields[i].source)
        )

    def note_rounding(self, column: Column, rounding: Decimal) -> None:
        """Remember the largest rounding, and which digits after the last place would make a larger one."""
        if rounding > self.largest_rounding[column.places]:
            self.largest_rounding[column.places] = rounding
            share = rounding.scaleb(column.places)
            if share > Decimal("0.001"):
                low, high = (f"{edge:.20f}"[2:].rstrip("0") for edge in (share, 1 - share))
                self.nearest[column.places] = (low, high)

    def convert_row(self, row: Sequence[Any]) -> tuple[str, str] | Reject:
        """COPY line (without its end) and canonical text of a row in the order of source_columns."""
        legacy: dict[str, Any] = {}
        reasons: list[str] = []
        stored: list[str] = []
        shown: list[str] = []
        own_time = ""
        for item, value in zip(self.spec.fields, row[1:], strict=False):
            text = None
            try:
                if value is not None:
                    text = item.kind.exact(self, item.source, value, legacy)
                elif item.required:
                    raise Unmappable("is missing")
            except Unmappable as reason:
                reasons.append(f"{item.source}: {reason}")
            if isinstance(item.kind, TradeId):
                text = f"{self.bot_id}_{text}" if text is not None else f"{self.bot_id}_legacy_{row[0]}"
                if len(text) > TradeId.LONGEST:
                    reasons.append(f"trade_id: {text} would be longer than {TradeId.LONGEST} characters")
            if item.source == self.spec.own_time and text:
                own_time = _in_utc(text)
            if item.source == "created_at" and value is None:
                text = own_time
            for _ in item.targets:
                stored.append(_NULL if text is None else escape(text))
                shown.append(_NULL if text is None else item.kind.canonical(text))
        for name, value in zip(self.extra, row[1 + len(self.spec.fields) :], strict=True):
            if value is not None:
                # `table` is the engine's own word.
                legacy.setdefault("table_" if name == "table" else name, _plain(value))
        if reasons:
            return reject_of(self, row, "; ".join(reasons))
        metadata = f'{{"legacy": {_jsonb_text({**legacy, "table": self.table, "id": row[0]})}}}'
        tail = self._tail
        return "\t".join([*stored, escape(metadata)]) + tail, "\t".join([*shown, metadata]) + tail

    def convert(self, rows: Sequence[Sequence[Any]]) -> Converted:
        """Any number of rows, in the order of source_columns."""
        columns = list(zip(*rows, strict=True))
        if not columns:
            return Converted([], [], [], [])
        self.ids = ids = list(columns[0])
        # Unknown columns are kept by convert_row alone.
        slow: set[int] = set(range(len(rows))) if self.extra else set()
        cells: list[Cells] = []
        for item, column in zip(self.spec.fields, columns[1:], strict=False):
            if (item.required or item.source == "created_at") and None in column:
                slow.update(place for place, value in enumerate(column) if value is None)
            cells.append(item.kind.many(self, item.source, column, slow))
        begin = [f'{{"legacy": {{"id": {number}' for number in ids]
        metadata = map("".join, zip(begin, *self._members(cells, len(rows)), repeat("}}" + self._tail)))
        stored = [c.texts for c, item in zip(cells, self.spec.fields, strict=True) for _ in item.targets]
        lines = ["\t".join(row_cells).encode() for row_cells in zip(*stored, metadata, strict=True)]
        hashes = list(map(row_hash, lines))
        rejects: list[Reject] = []
        for place in sorted(slow):
            result = self.convert_row(rows[place])
            if isinstance(result, Reject):
                rejects.append(result)
            else:
                lines[place], hashes[place] = result[0].encode(), row_hash(result[1].encode())
        found = Converted(ids, lines, hashes, rejects)
        return found.without({reject.source_id for reject in rejects}) if rejects else found

    def _members(self, cells: Sequence[Cells], rows: int) -> list[Sequence[str]]:
        """What the columns keep, and the table's name, in the order of jsonb."""
        named = [(self.spec.fields[i].source, cells[i].kept) for i in self._kept_order if cells[i].kept]
        named.append(("table", [f', "table": "{self.table}"'] * rows))
        return [kept for _, kept in sorted(named, key=lambda pair: _jsonb_order(pair[0]))]

    def canonical_sql(self) -> str:
        """The canonical text of the row {row} of the unified table, as an SQL expression."""
        parts = [f.kind.sql(f"{{row}}.{_quoted(t)}") for f in self.spec.fields for t in f.targets]
        parts += [f"{{row}}.{name}::text" for name in ("metadata", *self.spec.constants, "bot_id")]
        return "concat_ws(E'\\t', " + ", ".join(f"coalesce({part}, '\\N')" for part in parts) + ")"


def row_hash(canonical: bytes) -> int:
    """64 bits of a row's canonical text, signed: migration.row_hash of trading_db."""
    (found,) = _first_64_bits(_sha256(canonical).digest())
    return int(found)


def reject_of(mapper: Mapper, row: Sequence[Any], reason: str) -> Reject:
    """A reject for a reason that the row alone does not show."""
    original = {name: _plain(value) for name, value in zip(mapper.source_columns, row, strict=True)}
    return Reject(mapper.table, row[0], _dump(original), reason)


_sha256 = hashlib.sha256
_first_64_bits = struct.Struct(">q24x").unpack
_dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _jsonb_order(name: str) -> tuple[int, bytes]:
    text = name.encode("utf-8")
    return len(text), text


def _jsonb_value(value: Any) -> str:
    return f"{Decimal(repr(value)):f}" if isinstance(value, float) else _dump(value)


def _jsonb_text(members: dict[str, Any]) -> str:
    """An object of plain values as jsonb shows it."""
    shown = (
        f"{_dump(name)}: {_jsonb_value(value)}"
        for name, value in sorted(members.items(), key=lambda member: _jsonb_order(member[0]))
    )
    return "{" + ", ".join(shown) + "}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _plain(value: Any) -> Any:
    """The value as jsonb can hold it: numbers as they are, all else as text."""
    if isinstance(value, float):
        return value if value - value == 0 and repr(value) != "-0.0" else repr(value)
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, str):
        return value.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def _hour_offset(hour: str, zone: tzinfo) -> str:
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
    found = {_offset_text(end.replace(tzinfo=zone, fold=fold)) for end in ends for fold in (0, 1)}
    return found.pop() if len(found) == 1 else ""


def _offset_text(when: datetime) -> str:
    offset = when.utcoffset()
    assert offset is not None
    seconds = abs(offset) // timedelta(seconds=1)
    text = f"{'-' if offset < timedelta(0) else '+'}{seconds // 3600:02d}"
    if seconds % 3600:
        text += f":{seconds % 3600 // 60:02d}"
    return text + (f":{seconds % 60:02d}" if seconds % 60 else "")


def _postgres_text(when: datetime, zone: tzinfo) -> str:
    """A moment as PostgreSQL shows it in a zone."""
    local = when.astimezone(zone)
    text = local.replace(tzinfo=None).isoformat(" ")
    return (text.rstrip("0") if local.microsecond else text) + _offset_text(local)


def _in_utc(text: str) -> str:
    """The same moment, or the start of the day, in UTC."""
    # Python 3.10 reads no short fraction, and no offset without minutes.
    text = re.sub(r"\.\d+", lambda found: found[0].ljust(7, "0"), text)
    when = datetime.fromisoformat(text + ":00" if text[-3] in "+-" else text)
    return _postgres_text(when if when.tzinfo else when.replace(tzinfo=UTC), UTC)


@dataclass(frozen=True)
class Table:
    """Where a source table goes: fields in the order of its columns, and what else a row gets."""

    target: str
    fields: tuple[Field, ...]
    own_time: str
    constants: dict[str, str] = field(default_factory=dict)


_MONEY, _AMOUNT, _RATIO = Number(MONEY), Number(MONEY, signed=False), Number(RATIO)
_LOCAL, _TEXT = Moment(local=True), Text()
_CREATED = Field("created_at", ("created_at",), Moment(local=False))


def _same(kind: Kind, *names: str) -> Iterable[Field]:
    return (Field(name, (name,), kind) for name in names)


TABLES: dict[str, Table] = {
    "trades": Table(
        "trading.trades",
        (
            Field("trade_id", ("trade_id",), TradeId()),
            Field("mode", (), Kept()),
            Field("symbol", ("symbol",), _TEXT, required=True),
            Field("side", ("side",), Choice(SIDES), required=True),
            Field("entry_time", ("entry_time",), _LOCAL, required=True),
            Field("entry_price", ("entry_price",), _AMOUNT, required=True),
            Field("exit_time", ("exit_time",), _LOCAL),
            Field("exit_price", ("exit_price",), _MONEY),
            Field("quantity", ("quantity",), _AMOUNT, required=True),
            *_same(_MONEY, "position_size_usd", "stop_loss", "take_profit", "pnl_usd"),
            Field("pnl_pct", ("pnl_pct",), _RATIO),
            Field("exit_reason", ("exit_reason",), _TEXT),
            Field("holding_time_seconds", ("holding_time_seconds",), Integer(64)),
            Field("signal_strength", ("signal_strength",), _RATIO),
            _CREATED,
        ),
        "entry_time",
        # Fees are NULL: this bot did not record them.
        {"status": "filled", "fees": _NULL},
    ),
    "daily_snapshots": Table(
        "trading.risk_metrics",
        (
            Field("date", ("date",), Day(), required=True),
            Field("mode", (), Kept()),
            *_same(_MONEY, "starting_equity", "ending_equity", "daily_pnl"),
            Field("daily_pnl_pct", ("daily_pnl_pct",), _RATIO),
            Field("trades_count", ("total_trades",), Integer(32)),
            Field("wins_count", ("winning_trades",), Integer(32)),
            Field("losses_count", ("losing_trades",), Integer(32)),
            Field("open_positions", (), Kept()),
            Field("created_at", ("created_at", "calculated_at"), Moment(local=False)),
        ),
        "date",
    ),
    "system_events": Table(
        "audit.system_events",
        (
            Field("event_time", ("event_time",), _LOCAL, required=True),
            Field("event_type", ("event_type",), _TEXT, required=True),
            Field("event_level", ("event_level",), Choice(LEVELS), required=True),
            Field("message", ("message",), _TEXT),
            Field("details", ("details",), Details()),
            _CREATED,
        ),
        "event_time",
        {"component": "momentum"},
    ),
    "risk_events": Table(
        "audit.risk_events",
        (
            Field("event_time", ("event_time",), _LOCAL, required=True),
            Field("risk_type", ("risk_type",), _TEXT, required=True),
            *_same(_MONEY, "current_value", "limit_value"),
            Field("action_taken", ("action_taken",), _TEXT),
            _CREATED,
        ),
        "event_time",
        # Whether an old event was resolved is not known.
        {"resolved": _NULL},
    ),
}
