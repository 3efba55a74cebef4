"""What the audit of the bots' code finds, and what it does not mistake for a fault."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot_audit import bots
from bot_audit.finding import Problem
from bot_audit.source import problems_of

ROOT = Path(__file__).parents[2]
LEGACY = ROOT / "tests/legacy/roles/legacy/files"
APPLICATIONS = ROOT / "files/applications"
OWN = frozenset({"momentum_001", "momentum_001_trial"})
# None of these may ever come out again.
SECRET = "hunter2-Geheim!"


def problems(source: str | bytes) -> list[Problem]:
    found = problems_of(source.encode() if isinstance(source, str) else source, OWN)
    assert SECRET not in repr(found)
    return found


def kinds(source: str | bytes) -> list[str]:
    return [problem.kind for problem in problems(source)]


SOURCES: dict[str, tuple[str, list[str]]] = {
    # How a statement can be written down.
    "in pieces": ('c.execute("SELECT * FROM trades"\n  " WHERE id = %s")', ["bot_id"]),
    "in pieces, good": ('c.execute("SELECT * FROM trades"\n  " WHERE bot_id = %s")', []),
    "added": ('c.execute("SELECT * " + "FROM trades" + " WHERE id = 1")', ["bot_id"]),
    "added, good": ('c.execute("SELECT * FROM trades" + " WHERE bot_id = %s")', []),
    "by a constant": ('BASE = "SELECT * FROM trades"\nc.execute(BASE + " WHERE bot_id = %s")', []),
    "by a constant, alone": ('BASE = "SELECT * FROM trades"\nc.execute(BASE)', ["bot_id"]),
    "by a name": ('q = "SELECT * FROM trades"\nq += " WHERE bot_id = %s"\nc.execute(q)', []),
    "by a name, if": ('q = "SELECT * FROM trades"\nif x:\n    q += " WHERE bot_id = %s"\nc.execute(q)', ["dynamic"]),
    "by a name, more if": ('q = "SELECT * FROM trades WHERE bot_id = %s"\nif x:\n    q += " AND a"\nc.execute(q)', []),
    "by a name, again": ('q = "SELECT * FROM fills"\nq = q + " WHERE bot_id = %s"\nc.execute(q)', []),
    "by either": ('if a:\n    q = "SELECT * FROM fills"\nelse:\n    q = "SELECT 1"\nc.execute(q)', ["bot_id"]),
    "by an attribute": (
        'class A:\n    Q = "trades"\n    def f(self):\n        c.execute("DELETE FROM " + self.Q)',
        ["bot_id"],
    ),
    "by an attribute, good": (
        'class A:\n    Q = "SELECT * FROM trades"\n    def f(self):\n        c.execute(self.Q + " WHERE bot_id = %s")',
        [],
    ),
    "by an attribute, alone": (
        'class A:\n    Q = "SELECT * FROM trades"\n    def f(self):\n        c.execute(self.Q)',
        ["bot_id", "bot_id"],
    ),
    "an f-string of a value": ('c.execute(f"SELECT * FROM trades WHERE id = {x}")', ["bot_id"]),
    "an f-string, good": ("c.execute(f\"SELECT * FROM trades WHERE bot_id = '{BOT_ID}' AND id = {x}\")", []),
    "an f-string of a constant": ('T = "trading.trades"\nc.execute(f"DELETE FROM {T}")', ["bot_id"]),
    "an f-string of a table": ('c.execute(f"SELECT * FROM trading.{t} WHERE id = %s")', ["dynamic"]),
    "an f-string of a table, good": ('c.execute(f"SELECT * FROM trading.{t} WHERE bot_id = %s")', []),
    "an f-string of a tail": ('c.execute(f"SELECT * FROM trades {where} ORDER BY id")', ["dynamic"]),
    "an f-string of a tail, good": ('c.execute(f"SELECT * FROM trades WHERE bot_id = %s {more} LIMIT 5")', []),
    "an f-string of columns": ('c.execute(f"INSERT INTO trades ({columns}) VALUES ({marks})")', ["dynamic"]),
    "an f-string of an order": ('c.execute(f"SELECT * FROM trades ORDER BY {by}")', ["bot_id"]),
    "format": ('c.execute("SELECT * FROM {} WHERE id = {id}".format("trades", id=x))', ["bot_id"]),
    "format of a table": ('c.execute("SELECT * FROM {0} WHERE id = 1".format(t))', ["dynamic"]),
    "percent": ("c.execute(\"SELECT * FROM trades WHERE bot_id = '%s'\" % BOT_ID)", []),
    "percent, bad": ("c.execute(\"SELECT * FROM trades WHERE symbol = '%s'\" % s)", ["bot_id"]),
    "percent of a table": ('c.execute("SELECT * FROM %s WHERE a = %d" % (t, 1))', ["dynamic"]),
    "joined": ('c.execute(" ".join(["SELECT *", "FROM trades"]))', ["bot_id"]),
    "joined conditions": (
        'w = ["bot_id = %s"]\nw.append("a = 1")\nc.execute("SELECT * FROM trades WHERE " + " AND ".join(w))',
        [],
    ),
    "joined conditions, open": (
        'w = []\nw.append("a = 1")\nc.execute("SELECT * FROM trades WHERE " + " AND ".join(w))',
        ["dynamic"],
    ),
    "psycopg2.sql": ('c.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier("trading", "trades")))', ["bot_id"]),
    "dedent": ('c.execute(textwrap.dedent("""\n  SELECT * FROM trades"""))', ["bot_id"]),
    "a default": ('def f(q="SELECT * FROM trades"):\n    c.execute(q)', ["bot_id"]),
    "a dict": ('Q = {"all": "SELECT * FROM trades"}', ["bot_id"]),
    "in small letters": ('f("select id, symbol from trades")\nf("delete from fills")', ["bot_id", "bot_id"]),
    "a call of one's own": ('self._fetch("SELECT * FROM trades WHERE id = %s", (1,))', ["bot_id"]),
    "several": ('c.executescript("SELECT 1 FROM trades; DELETE FROM fills WHERE bot_id = 1")', ["bot_id"]),
    "twice": ('c.execute("DELETE FROM fills")\nc.execute("DELETE  FROM fills")', ["bot_id", "bot_id"]),
    "a lambda": ('f = lambda: c.execute("DELETE FROM fills")', ["bot_id"]),
    "pandas": ('pd.read_sql("SELECT * FROM trades", con)', ["bot_id"]),
    "execute_values": ('execute_values(c, "INSERT INTO trades (a) VALUES %s", rows)', ["bot_id"]),
    "SQLAlchemy": ('c.execute(text("DELETE FROM fills WHERE id = :id"), {"id": 1})', ["bot_id"]),
    "asyncpg": ('async def f(c):\n    await c.fetch("SELECT * FROM trades WHERE id = $1", 1)', ["bot_id"]),
    "unparsable": ('c.execute("SELECT * FROM trading.trades WHERE (((")', ["dynamic"]),
    "a MERGE": ('c.execute("MERGE INTO trades t USING x ON t.a = x.a WHEN MATCHED THEN DELETE")', ["dynamic"]),
    # What cannot be seen.
    "a call": ("cursor.execute(build(x))", ["dynamic"]),
    "a file": ('conn.cursor().execute(open("x.sql").read())', ["dynamic"]),
    "a name from a call": ("q = build()\ncur.execute(q)", ["dynamic"]),
    "a cursor of another name": ("with conn.cursor() as k:\n    k.execute(build(x))", ["dynamic"]),
    "a cursor of a class": ("self.k = conn.cursor()\nself.k.execute(build(x))", ["dynamic"]),
    "a connection of a pool": (
        "async def f(p):\n    async with p.acquire() as a:\n        await a.fetchrow(build(x))",
        ["dynamic"],
    ),
    "an awaited one": ("async def f():\n    a = await asyncpg.connect(d)\n    await a.fetch(build(x))", ["dynamic"]),
    "what is fetched elsewhere": ("session.fetch(url(x))\nexchange.fetch(order(x))", []),
    "a parameter": ("def f(q):\n    cur.execute(q)", []),
    "a constant of another module": ("cur.execute(queries.ALL)", []),
    "what is no cursor": ("self.execute(decide(x))\nexecutor.execute(order(x))\nstrategy.execute(signal())", []),
    "an ORM": ('class T(Base):\n    __tablename__ = "trades"', ["dynamic"]),
    "Django": ('class T(Model):\n    class Meta:\n        db_table = "trades"', ["dynamic"]),
    "a name of a table": ('def f():\n    table_name = "trades"', []),
    "a data frame of a table": ('pd.read_sql("trades", con)', ["dynamic"]),
    "a data frame": ('df.to_sql("trades", con)', ["dynamic"]),
    "a data frame of one's own": ('df.to_sql("features", con)', []),
    "a table of SQLAlchemy": ('from sqlalchemy import Table\nt = Table("trades", meta)', ["dynamic"]),
    "a table of one's own": ('t = Table("trades", columns)', []),
    # Sentences.
    "a docstring": ('def f():\n    """SELECT * FROM trades"""', []),
    "a comment": ("# SELECT * FROM trades", []),
    "Select": ('x = "Select the best trades from positions, then close"', []),
    "Select, parsable": ('x = "Select symbol from trades"', []),
    "select, parsable": ('x = "select best trades from signals"', []),
    "Update": ('x = "Update trades set by hand"', []),
    "Delete": ('button("Delete from positions")', []),
    "a log": ('logger.info("SELECT * FROM trades took %s", t)', []),
    "a log, formatted": ('log.error(f"DELETE FROM trades failed: {e}")', []),
    "a print": ('print("UPDATE positions SET size = 0 by hand")', []),
    "a statement in a print": ('print(c.execute("DELETE FROM fills"))', ["bot_id"]),
    "an exception": ('raise ValueError("SELECT * FROM trades failed")', []),
    "an assertion": ('assert x, "DELETE FROM trades failed"', []),
    "a comparison": ('if q == "SELECT * FROM trades":\n    f()', []),
    "help": ('p.add_argument("--x", help="SELECT * FROM trades")', []),
    # SQLite.
    "sqlite3": ("import sqlite3", ["sqlite"]),
    "sqlite3 as": ("import os, sqlite3 as s", ["sqlite"]),
    "aiosqlite": ("from aiosqlite import connect", ["sqlite"]),
    "import_module": ('importlib.import_module("sqlite3")', ["sqlite"]),
    "a relative module": ("from .sqlite3 import x", []),
    "an address": ('create_engine("sqlite:///data/trading.db")', ["sqlite"]),
    "an address of aiosqlite": ('URL = "sqlite+aiosqlite:///x"', ["sqlite"]),
    "a file's name": ('db.connect("data/trading.db")', ["sqlite"]),
    "another file's name": ('open("thumbs.db")', []),
    # Past PgBouncer.
    "the default port": ('os.getenv("POSTGRES_PORT", "5432")', ["connection"]),
    "the legacy port": ('os.environ.get("DB_PORT", 5433)', ["connection"]),
    "PgBouncer's port": ('os.getenv("POSTGRES_PORT", "6432")', []),
    "another service's port": ('os.getenv("REDIS_PORT", "6379")', []),
    "the default host": ('os.getenv("POSTGRES_HOST", "localhost")', ["connection"]),
    "PgBouncer's host": ('os.getenv("POSTGRES_HOST", "pgbouncer")', []),
    "another service's host": ('os.getenv("INFLUXDB_HOST", "localhost")', []),
    "no default": ('os.environ["POSTGRES_PORT"]', []),
    "psycopg2": ("import psycopg2\npsycopg2.connect(host=h, port=5432)", ["connection"]),
    "psycopg2 to PgBouncer": ("import psycopg2\npsycopg2.connect(host=h, port=p)", []),
    "psycopg2 without a port": ("import psycopg2\npsycopg2.connect(host=h)", ["connection"]),
    "psycopg2 to the server": ('import psycopg2\npsycopg2.connect(host="postgres", port=6432)', ["connection"]),
    "psycopg2 by a dict": ("import psycopg2\npsycopg2.connect(**settings)", []),
    "psycopg2 by another name": ("import psycopg2 as pg\npg.connect(host=h, port=5433)", ["connection"]),
    "a pool": ('from psycopg2.pool import SimpleConnectionPool\nSimpleConnectionPool(1, 2, host="h")', ["connection"]),
    "asyncpg.create_pool": ("import asyncpg\nasyncpg.create_pool(host=h, port=5432)", ["connection"]),
    "another connect": ('import websocket\nwebsocket.connect(host="localhost")', []),
    "a DSN": ('D = "postgresql://bot@postgres:5432/trading_db"', ["connection"]),
    "a DSN without a port": ('D = "postgres://bot@db/trading_db"', ["connection"]),
    "a DSN of PgBouncer": ('D = "postgresql+psycopg2://bot@pgbouncer:6432/trading_db"', []),
    "a DSN of variables": ('D = f"postgresql://{user}:{password}@{host}:{port}/{name}"', []),
    "a DSN of pairs": ('D = "host=localhost port=5432 dbname=trading_db user=bot"', ["connection"]),
    "a DSN of pairs to PgBouncer": ('D = "host=pgbouncer port=6432 dbname=trading_db"', []),
    "a scheme": ('url.replace("postgres://", "postgresql://")', []),
    "a dict of settings": ('DB = {"host": "pgbouncer", "port": 5432}', ["connection"]),
    "a default of a field": ("class S:\n    port: int = 5432", ["connection"]),
    "host and port": ('A = "localhost:5432"', ["connection"]),
    "another number": ("limit = 5432", []),
    # Session state.
    "SET": ('conn.execute("SET search_path TO trading")', ["session"]),
    "SET of an UPDATE": ('part = "SET a = %s"', []),
    "LISTEN": ('cur.execute("LISTEN trades")', ["session"]),
    "Listen": ('say("Listen to the market")', []),
    "an advisory lock": ('self._one("SELECT pg_try_advisory_lock(%s)", 1)', ["session"]),
    "PREPARE": ('cur.execute("PREPARE q AS SELECT 1")', ["session"]),
    "a temporary table": ('cur.execute("CREATE TEMP TABLE x (a int)")', ["session"]),
    "a named cursor": ('conn.cursor("big")', ["session"]),
    "a cursor": ("conn.cursor(cursor_factory=RealDictCursor)", []),
    "options": ('import psycopg2\npsycopg2.connect(dsn, options="-c search_path=trading")', ["session"]),
    # What cannot be read.
    "no Python": ("def f(:", ["unread"]),
    "Python 2": ('print "x"', ["unread"]),
    "a NUL": ("x = '\0'", ["unread"]),
    "nested": ("(" * 5000 + ")" * 5000, ["unread"]),
    "a long sum": ("x = " + " + ".join("1" * 5000), ["unread"]),
    "nothing": ("", []),
}


@pytest.mark.parametrize(("source", "expected"), SOURCES.values(), ids=SOURCES)
def test_a_source(source: str, expected: list[str]) -> None:
    assert kinds(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        'POSTGRES_PASSWORD = "{}"',
        'API_KEY: str = "{}"',
        'self.api_secret = b"{}"',
        'settings["BYBIT_API_KEY"] = "{}"',
        'psycopg2.connect(host=h, port=p, password="{}")',
        'exchange = ccxt.bybit({{"secret": "{}"}})',
        'exchange = ccxt.bybit({{"apiKey": "{}"}})',
        'def connect(user, passwd="{}"): ...',
        'os.getenv("POSTGRES_PASSWORD", "{}")',
        'pw = "{}"\nconnect(password=pw)',
        'TELEGRAM_BOT_TOKEN = "7098765432:{}"',
        'URL = "postgresql://bot:{}@pgbouncer:6432/trading_db"',
        'URL = "redis://:{}@redis:6379/0"',
        'URL = f"amqp://bot:{}@{{host}}/"',
        'D = "host=pgbouncer port=6432 user=bot password={}"',
        'user, password = "bot", "{}"',
        'password = os.getenv("POSTGRES_PASSWORD") or "{}"',
        'connect(os.environ.get("POSTGRES_PASSWORD") or "{}")',
        'os.environ.setdefault("POSTGRES_PASSWORD", "{}")',
    ],
)
def test_a_password_is_found_and_never_shown(source: str) -> None:
    assert {*kinds(source.format(SECRET))} == {"password"}


@pytest.mark.parametrize(
    "source",
    [
        'PASSWORD = ""',
        "PASSWORD = None",
        'PASSWORD = os.getenv("POSTGRES_PASSWORD")',
        'PASSWORD = os.environ["POSTGRES_PASSWORD"]',
        'PASSWORD = os.getenv("POSTGRES_PASSWORD", "")',
        'PASSWORD_ENV = "POSTGRES_PASSWORD"',
        'password_field = "pwd"',
        'secret_name = "trading/exchange"',
        'api_key = config["api_key"]',
        'quote_token = "USDT"',
        'token_url = "https://example.org/oauth/token"',
        'password = f"{user}{salt}"',
        'URL = "postgresql://bot:%s@pgbouncer:6432/trading_db" % password',
        'URL = "postgresql://{}:{}@pgbouncer:6432/trading_db".format(user, password)',
        'getpass.getpass("Password: ")',
        'API_KEY = "<your key>"',
        "passed = 'yes'",
    ],
)
def test_what_is_no_password(source: str) -> None:
    assert kinds(source) == []


@pytest.mark.parametrize(
    "sql",
    [
        f"SELECT * FROM trading.trades WHERE note = '{SECRET}'",
        "UPDATE trading.bots SET api_key_hash = 'hunter'",
        f"SELECT * FROM {{table}} WHERE note = '{SECRET}'",
        f"SELECT * FROM trading.trades WHERE '{SECRET}' = ((",
        f"SELECT * FROM trading.trades WHERE bot_id = '{SECRET}'",
    ],
)
def test_a_literal_that_may_be_a_secret_is_blanked(sql: str) -> None:
    found = problems(f'c.execute(f"{sql}")')
    assert found
    assert "hunter" not in repr([(problem.why, problem.change) for problem in found])
    assert "'***'" in found[0].why + found[0].change


def test_the_parsers_keep_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """A warning would quote the source."""
    problems(f'c.execute("VACUUM trades; ALTER SYSTEM SET x TO \'{SECRET}\'; SELECT * FROM trades")\nx = "\\{SECRET}"')
    out, err = capfd.readouterr()
    assert (out, err, caplog.text) == ("", "", "")


# ----- names


def audit(files: dict[str, str], accepted: list[str] | None = None, ours: list[str] | None = None) -> bots.Audit:
    inventory: list[dict[str, Any]] = [{"id": "momentum_001", "folder": "momentum"}]
    sources: bots.Sources = {"momentum": {"files": files, "skipped": {}}}
    return bots.audit(sources, inventory, accepted or [], ours or [])


def names(found: bots.Audit) -> list[str]:
    return [finding.name for finding in found.findings]


def test_a_name_survives_other_lines_and_spaces_but_no_other_statement() -> None:
    source = 'c.execute("DELETE FROM trades WHERE id = %s")'
    (name,) = names(audit({"a/b.py": source}))
    assert re.fullmatch(r"momentum:a/b\.py:bot_id:[0-9a-f]{6}", name)
    assert names(audit({"a/b.py": "# new\n\n" + source.replace("trades WHERE", "trades\\n  WHERE")})) == [name]
    assert names(audit({"a/b.py": source.replace("id = %s", "pnl_usd = %s")})) != [name]
    assert names(audit({"b.py": source})) != [name]


def test_a_statement_made_in_another_way_has_another_name() -> None:
    """To accept one that cannot be judged is not to accept all that bear the same variable's name."""
    source = "def f():\n    q = build(x)\n    cur.execute(q)\n"
    (name,) = names(audit({"a.py": source}))
    more = "def g():\n    q = build(y)\n    cur.execute(q)\n"
    assert len(names(audit({"a.py": source + more}, accepted=[name]))) == 1
    assert names(audit({"a.py": "\n" + source}, accepted=[name])) == []


