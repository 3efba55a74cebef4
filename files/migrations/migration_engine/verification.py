"""Compares what a bot's source held with what trading_db holds of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from . import momentum_mapping, values
from .settings import Bot
from .statistics import Statistics
from .target import Cursor, load_statistics

# Source column -> column of the target it is summed up in, by target table.
SUMS: dict[str, dict[str, dict[str, str]]] = {
    "shortseller": {
        "trades": {"quantity": "quantity", "price": "entry_price", "pnl": "pnl_usd", "fees": "fees"},
        "positions": {
            **{c: c for c in ("size", "unrealized_pnl", "realized_pnl", "stop_loss", "take_profit", "leverage")},
            "avg_price": "avg_entry_price",
        },
        "market_data": {c: c for c in ("open_price", "high_price", "low_price", "close_price", "volume")},
        "signals": {"strength": "strength", "price": "price"},
        "account_balance": {
            c: c for c in ("total_balance", "available_balance", "equity", "margin_used", "unrealized_pnl")
        },
        "risk_metrics": {
            "total_pnl": "daily_pnl",
            **{
                c: c
                for c in (
                    "max_drawdown",
                    "win_rate",
                    "profit_factor",
                    "sharpe_ratio",
                    "total_trades",
                    "winning_trades",
                    "losing_trades",
                )
            },
        },
    },
    "momentum": {
        "trades": {
            c: c
            for c in (
                "entry_price",
                "exit_price",
                "quantity",
                "position_size_usd",
                "stop_loss",
                "take_profit",
                "pnl_usd",
                "pnl_pct",
                "holding_time_seconds",
                "signal_strength",
            )
        },
        "daily_snapshots": {
            **{c: c for c in ("starting_equity", "ending_equity", "daily_pnl", "daily_pnl_pct")},
            "trades_count": "total_trades",
            "wins_count": "winning_trades",
            "losses_count": "losing_trades",
        },
        "system_events": {},
        "risk_events": {"current_value": "current_value", "limit_value": "limit_value"},
    },
}
RANGES: dict[str, dict[str, dict[str, str]]] = {
    "shortseller": {
        "trades": {"timestamp": "entry_time", "executed_at": "exit_time"},
        "positions": {"opened_at": "opened_at", "closed_at": "closed_at"},
        "market_data": {"timestamp": "timestamp"},
        "signals": {"timestamp": "timestamp"},
        "account_balance": {"timestamp": "timestamp"},
        "risk_metrics": {"date": "date"},
    },
    "momentum": {
        "trades": {"entry_time": "entry_time", "exit_time": "exit_time"},
        "daily_snapshots": {"date": "date"},
        "system_events": {"event_time": "event_time"},
        "risk_events": {"event_time": "event_time"},
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


@dataclass
class TableReport:
    """One mapping: source = migrated + rejected, and what differs."""

    source_table: str
    target_table: str
    source: int
    migrated: int
    rejected: int
    missing_at_source: int
    sums: dict[str, dict[str, str]] = field(default_factory=dict)
    ranges: dict[str, dict[str, list[str | None]]] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "ok": not self.differences}


def compare_numbers(report: TableReport, source: Statistics, target: Mapping[str, Decimal]) -> None:
    """Note each sum, and each that differs. `source` is without rejected rows."""
    for name, expected in source.sums.items():
        if name not in target:
            continue
        found = target[name]
        report.sums[name] = {"source": f"{expected:f}", "target": f"{found:f}"}
        if found != expected:
            report.differences.append(f"the sum of {name} is {found:f}, expected {expected:f}")


def compare_ranges(
    report: TableReport, source: Statistics, rejected: Statistics, target: Mapping[str, tuple[str | None, str | None]]
) -> None:
    """Note each range of times; those of rejected rows count as found."""
    for name, (low, high) in target.items():
        found = [
            _extreme(min, low, rejected.minima.get(name)),
            _extreme(max, high, rejected.maxima.get(name)),
        ]
        expected = [_normal(source.minima.get(name)), _normal(source.maxima.get(name))]
        report.ranges[name] = {"source": expected, "target": found}
        if found != expected:
            report.differences.append(f"{name} runs from {found[0]} to {found[1]}, expected {expected[0]} to {expected[1]}")


def _normal(text: str | None) -> str | None:
    """One text for a moment, whoever wrote it."""
    if text is None:
        return None
    try:
        return values.moment(text, values.UTC)[0].isoformat()
    except values.Unmappable:
        return text


def _extreme(function: Any, *texts: str | None) -> str | None:
    found = [t for t in map(_normal, texts) if t is not None]
    return function(found, key=_order) if found else None


def _order(text: str) -> tuple[int, Any]:
    if text in ("-infinity", "infinity"):
        return (-1 if text[0] == "-" else 1, "")
    try:
        return (0, datetime.fromisoformat(text).isoformat())
    except ValueError:
        return (0, text)


def rejected_statistics(bot: Bot, table: str, rows: list[str]) -> Statistics:
    """What rejected rows (their JSON) contributed to the source's statistics."""
    if bot.bot_type == "momentum":
        zone = values.find_zone(bot.timezone)
        return momentum_mapping.rejected_statistics(table, bot.bot_id, zone, map(json.loads, rows))
    found = Statistics(len(rows))
    for text in rows:
        row = json.loads(text, parse_float=Decimal)
        for name in SUMS[bot.bot_type][table]:
            if isinstance(row.get(name), (int, Decimal)):
                found.sums[name] = found.sums.get(name, Decimal(0)) + Decimal(row[name])
        for name in RANGES[bot.bot_type][table]:
            if isinstance(row.get(name), str):
                found.minima[name] = _extreme(min, found.minima.get(name), row[name]) or ""
                found.maxima[name] = _extreme(max, found.maxima.get(name), row[name]) or ""
    return found


