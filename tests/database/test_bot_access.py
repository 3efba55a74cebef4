"""005_bot_access.sql: a bot sees and writes its own rows, whatever it tries.

Tables are found in the catalog: a new one with a bot_id that is left open turns
these tests red, without a line here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from .conftest import Server, Target, database

FILE = "005_bot_access.sql"
OWN, OTHER = "momentum_001", "shortseller_001"
TRIAL = f"{OWN}_trial"
BOT_TABLES = (
    "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
    " WHERE c.relkind IN ('r', 'p') AND a.attname = 'bot_id' AND NOT a.attisdropped"
    " AND c.relnamespace::regnamespace::text IN ('trading', 'analytics', 'config', 'audit', 'delivery') ORDER BY 1"
)
# What a row needs beside its bot_id; the others' columns have defaults.
ROWS: dict[str, dict[str, object]] = {
    "audit.risk_events": {"risk_type": "drawdown"},
    "audit.system_events": {"event_type": "started"},
    "config.bot_configurations": {"config_key": "fast", "config_value": "12"},
    "delivery.outboxes": {"outbox_id": "00000000-0000-0000-0000-000000000000", "last_sequence": 1},
    "trading.account_balance": {},
    "trading.bots": {"bot_name": "b", "bot_type": "momentum", "initial_capital": 1},
    "trading.bot_heartbeats": {"host": "one", "started_at": "2026-01-01"},
    "trading.fills": {"exchange": "x", "symbol": "X", "side": "buy", "price": 1, "quantity": 1, "executed_at": "now"},
    "trading.funding_payments": {"symbol": "X", "funding_time": "2026-01-01", "amount": 1},
    "trading.orders": {"symbol": "X", "order_type": "limit", "side": "buy", "quantity": 1},
    "trading.positions": {"symbol": "X", "side": "long", "size": 1, "avg_entry_price": 1},
    "trading.risk_metrics": {"date": "2026-01-01"},
    "trading.signals": {"symbol": "X", "signal_type": "hold"},
    "trading.trades": {"symbol": "X", "side": "buy", "quantity": 1, "entry_price": 1, "entry_time": "now"},
}
# What a bot calls its rows: unique over all bots.
IDS = {
    "trading.orders": "order_id",
    "trading.positions": "position_id",
    "trading.signals": "signal_id",
    "trading.trades": "trade_id",
}
KEYS = {"trading.fills": "execution_id", **IDS}
# What a bot writes; the rest it only reads, or changes in part.
WRITTEN = sorted(set(ROWS) - {"config.bot_configurations", "trading.bots"})
Denied = psycopg2.errors.InsufficientPrivilege


def insert(cursor: Any, table: str, bot_id: str | None, key: str = "a") -> None:
    row = {"bot_id": bot_id, **ROWS[table], **({KEYS[table]: f"{bot_id}_{key}"} if table in KEYS else {})}
    marks = ", ".join(["%s"] * len(row))
    cursor.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))


@contextmanager
def session(target: Target, user: str) -> Iterator[Any]:
    """A cursor of a role; what it does is undone."""
    with closing(target.server.connect(target.database, user)) as connection:
        yield connection.cursor()
        connection.rollback()


def ids(cursor: Any, table: str) -> set[str | None]:
    cursor.execute(f"SELECT bot_id FROM {table}")
    return {bot_id for (bot_id,) in cursor.fetchall()}


@pytest.fixture(scope="module")
def filled(target_server: Server) -> Iterator[Target]:
    """trading_db with two bots, their trial ids, and a row of each in every table."""
    with database(target_server, "unified_template") as name:
        target = Target(target_server, name)
        with closing(target_server.connect(name, "trading_user")) as connection, connection:
            cursor = connection.cursor()
            for bot_id in (OWN, OTHER):
                insert(cursor, "trading.bots", bot_id)
                cursor.execute("SELECT trading.register_trial(%s)", (bot_id,))
                for table in set(ROWS) - {"trading.bots"}:
                    insert(cursor, table, bot_id)
                    insert(cursor, table, f"{bot_id}_trial")
            insert(cursor, "audit.system_events", None)
        yield target


def test_every_table_with_a_bot_id_is_known_and_closed(target: Target) -> None:
    assert [row["name"] for row in target.rows(BOT_TABLES)] == sorted(ROWS)
    assert target.rows(BOT_TABLES.replace(" ORDER BY", " AND NOT c.relrowsecurity ORDER BY")) == []
    policies = {"own_rows", "deletes_trials_only", "grafana_reads_all"}
    for table in ROWS:
        found = target.rows("SELECT polname FROM pg_policy WHERE polrelid = %s::regclass", table)
        assert {row["polname"] for row in found} == policies | ({"own_ids"} if table in IDS else set()), table


def test_a_new_table_is_closed_before_it_is_granted(target: Target) -> None:
    target.execute("CREATE TABLE trading.novelty (id bigint, bot_id text)")
    with session(target, OWN) as cursor, pytest.raises(Denied):
        ids(cursor, "trading.novelty")


@pytest.mark.parametrize("table", ROWS)
class TestAnotherBotsRows:
    def test_are_not_seen(self, filled: Target, table: str) -> None:
        with session(filled, OWN) as cursor:
            assert ids(cursor, table) == {OWN, TRIAL}
            cursor.execute(f"SELECT count(*) FROM {table} WHERE bot_id = %s OR bot_id IS NULL", (OTHER,))
            assert cursor.fetchone() == (0,)

    def test_are_not_inserted(self, filled: Target, table: str) -> None:
        for bot_id in (OTHER, f"{OTHER}_trial", "nobody"):
            with session(filled, OWN) as cursor, pytest.raises(Denied):
                insert(cursor, table, bot_id, "b")

    def test_are_not_changed(self, filled: Target, table: str) -> None:
        with session(filled, OWN) as cursor:
            for name in columns(filled, table):
                changed = updated(cursor, f"UPDATE {table} SET {name} = {name} WHERE bot_id = %s", OTHER)
                assert changed in (0, None), name
            # And a bot's own rows are its own for ever.
            assert updated(cursor, f"UPDATE {table} SET bot_id = %s", OTHER) is None
            assert updated(cursor, f"UPDATE {table} SET bot_id = %s", TRIAL) is None

    def test_are_not_deleted(self, filled: Target, table: str) -> None:
        with session(filled, OWN) as cursor:
            assert updated(cursor, f"DELETE FROM {table} WHERE bot_id = %s", OTHER) in (0, None)
            assert updated(cursor, f"DELETE FROM {table} WHERE bot_id = %s", OWN) in (0, None)
        with session(filled, "trading_user") as cursor:
            assert ids(cursor, table) >= {OWN, OTHER, TRIAL, f"{OTHER}_trial"}

    def test_table_is_not_emptied_or_altered(self, filled: Target, table: str) -> None:
        for statement in (
            f"TRUNCATE {table}",
            f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} ADD COLUMN more int",
            f"CREATE POLICY mine ON {table} USING (true)",
            f"DROP POLICY own_rows ON {table}",
            f"CREATE INDEX ON {table} (bot_id)",
        ):
            with session(filled, OWN) as cursor, pytest.raises(Denied):
                cursor.execute(statement)

    def test_are_seen_by_grafana_and_the_owner(self, filled: Target, table: str) -> None:
        everybody = {OWN, TRIAL, OTHER, f"{OTHER}_trial"} | ({None} if table == "audit.system_events" else set())
        for user in ("grafana_reader", "backup_reader", "trading_user"):
            with session(filled, user) as cursor:
                assert ids(cursor, table) == everybody, user


def columns(target: Target, table: str) -> list[str]:
    found = target.rows(
        "SELECT quote_ident(attname) AS name FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
        table,
    )
    return [row["name"] for row in found]


def updated(cursor: Any, statement: str, bot_id: str) -> int | None:
    """How many rows a statement changed, None where it was denied."""
    cursor.execute("SAVEPOINT before")
    try:
        cursor.execute(statement, (bot_id,))
        return int(cursor.rowcount)
    except Denied:
        cursor.execute("ROLLBACK TO SAVEPOINT before")
        return None


@pytest.mark.parametrize("table", WRITTEN)
def test_own_and_trial_rows_are_written_and_trial_rows_removed(filled: Target, table: str) -> None:
    with session(filled, OWN) as cursor:
        cursor.execute(f"DELETE FROM {table}")
        assert cursor.rowcount == 1
        assert ids(cursor, table) == {OWN}
        insert(cursor, table, TRIAL, "b")
        assert ids(cursor, table) == {OWN, TRIAL}
    with session(filled, f"{OTHER}") as cursor:
        assert ids(cursor, table) == {OTHER, f"{OTHER}_trial"}


@pytest.mark.parametrize("table", sorted(set(WRITTEN) - {"audit.system_events", "audit.risk_events"}))
def test_own_rows_are_changed_in_every_column_but_their_ids(filled: Target, table: str) -> None:
    with session(filled, OWN) as cursor:
        for name in columns(filled, table):
            changed = updated(cursor, f"UPDATE {table} SET {name} = {name} WHERE bot_id = %s", OWN)
            fixed = ("id", "bot_id", "outbox_id", IDS.get(table))
            assert changed == (None if name in fixed else 1), name


@pytest.mark.parametrize("table", IDS)
def test_an_id_that_another_bot_could_want_is_not_taken(filled: Target, table: str) -> None:
    """It would keep the other's row out, and show that there is one."""
    row = {"bot_id": OWN, **ROWS[table]}
    statement = f"INSERT INTO {table} ({', '.join(row)}, {IDS[table]}) VALUES ({', '.join(['%s'] * (len(row) + 1))})"
    for name in (f"{OTHER}_a", f"{OTHER}_new", OWN, OWN.replace("_", "-") + "_new", f" {OWN}_new", "new"):
        with session(filled, OWN) as cursor, pytest.raises(Denied, match='policy "own_ids"'):
            cursor.execute(statement, [*row.values(), name])
    with session(filled, OWN) as cursor:
        cursor.execute(statement, [*row.values(), f"{OWN}_new"])
        cursor.execute(statement, [TRIAL, *ROWS[table].values(), f"{TRIAL}_new"])
        with pytest.raises(Denied, match='policy "own_ids"'):
            cursor.execute(statement, [TRIAL, *ROWS[table].values(), f"{OWN}_newer"])


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("UPDATE trading.bots SET current_equity = 5, status = 'paused', last_heartbeat = now()", True),
        ("UPDATE trading.bots SET initial_capital = 5", False),
        ("UPDATE trading.bots SET max_positions = 500", False),
        ("UPDATE audit.risk_events SET resolved = true, resolved_at = now(), resolution_notes = 'done'", True),
        ("UPDATE audit.risk_events SET current_value = 0", False),
        ("UPDATE audit.system_events SET message = 'nothing happened'", False),
        ("INSERT INTO config.bot_configurations (bot_id, config_key, config_value) VALUES (current_user, 'x', '1')", False),
        ("UPDATE config.bot_configurations SET config_value = '100'", False),
        ("SELECT nextval('trading.trades_id_seq'), nextval('audit.system_events_id_seq')", True),
        ("SELECT setval('trading.trades_id_seq', 1)", False),
        ("ALTER SEQUENCE trading.trades_id_seq RESTART", False),
        ("SELECT nextval('trading.bots_id_seq')", False),
        ("SELECT * FROM analytics.daily_performance_summary", False),
        ("SELECT * FROM analytics.portfolio_snapshots", False),
        ("SELECT * FROM migration.ledger", False),
        ("SELECT migration.register_bots('[]', 'momentum', '')", False),
        ("SELECT trading.register_trial(current_user)", False),
        ("SELECT trading.remove_trial(current_user)", False),
        ("SELECT rolpassword FROM pg_authid", False),
        ("SELECT pg_read_file('/etc/passwd')", False),
        ("COPY trading.trades TO PROGRAM 'true'", False),
        ("CREATE SCHEMA mine", False),
        ("CREATE TABLE trading.mine (id int)", False),
        ("CREATE TABLE public.mine (id int)", False),
        ("CREATE FUNCTION delivery.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'", False),
        ("CREATE ROLE mine", False),
        ("ALTER ROLE CURRENT_USER BYPASSRLS", False),
        ("GRANT trading_bots TO grafana_reader", False),
        (f"SET ROLE {OTHER}", False),
        ("SET ROLE trading_user", False),
        (f"SET SESSION AUTHORIZATION {OTHER}", False),
        ("SET session_replication_role = replica", False),
        ("SET row_security = off; SELECT * FROM trading.trades", False),
        ("DELETE FROM trading.bots", False),
        ("DELETE FROM trading.market_data", False),
        ("DELETE FROM trading.symbols", False),
        ("UPDATE trading.symbols SET is_active = false", False),
    ],
)  # fmt: skip
def test_a_bot_may(filled: Target, statement: str, allowed: bool) -> None:
    with session(filled, OWN) as cursor:
        if allowed:
            cursor.execute(statement)
        else:
            with pytest.raises(Denied):
                cursor.execute(statement)