def test_a_statement_that_stands_twice_is_one_finding() -> None:
    found = audit({"a.py": 'c.execute("DELETE FROM trades")\n\nc.execute("DELETE FROM trades")'})
    assert [finding.lines for finding in found.findings] == [(1, 3)]
    assert "  a.py:1,3: statement without bot_id" in bots.listing(found)


def test_a_finding_is_accepted_by_name() -> None:
    files = {"a.py": "import sqlite3\nimport apsw"}
    first, second = names(audit(files))
    found = audit(files, accepted=[first, "momentum:gone.py:sqlite:000000"])
    assert names(found) == [second]
    assert [finding.name for finding in found.accepted] == [first]
    assert found.unknown == ["momentum:gone.py:sqlite:000000"]
    text = bots.listing(found)
    assert "momentum (momentum_001): 1 finding, 1 accepted; 1 source checked" in text
    assert "a.py:1: direct SQLite use, accepted" in text
    assert "accepted, but not found any more: momentum:gone.py:sqlite:000000." in text


def test_a_source_that_was_not_read_is_a_finding() -> None:
    sources: bots.Sources = {"momentum": {"files": {}, "skipped": {"big.py": "2 bytes, more than 1"}}}
    found = bots.audit(sources, [{"id": "momentum_001", "folder": "momentum"}], [], [])
    assert [(finding.kind, finding.file) for finding in found.findings] == [("unread", "big.py")]
    assert "2 bytes, more than 1" in bots.listing(found)


