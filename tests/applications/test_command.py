"""`python -m trading_db`, as an operator runs it in a bot's container."""

from __future__ import annotations

import subprocess
import sys

import pytest
from trading_db import Refused, Settings
from trading_db.outbox import listed

from tests.applications.conftest import BOT, Opener, Platform
from tests.applications.test_failures import environment, events
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


def test_what_was_refused_is_sent_again(settings: Settings, opener: Opener, target: Target) -> None:
    """Its cause was the environment's: a privilege was missing."""
    code, output = run("retry", settings)
    assert (code, output) == (0, "queued again: 0, nothing was refused\n")
    target.execute("REVOKE INSERT ON trading.trades FROM trading_bots")
    db = opener(wait_seconds=0)
    trade = db.log_trade_entry("BTCUSDT", "Buy", 1, 1)
    db.log_trade_exit(trade.trade_id, 2, pnl_usd=1)
    db.log_event("blocked by nothing")
    assert db.flush(30)
    code, output = run("status", settings)
    assert "permission denied for table trades" in output
    assert f"trading.trades has no trade_id {trade.trade_id}" in output
    assert "remove the cause, stop the bot, run python -m trading_db retry, start the bot" in output

    code, output = run("retry", settings)
    assert code == 2
    assert "is held by process" in output
    assert "stop that one" in output
    assert db.close()
    code, output = run("retry", settings, POSTGRES_PORT="1")
    assert code == 3
    assert "nothing was changed: " in output
    assert [entry.refused is None for entry in listed(settings.outbox, BOT)] == [False, False]

    target.execute("GRANT INSERT ON trading.trades TO trading_bots")
    for count in (2, 0):
        code, output = run("retry", settings)
        assert code == 0, output
        assert f"queued again: {count}, after {2 - count} that wait" in output
    db = opener()
    assert db.flush(30)
    assert [(row["id"], row["pnl_usd"]) for row in db.get_recent_trades()] == [(trade.id, 1)]
    assert (db.refused_count, db.pending_count) == (0, 0)
    # A refusal's notice comes before what the bot writes after it.
    assert sorted(events(target)) == ["blocked by nothing", "write_refused", "write_refused"]


def test_nothing_sent_again_counts_as_delivered(settings: Settings, opener: Opener, target: Target) -> None:
    """Where the outbox was put back from a copy, and the database knows higher numbers."""
    target.execute("REVOKE INSERT ON trading.trades FROM trading_bots")
    db = opener()
    with pytest.raises(Refused):
        db.log_trade_entry("BTCUSDT", "Buy", 1, 1)
    db.close()
    path = settings.outbox / f"{BOT}.outbox"
    copy = path.read_bytes()
    db = opener()
    for number in range(5):
        db.log_event(f"event {number}")
    db.close()
    path.write_bytes(copy)
    target.execute("GRANT INSERT ON trading.trades TO trading_bots")
    assert "queued again: 1," in run("retry", settings)[1]
    db = opener()
    assert db.flush(30)
    assert len(db.get_open_trades()) == 1
