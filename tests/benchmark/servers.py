"""The servers of the benchmark: trading_db as production runs it, and pgloader."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import docker
import jinja2
import psycopg2
import yaml

from tests.benchmark.process import Step, run
from tests.database.conftest import BOTS, LEGACY_FILES, PASSWORD, ROOT, Server, copy_migrations
from tests.database.conftest import server as fast_server

LABELS = {"trading.testbed": "benchmark"}
TEMPLATE = "benchmark_template"
PGLOADER_IMAGE = "trading-benchmark-pgloader:latest"
PGLOADER_BASE = "debian:trixie-slim"
# Where pgloader's container has the scratch folder.
SCRATCH = "/benchmark"


def load(path: str) -> dict[str, Any]:
    """A YAML file of the project."""
    content: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())
    return content


def production_settings() -> str:
    """postgresql.conf as the role renders it with its defaults."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates/postgresql"),
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["combine"] = lambda settings, changes: {**settings, **changes}
    variables = load("roles/postgresql/defaults/main.yml") | load("roles/postgresql/vars/main.yml")
    return environment.get_template("postgresql.conf.j2").render(variables)


@contextmanager
def target_server(scratch: Path) -> Iterator[Server]:
    """trading_db's server with production's settings, memory limit and log
    rotation, and a template database: unified schema, bots registered."""
    migrations = scratch / "migrations"
    migrations.mkdir()
    copy_migrations(migrations)
    settings = scratch / "postgresql.conf"
    settings.write_text(production_settings())
    services = load("roles/unified_services/defaults/main.yml")
    with container(
        load("inventory/production/group_vars/all/platform.yml")["images"]["postgres"],
        ["postgres", "-c", "config_file=/etc/postgresql/postgresql.conf"],
        environment={"POSTGRES_PASSWORD": PASSWORD, "POSTGRES_INITDB_ARGS": "--locale=C.UTF-8 --encoding=UTF8"},
        volumes={
            str(migrations): {"bind": "/migrations", "mode": "ro"},
            str(settings): {"bind": "/etc/postgresql/postgresql.conf", "mode": "ro"},
        },
        ports={"5432/tcp": ("127.0.0.1", None)},
        shm_size="256m",
        mem_limit=services["unified_services_memory"]["postgres"],
        log_config=docker.types.LogConfig(
            type="json-file",
            config={
                "max-size": str(services["unified_services_log_max_size"]),
                "max-file": str(services["unified_services_log_max_files"]),
            },
        ),
    ) as started:
        found = wait_for(started, migrations)
        found.execute(
            "postgres",
            f"CREATE ROLE trading_user LOGIN PASSWORD '{PASSWORD}'",
            f"CREATE DATABASE {TEMPLATE} OWNER trading_user",
        )
        psql(found, TEMPLATE, migrations / "001_unified_schema.sql")
        for bot in BOTS:
            found.execute(
                TEMPLATE,
                "INSERT INTO trading.bots (bot_id, bot_name, bot_type, initial_capital)"
                f" VALUES ('{bot['bot_id']}', '{bot['bot_name']}', '{bot['bot_type']}', {bot['initial_capital']})",
            )
        yield found


@contextmanager
def container(image: str, command: list[str], **options: Any) -> Iterator[Any]:
    """A container that is gone afterwards. `make clean` finds by its label what a killed run left behind."""
    client = docker.from_env()
    name = f"trading-benchmark-{uuid.uuid4().hex[:8]}"
    try:
        yield client.containers.run(image, command, name=name, labels=LABELS, detach=True, **options)
    finally:
        # By its name: an interruption may come while it starts.
        for left in client.containers.list(all=True, filters={"name": name}):
            left.remove(force=True, v=True)
        client.close()


def wait_for(started: Any, migrations: Path) -> Server:
    """The server in a container that has just been started."""
    deadline = time.monotonic() + 60
    while True:
        started.reload()
        if published := started.ports.get("5432/tcp"):
            found = Server(started.name, int(published[0]["HostPort"]), migrations)
            try:
                found.connect("postgres").close()
                return found
            except psycopg2.OperationalError:
                pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"{started.name} does not answer:\n{started.logs().decode()}")
        time.sleep(0.2)


@contextmanager
def legacy_server(scratch: Path) -> Iterator[Server]:
    """The Shortseller's server, with a template of its empty schema."""
    with fast_server("postgres:14", "trading_user", scratch) as found:
        run(psql_command(found, "postgres", "-c", "CREATE DATABASE legacy_template"))
        psql(found, "legacy_template", LEGACY_FILES / "shortseller/init-db.sql")
        yield found


@contextmanager
def pgloader(scratch: Path) -> Iterator[str]:
    """The name of a container that has pgloader, the host's network and the scratch folder."""
    folder = Path(__file__).parent / "pgloader"
    # `make clean` finds the image by this label.
    label = "trading.testbed.recipe=benchmark"
    run(
        [
            "docker",
            "build",
            "--quiet",
            "--tag",
            PGLOADER_IMAGE,
            "--label",
            label,
            "--build-arg",
            f"BASE={PGLOADER_BASE}",
            str(folder),
        ]
    )
    options = {"network_mode": "host", "volumes": {str(scratch): {"bind": SCRATCH, "mode": "rw"}}, "init": True}
    with container(PGLOADER_IMAGE, ["sleep", "infinity"], **options) as started:
        yield started.name


def psql_command(server: Server, database: str, *options: str) -> list[str]:
    """psql inside the server's container, as trading_user."""
    return ["docker", "exec", "-i", server.container, "psql", "-q", "-U", "trading_user", "-d", database, *options]


def psql(server: Server, database: str, file: Path, **variables: object) -> Step:
    """Run a SQL file; there is no limit of time, as in Server.psql."""
    options = [option for name, value in variables.items() for option in ("-v", f"{name}={value}")]
    step, _ = run(psql_command(server, database, *options), stdin=file)
    return step


def address(server: Server) -> str:
    """The container's own address, at which the playbooks reach it: no route is to pay for Docker's proxy."""
    with closing(docker.from_env()) as client:
        networks = client.containers.get(server.container).attrs["NetworkSettings"]["Networks"]
    return str(next(iter(networks.values()))["IPAddress"])


def server_version(server: Server) -> str:
    """Such as 17.6."""
    done = subprocess.run(
        psql_command(server, "postgres", "-At", "-c", "SHOW server_version"), check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
