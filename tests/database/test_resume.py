"""Runs that are cut off, and runs that meet."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import docker
import psycopg2
import pytest

from .conftest import PASSWORD, Legacy, Momentum, Server, Target, server

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
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
                    user="postgres",
                )
                if found:
                    return int(found[0]["pid"])
                time.sleep(0.05)
            raise AssertionError("nobody waits for the lock")

        yield wait
        connection.rollback()


def test_script_killed_in_the_middle(target: Target, momentum_history: Momentum) -> None:
    target.sql("003_register_momentum_bot.sql")
    before = target.business()
    # While it stages, in the middle of the merge, and at its end.
    for table in ("migration.runs", "trading.positions", "trading.bots"):
        with blocked(target, table) as wait:
            process = target.start(MOMENTUM)
            wait()
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=10)
        assert target.business() == before, f"killed while it waited for {table}"
    # The server notices a dead client within a second and lets go of the lock.
    result = target.script(MOMENTUM)
    assert result["bots"][0]["tables"][0]["inserted"] == 3000
    assert target.script("reconcile.py", "--bot", "momentum_001")["ok"] is True


def test_server_process_terminated_in_the_middle(target: Target, legacy: Legacy) -> None:
    legacy.execute(
        "INSERT INTO trading.trades (symbol, side, quantity, price) SELECT 'X', 'Sell', 1, n FROM generate_series(1, 1000) n"
    )
    target.script("stage_shortseller.py")
    before = target.business()
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
    assert target.business() == before
    target.migrate_shortseller()
    assert target.value("SELECT count(*) FROM trading.trades") == 1000
    assert target.script("reconcile.py", "--bot", "shortseller_001")["ok"] is True


def test_a_source_that_breaks_off_in_the_middle_is_named(target: Target, legacy: Legacy) -> None:
    legacy.execute(
        "INSERT INTO trading.trades (symbol, side, quantity, price) SELECT 'X', 'Sell', 1, n FROM generate_series(1, 500) n"
    )
    # As slow as a history of millions.
    legacy.execute("ALTER TABLE trading.trades RENAME TO slow_trades")
    legacy.execute("CREATE VIEW trading.trades AS SELECT * FROM trading.slow_trades WHERE pg_sleep(0.005) IS NOT NULL")
    before = target.business()
    process = target.start("stage_shortseller.py")
    with closing(legacy.server.connect(legacy.database, "trading_user")) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        while process.poll() is None:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY (SELECT%'"
                " AND application_name = 'stage_shortseller.py' AND state = 'active'"
            )
            time.sleep(0.1)
    _, err = process.communicate()
    assert process.returncode == 4, err
    assert "cannot be read: " in err
    assert "run this again when it can" in err
    assert target.business() == before


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
    wait_for_end(target)
    assert target.script(MOMENTUM)["changed"] is True


# From so many rows on, indexes and foreign keys are dropped for a load.
MANY = 21_000


@pytest.fixture
def long_history(momentum: Momentum) -> Momentum:
    fill(momentum)
    return momentum


def fill(momentum: Momentum) -> None:
    with momentum.connection:
        momentum.connection.executemany(
            "INSERT INTO trades (trade_id, mode, symbol, side, entry_time, entry_price, exit_time, quantity, position_size_usd)"
            " VALUES (?, 'live', 'X', 'Buy', '2025-06-01 10:00:00', 1.1, '2025-06-01 11:00:00', 2.2, 3.3)",
            [(f"t{number}",) for number in range(MANY)],
        )


def structure(target: Target) -> list[dict[str, object]]:
    """Indexes and constraints, and whether they are in force."""
    return target.rows(
        "SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS text, indisvalid AND indisready AS ready"
        " FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace::regnamespace::text IN ('trading', 'audit')"
        " UNION ALL SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid), convalidated"
        " FROM pg_constraint WHERE connamespace::regnamespace::text IN ('trading', 'audit') ORDER BY 1, 2"
    )


def sleep_at(target: Target, table: str, number: int, seconds: float) -> None:
    """Let the superuser's trigger hold up a row on its way into a table."""
    target.server.execute(
        target.database,
        f"CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$",
        f"CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW"
        f" WHEN (NEW.metadata #>> '{{legacy,id}}' = '{number}') EXECUTE FUNCTION public.hold()",
    )


