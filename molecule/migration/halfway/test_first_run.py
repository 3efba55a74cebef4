"""Phase 2 on a host with phase 1, while the bots trade."""

from __future__ import annotations

from typing import Any

import pytest

PHASE2 = "playbooks/phase2_data_migration.yml"
RECONCILE = "playbooks/reconcile.yml"
LEGACY = "docker ps --format '{{.ID}} {{.Names}}' | grep -E 'shortseller|momentum|lxalgo' | sort"

pytestmark = pytest.mark.service("trading_postgres", "shortseller_postgres")


def test_reconciliation_names_phase_2(play: Any) -> None:
    run = play(RECONCILE)
    assert run.code != 0
    assert "There is nothing to compare" in run.text
    assert "Run playbooks/phase2_data_migration.yml" in run.text
    assert play(RECONCILE, "--check").code == 0


def test_dry_run_tells_what_the_first_run_then_does(host: Any, play: Any, state: Any) -> None:
    before, legacy = state(), host.check_output(LEGACY)
    announced = play(PHASE2, "--check", "--diff")
    assert announced.code == 0
    assert state() == before

    done = play(PHASE2, "--diff")
    assert done.code == 0
    assert done.changed == announced.changed
    assert host.check_output(LEGACY) == legacy


def test_nothing_that_a_database_acknowledged_is_missing(check_journals: Any) -> None:
    check_journals()


def test_a_run_beside_trading_bots_carries_over_what_is_new(host: Any, play: Any, check_journals: Any) -> None:
    count = (
        "docker exec trading_postgres psql -XAtq -U trading_user -d trading_db -c "
        '"SELECT bot_id, count(*) FROM trading.trades GROUP BY 1 ORDER BY 1"'
    )
    before = host.check_output(count)
    assert play(PHASE2, "--tags", "data_migration,reconciliation").code == 0
    assert host.check_output(count) != before
    check_journals()


def test_reconciliation_beside_trading_bots_only_reads(play: Any, state: Any) -> None:
    before = state()
    assert play(RECONCILE, "--check", "--diff").code == 0
    assert state() == before

    run = play(RECONCILE)
    assert run.code == 0
    assert run.changed <= {"Write the reconciliation report"}
    assert state()["rows"] == before["rows"]
