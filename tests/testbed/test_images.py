"""Images keep what the documentation of the official ones promises.

Nothing here depends on where an image comes from: with a registry the same
tests run on the official images. Needs a Docker Engine and the images of
tests/testbed/prepare.yml.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGES: dict[str, str] = yaml.safe_load((ROOT / "inventory/production/group_vars/all/platform.yml").read_text())[
    "images"
]
POSTGRES = [IMAGES["postgres"], "postgres:14"]
REDIS = [IMAGES["redis"], "redis:6-alpine"]
PASSWORD = "correct horse"
# What a service that starts as root needs to hand its data to its own account.
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID")


def docker(*arguments: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, text=True, timeout=120)
    if check:
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done


def eventually(succeeds: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not succeeds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


class Container:
    """A container of these tests."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = [part for key, value in environment.items() for part in ("--env", f"{key}={value}")]
        return docker("exec", *settings, self.name, *command, check=check)

    def psql(self, query: str, user: str = "postgres", database: str = "postgres", check: bool = True) -> str:
        done = self.run("psql", "-XAtq", "-U", user, "-d", database, "-c", query, check=check)
        return done.stdout.strip()

    def answers(self, *command: str) -> Callable[[], bool]:
        return lambda: self.run(*command, check=False).returncode == 0

    @property
    def logs(self) -> str:
        done = docker("logs", self.name)
        return done.stdout + done.stderr

    @property
    def users(self) -> set[str]:
        """Numeric ids of the accounts its processes run under."""
        return set(docker("top", self.name, "-eo", "uid,pid").stdout.split()[2::2])

    def stop(self) -> None:
        """Stop by the image's own signal: SIGKILL, which follows, leaves 137."""
        docker("stop", "--time", "60", self.name)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", self.name).stdout.strip() != "137", self.logs


class Bench:
    """A network, and containers that are removed with it."""

    def __init__(self) -> None:
        self.name = f"trading-testbed-images-{uuid.uuid4().hex[:8]}"
        docker("network", "create", self.name)

    def start(self, image: str, *command: str, options: tuple[str, ...] = (), **environment: str) -> Container:
        name = f"{self.name}-{uuid.uuid4().hex[:6]}"
        settings = [part for key, value in environment.items() for part in ("--env", f"{key}={value}")]
        docker(
            "run",
            "--detach",
            "--name",
            name,
            "--label",
            self.name,
            "--network",
            self.name,
            *settings,
            *options,
            image,
            *command,
        )
        return Container(name)

    def refuse(self, image: str, *command: str, options: tuple[str, ...] = (), **environment: str) -> str:
        """What a container said that was expected to stop by itself with an error."""
        container = self.start(image, *command, options=options, **environment)
        code = docker("wait", container.name).stdout.strip()
        assert code != "0", container.logs
        return container.logs

    def close(self) -> None:
        names = docker("ps", "--all", "--quiet", "--filter", f"label={self.name}").stdout.split()
        if names:
            docker("rm", "--force", "--volumes", *names)
        docker("network", "rm", self.name)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    try:
        yield bench
    finally:
        bench.close()


def write(path: Path, text: str | bytes, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o755)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def mount(source: Path, target: str) -> tuple[str, str]:
    return ("--volume", f"{source}:{target}:ro")


@pytest.fixture(scope="module")
def postgres(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Container]:
    """A server of each major, initialised in every way the documentation names."""
    folder = tmp_path_factory.mktemp("postgres")
    secret = write(folder / "secret", f"{PASSWORD}\n")
    config = write(
        folder / "postgresql.conf",
        "listen_addresses = '*'\nshared_preload_libraries = 'pg_stat_statements'\nwork_mem = 5MB\n",
    )
    write(folder / "init/1_plain.sql", "CREATE TABLE steps (step text); INSERT INTO steps VALUES ('sql');")
    write(folder / "init/2_packed.sql.gz", gzip.compress(b"INSERT INTO steps VALUES ('sql.gz');"))
    insert = """psql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "INSERT INTO steps VALUES ('%s')"\n"""
    write(folder / "init/3_run.sh", "#!/bin/sh\nset -e\n" + insert % "run", 0o755)
    write(folder / "init/4_sourced.sh", insert % "sourced")
    write(folder / "init/5_ignored.txt", "not SQL")
    options = (
        *mount(secret, "/run/secrets/password"),
        *mount(config, "/etc/postgresql/postgresql.conf"),
        *mount(folder / "init", "/docker-entrypoint-initdb.d"),
        *("--cap-drop", "ALL"),
        *(part for name in CAPABILITIES for part in ("--cap-add", name)),
        *("--security-opt", "no-new-privileges"),
    )

    def start(image: str) -> Container:
        return bench.start(
            image,
            *("postgres", "-c", "config_file=/etc/postgresql/postgresql.conf"),
            options=options,
            POSTGRES_PASSWORD_FILE="/run/secrets/password",
            POSTGRES_USER="owner",
            POSTGRES_DB="market",
            POSTGRES_INITDB_ARGS="--locale=C.UTF-8 --data-checksums",
        )

    with ThreadPoolExecutor() as pool:
        containers = dict(zip(POSTGRES, pool.map(start, POSTGRES), strict=True))
    for container in containers.values():
        # The server that initialises does not listen on the network.
        eventually(container.answers("pg_isready", "-h", "127.0.0.1"), "PostgreSQL answers")
    return containers