def verify_bot(cursor: Cursor, bot: Bot) -> dict[str, Any]:
    """Everything about one bot, in the caller's (read-only) transaction."""
    report: dict[str, Any] = {"bot_id": bot.bot_id, "bot_type": bot.bot_type, "tables": [], "differences": []}
    differences: list[str] = report["differences"]
    cursor.execute("SELECT last_heartbeat FROM trading.bots WHERE bot_id = %s", (bot.bot_id,))
    row = cursor.fetchone()
    if row is None:
        differences.append("the bot is not registered in trading.bots")
    elif bot.bot_type == "lxalgo":
        cursor.execute("SELECT count(*) FROM trading.account_balance WHERE bot_id = %s", (bot.bot_id,))
        if not _scalar(cursor):
            differences.append("the bot has no opening balance")
    else:
        _verify_history(cursor, bot, row[0] is not None, report)
    report["ok"] = not differences and all(t["ok"] for t in report["tables"])
    return report


def _verify_history(cursor: Cursor, bot: Bot, ran: bool, report: dict[str, Any]) -> None:
    differences: list[str] = report["differences"]
    cursor.execute(
        "SELECT run_id, snapshot_at, merged_at FROM migration.runs WHERE bot_id = %s ORDER BY run_id DESC LIMIT 1", (bot.bot_id,)
    )
    run = cursor.fetchone()
    if run is None:
        differences.append("nothing was migrated yet")
        return
    run_id, snapshot_at, merged_at = run
    report.update(run_id=run_id, snapshot_at=snapshot_at.isoformat(), merged_at=merged_at and merged_at.isoformat())
    if merged_at is None:
        differences.append(f"run {run_id} was staged and not merged: its rows are not in the unified tables")
        return
    cursor.execute("SELECT migration.is_staged(%s, %s)", (bot.bot_id, bot.bot_type))
    if not _scalar(cursor):
        differences.append(f"the staged rows of run {run_id} are gone (did the server crash?): run the migration again")
        return
    statistics = load_statistics(cursor, run_id)
    cursor.execute(
        "SELECT m.source_table, m.target_table, m.source_view, migration.mapping_sql(m)"
        " || jsonb_build_object('missing', migration.missing_sql(m)) FROM migration.mappings m"
        " WHERE bot_type = %s ORDER BY step",
        (bot.bot_type,),
    )
    seen: set[str] = set()
    for source_table, target_table, view, part in cursor.fetchall():
        table = _verify_mapping(
            cursor, bot, ran, source_table, target_table, view, part, None if source_table in seen else statistics[source_table]
        )
        seen.add(source_table)
        report["tables"].append(table.as_json())
    _verify_ids(cursor, bot, ran, differences)


