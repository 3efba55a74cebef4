"""SQLite storage of trades, daily snapshots, system events and risk events."""

import json
import sqlite3
import threading
from datetime import datetime, timedelta
from pathlib import Path


class TradeDatabase:
    def __init__(self, db_path="data/trading.db"):
        self.db_path = Path(db_path)
        self.db_path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self.conn = sqlite3.connect(str(self.db_path), check_same_thread=False)
        self.conn.row_factory = sqlite3.Row
        self._create_tables()

    def _create_tables(self):
        self.conn.executescript(
            """
            CREATE TABLE IF NOT EXISTS trades (
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
            CREATE TABLE IF NOT EXISTS daily_snapshots (
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
            CREATE TABLE IF NOT EXISTS system_events (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                event_time TIMESTAMP NOT NULL,
                event_type TEXT NOT NULL,
                event_level TEXT NOT NULL,
                message TEXT,
                details TEXT,
                created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
            );
            CREATE TABLE IF NOT EXISTS risk_events (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                event_time TIMESTAMP NOT NULL,
                risk_type TEXT NOT NULL,
                current_value REAL,
                limit_value REAL,
                action_taken TEXT,
                created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
            );
            CREATE INDEX IF NOT EXISTS idx_trades_entry_time ON trades (entry_time);
            CREATE INDEX IF NOT EXISTS idx_trades_exit_time ON trades (exit_time);
            CREATE INDEX IF NOT EXISTS idx_trades_symbol ON trades (symbol);
            CREATE INDEX IF NOT EXISTS idx_events_time ON system_events (event_time);
            """
        )

    def _write(self, sql, values):
        with self._lock, self.conn:
            return self.conn.execute(sql, values).lastrowid

    def _read(self, sql, values):
        with self._lock:
            return [dict(row) for row in self.conn.execute(sql, values)]

    def log_trade_entry(
        self,
        trade_id,
        mode,
        symbol,
        side,
        entry_price,
        quantity,
        position_size_usd,
        stop_loss=None,
        take_profit=None,
        signal_strength=None,
    ) -> int:
        return self._write(
            "INSERT INTO trades (trade_id, mode, symbol, side, entry_time, entry_price, quantity,"
            " position_size_usd, stop_loss, take_profit, signal_strength)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                trade_id,
                mode,
                symbol,
                side,
                str(datetime.now()),
                entry_price,
                quantity,
                position_size_usd,
                stop_loss,
                take_profit,
                signal_strength,
            ),
        )

    def log_trade_exit(self, trade_id, exit_price, pnl_usd, pnl_pct, exit_reason, holding_time_seconds):
        self._write(
            "UPDATE trades SET exit_time = ?, exit_price = ?, pnl_usd = ?, pnl_pct = ?,"
            " exit_reason = ?, holding_time_seconds = ? WHERE trade_id = ?",
            (
                str(datetime.now()),
                exit_price,
                pnl_usd,
                pnl_pct,
                exit_reason,
                holding_time_seconds,
                trade_id,
            ),
        )

    def get_open_trades(self, mode=None):
        return self._read(
            "SELECT * FROM trades WHERE exit_time IS NULL AND mode = coalesce(?, mode) ORDER BY entry_time DESC",
            (mode,),
        )

    def get_recent_trades(self, limit=50, mode=None):
        return self._read(
            "SELECT * FROM trades WHERE mode = coalesce(?, mode) ORDER BY entry_time DESC LIMIT ?",
            (mode, limit),
        )

    def save_daily_snapshot(
        self,
        date,
        mode,
        starting_equity,
        ending_equity,
        daily_pnl,
        daily_pnl_pct,
        trades_count,
        wins_count,
        losses_count,
        open_positions,
    ):
        self._write(
            "INSERT OR REPLACE INTO daily_snapshots (date, mode, starting_equity, ending_equity,"
            " daily_pnl, daily_pnl_pct, trades_count, wins_count, losses_count, open_positions)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                str(date),
                mode,
                starting_equity,
                ending_equity,
                daily_pnl,
                daily_pnl_pct,
                trades_count,
                wins_count,
                losses_count,
                open_positions,
            ),
        )

    def get_daily_snapshots(self, days=30, mode=None):
        return self._read(
            "SELECT * FROM daily_snapshots WHERE mode = coalesce(?, mode) ORDER BY date DESC LIMIT ?",
            (mode, days),
        )

    def log_event(self, event_type, level, message, details=None):
        if details is not None and not isinstance(details, str):
            details = json.dumps(details)
        self._write(
            "INSERT INTO system_events (event_time, event_type, event_level, message, details) VALUES (?, ?, ?, ?, ?)",
            (str(datetime.now()), event_type, level, message, details),
        )

    def get_recent_events(self, limit=100, level=None):
        return self._read(
            "SELECT * FROM system_events WHERE event_level = coalesce(?, event_level) ORDER BY event_time DESC LIMIT ?",
            (level, limit),
        )

    def log_risk_event(self, risk_type, current_value, limit_value, action_taken):
        self._write(
            "INSERT INTO risk_events (event_time, risk_type, current_value, limit_value, action_taken)"
            " VALUES (?, ?, ?, ?, ?)",
            (str(datetime.now()), risk_type, current_value, limit_value, action_taken),
        )

    def get_performance_stats(self, mode=None, days=None) -> dict:
        since = str(datetime.now() - timedelta(days=days)) if days else ""
        trades = self._read(
            "SELECT * FROM trades WHERE exit_time IS NOT NULL AND mode = coalesce(?, mode) AND exit_time >= ?",
            (mode, since),
        )
        pnls = [trade["pnl_usd"] or 0 for trade in trades]
        percents = [trade["pnl_pct"] or 0 for trade in trades]
        win_percents = [trade["pnl_pct"] or 0 for trade in trades if (trade["pnl_usd"] or 0) > 0]
        loss_percents = [trade["pnl_pct"] or 0 for trade in trades if (trade["pnl_usd"] or 0) <= 0]
        hours = [(trade["holding_time_seconds"] or 0) / 3600 for trade in trades]

        def mean(values):
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

    def backup(self, backup_path=None):
        if backup_path is None:
            stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
            backup_path = self.db_path.with_name(f"{self.db_path.stem}_backup_{stamp}.db")
        with self._lock, sqlite3.connect(str(backup_path)) as target:
            self.conn.backup(target)
        return str(backup_path)

    def close(self):
        self.conn.close()