def test_the_group_is_no_way_around(filled: Target) -> None:
    with session(filled, OWN) as cursor:
        cursor.execute("SET ROLE trading_bots")
        assert ids(cursor, "trading.trades") == set()
        with pytest.raises(Denied):
            insert(cursor, "trading.trades", OTHER, "b")


def test_no_row_is_seen_through_what_a_bot_can_reach(filled: Target) -> None:
    """Views would show it with their owner's eyes, and statistics hold values."""
    filled.execute("ANALYZE trading.trades")
    with session(filled, OWN) as cursor:
        cursor.execute("SELECT count(*) FROM pg_stats WHERE tablename = 'trades'")
        assert cursor.fetchone() == (0,)
        cursor.execute(
            "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind IN ('v', 'm')"
            " AND c.relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema', 'public')"
            " AND has_schema_privilege(c.relnamespace, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')"
        )
        assert cursor.fetchall() == []


def test_market_data_and_symbols_are_shared(filled: Target) -> None:
    candle = (
        "INSERT INTO trading.market_data (symbol, interval, timestamp, open_price, high_price, low_price, close_price)"
        " VALUES ('X', '5m', '2026-01-01', 1, 1, 1, 1)"
    )
    with session(filled, OWN) as cursor:
        cursor.execute(candle)
        cursor.execute("INSERT INTO trading.symbols (symbol, exchange) VALUES ('X', 'bybit')")
        cursor.connection.commit()
    with session(filled, OTHER) as cursor:
        cursor.execute(candle + " ON CONFLICT (symbol, interval, timestamp) DO UPDATE SET volume = 7 RETURNING volume")
        assert cursor.fetchone() == (7,)
        cursor.execute("SELECT count(*) FROM trading.symbols")
        assert cursor.fetchone() == (1,)


