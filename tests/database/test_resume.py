"""Runs that are cut off, and runs that meet."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from .conftest import Legacy, Momentum, Target

MOMENTUM = "migrate_momentum_sqlite_to_postgres.py"


@pytest.fixture
def momentum_history(momentum: Momentum) -> Momentum:
    with momentum.connection:
        momentum.connection.executemany(
            "INSERT INTO trades (trade_id, mode, symbol, side, entry_time, entry_price, quantity, position_size_usd)"
            " VALUES (?, 'live', 'X', 'Buy', '2025-06-01 10:00:00', 1.1, 2.2, 3.3)",
            [(f"t{number}",) for number in range(3000)],
        )
    return momentum


@contextmanager
def blocked(target: Target, table: str) -> Iterator[Callable[[], int]]:
    """Stop whoever writes to a table in the middle of the work; yields a wait for that."""
    with closing(target.server.connect(target.database)) as connection:
        cursor = connection.cursor()
        cursor.execute(f"LOCK TABLE {table} IN SHARE MODE")

        def wait() -> int:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                found = target.rows(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'", user="postgres"
                )
                if found:
                    return int(found[0]["pid"])
                time.sleep(0.05)
            raise AssertionError("nobody waits for the lock")

        yield wait
        connection.rollback()


def unified(target: Target) -> dict[str, list[str]]:
    return {name: rows for name, rows in target.contents().items() if not name.startswith("migration.")}


def test_script_killed_in_the_middle(target: Target, momentum_history: Momentum) -> None:
    target.sql("003_register_momentum_bot.sql")
    before = unified(target)
    # While it stages, in the middle of the merge, and at its end.
    for table in ("migration.runs", "trading.positions", "trading.bots"):
        with blocked(target, table) as wait:
            process = target.start(MOMENTUM)
            wait()
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=10)
        assert unified(target) == before, f"killed while it waited for {table}"
    # The server notices a dead client within a second and lets go of the lock.
    result = target.script(MOMENTUM)
    assert result["bots"][0]["tables"][0]["inserted"] == 3000
    assert target.script("verify_migration.py", "--bot", "momentum_001")["ok"] is True


def test_server_process_terminated_in_the_middle(target: Target, legacy: Legacy) -> None:
    legacy.execute(
        "INSERT INTO trading.trades (symbol, side, quantity, price) SELECT 'X', 'Sell', 1, n FROM generate_series(1, 1000) n"
    )
    target.script("stage_shortseller.py")
    before = unified(target)
    with blocked(target, "trading.signals") as wait:
        # Nothing is inserted into signals unless there is one.
        legacy.insert("signals", symbol="X", signal_type="short", price=1)
        target.script("stage_shortseller.py")
        process = target.start("stage_shortseller.py", "--dry-run")
        pid = wait()
        target.rows("SELECT pg_terminate_backend(%s)", pid, user="postgres")
        _, err = process.communicate(timeout=30)
        assert process.returncode == 5
        assert "nothing is half done: check trading_postgres, then run this again" in err
    assert unified(target) == before
    target.migrate_shortseller()
    assert target.value("SELECT count(*) FROM trading.trades") == 1000
    assert target.script("verify_migration.py", "--bot", "shortseller_001")["ok"] is True


def test_second_run_is_told_who_is_at_work(target: Target, momentum_history: Momentum) -> None:
    target.sql("003_register_momentum_bot.sql")
    target.server.execute(target.database, f"ALTER DATABASE {target.database} SET migration.lock_wait = '1s'")
    with blocked(target, "trading.positions") as wait:
        process = target.start(MOMENTUM)
        pid = wait()
        second = target.python(MOMENTUM)
        assert second.returncode == 5
        assert f"another migration is running: {MOMENTUM} (server process {pid}, since 20" in second.stderr
        third = target.psql("003_register_momentum_bot.sql")
        assert third.returncode == 3
        assert f"server process {pid}" in third.stderr
        process.kill()
        process.communicate()
    assert target.script(MOMENTUM)["changed"] is True


def test_rows_are_never_half_visible(target: Target, momentum_history: Momentum) -> None:
    target.sql("003_register_momentum_bot.sql")
    with blocked(target, "audit.risk_events") as wait:
        momentum_history.insert("risk_events", event_time="2025-06-01 10:00:00", risk_type="R")
        process = target.start(MOMENTUM)
        wait()
        assert target.value("SELECT count(*) FROM trading.trades") == 0
    process.communicate(timeout=60)
    assert target.value("SELECT count(*) FROM trading.trades") == 3000
