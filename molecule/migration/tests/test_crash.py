"""Phase 2 killed in the middle: a second run ends with the same rows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[3]
PHASE2 = "playbooks/phase2_data_migration.yml"
SCHEMAS = "trading, analytics, config, audit, migration, legacy_shortseller, legacy_momentum"
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'trading_user' "
    "AND wait_event_type = 'Lock'"
)

pytestmark = pytest.mark.service("trading_postgres")

_rows: dict[str, str] = {}


@contextmanager
def held(psql: Callable[[str], str], host: Any, table: str) -> Iterator[None]:
    """Whoever writes to the table has to wait, so that the middle of a merge lasts as long as a test wants."""
    sql = f"SET application_name = 'holder'; BEGIN; LOCK TABLE {table} IN SHARE MODE; SELECT pg_sleep(600)"
    host.check_output(f'docker exec -d trading_postgres psql -U postgres -d trading_db -c "{sql}"')
    until(lambda: psql(f"SELECT count(*) FROM pg_locks WHERE relation = '{table}'::regclass AND granted") != "0")
    try:
        yield
    finally:
        psql_as_superuser = "docker exec trading_postgres psql -XAtq -U postgres -c"
        host.check_output(
            f'{psql_as_superuser} "SELECT pg_terminate_backend(pid) FROM pg_stat_activity '
            "WHERE application_name = 'holder'\""
        )


def until(condition: Callable[[], bool], seconds: int = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what the test waits for did not happen"
        time.sleep(0.5)


def start(*options: str) -> subprocess.Popen[bytes]:
    command = ["ansible-playbook", PHASE2, "-i", os.environ["MOLECULE_INVENTORY_FILE"], *options]
    return subprocess.Popen(command, cwd=PROJECT, stdout=sys.stdout.fileno(), start_new_session=True)


def empty(psql: Callable[[str], str], play: Any) -> None:
    """Back to the schema without rows."""
    psql(f"DROP SCHEMA IF EXISTS {SCHEMAS} CASCADE")
    assert play(PHASE2, "--tags", "schema_migrations").code == 0


@pytest.fixture
def undisturbed(play: Any, psql: Any, content: Any) -> dict[str, str]:
    """The rows that one run leaves which nothing interrupts; the tables are empty afterwards.

    Earlier runs beside trading bots leave more: positions of Momentum's trades that were open then.
    """
    if not _rows:
        empty(psql, play)
        assert play(PHASE2, "--tags", "data_migration,reconciliation").code == 0
        _rows.update(content())
    empty(psql, play)
    return _rows


@pytest.mark.parametrize("table", ["trading.signals", "audit.system_events"], ids=["shortseller", "momentum"])
def test_playbook_is_killed(
    table: str, undisturbed: dict[str, str], host: Any, play: Any, psql: Any, content: Any
) -> None:
    with held(psql, host, table):
        process = start("--tags", "data_migration")
        until(lambda: psql(WAITING) != "0")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert play(PHASE2, "--tags", "data_migration,reconciliation").code == 0
    assert content() == undisturbed


@pytest.mark.parametrize(
    ("table", "victim"),
    [
        ("trading.signals", r"pkill -KILL -f '^psql -U trading_user -d trading_db -v only_bot'"),
        ("audit.system_events", "pkill -KILL -f '^python3 .*migrate_momentum_sqlite_to_postgres.py'"),
    ],
    ids=["shortseller", "momentum"],
)
def test_migration_is_killed(
    table: str, victim: str, undisturbed: dict[str, str], host: Any, play: Any, psql: Any, content: Any
) -> None:
    with held(psql, host, table):
        process = start("--tags", "data_migration")
        until(lambda: psql(WAITING) != "0")
        with host.sudo():
            host.check_output(victim)
        assert process.wait(timeout=120) != 0
    assert play(PHASE2, "--tags", "data_migration,reconciliation").code == 0
    assert content() == undisturbed