def go_on(target: Target) -> None:
    target.server.execute(target.database, "DROP FUNCTION public.hold CASCADE")


def wait_for_sleep(target: Target) -> None:
    deadline = time.monotonic() + 30
    while not target.rows(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'", user="postgres"
    ):
        assert time.monotonic() < deadline, "nobody came to the row"
        time.sleep(0.02)


def wait_for_end(target: Target) -> None:
    """The server notices a dead client within a second."""
    deadline = time.monotonic() + 20
    while target.rows(
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> 'poll'",
        user="postgres",
    ):
        assert time.monotonic() < deadline, "the server goes on without its client"
        time.sleep(0.05)


@contextmanager
def polled(target: Target, query: str) -> Iterator[set[int]]:
    """The counts that another connection sees meanwhile."""
    seen: set[int] = set()
    stop = threading.Event()

    def poll() -> None:
        with closing(target.server.connect(target.database, "trading_user")) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("SET application_name = 'poll'")
            ended = False
            while not ended:
                # Once more after the end.
                ended = stop.is_set()
                cursor.execute(query)
                seen.add(cursor.fetchone()[0])
                time.sleep(0.01)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def kill_at_line(target: Target, text: str, name: str, *arguments: str) -> None:
    """SIGKILL a script when it has said something."""
    # However late that comes, the script has not ended: it records what it found afterwards.
    with blocked(target, "migration.source_tables"):
        process = target.start(name, *arguments)
        assert process.stderr is not None
        # One that never says it would wait for ever.
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        said = []
        for line in process.stderr:
            said.append(line)
            if text in line:
                break
        else:
            raise AssertionError(f"{text!r} was never said: {said}")
        watchdog.cancel()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
        assert process.returncode == -signal.SIGKILL
    wait_for_end(target)


def test_killed_while_rows_are_loaded(target: Target, long_history: Momentum) -> None:
    target.sql("003_register_momentum_bot.sql")
    before, shape = target.business(), structure(target)
    with polled(target, "SELECT count(*) FROM trading.trades") as seen:
        # Docker's proxy passes the client's end on behind the rows that are on their way.
        sleep_at(target, "trading.trades", 15_000, 3)
        process = target.start(MOMENTUM)
        wait_for_sleep(target)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
        wait_for_end(target)
        go_on(target)
        assert (target.business(), structure(target)) == (before, shape)
        kill_at_line(target, "building indexes", MOMENTUM)
        assert (target.business(), structure(target)) == (before, shape)
        assert target.script(MOMENTUM)["bots"][0]["tables"][0]["inserted"] == MANY
        time.sleep(0.05)
    assert seen == {0, MANY}
    assert structure(target) == shape
    assert target.script("reconcile.py", "--bot", "momentum_001")["ok"] is True


def test_a_name_that_two_rows_have_is_found_when_keys_are_built_again(target: Target, long_history: Momentum) -> None:
    target.sql("003_register_momentum_bot.sql")
    with long_history.connection:
        long_history.connection.execute("UPDATE trades SET trade_id = NULL WHERE id = 1")
        long_history.connection.execute("UPDATE trades SET trade_id = 'legacy_1' WHERE id = 20000")
    shape = structure(target)
    done = target.python(MOMENTUM)
    assert done.returncode == 3
    assert "trade_id momentum_001_legacy_1 is also that of another legacy row" in done.stderr
    assert (target.value("SELECT count(*) FROM trading.trades"), structure(target)) == (0, shape)
    (counts, *_) = target.script(MOMENTUM, "--accept-rejects", "1")["bots"][0]["tables"]
    assert (counts["inserted"], counts["rejected"]) == (MANY - 1, 1)
    assert structure(target) == shape
    assert target.script("reconcile.py", "--bot", "momentum_001")["ok"] is True


