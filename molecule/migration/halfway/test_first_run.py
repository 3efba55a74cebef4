"""Phase 2 on a host with phase 1, while the bots trade."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[3]
PHASE2 = "playbooks/phase2_data_migration.yml"
LEGACY = "docker ps --format '{{.ID}} {{.Names}}' | grep -E 'shortseller|momentum|lxalgo' | sort"

pytestmark = pytest.mark.service("trading_postgres", "shortseller_postgres")


def test_dry_run_tells_what_the_first_run_then_does(host: Any, play: Any, state: Any) -> None:
    before, legacy = state(), host.check_output(LEGACY)
    announced = play(PHASE2, "--check", "--diff")
    assert announced.code == 0
    assert state() == before

    done = play(PHASE2, "--diff")
    assert done.code == 0
    assert done.changed == announced.changed
    assert host.check_output(LEGACY) == legacy


def test_nothing_that_a_database_acknowledged_is_missing(host: Any, facts: dict[str, Any]) -> None:
    name = host.backend.host.name
    check = (
        f"cd {facts['base_dir']} && . ./.env.database && PGPASSWORD=$POSTGRES_PASSWORD "
        f"python3 - --dsn 'host=127.0.0.1 port={facts['ports']['postgres']} dbname=trading_db user=trading_user' journal"
    )
    with PROJECT.joinpath("tests/legacy/check_journal.py").open() as program:
        subprocess.run(["ssh", "-F", PROJECT / f".cache/testbed/{name}.ssh", name, check], stdin=program, check=True)


def test_a_run_beside_trading_bots_carries_over_what_is_new(host: Any, play: Any) -> None:
    count = (
        "docker exec trading_postgres psql -XAtq -U trading_user -d trading_db -c "
        '"SELECT bot_id, count(*) FROM trading.trades GROUP BY 1 ORDER BY 1"'
    )
    before = host.check_output(count)
    assert play(PHASE2, "--tags", "data_migration,reconciliation").code == 0
    assert host.check_output(count) != before
