"""How the Momentum bot's SQLite rows become staged rows. Pure, no I/O.

A row either converts completely or is rejected with every reason. What its
unified columns do not hold verbatim goes into `legacy`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from decimal import Context, Decimal
from typing import Any

from . import values
from .statistics import Statistics
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


@dataclass(frozen=True)
class Field:
    """One source column: the staging column it fills, how, and whether it must be there.

    `target` None: the value lives under `legacy` alone.
    """

    source: str
    target: str | None
    convert: Callable[[Mapper, Field, Any, dict[str, Any]], str | None]
    required: bool = False
    column: Column = MONEY


class Mapper:
    """Maps one bot's rows of one table and keeps count while it does."""

    def __init__(self, table: str, bot_id: str, zone: tzinfo, extra: Sequence[str] = ()) -> None:
        self.table = table
        self.bot_id = bot_id
        self.zone = zone
        self.fields = TABLES[table]
        self.extra = tuple(extra)
        self.source_columns = ["id", *(f.source for f in self.fields), *self.extra]
        self.staging_columns = ["bot_id", "id", *(f.target for f in self.fields if f.target), "legacy", "_row", "_reject"]
        self.row_count = 0
        self.rejected = 0
        self.units: dict[str, int] = {}
        self.first: dict[str, date] = {}
        self.last: dict[str, date] = {}
        # By the decimal places of the column.
        self.largest_rounding = {MONEY.places: Decimal(0), RATIO.places: Decimal(0)}
        self.notes = {"ambiguous": 0, "nonexistent": 0}

    def stage(self, row: Sequence[Any]) -> list[str | None]:
        """The staged row, in the order of staging_columns; `row` is in that of source_columns."""
        self.row_count += 1
        staged: list[str | None] = [self.bot_id, str(row[0])]
        legacy: dict[str, Any] = {}
        reasons: list[str] = []
        for field, value in zip(self.fields, row[1:], strict=False):
            result = None
            try:
                if value is None and field.required:
                    raise Unmappable("is missing")
                result = field.convert(self, field, value, legacy)
            except Unmappable as reason:
                reasons.append(f"{field.source}: {reason}")
            if field.target:
                staged.append(result)
        if self.extra:
            for name, value in zip(self.extra, row[1 + len(self.fields) :], strict=True):
                if value is not None:
                    legacy.setdefault(name, _plain(value))
        if self.table == "trades" and not reasons:
            reasons += self._name_trade(staged, row)
        if staged[-1] is None:
            staged[-1] = staged[self.staging_columns.index(_OWN_TIME[self.table])]
        if reasons:
            self.rejected += 1
            original = {name: _plain(value) for name, value in zip(self.source_columns, row, strict=True)}
            return [*staged, None, _dump(original), "; ".join(reasons)]
        legacy["table"] = self.table
        legacy["id"] = row[0]
        return [*staged, _dump(legacy), None, None]

    def _name_trade(self, staged: list[str | None], row: Sequence[Any]) -> list[str]:
        trade_id = f"{self.bot_id}_{staged[2]}" if staged[2] is not None else f"{self.bot_id}_legacy_{row[0]}"
        staged[2] = trade_id
        return [f"trade_id: {trade_id} would be longer than 100 characters"] if len(trade_id) > 100 else []

    def statistics(self) -> Statistics:
        """What was seen so far, rejected rows included as far as they convert."""
        places = {f.source: f.column.places for f in self.fields}
        return Statistics(
            self.row_count,
            {name: Decimal(total).scaleb(-places[name], _WIDE) for name, total in self.units.items()},
            {name: _iso(value) for name, value in self.first.items()},
            {name: _iso(value) for name, value in self.last.items()},
        )

    def see(self, name: str, when: date) -> None:
        """Widen the range of a column."""
        first, last = self.first.get(name), self.last.get(name)
        if first is None or when < first:
            self.first[name] = when
        if last is None or when > last:
            self.last[name] = when


def rejected_statistics(table: str, bot_id: str, zone: tzinfo, rows: Iterable[Mapping[str, Any]]) -> Statistics:
    """What rejected rows, as stored, contributed to a table's statistics."""
    mapper = Mapper(table, bot_id, zone)
    for row in rows:
        mapper.stage([row.get(name) for name in mapper.source_columns])
    return mapper.statistics()


def _iso(value: date) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value.isoformat()


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _dump(content: dict[str, Any]) -> str:
    return _encode(content)


def _plain(value: Any) -> Any:
    """The value as jsonb can hold it: numbers as they are, all else as text."""
    if isinstance(value, float):
        return value if value - value == 0 and repr(value) != "-0.0" else repr(value)
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, str):
        return value.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")
    return value


# -- converters: (mapper, field, value, legacy) -> text for COPY --


def _text(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any]) -> str | None:
    return None if value is None else values.text(value)


def _kept(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any]) -> None:
    if value is not None:
        legacy[field.source] = values.text(value) if isinstance(value, str) else _plain(value)


def _text_and_kept(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any]) -> str | None:
    result = _text(mapper, field, value, legacy)
    if result is not None:
        legacy[field.source] = result
    return result