def test_what_was_delivered_is_exempt_while_it_is_unchanged(tmp_path: Path) -> None:
    source = "import sqlite3\n"
    (tmp_path / "trading_db").mkdir()
    (tmp_path / "trading_db/outbox.py").write_text(source)
    ours = sorted(bots.delivered(tmp_path))
    assert names(audit({"trading_db/outbox.py": source}, ours=ours)) == []
    assert len(names(audit({"trading_db/outbox.py": source + "# mine"}, ours=ours))) == 1


def test_the_summary_counts_by_kind() -> None:
    found = audit({"a.py": 'import sqlite3\nc.execute("DELETE FROM trades")'})
    assert bots.summary(found) == "2 findings in the code of 1 bot: statement without bot_id 1; direct SQLite use 1"
    assert bots.summary(audit({})) == "No open finding in the code of 1 bot, 0 accepted."


# ----- this repository


def legacy(bot: str) -> Counter[tuple[str, str]]:
    folder = LEGACY / bot
    files = {str(path.relative_to(folder)): path.read_bytes().decode("latin-1") for path in folder.rglob("*.py")}
    sources: bots.Sources = {bot: {"files": files, "skipped": {}}}
    found = bots.audit(sources, [{"id": f"{bot}_001", "folder": bot}], [], [])
    return Counter((finding.file, finding.kind) for finding in found.findings)