def test_second_live_instance_is_refused_among_bots_too(filled: Target) -> None:
    beat = "INSERT INTO trading.bot_heartbeats (bot_id, host, started_at) VALUES (%s, %s, now())"
    with session(filled, OWN) as cursor:
        cursor.execute(beat, (OWN, "one"))
        with pytest.raises(psycopg2.errors.UniqueViolation, match="already runs on host one"):
            cursor.execute(beat, (OWN, "two"))


def test_a_bots_queries_use_the_indexes(filled: Target) -> None:
    """Also those that leave it to the policy whose rows they want."""
    with filled.copied() as many:
        many.execute(
            "INSERT INTO trading.positions (position_id, bot_id, symbol, side, size, avg_entry_price)"
            " SELECT 'p' || i, %s, 'X', 'long', 1, 1 FROM generate_series(1, 20000) i",
            OTHER,
        )
        many.server.execute(many.database, "VACUUM ANALYZE")
        with session(many, OWN) as cursor:
            for condition, index in (
                ("status IN ('open', 'partially_closed')", "positions_open"),
                (f"bot_id = '{OWN}' AND status IN ('open', 'partially_closed')", "positions_open"),
                (f"bot_id = '{OWN}' ORDER BY opened_at DESC LIMIT 10", "positions_bot_opened"),
                ("position_id = 'p7'", "positions_position_id_key"),
            ):
                cursor.execute(f"EXPLAIN SELECT * FROM trading.positions WHERE {condition}")
                plan = "\n".join(line for (line,) in cursor.fetchall())
                assert index in plan, plan
                assert "Index Cond" in plan, plan