@pytest.mark.parametrize("image", POSTGRES)
def test_postgres_is_initialised_from_its_environment(postgres: dict[str, Container], image: str) -> None:
    server = postgres[image]
    assert (
        server.psql("SELECT string_agg(step, ' ' ORDER BY ctid) FROM steps", "owner", "market")
        == "sql sql.gz run sourced"
    )
    assert server.psql("SHOW data_checksums", "owner", "market") == "on"
    collation = "SELECT datcollate FROM pg_database WHERE datname = 'market'"
    assert server.psql(collation, "owner", "market") == "C.UTF-8"
    assert server.psql("SELECT rolsuper FROM pg_roles WHERE rolname = 'owner'", "owner", "market") == "t"
    assert "PostgreSQL init process complete" in server.logs


@pytest.mark.parametrize("image", POSTGRES)
def test_postgres_takes_options_and_has_its_contrib(postgres: dict[str, Container], image: str) -> None:
    server = postgres[image]
    assert server.psql("SHOW work_mem", "owner", "market") == "5MB"
    assert server.psql("SHOW config_file", "owner", "market") == "/etc/postgresql/postgresql.conf"
    assert server.psql("SHOW data_directory", "owner", "market") == "/var/lib/postgresql/data"
    server.psql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements", "owner", "market")
    assert int(server.psql("SELECT count(*) FROM pg_stat_statements", "owner", "market")) >= 0


@pytest.mark.parametrize("image", POSTGRES)
def test_postgres_runs_as_its_own_account(postgres: dict[str, Container], image: str) -> None:
    assert postgres[image].users == {"999"}
    assert postgres[image].run("stat", "-c", "%u %a", "/var/lib/postgresql/data").stdout.strip() == "999 700"


@pytest.mark.parametrize("image", POSTGRES)
def test_postgres_asks_the_network_for_a_password(bench: Bench, postgres: dict[str, Container], image: str) -> None:
    server = postgres[image]
    elsewhere = next(other for name, other in postgres.items() if name != image)
    login = ("psql", "-XAt", "-h", server.name, "-U", "owner", "-d", "market", "-c", "SELECT 1")
    assert elsewhere.run(*login, PGPASSWORD=PASSWORD).stdout.strip() == "1"
    refused = elsewhere.run(*login, check=False, PGPASSWORD="wrong")
    assert "password authentication failed" in refused.stderr
    rule = server.run("tail", "-n1", "/var/lib/postgresql/data/pg_hba.conf").stdout
    assert rule.split() == ["host", "all", "all", "all", "scram-sha-256"]
    assert (
        server.psql("SELECT rolpassword ~ '^SCRAM-SHA-256' FROM pg_authid WHERE rolname = 'owner'", "owner", "market")
        == "t"
    )


@pytest.mark.parametrize("image", POSTGRES)
def test_postgres_brings_the_tools_of_its_version(postgres: dict[str, Container], image: str) -> None:
    server = postgres[image]
    major = server.psql("SHOW server_version", "owner", "market").split(".")[0]
    for tool in ("psql", "pg_dump", "pg_restore", "pg_dumpall", "pg_basebackup", "pg_isready", "postgres", "initdb"):
        assert f" {major}." in server.run(tool, "--version").stdout
    dump = "pg_dump -Fc -U owner market | pg_restore --list | grep -c 'TABLE DATA public steps'"
    assert server.run("bash", "-o", "pipefail", "-c", dump).stdout.strip() == "1"


