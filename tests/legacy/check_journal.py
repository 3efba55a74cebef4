#!/usr/bin/env python3
"""Checks that nothing the legacy bots were promised is missing in trading_db.

    check_journal.py --dsn "host=... dbname=trading_db ..." [--timezone momentum_001=Europe/Berlin]
                     [--before 2026-01-31T12:00:00Z] JOURNAL...

JOURNAL is <bot_id>.jsonl, or a folder of such files: one line for each write
the bot's legacy database acknowledged. For every row the version acknowledged
last before the snapshot of the last merged migration run (migration.runs, or
--before) has to be in trading_db with equal values, or a later version of it.
Rows that no journal names are not looked at.

Exit codes: 0 all there; 1 rows missing or different, the first named on
stderr; 2 wrong usage, unreadable journal, or nothing to check.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Row = Mapping[str, Any]
# (bot_id, legacy table, identity within it)
Key = tuple[str, str, Any]

EIGHT_PLACES = Decimal("1e-8")
SIX_PLACES = Decimal("1e-6")


class JournalError(Exception):
    """A journal cannot be read, or there is nothing to compare it with."""


# ------------------------------------------------------------------ journal --


@dataclass(frozen=True)
class Entry:
    """One acknowledged write. `row` holds the whole row as stored, `at` is UTC."""

    bot_id: str
    line: int
    at: datetime
    table: str
    row: Row

    @property
    def key(self) -> Key:
        """Days are known by their date: INSERT OR REPLACE gives them new ids."""
        if self.table in ("daily_snapshots", "risk_metrics"):
            return (self.bot_id, self.table, self.row["date"])
        return (self.bot_id, self.table, self.row["id"])


def parse_journal(bot_id: str, text: str) -> list[Entry]:
    """The entries of a journal, in order. A last line without its end is a
    write that was cut off; it was never acknowledged to anybody."""
    entries = []
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            raw = json.loads(line, parse_float=Decimal)
            entries.append(Entry(bot_id, number, datetime.fromisoformat(raw["at"]), raw["table"], raw["row"]))
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(f"{bot_id}: line {number} of the journal is not an entry: {error!r}") from error
    return entries


def due_versions(entries: Iterable[Entry], before: datetime) -> dict[Key, list[Entry]]:
    """For each row acknowledged before that moment: its last version then,
    followed by the later ones."""
    due: dict[Key, list[Entry]] = {}
    for entry in entries:
        if entry.at < before:
            due[entry.key] = [entry]
        elif entry.key in due:
            due[entry.key].append(entry)
    return due


# ------------------------------------------------------------ expectations --


@dataclass(frozen=True)
class Expected:
    """What a value has to be: a check, and words for it."""

    matches: Callable[[Any], bool]
    text: str


def exactly(value: Any) -> Expected:
    return Expected(lambda found: bool(found == value), repr(value))


def number(value: Any, places: Decimal = EIGHT_PLACES) -> Expected:
    """A REAL's shortest repr, or a DECIMAL's text, rounded half-even. A ratio
    of six places may have been rounded by the server, which rounds ties away
    from zero."""
    if value is None:
        return exactly(None)
    exact = Decimal(value)
    wanted = {exact.quantize(places, ROUND_HALF_EVEN)}
    if places != EIGHT_PLACES:
        wanted.add(exact.quantize(places, ROUND_HALF_UP))
    return Expected(lambda found: found is not None and Decimal(found) in wanted, str(min(wanted)))


def ratio(value: Any) -> Expected:
    return number(value, SIX_PLACES)


def moment(value: str | None, zone: ZoneInfo | timezone = timezone.utc) -> Expected:
    """An instant. A naive time is read in `zone`; in the hour that a zone
    repeats, either reading will do."""
    if value is None:
        return exactly(None)
    parsed = datetime.fromisoformat(value)
    if parsed.tzinfo is not None:
        return exactly(parsed)
    wanted = {parsed.replace(tzinfo=zone, fold=fold).astimezone(timezone.utc) for fold in (0, 1)}
    return Expected(lambda found: found in wanted, min(wanted).isoformat())


def kept(row: Row, *amounts: str, ratios: Iterable[str] = (), times: Iterable[str] = ()) -> dict[str, Expected]:
    """Nothing is thrown away: a number that was rounded, a naive time, and a
    word in another case stand in the metadata as they were."""
    originals: dict[str, Expected] = {}
    for places, names in ((EIGHT_PLACES, amounts), (SIX_PLACES, ratios)):
        for name in names:
            if row[name] is not None and Decimal(row[name]).quantize(places, ROUND_HALF_EVEN) != Decimal(row[name]):
                originals[f"legacy.{name}"] = exactly(row[name])
    originals |= {f"legacy.{name}": exactly(row[name]) for name in times}
    if "side" in row and row["side"] != row["side"].lower():
        originals["legacy.side"] = exactly(row["side"])
    return originals


def day(value: str) -> Expected:
    return exactly(date.fromisoformat(value))


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def details(value: str | None) -> Expected:
    """(details column, metadata.legacy.details): JSON is found in the column,
    any other text in the metadata."""
    accepted: list[tuple[Any, Any]] = []
    if value is None:
        return Expected(lambda found: found == (None, None), "None")
    try:
        parsed = json.loads(value, parse_float=Decimal, parse_constant=refuse_constant)
        accepted.append(parsed)
    except ValueError:
        pass
    return Expected(
        lambda found: (bool(accepted) and found[0] == accepted[0]) or found[1] == value,
        f"{value!r} in details or metadata.legacy.details",
    )


# ------------------------------------------------------------------ mapping --


@dataclass(frozen=True)
class Context:
    """What the mapping of a bot's rows needs to know beyond the row."""

    bot_id: str
    bot_type: str
    zone: ZoneInfo | timezone = timezone.utc
    # Legacy trades.id -> trade_id that the row got.
    trade_ids: Mapping[int, str] = field(default_factory=dict)


