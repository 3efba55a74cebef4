"""Compares what a bot's live source holds with what trading_db holds of it.

Both sides are read in a snapshot of their own. Rows are compared by the hashes
of their canonical texts, a thousand ids at a time, and one by one where these
differ. A row that can have changed at the source since the last merged run is
pending: the next run carries it, and it is no difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from . import momentum_mapping, sqlite_pages, values
from .errors import UsageError
from .momentum_mapping import Converted
from .momentum_source import Copy, private_copy
from .progress import Progress
from .settings import Bot
from .shortseller_source import Snapshot, Table, snapshot
from .target import BLOCK, ROW_HASH, BaseRun, Cursor, last_merged, one

NAMED = 5
Warn = Callable[[str], None]
Pair = tuple[str | None, str | None]


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
# Tables where every row of a bot that never ran here must have been migrated.
ORIGIN = {
    "trading.trades": "metadata",
    "trading.positions": "position_metadata",
    "trading.signals": "metadata",
    "trading.account_balance": "metadata",
    "trading.risk_metrics": "metadata",
}


class Source:
    """A snapshot of a bot's legacy store, as reconciliation reads it."""

    snapshot_at: datetime

    def columns(self, table: str) -> Sequence[str]:
        """Names of the parts of a canonical text."""
        raise NotImplementedError

    def canonical_sql(self, table: str) -> str:
        """The canonical text of the row {row} of the unified table, and what separates its parts."""
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

    def open(self, table: str, spec: Spec) -> dict[int, tuple[str, Decimal]]:
        """What is open: symbol and size, by id."""
        raise NotImplementedError