def test_killed_while_rows_are_staged(target: Target, long_history: Momentum) -> None:
    target.migrate_momentum()
    before, shape = target.business(), structure(target)
    long_history.connection.execute("UPDATE trades SET pnl_usd = 1")
    long_history.connection.commit()
    with polled(target, "SELECT count(*) FROM trading.trades WHERE pnl_usd = 1") as seen:
        kill_at_line(target, f"trades: {MANY} of {MANY} rows read", MOMENTUM)
        assert (target.business(), structure(target)) == (before, shape)
        assert target.script(MOMENTUM)["bots"][0]["tables"][0]["updated"] == MANY
        time.sleep(0.05)
    assert seen == {0, MANY}


def test_killed_while_the_merge_runs(target: Target, legacy: Legacy) -> None:
    legacy.execute(
        "INSERT INTO trading.trades (symbol, side, quantity, price) SELECT 'X', 'Sell', 1, n FROM generate_series(1, 21000) n;"
        "INSERT INTO trading.signals (symbol, signal_type, price) VALUES ('X', 'short', 1)"
    )
    shape = structure(target)
    kill_at_line(target, "trades: 21000 of 21000 rows staged", "stage_shortseller.py")
    assert target.psql("002_migrate_shortseller_data.sql").returncode == 3
    target.script("stage_shortseller.py")
    before = target.business()
    with polled(target, "SELECT count(*) FROM trading.trades") as seen:
        # The trades are in, and their indexes built again, when signals come.
        sleep_at(target, "trading.signals", 1, 60)
        merge = threading.Thread(target=target.psql, args=["002_migrate_shortseller_data.sql"])
        merge.start()
        wait_for_sleep(target)
        subprocess.run(["docker", "exec", target.server.container, "sh", "-c", "kill -9 $(pidof psql)"], check=True)
        merge.join()
        # psql is no client that says so: its server process sees the dead connection when it writes to it.
        target.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'", user="postgres"
        )
        wait_for_end(target)
        go_on(target)
        assert (target.business(), structure(target)) == (before, shape)
        assert target.sql("002_migrate_shortseller_data.sql")["changed"] is True
        time.sleep(0.05)
    assert seen == {0, 21000}
    assert structure(target) == shape
    assert target.script("reconcile.py", "--bot", "shortseller_001")["ok"] is True


def test_server_killed_in_the_middle_of_a_load(migrations: Path, target_server: Server, tmp_path: Path) -> None:
    """A server of its own, because the other tests need theirs."""
    with server("postgres:17.6", "postgres", migrations) as own:
        own.execute(
            "postgres", f"CREATE ROLE trading_user LOGIN PASSWORD '{PASSWORD}'", "CREATE DATABASE t OWNER trading_user"
        )
        target = Target(own, "t")
        momentum = Momentum(tmp_path / "trading.db")
        target.bot("momentum_001")["legacy"] = {"sqlite_path": str(momentum.path)}
        fill(momentum)
        target.psql("001_unified_schema.sql")
        target.sql("003_register_momentum_bot.sql")
        before, shape = target.business(), structure(target)
        sleep_at(target, "trading.trades", 15_000, 60)
        process = target.start(MOMENTUM)
        wait_for_sleep(target)
        client = docker.from_env()
        container = client.containers.get(own.container)
        container.kill()
        _, err = process.communicate(timeout=30)
        assert process.returncode == 5
        assert "check trading_postgres, then run this again" in err
        assert "Traceback" not in err
        container.start()
        container.reload()
        target.server = replace(own, port=int(container.ports["5432/tcp"][0]["HostPort"]))
        client.close()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                target.server.connect("t").close()
                break
            except psycopg2.OperationalError:
                time.sleep(0.1)
        go_on(target)
        assert (target.business(), structure(target)) == (before, shape)
        assert target.script(MOMENTUM)["bots"][0]["tables"][0]["inserted"] == MANY
        assert structure(target) == shape
        assert target.script("reconcile.py", "--bot", "momentum_001")["ok"] is True
        momentum.connection.close()


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_bot_never_waits_for_a_run(target: Target, momentum: Momentum, journal: str) -> None:
    """A writer with little patience, while 50 MB are copied."""
    target.sql("003_register_momentum_bot.sql")
    with momentum.connection:
        momentum.connection.executemany(
            "INSERT INTO system_events (event_time, event_type, event_level, message) VALUES ('2025-06-01 10:00:00', 'T', 'INFO', ?)",
            [(f"{n} " + 100_000 * "x",) for n in range(500)],
        )
    momentum.connection.execute(f"PRAGMA journal_mode = {journal}")
    momentum.connection.close()
    assert momentum.path.stat().st_size > 50_000_000
    # Other work of the machine can only make a commit longer; a lock makes it so each time.
    for attempt in (1, 2, 3):
        written, busy, longest = trade_beside(momentum.path, lambda: run_all(target))
        if not busy and longest < 0.2:
            break
        print(f"attempt {attempt}: {len(busy)} commits failed, the longest took {longest:.3f} s")
    assert busy == [], f"{len(busy)} commits failed, besides {written}"
    assert longest < 0.2, f"the longest commit took {longest:.3f} s"
    assert written > 50
    target.script(MOMENTUM)
    assert target.value("SELECT count(*) FROM audit.risk_events") == momentum_rows(momentum.path)