def trade_id(bot_id: str, legacy_id: str | None, row_id: int) -> str:
    return f"{bot_id}_{legacy_id}" if legacy_id is not None else f"{bot_id}_legacy_{row_id}"


def position_side(side: str) -> str:
    return {"buy": "long", "sell": "short"}.get(side.lower(), side.lower())


def shortseller_trade(row: Row, context: Context) -> dict[str, Expected]:
    return kept(row) | {
        "trade_id": exactly(trade_id(context.bot_id, row["order_id"], row["id"])),
        "symbol": exactly(row["symbol"]),
        "side": exactly(row["side"].lower()),
        "exchange_order_id": exactly(row["exchange_order_id"]),
        "quantity": number(row["quantity"]),
        "entry_price": number(row["price"]),
        "status": exactly(row["status"]),
        "strategy": exactly(row["strategy"]),
        "entry_time": moment(row["timestamp"]),
        "exit_time": moment(row["executed_at"]),
        "pnl_usd": number(row["pnl"]),
        "fees": number(row["fees"]),
        "notes": exactly(row["notes"]),
    }


def shortseller_position(row: Row, context: Context) -> dict[str, Expected]:
    return kept(row) | {
        "symbol": exactly(row["symbol"]),
        "side": exactly(position_side(row["side"])),
        "size": number(row["size"]),
        "avg_entry_price": number(row["avg_price"]),
        "unrealized_pnl": number(row["unrealized_pnl"]),
        "realized_pnl": number(row["realized_pnl"]),
        "status": exactly(row["status"]),
        "opened_at": moment(row["opened_at"]),
        "closed_at": moment(row["closed_at"]),
        "stop_loss": number(row["stop_loss"]),
        "take_profit": number(row["take_profit"]),
        "leverage": number(row["leverage"]),
    }


