"""The services as their clients meet them."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

CONTAINERS = {
    "trading_postgres": "postgres",
    "trading_pgbouncer": "pgbouncer",
    "trading_redis": "redis",
    "trading_influxdb": "influxdb",
    "trading_grafana": "grafana",
    "trading_postgres_backup": "postgres-backup",
}
DAY = 86400

pytestmark = pytest.mark.service(*CONTAINERS)


def inspect(host: Any, container: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(host.check_output("docker inspect %s", container))
    return found[0]


@pytest.mark.parametrize("container", CONTAINERS)
def test_container_is_healthy_and_confined(host: Any, container: str) -> None:
    found = inspect(host, container)
    limits = found["HostConfig"]
    assert found["State"]["Health"]["Status"] == "healthy"
    assert found["Config"]["Labels"]["com.docker.compose.project"] == "unified_db"
    assert found["Config"]["Labels"]["com.docker.compose.service"] == CONTAINERS[container]
    assert list(found["NetworkSettings"]["Networks"]) == ["trading_network"]
    assert limits["Memory"] > 0
    assert limits["CapDrop"] == ["ALL"]
    assert not limits["CapAdd"]
    assert limits["SecurityOpt"] == ["no-new-privileges:true"]
    assert limits["ReadonlyRootfs"]
    assert limits["RestartPolicy"]["Name"] == "unless-stopped"
    assert limits["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "20m", "max-file": "5"}}
    assert found["Config"]["User"] not in ("", "0", "root")


def test_ports_are_published_on_the_loopback_only(host: Any, facts: dict[str, Any]) -> None:
    published = host.check_output(
        "docker ps --filter label=com.docker.compose.project=unified_db --format '{{.Ports}}'"
    )
    bound = set(re.findall(r"([0-9.:\[\]]+):(\d+)->", published))
    assert bound == {("127.0.0.1", str(port)) for port in facts["ports"].values()}


@pytest.mark.parametrize("server", ["postgres:5432", "pgbouncer:6432"])
class TestFromAnotherContainer:
    """The guide's postgresql.conf without listen_addresses fails all of these."""

    def test_trading_user_logs_in(self, client: Any, secrets: dict[str, str], server: str) -> None:
        assert client(server, "trading_user", secrets["POSTGRES_PASSWORD"]).stdout == "trading_user\n"

    def test_each_bot_logs_in_as_itself_and_makes_nothing(
        self, client: Any, facts: dict[str, Any], secrets: dict[str, str], server: str
    ) -> None:
        for bot in facts["bots"]:
            login = (server, bot["id"], secrets[f"BOT_PASSWORD_{bot['id'].upper()}"])
            assert client(*login).stdout == f"{bot['id']}\n"
            for what in ("SCHEMA mine", "TABLE public.mine (id int)", "TEMPORARY TABLE mine (id int)"):
                assert "permission denied" in client(*login, f"CREATE {what}").stderr

    def test_a_wrong_password_is_refused(self, client: Any, server: str) -> None:
        refused = client(server, "trading_user", "wrong")
        assert refused.rc != 0
        assert "authentication failed" in refused.stderr

    def test_no_password_is_refused(self, client: Any, server: str) -> None:
        assert client(server, "trading_user", "").rc != 0

    def test_grafana_sees_nothing_it_was_not_given(
        self, client: Any, psql: Callable[[str], str], secrets: dict[str, str], server: str
    ) -> None:
        psql("CREATE SCHEMA probe; CREATE TABLE probe.seen AS SELECT 42 AS answer")
        try:
            refused = client(server, "grafana_reader", secrets["GRAFANA_DB_PASSWORD"], "SELECT answer FROM probe.seen")
            assert "permission denied for schema probe" in refused.stderr
        finally:
            psql("DROP SCHEMA probe CASCADE")


def test_superuser_is_not_reached_through_the_pool(client: Any, secrets: dict[str, str]) -> None:
    refused = client("pgbouncer:6432", "postgres", secrets["POSTGRES_SUPERUSER_PASSWORD"])
    assert refused.rc != 0


def test_pool_is_for_transactions_and_keeps_prepared_statements(client: Any, secrets: dict[str, str]) -> None:
    shown = client(
        "pgbouncer:6432", "pgbouncer_auth", secrets["PGBOUNCER_AUTH_PASSWORD"], "SHOW DATABASES", "pgbouncer"
    )
    row = next(line for line in shown.stdout.splitlines() if line.startswith("trading_db|"))
    assert "|transaction|" in row or "|postgres|5432|" in row
    config = client("pgbouncer:6432", "pgbouncer_auth", secrets["PGBOUNCER_AUTH_PASSWORD"], "SHOW CONFIG", "pgbouncer")
    settings = dict(line.split("|")[:2] for line in config.stdout.splitlines())
    assert settings["pool_mode"] == "transaction"
    assert int(settings["max_prepared_statements"]) > 0
    assert int(settings["max_db_connections"]) < 100