class ShortsellerSource(Source):
    separator = "\x1f"

    def __init__(self, found: Snapshot, position: dict[str, Any] | None) -> None:
        self.found = found
        self.snapshot_at = found.snapshot_at
        self.tables: dict[str, Table] = {table.name: table for table in found.tables}
        self.condition = found.position.changed_since(position) or "false"

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
        hashed = ROW_HASH.format(text)
        found = summarize(self.found.cursor, "id", hashed, f"trading.{table}", condition, spec.sums, spec.times, {})
        progress.add(found.rows)
        return found

    def rows(self, table: str, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        text = self.tables[table].canonical_at_source()
        cursor = self.found.cursor
        for low, high in ranges:
            cursor.execute(f"SELECT id, {ROW_HASH.format(text)} FROM trading.{table} WHERE id BETWEEN {low} AND {high}")
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

    def open(self, table: str, spec: Spec) -> dict[int, tuple[str, Decimal]]:
        names = ", ".join(source for source, _ in spec.shown)
        self.found.cursor.execute(f"SELECT id, {names} FROM trading.{table} WHERE {spec.open_at_source}")
        return {number: (symbol, size) for number, symbol, size in self.found.cursor.fetchall()}


class MomentumSource(Source):
    separator = "\t"

    def __init__(self, copy: Copy, bot: Bot, digests: bytes) -> None:
        self.copy = copy
        self.snapshot_at = copy.snapshot_at
        self.zone = values.find_zone(bot.timezone)
        self.mappers = {
            name: momentum_mapping.Mapper(name, bot.bot_id, self.zone, copy.extra[name])
            for name in momentum_mapping.TABLES
        }
        self.before = digests
        self.now = sqlite_pages.digests(copy.path)

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
        if not self.before:
            return set()
        ranges = sqlite_pages.changed_ranges(self.copy.path, self.copy.connection, table, self.before, self.now)
        if ranges is None:
            return set(ids)
        return {number for number in ids if any(low <= number <= high for low, high in ranges)}

    def open(self, table: str, spec: Spec) -> dict[int, tuple[str, Decimal]]:
        names = ", ".join(source for source, _ in spec.shown)
        found: dict[int, tuple[str, Decimal]] = {}
        for number, symbol, size in self.copy.connection.execute(
            f"SELECT id, {names} FROM {table} WHERE {spec.open_at_source}"
        ):
            try:
                found[number] = (symbol, Decimal(values.number(size, values.MONEY).text))
            except values.Unmappable:
                continue
        return found


@contextmanager
def open_source(bot: Bot, run: BaseRun, password: str | None, warn: Warn) -> Iterator[Source]:
    """The bot's live source, after its last merged run. Raises SourceError."""
    if bot.bot_type == "shortseller":
        with snapshot(bot, warn, password) as found:
            yield ShortsellerSource(found, run.position)
    else:
        path = bot.legacy.get("sqlite_path")
        if not path:
            raise UsageError(
                f"bots.json has no legacy.sqlite_path for {bot.bot_id}: set `legacy.sqlite` in the inventory"
            )
        with private_copy(Path(path), warn) as copy:
            yield MomentumSource(copy, bot, run.page_digests)


def _summary_of(found: Converted, columns: Sequence[str], spec: Spec, rejected: set[int]) -> Summary:
    """The summary of some rows as they were converted, without those known to be rejected."""
    summary = Summary()
    if rejected:
        found = found.without(rejected)
    blocks: dict[int, list[int]] = {}
    for number, row_hash in zip(found.ids, found.hashes, strict=True):
        blocks.setdefault(number // BLOCK, []).append(row_hash)
    summary.blocks = {block: (len(hashes), sum(hashes)) for block, hashes in blocks.items()}
    for reject in found.rejects:
        if reject.source_id not in rejected:
            rows, total = summary.blocks.get(reject.source_id // BLOCK, (0, 0))
            summary.blocks[reject.source_id // BLOCK] = (rows + 1, total)
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
        f"SELECT {number} / {BLOCK}, count(*), coalesce(sum({hashed}), 0){columns} FROM {table} {condition} GROUP BY 1",
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


@dataclass
class TableReport:
    """One source table: its rows = migrated + rejected + pending (+ those that differ).

    Rows that are here alone: the last run found those `missing_at_source`, the
    others were `deleted_since`.
    """

    source_table: str
    target_table: str
    source: int
    migrated: int = 0
    rejected: int = 0
    pending: int = 0
    kept: int = 0
    missing_at_source: int = 0
    deleted_since: int = 0
    open: dict[str, int] = field(default_factory=dict)
    sums: dict[str, dict[str, str]] = field(default_factory=dict)
    ranges: dict[str, dict[str, Pair]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "ok": not self.differences}


@dataclass(frozen=True)
class Held:
    """What trading_db holds of one source table of a bot: SQL over its rows t."""

    cursor: Cursor
    bot_id: str
    spec: Spec
    canonical: str
    condition: str
    number: str

    @classmethod
    def of(cls, cursor: Cursor, bot: Bot, table: str, spec: Spec, canonical: str) -> Held:
        legacy = f"t.{spec.metadata}"
        owner = f"{legacy} #>> '{{legacy,bot_id}}'" if spec.target == "trading.market_data" else "t.bot_id"
        condition = f"WHERE {owner} = %(bot)s AND {legacy} ? 'legacy' AND {legacy} #>> '{{legacy,table}}' = '{table}'"
        return cls(
            cursor,
            bot.bot_id,
            spec,
            canonical.replace("{row}", "t"),
            condition,
            f"({legacy} #>> '{{legacy,id}}')::bigint",
        )

    def summary(self) -> Summary:
        same = {name: name for name in self.spec.sums}
        times = {name: name for name in self.spec.times}
        hashed = f"migration.row_hash({self.canonical})"
        return summarize(
            self.cursor, self.number, hashed, f"{self.spec.target} t", self.condition, same, times, {"bot": self.bot_id}
        )

    def rows(self, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for low, high in ranges:
            self.cursor.execute(
                f"SELECT {self.number}, migration.row_hash({self.canonical}) FROM {self.spec.target} t"
                f" {self.condition} AND {self.number} BETWEEN {low} AND {high}",
                {"bot": self.bot_id},
            )
            yield from self.cursor.fetchall()

    def texts(self, ids: Sequence[int], separator: str) -> dict[int, Sequence[str]]:
        self.cursor.execute(
            f"SELECT {self.number}, {self.canonical} FROM {self.spec.target} t {self.condition} AND {self.number} = ANY (%(ids)s)",
            {"bot": self.bot_id, "ids": list(ids)},
        )
        return {number: shown.split(separator) for number, shown in self.cursor.fetchall()}

    def open(self) -> dict[int, tuple[str, Decimal]]:
        names = ", ".join(f"t.{name}" for _, name in self.spec.shown)
        self.cursor.execute(
            f"SELECT {self.number}, {names} FROM {self.spec.target} t {self.condition} AND {self.spec.open_here}",
            {"bot": self.bot_id},
        )
        return {number: (symbol, size) for number, symbol, size in self.cursor.fetchall()}


def reconcile_bot(cursor: Cursor, bot: Bot, password: str | None, warn: Warn) -> dict[str, Any]:
    """Everything about one bot. `cursor` is that of a read-only REPEATABLE READ connection without a transaction."""
    report: dict[str, Any] = {"bot_id": bot.bot_id, "bot_type": bot.bot_type, "tables": [], "differences": []}
    differences: list[str] = report["differences"]
    # Times are compared as they are shown: the Momentum bot's in its own time zone, the others in UTC.
    zone = bot.timezone if bot.bot_type == "momentum" else "UTC"
    cursor.execute("SELECT set_config('TimeZone', %s, true)", (zone,))
    cursor.execute("SELECT last_heartbeat FROM trading.bots WHERE bot_id = %s", (bot.bot_id,))
    row = cursor.fetchone()
    if row is None:
        differences.append("the bot is not registered in trading.bots: run playbooks/phase2_data_migration.yml")
    elif bot.bot_type == "lxalgo":
        cursor.execute("SELECT count(*) FROM trading.account_balance WHERE bot_id = %s", (bot.bot_id,))
        if not one(cursor)[0]:
            differences.append("the bot has no opening balance: run 004_register_lxalgo_bot.sql")
    else:
        _reconcile_history(cursor, bot, row[0] is not None, password, warn, report)
    report["ok"] = not differences and all(t["ok"] for t in report["tables"])
    return report


def _reconcile_history(
    cursor: Cursor, bot: Bot, ran: bool, password: str | None, warn: Warn, report: dict[str, Any]
) -> None:
    differences: list[str] = report["differences"]
    run = last_merged(cursor, bot.bot_id)
    if run is None:
        differences.append("nothing was migrated yet: run playbooks/phase2_data_migration.yml")
        return
    with open_source(bot, run, password, warn) as source:
        report.update(
            run_id=run.run_id, merged_at=run.merged_at.isoformat(), snapshot_at=source.snapshot_at.isoformat()
        )
        for table, spec in SPECS[bot.bot_type].items():
            report["tables"].append(_reconcile_table(cursor, bot, ran, source, table, spec).as_json())
    _check_links(cursor, bot, ran, differences)


def _reconcile_table(cursor: Cursor, bot: Bot, ran: bool, source: Source, table: str, spec: Spec) -> TableReport:
    held = Held.of(cursor, bot, table, spec, source.canonical_sql(table))
    cursor.execute(
        "SELECT source_id::bigint FROM migration.rejects WHERE bot_id = %s AND source_table = %s", (bot.bot_id, table)
    )
    rejected = {row[0] for row in cursor.fetchall()}
    report = TableReport(table, spec.target, source.count(table))
    there = source.summary(table, spec, rejected, Progress(f"{bot.bot_id}: {table} compared", report.source))
    here = held.summary()
    report.sums = {name: {"source": f"{there.sums[name]:f}", "target": f"{here.sums[name]:f}"} for name in spec.sums}
    report.ranges = {name: {"source": there.ranges[name], "target": here.ranges[name]} for name in spec.times}
    report.hashes = {"source": f"{there.hash & 2**64 - 1:016x}", "target": f"{here.hash & 2**64 - 1:016x}"}
    report.rejected = report.source - there.rows
    blocks = sorted(b for b in there.blocks.keys() | here.blocks.keys() if there.blocks.get(b) != here.blocks.get(b))
    report.migrated = there.rows
    unexplained = _compare_rows(bot, ran, source, held, table, blocks, rejected, report)
    if not (blocks or unexplained):
        report.differences += [
            f"the sum of {n} is {here.sums[n]:f}, expected {there.sums[n]:f}"
            for n in spec.sums
            if here.sums[n] != there.sums[n]
        ]
        report.differences += [
            f"{n} runs from {here.ranges[n][0]} to {here.ranges[n][1]}, expected {there.ranges[n][0]} to {there.ranges[n][1]}"
            for n in spec.times
            if here.ranges[n] != there.ranges[n]
        ]
    if spec.shown and not ran:
        _compare_open(source, held, table, rejected, report)
    return report


def _compare_rows(
    bot: Bot,
    ran: bool,
    source: Source,
    held: Held,
    table: str,
    blocks: Sequence[int],
    rejected: set[int],
    report: TableReport,
) -> int:
    """Classify the rows of blocks that differ; how many have no explanation."""
    unexplained = 0
    held.cursor.execute(
        "SELECT source_id::bigint FROM migration.missing WHERE bot_id = %s AND source_table = %s", (bot.bot_id, table)
    )
    missing = {row[0] for row in held.cursor.fetchall()}
    for start in range(0, len(blocks), 50):
        ranges = [(block * BLOCK, block * BLOCK + BLOCK - 1) for block in blocks[start : start + 50]]
        there = {number: row_hash for number, row_hash in source.rows(table, ranges) if number not in rejected}
        here: dict[int, int] = {}
        twice: list[int] = []
        for number, row_hash in held.rows(ranges):
            if number in here:
                twice.append(number)
            here[number] = row_hash
        alone = here.keys() - there.keys() - rejected
        report.missing_at_source += len(alone & missing)
        report.deleted_since += len(alone - missing)
        differing = sorted(number for number in there if here.get(number) != there[number])
        report.migrated -= len(differing)
        changed = source.changed(table, differing) if differing else set()
        report.pending += len(changed)
        left = [number for number in differing if number not in changed]
        if ran:
            kept = sum(number in here for number in left)
            report.kept += kept
            report.migrated += kept
            left = [number for number in left if number not in here]
        if table == "market_data" and left:
            left = _not_held_elsewhere(source, held, left, report)
        unexplained += len(left)
        if twice:
            report.differences.append(f"legacy rows are there more than once: id {', '.join(map(str, twice[:NAMED]))}")
        if left and len(report.differences) < NAMED:
            report.differences += _name_rows(source, held, table, left[: NAMED - len(report.differences)])
    if unexplained > NAMED:
        report.differences.append(f"{unexplained} rows of {bot.bot_id} differ in all")
    return unexplained


def _name_rows(source: Source, held: Held, table: str, ids: Sequence[int]) -> list[str]:
    """What differs in rows, column by column."""
    there = source.texts(table, ids)
    here = held.texts(ids, "\t" if isinstance(source, MomentumSource) else "\x1f")
    lines = []
    for number in ids:
        if number not in here:
            lines.append(f"id {number} is not there")
            continue
        parts = [
            f"{name} is {_shown(now, before)}, expected {_shown(before, now)}"
            for name, now, before in zip(source.columns(table), here[number], there[number], strict=False)
            if now != before
        ]
        lines.append(f"id {number}: {'; '.join(parts) or there[number][0]}")
    return lines


def _shown(text: str, other: str) -> str:
    """A text, or of a long one the part where it begins to differ from another."""
    if text in ("\x01", "\\N"):
        return "NULL"
    if len(text) <= 200:
        return text
    differs_at = next((at for at, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0)
    start = max(0, differs_at - 60)
    return ("..." if start else "") + text[start : start + 200] + ("..." if len(text) > start + 200 else "")


def _not_held_elsewhere(source: Source, held: Held, ids: Sequence[int], report: TableReport) -> list[int]:
    """Candles that no other source brought with the same values: those are one row here, under that source's id."""
    columns = ("symbol", "interval", "timestamp", "open_price", "high_price", "low_price", "close_price", "volume")
    names = list(source.columns("market_data"))
    left = []
    types = {"symbol": "text", "interval": "text", "timestamp": "timestamptz"}
    same = " AND ".join(f't."{c}" IS NOT DISTINCT FROM %({c})s::{types.get(c, "numeric")}' for c in columns)
    for number, parts in source.texts("market_data", ids).items():
        row = dict(zip(names, (None if p == "\x01" else p for p in parts), strict=False))
        held.cursor.execute(
            f"SELECT count(*) FROM trading.market_data t WHERE {same} AND t.metadata #>> '{{legacy,bot_id}}' IS DISTINCT FROM %(bot)s",
            {**{c: row[c] for c in columns}, "bot": held.bot_id},
        )
        if one(held.cursor)[0]:
            report.migrated += 1
        else:
            left.append(number)
    return left


def _compare_open(source: Source, held: Held, table: str, rejected: set[int], report: TableReport) -> None:
    """What is open, one by one."""
    there = {number: what for number, what in source.open(table, held.spec).items() if number not in rejected}
    here = held.open()
    report.open = {"source": len(there), "target": len(here)}
    differing = sorted(number for number in there.keys() | here.keys() if there.get(number) != here.get(number))
    changed = source.changed(table, differing) if differing else set()
    for number in differing:
        if number not in changed and number in there:
            report.differences.append(
                f"{table} {number} is open at the source with {there[number]}, and here: {here.get(number, 'not open')}"
            )


def _check_links(cursor: Cursor, bot: Bot, ran: bool, differences: list[str]) -> None:
    checks = {
        "signals point to a trade that is not there, or not theirs": (
            "SELECT count(*) FROM trading.signals s LEFT JOIN trading.trades t ON t.trade_id = s.execution_trade_id"
            " WHERE s.bot_id = %(bot)s AND s.execution_trade_id IS NOT NULL"
            " AND (t.id IS NULL OR (s.metadata ? 'legacy' AND s.metadata #>> '{legacy,execution_id}' IS DISTINCT FROM t.metadata #>> '{legacy,id}'))"
        ),
        "positions point to a trade that is not there": (
            "SELECT count(*) FROM trading.positions p CROSS JOIN unnest(entry_trade_ids) AS e (trade_id)"
            " WHERE bot_id = %(bot)s AND NOT EXISTS (SELECT FROM trading.trades t WHERE t.trade_id = e.trade_id)"
        ),
    }
    if not ran:
        if bot.bot_type == "shortseller":
            checks["positions whose total_pnl is not unrealized_pnl + realized_pnl"] = (
                "SELECT count(*) FROM trading.positions WHERE bot_id = %(bot)s AND position_metadata ? 'legacy'"
                " AND total_pnl IS DISTINCT FROM migration.money(unrealized_pnl + realized_pnl)"
            )
            checks["days whose equity is not what balances and profits make it"] = (
                "SELECT count(*) FROM (SELECT r.*,"
                " legacy_shortseller.equity_before(bot_id, date::timestamp AT TIME ZONE %(zone)s) AS opening,"
                " legacy_shortseller.equity_before(bot_id, (date + 1)::timestamp AT TIME ZONE %(zone)s) AS closing,"
                " coalesce(sum(daily_pnl) OVER (ORDER BY date ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before"
                " FROM trading.risk_metrics r WHERE bot_id = %(bot)s AND metadata ? 'legacy') AS s"
                " JOIN trading.bots b USING (bot_id) WHERE (s.starting_equity, s.ending_equity) IS DISTINCT FROM"
                " (coalesce(s.opening, migration.money(b.initial_capital + s.before)),"
                " coalesce(s.closing, migration.money(b.initial_capital + s.before + coalesce(s.daily_pnl, 0))))"
                # A day that is gone at the source no longer counts there.
                " AND NOT EXISTS (SELECT FROM migration.missing m WHERE m.bot_id = s.bot_id AND m.source_table = 'risk_metrics')"
            )
        if bot.bot_type == "momentum":
            cursor.execute(
                "SELECT part ->> 'matching', part ->> 'differing' FROM migration.mappings m, migration.mapping_sql(m) AS part"
                " WHERE m.source_view = 'legacy_momentum.mapped_positions'"
            )
            matching, differing = one(cursor)
            checks["positions that are not as their trades make them"] = (
                f"SELECT count(*) FROM legacy_momentum.mapped_positions s JOIN trading.positions t ON {matching}"
                f" WHERE s.bot_id = %(bot)s AND t.bot_id = %(bot)s AND {differing}"
            )
            checks["open trades have no open position of their size, or the reverse"] = (
                "SELECT count(*) FROM (SELECT trade_id, symbol, quantity FROM trading.trades WHERE bot_id = %(bot)s AND exit_time IS NULL) AS t"
                " FULL JOIN (SELECT position_id, symbol, size FROM trading.positions WHERE bot_id = %(bot)s AND status = 'open') AS p"
                " ON p.position_id = t.trade_id AND p.symbol = t.symbol AND p.size = t.quantity"
                " WHERE t.trade_id IS NULL OR p.position_id IS NULL"
            )
        for table, metadata in ORIGIN.items():
            checks[
                f"rows of {table} came from nowhere: the bot never ran here, and the migration did not bring them"
            ] = f"SELECT count(*) FROM {table} WHERE bot_id = %(bot)s AND NOT {metadata} ? 'legacy'"
    for text, query in checks.items():
        cursor.execute(query, {"bot": bot.bot_id, "zone": bot.timezone})
        found = one(cursor)[0]
        if found:
            differences.append(f"{found} {text}")
