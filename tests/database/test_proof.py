"""What arrives is compared with what was read, and a difference undoes the run."""

from __future__ import annotations

import pytest

from .conftest import Legacy, Momentum, Target

MOMENTUM = "migrate_momentum_sqlite_to_postgres.py"
# One stored value that differs on its way, as a full disk, a bit or a trigger could make it.
SPOILED = {
    "trading.trades": "NEW.pnl_usd := coalesce(NEW.pnl_usd, 0) + 0.00000001",
    "trading.positions": "NEW.size := NEW.size + 1",
    "trading.market_data": "NEW.volume := NULL",
    "trading.signals": "NEW.timestamp := NEW.timestamp + interval '1 microsecond'",
    "trading.account_balance": "NEW.margin_used := coalesce(NEW.margin_used, 0) - 1",
    "trading.risk_metrics": "NEW.total_trades := coalesce(NEW.total_trades, 0) + 1",
    "audit.system_events": "NEW.message := NEW.message || ' '",
    "audit.risk_events": "NEW.metadata := NEW.metadata #- '{legacy,created_at}'",
}
SHORTSELLER_TABLES = {name for name in SPOILED if not name.startswith("audit.")}
MOMENTUM_TABLES = {"trading.trades": "trades", "trading.risk_metrics": "daily_snapshots"} | {
    "audit.system_events": "system_events", "audit.risk_events": "risk_events",
}  # fmt: skip


def spoil(target: Target, table: str, change: str, events: str = "INSERT OR UPDATE") -> None:
    """Let a trigger of the superuser change one row on its way into a table."""
    target.server.execute(
        target.database,
        f"CREATE FUNCTION public.spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {change}; RETURN NEW; END $$",
        f"CREATE TRIGGER spoil BEFORE {events} ON {table} FOR EACH ROW"
        f" WHEN ({'NEW.position_metadata' if table == 'trading.positions' else 'NEW.metadata'} #>> '{{legacy,id}}' = '2')"
        " EXECUTE FUNCTION public.spoil()",
    )


def unspoil(target: Target) -> None:
    target.server.execute(target.database, "DROP FUNCTION public.spoil CASCADE")


def refused(target: Target, table: str, bot_id: str, error: str) -> None:
    assert f"{table} of {bot_id} did not arrive as it was read: the rows' hashes sum up to " in error
    assert "Nothing was changed." in error


@pytest.fixture
def shorts(legacy: Legacy) -> Legacy:
    for number in (1, 2, 3):
        legacy.execute(
            f"INSERT INTO trading.trades (symbol, side, quantity, price) VALUES ('X', 'Sell', 1, {number});"
            f"INSERT INTO trading.positions (symbol, side, size, avg_price) VALUES ('X', 'short', 1, {number});"
            f"INSERT INTO trading.signals (symbol, signal_type, price) VALUES ('X', 'short', {number});"
            f"INSERT INTO trading.account_balance (total_balance, available_balance, equity) VALUES (1, 1, {number});"
            f"INSERT INTO trading.risk_metrics (date, total_pnl) VALUES ('2025-06-0{number}', {number});"
            "INSERT INTO trading.market_data (symbol, timestamp, interval, open_price, high_price, low_price, close_price, volume)"
            f" VALUES ('X', '2025-06-0{number}', '5m', 1, 2, 1, 2, 3)"
        )
    return legacy


@pytest.fixture
def history(momentum: Momentum) -> Momentum:
    for number in (1, 2, 3):
        momentum.trade(trade_id=f"t{number}")
        momentum.insert("daily_snapshots", date=f"2025-06-0{number}", mode="live")
        momentum.insert(
            "system_events", event_time="2025-06-01 10:00:00", event_type="T", event_level="INFO", message="m"
        )
        momentum.insert("risk_events", event_time="2025-06-01 10:00:00", risk_type="R", current_value=number)
    return momentum


def test_a_value_that_differs_on_its_way_undoes_the_merge(target: Target, shorts: Legacy) -> None:
    target.script("stage_shortseller.py")
    before = target.contents()
    for table in sorted(SHORTSELLER_TABLES):
        spoil(target, table, SPOILED[table])
        done = target.psql("002_migrate_shortseller_data.sql")
        unspoil(target)
        assert done.returncode == 3, table
        refused(target, table.removeprefix("trading."), "shortseller_001", done.stderr)
        assert target.contents() == before, table
    target.sql("002_migrate_shortseller_data.sql")
    # An update on its way: a delta.
    before = target.business()
    shorts.execute("UPDATE trading.trades SET fees = 1 WHERE id = 2")
    spoil(target, "trading.trades", SPOILED["trading.trades"])
    target.script("stage_shortseller.py")
    done = target.psql("002_migrate_shortseller_data.sql")
    refused(target, "trades", "shortseller_001", done.stderr)
    assert target.business() == before
    unspoil(target)
    assert target.sql("002_migrate_shortseller_data.sql")["changed"] is True


def test_a_value_that_differs_on_its_way_undoes_the_load(target: Target, history: Momentum) -> None:
    target.sql("003_register_momentum_bot.sql")
    before = target.contents()
    for table, source in MOMENTUM_TABLES.items():
        spoil(target, table, SPOILED[table])
        done = target.python(MOMENTUM)
        unspoil(target)
        assert done.returncode == 1, table
        refused(target, source, "momentum_001", done.stderr)
        assert "Traceback" not in done.stderr
        assert {n: r for n, r in target.contents().items() if n != "migration.mappings"} == {
            n: r for n, r in before.items() if n != "migration.mappings"
        }
    target.script(MOMENTUM)
    before = target.contents()
    history.connection.execute("UPDATE trades SET pnl_usd = 5 WHERE id = 2")
    history.connection.commit()
    # Staged and merged, not loaded.
    spoil(target, "trading.trades", SPOILED["trading.trades"])
    for options in ((), ("--full",)):
        done = target.python(MOMENTUM, *options)
        refused(target, "trades", "momentum_001", done.stderr)
        assert target.contents() == before
    unspoil(target)
    assert target.script(MOMENTUM)["changed"] is True
    assert target.script("reconcile.py", "--bot", "momentum_001")["ok"] is True


@pytest.mark.parametrize("change", ["RETURN NULL", "NEW.bot_id := 'lxalgo_001'"])
def test_a_row_that_does_not_arrive_undoes_the_load(target: Target, history: Momentum, change: str) -> None:
    target.sql("003_register_momentum_bot.sql")
    target.sql("004_register_lxalgo_bot.sql")
    before = target.business()
    spoil(target, "trading.trades", change, "INSERT")
    done = target.python(MOMENTUM)
    refused(target, "trades", "momentum_001", done.stderr)
    assert target.business() == before
