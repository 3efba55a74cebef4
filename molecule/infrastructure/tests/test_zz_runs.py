"""Later runs on a finished host: bad input, a changed setting, drift."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PHASE1 = "playbooks/phase1_infrastructure.yml"
IDS = "docker ps --all --filter label=com.docker.compose.project=unified_db --format '{{.Names}} {{.ID}}'"


def containers(host: Any) -> dict[str, str]:
    return dict(line.split() for line in host.check_output(IDS).splitlines())


@contextmanager
def spoiled(host: Any, base: str, edit: str) -> Iterator[None]:
    """.env.database after an edit by sed, put back at the end."""
    host.check_output(
        "cd %s && cp --preserve=all .env.database /tmp/env.kept && sed --in-place %s .env.database", base, edit
    )
    try:
        yield
    finally:
        host.check_output("mv /tmp/env.kept %s/.env.database", base)


@pytest.mark.parametrize(
    ("edit", "promised"),
    [
        ("/^REDIS_PASSWORD=/d", r"Missing or empty: REDIS_PASSWORD\. Expected a line KEY='value'"),
        ("s/^INFLUX_TOKEN=.*/INFLUX_TOKEN=''/", r"Missing or empty: INFLUX_TOKEN\."),
        ("s/^REDIS_PASSWORD=.*/REDIS_PASSWORD/", r"Not of the form KEY=value: REDIS_PASSWORD\."),
        (
            "s/^POSTGRES_PASSWORD=.*/POSTGRES_PASSWORD='anotherone'/",
            r"POSTGRES_PASSWORD in \S+ does not open the running",
        ),
        (
            "s/^BOT_PASSWORD_MOMENTUM_001=.*/BOT_PASSWORD_MOMENTUM_001='anotherone'/",
            r"BOT_PASSWORD_MOMENTUM_001 in \S+ does",
        ),
        ("/^BOT_PASSWORD_MOMENTUM_001=/d", r"BOT_PASSWORD_MOMENTUM_001 is missing in \S+ but the bot has a role"),
        ("s/^BACKUP_DB_PASSWORD=.*/BACKUP_DB_PASSWORD='anotherone'/", r"BACKUP_DB_PASSWORD in \S+ does not open"),
        ("s/^REDIS_PASSWORD=.*/REDIS_PASSWORD='anotherone'/", r"REDIS_PASSWORD in \S+ does not open the running"),
        ("s/^INFLUX_TOKEN=.*/INFLUX_TOKEN='anotherone'/", r"INFLUX_TOKEN in \S+ does not open the running"),
    ],
)
def test_spoiled_secret_is_named_and_nothing_is_changed(
    host: Any, base: str, play: Any, state: Any, edit: str, promised: str
) -> None:
    with spoiled(host, base, edit):
        before = state()
        run = play(PHASE1)
        assert run.code != 0
        assert re.search(promised, run.text)
        assert run.changed == frozenset()
        assert state() == before


def test_lost_secrets_are_not_made_up_beside_their_database(host: Any, base: str, play: Any) -> None:
    host.check_output("mv %s/.env.database /tmp/env.kept", base)
    try:
        run = play(PHASE1)
        assert run.code != 0
        assert "does not exist but the Docker volume unified_db_postgres_data does" in run.text
        assert not host.file(f"{base}/.env.database").exists
    finally:
        host.check_output("mv /tmp/env.kept %s/.env.database", base)


def test_provided_secret_that_differs_is_refused(play: Any, state: Any) -> None:
    before = state()
    run = play(PHASE1, secrets_provided={"GRAFANA_PASSWORD": "somethingelse"})
    assert run.code != 0
    assert "GRAFANA_PASSWORD in secrets_provided differs" in run.text
    assert "somethingelse" not in run.text.replace('"somethingelse"', "")
    assert state() == before


@pytest.mark.parametrize(
    ("role", "variables", "promised"),
    [
        ("postgresql", {"postgresql_settings": {"work_mem": "plenty"}}, 'invalid value for parameter "work_mem"'),
        (
            "postgresql",
            {"postgresql_settings": {"no_such_setting": 1}},
            'unrecognized configuration parameter "no_such',
        ),
        ("redis", {"redis_settings": {"no-such-directive": 1}}, "no-such-directive 1"),
        ("pgbouncer", {"pgbouncer_query_wait_timeout": -1}, "query_wait_timeout"),
    ],
)
def test_server_refuses_its_file_before_it_lands(
    play: Any, state: Any, role: str, variables: dict[str, Any], promised: str
) -> None:
    before = state()
    run = play(PHASE1, "--tags", role, **variables)
    assert run.code != 0
    assert promised in run.text
    assert "so it was not put in place" in run.text
    assert state() == before


def test_drift_a_changed_setting_and_a_fourth_bot_are_announced_and_mended_alone(
    host: Any, base: str, play: Any, state: Any, facts: dict[str, Any], client: Any, secrets: dict[str, str]
) -> None:
    wanted = {"redis_maxmemory": "256mb", "bots": [*facts["bots"], {"id": "fourth_001", "folder": "fourth"}]}
    superuser = "docker exec trading_postgres psql -XAtq -U postgres -d trading_db -c %s"
    host.check_output("chmod 0755 %s/database/backups", base)
    host.check_output("docker stop trading_pgbouncer")
    host.check_output(superuser, "ALTER ROLE trading_user SUPERUSER")
    host.check_output(superuser, "GRANT EXECUTE ON FUNCTION pgbouncer.get_auth(text) TO PUBLIC")
    kept = containers(host)
    before = state()

    announced = play(PHASE1, "--check", "--diff", **wanted)
    assert announced.code == 0
    assert state() == before

    run = play(PHASE1, **wanted)
    assert run.code == 0
    assert run.changed == announced.changed
    assert run.changed == {
        "Create the folders that are closed to other users",
        "Write .env.database",
        "Render pgbouncer.ini",
        "Render redis.conf",
        "Render docker-compose.unified-db.yml",
        "Start postgres, redis, influxdb",
        "Create the roles that log in",
        "Create the bots' roles",
        "Let each bot be one of the bots",
        "Grant what each role needs and nobody else has",
        "Start pgbouncer, grafana, postgres-backup",
    }
    now = containers(host)
    assert {name for name in now if now[name] != kept[name]} == {"trading_redis", "trading_pgbouncer"}
    written = dict(re.findall(r"^([A-Z0-9_]+)='(.*)'$", host.check_output("cat %s/.env.database", base), re.MULTILINE))
    password = written.pop("BOT_PASSWORD_FOURTH_001")
    assert written == secrets
    assert client("pgbouncer:6432", "fourth_001", password).stdout == "fourth_001\n"
    assert host.check_output(superuser, "SELECT rolsuper FROM pg_roles WHERE rolname = 'trading_user'") == "f"
    shown = host.check_output(
        "docker exec -e REDISCLI_AUTH=%s trading_redis redis-cli config get maxmemory", secrets["REDIS_PASSWORD"]
    )
    assert shown.split()[1] == str(256 * 1024 * 1024)

    # A bot that left the inventory is named, and not shut out.
    again = play(PHASE1, "--tags", "postgresql")
    assert again.code == 0
    assert "fourth_001 logs in as one of the bots but is not in the inventory" in again.text
    assert again.changed == frozenset()
    assert client("pgbouncer:6432", "fourth_001", password).stdout == "fourth_001\n"
