"""001_unified_schema.sql: the contract's counts and columns, the ledger, the views."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from .conftest import Target

COLUMNS = {
    "trading.bots": "bot_id bot_name bot_type strategy_name description status deployment_mode initial_capital current_equity"
    " max_positions leverage_limit max_daily_loss_pct max_weekly_loss_pct max_drawdown_pct created_by last_heartbeat"
    " api_key_hash exchange",
    "trading.symbols": "symbol exchange base_asset quote_asset tick_size lot_size min_notional is_active",
    "trading.orders": "bot_id order_id symbol exchange_order_id client_order_id order_type side quantity filled_quantity"
    " remaining_quantity price avg_fill_price stop_price status submitted_at filled_at fees commission order_purpose"
    " position_id trade_id rejection_reason error_code retry_count order_metadata",
    "trading.fills": "bot_id exchange execution_id symbol order_id client_order_id trade_id side price quantity fee"
    " fee_currency liquidity reason executed_at",
    "trading.trades": "bot_id trade_id symbol exchange_order_id side trade_type quantity entry_price exit_price"
    " avg_fill_price position_size_usd leverage stop_loss take_profit trailing_stop_pct status entry_time exit_time"
    " holding_time_seconds pnl_usd pnl_pct fees commission slippage exit_reason strategy signal_strength"
    " confidence_score strategy_params market_regime entry_conditions exit_conditions notes metadata",
    "trading.positions": "bot_id position_id symbol side size avg_entry_price current_price leverage unrealized_pnl"
    " realized_pnl total_pnl unrealized_pnl_pct stop_loss take_profit trailing_stop_pct highest_price lowest_price status"
    " opened_at closed_at last_updated entry_trade_ids exit_trade_ids strategy entry_signal position_metadata notes",
    "trading.signals": "bot_id signal_id symbol signal_type strength confidence price suggested_stop_loss"
    " suggested_take_profit suggested_position_size timestamp valid_until strategy indicators market_conditions executed"
    " execution_time execution_order_id execution_trade_id rejected rejection_reason passed_filters outcome outcome_pnl"
    " notes metadata",
    "trading.market_data": "symbol interval timestamp exchange open_price high_price low_price close_price volume"
    " quote_volume trades_count taker_buy_volume taker_sell_volume ema_20 ema_50 ema_200 rsi_14 atr_14 data_source metadata",
    "trading.account_balance": "bot_id total_balance available_balance locked_balance equity margin_used margin_available"
    " margin_level unrealized_pnl realized_pnl daily_pnl timestamp snapshot_type data_source metadata",
    "trading.risk_metrics": "bot_id date starting_equity ending_equity daily_pnl daily_pnl_pct daily_return total_trades"
    " winning_trades losing_trades breakeven_trades win_rate gross_profit gross_loss net_profit profit_factor avg_win"
    " avg_loss largest_win largest_loss max_drawdown max_drawdown_pct current_drawdown sharpe_ratio sortino_ratio"
    " calmar_ratio avg_leverage max_leverage avg_position_size max_exposure avg_holding_time_hours shortest_trade_hours"
    " longest_trade_hours calculated_at metadata",
    "trading.funding_payments": "bot_id symbol funding_time position_size funding_rate amount",
    "trading.bot_heartbeats": "bot_id host started_at last_seen version details",
    "analytics.portfolio_snapshots": "timestamp total_equity total_balance total_unrealized_pnl total_realized_pnl"
    " total_margin_used portfolio_leverage portfolio_exposure portfolio_var_95 active_bots bots_in_trade"
    " total_open_positions daily_pnl weekly_pnl monthly_pnl bot_metrics",
    "config.bot_configurations": "bot_id config_key config_value config_type version is_active effective_from"
    " effective_until created_by updated_by",
    "audit.system_events": "event_time event_type event_level bot_id component message details symbol order_id trade_id"
    " error_code stack_trace metadata",
    "audit.risk_events": "event_time bot_id risk_type current_value limit_value threshold_pct action_taken"
    " positions_affected trades_cancelled resolved resolved_at resolution_notes metadata",
}
DASHBOARD = (
    "snapshot_time active_bots paused_bots stopped_bots total_open_positions today_pnl today_trades active_orders"
    " errors_last_hour total_portfolio_equity unresolved_risk_events"
)


def test_tables_per_schema(target: Target) -> None:
    found = target.rows(
        "SELECT n.nspname AS schema, count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('trading', 'analytics', 'config', 'audit') GROUP BY 1"
    )
    assert {row["schema"]: row["count"] for row in found} == {"trading": 12, "analytics": 1, "config": 1, "audit": 2}


def test_every_column_is_there(target: Target) -> None:
    found: dict[str, set[str]] = {}
    for row in target.rows(
        "SELECT table_schema || '.' || table_name AS name, column_name FROM information_schema.columns"
    ):
        found.setdefault(row["name"], set()).add(row["column_name"])
    for table, columns in COLUMNS.items():
        assert found[table] == {"id", "created_at", "updated_at", *columns.split()}, table


def test_bot_id_is_a_foreign_key_everywhere(target: Target) -> None:
    tables = {t for t, columns in COLUMNS.items() if "bot_id" in columns.split()} - {"trading.bots"}
    tables.add("delivery.outboxes")
    found = target.rows(
        "SELECT conrelid::regclass::text AS name FROM pg_constraint WHERE contype = 'f' AND confrelid = 'trading.bots'::regclass"
    )
    assert {row["name"] for row in found} == tables


def test_second_run_changes_nothing(target: Target) -> None:
    before = target.contents()
    result = target.sql("001_unified_schema.sql")
    assert (result["changed"], result["message"]) == (False, "already applied")
    assert target.contents() == before


def test_edited_file_is_refused(target: Target, fresh_migrations: Path) -> None:
    before = target.contents()
    path = fresh_migrations / "001_unified_schema.sql"
    path.write_text(path.read_text() + "-- edited\n")
    done = target.psql("001_unified_schema.sql")
    assert done.returncode == 3
    assert "001_unified_schema.sql was applied on" in done.stderr
    assert "immutable" in done.stderr
    assert target.contents() == before


def test_failing_file_leaves_nothing(empty_target: Target, fresh_migrations: Path) -> None:
    path = fresh_migrations / "001_unified_schema.sql"
    path.write_text(
        path.read_text().replace("CREATE SCHEMA audit;", "CREATE SCHEMA audit;\n\\i :migrations_dir/lib/broken.sql")
    )
    (fresh_migrations / "lib/broken.sql").write_text("CREATE TABLE trading.half (id int); SELECT 1 / 0;")
    assert empty_target.psql("001_unified_schema.sql").returncode == 3
    assert empty_target.rows("SELECT nspname FROM pg_namespace WHERE nspname IN ('trading', 'migration')") == []


def test_dry_run_leaves_nothing(empty_target: Target) -> None:
    result = empty_target.sql("001_unified_schema.sql", dry_run=1)
    assert (result["changed"], result["dry_run"]) == (True, True)
    assert empty_target.rows("SELECT nspname FROM pg_namespace WHERE nspname IN ('trading', 'migration')") == []


def test_later_files_need_the_schema(empty_target: Target) -> None:
    done = empty_target.psql("003_register_momentum_bot.sql")
    assert done.returncode == 3
    assert "run 001_unified_schema.sql first" in done.stderr


def test_missing_mount_is_named(target: Target, fresh_migrations: Path) -> None:
    done = target.psql("001_unified_schema.sql", migrations_dir="/nowhere")
    assert done.returncode == 3
    assert "/nowhere/lib/ledger_begin.psql" in done.stderr


def test_dashboard_has_one_row_even_when_empty(target: Target) -> None:
    (row,) = target.rows("SELECT * FROM analytics.system_health_dashboard")
    assert list(row) == DASHBOARD.split()
    assert [row[name] for name in row if name != "snapshot_time"] == [0] * 10


def test_analytics_ignore_demo_rows(target: Target) -> None:
    target.sql("003_register_momentum_bot.sql")
    # One transaction, and so one day.
    with closing(target.server.connect(target.database, "trading_user")) as connection, connection:
        cursor = connection.cursor()
        cursor.execute("SET TIME ZONE 'UTC'")
        for mode in ("live", "demo", "Demo"):
            cursor.execute(
                "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time, exit_time,"
                " pnl_usd, metadata) VALUES (%(mode)s, 'momentum_001', 'X', 'buy', 1, 1, now(), now(), 5,"
                " jsonb_build_object('legacy', jsonb_build_object('id', %(mode)s, 'table', 'trades', 'mode', %(mode)s)))",
                {"mode": mode},
            )
            cursor.execute(
                "INSERT INTO trading.positions (position_id, bot_id, symbol, side, size, avg_entry_price, position_metadata)"
                " VALUES (%(mode)s, 'momentum_001', 'X', 'long', 2, 3, jsonb_build_object('mode', %(mode)s))",
                {"mode": mode},
            )
        cursor.execute(
            "SELECT today_trades, today_pnl, total_open_positions, active_bots FROM analytics.system_health_dashboard"
        )
        assert cursor.fetchall() == [(1, 5, 1, 1)]
    (summary,) = target.rows("SELECT * FROM analytics.active_positions_summary")
    assert (summary["open_positions"], summary["total_size"], summary["exposure_usd"]) == (1, 2, 6)
    (daily,) = target.rows("SELECT * FROM analytics.daily_performance_summary")
    assert (daily["total_trades"], daily["winning_trades"], daily["total_pnl"]) == (1, 1, 5)


def test_updated_at_moves_only_with_a_change(target: Target) -> None:
    target.sql("003_register_momentum_bot.sql")
    before = target.value("SELECT updated_at FROM trading.bots")
    target.execute("UPDATE trading.bots SET status = status")
    assert target.value("SELECT updated_at FROM trading.bots") == before
    target.execute("UPDATE trading.bots SET status = 'paused'")
    assert target.value("SELECT updated_at FROM trading.bots") > before


def test_second_live_instance_is_refused(target: Target) -> None:
    target.sql("003_register_momentum_bot.sql")
    beat = "INSERT INTO trading.bot_heartbeats (bot_id, host, started_at, last_seen) VALUES ('momentum_001', %s, now(), now() - %s::interval)"
    target.execute(beat, "one", "0")
    target.execute(beat, "one", "0")
    with pytest.raises(psycopg2.Error, match="already runs on host one"):
        target.execute(beat, "two", "0")
    target.execute("UPDATE trading.bot_heartbeats SET last_seen = now() - interval '1 minute'")
    target.execute(beat, "two", "0")


def test_readers_read_and_do_not_write(target: Target) -> None:
    for user in ("grafana_reader", "backup_reader"):
        assert target.rows("SELECT count(*) FROM trading.trades", user=user) == [{"count": 0}]
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            target.rows("DELETE FROM trading.trades RETURNING id", user=user)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time)"
        " VALUES ('x', 'momentum_001', 'X', 'Buy', 1, 1, now())",
        "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time)"
        " VALUES ('x', 'nobody', 'X', 'buy', 1, 1, now())",
        "INSERT INTO trading.market_data (symbol, interval, timestamp, open_price, high_price, low_price, close_price)"
        " VALUES ('X', '5m', now(), 10, 9, 8, 9)",
    ],
)
def test_checks_hold(target: Target, statement: str) -> None:
    target.sql("003_register_momentum_bot.sql")
    with pytest.raises(psycopg2.IntegrityError):
        target.execute(statement)
