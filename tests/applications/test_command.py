"""`python -m trading_db`, as an operator runs it in a bot's container."""

from __future__ import annotations

import subprocess
import sys

from trading_db import Settings

from tests.applications.conftest import Opener, Platform
from tests.applications.test_failures import environment
from tests.database.conftest import PASSWORD, ROOT, Target


def run(command: str, settings: Settings, **changes: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "trading_db", command],
        env=environment(settings) | changes,
        cwd=ROOT / "files/applications",
        capture_output=True,
        text=True,
        timeout=60,
    )
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    assert PASSWORD not in output
    return done.returncode, output


def test_check_proves_each_fact_and_leaves_nothing(settings: Settings, target: Target) -> None:
    before = target.contents()
    code, output = run("check", settings)
    assert code == 0, output
    assert [line.split(": ")[0] for line in output.splitlines()] == ["ok"] * 7, output
    for fact in (
        "can be written",
        f"connected to {target.database}",
        "through PgBouncer",
        "momentum_001 is registered",
        "a trade of momentum_001 is written, reads back with every digit",
        "a trade of another bot is refused",
        "no row of another bot can be seen",
    ):
        assert fact in output
    assert target.contents() == before
    assert list(settings.outbox.iterdir()) == []


def test_check_sees_a_bot_that_bypasses_the_pooler(settings: Settings, platform: Platform) -> None:
    code, output = run("check", settings, POSTGRES_PORT=str(platform.server.port))
    assert code == 1
    assert f"failed: 127.0.0.1:{platform.server.port} is PostgreSQL itself, expected PgBouncer" in output


def test_check_sees_missing_isolation(settings: Settings, target: Target) -> None:
    target.execute("ALTER TABLE trading.trades DISABLE ROW LEVEL SECURITY")
    target.execute("ALTER TABLE trading.bots DISABLE ROW LEVEL SECURITY")
    code, output = run("check", settings)
    assert code == 1
    assert "failed: role momentum_001 may write trades of another bot" in output
    assert "failed: role momentum_001 sees rows of" in output


def test_check_says_that_isolation_is_off(settings: Settings) -> None:
    code, output = run("check", settings, POSTGRES_USER="trading_user")
    assert code == 0, output
    assert "isolation is off: role trading_user is not the bot's own" in output


def test_check_of_a_bot_that_is_not_registered(settings: Settings) -> None:
    code, output = run("check", settings, BOT_ID="momentum_002", POSTGRES_USER="trading_user")
    assert code == 1
    assert "failed: trading.bots shows no momentum_002" in output


def test_check_without_a_server(settings: Settings) -> None:
    code, output = run("check", settings, POSTGRES_PORT="1")
    assert code == 3
    assert "Connection refused" in output


def test_settings_that_are_not_there_are_named(settings: Settings) -> None:
    code, output = run("check", settings, BOT_ID="")
    assert code == 2
    assert "error: BOT_ID is not set" in output


def test_status(settings: Settings, opener: Opener, target: Target) -> None:
    code, output = run("status", settings)
    assert code == 0, output
    assert "instance: none was ever started" in output

    db = opener(wait_seconds=0)
    db.write([("INSERT INTO nowhere VALUES (%s)", ("precious",))])
    assert db.flush(30)
    assert db.flush(30)
    code, output = run("status", settings)
    assert code == 1
    assert "held by process" in output
    assert "waiting: 0" in output
    assert "refused: 1" in output
    assert 'relation "nowhere" does not exist [42P01]' in output
    assert "precious" in output
    assert "instance: host one, started" in output

    code, output = run("status", settings, POSTGRES_PORT="1")
    assert code == 3
    assert "refused: 1" in output