def test_trial_ids_count_nowhere(filled: Target) -> None:
    with filled.copied() as trial:
        trial.execute("DELETE FROM trading.positions WHERE bot_id NOT LIKE '%%_trial'")
        trial.execute("DELETE FROM trading.orders WHERE bot_id NOT LIKE '%%_trial'")
        trial.execute("DELETE FROM audit.risk_events WHERE bot_id NOT LIKE '%%_trial'")
        trial.execute("DELETE FROM audit.system_events WHERE bot_id NOT LIKE '%%_trial'")
        trial.execute("DELETE FROM trading.trades WHERE bot_id NOT LIKE '%%_trial'")
        trial.execute("UPDATE trading.trades SET exit_time = now(), pnl_usd = 5")
        trial.execute("UPDATE audit.system_events SET event_level = 'ERROR'")
        trial.execute("UPDATE trading.bots SET status = 'active', current_equity = 1")
        (row,) = trial.rows("SELECT * FROM analytics.system_health_dashboard")
        counted = {name: value for name, value in row.items() if name != "snapshot_time" and value != 0}
        assert counted == {"active_bots": 2, "total_portfolio_equity": 2, "errors_last_hour": 1}
        assert trial.rows("SELECT * FROM analytics.active_positions_summary") == []
        assert trial.rows("SELECT * FROM analytics.daily_performance_summary") == []


