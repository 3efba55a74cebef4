"""Phase 2 interrupted in the middle, and two at once: nothing is half done, and the next run ends with the same rows."""

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
SCHEMAS = "trading, analytics, config, audit, delivery, migration, legacy_shortseller, legacy_momentum"
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'trading_user' "
    "AND wait_event_type = 'Lock'"
)

AT_WORK = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 20018"

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


@pytest.mark.parametrize(
    ("table", "bot", "program", "victim"),
    [
        (
            "trading.signals",
            "shortseller_001",
            "002_migrate_shortseller_data.sql",
            r"pkill -KILL -f '^psql -U trading_user -d trading_db -v only_bot'",
        ),
        (
            "audit.system_events",
            "momentum_001",
            "migrate_momentum_sqlite_to_postgres.py",
            "pkill -KILL -f '^python3 .*migrate_momentum_sqlite_to_postgres.py'",
        ),
    ],
    ids=["shortseller", "momentum"],
)
def test_interrupted_in_the_middle_of_a_merge(
    table: str,
    bot: str,
    program: str,
    victim: str,
    undisturbed: dict[str, str],
    host: Any,
    facts: dict[str, Any],
    play: Any,
    psql: Any,
    content: Any,
) -> None:
    secret = host.check_output(f"sed -n \"s/^POSTGRES_PASSWORD='\\(.*\\)'/\\1/p\" {facts['base_dir']}/.env.database")
    assert len(secret) > 20

    def trades() -> int:
        return int(psql(f"SELECT count(*) FROM trading.trades WHERE bot_id = '{bot}'"))

    # The migration is killed: the playbook fails, and the merge is rolled back.
    with held(psql, host, table):
        process = start("--tags", "data_migration")
        until(lambda: psql(WAITING) != "0")
        with host.sudo():
            shown = host.check_output("cat /proc/[0-9]*/cmdline /run/watched-*/* | tr '\\0' ' '")
            assert program in shown
            assert secret not in shown
            host.check_output(victim)
        assert process.wait(timeout=120) != 0
    until(lambda: psql(AT_WORK) == "0")
    assert trades() == 0

    # The playbook is killed: the migration goes on without it. Whoever comes meanwhile is told.
    with held(psql, host, table):
        process = start("--tags", "data_migration")
        until(lambda: psql(WAITING) != "0")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        second = play(PHASE2, "--tags", "data_migration")
        assert second.code != 0
        assert f"another migration is running: {program} (server process" in second.text
        assert trades() == 0
    until(lambda: psql(AT_WORK) == "0")
    assert trades() > 0

    assert play(PHASE2, "--tags", "data_migration,reconciliation").code == 0
    assert content() == undisturbed
    # What the migration said stays for nobody, and for ten minutes at most.
    with host.sudo():
        assert host.check_output("find /run -maxdepth 1 -name 'watched-*' -perm /077") == ""
