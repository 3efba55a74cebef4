"""One live instance of a bot: a second one is refused or flagged, a crashed one never blocks its successor for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trading_db import SecondInstance, Settings, TradingDBError, Unavailable
from trading_db import instance as instances

from tests.applications.conftest import BOT, Opener, Platform
from tests.applications.test_failures import WRITER, environment, events
from tests.database.conftest import Target


@pytest.fixture(autouse=True)
def _quick_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test need not wait for ten seconds between heartbeats."""
    monkeypatch.setattr(instances, "BEAT_SECONDS", 0.3)


def live(target: Target) -> list[str]:
    rows = target.rows(
        "SELECT host FROM trading.bot_heartbeats WHERE last_seen > now() - interval '30 seconds' ORDER BY id"
    )
    return [row["host"] for row in rows]


def test_a_live_instance_on_another_host_keeps_a_second_one_out(
    settings: Settings, opener: Opener, target: Target, tmp_path: Path
) -> None:
    first = opener()
    with pytest.raises(
        SecondInstance, match="another instance of momentum_001 runs: its heartbeat from host one goes on"
    ):
        opener(instance_host="two", outbox=tmp_path / "other")
    bot = subprocess.run(
        [sys.executable, str(WRITER), str(tmp_path / "journal"), "two"],
        env=environment(settings) | {"TRADING_DB_OUTBOX": str(tmp_path / "third")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert bot.returncode == 7, bot.stderr
    assert "stop the other one, or this one" in bot.stderr
    first.log_event("still here")
    assert events(target) == ["still here"]
    assert target.value("SELECT last_heartbeat > now() - interval '1 minute' FROM trading.bots WHERE bot_id = %s", BOT)


def test_a_closed_instance_makes_room_at_once(opener: Opener, target: Target, tmp_path: Path) -> None:
    opener().close()
    assert live(target) == []
    opener(instance_host="two", outbox=tmp_path / "other")
    assert live(target) == ["two"]


def test_a_killed_instance_does_not_block_a_restart_on_its_host(
    settings: Settings, opener: Opener, target: Target, tmp_path: Path
) -> None:
    bot = _running(settings, tmp_path / "journal", "one")
    bot.kill()
    bot.wait()
    opener()
    assert live(target) == ["one"]


def test_the_row_of_a_killed_container_is_waited_out(
    settings: Settings, opener: Opener, target: Target, tmp_path: Path
) -> None:
    bot = _running(settings, tmp_path / "journal", "one")
    bot.kill()
    bot.wait()
    # Seen 27 s ago, so that three are left to wait for.
    target.execute("UPDATE trading.bot_heartbeats SET last_seen = now() - interval '27 seconds'")
    opener(instance_host="two")
    assert live(target) == ["two"]


def test_an_instance_that_slept_while_another_took_over_goes_no_further(
    settings: Settings, opener: Opener, target: Target, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    bot = _running(settings, journal, "one")
    os.kill(bot.pid, signal.SIGSTOP)
    target.execute("UPDATE trading.bot_heartbeats SET last_seen = now() - interval '31 seconds'")
    opener(instance_host="two", outbox=tmp_path / "other")
    os.kill(bot.pid, signal.SIGCONT)
    assert bot.wait(timeout=60) == 7
    # What it had acknowledged did happen, and is delivered by its successor at the latest.
    restarted = opener(instance_host="two")
    assert restarted.flush(30)
    acknowledged = {line.split()[0] for line in journal.read_text().splitlines() if line != "started"}
    assert acknowledged <= {row["trade_id"] for row in target.rows("SELECT trade_id FROM trading.trades")}


def test_a_call_after_a_long_sleep_asks_first(opener: Opener, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next heartbeat is due by itself, and before the call is acknowledged."""
    monkeypatch.setattr(instances, "BEAT_SECONDS", 1000.0)
    monkeypatch.setattr(instances, "LIVE_SECONDS", 0.0)
    db = opener()
    db.log_event("awake")
    target.execute("""UPDATE trading.bot_heartbeats SET details = details || '{"ended": "by another"}'""")
    with pytest.raises(SecondInstance, match="it has taken over"):
        db.log_event("asleep")
    assert events(target) == ["awake"]


def test_a_restart_on_the_same_host_ends_the_instance_before(opener: Opener, target: Target, tmp_path: Path) -> None:
    first = opener()
    opener(outbox=tmp_path / "other")

    def go_on() -> None:
        for _ in range(10_000):
            first.log_event("x")

    with pytest.raises(SecondInstance, match="it has taken over"):
        go_on()
    with pytest.raises(SecondInstance):
        first.get_open_positions()
    assert first.flush(30)


def test_a_second_instance_may_be_flagged_instead(
    opener: Opener, target: Target, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = opener()
    second = opener(instance_host="two", outbox=tmp_path / "other", second_instance="flag")
    assert second.flush(30)
    second.log_event("runs")
    assert events(target) == ["second_instance", "runs"]
    assert caplog.text.count("another instance of momentum_001 runs") == 1
    first.close()
    deadline = time.monotonic() + 30
    while live(target) != ["two"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_details_travel_with_the_heartbeat(opener: Opener, target: Target) -> None:
    opener().heartbeat(loop=7)
    deadline = time.monotonic() + 30
    while target.value("SELECT details ->> 'loop' FROM trading.bot_heartbeats") != "7":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_one_process_has_an_outbox(opener: Opener, settings: Settings, tmp_path: Path) -> None:
    opener()
    with pytest.raises(TradingDBError, match=f"is held by process {os.getpid()} on .*expected one process a bot"):
        opener()


def test_a_bot_does_not_start_without_the_database(opener: Opener, killable: Platform) -> None:
    killable.kill(killable.pgbouncer)
    with pytest.raises(Unavailable, match=r"did not answer within 0\.5 s"):
        opener(start_seconds=0.5)
    killable.restore()
    opener()


def _running(settings: Settings, journal: Path, host: str) -> subprocess.Popen[bytes]:
    bot = subprocess.Popen([sys.executable, str(WRITER), str(journal), host], env=environment(settings))
    while not journal.exists() or journal.read_text().count("\n") < 3:
        assert bot.poll() is None
        time.sleep(0.01)
    return bot