def test_a_bot_that_takes_all_it_can_leaves_the_others_theirs(
    host: Any, facts: dict[str, Any], client: Any, psql: Callable[..., str], secrets: dict[str, str]
) -> None:
    """40 clients of one bot at once get its share of the pool, 10 and 2 in reserve of 40 and 10, and no more."""
    busy, other = (bot["id"] for bot in facts["bots"][:2])
    at_work = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{busy}' AND state = 'active'"
    # Longer than a bot's statement_timeout.
    sleep = "BEGIN; SET LOCAL statement_timeout = 0; SELECT pg_sleep(300)"
    many = f"for n in $(seq 40); do psql -Xqw -h pgbouncer -p 6432 -U {busy} -d trading_db -c '{sleep}' & done; wait"
    host.check_output(
        "docker run --detach --rm --name busy_bot --network trading_network -e PGPASSWORD=%s --entrypoint sh %s -c %s",
        *(secrets[f"BOT_PASSWORD_{busy.upper()}"], facts["images"]["postgres"], many),
    )
    try:
        deadline = time.monotonic() + 60
        while psql(at_work, "postgres") != "12":
            assert time.monotonic() < deadline, psql(at_work, "postgres")
            time.sleep(0.2)
        for user, key in ((other, f"BOT_PASSWORD_{other.upper()}"), ("trading_user", "POSTGRES_PASSWORD")):
            assert client("pgbouncer:6432", user, secrets[key]).stdout == f"{user}\n"
        assert psql(at_work, "postgres") == "12"
    finally:
        host.check_output("docker rm --force busy_bot")
        psql(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            f" WHERE usename = '{busy}' AND query ~ 'pg_sleep'",
            "postgres",
        )


def test_trading_user_owns_the_database_and_is_no_superuser(psql: Callable[..., str], facts: dict[str, Any]) -> None:
    rights = "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication FROM pg_roles WHERE rolname = %s"
    bots = [bot["id"] for bot in facts["bots"]]
    for role in ("trading_user", "pgbouncer_auth", "grafana_reader", "backup_reader", "trading_bots", *bots):
        assert psql(rights.replace("%s", f"'{role}'")) == "f|f|f|f", role
    assert psql("SELECT rolname FROM pg_roles WHERE rolbypassrls AND NOT rolsuper") == "backup_reader"
    assert psql("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'trading_bots'") == "f"
    assert psql("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'trading_db'") == "trading_user"
    assert psql("SELECT datcollate FROM pg_database WHERE datname = 'trading_db'") == "C.UTF-8"


def test_only_pgbouncer_looks_up_passwords(host: Any, psql: Callable[..., str]) -> None:
    assert psql("SELECT passwd LIKE 'SCRAM-SHA-256%' FROM pgbouncer.get_auth('trading_user')", "pgbouncer_auth") == "t"
    assert psql("SELECT count(*) FROM pgbouncer.get_auth('postgres')", "pgbouncer_auth") == "0"
    for user in ("trading_user", "grafana_reader", "backup_reader"):
        refused = host.run(
            "docker exec trading_postgres psql -XAtq -U %s -d trading_db -c %s",
            *(user, "SELECT passwd FROM pgbouncer.get_auth('trading_user')"),
        )
        assert "permission denied" in refused.stderr


def test_statements_are_counted(psql: Callable[..., str]) -> None:
    """The guide's query of step 4.3, with the column names of today's servers."""
    psql("SELECT 'counted', 1")
    counted = psql(
        "SELECT calls > 0 AND total_exec_time >= 0 AND mean_exec_time >= 0 FROM pg_stat_statements "
        "WHERE query = 'SELECT $1, $2' AND userid = 'trading_user'::regrole"
    )
    assert counted == "t"


def test_server_runs_with_the_guides_values(psql: Callable[..., str]) -> None:
    expected = {
        "listen_addresses": "*",
        "max_connections": "100",
        "shared_buffers": "256MB",
        "work_mem": "4MB",
        "maintenance_work_mem": "64MB",
        "effective_cache_size": "1GB",
        "wal_buffers": "16MB",
        "checkpoint_completion_target": "0.9",
        "log_statement": "mod",
        "log_min_duration_statement": "1s",
        "random_page_cost": "1.1",
        "effective_io_concurrency": "200",
        "log_duration": "off",
        "logging_collector": "off",
        "password_encryption": "scram-sha-256",
        "TimeZone": "UTC",
    }
    shown = {name: psql(f"SELECT current_setting('{name}')") for name in expected}
    assert shown == expected


def test_server_logs_where_compose_and_the_disk_have_them(host: Any, base: str, psql: Callable[..., str]) -> None:
    psql("CREATE TEMPORARY TABLE seen_in_the_log (id int)")
    logs = host.check_output("cd %s && docker-compose -f docker-compose.unified-db.yml logs postgres", base)
    assert "seen_in_the_log" in logs
    with host.sudo():
        path = host.check_output("docker inspect --format '{{.LogPath}}' trading_postgres")
        assert host.run("grep -q seen_in_the_log %s", path).rc == 0


