"""Everything the short seller keeps in PostgreSQL. One statement, one commit."""

import json
from datetime import datetime, timezone

import psycopg2
from psycopg2.extras import RealDictCursor


class TradeLogger:
    def __init__(self, config):
        self.conn = psycopg2.connect(
            host=config.host,
            port=config.port,
            database=config.database,
            user=config.username,
            password=config.password,
            connect_timeout=5,
        )

    def _fetch(self, sql, values=()):
        with self.conn, self.conn.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(sql, values)
            return [dict(row) for row in cursor.fetchall()]

    def _one(self, sql, values=()):
        rows = self._fetch(sql, values)
        return rows[0] if rows else None

    def log_trade(self, symbol, side, quantity, price, order_id=None, exchange_order_id=None, notes=None):
        return self._one(
            "INSERT INTO trading.trades (symbol, side, quantity, price, order_id, exchange_order_id, notes)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING *",
            (symbol, side, quantity, price, order_id, exchange_order_id, notes),
        )

    def update_trade_status(self, trade_id, status, fees=None):
        return self._one(
            "UPDATE trading.trades SET status = %s, fees = coalesce(%s, fees),"
            " executed_at = CASE WHEN %s IN ('filled', 'partially_filled') THEN now() ELSE executed_at END"
            " WHERE id = %s RETURNING *",
            (status, fees, status, trade_id),
        )

    def update_trade_pnl(self, trade_id, pnl, fees):
        return self._one(
            "UPDATE trading.trades SET pnl = %s, fees = %s WHERE id = %s RETURNING *",
            (pnl, fees, trade_id),
        )

    def get_pending_trades(self, limit=3):
        return self._fetch("SELECT * FROM trading.trades WHERE status = 'pending' ORDER BY id DESC LIMIT %s", (limit,))

    def open_position(self, symbol, side, size, price, stop_loss, take_profit, leverage):
        return self._one(
            "INSERT INTO trading.positions (symbol, side, size, avg_price, stop_loss, take_profit, leverage)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING *",
            (symbol, side, size, price, stop_loss, take_profit, leverage),
        )

    def update_position(self, position_id, unrealized_pnl):
        return self._one(
            "UPDATE trading.positions SET unrealized_pnl = %s WHERE id = %s RETURNING *",
            (unrealized_pnl, position_id),
        )

    def close_position(self, position_id, realized_pnl):
        return self._one(
            "UPDATE trading.positions SET status = 'closed', closed_at = now(), unrealized_pnl = 0,"
            " realized_pnl = %s WHERE id = %s RETURNING *",
            (realized_pnl, position_id),
        )

    def get_open_positions(self):
        return self._fetch("SELECT * FROM trading.positions WHERE status = 'open' ORDER BY opened_at, id")

    def log_signal(self, symbol, signal_type, strength, price, indicators):
        return self._one(
            "INSERT INTO trading.signals (symbol, signal_type, strength, price, indicators)"
            " VALUES (%s, %s, %s, %s, %s) RETURNING *",
            (symbol, signal_type, strength, price, json.dumps(indicators)),
        )

    def mark_signal_executed(self, signal_id, trade_id):
        return self._one(
            "UPDATE trading.signals SET executed = TRUE, execution_id = %s WHERE id = %s RETURNING *",
            (trade_id, signal_id),
        )

    def store_candle(self, symbol, timestamp, candle, interval):
        """None where the candle is stored already."""
        return self._one(
            "INSERT INTO trading.market_data (symbol, timestamp, open_price, high_price, low_price,"
            " close_price, volume, interval) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (symbol, timestamp, interval) DO NOTHING RETURNING *",
            (symbol, timestamp, *candle, interval),
        )

    def log_balance(self, total, available, equity, margin_used, unrealized_pnl):
        return self._one(
            "INSERT INTO trading.account_balance (total_balance, available_balance, equity, margin_used,"
            " unrealized_pnl) VALUES (%s, %s, %s, %s, %s) RETURNING *",
            (total, available, equity, margin_used, unrealized_pnl),
        )

    def latest_balance(self):
        return self._one("SELECT * FROM trading.account_balance ORDER BY id DESC LIMIT 1")

    def update_risk_metrics(self):
        """The figures of today (UTC), computed from today's trades."""
        today = datetime.now(timezone.utc).date()
        return self._one(
            "INSERT INTO trading.risk_metrics AS old (date, total_pnl, max_drawdown, win_rate, profit_factor,"
            " sharpe_ratio, total_trades, winning_trades, losing_trades)"
            " SELECT %(today)s, coalesce(sum(pnl), 0), 0,"
            " coalesce(round(count(*) FILTER (WHERE pnl > 0)::numeric / nullif(count(*), 0), 4), 0),"
            " coalesce(least(round(sum(pnl) FILTER (WHERE pnl > 0)"
            " / nullif(-sum(pnl) FILTER (WHERE pnl < 0), 0), 4), 999.99), 0), 0,"
            " count(*), count(*) FILTER (WHERE pnl > 0), count(*) FILTER (WHERE pnl < 0)"
            " FROM trading.trades WHERE status = 'filled' AND timestamp >= %(today)s"
            " ON CONFLICT (date) DO UPDATE SET total_pnl = excluded.total_pnl,"
            " win_rate = excluded.win_rate, profit_factor = excluded.profit_factor,"
            " total_trades = excluded.total_trades, winning_trades = excluded.winning_trades,"
            " losing_trades = excluded.losing_trades RETURNING *",
            {"today": today},
        )

    def row(self, table, row_id):
        """A stored row of one of the six tables, None where there is none."""
        tables = {"trades", "positions", "market_data", "signals", "account_balance", "risk_metrics"}
        if table not in tables:
            raise ValueError(f"unknown table {table}")
        return self._one(f"SELECT * FROM trading.{table} WHERE id = %s", (row_id,))

    def close(self):
        self.conn.close()