def _number(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any]) -> str | None:
    if value is None:
        return None
    result = values.number(value, field.column)
    mapper.units[field.source] = mapper.units.get(field.source, 0) + result.units
    if result.rounding or (result.units == 0 and result.text[0] == "-"):
        legacy[field.source] = _plain(value)
        if result.rounding > mapper.largest_rounding[field.column.places]:
            mapper.largest_rounding[field.column.places] = result.rounding
    return result.text


def _amount(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any]) -> str | None:
    result = _number(mapper, field, value, legacy)
    if value is not None and value < 0:
        raise Unmappable(f"{value!r} is below zero")
    return result


def _integer(bits: int) -> Callable[[Mapper, Field, Any, dict[str, Any]], str | None]:
    def convert(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any]) -> str | None:
        if value is None:
            return None
        whole, verbatim = values.integer(value, bits)
        mapper.units[field.source] = mapper.units.get(field.source, 0) + whole
        if not verbatim:
            legacy[field.source] = _plain(value)
        return str(whole)

    return convert


def _local_time(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any]) -> str | None:
    return _moment(mapper, field, value, legacy, mapper.zone)


def _utc_time(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any]) -> str | None:
    return _moment(mapper, field, value, legacy, UTC)


def _moment(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any], zone: tzinfo) -> str | None:
    if value is None:
        return None
    when, note = values.moment(value, zone)
    mapper.see(field.source, when)
    legacy[field.source] = value
    if note:
        mapper.notes[note] += 1
        legacy[f"{field.source}_note"] = f"{note} local time"
    return when.isoformat()


def _day(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any]) -> str | None:
    when = values.day(value)
    mapper.see(field.source, when)
    return when.isoformat()


def _chosen(known: dict[str, str]) -> Callable[[Mapper, Field, Any, dict[str, Any]], str | None]:
    def convert(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any]) -> str | None:
        word = values.chosen(value, field.source, known)
        if word != value:
            legacy[field.source] = value
        return word

    return convert


def _details(mapper: Mapper, field: Field, value: Any, legacy: dict[str, Any]) -> str | None:
    # jsonb reorders keys and drops doubles, so the text is kept in any case.
    if value is None:
        return None
    legacy[field.source] = values.text(value)
    return value if values.is_json(value) else None


_WIDE = Context(prec=200)
_COUNT = Column(19, 0)
# What stands in for a created_at that is missing: it comes last in each table.
_OWN_TIME = {
    "trades": "entry_time",
    "daily_snapshots": "date",
    "system_events": "event_time",
    "risk_events": "event_time",
}
_TIMESTAMP = Field("created_at", "created_at", _utc_time, column=_COUNT)

TABLES: dict[str, tuple[Field, ...]] = {
    "trades": (
        Field("trade_id", "trade_id", _text_and_kept),
        Field("mode", None, _kept),
        Field("symbol", "symbol", _text, required=True),
        Field("side", "side", _chosen(SIDES), required=True),
        Field("entry_time", "entry_time", _local_time, required=True),
        Field("entry_price", "entry_price", _amount, required=True),
        Field("exit_time", "exit_time", _local_time),
        Field("exit_price", "exit_price", _number),
        Field("quantity", "quantity", _amount, required=True),
        Field("position_size_usd", "position_size_usd", _number),
        Field("stop_loss", "stop_loss", _number),
        Field("take_profit", "take_profit", _number),
        Field("pnl_usd", "pnl_usd", _number),
        Field("pnl_pct", "pnl_pct", _number, column=RATIO),
        Field("exit_reason", "exit_reason", _text),
        Field("holding_time_seconds", "holding_time_seconds", _integer(64), column=_COUNT),
        Field("signal_strength", "signal_strength", _number, column=RATIO),
        _TIMESTAMP,
    ),
    "daily_snapshots": (
        Field("date", "date", _day, required=True),
        Field("mode", None, _kept),
        Field("starting_equity", "starting_equity", _number),
        Field("ending_equity", "ending_equity", _number),
        Field("daily_pnl", "daily_pnl", _number),
        Field("daily_pnl_pct", "daily_pnl_pct", _number, column=RATIO),
        Field("trades_count", "total_trades", _integer(32), column=_COUNT),
        Field("wins_count", "winning_trades", _integer(32), column=_COUNT),
        Field("losses_count", "losing_trades", _integer(32), column=_COUNT),
        Field("open_positions", None, _kept),
        _TIMESTAMP,
    ),
    "system_events": (
        Field("event_time", "event_time", _local_time, required=True),
        Field("event_type", "event_type", _text, required=True),
        Field("event_level", "event_level", _chosen(LEVELS), required=True),
        Field("message", "message", _text),
        Field("details", "details", _details),
        _TIMESTAMP,
    ),
    "risk_events": (
        Field("event_time", "event_time", _local_time, required=True),
        Field("risk_type", "risk_type", _text, required=True),
        Field("current_value", "current_value", _number),
        Field("limit_value", "limit_value", _number),
        Field("action_taken", "action_taken", _text),
        _TIMESTAMP,
    ),
}
