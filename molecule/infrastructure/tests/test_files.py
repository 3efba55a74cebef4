"""What lies on the host: who may read it, and where no secret stands."""

from __future__ import annotations

import re
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("path", "mode", "owner"),
    [
        (".env.database", 0o600, "operator"),
        ("docker-compose.unified-db.yml", 0o644, "operator"),
        ("database", 0o755, "operator"),
        ("database/migrations", 0o755, "operator"),
        ("database/config", 0o755, "operator"),
        ("database/grafana/dashboards", 0o755, "operator"),
        ("database/grafana/datasources", 0o755, "operator"),
        ("database/backups", 0o750, "operator"),
        ("database/backups/postgres", 0o750, "operator"),
        ("database/backups/influxdb", 0o750, "operator"),
        ("database/config/postgresql.conf", 0o644, "operator"),
        ("database/config/postgres.env", 0o600, "operator"),
        ("database/config/redis.env", 0o600, "operator"),
        ("database/config/influxdb.env", 0o600, "operator"),
        ("database/config/grafana.env", 0o600, "operator"),
        ("database/config/pgbouncer.env", 0o600, "operator"),
        ("database/config/postgres-backup.env", 0o600, "operator"),
    ],
)
def test_mode_and_owner(host: Any, base: str, path: str, mode: int, owner: str) -> None:
    found = host.file(f"{base}/{path}")
    assert found.mode == mode
    assert found.user == owner


def test_pgbouncers_users_are_pgbouncers_alone(host: Any, base: str) -> None:
    found = host.file(f"{base}/database/config/userlist.txt")
    assert (found.mode, found.uid, found.gid) == (0o400, 70, 70)


def test_all_keys_are_there_and_no_two_secrets_are_equal(secrets: dict[str, str]) -> None:
    expected = {
        *("BOT_PASSWORD_SHORTSELLER_001", "BOT_PASSWORD_MOMENTUM_001", "BOT_PASSWORD_LXALGO_001"),
        *("POSTGRES_PASSWORD", "POSTGRES_SUPERUSER_PASSWORD", "PGBOUNCER_AUTH_PASSWORD", "GRAFANA_DB_PASSWORD"),
        *("BACKUP_DB_PASSWORD", "REDIS_PASSWORD", "INFLUX_USERNAME", "INFLUX_PASSWORD", "INFLUX_ORG", "INFLUX_BUCKET"),
        *("INFLUX_TOKEN", "GRAFANA_USER", "GRAFANA_PASSWORD", "GRAFANA_ROOT_URL"),
    }
    assert set(secrets) == expected
    passwords = [value for key, value in secrets.items() if re.search("PASSWORD|TOKEN", key)]
    assert len(set(passwords)) == len(passwords) == 12
    assert all(re.fullmatch(r"[A-Za-z0-9]{48}", password) for password in passwords)


def test_no_secret_in_processes_commands_logs_or_open_files(host: Any, base: str, secrets: dict[str, str]) -> None:
    with host.sudo():
        places = {
            "processes": host.check_output("ps -eww -o args"),
            "commands": host.check_output(
                "docker inspect --format '{{json .Path}} {{json .Args}} {{json .Config.Healthcheck}} "
                "{{json .Config.Labels}}' $(docker ps --all --quiet)"
            ),
            "logs": host.check_output("for id in $(docker ps --all --quiet); do docker logs $id 2>&1; done"),
            "journal": host.check_output("journalctl --no-pager --quiet"),
            "readable files": host.check_output(
                "find %s/database %s/*.yml -type f -perm /044 -exec cat {} +", base, base
            ),
            "statistics": host.check_output(
                "docker exec trading_postgres psql -XAtq -U postgres -d trading_db -c 'SELECT query FROM pg_stat_statements'"
            ),
        }
    found = [
        (place, key)
        for place, text in places.items()
        for key, secret in secrets.items()
        if re.search("PASSWORD|TOKEN", key) and secret in text
    ]
    assert not found


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("docker-compose -f docker-compose.unified-db.yml up -d postgres redis influxdb", ""),
        ("docker-compose -f docker-compose.unified-db.yml ps", r"trading_postgres .*\(healthy\)"),
        ("docker-compose -f docker-compose.unified-db.yml logs postgres", "database system is ready to accept"),
        ("docker-compose -f docker-compose.unified-db.yml logs redis", "Ready to accept connections"),
        ("docker-compose -f docker-compose.unified-db.yml logs influxdb", "trading_influxdb"),
        (r'docker exec -it trading_postgres psql -U trading_user -d trading_db -c "\dt trading.*"', "trading"),
        ("docker exec -it trading_redis redis-cli -a $REDIS_PASSWORD ping", "PONG"),
        ("docker exec -it trading_influxdb influx ping", "OK"),
        ("docker exec trading_postgres_backup /backup.sh", r"/backups/trading_db_\w+\.dump \d+ bytes"),
        ("python --version", r"Python 3\."),
    ],
)
def test_guides_command_works_as_printed(host: Any, base: str, command: str, shown: str) -> None:
    """Steps 1.5, 1.6 and 5.5, in a terminal, after `source .env.database` as the guide says."""
    ids = "docker ps --filter label=com.docker.compose.project=unified_db --quiet | sort"
    before = host.check_output(ids)
    script = f"cd {base} && source .env.database && {command}"
    result = host.run("script --quiet --return --command %s /dev/null", f"bash -c {quoted(script)}")
    assert result.rc == 0, result.stdout
    assert re.search(shown, result.stdout)
    assert host.check_output(ids) == before


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
