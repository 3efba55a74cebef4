"""What was acknowledged is in the database exactly once and in order, whoever is killed."""

from __future__ import annotations

import os
import random
import re
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from trading_db import Refused, Settings, TradingDB, TradingDBError, Unavailable
from trading_db import instance as instances
from trading_db.outbox import listed

from tests.applications.conftest import BOT, Opener, Platform
from tests.applications.proxy import Proxy
from tests.database.conftest import PASSWORD, ROOT, Target

WRITER = Path(__file__).with_name("writer.py")


def events(target: Target) -> list[str]:
    """The events of the bot in the order of their storing."""
    rows = target.rows("SELECT event_type FROM audit.system_events WHERE bot_id = %s ORDER BY id", BOT)
    return [row["event_type"] for row in rows]


def environment(settings: Settings) -> dict[str, str]:
    return os.environ | {
        "BOT_ID": settings.bot_id,
        "POSTGRES_HOST": settings.host,
        "POSTGRES_PORT": str(settings.port),
        "POSTGRES_DB": settings.database,
        "POSTGRES_USER": settings.user,
        "POSTGRES_PASSWORD": settings.password,
        "TRADING_DB_OUTBOX": str(settings.outbox),
        "TRADING_DB_WAIT_SECONDS": "0.05",
        "WRITER_BEAT_SECONDS": "0.3",
    }


@pytest.mark.parametrize("how", ["kill PostgreSQL", "pause PostgreSQL", "kill PgBouncer", "pause PgBouncer"])
def test_writes_outlast_a_server(opener: Opener, killable: Platform, target: Target, how: str) -> None:
    db = opener(wait_seconds=0.2, read_seconds=1, statement_seconds=2)
    db.log_event("before")
    verb, server = how.split()
    name = killable.server.container if server == "PostgreSQL" else killable.pgbouncer
    killable.kill(name) if verb == "kill" else killable.container(name).pause()

    began = time.monotonic()
    trades = [db.log_trade_entry("BTCUSDT", "Buy", 1, 1) for _ in range(3)]
    for number in range(5):
        db.log_event(f"event {number}")
    # 8 waits of 0.2 s; calls that waited for a server's answer would take 7 s each.
    assert time.monotonic() - began < 30
    assert db.pending_count >= 8
    with pytest.raises(Unavailable, match=r"writes wait for the database .*the\s+writes are safe"):
        db.get_open_trades()

    killable.restore()
    assert db.flush(60)
    assert events(target) == ["before", *(f"event {number}" for number in range(5))]
    assert {(row["trade_id"], row["id"]) for row in target.rows("SELECT trade_id, id FROM trading.trades")} == set(
        trades
    )
    assert (db.pending_count, db.refused_count) == (0, 0)


def test_reads_hold_nothing_up_while_the_database_is_known_to_be_away(
    opener: Opener, killable: Platform, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "BEAT_SECONDS", 0.3)
    db = opener(wait_seconds=0.2)

    def reads(message: str) -> None:
        deadline = time.monotonic() + 30
        while db._delivery.trouble is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        began = time.monotonic()
        for _ in range(5):
            with pytest.raises(Unavailable, match=message):
                db.get_open_trades()
        # 30 s each, where nothing is known.
        assert time.monotonic() - began < 30

    killable.kill(killable.pgbouncer)
    reads(r"did not answer within 0\.2 s")
    db.log_event("meanwhile")
    reads("1 writes wait for the database .*Connection refused")
    killable.restore()
    assert db.flush(60)
    assert db.fetch("SELECT event_type FROM audit.system_events") == [{"event_type": "meanwhile"}]


