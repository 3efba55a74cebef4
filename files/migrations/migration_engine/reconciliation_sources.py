"""What reconciliation reads: a live source, in a snapshot."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cached_property, partial
from operator import methodcaller
from pathlib import Path
from typing import Any

from . import momentum_mapping, sqlite_pages, target, values
from .errors import UsageError
from .momentum_mapping import Converted
from .momentum_source import Copy, private_copy
from .progress import Progress
from .settings import Bot
from .shortseller_source import ROW_HASH, Snapshot, Table, snapshot
from .sqlite_pages import Pages
from .target import BLOCK_BITS, BaseRun, Cursor

Warn = Callable[[str], None]
Pair = tuple[str | None, str | None]
# Id, symbol and size of what is open.
Open = tuple[Any, ...]


@dataclass
class Summary:
    """Rows and hashes by block of ids; sums and ranges by column of the unified table."""

    blocks: dict[int, tuple[int, int]] = field(default_factory=dict)
    sums: dict[str, Decimal] = field(default_factory=dict)
    ranges: dict[str, Pair] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.blocks.values())

    @property
    def hash(self) -> int:
        return sum(total for _, total in self.blocks.values())


@dataclass(frozen=True)
class Spec:
    """What is compared of a source table: its unified table, and the columns summed up and ranged (unified: source)."""

    target: str
    sums: dict[str, str]
    times: dict[str, str]
    # Open: condition at the source and in the unified table, and the columns that say what is open.
    open_at_source: str = ""
    open_here: str = ""
    shown: tuple[tuple[str, str], ...] = ()
    metadata: str = "metadata"


_OPEN_TRADES = (("symbol", "symbol"), ("quantity", "quantity"))
_OPEN_POSITIONS = (("symbol", "symbol"), ("size", "size"))
SPECS: dict[str, dict[str, Spec]] = {
    "shortseller": {
        "trades": Spec(
            "trading.trades",
            {"quantity": "quantity", "pnl_usd": "pnl", "fees": "fees"},
            {"entry_time": "timestamp", "exit_time": "executed_at"},
            "executed_at IS NULL",
            "exit_time IS NULL",
            _OPEN_TRADES,
        ),
        "positions": Spec(
            "trading.positions",
            {"size": "size", "realized_pnl": "realized_pnl", "unrealized_pnl": "unrealized_pnl"},
            {"opened_at": "opened_at", "closed_at": "closed_at"},
            "lower(status) IN ('open', 'partially_closed')",
            "status IN ('open', 'partially_closed')",
            _OPEN_POSITIONS,
            "position_metadata",
        ),
        "market_data": Spec("trading.market_data", {"volume": "volume"}, {"timestamp": "timestamp"}),
        "signals": Spec("trading.signals", {"strength": "strength", "price": "price"}, {"timestamp": "timestamp"}),
        "account_balance": Spec(
            "trading.account_balance",
            {"total_balance": "total_balance", "equity": "equity"},
            {"timestamp": "timestamp"},
        ),
        "risk_metrics": Spec(
            "trading.risk_metrics", {"daily_pnl": "total_pnl", "total_trades": "total_trades"}, {"date": "date"}
        ),
    },
    "momentum": {
        "trades": Spec(
            "trading.trades",
            {"quantity": "quantity", "pnl_usd": "pnl_usd", "position_size_usd": "position_size_usd"},
            {"entry_time": "entry_time", "exit_time": "exit_time"},
            "exit_time IS NULL",
            "exit_time IS NULL",
            _OPEN_TRADES,
        ),
        "daily_snapshots": Spec(
            "trading.risk_metrics", {"daily_pnl": "daily_pnl", "total_trades": "trades_count"}, {"date": "date"}
        ),
        "system_events": Spec("audit.system_events", {}, {"event_time": "event_time"}),
        "risk_events": Spec(
            "audit.risk_events",
            {"current_value": "current_value", "limit_value": "limit_value"},
            {"event_time": "event_time"},
        ),
    },
}


class Source:
    """A snapshot of a bot's legacy store, as reconciliation reads it."""

    snapshot_at: datetime
    # What stands between the parts of a canonical text.
    separator: str
    # Its hash, as an SQL expression over the text {}.
    row_hash: str

    def columns(self, table: str) -> Sequence[str]:
        """Names of the parts of a canonical text."""
        raise NotImplementedError

    def canonical_sql(self, table: str) -> str:
        """The canonical text of the row {row} of the unified table."""
        raise NotImplementedError

    def count(self, table: str) -> int:
        """All rows of a table."""
        raise NotImplementedError

    def summary(self, table: str, spec: Spec, rejected: set[int], progress: Progress) -> Summary:
        """All rows but the rejected ones."""
        raise NotImplementedError

    def rows(self, table: str, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Id and hash of the rows in ranges of ids."""
        raise NotImplementedError

    def texts(self, table: str, ids: Sequence[int]) -> dict[int, Sequence[str]]:
        """The parts of the canonical texts of rows."""
        raise NotImplementedError

    def changed(self, table: str, ids: Sequence[int]) -> set[int]:
        """Those that can have changed since the last merged run."""
        raise NotImplementedError

    def strangers(self, table: str, alone: set[int], held: set[int], missing: set[int]) -> list[int]:
        """Rows that are here `alone`, not all of which the last merged run can have met at the source.

        `held` are the ids of all that is here in their blocks, `missing` those that were gone then.
        """
        raise NotImplementedError

    def open(self, table: str, spec: Spec) -> Iterator[Open]:
        """What is open, in the order of ids."""
        raise NotImplementedError


class ShortsellerSource(Source):
    separator = "\x1f"
    row_hash = ROW_HASH

    def __init__(self, found: Snapshot, run: BaseRun, same_engine: bool) -> None:
        self.found = found
        self.run = run
        self.same_engine = same_engine
        self.snapshot_at = found.snapshot_at
        self.tables: dict[str, Table] = {table.name: table for table in found.tables}
        # Where it cannot be told, the next run reads every row.
        self.condition = found.position.changed_since(run.position) or "true"

    def columns(self, table: str) -> Sequence[str]:
        found = self.tables[table]
        return [*found.columns, *(["unknown columns"] if found.extra else [])]

    def canonical_sql(self, table: str) -> str:
        return self.tables[table].canonical_sql()

    def count(self, table: str) -> int:
        return self.found.count(self.tables[table])

    def summary(self, table: str, spec: Spec, rejected: set[int], progress: Progress) -> Summary:
        text = self.tables[table].canonical_at_source()
        condition = f"WHERE id NOT IN ({', '.join(map(str, rejected))})" if rejected else ""
        hashed = self.row_hash.format(text)
        found = summarize(self.found.cursor, "id", hashed, f"trading.{table}", condition, spec.sums, spec.times, {})
        progress.add(found.rows)
        return found

    def rows(self, table: str, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        text = self.tables[table].canonical_at_source()
        cursor = self.found.cursor
        for low, high in ranges:
            cursor.execute(
                f"SELECT id, {self.row_hash.format(text)} FROM trading.{table} WHERE id BETWEEN {low} AND {high}"
            )
            yield from cursor.fetchall()

    def texts(self, table: str, ids: Sequence[int]) -> dict[int, Sequence[str]]:
        text = self.tables[table].canonical_at_source()
        self.found.cursor.execute(f"SELECT id, {text} FROM trading.{table} WHERE id = ANY (%s)", (list(ids),))
        return {number: shown.split(self.separator) for number, shown in self.found.cursor.fetchall()}

    def changed(self, table: str, ids: Sequence[int]) -> set[int]:
        self.found.cursor.execute(
            f"SELECT id FROM trading.{table} WHERE id = ANY (%s) AND {self.condition}", (list(ids),)
        )
        return {row[0] for row in self.found.cursor.fetchall()}

    def strangers(self, table: str, alone: set[int], held: set[int], missing: set[int]) -> list[int]:
        if not self.same_engine or table not in self.run.blocks:
            return []
        # It met so many rows in a block: which ones, only the rows themselves could tell.
        met = self.run.blocks[table]
        here = Counter(n >> BLOCK_BITS for n in held.union(map(int, self.run.rejected[table])) - missing)
        return sorted(n for n in alone - missing if here[n >> BLOCK_BITS] > met.get(str(n >> BLOCK_BITS), 0))

    def open(self, table: str, spec: Spec) -> Iterator[Open]:
        names = ", ".join(source for source, _ in spec.shown)
        query = f"SELECT id, {names} FROM trading.{table} WHERE {spec.open_at_source} ORDER BY id"
        return target.stream(self.found.cursor, query)


class MomentumSource(Source):
    separator = "\t"
    row_hash = "migration.row_hash({})"

    def __init__(self, copy: Copy, bot: Bot, pages: Callable[[], Pages | None]) -> None:
        self.copy = copy
        self.snapshot_at = copy.snapshot_at
        self.zone = values.find_zone(bot.timezone)
        self.mappers = {
            name: momentum_mapping.Mapper(name, bot.bot_id, self.zone, copy.extra[name])
            for name in momentum_mapping.TABLES
        }
        self._stored_pages = pages
        self._ranges: dict[str, list[tuple[int, int]] | None] = {}

    def columns(self, table: str) -> Sequence[str]:
        return self.mappers[table].target_columns

    def canonical_sql(self, table: str) -> str:
        return self.mappers[table].canonical_sql()

    def count(self, table: str) -> int:
        return self.copy.count(table)

    def summary(self, table: str, spec: Spec, rejected: set[int], progress: Progress) -> Summary:
        mapper = self.mappers[table]

        def parts(copy: Copy, ranges: list[tuple[int, int]] | None) -> Generator[tuple[int, Summary], None, None]:
            for rows in copy.batches(table, mapper.source_columns, ranges):
                yield len(rows), _summary_of(mapper.convert(rows), mapper.target_columns, spec, rejected)

        found = Summary(sums=dict.fromkeys(spec.sums, Decimal(0)))
        with closing(self.copy.spread(table, parts)) as summaries:
            for rows, part in summaries:
                progress.add(rows)
                for block, (count, total) in part.blocks.items():
                    before = found.blocks.get(block, (0, 0))
                    found.blocks[block] = (before[0] + count, before[1] + total)
                for name, amount in part.sums.items():
                    found.sums[name] += amount
                for name, pair in part.ranges.items():
                    found.ranges[name] = _range([*pair, *found.ranges.get(name, ())])
        found.ranges = {name: found.ranges.get(name, (None, None)) for name in spec.times}
        return found

    def rows(self, table: str, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        mapper = self.mappers[table]
        for rows in self.copy.batches(table, mapper.source_columns, ranges):
            found = mapper.convert(rows)
            yield from zip(found.ids, found.hashes, strict=True)
            # A row that cannot be migrated is there, and equals nothing here.
            yield from ((reject.source_id, 0) for reject in found.rejects)

    def texts(self, table: str, ids: Sequence[int]) -> dict[int, Sequence[str]]:
        mapper = self.mappers[table]
        found: dict[int, Sequence[str]] = {}
        for rows in self.copy.batches(table, mapper.source_columns, [(number, number) for number in ids]):
            for row in rows:
                result = mapper.convert_row(row)
                found[row[0]] = (
                    [result.reason] if isinstance(result, momentum_mapping.Reject) else result[1].split("\t")
                )
        return found

    def changed(self, table: str, ids: Sequence[int]) -> set[int]:
        before, now = self._pages
        if before is None:
            return set()
        if table not in self._ranges:
            self._ranges[table] = sqlite_pages.changed_ranges(self.copy.path, self.copy.connection, table, before, now)
        ranges = self._ranges[table]
        if ranges is None:
            return set(ids)
        return {number for number in ids if any(low <= number <= high for low, high in ranges)}

    def strangers(self, table: str, alone: set[int], held: set[int], missing: set[int]) -> list[int]:
        # A row that was deleted since lay in a page that has changed.
        lone = alone - missing
        return sorted(lone - self.changed(table, list(lone))) if self._pages[0] else []

    @cached_property
    def _pages(self) -> tuple[Pages | None, Pages | None]:
        """Of the last merged run, and now."""
        return self._stored_pages(), sqlite_pages.digests(self.copy.path)

    def open(self, table: str, spec: Spec) -> Iterator[Open]:
        names = ", ".join(source for source, _ in spec.shown)
        query = f"SELECT id, {names} FROM {table} WHERE {spec.open_at_source} ORDER BY id"
        # A row that is not UTF-8 is rejected, and must not stop the others.
        self.copy.connection.text_factory = methodcaller("decode", "utf-8", "surrogateescape")
        for number, symbol, size in self.copy.connection.execute(query):
            with suppress(values.Unmappable):
                yield number, symbol, Decimal(values.number(size, values.MONEY).text)


@contextmanager
def open_source(cursor: Cursor, bot: Bot, run: BaseRun, password: str | None, warn: Warn) -> Iterator[Source]:
    """The bot's live source, after its last merged run. Raises SourceError."""
    if bot.bot_type == "shortseller":
        with snapshot(bot, warn, password) as found:
            yield ShortsellerSource(found, run, run.engine == bot.engine())
    else:
        path = bot.legacy.get("sqlite_path")
        if not path:
            raise UsageError(
                f"bots.json has no legacy.sqlite_path for {bot.bot_id}: set `legacy.sqlite` in the inventory"
            )
        with private_copy(Path(path), warn) as copy:
            yield MomentumSource(copy, bot, partial(target.stored_pages, cursor, run.run_id))


def _summary_of(found: Converted, columns: Sequence[str], spec: Spec, rejected: set[int]) -> Summary:
    """The summary of some rows as they were converted, without those known to be rejected."""
    summary = Summary()
    if rejected:
        found = found.without(rejected)
    blocks: dict[int, list[int]] = {}
    for number, row_hash in zip(found.ids, found.hashes, strict=True):
        blocks.setdefault(number >> BLOCK_BITS, []).append(row_hash)
    summary.blocks = {block: (len(hashes), sum(hashes)) for block, hashes in blocks.items()}
    for reject in found.rejects:
        if reject.source_id not in rejected:
            block = reject.source_id >> BLOCK_BITS
            rows, total = summary.blocks.get(block, (0, 0))
            summary.blocks[block] = (rows + 1, total)
    cells = [line.split(b"\t") for line in found.lines]
    for name in spec.sums:
        at = columns.index(name)
        summary.sums[name] = sum((Decimal(c[at].decode()) for c in cells if c[at] != b"\\N"), Decimal(0))
    for name in spec.times:
        at = columns.index(name)
        texts = {c[at].decode() for c in cells if c[at] != b"\\N"}
        # Texts of one offset are in the order of time.
        by_offset: dict[str, list[str]] = {}
        for text in texts:
            by_offset.setdefault(text[max(text.rfind("+"), text.rfind("-")) :], []).append(text)
        summary.ranges[name] = _range(edge for same in by_offset.values() for edge in (min(same), max(same)))
    return summary


_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?", re.ASCII
)