def shortseller_candle(row: Row, context: Context) -> dict[str, Expected]:
    prices = ("open_price", "high_price", "low_price", "close_price", "volume")
    return {name: number(row[name]) for name in prices}


def shortseller_signal(row: Row, context: Context) -> dict[str, Expected]:
    kind = row["signal_type"].lower()
    executed_by = row["execution_id"]
    return {
        "symbol": exactly(row["symbol"]),
        "signal_type": exactly("close_short" if kind == "close" else kind),
        "strength": ratio(row["strength"]),
        "price": number(row["price"]),
        "timestamp": moment(row["timestamp"]),
        "strategy": exactly(row["strategy"]),
        "indicators": exactly(row["indicators"]),
        "executed": exactly(row["executed"]),
        "legacy.execution_id": exactly(executed_by),
        "legacy.signal_type": exactly("close" if kind == "close" else None),
        "execution_trade_id": exactly(
            None if executed_by is None else context.trade_ids.get(executed_by, f"the trade of row {executed_by}")
        ),
    }


def shortseller_balance(row: Row, context: Context) -> dict[str, Expected]:
    amounts = ("total_balance", "available_balance", "equity", "margin_used", "unrealized_pnl")
    return {name: number(row[name]) for name in amounts} | {"timestamp": moment(row["timestamp"])}


def shortseller_risk_day(row: Row, context: Context) -> dict[str, Expected]:
    counts = ("total_trades", "winning_trades", "losing_trades")
    ratios = ("win_rate", "profit_factor", "sharpe_ratio")
    return (
        {"date": day(row["date"]), "daily_pnl": number(row["total_pnl"]), "max_drawdown": number(row["max_drawdown"])}
        | {name: ratio(row[name]) for name in ratios}
        | {name: exactly(row[name]) for name in counts}
    )


def momentum_trade(row: Row, context: Context) -> dict[str, Expected]:
    amounts = ("entry_price", "exit_price", "quantity", "position_size_usd", "stop_loss", "take_profit", "pnl_usd")
    originals = kept(row, *amounts, ratios=("pnl_pct", "signal_strength"), times=("entry_time", "exit_time"))
    return (
        {name: number(row[name]) for name in amounts}
        | originals
        | {
            "trade_id": exactly(trade_id(context.bot_id, row["trade_id"], row["id"])),
            "symbol": exactly(row["symbol"]),
            "side": exactly(row["side"].lower()),
            "status": exactly("filled"),
            "entry_time": moment(row["entry_time"], context.zone),
            "exit_time": moment(row["exit_time"], context.zone),
            "pnl_pct": ratio(row["pnl_pct"]),
            "exit_reason": exactly(row["exit_reason"]),
            "holding_time_seconds": exactly(row["holding_time_seconds"]),
            "signal_strength": ratio(row["signal_strength"]),
            "created_at": moment(row["created_at"]),
            "legacy.mode": exactly(row["mode"]),
        }
    )


def momentum_day(row: Row, context: Context) -> dict[str, Expected]:
    return kept(row, "starting_equity", "ending_equity", "daily_pnl", ratios=("daily_pnl_pct",)) | {
        "date": day(row["date"]),
        "starting_equity": number(row["starting_equity"]),
        "ending_equity": number(row["ending_equity"]),
        "daily_pnl": number(row["daily_pnl"]),
        "daily_pnl_pct": ratio(row["daily_pnl_pct"]),
        "total_trades": exactly(row["trades_count"]),
        "winning_trades": exactly(row["wins_count"]),
        "losing_trades": exactly(row["losses_count"]),
        "created_at": moment(row["created_at"]),
        "legacy.mode": exactly(row["mode"]),
        "legacy.open_positions": exactly(row["open_positions"]),
    }


