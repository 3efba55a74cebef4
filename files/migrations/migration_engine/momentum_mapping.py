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
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from decimal import Decimal
from itertools import repeat
from typing import Any

from .copytext import escape
from .momentum_columns import (
    NULL,
    Cells,
    Choice,
    Day,
    Details,
    Integer,
    Kept,
    Kind,
    Moment,
    Number,
    Text,
    TradeId,
    dump,
    in_utc,
    jsonb_order,
    jsonb_text,
    plain,
    quoted,
)
from .values import MONEY, RATIO, Column, Unmappable

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


@dataclass(frozen=True)
class Field:
    """One source column: the columns of the unified table it fills, and how.

    No `targets`: the value lives under `legacy` alone.
    """

    source: str
    targets: tuple[str, ...]
    kind: Kind
    required: bool = False


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
            (i for i, f in enumerate(self.spec.fields)), key=lambda i: jsonb_order(self.spec.fields[i].source)
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
                own_time = in_utc(text)
            if item.source == "created_at" and value is None:
                text = own_time
            for _ in item.targets:
                stored.append(NULL if text is None else escape(text))
                shown.append(NULL if text is None else item.kind.canonical(text))
        for name, value in zip(self.extra, row[1 + len(self.spec.fields) :], strict=True):
            if value is not None:
                # `table` is the engine's own word.
                legacy.setdefault("table_" if name == "table" else name, plain(value))
        if reasons:
            return reject_of(self, row, "; ".join(reasons))
        metadata = f'{{"legacy": {jsonb_text({**legacy, "table": self.table, "id": row[0]})}}}'
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
        hashes = row_hashes(lines)
        rejects: list[Reject] = []
        for place in sorted(slow):
            result = self.convert_row(rows[place])
            if isinstance(result, Reject):
                rejects.append(result)
            else:
                lines[place], hashes[place] = result[0].encode(), row_hashes([result[1].encode()])[0]
        found = Converted(ids, lines, hashes, rejects)
        return found.without({reject.source_id for reject in rejects}) if rejects else found

    def _members(self, cells: Sequence[Cells], rows: int) -> list[Sequence[str]]:
        """What the columns keep, and the table's name, in the order of jsonb."""
        named = [(self.spec.fields[i].source, cells[i].kept) for i in self._kept_order if cells[i].kept]
        named.append(("table", [f', "table": "{self.table}"'] * rows))
        return [kept for _, kept in sorted(named, key=lambda pair: jsonb_order(pair[0]))]

    def canonical_sql(self) -> str:
        """The canonical text of the row {row} of the unified table, as an SQL expression."""
        parts = [f.kind.sql(f"{{row}}.{quoted(t)}") for f in self.spec.fields for t in f.targets]
        parts += [f"{{row}}.{name}::text" for name in ("metadata", *self.spec.constants, "bot_id")]
        return "concat_ws(E'\\t', " + ", ".join(f"coalesce({part}, '\\N')" for part in parts) + ")"


# A copy of it costs less than another.
_new_sha256 = hashlib.sha256().copy


def row_hashes(canonical: Sequence[bytes]) -> list[int]:
    """64 bits of each row's canonical text, signed: migration.row_hash of trading_db."""
    digests = []
    for text in canonical:
        digest = _new_sha256()
        digest.update(text)
        digests.append(digest.digest())
    return list(struct.unpack(">" + "q24x" * len(digests), b"".join(digests)))


def reject_of(mapper: Mapper, row: Sequence[Any], reason: str) -> Reject:
    """A reject for a reason that the row alone does not show."""
    original = {name: plain(value) for name, value in zip(mapper.source_columns, row, strict=True)}
    return Reject(mapper.table, row[0], dump(original), reason)


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
        {"status": "filled", "fees": NULL},
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
        {"resolved": NULL},
    ),
}