@pytest.mark.parametrize("image", POSTGRES)
def test_postgres_refuses_to_start_without_a_password(bench: Bench, image: str) -> None:
    assert "superuser password is not specified" in bench.refuse(image)
    both = bench.refuse(image, POSTGRES_PASSWORD="x", POSTGRES_PASSWORD_FILE="/run/secrets/password")
    assert "both POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are set" in both


def test_postgres_stops_where_an_init_file_fails(bench: Bench, tmp_path: Path) -> None:
    write(tmp_path / "init/1_wrong.sql", "SELECT 1/0;")
    options = mount(tmp_path / "init", "/docker-entrypoint-initdb.d")
    assert "division by zero" in bench.refuse(IMAGES["postgres"], options=options, POSTGRES_PASSWORD=PASSWORD)


def test_postgres_accepts_trust_and_a_given_account(bench: Bench) -> None:
    server = bench.start(
        IMAGES["postgres"],
        options=("--user", "999:999", "--cap-drop", "ALL"),
        POSTGRES_HOST_AUTH_METHOD="trust",
    )
    eventually(server.answers("pg_isready", "-h", "127.0.0.1"), "PostgreSQL answers")
    assert server.run("psql", "-XAt", "-h", server.name, "-U", "postgres", "-c", "SELECT 1").stdout.strip() == "1"
    assert server.psql("SHOW listen_addresses") == "*"


def test_postgres_stops_at_once_and_keeps_its_data(bench: Bench) -> None:
    server = bench.start(IMAGES["postgres"], POSTGRES_PASSWORD=PASSWORD)
    eventually(server.answers("pg_isready", "-h", "127.0.0.1"), "PostgreSQL answers")
    server.psql("CREATE TABLE kept (id int)")
    # A client that stays connected must not hold up a stop by SIGINT.
    docker("exec", "--detach", server.name, "psql", "-U", "postgres", "-c", "SELECT pg_sleep(600)")
    eventually(
        lambda: server.psql("SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep'") == "1", "a client"
    )
    server.stop()
    assert server.logs.rstrip().endswith("database system is shut down")
    docker("start", server.name)
    eventually(server.answers("pg_isready", "-h", "127.0.0.1"), "PostgreSQL answers")
    assert "Skipping initialization" in server.logs
    assert server.psql("SELECT count(*) FROM kept") == "0"


def test_postgres_runs_other_commands_as_they_are() -> None:
    command = ("run", "--rm", IMAGES["postgres"])
    assert docker(*command, "postgres", "--version").stdout.startswith("postgres (PostgreSQL) 17.")
    assert docker(*command, "psql", "--version").stdout.startswith("psql (PostgreSQL) 17.")
    image = json.loads(docker("image", "inspect", IMAGES["postgres"]).stdout)[0]["Config"]
    assert "/var/lib/postgresql/data" in image["Volumes"]
    assert image["StopSignal"] == "SIGINT"


def redis_answer(client: Container, server: Container, *command: str, **environment: str) -> str:
    return client.run("redis-cli", "-h", server.name, *command, check=False, **environment).stdout.strip()


@pytest.mark.parametrize("image", REDIS)
def test_redis_without_configuration(bench: Bench, image: str) -> None:
    server = bench.start(image)
    client = bench.start(image, "sleep", "infinity")
    eventually(server.answers("redis-cli", "ping"), "Redis answers")
    assert redis_answer(client, server, "ping") == "PONG"
    assert server.users == {"999"}
    assert server.run("pwd").stdout.strip() == "/data"
    server.stop()


@pytest.mark.parametrize("image", REDIS)
def test_redis_with_options_keeps_its_data(bench: Bench, image: str) -> None:
    server = bench.start(image, "redis-server", "--appendonly", "yes")
    eventually(server.answers("redis-cli", "ping"), "Redis answers")
    server.run("redis-cli", "set", "state", "kept")
    server.stop()
    docker("start", server.name)
    eventually(server.answers("redis-cli", "ping"), "Redis answers")
    assert server.run("redis-cli", "get", "state").stdout.strip() == "kept"


@pytest.mark.parametrize("image", REDIS)
def test_redis_with_a_configuration_file(bench: Bench, image: str, tmp_path: Path) -> None:
    config = write(tmp_path / "redis.conf", f'requirepass "{PASSWORD}"\nmaxmemory 64mb\n')
    options = (
        *mount(config, "/usr/local/etc/redis/redis.conf"),
        *("--cap-drop", "ALL"),
        *(part for name in CAPABILITIES for part in ("--cap-add", name)),
    )
    server = bench.start(image, "redis-server", "/usr/local/etc/redis/redis.conf", options=options)
    client = bench.start(image, "sleep", "infinity")
    eventually(lambda: "NOAUTH" in redis_answer(client, server, "ping"), "Redis asks for a password")
    assert redis_answer(client, server, "ping", REDISCLI_AUTH="wrong") != "PONG"
    assert redis_answer(client, server, "ping", REDISCLI_AUTH=PASSWORD) == "PONG"
    assert redis_answer(client, server, "config", "get", "maxmemory", REDISCLI_AUTH=PASSWORD).split()[1] == str(
        64 << 20
    )


