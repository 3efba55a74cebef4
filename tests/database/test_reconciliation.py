"""verify_migration.py: it passes on what was migrated, and on nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from .conftest import Legacy, Momentum, Target

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def migrated(target: Target, legacy: Legacy, momentum: Momentum) -> Target:
    numbers = [
        legacy.insert("trades", symbol="X", side="Sell", quantity=n, price=n, timestamp=NOON.replace(day=n), pnl=n, order_id=f"o{n}")
        for n in (1, 2, 3)
    ]
    legacy.insert("positions", symbol="X", side="short", size=1, avg_price=1)
    legacy.insert("signals", symbol="X", signal_type="close", price=1, execution_id=numbers[0])
    legacy.insert("risk_metrics", date="2025-06-01", total_pnl=5)
    legacy.insert(
        "market_data", symbol="X", timestamp=NOON, interval="5m", open_price=1, high_price=1, low_price=1, close_price=1, volume=1
    )
    momentum.trade(trade_id="a", entry_price=1 / 3)
    momentum.insert("system_events", event_time="2025-06-01 10:00:00", event_type="T", event_level="INFO", message="m")
    target.migrate_shortseller()
    target.migrate_momentum()
    target.sql("004_register_lxalgo_bot.sql")
    return target


def test_all_is_equal(migrated: Target, tmp_path: Path) -> None:
    done = migrated.python("verify_migration.py", "--json", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ok"] is True
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert done.stdout.splitlines()[0].split()[:3] == ["bot", "source", "target"]
    trades = report["bots"][0]["tables"][0]
    assert (trades["source"], trades["migrated"], trades["rejected"]) == (3, 3, 0)
    assert trades["sums"]["pnl"] == {"source": "6.00000000", "target": "6.00000000"}


TAMPERINGS = [
    ("DELETE FROM trading.trades WHERE trade_id = 'shortseller_001_o2'", "1 rows are missing, the first: id 2"),
    ("UPDATE trading.trades SET pnl_usd = pnl_usd + 0.00000001 WHERE trade_id LIKE '%o2'", "the sum of pnl is 6.00000001, expected 6"),
    ("UPDATE trading.trades SET symbol = 'Y' WHERE trade_id LIKE '%o3'", "1 rows differ from the source, the first: id 3"),
    ("UPDATE trading.trades SET entry_time = '2020-01-01' WHERE trade_id LIKE '%o1'", "timestamp runs from 2020-01-01T00:00:00+00:00"),
    ("UPDATE trading.signals SET execution_trade_id = 'gone'", "1 signals point to a trade that is not there"),
    ("UPDATE trading.risk_metrics SET ending_equity = 1 WHERE bot_id = 'shortseller_001'", "1 rows differ from the source"),
    ("UPDATE trading.market_data SET close_price = 1, volume = 2", "the sum of volume is 2.00000000, expected 1.00000000"),
    ("DELETE FROM audit.system_events", "1 rows at the source, 0 migrated and 0 rejected"),
    (
        "INSERT INTO trading.signals (signal_id, bot_id, symbol, signal_type, metadata)"
        " SELECT 'copy', bot_id, symbol, signal_type, metadata FROM trading.signals",
        "1 legacy rows are there more than once",
    ),
    (
        "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time)"
        " SELECT 'copy', bot_id, symbol, side, quantity, entry_price, entry_time FROM trading.trades LIMIT 1",
        "1 rows of trading.trades came from nowhere",
    ),
    ("DELETE FROM trading.positions WHERE bot_id = 'momentum_001'", "trades in trading.positions: 1 rows at the source, 0 migrated"),
    ("DELETE FROM trading.account_balance WHERE bot_id = 'lxalgo_001'", "lxalgo_001: the bot has no opening balance"),
    ("UPDATE migration.runs SET merged_at = NULL", "was staged and not merged"),
    ("TRUNCATE legacy_momentum.trades", "the staged rows of run 2 are gone"),
]


def test_tampering_is_found(migrated: Target) -> None:
    for statement, message in TAMPERINGS:
        # Each on a copy of what was migrated.
        name, original = f"{migrated.database}_copy", migrated.database
        migrated.server.execute("postgres", f"CREATE DATABASE {name} TEMPLATE {original} OWNER trading_user")
        migrated.database = name
        try:
            migrated.execute(statement)
            done = migrated.python("verify_migration.py")
        finally:
            migrated.database = original
            migrated.server.execute("postgres", f"DROP DATABASE {name} WITH (FORCE)")
        assert done.returncode == 1, statement
        assert message in done.stderr, (statement, done.stderr)
        assert json.loads(done.stdout.splitlines()[-1])["ok"] is False


def test_a_legacy_row_is_stored_once(migrated: Target) -> None:
    import psycopg2

    with pytest.raises(psycopg2.errors.UniqueViolation):
        migrated.execute(
            "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time, metadata)"
            " SELECT 'copy', bot_id, symbol, side, quantity, entry_price, entry_time, metadata FROM trading.trades LIMIT 1"
        )


def test_a_rerun_repairs_what_was_changed_by_hand(migrated: Target) -> None:
    migrated.execute("UPDATE trading.trades SET symbol = 'Y', pnl_usd = 99")
    migrated.execute("DELETE FROM trading.signals")
    assert migrated.python("verify_migration.py").returncode == 1
    migrated.sql("002_migrate_shortseller_data.sql")
    migrated.script("migrate_momentum_sqlite_to_postgres.py")
    assert migrated.script("verify_migration.py")["ok"] is True


def test_what_a_running_bot_changed_is_its_own(migrated: Target) -> None:
    migrated.execute("UPDATE trading.bots SET last_heartbeat = now()")
    migrated.execute("UPDATE trading.trades SET exit_time = now(), pnl_usd = 7")
    migrated.execute(
        "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time)"
        " VALUES ('new', 'momentum_001', 'X', 'buy', 1, 1, now())"
    )
    assert migrated.script("verify_migration.py")["ok"] is True
    migrated.execute("DELETE FROM trading.trades WHERE trade_id = 'shortseller_001_o1'")
    assert migrated.python("verify_migration.py").returncode == 1


def test_unknown_bot(target: Target) -> None:
    done = target.python("verify_migration.py", "--bot", "nobody")
    assert done.returncode == 2
    assert "bots.json has no bot nobody" in done.stderr


def test_nothing_migrated_yet(target: Target) -> None:
    done = target.python("verify_migration.py")
    assert done.returncode == 1
    assert "difference: momentum_001: the bot is not registered in trading.bots" in done.stderr


def test_the_guides_own_check_runs_as_printed(migrated: Target) -> None:
    rows = migrated.rows(
        "SELECT bot_id, COUNT(*) as total_trades, COUNT(*) FILTER (WHERE exit_time IS NOT NULL) as closed_trades,"
        " SUM(pnl_usd) FILTER (WHERE exit_time IS NOT NULL) as total_pnl FROM trading.trades GROUP BY bot_id ORDER BY 1"
    )
    assert [(r["bot_id"], r["total_trades"]) for r in rows] == [("momentum_001", 1), ("shortseller_001", 3)]
    balance = migrated.rows(
        "SELECT b.bot_id, (b.current_equity - ab.equity) as difference FROM trading.bots b LEFT JOIN LATERAL (SELECT equity"
        " FROM trading.account_balance WHERE bot_id = b.bot_id ORDER BY timestamp DESC LIMIT 1) ab ON true ORDER BY 1"
    )
    assert [r["difference"] for r in balance] == [0, None, 0]
