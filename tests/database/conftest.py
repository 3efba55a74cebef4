"""Real servers for the migrations: trading_db and a legacy PostgreSQL in containers.

Each test gets a database of its own on both, made from templates, a private
copy of the migration files, and runs them as the playbooks do: SQL by psql
inside the container, Python beside it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import psycopg2
import psycopg2.extras
import pytest

ROOT = Path(__file__).resolve().parents[2]
MIGRATIONS = ROOT / "files/migrations"
LEGACY_FILES = ROOT / "tests/legacy/roles/legacy/files"
PASSWORD = "only-for-tests"
# Scratch servers: speed instead of durability, and nothing that begins at its own time.
FAST = [
    *("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"),
    *("-c", "autovacuum=off", "-c", "max_connections=60"),
]

BOTS: list[dict[str, Any]] = [
    {
        "bot_id": f"{kind}_001",
        "bot_name": f"The {kind} bot",
        "bot_type": kind,
        "strategy_name": "Strategy",
        "description": "Description",
        "exchange": "bybit",
        "deployment_mode": "live",
        "initial_capital": 10000,
        "max_positions": 3,
        "leverage_limit": 1,
        "max_daily_loss_pct": 5,
        "max_weekly_loss_pct": 10,
        "max_drawdown_pct": 20,
        "timezone": "UTC",
        "configuration": {},
        "legacy": {},
    }
    for kind in ("shortseller", "momentum", "lxalgo")
]


@dataclass(frozen=True)
class Server:
    """A PostgreSQL container, its published port and what is mounted into it."""

    container: str
    port: int
    migrations: Path

    def connect(self, database: str, user: str = "postgres") -> Any:
        return psycopg2.connect(host="127.0.0.1", port=self.port, dbname=database, user=user, password=PASSWORD)

    def execute(self, database: str, *statements: str) -> None:
        with closing(self.connect(database)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)

    def run(self, *command: str, stdin: str = "") -> str:
        """What a client program inside the container prints; it must succeed."""
        done = subprocess.run(
            ["docker", "exec", "-i", self.container, *command], input=stdin, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def psql(self, database: str, file: Path, user: str, **variables: object) -> subprocess.CompletedProcess[str]:
        options = [option for name, value in variables.items() for option in ("-v", f"{name}={value}")]
        return subprocess.run(
            ["docker", "exec", "-i", self.container, "psql", "-U", user, "-d", database, *options],
            stdin=file.open(),
            capture_output=True,
            text=True,
            timeout=120,
        )


@contextmanager
def server(image: str, user: str, migrations: Path, port: int | None = None) -> Iterator[Server]:
    """A PostgreSQL in a container. One that is to be restarted needs a port of its own."""
    client = docker.from_env()
    container = client.containers.run(
        image,
        ["postgres", *FAST],
        name=f"trading-database-tests-{uuid.uuid4().hex[:8]}",
        environment={
            "POSTGRES_PASSWORD": PASSWORD,
            "POSTGRES_USER": user,
            "POSTGRES_DB": "postgres",
            "POSTGRES_INITDB_ARGS": "--locale=C.UTF-8 --encoding=UTF8",
        },
        volumes={str(migrations): {"bind": "/migrations", "mode": "ro"}},
        ports={"5432/tcp": ("127.0.0.1", port)},
        # `make clean` finds what a killed run left behind by this label.
        labels={"trading.testbed": "database-tests"},
        detach=True,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            container.reload()
            published = container.ports.get("5432/tcp")
            if published:
                found = Server(container.name or "", int(published[0]["HostPort"]), migrations)
                try:
                    found.connect("postgres", user).close()
                    break
                except psycopg2.OperationalError:
                    pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"{image} does not answer:\n{container.logs().decode()}")
            time.sleep(0.2)
        yield found
    finally:
        container.remove(force=True, v=True)
        client.close()


@pytest.fixture(scope="session")
def migrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the container has at /migrations."""
    folder = tmp_path_factory.mktemp("migrations", numbered=True)
    folder.chmod(0o755)
    for parent in folder.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/tmp"):
            parent.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def target_server(migrations: Path) -> Iterator[Server]:
    """trading_db's server, with the roles that phase 1 creates."""
    copy_migrations(migrations)
    with server("postgres:17.6", "postgres", migrations) as found:
        found.execute(
            "postgres",
            f"CREATE ROLE trading_user LOGIN PASSWORD '{PASSWORD}'",
            f"CREATE ROLE grafana_reader LOGIN PASSWORD '{PASSWORD}'",
            f"CREATE ROLE backup_reader LOGIN BYPASSRLS PASSWORD '{PASSWORD}' IN ROLE pg_read_all_data",
            "CREATE ROLE trading_bots",
            *(f"CREATE ROLE {bot['bot_id']} LOGIN PASSWORD '{PASSWORD}' IN ROLE trading_bots" for bot in BOTS),
            "CREATE DATABASE empty_template OWNER trading_user",
            "CREATE DATABASE unified_template OWNER trading_user",
        )
        for name in ("001_unified_schema.sql", "005_bot_access.sql"):
            done = found.psql("unified_template", migrations / name, "trading_user")
            assert done.returncode == 0, done.stderr
        yield found