def run_all(target: Target) -> None:
    target.script(MOMENTUM)
    target.script(MOMENTUM)
    assert target.script("reconcile.py", "--bot", "momentum_001")["ok"] is True


def momentum_rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute("SELECT count(*) FROM risk_events").fetchone()[0]
        return found


def trade_beside(path: Path, work: Callable[[], None]) -> tuple[int, list[str], float]:
    """Commits of a writer with little patience while `work` lasts: how many, what failed, the longest in seconds."""
    stop = threading.Event()
    busy: list[str] = []
    taken: list[float] = []

    def write() -> None:
        with closing(sqlite3.connect(path, timeout=0.2)) as connection:
            # The disk's own time is no lock.
            connection.execute("PRAGMA synchronous = OFF")
            while not stop.is_set():
                began = time.monotonic()
                try:
                    with connection:
                        connection.execute(
                            "INSERT INTO risk_events (event_time, risk_type, current_value) VALUES ('2025-06-01 10:00:00', 'R', 1.5)"
                        )
                except sqlite3.OperationalError as error:
                    busy.append(str(error))
                taken.append(time.monotonic() - began)
                stop.wait(0.02)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        time.sleep(0.1)
        work()
    finally:
        stop.set()
        writer.join()
    return len(taken) - len(busy), busy, max(taken)


def test_the_legacy_server_sees_one_read_only_transaction(target: Target, legacy: Legacy) -> None:
    target.bots = [bot for bot in target.bots if bot["bot_type"] == "shortseller"]
    legacy.insert("trades", symbol="X", side="Sell", quantity=1, price=1)
    with closing(legacy.server.connect(legacy.database, "trading_user")) as connection:
        connection.autocommit = True
        connection.cursor().execute(f"ALTER DATABASE {legacy.database} SET log_statement = 'all'")
    began = time.time()
    target.migrate_shortseller()
    target.script("reconcile.py")
    text = subprocess.run(
        ["docker", "logs", "--since", f"{began:.3f}", legacy.server.container],
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    statements = [line.split("statement: ", 1)[1] for line in text.splitlines() if "statement: " in line]
    assert any("READ ONLY" in statement for statement in statements), statements
    stream = ('DECLARE "stream" CURSOR WITHOUT HOLD FOR SELECT', "FETCH", "CLOSE")
    allowed = ("BEGIN", "SELECT", *stream, "COPY (SELECT", "ROLLBACK", "COMMIT", "SET ", "SHOW ")
    assert [s for s in statements if not s.startswith(allowed)] == []
    assert not any("FOR UPDATE" in s or "FOR SHARE" in s or "LOCK " in s for s in statements)
    begins = [s for s in statements if s.startswith("BEGIN")]
    assert begins
    assert all("READ ONLY" in s for s in begins), begins