def momentum_event(row: Row, context: Context) -> dict[str, Expected]:
    return kept(row, times=("event_time",)) | {
        "event_time": moment(row["event_time"], context.zone),
        "event_type": exactly(row["event_type"]),
        "event_level": exactly(row["event_level"].upper()),
        "message": exactly(row["message"]),
        "details or legacy.details": details(row["details"]),
        "created_at": moment(row["created_at"]),
    }


def momentum_risk_event(row: Row, context: Context) -> dict[str, Expected]:
    return kept(row, "current_value", "limit_value", times=("event_time",)) | {
        "event_time": moment(row["event_time"], context.zone),
        "risk_type": exactly(row["risk_type"]),
        "current_value": number(row["current_value"]),
        "limit_value": number(row["limit_value"]),
        "action_taken": exactly(row["action_taken"]),
        "created_at": moment(row["created_at"]),
    }


@dataclass(frozen=True)
class Destination:
    """Where a legacy table's rows went."""

    target: str
    expect: Callable[[Row, Context], dict[str, Expected]]
    metadata: str = "metadata"


MAPPINGS: dict[tuple[str, str], Destination] = {
    ("shortseller", "trades"): Destination("trading.trades", shortseller_trade),
    ("shortseller", "positions"): Destination("trading.positions", shortseller_position, "position_metadata"),
    ("shortseller", "market_data"): Destination("trading.market_data", shortseller_candle),
    ("shortseller", "signals"): Destination("trading.signals", shortseller_signal),
    ("shortseller", "account_balance"): Destination("trading.account_balance", shortseller_balance),
    ("shortseller", "risk_metrics"): Destination("trading.risk_metrics", shortseller_risk_day),
    ("momentum", "trades"): Destination("trading.trades", momentum_trade),
    ("momentum", "daily_snapshots"): Destination("trading.risk_metrics", momentum_day),
    ("momentum", "system_events"): Destination("audit.system_events", momentum_event),
    ("momentum", "risk_events"): Destination("audit.risk_events", momentum_risk_event),
}


# --------------------------------------------------------------- comparison --


def found_value(found: Row, metadata: str, name: str) -> Any:
    """A column of a unified row; `legacy.x` reads the metadata."""
    legacy = (found[metadata] or {}).get("legacy", {})
    if name == "details or legacy.details":
        return (found["details"], legacy.get("details"))
    if name.startswith("legacy."):
        return legacy.get(name.removeprefix("legacy."))
    return found[name]


def differences(entry: Entry, found: Row, mapping: Destination, context: Context) -> list[str]:
    """What differs between a version of a legacy row and its unified row."""
    try:
        expectations = mapping.expect(entry.row, context)
    except KeyError as error:
        return [f"the journaled row has no column {error}"]
    return [
        f"{name} is {found_value(found, mapping.metadata, name)!r}, expected {expected.text}"
        for name, expected in expectations.items()
        if not expected.matches(found_value(found, mapping.metadata, name))
    ]


@dataclass
class Tally:
    """Counts of one legacy table of one bot."""

    due: int = 0
    equal: int = 0
    later: int = 0
    missing: int = 0
    different: int = 0


def compare(
    due: Mapping[Key, list[Entry]], found: Mapping[Key, Row], contexts: Mapping[str, Context]
) -> tuple[dict[tuple[str, str], Tally], list[str]]:
    """Tallies by (bot, legacy table), and a line for each row that is missing
    or differs from every acceptable version."""
    tallies: dict[tuple[str, str], Tally] = {}
    failures = []
    for key, versions in due.items():
        bot_id, table, identity = key
        context = contexts[bot_id]
        mapping = MAPPINGS[context.bot_type, table]
        tally = tallies.setdefault((bot_id, table), Tally())
        tally.due += 1
        where = f"{bot_id} {table} {identity} (journal line {versions[0].line}) -> {mapping.target}"
        if key not in found:
            tally.missing += 1
            failures.append(f"{where}: missing")
            continue
        first = differences(versions[0], found[key], mapping, context)
        if not first:
            tally.equal += 1
        elif any(not differences(version, found[key], mapping, context) for version in versions[1:]):
            tally.later += 1
        else:
            tally.different += 1
            failures.append(f"{where}: {'; '.join(first)}")
    return tallies, failures