@pytest.mark.parametrize("image", REDIS)
def test_redis_reads_its_configuration_from_standard_input(bench: Bench, image: str) -> None:
    script = f"printf 'requirepass \"{PASSWORD}\"\\nappendonly yes\\n' | redis-server -"
    server = bench.start(image, "sh", "-c", script)
    client = bench.start(image, "sleep", "infinity")
    eventually(lambda: "NOAUTH" in redis_answer(client, server, "ping"), "Redis asks for a password")
    assert redis_answer(client, server, "config", "get", "appendonly", REDISCLI_AUTH=PASSWORD).split() == [
        "appendonly",
        "yes",
    ]


def test_redis_refuses_a_wrong_configuration(bench: Bench, tmp_path: Path) -> None:
    config = write(tmp_path / "redis.conf", "maxmemory lots\n")
    said = bench.refuse(IMAGES["redis"], "/redis.conf", options=mount(config, "/redis.conf"))
    assert "FATAL CONFIG FILE ERROR" in said


def test_redis_keeps_protected_mode_where_it_is_asked_for(bench: Bench, tmp_path: Path) -> None:
    config = write(tmp_path / "redis.conf", "bind 0.0.0.0\nprotected-mode yes\n")
    server = bench.start(IMAGES["redis"], "redis-server", "/redis.conf", options=mount(config, "/redis.conf"))
    client = bench.start(IMAGES["redis"], "sleep", "infinity")
    eventually(server.answers("redis-cli", "ping"), "Redis answers")
    assert "DENIED" in redis_answer(client, server, "ping")


