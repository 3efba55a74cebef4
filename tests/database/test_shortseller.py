"""stage_shortseller.py and 002: the Shortseller's history, row by row."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from .conftest import Legacy, Target

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


def trade(legacy: Legacy, **changes: object) -> int:
    row: dict[str, object] = {
        "symbol": "BTCUSDT",
        "side": "short",
        "quantity": 1,
        "price": 100,
        "status": "filled",
        "timestamp": NOON,
    }
    return legacy.insert("trades", **row | changes)


def signal(legacy: Legacy, **changes: object) -> int:
    row: dict[str, object] = {
        "symbol": "BTCUSDT",
        "signal_type": "short",
        "strength": 0.5,
        "price": 100,
        "timestamp": NOON,
    }
    return legacy.insert("signals", **row | changes)


def candle(legacy: Legacy, **changes: object) -> int:
    row: dict[str, object] = {
        "symbol": "BTCUSDT", "timestamp": NOON, "interval": "5m", "open_price": 10, "high_price": 12, "low_price": 9,
        "close_price": 11, "volume": 5, "created_at": NOON,
    }  # fmt: skip
    return legacy.insert("market_data", **row | changes)


def table(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(t for t in result["bots"][0]["tables"] if t["source_table"] == name)


def test_trade(target: Target, legacy: Legacy) -> None:
    trade(
        legacy, side="Sell", quantity=Decimal("0.12345678"), price=Decimal("67250.10000001"), order_id="a-1",
        exchange_order_id="x-1", status="Filled", strategy="ema", executed_at=NOON.replace(minute=1),
        pnl=Decimal("-1.00000001"), fees=Decimal("0.5"), notes="überkauft 📉\n\\N",
    )  # fmt: skip
    result = target.migrate_shortseller()
    assert (result["changed"], result["bots"][0]["mode"]) == (True, "full")
    assert table(result, "trades") == {
        "source_table": "trades", "target_table": "trading.trades", "source": 1, "staged": 1, "inserted": 1, "updated": 0,
        "unchanged": 0, "kept": 0, "rejected": 0, "missing_at_source": 0,
    }  # fmt: skip
    (row,) = target.rows("SELECT * FROM trading.trades")
    expected = {
        "trade_id": "shortseller_001_a-1", "bot_id": "shortseller_001", "symbol": "BTCUSDT", "side": "sell",
        "quantity": Decimal("0.12345678"), "entry_price": Decimal("67250.10000001"), "exchange_order_id": "x-1",
        "status": "filled", "strategy": "ema", "entry_time": NOON, "exit_time": NOON.replace(minute=1),
        "pnl_usd": Decimal("-1.00000001"), "fees": Decimal("0.5"), "notes": "überkauft 📉\n\\N",
        "position_size_usd": None, "leverage": None, "created_at": NOON,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["metadata"] == {
        "legacy": {"table": "trades", "id": 1, "order_id": "a-1", "side": "Sell", "status": "Filled"}
    }


def test_trade_without_order_id(target: Target, legacy: Legacy) -> None:
    number = trade(legacy)
    target.migrate_shortseller()
    assert target.value("SELECT trade_id FROM trading.trades") == f"shortseller_001_legacy_{number}"


def test_sides(target: Target, legacy: Legacy) -> None:
    sides = ["Buy", "SELL", "Long", "sHoRt"]
    for side in sides:
        trade(legacy, side=side)
        legacy.insert("positions", symbol="X", side=side, size=1, avg_price=1, opened_at=NOON)
    target.migrate_shortseller()
    rows = target.rows("SELECT side, metadata #>> '{legacy,side}' AS legacy FROM trading.trades ORDER BY id")
    assert [(r["side"], r["legacy"]) for r in rows] == [(side.lower(), side) for side in sides]
    rows = target.rows("SELECT side FROM trading.positions ORDER BY id")
    assert [r["side"] for r in rows] == ["long", "short", "long", "short"]


def test_statuses(target: Target, legacy: Legacy) -> None:
    for status in ("pending", "CANCELED", "cancelled", "Rejected", "expired", "partially_filled"):
        trade(legacy, status=status)
    target.migrate_shortseller()
    found = [row["status"] for row in target.rows("SELECT status FROM trading.trades ORDER BY id")]
    assert found == ["pending", "cancelled", "cancelled", "rejected", "expired", "partially_filled"]


def test_position(target: Target, legacy: Legacy) -> None:
    legacy.insert(
        "positions", symbol="ETHUSDT", side="short", size=2, avg_price=50, unrealized_pnl=1, realized_pnl=2,
        status="open", opened_at=NOON, stop_loss=60, take_profit=40, leverage=5,
    )  # fmt: skip
    target.migrate_shortseller()
    (row,) = target.rows("SELECT * FROM trading.positions")
    assert row["position_id"] == "shortseller_001_legacy_1"
    assert (row["status"], row["closed_at"], row["leverage"], row["total_pnl"]) == ("open", None, 5, 3)
    legacy.execute(
        "UPDATE trading.positions SET status = 'closed', closed_at = %s, realized_pnl = 9", NOON.replace(hour=13)
    )
    result = target.migrate_shortseller()
    assert table(result, "positions")["updated"] == 1
    (row,) = target.rows("SELECT * FROM trading.positions")
    assert (row["status"], row["closed_at"], row["realized_pnl"]) == ("closed", NOON.replace(hour=13), 9)


def test_signals(target: Target, legacy: Legacy) -> None:
    number = trade(legacy, order_id="o")
    signal(legacy, signal_type="close", execution_id=number, executed=True, indicators='{"ema": 1.50}')
    signal(legacy, signal_type="LONG", executed=None)
    target.migrate_shortseller()
    first, second = target.rows("SELECT * FROM trading.signals ORDER BY id")
    assert (first["signal_type"], first["execution_trade_id"], first["executed"]) == (
        "close_short",
        "shortseller_001_o",
        True,
    )
    assert first["indicators"] == {"ema": 1.5}
    assert first["metadata"]["legacy"] == {"table": "signals", "id": 1, "signal_type": "close", "execution_id": number}
    assert (second["signal_type"], second["executed"], second["execution_trade_id"]) == ("long", False, None)


def test_signal_of_a_rejected_trade(target: Target, legacy: Legacy) -> None:
    number = trade(legacy, side="sideways")
    signal(legacy, execution_id=number)
    target.migrate_shortseller(accepted_rejects=1)
    (row,) = target.rows("SELECT * FROM trading.signals")
    assert row["execution_trade_id"] is None
    assert row["metadata"]["legacy"]["execution_id"] == number


def test_day_takes_its_equity_from_the_balances(target: Target, legacy: Legacy) -> None:
    target.bot("shortseller_001")["timezone"] = "Europe/Berlin"
    legacy.execute("DELETE FROM trading.account_balance")
    # 22:30 UTC on the first is 00:30 of the second in Berlin.
    for day, hour, equity in ((1, 10, 9900), (1, 22, 9950), (2, 12, 10100)):
        when = datetime(2025, 6, day, hour, 30, tzinfo=UTC)
        legacy.insert("account_balance", total_balance=1, available_balance=1, equity=equity, timestamp=when)
    for day, pnl in ((31, 50), (32, 7), (33, -20)):
        legacy.insert(
            "risk_metrics",
            date=f"2025-06-{day - 31:02}" if day > 31 else "2025-05-31",
            total_pnl=pnl,
            profit_factor=Decimal("999999.9999"),
        )
    target.migrate_shortseller()
    rows = target.rows("SELECT * FROM trading.risk_metrics ORDER BY date")
    assert [(r["starting_equity"], r["ending_equity"]) for r in rows] == [(10000, 10050), (10050, 9900), (9900, 10100)]
    assert [r["metadata"]["derived"]["starting_equity"] for r in rows] == [
        "initial_capital + cumulative total_pnl", "initial_capital + cumulative total_pnl", "account_balance",
    ]  # fmt: skip
    assert rows[0]["daily_pnl"] == 50
    assert rows[0]["profit_factor"] == Decimal("999999.9999")
    assert target.value("SELECT current_equity FROM trading.bots") == 10100


def test_equity_is_the_bots_own_once_it_ran(target: Target, legacy: Legacy) -> None:
    number = trade(legacy)
    target.migrate_shortseller()
    target.execute("UPDATE trading.bots SET current_equity = 1, last_heartbeat = now()")
    target.execute("UPDATE trading.trades SET exit_time = now()")
    legacy.execute("UPDATE trading.trades SET pnl = 5 WHERE id = %s", number)
    trade(legacy)
    result = target.migrate_shortseller()
    assert {k: table(result, "trades")[k] for k in ("inserted", "updated", "kept")} == {
        "inserted": 1,
        "updated": 0,
        "kept": 1,
    }
    assert target.value("SELECT current_equity FROM trading.bots") == 1
    assert target.value("SELECT count(*) FROM trading.trades WHERE exit_time IS NOT NULL") == 1


def test_second_run_touches_no_row(target: Target, legacy: Legacy) -> None:
    trade(legacy)
    signal(legacy)
    candle(legacy)
    target.migrate_shortseller()
    before = target.contents()
    for result in (target.migrate_shortseller(), target.sql("002_migrate_shortseller_data.sql")):
        assert result["changed"] is False
    after = target.contents()
    for name in before:
        if not name.startswith("migration."):
            assert after[name] == before[name]


def test_a_merge_is_not_made_twice(target: Target, legacy: Legacy) -> None:
    trade(legacy)
    first = target.migrate_shortseller()
    assert target.value("SELECT count(*) FROM legacy_shortseller.trades") == 0
    # Autovacuum does not look for what was inserted: emptying it would wait.
    assert (
        target.value(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'legacy_shortseller'::regnamespace AND relkind = 'r'"
            " AND reloptions @> '{autovacuum_vacuum_insert_threshold=-1}'"
        )
        == 6
    )
    # The history stands once in the database and in its backups.
    again = target.sql("002_migrate_shortseller_data.sql")
    assert again["changed"] is again["bots"][0]["changed"] is False
    assert (table(first, "trades")["inserted"], table(first, "trades")["unchanged"]) == (1, 0)
    assert (table(again, "trades")["inserted"], table(again, "trades")["unchanged"]) == (0, 1)
    for key in ("bot_id", "run_id", "mode", "snapshot_at"):
        assert again["bots"][0][key] == first["bots"][0][key]


def test_changed_and_deleted_rows(target: Target, legacy: Legacy) -> None:
    numbers = [trade(legacy, status="pending") for _ in range(3)]
    target.migrate_shortseller()
    legacy.execute("UPDATE trading.trades SET status = 'filled', pnl = 4, order_id = 'late' WHERE id = %s", numbers[0])
    legacy.execute("DELETE FROM trading.trades WHERE id = %s", numbers[1])
    counts = table(target.migrate_shortseller(), "trades")
    # The third row cannot have changed, and is not read again.
    assert (counts["source"], counts["staged"]) == (2, 1)
    assert (counts["inserted"], counts["updated"], counts["unchanged"], counts["missing_at_source"]) == (0, 1, 0, 1)
    counts = table(target.migrate_shortseller("--full"), "trades")
    assert (counts["staged"], counts["updated"], counts["unchanged"], counts["missing_at_source"]) == (2, 0, 2, 1)
    rows = target.rows("SELECT trade_id, status, pnl_usd FROM trading.trades ORDER BY id")
    assert tuple(rows[0].values()) == ("shortseller_001_late", "filled", 4)
    assert len(rows) == 3


REJECTS: list[tuple[str, dict[str, object], str]] = [
    ("trades", {"side": "sideways"}, "unknown side 'sideways': expected one of buy, sell, long, short"),
    ("trades", {"status": "odd"}, "unknown status 'odd'"),
    ("trades", {"quantity": -1}, "quantity -1.00000000 is below zero"),
    ("trades", {"price": "NaN"}, "price NaN does not fit"),
    ("trades", {"order_id": "x" * 90}, "would be longer than 100 characters"),
    ("positions", {"side": "both"}, "unknown side 'both'"),
    ("positions", {"status": "half"}, "unknown status 'half'"),
    ("positions", {"leverage": 10000}, "leverage 10000 does not fit"),
    ("market_data", {"high_price": 10}, "high and low do not bound open and close"),
    ("signals", {"signal_type": "buy"}, "unknown signal_type 'buy'"),
    ("signals", {"strength": Decimal("1.5")}, "strength 1.5000 is not between 0 and 1"),
]
GOOD: dict[str, dict[str, object]] = {
    "trades": {"symbol": "X", "side": "short", "quantity": 1, "price": 1, "status": "filled"},
    "positions": {"symbol": "X", "side": "short", "size": 1, "avg_price": 1},
    "signals": {"symbol": "X", "signal_type": "short", "price": 1},
    "market_data": {
        "symbol": "X", "timestamp": NOON, "interval": "5m", "open_price": 10, "high_price": 12, "low_price": 9,
        "close_price": 11, "volume": 5,
    },
}  # fmt: skip


def test_rejects(target: Target, legacy: Legacy) -> None:
    numbers = [str(legacy.insert(source, **GOOD[source] | row)) for source, row, _ in REJECTS]
    trade(legacy)
    target.script("stage_shortseller.py")
    before = target.contents()
    done = target.psql("002_migrate_shortseller_data.sql", accepted_rejects=len(REJECTS) - 1)
    assert done.returncode == 3
    assert f"{len(REJECTS)} rows cannot be migrated, {len(REJECTS) - 1} accepted." in done.stderr
    assert f"shortseller_001 trades {numbers[0]}: {REJECTS[0][2]}" in done.stderr
    assert f"-e data_migration_accepted_rejects={len(REJECTS)}" in done.stderr
    assert target.contents() == before

    found = target.rows("SELECT * FROM migration.rejects ORDER BY reject_id")
    for reject, number, (source, row, reason) in zip(found, numbers, REJECTS, strict=True):
        assert (reject["source_table"], reject["source_id"]) == (source, number)
        assert reason in reject["reason"]
        assert set(GOOD[source]) | {"id"} <= set(reject["row"])
        for name, value in row.items():
            kept = reject["row"][name]
            assert kept == value or Decimal(str(kept)) == value

    result = target.sql("002_migrate_shortseller_data.sql", accepted_rejects=len(REJECTS))
    assert {t["source_table"]: (t["inserted"], t["rejected"]) for t in result["bots"][0]["tables"]} == {
        "trades": (1, 5), "positions": (0, 3), "market_data": (0, 1), "signals": (0, 2), "account_balance": (1, 0),
        "risk_metrics": (0, 0),
    }  # fmt: skip
    assert len(result["bots"][0]["rejects"]) == 10
    assert target.script("reconcile.py", "--bot", "shortseller_001")["ok"] is True


def test_rejects_end_when_the_source_is_corrected(target: Target, legacy: Legacy) -> None:
    trade(legacy, side="sideways")
    target.script("stage_shortseller.py")
    legacy.execute("UPDATE trading.trades SET side = 'Sell'")
    assert target.migrate_shortseller()["bots"][0]["rejected"] == 0
    assert target.value("SELECT count(*) FROM migration.rejects") == 0


def test_generated_ids_that_collide(target: Target, legacy: Legacy) -> None:
    first = trade(legacy)
    second = trade(legacy, order_id=f"legacy_{first}")
    result = target.migrate_shortseller(accepted_rejects=1)
    assert [r["id"] for r in result["bots"][0]["rejects"]] == [str(second)]
    assert target.value("SELECT metadata #>> '{legacy,id}' FROM trading.trades") == str(first)


def test_trade_id_of_another_bot(target: Target, legacy: Legacy) -> None:
    target.sql("004_register_lxalgo_bot.sql")
    target.execute(
        "INSERT INTO trading.trades (trade_id, bot_id, symbol, side, quantity, entry_price, entry_time)"
        " VALUES ('shortseller_001_taken', 'lxalgo_001', 'X', 'buy', 1, 1, now())"
    )
    trade(legacy, order_id="taken")
    target.script("stage_shortseller.py")
    assert "trade_id shortseller_001_taken is already held by another row" in target.value(
        "SELECT reason FROM migration.rejects"
    )


def test_shared_candles(target: Target, legacy: Legacy) -> None:
    for interval in ("5m", "1h", "4h"):
        candle(legacy, interval=interval)
    for interval, close in (("5m", 11), ("1h", 10)):
        target.execute(
            "INSERT INTO trading.market_data (symbol, interval, timestamp, open_price, high_price, low_price, close_price, volume,"
            " data_source) VALUES ('BTCUSDT', %s, %s, 10, 12, 9, %s, 5, 'feed')", interval, NOON, close,
        )  # fmt: skip
    counts = table(target.migrate_shortseller(accepted_rejects=1), "market_data")
    assert (counts["inserted"], counts["unchanged"], counts["rejected"]) == (1, 1, 1)
    assert "already held with other values (from feed)" in target.value("SELECT reason FROM migration.rejects")
    assert target.value("SELECT count(*) FROM trading.market_data WHERE data_source = 'feed'") == 2
    assert target.script("reconcile.py", "--bot", "shortseller_001")["ok"] is True


def test_two_bots_of_a_type(target: Target, legacy: Legacy) -> None:
    trade(legacy)
    candle(legacy)
    target.bots.append({**target.bot("shortseller_001"), "bot_id": "shortseller_002"})
    result = target.migrate_shortseller()
    assert [b["bot_id"] for b in result["bots"]] == ["shortseller_001", "shortseller_002"]
    assert target.value("SELECT count(*) FROM trading.trades") == 2
    assert target.value("SELECT count(*) FROM trading.market_data") == 1
    for bot_id in ("shortseller_001", "shortseller_002"):
        assert target.script("reconcile.py", "--bot", bot_id)["ok"] is True


def test_one_bot_can_be_migrated_alone(target: Target, legacy: Legacy) -> None:
    trade(legacy)
    target.bots.append({**target.bot("shortseller_001"), "bot_id": "shortseller_002"})
    target.script("stage_shortseller.py", "--bot", "shortseller_002")
    target.sql("002_migrate_shortseller_data.sql", only_bot="shortseller_002")
    assert target.value("SELECT string_agg(bot_id, ',') FROM trading.trades") == "shortseller_002"


def test_a_merge_leaves_what_is_staged_for_another_bot(target: Target, legacy: Legacy) -> None:
    trade(legacy)
    target.bots.append({**target.bot("shortseller_001"), "bot_id": "shortseller_002"})
    target.script("stage_shortseller.py")
    target.sql("002_migrate_shortseller_data.sql", only_bot="shortseller_002")
    assert target.value("SELECT string_agg(bot_id, ',') FROM legacy_shortseller.trades") == "shortseller_001"
    assert target.sql("002_migrate_shortseller_data.sql")["changed"] is True
    assert target.value("SELECT count(*) FROM legacy_shortseller.trades") == 0
    for bot_id in ("shortseller_001", "shortseller_002"):
        assert target.script("reconcile.py", "--bot", bot_id)["ok"] is True


def test_dry_run_leaves_no_trace(target: Target, legacy: Legacy) -> None:
    trade(legacy)
    schemas = target.rows("SELECT nspname FROM pg_namespace ORDER BY 1")
    before = target.contents()
    result = target.script("stage_shortseller.py", "--dry-run")
    assert (result["changed"], result["dry_run"]) == (True, True)
    assert table(result, "trades")["inserted"] == 1
    assert target.sql("002_migrate_shortseller_data.sql", dry_run=1)["changed"] is True
    assert target.contents() == before
    assert [
        s for s in target.rows("SELECT nspname FROM pg_namespace ORDER BY 1") if not s["nspname"].startswith("pg_")
    ] == [s for s in schemas if not s["nspname"].startswith("pg_")]
    target.migrate_shortseller()
    assert target.script("stage_shortseller.py", "--dry-run")["changed"] is False
    assert target.sql("002_migrate_shortseller_data.sql", dry_run=1)["changed"] is False


def test_sources_are_not_written_to(target: Target, legacy: Legacy) -> None:
    trade(legacy)
    with closing(legacy.server.connect(legacy.database, "trading_user")) as connection:
        cursor = connection.cursor()
        # xmin and ctid move with any write to a row, xact_commit ids with any write at all.
        look = "SELECT xmin::text, ctid::text, pg_snapshot_xmax(pg_current_snapshot())::text FROM trading.trades"
        cursor.execute(look)
        before = cursor.fetchall()
        connection.rollback()
        target.migrate_shortseller()
        cursor.execute(look)
        assert cursor.fetchall() == before


def test_columns_nobody_knows_are_kept(target: Target, legacy: Legacy) -> None:
    legacy.execute("ALTER TABLE trading.trades ADD COLUMN broker text")
    trade(legacy, broker="Alpha")
    target.write_bots()
    done = target.python("stage_shortseller.py")
    assert "columns this project does not know, kept under `legacy`: broker" in done.stderr
    target.sql("002_migrate_shortseller_data.sql")
    assert target.value("SELECT metadata #>> '{legacy,broker}' FROM trading.trades") == "Alpha"


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("ALTER TABLE trading.trades DROP COLUMN fees", "column trading.trades.fees is missing"),
        ("DROP TABLE trading.risk_metrics", "table trading.risk_metrics is missing"),
        (
            "ALTER TABLE trading.trades ALTER pnl TYPE double precision",
            "column trading.trades.pnl is double precision, expected",
        ),
    ],
)
def test_source_of_another_shape(target: Target, legacy: Legacy, statement: str, message: str) -> None:
    legacy.execute("DROP VIEW trading.daily_performance")
    legacy.execute(statement)
    before = target.contents()
    done = target.python("stage_shortseller.py")
    assert done.returncode == 4
    assert message in done.stderr
    assert target.contents() == before


def test_a_fraction_where_whole_numbers_belong_is_not_rounded(target: Target, legacy: Legacy) -> None:
    legacy.execute("ALTER TABLE trading.risk_metrics ALTER COLUMN winning_trades TYPE numeric")
    number = legacy.insert("risk_metrics", date="2025-06-01", winning_trades=3)
    target.migrate_shortseller()
    assert target.value("SELECT winning_trades FROM trading.risk_metrics") == 3
    legacy.execute("UPDATE trading.risk_metrics SET winning_trades = 3.5 WHERE id = %s", number)
    done = target.python("stage_shortseller.py")
    assert done.returncode == 4
    assert 'invalid input syntax for type bigint: "3.5"' in done.stderr


def test_source_that_is_down(target: Target, legacy: Legacy) -> None:
    target.bot("shortseller_001")["legacy"]["port"] = 1
    done = target.python("stage_shortseller.py")
    assert done.returncode == 4
    assert "error: cannot connect to" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_the_target_is_not_told_as_one_of_the_source(target: Target, legacy: Legacy) -> None:
    target.script("stage_shortseller.py")
    target.server.execute(
        target.database,
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no more runs'; END $$",
        "CREATE TRIGGER refuse BEFORE INSERT ON migration.runs EXECUTE FUNCTION public.refuse()",
    )
    done = target.python("stage_shortseller.py")
    assert done.returncode == 1
    assert done.stderr.endswith("error: no more runs\n")


def test_merge_without_staging(target: Target, legacy: Legacy) -> None:
    done = target.psql("002_migrate_shortseller_data.sql")
    assert done.returncode == 3
    assert "shortseller_001 has not been staged: run database/migrations/stage_shortseller.py first" in done.stderr


def test_lost_staging_is_noticed(target: Target, legacy: Legacy) -> None:
    trade(legacy)
    target.script("stage_shortseller.py")
    target.execute("TRUNCATE legacy_shortseller.trades")
    done = target.psql("002_migrate_shortseller_data.sql")
    assert done.returncode == 3
    assert "staged 1 rows of trades in run 1, but 0 are there" in done.stderr