# ----------------------------------------------------------------------- I/O --


def read_journals(paths: Iterable[Path]) -> dict[str, list[Entry]]:
    journals = {}
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise JournalError(f"{path} holds no journal (*.jsonl)")
        for file in files:
            try:
                journals[file.stem] = parse_journal(file.stem, file.read_text(encoding="utf-8"))
            except OSError as error:
                raise JournalError(f"{file}: {error.strerror}") from error
    return journals


class UnifiedDatabase:
    """Reads of trading_db."""

    def __init__(self, dsn: str) -> None:
        import psycopg2
        import psycopg2.extras

        self._connection = psycopg2.connect(dsn, cursor_factory=psycopg2.extras.RealDictCursor)
        self._connection.set_session(readonly=True, isolation_level="REPEATABLE READ")
        psycopg2.extras.register_default_jsonb(
            self._connection, loads=lambda text: json.loads(text, parse_float=Decimal)
        )

    def rows(self, sql: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values)
            return [dict(row) for row in cursor.fetchall()]

    def bot_types(self) -> dict[str, str]:
        return {row["bot_id"]: row["bot_type"] for row in self.rows("SELECT bot_id, bot_type FROM trading.bots", {})}

    def last_snapshots(self) -> dict[str, datetime]:
        sql = "SELECT bot_id, max(snapshot_at) AS at FROM migration.runs WHERE merged_at IS NOT NULL GROUP BY bot_id"
        return {row["bot_id"]: row["at"] for row in self.rows(sql, {})}

    def trade_ids(self, bot_id: str, legacy_ids: list[int]) -> dict[int, str]:
        sql = """SELECT (metadata #>> '{legacy,id}')::bigint AS id, trade_id FROM trading.trades
                 WHERE bot_id = %(bot)s AND metadata #>> '{legacy,table}' = 'trades'
                   AND metadata ? 'legacy' AND metadata #>> '{legacy,id}' = ANY(%(ids)s)"""
        found = self.rows(sql, {"bot": bot_id, "ids": [str(legacy_id) for legacy_id in legacy_ids]})
        return {row["id"]: row["trade_id"] for row in found}

    def find(self, bot_id: str, table: str, mapping: Destination, entries: list[Entry]) -> dict[Key, Row]:
        """The unified rows of these legacy rows, which are all of one table."""
        if table == "market_data":
            sql = """SELECT m.*, k.n FROM trading.market_data m
                     JOIN unnest(%(symbols)s::text[], %(intervals)s::text[], %(times)s::timestamptz[])
                          WITH ORDINALITY AS k(symbol, "interval", timestamp, n)
                       ON (m.symbol, m."interval", m.timestamp) = (k.symbol, k."interval", k.timestamp)"""
            values = {
                "symbols": [entry.row["symbol"] for entry in entries],
                "intervals": [entry.row["interval"] for entry in entries],
                "times": [entry.row["timestamp"] for entry in entries],
            }
            return {entries[row["n"] - 1].key: row for row in self.rows(sql, values)}
        if mapping.target == "trading.risk_metrics":
            sql = "SELECT * FROM trading.risk_metrics WHERE bot_id = %(bot)s AND date = ANY(%(dates)s::date[])"
            found = self.rows(sql, {"bot": bot_id, "dates": [entry.row["date"] for entry in entries]})
            return {(bot_id, table, row["date"].isoformat()): row for row in found}
        # The names stand in MAPPINGS, they are no input.
        sql = f"""SELECT * FROM {mapping.target}
                  WHERE bot_id = %(bot)s AND {mapping.metadata} ? 'legacy'
                    AND {mapping.metadata} #>> '{{legacy,table}}' = %(table)s
                    AND {mapping.metadata} #>> '{{legacy,id}}' = ANY(%(ids)s)"""
        found = self.rows(sql, {"bot": bot_id, "table": table, "ids": [str(entry.row["id"]) for entry in entries]})
        return {(bot_id, table, int(row[mapping.metadata]["legacy"]["id"])): row for row in found}