def test_who_is_woken_by_a_delivery_finds_no_trouble(
    opener: Opener, killable: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = opener(wait_seconds=0)
    killable.kill(killable.pgbouncer)
    db.log_event("kept")
    in_trouble(db, "Connection refused")
    # What the delivery does next takes its time.
    monkeypatch.setattr(db._delivery, "_reserve_ids", lambda _: time.sleep(1))
    killable.restore()
    assert db.flush(60)
    assert db._delivery.trouble is None


def test_a_call_need_not_wait_at_all(opener: Opener, killable: Platform, target: Target) -> None:
    db = opener(wait_seconds=0)
    killable.container(killable.server.container).pause()
    began = time.monotonic()
    for number in range(20):
        db.log_event(f"event {number}")
    # Those that waited for an answer would take 15 s each.
    assert time.monotonic() - began < 60
    killable.restore()
    assert db.flush(60)
    assert events(target) == [f"event {number}" for number in range(20)]


def test_terminated_connections_are_opened_again(db: TradingDB, target: Target) -> None:
    for number in range(10):
        target.server.execute(
            "postgres",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{target.database}'",
        )
        db.log_event(f"event {number}")
        assert len(db.fetch("SELECT * FROM audit.system_events")) == number + 1
    assert events(target) == [f"event {number}" for number in range(10)]


def test_a_lost_answer_to_commit_stores_nothing_twice(opener: Opener, platform: Platform, target: Target) -> None:
    with closing(Proxy(platform.port)) as proxy:
        db = opener(port=proxy.port)
        for number in range(5):
            proxy.lose_commits(2)
            db.log_event(f"event {number}")
        assert proxy.lost >= 5
        assert events(target) == [f"event {number}" for number in range(5)]
        assert db.pending_count == 0


def test_a_delivery_that_still_runs_is_waited_for(opener: Opener, target: Target) -> None:
    """The old connection is lost, its transaction is not: the next one must not overtake it."""
    db = opener(wait_seconds=0)
    with closing(target.server.connect(target.database)) as other:
        cursor = other.cursor()
        cursor.execute("UPDATE delivery.outboxes SET last_sequence = last_sequence + 1")
        cursor.execute("INSERT INTO audit.system_events (bot_id, event_type) VALUES (%s, 'event')", (BOT,))
        db.log_event("event")
        assert not db.flush(1)
        other.commit()
    assert db.flush(30)
    assert events(target) == ["event"]


def test_a_killed_bot_has_lost_nothing_that_it_acknowledged(
    settings: Settings, opener: Opener, target: Target, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    chance = random.Random(1)
    for _ in range(4):
        bot = subprocess.Popen([sys.executable, str(WRITER), str(journal), "one"], env=environment(settings))
        lines = journal.read_text().count("\n") if journal.exists() else 0
        while not journal.exists() or journal.read_text().count("\n") < lines + 20 + chance.randrange(20):
            assert bot.poll() is None
            time.sleep(0.01)
        bot.kill()
        bot.wait()
    assert opener().flush(60)
    acknowledged = [line for line in journal.read_text().splitlines() if line != "started"]
    stored = [f"{row['trade_id']} {row['id']}" for row in target.rows("SELECT trade_id, id FROM trading.trades")]
    assert len(acknowledged) >= 80
    assert len(set(stored)) == len(stored)
    assert set(acknowledged) <= set(stored)
    # A write whose acknowledgement the kill cut off may be there: one for each kill.
    assert len(stored) - len(acknowledged) <= 4
    rows = target.rows("SELECT metadata ->> 'process' AS p, metadata ->> 'count' AS c FROM trading.trades ORDER BY id")
    for process in {row["p"] for row in rows}:
        counts = [int(row["c"]) for row in rows if row["p"] == process]
        assert counts == list(range(len(counts)))


def test_a_bot_killed_while_the_database_is_away(
    settings: Settings, opener: Opener, killable: Platform, target: Target, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    bot = subprocess.Popen([sys.executable, str(WRITER), str(journal), "one"], env=environment(settings))
    while not journal.exists() or journal.read_text().count("\n") < 5:
        time.sleep(0.01)
    killable.kill(killable.server.container)
    lines = journal.read_text().count("\n")
    while journal.read_text().count("\n") < lines + 10:
        assert bot.poll() is None
        time.sleep(0.01)
    bot.kill()
    bot.wait()
    with pytest.raises(Unavailable, match="did not answer within 0 s"):
        opener(start_seconds=0)
    assert len(listed(settings.outbox, BOT)) >= 10
    killable.restore()
    assert opener().flush(60)
    acknowledged = {line for line in journal.read_text().splitlines() if line != "started"}
    stored = {f"{row['trade_id']} {row['id']}" for row in target.rows("SELECT trade_id, id FROM trading.trades")}
    assert acknowledged <= stored


def test_threads_write_in_an_order_of_their_own(opener: Opener, target: Target) -> None:
    db = opener(wait_seconds=0)

    def work(name: int) -> None:
        for number in range(100):
            db.log_event(f"{name} {number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.flush(60)
    found = events(target)
    assert len(found) == 400
    for name in range(4):
        assert [e for e in found if e.startswith(f"{name} ")] == [f"{name} {number}" for number in range(100)]


def test_what_the_database_refuses_is_kept_aside_and_blocks_nothing(
    opener: Opener, settings: Settings, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    first = opener(wait_seconds=0)
    sql = "INSERT INTO audit.system_events (bot_id, event_type, event_level) VALUES (%s, %s, %s)"
    first.log_event("before")
    # All of an entry is refused: it is one transaction.
    first.write([(sql, (BOT, "half", "INFO")), (sql, (BOT, "bad", "NO LEVEL"))])
    first.write([("INSERT INTO nowhere VALUES (1)", ())])
    first.log_event("after")
    assert first.flush(30)
    assert first.flush(30)  # The notices that the refusals added.
    # A refusal's notice comes before what the bot writes after it.
    assert sorted(events(target)) == ["after", "before", "write_refused", "write_refused"]
    assert (
        target.value("SELECT count(*) FROM audit.system_events WHERE event_level = 'ERROR' AND message ~ 'refused'")
        == 2
    )
    assert first.refused_count == 2
    assert "check constraint" in caplog.text
    assert first.close()

    refused = listed(settings.outbox, BOT)
    assert [entry.summary[:20] for entry in refused] == ["statements of the bo"] * 2
    assert "system_events_event_level_check" in (refused[0].refused or "")
    assert "half" in refused[0].operations
    again = opener()
    assert again.refused_count == 2
    with pytest.raises(Refused, match=r"was refused by the database: .*nowhere.*Nothing of it was stored"):
        again.write([("INSERT INTO nowhere VALUES (1)", ())])


def test_what_psycopg2_cannot_send_is_refused(db: TradingDB, target: Target) -> None:
    with pytest.raises(Refused, match="incomplete placeholder"):
        db.write([("INSERT INTO audit.system_events (bot_id) VALUES (%(%s)s)", {"%s": 1})])
    db.log_event("after")
    assert target.value("SELECT count(*) FROM audit.system_events WHERE event_type = 'after'") == 1


def test_a_statement_that_takes_too_long_is_named_and_keeps_its_place(
    opener: Opener, killable: Platform, target: Target
) -> None:
    db = opener(wait_seconds=0, read_seconds=1, statement_seconds=0.2)
    trade = db.log_trade_entry("BTCUSDT", "Buy", 1, 1)
    assert db.flush(30)
    pgbouncer = killable.container(killable.pgbouncer)
    with closing(target.server.connect(target.database)) as other:
        other.cursor().execute("SELECT FROM trading.trades FOR UPDATE")
        pgbouncer.pause()
        db.log_event("alone")
        # These are one transaction at first.
        db.log_event("before")
        db.update_trade(trade.trade_id, notes="locked")
        db.log_event("after")
        pgbouncer.unpause()
        deadline = time.monotonic() + 30
        while events(target) != ["alone", "before"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        named = (
            rf"change of trade_id {trade.trade_id} \(entry 4\) was canceled, try [2-9]: .*TRADING_DB_STATEMENT_SECONDS"
        )
        while not re.search(named, db._delivery.trouble or ""):
            assert time.monotonic() < deadline, db._delivery.trouble
            time.sleep(0.05)
        with pytest.raises(Unavailable, match=r"2 writes wait for the database .*was canceled"):
            db.get_trade(trade.trade_id)
    assert db.flush(30)
    assert events(target) == ["alone", "before", "after"]
    assert target.value("SELECT notes FROM trading.trades") == "locked"
    assert db.refused_count == 0


def in_trouble(db: TradingDB, text: str) -> None:
    """Waits until the delivery says so."""
    end = time.monotonic() + 30
    while text not in (db._delivery.trouble or ""):
        assert time.monotonic() < end, db._delivery.trouble
        time.sleep(0.05)


def test_a_database_that_is_not_as_expected_is_waited_for(opener: Opener, target: Target) -> None:
    """What no write could go without is missing, as while a backup is put back."""
    db = opener(wait_seconds=0)
    target.execute("ALTER TABLE delivery.outboxes RENAME TO away")
    db.log_event("kept")
    in_trouble(db, 'relation "delivery.outboxes" does not exist')
    # At once, or the event would be delivered in between.
    target.execute("ALTER TABLE delivery.away RENAME TO outboxes; REVOKE USAGE ON SCHEMA delivery FROM trading_bots")
    in_trouble(db, "permission denied for schema delivery")
    target.execute("GRANT USAGE ON SCHEMA delivery TO trading_bots")
    assert db.flush(30)
    assert db.refused_count == 0
    assert events(target) == ["kept"]


def test_row_ids_run_out_loudly(opener: Opener, killable: Platform, target: Target) -> None:
    db = opener(wait_seconds=0.1, id_reserve=3)
    killable.kill(killable.pgbouncer)
    made = [db.log_trade_entry("BTCUSDT", "Buy", 1, 1) for _ in range(3)]
    with pytest.raises(Unavailable, match=r"all 3 reserved row ids are used up.*TRADING_DB_ID_RESERVE"):
        db.log_trade_entry("BTCUSDT", "Buy", 1, 1)
    db.log_event("others need none")
    killable.restore()
    assert db.flush(60)
    stored = {(row["trade_id"], row["id"]) for row in target.rows("SELECT trade_id, id FROM trading.trades")}
    assert stored == set(made)


def fill_outbox(db: TradingDB) -> list[str]:
    """Have no room in the outbox; returns the events that it took."""
    (pages,) = db._outbox._db.execute("PRAGMA page_count").fetchone()
    db._outbox._db.execute(f"PRAGMA max_page_count = {pages}")
    stored = []

    def fill() -> None:
        for _ in range(1000):
            db.log_event("filling", message="x" * 500)
            stored.append("filling")

    with pytest.raises(TradingDBError, match="the write is not stored: free space on its disk"):
        fill()
    return stored


def test_a_full_disk_acknowledges_nothing(opener: Opener, killable: Platform, target: Target) -> None:
    db = opener(wait_seconds=0.1)
    killable.container(killable.pgbouncer).pause()
    db.log_event("before")
    stored = fill_outbox(db)
    db._outbox._db.execute("PRAGMA max_page_count = 1000000")
    db.log_event("after")
    killable.restore()
    assert db.flush(60)
    assert events(target) == ["before", *stored, "after"]


def test_a_full_disk_is_freed_by_the_delivery(opener: Opener, killable: Platform, target: Target) -> None:
    """Although row ids are used up, for which there is no room before."""
    db = opener(wait_seconds=0)
    reserved = "SELECT last_value FROM trading.trades_id_seq"
    before = target.value(reserved)
    killable.container(killable.pgbouncer).pause()
    for _ in range(600):
        db.reserve_id("trading.trades")
    stored = fill_outbox(db)
    killable.restore()
    assert db.flush(60)
    assert events(target) == stored
    deadline = time.monotonic() + 30
    while db._outbox.id_count("trading.trades") < 1000:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # What was reserved and could not be kept at once was not thrown away.
    assert target.value(reserved) == before + 600


def test_an_outbox_that_another_program_locks_is_waited_for(opener: Opener, killable: Platform, target: Target) -> None:
    db = opener(wait_seconds=0)
    db._outbox._db.execute("PRAGMA busy_timeout = 100")
    pgbouncer = killable.container(killable.pgbouncer)
    pgbouncer.pause()
    db.write([("INSERT INTO nowhere VALUES (1)", ())])
    with closing(sqlite3.connect(db._outbox.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        pgbouncer.unpause()
        with pytest.raises(TradingDBError, match=r"database is locked.*not stored: end the program that has it open"):
            db.log_event("lost")
        in_trouble(db, "database is locked")
    assert db.flush(30)
    assert db.refused_count == 1
    db.log_event("after")
    assert db.flush(30)
    assert events(target) == ["write_refused", "after"]


def test_an_outbox_put_back_from_an_older_copy_swallows_nothing(
    opener: Opener, settings: Settings, target: Target
) -> None:
    db = opener()
    db.log_event("one")
    db.close()
    path = settings.outbox / f"{BOT}.outbox"
    copy = path.read_bytes()
    db = opener()
    db.log_event("two")
    db.log_event("three")
    db.close()
    path.write_bytes(copy)
    opener().log_event("four")
    assert events(target) == ["one", "two", "three", "four"]


def test_an_outbox_put_back_from_an_older_copy_gives_no_id_twice(
    opener: Opener, settings: Settings, target: Target
) -> None:
    opener().close()
    path = settings.outbox / f"{BOT}.outbox"
    copy = path.read_bytes()
    db = opener()
    first = db.log_trade_entry("BTCUSDT", "Buy", 1, 1)
    db.close()
    path.write_bytes(copy)
    second = opener().log_trade_entry("BTCUSDT", "Buy", 1, 1)
    assert second.id > first.id
    assert target.value("SELECT count(*) FROM trading.trades") == 2


def test_a_database_put_back_from_an_older_backup_gives_no_id_twice(opener: Opener, target: Target) -> None:
    # The backup knows of 400 of the 1000 ids that were reserved.
    given_out = "SELECT last_value FROM trading.trades_id_seq"
    go_back = "SELECT setval('trading.trades_id_seq', %s)"
    opener().close()
    known = target.value(given_out)
    target.execute(go_back, known - 600)
    db = opener()
    assert db.log_trade_entry("BTCUSDT", "Buy", 1, 1).id == known - 599

    # What waits has an id already.
    target.execute("REVOKE INSERT ON trading.trades FROM trading_bots")
    with pytest.raises(Refused):
        db.log_trade_entry("BTCUSDT", "Buy", 1, 1)
    db.close()
    known = target.value(given_out)
    target.execute(go_back, known - 600)
    with pytest.raises(TradingDBError, match=rf"gave out row id {known - 600} .*has {known} from it.*docs/client\.md"):
        opener()
    target.execute(re.findall(r"```sql\n(.*?);\n```", (ROOT / "docs/client.md").read_text(), re.DOTALL)[0])
    assert target.value("SELECT nextval('trading.trades_id_seq')") == known - 600 + 1_000_001
    opener()


def test_a_wrong_password_is_named_and_never_shown(opener: Opener) -> None:
    with pytest.raises(Unavailable, match=r"password authentication failed|SASL authentication failed") as caught:
        opener(password="not-the-one", start_seconds=0)
    assert "not-the-one" not in str(caught.value)
    assert PASSWORD not in repr(opener()._settings)
