"""reconcile.yml on a migrated host: what it calls equal, pending and different."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

PHASE2 = "playbooks/phase2_data_migration.yml"
RECONCILE = "playbooks/reconcile.yml"

pytestmark = pytest.mark.service("trading_postgres", "shortseller_postgres")


@pytest.fixture
def report(host: Any, facts: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The last report's tables, by bot and table of the source."""

    def read() -> dict[str, Any]:
        found = json.loads(host.check_output(f"cat {facts['base_dir']}/database/reports/reconciliation.json"))
        return {
            f"{bot['bot_id']} {table['source_table']}": table
            for bot in reversed(found["bots"])
            for table in reversed(bot["tables"])
        }

    return read


def shortseller(host: Any, sql: str) -> str:
    command = (
        "docker exec shortseller_postgres psql -XAtq -v ON_ERROR_STOP=1 -U trading_user -d multiasset_trading -c %s"
    )
    return str(host.check_output(command, sql))


def momentum(host: Any, facts: dict[str, Any], sql: str) -> None:
    path = f"{facts['base_dir']}/momentum/data/trading.db"
    program = f"import sqlite3; c = sqlite3.connect({path!r}); c.execute({sql!r}); c.commit(); c.close()"
    with host.sudo():
        host.check_output("python3 -c %s", program)


def test_second_run_and_dry_run_change_nothing(play: Any, state: Any) -> None:
    assert play(RECONCILE).code == 0
    before = state()
    for options in ((), ("--check", "--diff")):
        run = play(RECONCILE, *options)
        assert run.code == 0
        assert run.changed == frozenset()
        assert state() == before


def test_a_bot_that_the_host_does_not_know_is_named(play: Any) -> None:
    run = play(RECONCILE, "-e", json.dumps({"reconciliation_bots": ["momentum_001", "late_001"]}))
    assert run.code != 0
    assert "late_001: in the inventory, but not in" in run.text
    assert "Nothing was compared. Run playbooks/phase2_data_migration.yml." in run.text
    assert run.changed == frozenset()


def test_a_tampered_amount_is_named(host: Any, play: Any, psql: Any) -> None:
    superuser = "docker exec trading_postgres psql -XAtq -U postgres -d trading_db -c %s"
    legacy_id, price = psql(
        "SELECT metadata #>> '{legacy,id}', entry_price FROM trading.trades WHERE bot_id = 'shortseller_001' "
        "AND metadata #>> '{legacy,table}' = 'trades' ORDER BY id LIMIT 1"
    ).split("|")
    row = f"bot_id = 'shortseller_001' AND metadata #>> '{{legacy,id}}' = '{legacy_id}'"
    host.check_output(superuser, f"UPDATE trading.trades SET entry_price = entry_price + 0.00000001 WHERE {row}")
    try:
        run = play(RECONCILE)
        assert run.code != 0
        assert f"id {legacy_id}: price is" in run.text
        assert f"expected {price}" in run.text
    finally:
        host.check_output(superuser, f"UPDATE trading.trades SET entry_price = {price} WHERE {row}")
    assert play(RECONCILE, data_migration_only_bot="shortseller_001").code == 0


def test_changes_at_the_source_are_pending_until_the_next_run(
    host: Any, facts: dict[str, Any], play: Any, psql: Any, report: Any
) -> None:
    trade, signal = (shortseller(host, f"SELECT min(id) FROM trading.{table}") for table in ("trades", "signals"))
    shortseller(host, f"UPDATE trading.trades SET price = price + 1 WHERE id = {trade}")
    shortseller(host, f"DELETE FROM trading.signals WHERE id = {signal}")
    momentum(host, facts, "UPDATE system_events SET message = 'changed' WHERE id = (SELECT min(id) FROM system_events)")
    assert play(RECONCILE).code == 0
    found = report()
    assert found["shortseller_001 trades"]["pending"] == 1
    assert found["shortseller_001 signals"]["deleted_since"] == 1
    assert found["momentum_001 system_events"]["pending"] >= 1

    run = play(PHASE2, "--tags", "data_migration,reconciliation")
    assert run.code == 0
    assert "1 no longer at the source" in run.text
    found = report()
    for name, table in found.items():
        assert table["pending"] == 0, name
    assert found["shortseller_001 signals"]["missing_at_source"] == 1
    # The delta did not read all history for that.
    trades = found["shortseller_001 trades"]["source"]
    assert f"shortseller_001 trades -> trading.trades: {trades} at the source, {trades} read" not in run.text
    assert psql("SELECT count(*) FROM audit.system_events WHERE message = 'changed'") == "1"
