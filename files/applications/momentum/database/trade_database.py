"""Trades, daily snapshots, system events and risk events in the unified database.

A drop-in for the class of this name that kept them in SQLite: same methods,
arguments, defaults, rows and exceptions. What is different:

- the unified database is another machine and may be away. A write is then kept
  beside the bot and delivered later; get_open_trades answers from memory; any
  other read raises DatabaseUnavailable, which is an sqlite3.OperationalError.
- a side other than buy, sell, long or short, a price or quantity that is
  infinite or below zero: WriteRefused, which is an sqlite3.IntegrityError.
- log_trade_entry with a trade_id that was used before raises WriteRefused, as
  ever. If the database is away and it was used before this process began, the
  second entry is found out when it is delivered: `python -m trading_db status`.
- log_trade_exit of a trade that was never logged, or whose entry the database
  refused, returns as ever, but is logged as an error and kept, to be sent again.
- a row's newness goes by the moment, also where clocks are put back.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from trading_db import Refused, Unavailable
from trading_db.legacy import Column, DriverErrors, LegacyStore, Operation, Row, Table, insert
from trading_db.legacy_values import (
    DayText,
    JsonText,
    Kept,
    KeptCount,
    Kind,
    LocalTime,
    Mode,
    Real,
    UtcText,
    Whole,
    Word,
    integer,
    real,
    text,
)

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
_TEXT, _NEEDED, _RATIO = Kind(), Real(needed=True), Real(6)

TRADES = Table(
    "trades",
    "trading.trades",
    (
        Column("trade_id", "", Kept()),
        Column("mode", "", Mode()),
        Column("symbol", "symbol", _TEXT),
        Column("side", "side", Word(SIDES)),
        Column("entry_time", "entry_time", LocalTime()),
        Column("entry_price", "entry_price", _NEEDED),
        Column("exit_time", "exit_time", LocalTime()),
        Column("exit_price", "exit_price", Real()),
        Column("quantity", "quantity", _NEEDED),
        Column("position_size_usd", "position_size_usd", Real()),
        Column("stop_loss", "stop_loss", Real()),
        Column("take_profit", "take_profit", Real()),
        Column("pnl_usd", "pnl_usd", Real()),
        Column("pnl_pct", "pnl_pct", _RATIO),
        Column("exit_reason", "exit_reason", _TEXT),
        Column("holding_time_seconds", "holding_time_seconds", Whole()),
        Column("signal_strength", "signal_strength", _RATIO),
        Column("created_at", "created_at", UtcText()),
    ),
    frozenset({"mode", "symbol", "side", "entry_price", "quantity", "position_size_usd"}),
)
SNAPSHOTS = Table(
    "daily_snapshots",
    "trading.risk_metrics",
    (
        Column("date", "date", DayText()),
        Column("mode", "", Mode()),
        Column("starting_equity", "starting_equity", Real()),
        Column("ending_equity", "ending_equity", Real()),
        Column("daily_pnl", "daily_pnl", Real()),
        Column("daily_pnl_pct", "daily_pnl_pct", _RATIO),
        Column("trades_count", "total_trades", Whole(32)),
        Column("wins_count", "winning_trades", Whole(32)),
        Column("losses_count", "losing_trades", Whole(32)),
        Column("open_positions", "", KeptCount()),
        Column("created_at", "calculated_at", UtcText()),
    ),
    frozenset({"date", "mode"}),
)
EVENTS = Table(
    "system_events",
    "audit.system_events",
    (
        Column("event_time", "event_time", LocalTime()),
        Column("event_type", "event_type", _TEXT),
        Column("event_level", "event_level", Word(LEVELS, otherwise="INFO")),
        Column("message", "message", _TEXT),
        Column("details", "details", JsonText()),
        Column("created_at", "created_at", UtcText()),
    ),
    frozenset({"event_type", "event_level"}),
)
RISK_EVENTS = Table(
    "risk_events",
    "audit.risk_events",
    (
        Column("event_time", "event_time", LocalTime()),
        Column("risk_type", "risk_type", _TEXT),
        Column("current_value", "current_value", Real()),
        Column("limit_value", "limit_value", Real()),
        Column("action_taken", "action_taken", _TEXT),
        Column("created_at", "created_at", UtcText()),
    ),
    frozenset({"risk_type"}),
)
# Events of the client and the platform are none of this bot's.
COMPONENT = "momentum"
OWN_EVENTS = " AND component = %(component)s"
WANTED = "%(wanted)s::text IS NULL OR %(wanted)s ="
IN_MODE = f"({WANTED} coalesce(metadata ->> 'mode', metadata #>> '{{legacy,mode}}'))"
AT_LEVEL = (
    f"({WANTED} coalesce(metadata #>> '{{given,event_level}}', metadata #>> '{{legacy,event_level}}', event_level))"
    + OWN_EVENTS
)
# The trade that was entered, where this process knows it: an older one may have
# its trade_id, which is why the entry is refused.
EXITED = f"trade_id = %(trade_id)s AND (%(row_id)s::bigint IS NULL OR {TRADES.where_id()})"
CLOSE_POSITION = (
    "UPDATE trading.positions SET status = 'closed', closed_at = %(exit_time)s, last_updated = %(exit_time)s,"
    " current_price = %(exit_price)s, realized_pnl = coalesce(%(pnl_usd)s, 0), unrealized_pnl = 0,"
    " exit_trade_ids = entry_trade_ids WHERE bot_id = %(bot_id)s AND position_id = %(trade_id)s"
)
PAGE = 10_000
LEGACY_SCHEMA = """
CREATE TABLE trades (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    trade_id TEXT UNIQUE,
    mode TEXT NOT NULL,
    symbol TEXT NOT NULL,
    side TEXT NOT NULL,
    entry_time TIMESTAMP NOT NULL,
    entry_price REAL NOT NULL,
    exit_time TIMESTAMP,
    exit_price REAL,
    quantity REAL NOT NULL,
    position_size_usd REAL NOT NULL,
    stop_loss REAL,
    take_profit REAL,
    pnl_usd REAL,
    pnl_pct REAL,
    exit_reason TEXT,
    holding_time_seconds INTEGER,
    signal_strength REAL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE daily_snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    date DATE UNIQUE NOT NULL,
    mode TEXT NOT NULL,
    starting_equity REAL,
    ending_equity REAL,
    daily_pnl REAL,
    daily_pnl_pct REAL,
    trades_count INTEGER,
    wins_count INTEGER,
    losses_count INTEGER,
    open_positions INTEGER,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE system_events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event_time TIMESTAMP NOT NULL,
    event_type TEXT NOT NULL,
    event_level TEXT NOT NULL,
    message TEXT,
    details TEXT,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE risk_events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event_time TIMESTAMP NOT NULL,
    risk_type TEXT NOT NULL,
    current_value REAL,
    limit_value REAL,
    action_taken TEXT,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX idx_trades_entry_time ON trades (entry_time);
CREATE INDEX idx_trades_exit_time ON trades (exit_time);
CREATE INDEX idx_trades_symbol ON trades (symbol);
CREATE INDEX idx_events_time ON system_events (event_time);
"""


class DatabaseUnavailable(Unavailable, sqlite3.OperationalError):
    """The database cannot answer now."""


class WriteRefused(Refused, sqlite3.IntegrityError):
    """The write breaks a rule of the tables; nothing of it was stored."""


as_sqlite = DriverErrors(DatabaseUnavailable, WriteRefused)


class TradeDatabase:
    @as_sqlite
    def __init__(self, db_path: str | os.PathLike[str] = "data/trading.db") -> None:
        # Where backups go by default; the file itself is not read any more.
        self.db_path = Path(db_path)
        self.db_path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._store = LegacyStore(TRADES, SNAPSHOTS, EVENTS, RISK_EVENTS)
        self.get_open_trades()

    @as_sqlite
    def log_trade_entry(
        self,
        trade_id: str | None,
        mode: str,
        symbol: str,
        side: str,
        entry_price: float,
        quantity: float,
        position_size_usd: float,
        stop_loss: float | None = None,
        take_profit: float | None = None,
        signal_strength: float | None = None,
    ) -> int:
        name = text(trade_id)
        row: Row = {
            "trade_id": name,
            "mode": text(mode),
            "symbol": text(symbol),
            "side": text(side),
            **_now("entry_time"),
            "entry_price": real(entry_price),
            "quantity": real(quantity),
            "position_size_usd": real(position_size_usd),
            "stop_loss": real(stop_loss),
            "take_profit": real(take_profit),
            "signal_strength": real(signal_strength),
        }
        with self._lock:
            if name is not None and self._store.recall(TRADES, _named(name)):
                raise Refused(f"UNIQUE constraint failed: trades.trade_id {name} was logged before")
            unified_id = self._store.client.new_trade_id(str(row["symbol"])) if name is None else self._unified_id(name)
            position = _position(unified_id, TRADES.store(row)[0], row["mode"])
            # Fees are NULL: this bot does not record them.
            stored = self._store.insert(TRADES, row, position, trade_id=unified_id, status="filled", fees=None)
            return int(stored["id"])

    @as_sqlite
    def log_trade_exit(
        self,
        trade_id: str | None,
        exit_price: float | None,
        pnl_usd: float | None,
        pnl_pct: float | None,
        exit_reason: str | None,
        holding_time_seconds: float | None,
    ) -> None:
        name = text(trade_id)
        if name is None:
            # As in SQL, NULL is no trade's id.
            return
        changes = {
            "exit_time": str(datetime.now()),
            "exit_price": real(exit_price),
            "pnl_usd": real(pnl_usd),
            "pnl_pct": real(pnl_pct),
            "exit_reason": text(exit_reason),
            "holding_time_seconds": integer(holding_time_seconds),
        }
        with self._lock:
            known = self._store.recall(TRADES, _named(name))
            sql, values = TRADES.update(changes, {}, EXITED)
            values = {
                **values,
                "trade_id": self._unified_id(name),
                "row_id": known[0]["id"] if known else None,
            }
            gone = f"trades has no such trade {name}: its entry was refused, or it was never logged"
            try:
                self._store.write((sql, values), (CLOSE_POSITION, values), unmatched=gone)
            except Refused as error:
                if gone not in str(error):
                    raise
                return
            self._store.remember(TRADES, [{**row, **changes} for row in known])

    @as_sqlite
    def get_open_trades(self, mode: str | None = None) -> list[Row]:
        rows = self._store.known(TRADES, "exit_time IS NULL", lambda row: row["exit_time"] is None)
        newest_first = sorted(rows, key=lambda row: (row["entry_time"], row["id"]), reverse=True)
        return [row for row in newest_first if mode in (None, row["mode"])]

    @as_sqlite
    def get_recent_trades(self, limit: int = 50, mode: str | None = None) -> list[Row]:
        return self._newest(TRADES, "entry_time", limit, IN_MODE, wanted=mode)

    @as_sqlite
    def save_daily_snapshot(
        self,
        date: object,
        mode: str,
        starting_equity: float | None,
        ending_equity: float | None,
        daily_pnl: float | None,
        daily_pnl_pct: float | None,
        trades_count: int | None,
        wins_count: int | None,
        losses_count: int | None,
        open_positions: int | None,
    ) -> None:
        row = {
            "id": self._store.client.reserve_id(SNAPSHOTS.target),
            "date": str(date),
            "mode": text(mode),
            "starting_equity": real(starting_equity),
            "ending_equity": real(ending_equity),
            "daily_pnl": real(daily_pnl),
            "daily_pnl_pct": real(daily_pnl_pct),
            "trades_count": integer(trades_count),
            "wins_count": integer(wins_count),
            "losses_count": integer(losses_count),
            "open_positions": integer(open_positions),
            "created_at": _now("created_at")["created_at"],
        }
        self._store.write(SNAPSHOTS.upsert(row, "(bot_id, date)"))

    @as_sqlite
    def get_daily_snapshots(self, days: int = 30, mode: str | None = None) -> list[Row]:
        return self._newest(SNAPSHOTS, "date", days, IN_MODE, wanted=mode)

    @as_sqlite
    def log_event(self, event_type: str, level: str, message: str | None, details: Any = None) -> None:
        if details is not None and not isinstance(details, str):
            details = json.dumps(details)
        row = {
            **_now("event_time"),
            "event_type": text(event_type),
            "event_level": text(level),
            "message": text(message),
            "details": text(details),
        }
        self._store.insert(EVENTS, row, component=COMPONENT)

    @as_sqlite
    def get_recent_events(self, limit: int = 100, level: str | None = None) -> list[Row]:
        return self._newest(EVENTS, "event_time", limit, AT_LEVEL, wanted=level, component=COMPONENT)

    @as_sqlite
    def log_risk_event(
        self, risk_type: str, current_value: float | None, limit_value: float | None, action_taken: str | None
    ) -> None:
        row = {
            **_now("event_time"),
            "risk_type": text(risk_type),
            "current_value": real(current_value),
            "limit_value": real(limit_value),
            "action_taken": text(action_taken),
        }
        self._store.insert(RISK_EVENTS, row)

    @as_sqlite
    def get_performance_stats(self, mode: str | None = None, days: float | None = None) -> dict[str, Any]:
        since = (datetime.now() - timedelta(days=days)).astimezone() if days else None
        trades = self._store.select(
            TRADES,
            f"exit_time IS NOT NULL AND {IN_MODE} AND (%(since)s::timestamptz IS NULL OR exit_time >= %(since)s)",
            "ORDER BY exit_time, 1",
            wanted=mode,
            since=since,
        )
        pnls = [trade["pnl_usd"] or 0 for trade in trades]
        percents = [trade["pnl_pct"] or 0 for trade in trades]
        win_percents = [percent for percent, pnl in zip(percents, pnls, strict=True) if pnl > 0]
        loss_percents = [percent for percent, pnl in zip(percents, pnls, strict=True) if pnl <= 0]
        hours = [(trade["holding_time_seconds"] or 0) / 3600 for trade in trades]

        def mean(values: list[float]) -> float:
            return sum(values) / len(values) if values else 0

        return {
            "total_trades": len(trades),
            "wins": len(win_percents),
            "losses": len(loss_percents),
            "win_rate": len(win_percents) / len(trades) * 100 if trades else 0,
            "total_pnl": sum(pnls),
            "avg_pnl_pct": mean(percents),
            "avg_win_pct": mean(win_percents),
            "avg_loss_pct": mean(loss_percents),
            "best_trade": max(pnls, default=0),
            "worst_trade": min(pnls, default=0),
            "avg_holding_hours": mean(hours),
        }

    @as_sqlite
    def backup(self, backup_path: str | os.PathLike[str] | None = None) -> str:
        """Write this bot's rows into an SQLite file of the legacy shape. It appears whole or not at all."""
        if backup_path is None:
            stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
            backup_path = self.db_path.with_name(f"{self.db_path.stem}_backup_{stamp}.db")
        target = Path(backup_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, tempfile.TemporaryDirectory(dir=target.parent, prefix=".backup-") as folder:
            written = Path(folder, target.name)
            with closing(sqlite3.connect(written)) as file, file:
                file.executescript(LEGACY_SCHEMA)
                for table in (TRADES, SNAPSHOTS, EVENTS, RISK_EVENTS):
                    for row in self._all_rows(table):
                        marks = ", ".join(f":{name}" for name in row)
                        file.execute(f"INSERT INTO {table.name} ({', '.join(row)}) VALUES ({marks})", row)
            written.replace(target)
        return str(backup_path)

    def close(self) -> None:
        self._store.close()

    def _unified_id(self, trade_id: str) -> str:
        return f"{self._store.bot_id}_{trade_id}"

    def _newest(self, table: Table, by: str, limit: int, where: str, **parameters: object) -> list[Row]:
        rest = f"ORDER BY {table.column(by).target} DESC, 1 DESC LIMIT %(limit)s"
        # To SQLite, a limit below zero is none.
        return self._store.select(table, where, rest, limit=None if limit < 0 else limit, **parameters)

    def _all_rows(self, table: Table) -> Iterator[Row]:
        """Page by page: there may be years of them."""
        where, last = "id > %(last)s" + (OWN_EVENTS if table is EVENTS else ""), 0
        while True:
            rows = self._store.client.fetch(
                table.query(where, "ORDER BY t.id LIMIT %(page)s"),
                {"bot_id": self._store.bot_id, "last": last, "page": PAGE, "component": COMPONENT},
            )
            yield from map(table.show, rows)
            if len(rows) < PAGE:
                return
            last = rows[-1]["row_id"]


def _named(name: str) -> Callable[[Row], bool]:
    return lambda row: bool(row["trade_id"] == name)


def _now(name: str) -> dict[str, str]:
    """The time in the bot's own zone under a name, and in UTC as SQLite's CURRENT_TIMESTAMP has it."""
    now = datetime.now()
    return {name: str(now), "created_at": f"{now.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}"}


def _position(trade_id: str, trade: dict[str, Any], mode: str | None) -> Operation:
    """An open trade is a position as well, as the migration has it."""
    return insert(
        "trading.positions",
        {
            "bot_id": None,
            "position_id": trade_id,
            "symbol": trade["symbol"],
            "side": "long" if trade["side"] in ("buy", "long") else "short",
            "size": trade["quantity"],
            "avg_entry_price": trade["entry_price"],
            "stop_loss": trade["stop_loss"],
            "take_profit": trade["take_profit"],
            "opened_at": trade["entry_time"],
            "last_updated": trade["entry_time"],
            "created_at": trade["created_at"],
            "entry_trade_ids": [trade_id],
            "position_metadata": json.dumps({"mode": mode}),
        },
    )
