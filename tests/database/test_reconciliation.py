"""reconcile.py: it passes on what was migrated, and on nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from .conftest import Legacy, Momentum, Target

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


ROWS = 20


@pytest.fixture
def migrated(target: Target, legacy: Legacy, momentum: Momentum) -> Target:
    for n in range(1, ROWS + 1):
        legacy.insert(
            "trades", symbol="X", side="Sell", quantity=n, price=n, timestamp=NOON.replace(day=n), executed_at=NOON.replace(day=n + 1),
            pnl=n, fees=2, order_id=f"o{n}", exchange_order_id="x", status="FILLED", strategy="ema", notes="n",
        )  # fmt: skip
        momentum.trade(
            trade_id=f"t{n}", side="SELL", entry_price=1 / 3, exit_time="2025-06-02 12:00:00.5", exit_price=7.5, stop_loss=1.5, take_profit=2.5,
            pnl_usd=-1.25, pnl_pct=12.3456789, exit_reason="Stop", holding_time_seconds=60, signal_strength=0.5,
        )  # fmt: skip
    legacy.insert("positions", symbol="X", side="short", size=1, avg_price=1)
    legacy.insert("positions", symbol="Z", side="short", size=2, avg_price=1)
    legacy.insert("signals", symbol="X", signal_type="close", price=1, execution_id=1)
    legacy.insert("risk_metrics", date="2025-06-01", total_pnl=5)
    legacy.insert(
        "market_data",
        symbol="X",
        timestamp=NOON,
        interval="5m",
        open_price=1,
        high_price=2,
        low_price=1,
        close_price=2,
        volume=1,
    )
    momentum.trade(trade_id="open", entry_price=1 / 3)
    momentum.insert(
        "system_events",
        event_time="2025-06-01 10:00:00",
        event_type="T",
        event_level="INFO",
        message="m",
        details='{"a": 1}',
    )
    momentum.insert("risk_events", event_time="2025-06-01 10:00:00", risk_type="R", current_value=1.5, limit_value=2)
    momentum.insert("daily_snapshots", date="2025-06-01", mode="live", ending_equity=10.5, trades_count=3)
    target.migrate_shortseller()
    target.migrate_momentum()
    target.sql("004_register_lxalgo_bot.sql")
    return target


def test_all_is_equal(migrated: Target, tmp_path: Path) -> None:
    done = migrated.python("reconcile.py", "--json", str(tmp_path / "report.json"))
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ok"] is True
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert done.stdout.splitlines()[0].split()[:3] == ["bot", "source", "target"]
    trades = report["bots"][0]["tables"][0]
    assert [trades[n] for n in ("source", "migrated", "rejected", "pending", "missing_at_source")] == [
        ROWS,
        ROWS,
        0,
        0,
        0,
    ]
    total = f"{ROWS * (ROWS + 1) // 2}.00000000"
    assert trades["sums"]["pnl_usd"] == {"source": total, "target": total}
    assert trades["ranges"]["entry_time"]["source"] == ["2025-06-01T12:00:00+00:00", "2025-06-20T12:00:00+00:00"]
    for bot in report["bots"]:
        for t in bot["tables"]:
            assert all(pair["source"] == pair["target"] for pair in t["sums"].values())
            assert all(pair["source"] == pair["target"] for pair in t["ranges"].values())
            assert t["hashes"]["source"] == t["hashes"]["target"]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/St_Johns"])
def test_a_bots_time_zone_makes_no_difference(target: Target, legacy: Legacy, momentum: Momentum, zone: str) -> None:
    for bot_id in ("shortseller_001", "momentum_001"):
        target.bot(bot_id)["timezone"] = zone
    target.bots.pop()
    legacy.insert("trades", symbol="X", side="Sell", quantity=1, price=1, timestamp=NOON, executed_at=NOON)
    # The last but one is the latest: local times of two offsets are not in the order of time.
    for text in ("2025-06-01 12:00:00", "2025-11-02 01:20:00-03:30", "2025-11-02 01:40:00"):
        momentum.trade(entry_time=text)
    target.migrate_shortseller()
    target.migrate_momentum()
    done = target.python("reconcile.py")
    assert (done.returncode, done.stderr) == (0, "")


def test_how_the_database_shows_dates_makes_no_difference(target: Target, legacy: Legacy, momentum: Momentum) -> None:
    target.bots.pop()
    for setting in (
        "datestyle = 'SQL, DMY'",
        "timezone = 'Asia/Tokyo'",
        "extra_float_digits = 0",
        "intervalstyle = 'sql_standard'",
    ):
        target.server.execute("postgres", f"ALTER DATABASE {target.database} SET {setting}")
    legacy.insert("trades", symbol="X", side="Sell", quantity=1, price=1, timestamp=NOON, executed_at=NOON)
    legacy.insert("risk_metrics", date="2025-06-13", total_pnl=5)
    momentum.trade()
    momentum.insert("daily_snapshots", date="2025-06-13", mode="live")
    target.migrate_shortseller()
    target.migrate_momentum()
    done = target.python("reconcile.py")
    assert (done.returncode, done.stderr) == (0, "")


# What is done to row n of a bot's trades, and what is said of it: column, value found, value expected.
Tampering = tuple[str, str, str, str]
SHORTSELLER_TRADE: list[Tampering] = [
    ("symbol = 'Y'", "symbol", "Y", "X"),
    ("side = 'buy'", "side", "buy", "Sell"),
    ("metadata = jsonb_set(metadata, '{legacy,side}', '\"SELL\"')", "side", "SELL", "Sell"),
    ("metadata = metadata #- '{legacy,side}'", "side", "sell", "Sell"),
    ("quantity = quantity + 0.00000001", "quantity", "{n}.00000001", "{n}"),
    ("entry_price = 0", "price", "0", "{n}"),
    ("trade_id = 'shortseller_001_other'", "order_id", "shortseller_001_other", "o{n}"),
    ("metadata = jsonb_set(metadata, '{legacy,order_id}', '\"other\"')", "order_id", "shortseller_001_o{n}", "o{n}"),
    ("exchange_order_id = NULL", "exchange_order_id", "NULL", "x"),
    ("status = 'pending'", "status", "pending", "FILLED"),
    ("metadata = jsonb_set(metadata, '{legacy,status}', '\"Filled\"')", "status", "Filled", "FILLED"),
    ("strategy = 'ema '", "strategy", "ema ", "ema"),
    (
        "entry_time = entry_time + interval '1 microsecond'", "timestamp",
        "2025-06-{n:02} 12:00:00.000001+00", "2025-06-{n:02} 12:00:00+00",
    ),
    ("exit_time = NULL", "executed_at", "NULL", "2025-06-{m:02} 12:00:00+00"),
    ("pnl_usd = -pnl_usd", "pnl", "-{n}", "{n}"),
    ("fees = 2.00000001", "fees", "2.00000001", "2"),
    ("notes = ''", "notes", "", "n"),
]  # fmt: skip
MOMENTUM_TRADE: list[Tampering] = [
    ("trade_id = 'other'", "trade_id", "other", "momentum_001_t{n}"),
    ("symbol = 'btcusdt'", "symbol", "btcusdt", "BTCUSDT"),
    ("side = 'long'", "side", "long", "sell"),
    (
        "entry_time = entry_time - interval '1 hour'",
        "entry_time",
        "2025-06-01 11:00:00.123456+00",
        "2025-06-01 12:00:00.123456+00",
    ),
    ("entry_price = 0.33333334", "entry_price", "0.33333334", "0.33333333"),
    (
        "exit_time = exit_time + interval '1 microsecond'",
        "exit_time",
        "2025-06-02 12:00:00.500001+00",
        "2025-06-02 12:00:00.5+00",
    ),
    ("exit_price = NULL", "exit_price", "NULL", "7.50000000"),
    ("quantity = 2.1", "quantity", "2.10000000", "2.00000000"),
    ("position_size_usd = 0", "position_size_usd", "0.00000000", "201.00000000"),
    ("stop_loss = take_profit", "stop_loss", "2.50000000", "1.50000000"),
    ("take_profit = stop_loss", "take_profit", "1.50000000", "2.50000000"),
    ("pnl_usd = 1.25", "pnl_usd", "1.25000000", "-1.25000000"),
    ("pnl_pct = 12.345678", "pnl_pct", "12.345678", "12.345679"),
    ("exit_reason = 'stop'", "exit_reason", "stop", "Stop"),
    ("holding_time_seconds = 61", "holding_time_seconds", "61", "60"),
    ("signal_strength = 0.500001", "signal_strength", "0.500001", "0.500000"),
    ("created_at = created_at + interval '2 hours'", "created_at", "2025-06-01 14:00:01+00", "2025-06-01 12:00:01+00"),
    ("status = 'pending'", "status", "pending", "filled"),
    ("fees = 0", "fees", "0.00000000", "NULL"),
]
# Members of `legacy`: what is done to each, and what its text is then and was.
MOMENTUM_KEPT: list[tuple[str, str, str]] = [
    ("jsonb_set(metadata, '{legacy,mode}', '\"demo\"')", '"demo"', '"live"'),
    ("jsonb_set(metadata, '{legacy,entry_price}', '0.3333333333333334')", "0.3333333333333334", "0.3333333333333333"),
    ("jsonb_set(metadata, '{legacy,pnl_pct}', '12.345678')", '"pnl_pct": 12.345678,', '"pnl_pct": 12.3456789,'),
    ("metadata #- '{legacy,side}'", '"live", "table"', '"side": "SELL"'),
    (
        "jsonb_set(metadata, '{legacy,exit_time}', '\"2025-06-02 12:00:00\"')",
        '"2025-06-02 12:00:00"',
        '"2025-06-02 12:00:00.5"',
    ),
    (
        "jsonb_set(metadata, '{legacy,created_at}', '\"2025-06-01 12:00:00\"')",
        '"2025-06-01 12:00:00"',
        '"2025-06-01 12:00:01"',
    ),
]


def test_each_tampered_column_of_a_trade_is_named_with_both_values(migrated: Target) -> None:
    # As many as are named of a table.
    for start in range(0, len(MOMENTUM_TRADE), 5):
        with migrated.copied() as copy:
            expected = []
            for bot_id, tamperings in (("shortseller_001", SHORTSELLER_TRADE), ("momentum_001", MOMENTUM_TRADE)):
                for n, (change, column, found, original) in enumerate(tamperings[start : start + 5], start + 1):
                    copy.execute(
                        f"UPDATE trading.trades SET {change} WHERE bot_id = '{bot_id}' AND metadata #>> '{{legacy,id}}' = '{n}'"
                    )
                    now, before = (text.format(n=n, m=n + 1) for text in (found, original))
                    expected.append(f"{bot_id}: trades: id {n}: {column} is {now}, expected {before}")
            done = copy.python("reconcile.py")
        assert done.returncode == 1
        assert [line for line in expected if line not in done.stderr.splitlines()] == []
        assert json.loads(done.stdout.splitlines()[-1])["ok"] is False


def test_each_tampered_original_is_named_with_both_values(migrated: Target) -> None:
    for start in range(0, len(MOMENTUM_KEPT), 5):
        with migrated.copied() as copy:
            for n, (change, _, _) in enumerate(MOMENTUM_KEPT[start : start + 5], 1):
                copy.execute(
                    f"UPDATE trading.trades SET metadata = {change} WHERE bot_id = 'momentum_001' AND metadata #>> '{{legacy,id}}' = '{n}'"
                )
            done = copy.python("reconcile.py", "--bot", "momentum_001")
        assert done.returncode == 1
        said = [line for line in done.stderr.splitlines() if line.startswith("momentum_001: trades: id ")]
        for n, (_, found, original) in enumerate(MOMENTUM_KEPT[start : start + 5], 1):
            (line,) = [line for line in said if f"id {n}: metadata is " in line]
            now, before = line.split("metadata is ")[1].split(", expected ")
            assert found in now, line
            assert original in before, line
            assert now != before


TAMPERINGS = [
    ("DELETE FROM trading.trades WHERE trade_id = 'shortseller_001_o2'", "shortseller_001: trades: id 2 is not there"),
    ("DELETE FROM trading.trades WHERE trade_id = 'momentum_001_t2'", "momentum_001: trades: id 2 is not there"),
    ("UPDATE trading.trades SET symbol = 'Y'", f"{ROWS} rows of shortseller_001 differ in all"),
    ("UPDATE trading.signals SET execution_trade_id = 'gone'", "1 signals point to a trade that is not there"),
    (
        "UPDATE trading.signals SET execution_trade_id = 'shortseller_001_o2'",
        "1 signals point to a trade that is not there, or not theirs",
    ),
    (
        "UPDATE trading.market_data SET close_price = 1, volume = 2",
        "market_data: id 1: close_price is 1, expected 2; volume is 2, expected 1",
    ),
    ("DELETE FROM trading.market_data", "market_data: id 1 is not there"),
    ("UPDATE trading.account_balance SET margin_used = NULL", "account_balance: id 1: margin_used is NULL, expected 0"),
    (
        "UPDATE trading.positions SET size = 3 WHERE bot_id = 'shortseller_001'",
        "positions: id 1: size is 3, expected 1",
    ),
    (
        "UPDATE trading.positions SET size = 3 WHERE bot_id = 'shortseller_001'",
        "positions: id 1 is open at the source with 1.00000000 X, and here with 3.00000000 X",
    ),
    (
        "UPDATE trading.trades SET exit_time = entry_time WHERE exit_time IS NULL",
        "trades: id 21 is open at the source with 2.0 BTCUSDT, and here not",
    ),
    (
        "UPDATE trading.positions SET status = 'closed' WHERE bot_id = 'shortseller_001'",
        "positions: id 1: status is closed, expected open",
    ),
    ("UPDATE trading.risk_metrics SET total_trades = 4 WHERE bot_id = 'momentum_001'", "total_trades is 4, expected 3"),
    (
        "UPDATE trading.risk_metrics SET win_rate = 1 WHERE bot_id = 'shortseller_001'",
        "risk_metrics: id 1: win_rate is 1, expected 0",
    ),
    ("DELETE FROM audit.system_events", "momentum_001: system_events: id 1 is not there"),
    (
        "UPDATE audit.risk_events SET limit_value = 3",
        "risk_events: id 1: limit_value is 3.00000000, expected 2.00000000",
    ),
    (
        "INSERT INTO trading.signals (signal_id, bot_id, symbol, signal_type, metadata)"
        " SELECT 'copy', bot_id, symbol, signal_type, metadata FROM trading.signals",
        "signals: legacy rows are there more than once: id 1",
    ),
    (
        "UPDATE audit.system_events SET details = '{\"a\": 2}'",
        'system_events: id 1: details is {"a": 2}, expected json',
    ),
    ("UPDATE audit.system_events SET details = NULL", "system_events: id 1: details is NULL, expected json"),
    (
        "UPDATE audit.system_events SET metadata = jsonb_set(metadata, '{legacy,details}', '\"{\"')",
        'system_events: id 1: details is {"a": 1}, expected json; metadata is',
    ),
    (
        "UPDATE trading.signals SET execution_trade_id = NULL",
        "1 signals whose trade is there do not point to it",
    ),
    *(
        (
            "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time, metadata)"
            " SELECT 'copy', bot_id, symbol, side, quantity, entry_price, entry_time, jsonb_set(metadata, '{legacy,id}', '777')"
            f" FROM trading.trades WHERE bot_id = '{bot_id}' AND metadata #>> '{{legacy,id}}' = '1'",
            f"{bot_id}: trades: rows are here that the source never had, among id 777",
        )
        for bot_id in ("shortseller_001", "momentum_001")
    ),
    (
        "INSERT INTO trading.signals (signal_id, bot_id, symbol, signal_type, metadata)"
        " SELECT 'copy', bot_id, symbol, signal_type, '{\"legacy\": {}}' FROM trading.signals",
        "1 rows of trading.signals came from nowhere",
    ),
    (
        "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time)"
        " SELECT 'copy', bot_id, symbol, side, quantity, entry_price, entry_time FROM trading.trades LIMIT 1",
        "1 rows of trading.trades came from nowhere",
    ),
    (
        "DELETE FROM trading.positions WHERE bot_id = 'momentum_001'",
        "1 open trades have no open position of their size, or the reverse",
    ),
    (
        "UPDATE trading.positions SET size = 1.5 WHERE bot_id = 'momentum_001'",
        "2 open trades have no open position of their size",
    ),
    ("DELETE FROM trading.account_balance WHERE bot_id = 'lxalgo_001'", "lxalgo_001: the bot has no opening balance"),
    (
        "UPDATE migration.runs SET merged_at = NULL",
        "momentum_001: nothing was migrated yet: run playbooks/phase2_data_migration.yml",
    ),
]


def test_tampering_is_found(migrated: Target) -> None:
    for statement, message in TAMPERINGS:
        with migrated.copied() as copy:
            copy.execute(statement)
            done = copy.python("reconcile.py")
        assert done.returncode == 1, statement
        assert message in done.stderr, (statement, done.stderr)
        assert json.loads(done.stdout.splitlines()[-1])["ok"] is False


DERIVED = [
    "UPDATE trading.risk_metrics SET ending_equity = 1 WHERE bot_id = 'shortseller_001'",
    "UPDATE trading.positions SET avg_entry_price = 1 WHERE bot_id = 'momentum_001'",
    "UPDATE trading.positions SET total_pnl = 1 WHERE bot_id = 'shortseller_001'",
]


def test_tampering_with_what_was_derived_is_found(migrated: Target) -> None:
    for statement in DERIVED:
        with migrated.copied() as copy:
            copy.execute(statement)
            assert copy.python("reconcile.py").returncode == 1


def test_a_legacy_row_is_stored_once(migrated: Target) -> None:
    import psycopg2

    with pytest.raises(psycopg2.errors.UniqueViolation):
        migrated.execute(
            "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time, metadata)"
            " SELECT 'copy', bot_id, symbol, side, quantity, entry_price, entry_time, metadata FROM trading.trades LIMIT 1"
        )


def test_a_full_run_repairs_what_was_changed_by_hand(migrated: Target) -> None:
    migrated.execute("UPDATE trading.trades SET symbol = 'Y', pnl_usd = 99")
    migrated.execute("DELETE FROM trading.signals")
    migrated.migrate_shortseller()
    migrated.migrate_momentum()
    done = migrated.python("reconcile.py")
    assert done.returncode == 1
    assert "shortseller_001: signals: id 1 is not there" in done.stderr
    migrated.migrate_shortseller("--full")
    migrated.migrate_momentum("--full")
    assert migrated.script("reconcile.py")["ok"] is True


def test_what_a_running_bot_changed_is_its_own(migrated: Target) -> None:
    migrated.execute("UPDATE trading.bots SET last_heartbeat = now()")
    migrated.execute("UPDATE trading.trades SET exit_time = now(), pnl_usd = 7")
    migrated.execute(
        "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time)"
        " VALUES ('new', 'momentum_001', 'X', 'buy', 1, 1, now())"
    )
    assert migrated.script("reconcile.py")["ok"] is True
    migrated.execute("DELETE FROM trading.trades WHERE trade_id = 'shortseller_001_o1'")
    assert migrated.python("reconcile.py").returncode == 1


def test_unknown_bot(target: Target) -> None:
    done = target.python("reconcile.py", "--bot", "nobody")
    assert done.returncode == 2
    assert "bots.json has no bot nobody" in done.stderr


def test_nothing_migrated_yet(target: Target) -> None:
    done = target.python("reconcile.py")
    assert done.returncode == 1
    assert "momentum_001: the bot is not registered in trading.bots" in done.stderr


def test_the_guides_own_check_runs_as_printed(migrated: Target) -> None:
    rows = migrated.rows(
        "SELECT bot_id, COUNT(*) as total_trades, COUNT(*) FILTER (WHERE exit_time IS NOT NULL) as closed_trades,"
        " SUM(pnl_usd) FILTER (WHERE exit_time IS NOT NULL) as total_pnl FROM trading.trades GROUP BY bot_id ORDER BY 1"
    )
    assert [(r["bot_id"], r["total_trades"]) for r in rows] == [("momentum_001", ROWS + 1), ("shortseller_001", ROWS)]
    balance = migrated.rows(
        "SELECT b.bot_id, (b.current_equity - ab.equity) as difference FROM trading.bots b LEFT JOIN LATERAL (SELECT equity"
        " FROM trading.account_balance WHERE bot_id = b.bot_id ORDER BY timestamp DESC LIMIT 1) ab ON true ORDER BY 1"
    )
    assert [r["difference"] for r in balance] == [0, None, 0]