def test_a_trial_id_comes_once_and_goes_with_all_its_rows(filled: Target) -> None:
    with filled.copied() as trial:
        before = trial.business()
        assert trial.value("SELECT trading.register_trial(%s)", OWN) is False
        assert trial.business() == before
        assert trial.value("SELECT trading.remove_trial(%s)", OWN) == len(ROWS)
        assert trial.value("SELECT trading.remove_trial(%s)", OWN) == 0
        with session(trial, "trading_user") as cursor:
            for table in ROWS:
                assert ids(cursor, table) - {None} == {OWN, OTHER, f"{OTHER}_trial"}, table
        assert trial.value("SELECT trading.register_trial(%s)", OWN) is True
        (row,) = trial.rows("SELECT * FROM trading.bots WHERE bot_id = %s", TRIAL)
        assert (row["status"], row["deployment_mode"], row["bot_type"]) == ("archived", "backtest", "trial")


def test_a_trial_needs_its_bot(target: Target) -> None:
    target.sql("003_register_momentum_bot.sql")
    target.value("SELECT trading.register_trial('momentum_001')")
    for name in ("nobody", "momentum_001_trial"):
        with pytest.raises(psycopg2.Error, match=f"trading.bots has no bot {name}: expected a registered bot; run"):
            target.value("SELECT trading.register_trial(%s)", name)


@pytest.mark.parametrize("bot_id", ["other_trial", "x" * 45])
def test_no_bot_is_registered_whose_id_could_be_a_trials(target: Target, bot_id: str) -> None:
    target.bots.append({**target.bot("lxalgo_001"), "bot_id": bot_id})
    done = target.psql("004_register_lxalgo_bot.sql")
    assert done.returncode == 3
    assert "bots_trial_id" in done.stderr


def test_registration_of_a_type_leaves_trials_alone(target: Target) -> None:
    target.sql("004_register_lxalgo_bot.sql")
    target.value("SELECT trading.register_trial('lxalgo_001')")
    before = target.business()
    assert target.sql("004_register_lxalgo_bot.sql")["changed"] is False
    assert target.business() == before


def test_a_dump_of_the_backup_service_holds_every_row(filled: Target) -> None:
    dump = filled.server.run("pg_dump", "--data-only", "--inserts", "-U", "backup_reader", "-d", filled.database)
    for table in ROWS:
        rows = dump.count(f"INSERT INTO {table} ")
        assert rows == filled.value(f"SELECT count(*) FROM {table}"), table


def test_a_restored_dump_keeps_bots_apart(filled: Target) -> None:
    dump = filled.server.run("pg_dump", "-U", "backup_reader", "-d", filled.database)
    with database(filled.server, "empty_template") as name:
        restored = Target(filled.server, name)
        filled.server.run("psql", "-qX", "-v", "ON_ERROR_STOP=1", "-U", "trading_user", "-d", name, stdin=dump)
        with session(restored, OWN) as cursor:
            assert ids(cursor, "trading.trades") == {OWN, TRIAL}


def test_second_run_changes_nothing(target: Target) -> None:
    before = target.contents()
    result = target.sql(FILE)
    assert (result["changed"], result["message"]) == (False, "already applied")
    assert target.contents() == before


def test_edited_file_is_refused(target: Target, fresh_migrations: Path) -> None:
    path = fresh_migrations / FILE
    path.write_text(path.read_text() + "-- edited\n")
    done = target.psql(FILE)
    assert done.returncode == 3
    assert f"{FILE} was applied on" in done.stderr


def test_needs_the_schema_and_its_dry_run_leaves_nothing(empty_target: Target) -> None:
    done = empty_target.psql(FILE)
    assert done.returncode == 3
    assert "run 001_unified_schema.sql first" in done.stderr
    empty_target.sql("001_unified_schema.sql")
    before = empty_target.contents()
    assert empty_target.sql(FILE, dry_run=1)["changed"] is True
    assert empty_target.contents() == before
    assert empty_target.rows("SELECT nspname FROM pg_namespace WHERE nspname = 'delivery'") == []


def test_needs_the_group_of_the_bots(empty_target: Target) -> None:
    empty_target.sql("001_unified_schema.sql")
    before = empty_target.contents()
    empty_target.server.execute("postgres", "ALTER ROLE trading_bots RENAME TO elsewhere")
    try:
        done = empty_target.psql(FILE)
    finally:
        empty_target.server.execute("postgres", "ALTER ROLE elsewhere RENAME TO trading_bots")
    assert done.returncode == 3
    assert "role trading_bots does not exist on this server: expected the group of the bots" in done.stderr
    assert "Run playbooks/phase1_infrastructure.yml, then this again." in done.stderr
    assert empty_target.contents() == before
    assert empty_target.sql(FILE)["changed"] is True
