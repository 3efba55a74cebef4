"""Which SQL statements name the bot, and what the audit writes instead of those that do not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bot_audit import statements
from bot_audit.finding import Problem
from bot_audit.source import problems_of

ROOT = Path(__file__).parents[2]
OWN = frozenset({"momentum_001", "momentum_001_trial"})


def executed(sql: str) -> list[Problem]:
    """What is found where a cursor is handed this statement."""
    return problems_of(f"cursor.execute({sql!r}, values)".encode(), OWN)


GOOD_SQL = {
    "a placeholder": "SELECT * FROM trading.trades WHERE bot_id = %s AND status = 'open'",
    "a named placeholder": "SELECT * FROM trading.trades WHERE bot_id = %(bot)s",
    "a question mark": "SELECT * FROM trades WHERE bot_id = ? LIMIT ?",
    "a colon": "SELECT * FROM trading.trades WHERE bot_id = :bot AND entry_time > :since::timestamptz",
    "a number": "SELECT * FROM trading.trades WHERE bot_id = $1",
    "the other way round": "SELECT * FROM trading.trades WHERE %s = bot_id",
    "quoted names": 'SELECT * FROM "trading"."trades" AS "t" WHERE "t"."bot_id" = %s',
    "capitals": "select * from TRADING.TRADES where BOT_ID = %s",
    "its own id": "SELECT * FROM trading.trades WHERE bot_id = 'momentum_001'",
    "its own ids": "SELECT * FROM trading.trades WHERE bot_id IN ('momentum_001', 'momentum_001_trial')",
    "a list": "SELECT * FROM trading.trades WHERE bot_id = ANY(%s)",
    "a tuple": "SELECT * FROM trading.trades WHERE bot_id IN %s",
    "a cast": "SELECT * FROM trading.trades WHERE bot_id = %s::text",
    "its role": "SELECT * FROM trading.trades WHERE bot_id = current_user",
    "a setting": "SELECT * FROM trading.trades WHERE bot_id = current_setting('app.bot')",
    "in each branch": "SELECT * FROM trading.trades WHERE (bot_id = %s AND a = 1) OR (b = 2 AND bot_id = %s)",
    "joined": "SELECT * FROM trading.trades t JOIN trading.fills f ON f.bot_id = t.bot_id WHERE t.bot_id = %s",
    "a chain": "SELECT 1 FROM orders o JOIN fills f ON f.bot_id = o.bot_id JOIN trades t ON t.bot_id = f.bot_id"
    " WHERE o.bot_id = %s",
    "using": "SELECT * FROM trading.trades JOIN trading.fills USING (bot_id, trade_id) WHERE bot_id = %s",
    "an outer join": "SELECT * FROM trades t LEFT JOIN positions p ON p.bot_id = %s AND p.symbol = t.symbol"
    " WHERE t.bot_id = %s",
    "a subquery that looks outside": "SELECT (SELECT max(price) FROM trading.fills f WHERE f.bot_id = t.bot_id)"
    " FROM trading.trades t WHERE t.bot_id = %s",
    "a CTE": "WITH mine AS (SELECT * FROM trading.trades WHERE bot_id = %s) SELECT * FROM mine",
    "a CTE of a table's name": "WITH trades AS (SELECT * FROM trading.trades WHERE bot_id = %s) SELECT * FROM trades",
    "shared data": "SELECT * FROM trading.market_data JOIN trading.symbols USING (symbol)",
    "shared data beside": "SELECT * FROM trading.trades t JOIN trading.market_data m USING (symbol) WHERE bot_id = %s",
    "writing shared data": "INSERT INTO trading.market_data (symbol, close_price) VALUES (%s, %s)",
    "another schema": "SELECT * FROM backtest.trades",
    "another word": "SELECT * FROM trades_per_day",
    "INSERT": "INSERT INTO trading.trades (trade_id, bot_id) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING id",
    "INSERT of its own id": "INSERT INTO trading.trades (trade_id, bot_id) VALUES (%s, 'momentum_001')",
    "INSERT ... SELECT": "INSERT INTO trading.fills (bot_id, price) SELECT bot_id, entry_price FROM trading.trades"
    " WHERE bot_id = %s",
    "execute_values": "INSERT INTO trading.trades (bot_id, trade_id) VALUES %s",
    "UPDATE": "UPDATE trading.trades SET pnl_usd = %s WHERE bot_id = %s AND id = %s",
    "UPDATE ... FROM": "UPDATE trades t SET a = p.a FROM positions p WHERE p.bot_id = t.bot_id AND t.bot_id = %s",
    "DELETE": "DELETE FROM trading.signals WHERE bot_id = %s",
    "COPY": "COPY trading.trades (bot_id, trade_id) FROM STDIN",
    "an operator of JSONB": "SELECT metadata ? 'legacy' FROM trading.trades WHERE bot_id = %s AND note LIKE '%%x?'",
    "comments": "-- all of them\nSELECT * /* really */ FROM trading.trades WHERE bot_id = %s -- ?",
    "DDL of one's own": "CREATE TABLE IF NOT EXISTS features (trades INTEGER); CREATE INDEX a ON features (trades)",
    "DDL of another schema": "DROP TABLE scratch.trades",
    "a transaction": "BEGIN; UPDATE trades SET a = 1 WHERE bot_id = %s; COMMIT",
    "a transaction's setting": "SET LOCAL statement_timeout = '1s'",
    "a transaction's lock": "SELECT pg_advisory_xact_lock(1)",
    "a transaction's table": "CREATE TEMP TABLE x (id int) ON COMMIT DROP",
}


@pytest.mark.parametrize("sql", GOOD_SQL.values(), ids=GOOD_SQL)
def test_a_statement_that_names_the_bot(sql: str) -> None:
    assert executed(sql) == []


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("CREATE TABLE IF NOT EXISTS trades (id INTEGER PRIMARY KEY)", "CREATE of table trades"),
        ('CREATE UNIQUE INDEX a ON "trading"."trades" (id)', "CREATE of table trades"),
        ("ALTER TABLE ONLY trading.fills ADD COLUMN a int", "ALTER of table fills"),
        ("drop table features, trades", "DROP of table trades"),
        ("SELECT 1; -- now\nDROP TABLE IF EXISTS trading.orders", "DROP of table orders"),
        ("LOCK positions IN EXCLUSIVE MODE", "LOCK of table positions"),
        ("DO $$ BEGIN PERFORM 1; DELETE FROM trading.trades; END $$", "DO of table trades"),
    ],
)
def test_a_change_of_a_table_itself(sql: str, said: str) -> None:
    (found,) = executed(sql)
    assert (found.kind, found.why.split(":")[0]) == ("table", said)


def test_a_statement_behind_others() -> None:
    (found,) = executed("BEGIN; DELETE FROM trading.trades; COMMIT")
    assert found.kind == "bot_id"


# Statement, and what to write instead.
BAD_SQL = {
    "SELECT * FROM trading.trades": "SELECT * FROM trading.trades WHERE bot_id = %s",
    "Select id From trades Where id = ?": "SELECT id FROM trading.trades WHERE bot_id = %s AND id = %s",
    "SELECT * FROM public.positions WHERE a = %(a)s OR b": "SELECT * FROM trading.positions"
    " WHERE bot_id = %(bot_id)s AND (a = %(a)s OR b)",
    "SELECT * FROM fills WHERE id = :id": "SELECT * FROM trading.fills WHERE bot_id = :bot_id AND id = :id",
    "SELECT * FROM fills WHERE id = $1": "SELECT * FROM trading.fills WHERE bot_id = $2 AND id = $1",
    "SELECT * FROM orders WHERE bot_id = %s OR true": "SELECT * FROM trading.orders"
    " WHERE bot_id = %s AND (bot_id = %s OR TRUE)",
    "SELECT * FROM orders WHERE bot_id <> %s": "SELECT * FROM trading.orders WHERE bot_id = %s AND bot_id <> %s",
    "SELECT * FROM orders WHERE NOT bot_id = %s": "SELECT * FROM trading.orders WHERE bot_id = %s AND NOT bot_id = %s",
    "SELECT * FROM orders WHERE bot_id IS NOT NULL": "SELECT * FROM trading.orders"
    " WHERE bot_id = %s AND bot_id IS NOT NULL",
    "SELECT * FROM orders WHERE bot_id = bot_id": "SELECT * FROM trading.orders WHERE bot_id = %s AND bot_id = bot_id",
    "SELECT * FROM trades t JOIN fills f ON f.trade_id = t.trade_id WHERE t.bot_id = %s": "SELECT *"
    " FROM trading.trades AS t JOIN trading.fills AS f ON f.trade_id = t.trade_id"
    " WHERE f.bot_id = %s AND t.bot_id = %s",
    "SELECT * FROM trades t LEFT JOIN fills f ON f.trade_id = t.trade_id WHERE t.bot_id = %s": "SELECT *"
    " FROM trading.trades AS t LEFT JOIN trading.fills AS f ON f.trade_id = t.trade_id AND f.bot_id = %s"
    " WHERE t.bot_id = %s",
    "SELECT * FROM trades t LEFT JOIN fills f ON t.bot_id = %s AND f.bot_id = t.bot_id": "SELECT *"
    " FROM trading.trades AS t LEFT JOIN trading.fills AS f ON (t.bot_id = %s AND f.bot_id = t.bot_id)"
    " AND f.bot_id = %s"
    " WHERE t.bot_id = %s",
    "SELECT * FROM (SELECT * FROM trades) x WHERE x.bot_id = %s": "SELECT * FROM"
    " (SELECT * FROM trading.trades WHERE bot_id = %s) AS x WHERE x.bot_id = %s",
    "WITH trades AS (SELECT * FROM trades) SELECT * FROM trades": "WITH trades AS"
    " (SELECT * FROM trading.trades WHERE bot_id = %s) SELECT * FROM trades",
    "SELECT 1 FROM trades WHERE bot_id = %s UNION SELECT 2 FROM fills": "SELECT 1 FROM trading.trades"
    " WHERE bot_id = %s UNION SELECT 2 FROM trading.fills WHERE bot_id = %s",
    "SELECT 1 WHERE EXISTS (SELECT 1 FROM audit.risk_events)": "SELECT 1"
    " WHERE EXISTS(SELECT 1 FROM audit.risk_events WHERE bot_id = %s)",
    "EXPLAIN ANALYZE SELECT * FROM config.bot_configurations": "SELECT * FROM config.bot_configurations"
    " WHERE bot_id = %s",
    "UPDATE trading.bots SET status = 'paused'": "UPDATE trading.bots SET status = 'paused' WHERE bot_id = %s",
    "DELETE FROM signals USING orders WHERE signals.bot_id = %s": "DELETE FROM trading.signals"
    " USING trading.orders WHERE orders.bot_id = %s AND signals.bot_id = %s",
    "WITH gone AS (DELETE FROM orders RETURNING *) SELECT * FROM gone": "WITH gone AS"
    " (DELETE FROM trading.orders WHERE bot_id = %s RETURNING *) SELECT * FROM gone",
    "INSERT INTO trades (a, b) VALUES (%s, 1), (%s, 2)": "INSERT INTO trading.trades (bot_id, a, b)"
    " VALUES (%s, %s, 1), (%s, %s, 2)",
    "INSERT INTO trades (a, b) VALUES %s": "INSERT INTO trading.trades (bot_id, a, b) VALUES %s",
    "INSERT INTO trades (a) SELECT a FROM old.x": "INSERT INTO trading.trades (bot_id, a) SELECT %s, a FROM old.x",
    "INSERT INTO trades VALUES (1, 2)": "Name the columns: INSERT INTO trading.trades (bot_id, ...) VALUES (%s, ...)",
    "INSERT OR REPLACE INTO daily_snapshots (date) VALUES (?)": "INSERT OR REPLACE INTO daily_snapshots (bot_id, date)"
    " VALUES (%s, %s)",
    "TRUNCATE trading.trades": "DELETE FROM trading.trades WHERE bot_id = %s",
    "COPY trades (a) FROM STDIN": "COPY trading.trades (bot_id, a) FROM STDIN",
    "COPY trades TO STDOUT": "COPY (SELECT ... FROM trading.trades WHERE bot_id = '...') TO STDOUT,"
    " with the bot's own id",
}


@pytest.mark.parametrize("sql", BAD_SQL)
def test_a_statement_without_bot_id_is_shown_with_it(sql: str) -> None:
    assert [(problem.kind, problem.change) for problem in executed(sql)] == [("bot_id", BAD_SQL[sql])]


@pytest.mark.parametrize(
    "sql", [sql for sql, change in BAD_SQL.items() if change.startswith(("SELECT", "UPDATE", "DELETE", "WITH"))]
)
def test_the_suggested_statement_passes(sql: str) -> None:
    assert executed(BAD_SQL[sql]) == []


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM trading.trades WHERE bot_id = 'lxalgo_001'",
        "SELECT * FROM trading.trades WHERE bot_id IN (%s, 'lxalgo_001')",
        "INSERT INTO trading.trades (trade_id, bot_id) VALUES (%s, 'lxalgo_001')",
        "INSERT INTO trading.trades (bot_id) SELECT 'lxalgo_001' FROM trading.market_data",
        "DELETE FROM trading.trades WHERE bot_id = 'lxalgo_001'::text",
        "UPDATE trading.trades SET bot_id = 'lxalgo_001' WHERE bot_id = %s",
    ],
)
def test_another_bots_id(sql: str) -> None:
    found = executed(sql)
    assert [problem.kind for problem in found] == ["other_bot"]
    assert found[0].why == "names bot_id 'lxalgo_001'; this bot is momentum_001"


def test_the_tables_are_those_of_the_schema() -> None:
    schema = ROOT.joinpath("files/migrations/001_unified_schema.sql").read_text()
    tables = re.findall(r"CREATE TABLE (trading|audit|config|analytics)\.(\w+) \((.*?)\n\)", schema, flags=re.S)
    assert len(tables) > 12
    assert {name: place for place, name, body in tables if re.search(r"^ +bot_id ", body, re.M)} == statements.SCHEMA_OF