@pytest.fixture(scope="session")
def legacy_server(migrations: Path) -> Iterator[Server]:
    """The Shortseller's server; its only user is a superuser, as on the host."""
    with server("postgres:14", "trading_user", migrations) as found:
        with closing(found.connect("postgres", "trading_user")) as connection:
            connection.autocommit = True
            connection.cursor().execute("CREATE DATABASE legacy_template")
        done = found.psql("legacy_template", LEGACY_FILES / "shortseller/init-db.sql", "trading_user")
        assert done.returncode == 0, done.stderr
        yield found


def copy_migrations(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(MIGRATIONS, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


@dataclass
class Target:
    """One test's trading_db, and the files that are run against it."""

    server: Server
    database: str
    bots: list[dict[str, Any]] = field(default_factory=lambda: json.loads(json.dumps(BOTS)))

    def bot(self, bot_id: str) -> dict[str, Any]:
        return next(b for b in self.bots if b["bot_id"] == bot_id)

    def write_bots(self) -> None:
        (self.server.migrations / "bots.json").write_text(json.dumps(self.bots))

    def psql(self, name: str, **variables: object) -> subprocess.CompletedProcess[str]:
        self.write_bots()
        return self.server.psql(self.database, self.server.migrations / name, "trading_user", **variables)

    def sql(self, name: str, **variables: object) -> dict[str, Any]:
        """Run a migration file that must succeed; its result."""
        done = self.psql(name, **variables)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        self.write_bots()
        environment = {
            **os.environ,
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(self.server.port),
            "POSTGRES_DB": self.database,
            "POSTGRES_USER": "trading_user",
            "POSTGRES_PASSWORD": PASSWORD,
            "LEGACY_POSTGRES_PASSWORD": PASSWORD,
        }
        return subprocess.Popen(
            [sys.executable, str(self.server.migrations / name), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(name, *arguments)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def script(self, name: str, *arguments: str) -> dict[str, Any]:
        """Run a script that must succeed; its result."""
        done = self.python(name, *arguments)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def migrate_shortseller(self, *arguments: str, **variables: object) -> dict[str, Any]:
        """Stage with the given options and merge with the given variables."""
        self.script("stage_shortseller.py", *arguments)
        return self.sql("002_migrate_shortseller_data.sql", **variables)

    def migrate_momentum(self, *arguments: str) -> dict[str, Any]:
        self.sql("003_register_momentum_bot.sql")
        return self.script("migrate_momentum_sqlite_to_postgres.py", *arguments)

    def rows(self, query: str, *parameters: object, user: str = "trading_user") -> list[dict[str, Any]]:
        with closing(self.server.connect(self.database, user)) as connection, connection:
            cursor = connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor)
            cursor.execute("SET TIME ZONE 'UTC'")
            cursor.execute(query, parameters or None)
            return [dict(row) for row in cursor.fetchall()]

    def value(self, query: str, *parameters: object) -> Any:
        (row,) = self.rows(query, *parameters)
        (value,) = row.values()
        return value

    def execute(self, statement: str, *parameters: object) -> None:
        with closing(self.server.connect(self.database, "trading_user")) as connection, connection:
            connection.cursor().execute(statement, parameters or None)

    @contextmanager
    def copied(self) -> Iterator[Target]:
        """A copy of this database, to be changed."""
        name = f"{self.database}_copy"
        self.server.execute("postgres", f"CREATE DATABASE {name} TEMPLATE {self.database} OWNER trading_user")
        try:
            yield Target(self.server, name, self.bots)
        finally:
            self.server.execute("postgres", f"DROP DATABASE {name} WITH (FORCE)")

    def contents(self) -> dict[str, list[str]]:
        """Every row of every table outside the staging schemas, as text."""
        tables = self.rows(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables"
            " WHERE schemaname IN ('trading', 'analytics', 'config', 'audit', 'delivery', 'migration') ORDER BY 1"
        )
        with closing(self.server.connect(self.database, "trading_user")) as connection, connection:
            cursor = connection.cursor()
            cursor.execute("SET TIME ZONE 'UTC'")
            found = {}
            for t in tables:
                cursor.execute(f"SELECT t::text AS text FROM {t['name']} t ORDER BY 1")
                found[t["name"]] = [text for (text,) in cursor.fetchall()]
            return found

    def business(self) -> dict[str, list[str]]:
        """The same without what the migrations know about themselves."""
        return {name: rows for name, rows in self.contents().items() if not name.startswith("migration.")}


@dataclass
class Legacy:
    """One test's Shortseller database."""

    server: Server
    database: str

    def execute(self, statement: str, *parameters: object) -> None:
        with closing(self.server.connect(self.database, "trading_user")) as connection, connection:
            connection.cursor().execute(statement, parameters or None)

    def insert(self, table: str, **row: object) -> int:
        names = ", ".join(f'"{name}"' for name in row)
        marks = ", ".join(["%s"] * len(row))
        with closing(self.server.connect(self.database, "trading_user")) as connection, connection:
            cursor = connection.cursor()
            cursor.execute(f"INSERT INTO trading.{table} ({names}) VALUES ({marks}) RETURNING id", list(row.values()))
            (found,) = cursor.fetchone()
            return int(found)


@pytest.fixture
def empty_target(target_server: Server) -> Iterator[Target]:
    """An empty trading_db."""
    with database(target_server, "empty_template") as name:
        yield Target(target_server, name)


@pytest.fixture
def target(target_server: Server) -> Iterator[Target]:
    """trading_db with the unified schema."""
    with database(target_server, "unified_template") as name:
        yield Target(target_server, name)


@pytest.fixture
def legacy(legacy_server: Server, target: Target) -> Iterator[Legacy]:
    """The Shortseller's database as its init-db.sql leaves it; the target knows where it is."""
    with database(legacy_server, "legacy_template", "trading_user") as name:
        target.bot("shortseller_001")["legacy"] = {
            "host": "127.0.0.1",
            "port": legacy_server.port,
            "database": name,
            "user": "trading_user",
        }
        yield Legacy(legacy_server, name)


@contextmanager
def database(found: Server, template: str, user: str = "postgres") -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"

    def administer(statement: str) -> None:
        # A connection each: the test may restart the server.
        with closing(found.connect("postgres", user)) as connection:
            connection.autocommit = True
            connection.cursor().execute(statement)

    administer(f"CREATE DATABASE {name} TEMPLATE {template} OWNER trading_user")
    try:
        yield name
    finally:
        administer(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def fresh_migrations(migrations: Path) -> Iterator[Path]:
    """The migrations folder of a test that edits it; restored afterwards."""
    yield migrations
    copy_migrations(migrations)


class Momentum:
    """One test's SQLite file, made by the bot's own class."""

    def __init__(self, path: Path) -> None:
        self.path = path
        spec = importlib.util.spec_from_file_location(
            "trade_database", LEGACY_FILES / "momentum/database/trade_database.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.bot = module.TradeDatabase(str(path))
        self.connection = self.bot.conn

    def insert(self, table: str, **row: object) -> int:
        names = ", ".join(row)
        marks = ", ".join(["?"] * len(row))
        with self.connection:
            found: int = self.connection.execute(
                f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values())
            ).lastrowid
        return found

    def trade(self, **changes: object) -> int:
        return self.insert(
            "trades",
            **{
                "trade_id": None,
                "mode": "live",
                "symbol": "BTCUSDT",
                "side": "Buy",
                "entry_time": "2025-06-01 12:00:00.123456",
                "entry_price": 100.5,
                "quantity": 2.0,
                "position_size_usd": 201.0,
                "created_at": "2025-06-01 12:00:01",
                **changes,
            },
        )


@pytest.fixture
def momentum(tmp_path: Path, target: Target) -> Iterator[Momentum]:
    """The Momentum bot's file; the target knows where it is."""
    found = Momentum(tmp_path / "trading.db")
    target.bot("momentum_001")["legacy"] = {"sqlite_path": str(found.path)}
    yield found
    found.connection.close()