@pytest.mark.parametrize(
    ("bot", "expected"),
    [
        (
            "shortseller",
            {
                ("config/settings.py", "connection"): 2,
                ("src/database/trade_logger.py", "bot_id"): 13,
                ("src/database/trade_logger.py", "dynamic"): 1,
            },
        ),
        (
            "momentum",
            {
                ("database/trade_database.py", "sqlite"): 1,
                ("database/trade_database.py", "bot_id"): 10,
                ("database/trade_database.py", "table"): 1,
                ("main.py", "sqlite"): 1,
                ("main.py", "dynamic"): 2,
            },
        ),
        ("lxalgo", {}),
    ],
)
def test_the_legacy_bots(bot: str, expected: dict[tuple[str, str], int]) -> None:
    assert dict(legacy(bot)) == expected


# What the audit finds in the files that this project delivers, and why it is right there. They are exempt by
# checksum on a host; a bot's programmer who copies from them is not.
GENERIC = "statements made for several tables at run time, of which each is confined to the bot"
DELIVERED = {
    "trading_db/check.py": {"bot_id": "looks for the rows of others, which row level security has to hide"},
    "trading_db/legacy.py": {"dynamic": GENERIC},
    "trading_db/statements.py": {"dynamic": GENERIC},
    "trading_db/outbox.py": {"sqlite": "the outbox, which holds what the database cannot take yet"},
    "shortseller/src/database/trade_logger.py": {"dynamic": GENERIC},
    "momentum/database/trade_database.py": {
        "sqlite": "the legacy class raises SQLite's exceptions, and its backup() writes a SQLite file",
        "table": "the tables of that file",
        "dynamic": GENERIC,
    },
}