def test_pgbouncer_pools_by_its_mounted_configuration(
    bench: Bench, postgres: dict[str, Container], tmp_path: Path
) -> None:
    server = postgres[IMAGES["postgres"]]
    secret = server.psql("SELECT rolpassword FROM pg_authid WHERE rolname = 'owner'", "owner", "market")
    # The server accepts a login with the client's own SCRAM keys only if both know the same secret.
    users = write(tmp_path / "userlist.txt", f'"owner" "{secret}"\n', 0o444)
    config = write(
        tmp_path / "pgbouncer.ini",
        f"[databases]\n* = host={server.name} port=5432\n[pgbouncer]\nlisten_addr = *\nlisten_port = 6432\n"
        "auth_type = scram-sha-256\nauth_file = /etc/pgbouncer/userlist.txt\npool_mode = transaction\n",
    )
    options = (
        *mount(users, "/etc/pgbouncer/userlist.txt"),
        *mount(config, "/etc/pgbouncer/pgbouncer.ini"),
        *("--user", "70:70", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    )
    pooler = bench.start(IMAGES["pgbouncer"], options=options)
    eventually(pooler.answers("pg_isready", "-h", "127.0.0.1", "-p", "6432"), "PgBouncer answers")
    login = (
        "psql",
        "-XAt",
        "-h",
        pooler.name,
        "-p",
        "6432",
        "-U",
        "owner",
        "-d",
        "market",
        "-c",
        "SELECT count(*) FROM steps",
    )
    assert server.run(*login, PGPASSWORD=PASSWORD).stdout.strip() == "4"
    assert server.run(*login, check=False, PGPASSWORD="wrong").returncode != 0
    assert pooler.run("psql", "--version").stdout.startswith("psql")
    assert pooler.users == {"70"}
    pooler.stop()


def test_pgbouncer_is_its_own_account_and_needs_a_configuration(bench: Bench) -> None:
    identity = docker("run", "--rm", "--entrypoint", "id", IMAGES["pgbouncer"]).stdout
    assert identity.startswith("uid=70(postgres) gid=70(postgres)")
    assert bench.refuse(IMAGES["pgbouncer"])


def test_influxdb_is_set_up_from_its_environment(bench: Bench) -> None:
    settings = {
        "MODE": "setup", "USERNAME": "admin", "PASSWORD": PASSWORD, "ORG": "trading_org",
        "BUCKET": "market_data", "RETENTION": "90d", "ADMIN_TOKEN": "a-token",
    }  # fmt: skip
    environment = {f"DOCKER_INFLUXDB_INIT_{key}": value for key, value in settings.items()}
    server = bench.start(IMAGES["influxdb"], options=(), **environment)
    eventually(server.answers("influx", "bucket", "list", "--name", "market_data"), "InfluxDB is set up", seconds=60)
    assert server.run("influx", "ping").stdout.strip() == "OK"
    found = json.loads(server.run("influx", "bucket", "list", "--json", "--name", "market_data").stdout)
    assert found[0]["retentionRules"][0]["everySeconds"] == 90 * 86400
    assert server.run("influx", "bucket", "list", "--token", "wrong", check=False).returncode != 0
    assert server.users == {"1000"}
    server.stop()


def test_influxdb_refuses_a_short_password(bench: Bench) -> None:
    settings = {"MODE": "setup", "USERNAME": "admin", "PASSWORD": "short", "ORG": "o", "BUCKET": "b"}
    environment = {f"DOCKER_INFLUXDB_INIT_{key}": value for key, value in settings.items()}
    said = bench.refuse(IMAGES["influxdb"], options=(), **environment)
    assert "passwords must be between 8 and 72 characters long" in said


def grafana_call(server: Container, path: str, password: str = PASSWORD) -> Any:
    done = server.run("curl", "--silent", "--user", f"admin:{password}", f"http://localhost:3000{path}")
    return json.loads(done.stdout)


def test_grafana_reaches_its_data_source(bench: Bench, postgres: dict[str, Container], tmp_path: Path) -> None:
    database = postgres[IMAGES["postgres"]]
    source = {
        "type": "postgres", "access": "proxy", "url": f"{database.name}:5432", "user": "owner",
        "jsonData": {"database": "market", "sslmode": "disable"},
    }  # fmt: skip
    sources = [
        source | {"name": "right", "uid": "right", "secureJsonData": {"password": "$DB_PASSWORD"}},
        source | {"name": "wrong", "uid": "wrong", "secureJsonData": {"password": "wrong"}},
    ]
    write(tmp_path / "datasources/all.yml", yaml.safe_dump({"apiVersion": 1, "datasources": sources}))
    server = bench.start(
        IMAGES["grafana"],
        options=mount(tmp_path / "datasources", "/etc/grafana/provisioning/datasources"),
        GF_SECURITY_ADMIN_PASSWORD=PASSWORD,
        DB_PASSWORD=PASSWORD,
    )
    health = ("wget", "-q", "-O-", "http://localhost:3000/api/health")
    eventually(server.answers(*health), "Grafana answers", seconds=60)
    assert json.loads(server.run(*health).stdout)["database"] == "ok"
    assert grafana_call(server, "/api/datasources/uid/right/health") == {
        "status": "OK",
        "message": "Database Connection OK",
    }
    assert grafana_call(server, "/api/datasources/uid/wrong/health")["status"] != "OK"
    assert "nvalid username or password" in grafana_call(server, "/api/org", password="wrong")["message"]
    assert server.users == {"472"}
    server.stop()


def test_grafana_refuses_a_provisioning_file_that_is_not_yaml(bench: Bench, tmp_path: Path) -> None:
    write(tmp_path / "datasources/all.yml", "datasources: [")
    options = mount(tmp_path / "datasources", "/etc/grafana/provisioning/datasources")
    assert "all.yml" in bench.refuse(IMAGES["grafana"], options=options)


@pytest.mark.parametrize("name", [*IMAGES.values(), "postgres:14", "redis:6-alpine", "python:3.11-slim"])
def test_what_is_not_official_says_so(name: str) -> None:
    labels = json.loads(docker("image", "inspect", name).stdout)[0]["Config"]["Labels"] or {}
    if "trading.testbed.recipe" not in labels:
        pytest.skip(f"{name} is the official image")
    title = labels["org.opencontainers.image.title"]
    assert (
        ("DOUBLE" in title) == ("trading.testbed.double" in labels) == (name in (IMAGES["influxdb"], IMAGES["grafana"]))
    )
    assert "Debian" in title or "DOUBLE" in title


def test_the_base_of_the_legacy_bots_has_their_drivers() -> None:
    program = "import psycopg2, redis, sqlite3, zoneinfo; print(__import__('sys').version)"
    for command in ("python", "python3"):
        assert docker("run", "--rm", "python:3.11-slim", command, "-c", program).stdout.startswith("3.11.")