def _range(texts: Iterable[str | None]) -> Pair:
    """First and last of times or dates as PostgreSQL shows them; times in UTC."""
    found = [_in_order(text) for text in texts if text is not None]
    return (min(found)[2], max(found)[2]) if found else (None, None)


def _in_order(text: str) -> tuple[int, datetime | str, str]:
    """What a time or a date is sorted by, and how it is shown."""
    match = _MOMENT.fullmatch(text)
    if match:
        local, fraction, sign, *offset = match.groups()
        hours, minutes, seconds = (int(part or 0) for part in offset)
        east = timedelta(hours=hours, minutes=minutes, seconds=seconds) * (-1 if sign == "-" else 1)
        try:
            when = datetime.fromisoformat(local).replace(microsecond=int((fraction or "0").ljust(6, "0"))) - east
            return 0, when, f"{when.isoformat()}+00:00"
        except OverflowError:
            return (-1 if local < "5000" else 1), text, text
    # Before and after the years that Python knows.
    before = text.startswith("-") or text.endswith("BC")
    return (-1 if before else 1), text, text


def summarize(
    cursor: Cursor,
    number: str,
    hashed: str,
    table: str,
    condition: str,
    sums: dict[str, str],
    times: dict[str, str],
    parameters: dict[str, Any],
) -> Summary:
    """A summary that the server computes. All but `parameters` is SQL of this package."""
    # NaN is a value of NUMERIC, and would be the sum.
    parts = [f"coalesce(sum(({c})::numeric) FILTER (WHERE ({c})::numeric <> 'NaN'), 0)" for c in sums.values()]
    parts += [f'{f}("{c}")::text' for c in times.values() for f in ("min", "max")]
    columns = "".join(f", {part}" for part in parts)
    cursor.execute(
        f"SELECT {number} >> {BLOCK_BITS}, count(*), coalesce(sum({hashed}), 0){columns} FROM {table} {condition} GROUP BY 1",
        parameters or None,
    )
    found = Summary(sums=dict.fromkeys(sums, Decimal(0)))
    texts: dict[str, list[str | None]] = {name: [] for name in times}
    for block, rows, total, *rest in cursor.fetchall():
        found.blocks[int(block)] = (rows, int(total))
        for name, value in zip(sums, rest, strict=False):
            found.sums[name] += value
        for place, name in enumerate(times):
            texts[name] += rest[len(sums) + 2 * place : len(sums) + 2 * place + 2]
    found.ranges = {name: _range(seen) for name, seen in texts.items()}
    return found