@pytest.mark.parametrize("file", sorted(str(path.relative_to(APPLICATIONS)) for path in APPLICATIONS.rglob("*.py")))
def test_a_delivered_file(file: str) -> None:
    found = problems((APPLICATIONS / file).read_bytes())
    assert [problem for problem in found if problem.kind not in DELIVERED.get(file, {})] == []


# ----- any text


SQL_WORDS = st.sampled_from(
    [
        "SELECT",
        "FROM",
        "trades",
        "WHERE",
        "bot_id",
        "=",
        "%s",
        "(",
        ")",
        ",",
        "*",
        "JOIN",
        "ON",
        "USING",
        "INSERT",
        "INTO",
        "VALUES",
        "UPDATE",
        "SET",
        "DELETE",
        "WITH",
        "AS",
        "UNION",
        "%(a)s",
        "?",
        ":x",
        "$1",
        "'",
        '"',
        "--",
        "/*",
        "*/",
        "{x}",
        "{}",
        "%d",
        ";",
        "LEFT",
        "OR",
        "AND",
        "NOT",
        "IN",
        "ANY",
        "LIMIT",
        "positions",
        "t",
        "x",
        ".",
        "::",
        "[",
        "]",
        "\\",
        "market_data",
        "COPY",
    ]
)


def test_a_text_that_doubles_and_doubles_ends() -> None:
    doubled = "".join(f"a{n + 1} = a{n} + a{n}\n" for n in range(60))
    grown = "q = 'SELECT * FROM trades'\n" + "q += q\n" * 60
    assert kinds(f"a0 = 'SELECT 1'\n{doubled}c.execute(a60)\n{grown}") == []


@given(st.binary(max_size=200))
def test_no_bytes_crash_it(source: bytes) -> None:
    problems(source)


@given(
    st.lists(SQL_WORDS, max_size=25),
    st.sampled_from(["c.execute({})", "q = {}", "c.execute({} % x)", "q = f{}\nq += q"]),
)
def test_no_statement_crashes_it(words: list[str], frame: str) -> None:
    problems(frame.format(repr(" ".join(["SELECT", *words]))))


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_crashes_it(one: str, other: str) -> None:
    problems(f"x = {one!r}\nexecute(x + {other!r})\npassword = {one!r}\ny = {{{other!r}: {one!r}}}")