def _verify_mapping(
    cursor: Cursor,
    bot: Bot,
    ran: bool,
    source_table: str,
    target_table: str,
    view: str,
    part: dict[str, str],
    source: Statistics | None,
) -> TableReport:
    """`source` None: the mapping is the second of its table, and has no statistics of its own."""
    sums = SUMS[bot.bot_type][source_table] if source else {}
    ranges = RANGES[bot.bot_type][source_table] if source else {}
    # A candle that another source holds has only its values in common.
    differing = part["differing"]
    if target_table == "trading.market_data":
        same = " AND ".join(f"t.{c} IS NOT DISTINCT FROM s.{c}" for c in sums)
        differing = f"CASE WHEN {part['t_bot']} = s._bot_id THEN {part['differing']} ELSE NOT ({same}) END"
    # The parts come from migration.mapping_sql, the columns from above: no input.
    columns = [
        "count(*)",
        "count(t.id)",
        f"count(*) FILTER (WHERE t.id IS NOT NULL AND {differing})",
        *(f"coalesce(sum(t.{c}), 0)" for c in sums.values()),
        *(f"{f}(t.{c})::text" for c in ranges.values() for f in ("min", "max")),
    ]
    joined = f"FROM {view} s LEFT JOIN {target_table} t ON {part['matching']} WHERE {part['s_bot']} = %(bot)s"
    cursor.execute(f"SELECT {', '.join(columns)} {joined}", {"bot": bot.bot_id})
    row = cursor.fetchone()
    assert row is not None
    staged, migrated, differs, *numbers = row

    cursor.execute(
        'SELECT "row"::text FROM migration.rejects WHERE bot_id = %s AND source_table = %s', (bot.bot_id, source_table)
    )
    rejected = rejected_statistics(bot, source_table, [r[0] for r in cursor.fetchall()] if source else [])
    cursor.execute(
        f"SELECT count({part['legacy']} #>> '{{legacy,id}}'), count(DISTINCT {part['legacy']} #>> '{{legacy,id}}')"
        f" FROM {target_table} t WHERE {part['legacy_row']} AND {part['t_bot']} = %(bot)s",
        {"bot": bot.bot_id},
    )
    held, distinct = cursor.fetchone() or (0, 0)
    missing_at_source = _scalar_of(cursor, part["missing"].replace("$1", "%(bot)s"), {"bot": bot.bot_id})
    report = TableReport(
        source_table, target_table, source.row_count if source else staged, migrated, rejected.row_count, missing_at_source
    )
    if report.source != report.migrated + report.rejected:
        report.differences.append(
            f"{report.source} rows at the source, {report.migrated} migrated and {report.rejected} rejected"
        )
    if migrated < staged:
        report.differences.append(f"{staged - migrated} rows are missing, the first: " + _first(cursor, joined, "t.id IS NULL", bot))
    if differs and not ran:
        report.differences.append(
            f"{differs} rows differ from the source, the first: " + _first(cursor, joined, f"t.id IS NOT NULL AND {differing}", bot)
        )
    if held != distinct:
        report.differences.append(f"{held - distinct} legacy rows are there more than once")
    if source and not ran:
        compare_numbers(report, source.minus(rejected), dict(zip(sums, map(Decimal, numbers), strict=False)))
        texts = numbers[len(sums) :]
        compare_ranges(report, source, rejected, {n: (texts[2 * i], texts[2 * i + 1]) for i, n in enumerate(ranges)})
    return report


def _verify_ids(cursor: Cursor, bot: Bot, ran: bool, differences: list[str]) -> None:
    checks = {
        "signals point to a trade that is not there": (
            "SELECT count(*) FROM trading.signals s WHERE bot_id = %(bot)s AND execution_trade_id IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM trading.trades t WHERE t.trade_id = s.execution_trade_id)"
        ),
        "positions point to a trade that is not there": (
            "SELECT count(*) FROM trading.positions p CROSS JOIN unnest(entry_trade_ids) AS e (trade_id)"
            " WHERE bot_id = %(bot)s AND NOT EXISTS (SELECT FROM trading.trades t WHERE t.trade_id = e.trade_id)"
        ),
        "trade ids are there more than once": (
            "SELECT count(*) FROM (SELECT FROM trading.trades WHERE bot_id = %(bot)s GROUP BY trade_id HAVING count(*) > 1) AS d"
        ),
    }
    if not ran:
        for table, metadata in ORIGIN.items():
            checks[f"rows of {table} came from nowhere: the bot never ran here, and the migration did not bring them"] = (
                f"SELECT count(*) FROM {table} WHERE bot_id = %(bot)s AND NOT {metadata} ? 'legacy'"
            )
    for text, query in checks.items():
        found = _scalar_of(cursor, query, {"bot": bot.bot_id})
        if found:
            differences.append(f"{found} {text}")


def _first(cursor: Cursor, joined: str, condition: str, bot: Bot) -> str:
    cursor.execute(f"SELECT s._source_id {joined} AND {condition} ORDER BY 1 LIMIT 5", {"bot": bot.bot_id})
    return ", ".join(f"id {row[0]}" for row in cursor.fetchall())


def _scalar(cursor: Cursor) -> Any:
    row = cursor.fetchone()
    assert row is not None
    return row[0]


def _scalar_of(cursor: Cursor, query: str, parameters: Mapping[str, Any]) -> int:
    cursor.execute(query, parameters)
    found: int = _scalar(cursor)
    return found