def redis(host: Any, *words: str, password: str = "") -> str:
    return str(host.run("docker exec -e REDISCLI_AUTH=%s trading_redis redis-cli " + " ".join(words), password).stdout)


def test_redis_asks_for_the_password(host: Any, secrets: dict[str, str]) -> None:
    assert "NOAUTH" in redis(host, "ping")
    assert "NOAUTH" in redis(host, "ping", password="wrong")
    assert redis(host, "ping", password=secrets["REDIS_PASSWORD"]) == "PONG\n"


def test_redis_runs_with_the_guides_values(host: Any, secrets: dict[str, str]) -> None:
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "timeout": "300",
        "tcp-keepalive": "60",
        "maxmemory": str(512 * 1024 * 1024),
        "maxmemory-policy": "allkeys-lru",
    }
    for name, value in expected.items():
        assert redis(host, "config", "get", name, password=secrets["REDIS_PASSWORD"]).split() == [name, value]


def test_redis_keeps_its_data_over_a_restart(host: Any, secrets: dict[str, str]) -> None:
    redis(host, "set", "probe", "kept", password=secrets["REDIS_PASSWORD"])
    host.check_output("docker restart trading_redis")
    for _ in range(30):
        if redis(host, "get", "probe", password=secrets["REDIS_PASSWORD"]) == "kept\n":
            break
        host.run("sleep 0.5")
    assert redis(host, "del", "probe", password=secrets["REDIS_PASSWORD"]) == "1\n"


def status_and_body(host: Any, port: int, path: str, header: str) -> tuple[int, str]:
    """Answer to a GET on the host; the header is of the form `Name: value`."""
    code = """if True:
        import sys, urllib.error, urllib.request
        request = urllib.request.Request(sys.argv[1], headers=dict([sys.argv[2].split(": ")]))
        try:
            reply = urllib.request.urlopen(request, timeout=10)
        except urllib.error.HTTPError as refused:
            reply = refused
        print(reply.status, reply.read().decode())
    """
    printed = host.check_output("python3 -c %s %s %s", code, f"http://127.0.0.1:{port}{path}", header)
    status, body = printed.split(" ", 1)
    return int(status), body


def test_buckets_keep_what_they_should(host: Any, facts: dict[str, Any], secrets: dict[str, str]) -> None:
    path = f"/api/v2/buckets?limit=100&org={secrets['INFLUX_ORG']}"
    status, body = status_and_body(
        host, facts["ports"]["influxdb"], path, f"Authorization: Token {secrets['INFLUX_TOKEN']}"
    )
    assert status == 200
    buckets = {bucket["name"]: bucket["retentionRules"] for bucket in json.loads(body)["buckets"]}
    expected = {"market_data": 90, "ticks": 7, "portfolio_metrics": 365, "system_metrics": 30}
    assert {name: buckets[name][0]["everySeconds"] / DAY for name in expected} == expected


def test_influxdb_refuses_other_tokens(host: Any, facts: dict[str, Any]) -> None:
    assert status_and_body(host, facts["ports"]["influxdb"], "/api/v2/buckets", "Authorization: Token wrong")[0] == 401


def basic(user: str, password: str) -> str:
    return "Authorization: Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_grafana_has_the_data_source(host: Any, facts: dict[str, Any], secrets: dict[str, str]) -> None:
    port = facts["ports"]["grafana"]
    login = basic(secrets["GRAFANA_USER"], secrets["GRAFANA_PASSWORD"])
    status, body = status_and_body(host, port, "/api/datasources", login)
    assert status == 200
    source = next(source for source in json.loads(body) if source["name"] == "Trading PostgreSQL")
    assert source["user"] == "grafana_reader"
    assert status_and_body(host, port, "/api/datasources", basic("admin", "admin"))[0] == 401


def test_backup_is_written_read_back_and_private(host: Any, base: str) -> None:
    printed = host.check_output("docker exec trading_postgres_backup /backup.sh")
    name = re.match(r"/backups/(trading_db_\d{8}T\d{6}Z\.dump) \d+ bytes$", printed)
    assert name, printed
    folder = f"{base}/database/backups/postgres"
    host.check_output("cd %s && sha256sum --check %s", folder, f"{name[1]}.sha256")
    dump = host.file(f"{folder}/{name[1]}")
    assert dump.mode == 0o600
    assert dump.user == "operator"
    listing = host.check_output("docker exec trading_postgres_backup pg_restore --list /backups/%s", name[1])
    assert "SCHEMA - pgbouncer" in listing


def test_backup_that_fails_is_loud_and_leaves_nothing(host: Any, base: str) -> None:
    before = host.check_output("ls -A %s/database/backups/postgres", base)
    failed = host.run("docker exec -e PGPASSWORD=wrong trading_postgres_backup /backup.sh")
    assert failed.rc == 1
    assert "backup of trading_db failed" in failed.stderr
    assert host.check_output("ls -A %s/database/backups/postgres", base) == before
