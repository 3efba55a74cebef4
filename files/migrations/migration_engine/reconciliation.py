"""Compares what a bot's live source holds with what trading_db holds of it.

Both sides are read in a snapshot of their own. Rows are compared by the hashes
of their canonical texts, a block of ids at a time, and one by one where these
differ. A row that can have changed at the source since the last merged run is
pending: the next run carries it, and it is no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any

from .progress import Progress
from .reconciliation_sources import SPECS, Open, Pair, Source, Spec, Summary, Warn, open_source, summarize
from .settings import Bot
from .target import BLOCK_BITS, Cursor, ids_of, last_merged, one, stream

NAMED = 5
# Tables where every row of a bot that never ran here must have been migrated.
ORIGIN = {
    "trading.trades": "metadata",
    "trading.positions": "position_metadata",
    "trading.signals": "metadata",
    "trading.account_balance": "metadata",
    "trading.risk_metrics": "metadata",
}


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
    hashed: str
    condition: str
    number: str

    @classmethod
    def of(cls, cursor: Cursor, bot: Bot, table: str, spec: Spec, source: Source) -> Held:
        canonical = source.canonical_sql(table).replace("{row}", "t")
        legacy = f"t.{spec.metadata}"
        owner = f"{legacy} #>> '{{legacy,bot_id}}'" if spec.target == "trading.market_data" else "t.bot_id"
        condition = f"WHERE {owner} = %(bot)s AND {legacy} ? 'legacy' AND {legacy} #>> '{{legacy,table}}' = '{table}'"
        return cls(
            cursor,
            bot.bot_id,
            spec,
            canonical,
            source.row_hash.format(canonical),
            condition,
            f"({legacy} #>> '{{legacy,id}}')::bigint",
        )

    def summary(self) -> Summary:
        same = {name: name for name in self.spec.sums}
        times = {name: name for name in self.spec.times}
        return summarize(
            self.cursor,
            self.number,
            self.hashed,
            f"{self.spec.target} t",
            self.condition,
            same,
            times,
            {"bot": self.bot_id},
        )

    def rows(self, blocks: Sequence[int]) -> list[tuple[int, int]]:
        self.cursor.execute(
            f"SELECT {self.number}, {self.hashed} FROM {self.spec.target} t"
            f" {self.condition} AND {self.number} >> {BLOCK_BITS} = ANY (%(blocks)s::bigint[])",
            {"bot": self.bot_id, "blocks": list(blocks)},
        )
        return self.cursor.fetchall()

    def texts(self, ids: Sequence[int], separator: str) -> dict[int, Sequence[str]]:
        self.cursor.execute(
            f"SELECT {self.number}, {self.canonical} FROM {self.spec.target} t {self.condition} AND {self.number} = ANY (%(ids)s)",
            {"bot": self.bot_id, "ids": list(ids)},
        )
        return {number: shown.split(separator) for number, shown in self.cursor.fetchall()}

    def open(self) -> Iterator[Open]:
        names = ", ".join(f"t.{name}" for _, name in self.spec.shown)
        query = f"SELECT {self.number}, {names} FROM {self.spec.target} t {self.condition} AND {self.spec.open_here} ORDER BY 1"
        return stream(self.cursor, query, {"bot": self.bot_id})


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
    with open_source(cursor, bot, run, password, warn) as source:
        report.update(
            run_id=run.run_id, merged_at=run.merged_at.isoformat(), snapshot_at=source.snapshot_at.isoformat()
        )
        for table, spec in SPECS[bot.bot_type].items():
            report["tables"].append(_reconcile_table(cursor, bot, ran, source, table, spec).as_json())
    _check_links(cursor, bot, ran, differences)


def _reconcile_table(cursor: Cursor, bot: Bot, ran: bool, source: Source, table: str, spec: Spec) -> TableReport:
    held = Held.of(cursor, bot, table, spec, source)
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
    report.rejected = len(source.texts(table, sorted(rejected))) if rejected else 0
    if unread := report.source - there.rows - report.rejected:
        report.differences.append(
            f"{unread} of {report.source} rows at the source were not read: ids are NULL or doubled"
        )
    blocks = sorted(b for b in there.blocks.keys() | here.blocks.keys() if there.blocks.get(b) != here.blocks.get(b))
    report.migrated = there.rows
    unexplained = _compare_rows(bot, ran, source, held, table, blocks, (there, here), rejected, report)
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
    summaries: tuple[Summary, Summary],
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
        some = blocks[start : start + 50]
        rows_there = [row for row in source.rows(table, [ids_of(block) for block in some]) if row[0] not in rejected]
        rows_here = held.rows(some)
        # What tells blocks apart must be among their rows.
        for rows, summary, side in zip((rows_there, rows_here), summaries, ("source", "target"), strict=True):
            counted = [summary.blocks.get(block, (0, 0)) for block in some]
            if [sum(column) for column in zip(*counted, strict=True)] != [len(rows), sum(h for _, h in rows)]:
                report.differences.append(
                    f"{side}: rows of ids {ids_of(some[0])[0]} to {ids_of(some[-1])[1]} were summed up otherwise than read: report this bug"
                )
        there = dict(rows_there)
        here = dict(rows_here)
        twice = sorted(number for number, times in Counter(number for number, _ in rows_here).items() if times > 1)
        alone = here.keys() - there.keys() - rejected
        report.missing_at_source += len(alone & missing)
        report.deleted_since += len(alone - missing)
        strangers = source.strangers(table, alone, set(here), missing)
        if strangers:
            report.differences.append(f"rows are here that the source never had, among id {_listed(strangers)}")
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
            report.differences.append(f"legacy rows are there more than once: id {_listed(twice)}")
        if left and len(report.differences) < NAMED:
            report.differences += _name_rows(source, held, table, left[: NAMED - len(report.differences)])
    if unexplained > NAMED:
        report.differences.append(f"{unexplained} rows of {bot.bot_id} differ in all")
    return unexplained


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:NAMED])) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")


def _name_rows(source: Source, held: Held, table: str, ids: Sequence[int]) -> list[str]:
    """What differs in rows, column by column."""
    there = source.texts(table, ids)
    here = held.texts(ids, source.separator)
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
    # By the key, in its index.
    same = " AND ".join(
        f't."{c}" {"=" if c in types else "IS NOT DISTINCT FROM"} %({c})s::{types.get(c, "numeric")}' for c in columns
    )
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
    there = ((row[0], "source", row) for row in source.open(table, held.spec) if row[0] not in rejected)
    here = ((row[0], "target", row) for row in held.open())
    report.open = {"source": 0, "target": 0}
    differing: dict[int, dict[str, Open]] = {}
    for number, both in groupby(merge(there, here, key=itemgetter(0)), itemgetter(0)):
        found = {side: row for _, side, row in both}
        for side in found:
            report.open[side] += 1
        if found.get("source") != found.get("target"):
            differing[number] = found
    changed = source.changed(table, list(differing)) if differing else set()
    left = [number for number, found in differing.items() if number not in changed and "source" in found]
    for number in left[:NAMED]:
        _, symbol, size = differing[number]["source"]
        row = differing[number].get("target")
        here_with = f"with {row[2]} {row[1]}" if row else "not"
        report.differences.append(f"id {number} is open at the source with {size} {symbol}, and here {here_with}")
    if len(left) > NAMED:
        report.differences.append(f"{len(left)} that are open at the source differ in all")


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
                # Nor does one that was migrated before it was rejected.
                " AND NOT EXISTS (SELECT FROM migration.rejects k JOIN trading.risk_metrics o"
                " ON o.bot_id = k.bot_id AND o.metadata #>> '{legacy,id}' = k.source_id"
                " WHERE k.bot_id = s.bot_id AND k.source_table = 'risk_metrics')"
            )
            checks["signals whose trade is there do not point to it"] = (
                "SELECT count(*) FROM trading.signals s JOIN trading.trades t"
                " ON t.bot_id = s.bot_id AND t.metadata #>> '{legacy,table}' = 'trades'"
                " AND t.metadata #>> '{legacy,id}' = s.metadata #>> '{legacy,execution_id}'"
                " WHERE s.bot_id = %(bot)s AND s.metadata ? 'legacy' AND s.execution_trade_id IS DISTINCT FROM t.trade_id"
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
            ] = (
                f"SELECT count(*) FROM {table} WHERE bot_id = %(bot)s AND ({metadata} #>> '{{legacy,table}}' = ANY (%(tables)s)"
                f" AND {metadata} #>> '{{legacy,id}}' ~ '^-?[0-9]+$') IS NOT TRUE"
            )
    for text, query in checks.items():
        cursor.execute(query, {"bot": bot.bot_id, "zone": bot.timezone, "tables": list(SPECS[bot.bot_type])})
        found = one(cursor)[0]
        if found:
            differences.append(f"{found} {text}")
