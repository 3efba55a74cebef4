"""Real servers for the bots' client: PostgreSQL and, in front of it, PgBouncer as the role configures it.

Each test gets a trading_db of its own with the three bots registered, and may
kill either server: both come back on the ports that they had.
"""

from __future__ import annotations

import dataclasses
import os
import random
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import jinja2
import psycopg2
import pytest

from tests.benchmark.servers import load
from tests.database.conftest import BOTS, PASSWORD, ROOT, Server, Target, copy_migrations, database, server

sys.path.insert(0, str(ROOT / "files/applications"))
from trading_db import Settings, TradingDB

LABELS = {"trading.testbed": "application-tests"}
TEMPLATE = "bots_template"
BOT = "momentum_001"
# As roles/postgresql makes it.
LOOK_UP = """CREATE FUNCTION pgbouncer.get_auth(wanted text) RETURNS TABLE (usename text, passwd text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
AS 'SELECT rolname::text, rolpassword FROM pg_authid WHERE rolname = wanted AND rolcanlogin AND NOT rolsuper'"""


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody has, nor gets for a connection while their server is down."""
    found: set[int] = set()
    while len(found) < count:
        port = random.SystemRandom().randrange(20000, 30000)
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)


def pgbouncer_settings(postgres_port: int, port: int) -> str:
    """pgbouncer.ini as the role renders it with its defaults, for databases of any name, on the host's network."""
    variables = load("roles/pgbouncer/defaults/main.yml") | load("roles/pgbouncer/vars/main.yml")
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates/pgbouncer"), undefined=jinja2.StrictUndefined
    ).get_template("pgbouncer.ini.j2")
    text = template.render(variables | {"pgbouncer_database": "*", "pgbouncer_server_host": "127.0.0.1"})
    for rendered, here in (
        ("port=5432", f"port={postgres_port}"),
        ("listen_port = 6432", f"listen_port = {port}"),
        ("auth_dbname = *", "auth_dbname = postgres"),
    ):
        assert rendered in text
        text = text.replace(rendered, here)
    return text


@dataclasses.dataclass(frozen=True)
class Platform:
    """PostgreSQL and PgBouncer, which tests kill."""

    server: Server
    pgbouncer: str
    port: int

    def container(self, name: str) -> Any:
        return docker.from_env().containers.get(name)

    def kill(self, name: str) -> None:
        self.container(name).kill(signal="SIGKILL")
        self.container(name).wait()

    def start(self, name: str) -> None:
        self.container(name).start()
        self.ready()

    def ready(self) -> None:
        """Wait until a bot can connect through PgBouncer."""
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg2.connect(
                    host="127.0.0.1", port=self.port, dbname="postgres", user=BOT, password=PASSWORD, connect_timeout=5
                ).close()
                return
            except psycopg2.OperationalError as error:
                if time.monotonic() > deadline:
                    logs = self.container(self.pgbouncer).logs(tail=20).decode()
                    raise RuntimeError(f"PgBouncer does not answer ({error}):\n{logs}") from error
                time.sleep(0.1)

    def restore(self) -> None:
        """Bring back what a test has killed or paused."""
        for name in (self.server.container, self.pgbouncer):
            found = self.container(name)
            if found.status == "paused":
                found.unpause()
            elif found.status != "running":
                found.start()
        self.ready()


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The servers, and a template database with the schema, the bots' access and the bots."""
    folder = tmp_path_factory.mktemp("applications", numbered=True)
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/tmp"):
            path.chmod(0o755)
    migrations, config = folder / "migrations", folder / "pgbouncer"
    migrations.mkdir()
    config.mkdir()
    copy_migrations(migrations)
    postgres_port, port = free_ports(2)
    with server("postgres:17.6", "postgres", migrations, postgres_port) as found:
        prepare(found)
        (config / "pgbouncer.ini").write_text(pgbouncer_settings(postgres_port, port))
        (config / "userlist.txt").write_text(f'"pgbouncer_auth" "{PASSWORD}"\n')
        client = docker.from_env()
        pgbouncer = client.containers.run(
            "edoburu/pgbouncer:v1.24.1-p1",
            ["/usr/bin/pgbouncer", "/etc/pgbouncer/pgbouncer.ini"],
            name=f"trading-application-tests-{uuid.uuid4().hex[:8]}",
            network_mode="host",
            volumes={str(config): {"bind": "/etc/pgbouncer", "mode": "ro"}},
            labels=LABELS,
            detach=True,
        )
        try:
            platform = Platform(found, pgbouncer.name or "", port)
            platform.ready()
            yield platform
        finally:
            pgbouncer.remove(force=True, v=True)
            client.close()


def prepare(found: Server) -> None:
    found.execute(
        "postgres",
        f"CREATE ROLE trading_user LOGIN PASSWORD '{PASSWORD}'",
        f"CREATE ROLE pgbouncer_auth LOGIN PASSWORD '{PASSWORD}'",
        "CREATE ROLE trading_bots",
        *(f"CREATE ROLE {bot['bot_id']} LOGIN PASSWORD '{PASSWORD}' IN ROLE trading_bots" for bot in BOTS),
        "CREATE SCHEMA pgbouncer",
        LOOK_UP,
        "GRANT USAGE ON SCHEMA pgbouncer TO pgbouncer_auth",
        f"CREATE DATABASE {TEMPLATE} OWNER trading_user",
    )
    for name in ("001_unified_schema.sql", "005_bot_access.sql"):
        done = found.psql(TEMPLATE, found.migrations / name, "trading_user")
        assert done.returncode == 0, done.stderr
    for bot in BOTS:
        found.execute(
            TEMPLATE,
            "INSERT INTO trading.bots (bot_id, bot_name, bot_type, initial_capital)"
            f" VALUES ('{bot['bot_id']}', '{bot['bot_name']}', '{bot['bot_type']}', {bot['initial_capital']})",
        )
    found.execute(TEMPLATE, f"SELECT trading.register_trial('{BOT}')")


@pytest.fixture
def target(platform: Platform) -> Iterator[Target]:
    """One test's trading_db."""
    with database(platform.server, TEMPLATE) as name:
        yield Target(platform.server, name)


@pytest.fixture
def killable(platform: Platform) -> Iterator[Platform]:
    """The servers, for a test that kills them."""
    yield platform
    platform.restore()


@pytest.fixture
def settings(platform: Platform, target: Target, tmp_path: Path) -> Settings:
    """The Momentum bot's, through PgBouncer. Patient, so that an answer is certain where no test says otherwise."""
    return Settings(
        bot_id=BOT,
        user=BOT,
        password=PASSWORD,
        host="127.0.0.1",
        port=platform.port,
        database=target.database,
        outbox=tmp_path / "outbox",
        wait_seconds=30,
        read_seconds=30,
        instance_host="one",
    )


Opener = Callable[..., TradingDB]


@pytest.fixture
def opener(settings: Settings) -> Iterator[Opener]:
    """Opens clients with changed settings, and closes them in the end."""
    opened: list[TradingDB] = []

    def open_client(**changes: Any) -> TradingDB:
        opened.append(TradingDB(dataclasses.replace(settings, **changes)))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close(0)


@pytest.fixture
def db(opener: Opener) -> TradingDB:
    """The Momentum bot's client."""
    return opener()