def check(
    database: UnifiedDatabase,
    journals: Mapping[str, list[Entry]],
    zones: Mapping[str, ZoneInfo],
    before: datetime | None,
) -> tuple[dict[tuple[str, str], Tally], list[str]]:
    bot_types = database.bot_types()
    snapshots = database.last_snapshots() if before is None else {}
    due: dict[Key, list[Entry]] = {}
    found: dict[Key, Row] = {}
    contexts = {}
    for bot_id, entries in journals.items():
        if bot_id not in bot_types:
            raise JournalError(f"{bot_id} has a journal but is not in trading.bots")
        limit = before or snapshots.get(bot_id)
        if limit is None:
            raise JournalError(f"{bot_id} has no merged run in migration.runs: migrate it first, or give --before")
        due_here = due_versions(entries, limit)
        if not due_here:
            raise JournalError(f"{bot_id}: no journal entry is older than {limit.isoformat()}: nothing to check")
        by_table: dict[str, list[Entry]] = {}
        for versions in due_here.values():
            by_table.setdefault(versions[0].table, []).append(versions[0])
        executions = {
            version.row["execution_id"]
            for versions in due_here.values()
            for version in versions
            if version.row.get("execution_id") is not None
        }
        contexts[bot_id] = Context(
            bot_id,
            bot_types[bot_id],
            zones.get(bot_id, timezone.utc),
            database.trade_ids(bot_id, sorted(executions)) if executions else {},
        )
        for table, of_table in by_table.items():
            mapping = MAPPINGS.get((bot_types[bot_id], table))
            if mapping is None:
                raise JournalError(f"{bot_id}: no mapping of table {table} of a {bot_types[bot_id]}")
            found |= database.find(bot_id, table, mapping, of_table)
        due |= due_here
    return compare(due, found, contexts)


def parse_zone(text: str) -> tuple[str, ZoneInfo]:
    bot_id, _, zone = text.partition("=")
    try:
        return bot_id, ZoneInfo(zone)
    except (ValueError, ZoneInfoNotFoundError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not BOT_ID=ZONE, like momentum_001=Europe/Berlin") from error


def parse_moment(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an ISO 8601 time") from error
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("journals", nargs="+", type=Path, metavar="JOURNAL")
    parser.add_argument("--dsn", default="", help="libpq connection string of trading_db; PG* variables apply")
    parser.add_argument("--before", type=parse_moment, help="instead of the last merged run's snapshot")
    parser.add_argument("--timezone", type=parse_zone, action="append", default=[], metavar="BOT_ID=ZONE")
    parser.add_argument("--show", type=int, default=10, help="failures to name (default 10)")
    arguments = parser.parse_args(argv)
    try:
        journals = read_journals(arguments.journals)
        database = UnifiedDatabase(arguments.dsn)
        tallies, failures = check(database, journals, dict(arguments.timezone), arguments.before)
    except JournalError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{'journal':<18} {'table':<16} {'due':>7} {'equal':>7} {'later':>7} {'missing':>7} {'differ':>7}")
    for (bot_id, table), tally in sorted(tallies.items()):
        print(
            f"{bot_id:<18} {table:<16} {tally.due:>7} {tally.equal:>7} {tally.later:>7}"
            f" {tally.missing:>7} {tally.different:>7}"
        )
    for failure in failures[: arguments.show]:
        print(failure, file=sys.stderr)
    if failures:
        print(f"{len(failures)} journaled rows are missing or different in trading_db", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
