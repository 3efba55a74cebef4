"""Phase 2 where phase 1 has not run yet."""

from __future__ import annotations

from typing import Any

import pytest

PHASE2 = "playbooks/phase2_data_migration.yml"
RECONCILE = "playbooks/reconcile.yml"
ANNOUNCED = {
    "Back up the legacy PostgreSQL databases",
    "Back up the legacy SQLite databases",
    "Copy the migration files",
    "Describe the bots in bots.json",
    "Apply 001_unified_schema.sql",
    "Apply 005_bot_access.sql",
    "Merge the Shortseller history",
    "Register the Momentum bots",
    "Migrate the Momentum history",
    "Register the LXAlgo bots",
    "Create the folder of reports",
    "Write the reconciliation report",
}


@pytest.mark.parametrize("playbook", [PHASE2, "playbooks/site.yml"])
def test_dry_run_announces_everything_and_changes_nothing(playbook: str, play: Any, state: Any) -> None:
    before = state()
    run = play(playbook, "--check", "--diff")
    assert run.code == 0
    assert run.changed >= ANNOUNCED
    assert state() == before


def test_reconciliation_names_phase_1(play: Any) -> None:
    run = play(RECONCILE)
    assert run.code != 0
    assert "Run `ansible-playbook playbooks/phase1_infrastructure.yml` first" in run.text
    assert play(RECONCILE, "--check").code == 0


def test_real_run_names_phase_1_and_changes_nothing(play: Any, state: Any) -> None:
    before = state()
    run = play(PHASE2)
    assert run.code != 0
    assert "Run playbooks/phase1_infrastructure.yml" in run.text
    assert run.changed == frozenset()
    assert state() == before
