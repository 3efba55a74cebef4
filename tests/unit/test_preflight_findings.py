"""What preflight makes of a host's facts: each thing that can be wrong, once."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "files/migrations/legacy_schema.json").read_text())

_spec = importlib.util.spec_from_file_location("preflight_filter", ROOT / "plugins/filter/preflight.py")
assert _spec is not None
assert _spec.loader is not None
preflight = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(preflight)

GIB = 2**30
SUMMER, WINTER = 1785499200, 1768478400  # 2026-07-31 and 2026-01-15, noon UTC


def path(name: str, **facts: Any) -> dict[str, Any]:
    return {
        "path": f"/srv/bots/{name}",
        "exists": True,
        "directory": False,
        "owner": "william",
        "group": "william",
        "mode": "0600",
        "size": 10,
        **facts,
    }


def container(name: str, **facts: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "running",
        "health": None,
        "image": "any",
        "project": "bots",
        "restart": "unless-stopped",
        "memory": 0,
        "ports": [],
        **facts,
    }


def port(number: int, address: str = "0.0.0.0") -> dict[str, Any]:
    return {"address": address, "port": number, "inside": "5432/tcp"}


@pytest.fixture
def facts() -> dict[str, Any]:
    """A host with the legacy system in good health and nothing of ours."""
    folder = {"folder": path("any", directory=True, mode="0755"), "env": path("any/.env")}
    utc = [{"at": SUMMER, "offset": 0}, {"at": WINTER, "offset": 0}]
    return {
        "user": "root",
        "python": {"version": "3.13.5", "path": "/usr/bin/python3", "command": None},
        "apt": "/usr/bin/apt-get",
        "zones": ["Europe/Berlin", "UTC"],
        "clients": {"psql": None, "redis-cli": None, "influx": None},
        "docker": {
            "path": "/usr/bin/docker",
            "server": "26.1.5+dfsg1",
            "error": "",
            "root_dir": "/var/lib/docker",
            "compose": "2.26.1-4",
            "docker_compose_path": "/usr/bin/docker-compose",
            "docker_compose": "2.26.1-4",
        },
        "account": {"exists": True, "docker": True, "error": ""},
        "base": path("", path="/srv/bots", directory=True, mode="0755"),
        "legacy_compose_file": path("docker-compose.yml"),
        "database": {"path": "/srv/bots/database", "exists": False},
        "env_file": {"path": "/srv/bots/.env.database", "exists": False},
        "disk": {
            "base": {"path": "/srv/bots", "device": 1, "free": 50 * GIB},
            "docker": {"path": "/var/lib/docker", "device": 2, "free": 50 * GIB},
        },
        "memory": {"total": 16 * GIB, "available": 8 * GIB},
        "listeners": [],
        "time": {"services": ["chronyd"], "synchronized": True, "error": ""},
        "containers": [
            container("shortseller_trading"),
            container("momentum_trading"),
            container("lxalgo_trading"),
            container("shortseller_postgres", ports=[port(5433)]),
        ],
        "volumes": ["bots_shortseller_data"],
        "images": [],
        "bots": [
            {
                **folder,
                "offsets": utc,
                "postgres": {
                    "version": "14.19",
                    "size": GIB,
                    "columns": copy.deepcopy(SCHEMA["shortseller"]["tables"]),
                    "unknown": [],
                },
            },
            {
                **folder,
                "offsets": utc,
                "sqlite": {
                    "path": "/srv/bots/momentum/data/trading.db",
                    "state": "ok",
                    "journal": "wal",
                    "size": GIB,
                    "columns": copy.deepcopy(SCHEMA["momentum"]["tables"]),
                    "unknown": [],
                    "observed": utc,
                },
            },
            {**folder, "offsets": utc},
        ],
    }


@pytest.fixture
def expected() -> dict[str, Any]:
    def bot(kind: str, **legacy: Any) -> dict[str, Any]:
        return {
            "id": f"{kind}_001",
            "name": kind.title(),
            "type": kind,
            "strategy": "any",
            "folder": kind,
            "timezone": "UTC",
            "initial_capital": 10000,
            "legacy": {"container": f"{kind}_trading", **legacy},
        }

    return {
        "base_dir": "/srv/bots",
        "base_owner": "william",
        "base_group": "william",
        "privileged": True,
        "refusal": "",
        "compose_project": "unified_db",
        "legacy_compose_project": "bots",
        "bots": [
            bot(
                "shortseller",
                postgres={
                    "container": "shortseller_postgres",
                    "port": 5433,
                    "database": "multiasset_trading",
                    "user": "trading_user",
                },
            ),
            bot("momentum", sqlite={"path": "momentum/data/trading.db"}),
            bot("lxalgo"),
        ],
        "ports": {"postgres": 5432, "redis": 6380},
        "address": "127.0.0.1",
        "images": {"postgres": "postgres:17.6", "redis": "redis:8.0.3"},
        "memory_limits": {"postgres": "1g", "redis": "512m"},
        "containers": {
            "postgres": "trading_postgres",
            "redis": "trading_redis",
            "influxdb": "trading_influxdb",
        },
        "env_keys": ["POSTGRES_PASSWORD", "REDIS_PASSWORD"],
        "schema": SCHEMA,
        "accepted_rejects": 0,
        "acknowledgements": dict.fromkeys(preflight.ACKNOWLEDGEMENTS, True),
        "require_acknowledgements": False,
        "inventory": "inventory/production/group_vars/all",
        "docker_minimum": "20.10",
        "compose_minimum": "2.0",
        "python_minimum": "3.10",
        "database_factor": 4.0,
        "backup_factor": 2.0,
        "images_size": "2g",
        "disk_reserve": "1g",
    }


def judged(facts: dict[str, Any], expected: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Everything that is not in order, by fact."""
    findings = preflight.preflight_findings(facts, expected)
    for one in findings:
        assert set(one) == {"severity", "fact", "found", "expected", "remedy"}
        assert all(one[key] for key in ("fact", "found", "expected"))
        assert one["remedy"] or one["severity"] == "ok", one
    return {one["fact"]: one for one in findings if one["severity"] != "ok"}


def only(facts: dict[str, Any], expected: dict[str, Any], fact: str, severity: str) -> str:
    """The one thing that is not in order, as found and remedy."""
    wrong = judged(facts, expected)
    assert {name: one["severity"] for name, one in wrong.items()} == {fact: severity}
    return f"{wrong[fact]['found']} -> {wrong[fact]['remedy']}"


def test_a_host_in_good_health_has_nothing_to_mend(facts: Any, expected: Any) -> None:
    assert judged(facts, expected) == {}
    findings = preflight.preflight_findings(facts, expected)
    named = " ".join(one["fact"] for one in findings)
    for fact in (
        "Python", "Docker Engine", "docker compose", "privileges", "base folder", "disk", "memory",
        "port 5432", "time synchronisation", "legacy container", "legacy database", "legacy schema",
        "SQLite", "time zone", "env file", "earlier run", "client psql", "acknowledgements",
    ):  # fmt: skip
        assert fact in named


def test_every_problem_is_reported_in_one_run(facts: Any, expected: Any) -> None:
    facts["python"]["version"] = "3.9.2"
    facts["memory"]["total"] = GIB
    facts["bots"][1]["sqlite"].update(state="corrupt", error="malformed")
    expected["ports"]["redis"] = 5432
    expected["bots"][2]["type"] = "grid"
    blockers = {fact for fact, one in judged(facts, expected).items() if one["severity"] == "blocker"}
    assert blockers == {
        "Python",
        "memory",
        "port 5432",
        "SQLite file of momentum_001",
        "inventory of bot lxalgo_001",
    }


def test_a_bare_host_without_docker(facts: Any, expected: Any) -> None:
    facts["docker"] = {
        "path": None,
        "server": None,
        "error": "",
        "root_dir": None,
        "docker_compose_path": None,
    }
    facts.update(containers=[], volumes=[])
    facts["bots"][0]["postgres"] = {"error": "does not exist", "state": "does not exist"}
    wrong = judged(facts, expected)
    assert wrong["Docker Engine"]["found"] == "not installed"
    assert "docker-compose up -d in /srv/bots" in wrong["legacy database of shortseller_001"]["remedy"]


def test_docker_that_does_not_answer(facts: Any, expected: Any) -> None:
    facts["docker"].update(server=None, error="Cannot connect to the Docker daemon")
    facts["containers"] = []
    text = judged(facts, expected)["Docker Engine"]
    assert "does not answer: Cannot connect" in text["found"]


@pytest.mark.parametrize(
    ("found", "severity"),
    [("20.10.24+dfsg1", None), ("26.1.5", None), ("19.03.15", "blocker"), ("9.1", "blocker")],
)
def test_docker_versions_are_compared_as_numbers(facts: Any, expected: Any, found: str, severity: str | None) -> None:
    facts["docker"]["server"] = found
    assert judged(facts, expected).get("Docker Engine", {}).get("severity") == severity


def test_compose_under_its_old_name(facts: Any, expected: Any) -> None:
    facts["docker"]["docker_compose"] = "1.29.2"
    text = only(facts, expected, "Docker Compose, as docker-compose", "warning")
    assert "1.29.2 (/usr/bin/docker-compose)" in text


def test_account_that_may_not_become_root(facts: Any, expected: Any) -> None:
    expected.update(privileged=False, refusal="Missing sudo password")
    text = only(facts, expected, "privileges", "blocker")
    assert "Missing sudo password" in text
    assert "--ask-become-pass" in text


def test_owner_who_may_not_use_docker(facts: Any, expected: Any) -> None:
    facts["account"].update(docker=False, error="permission denied")
    assert "usermod -aG docker william" in only(facts, expected, "Docker for william", "warning")


def test_missing_base_folder(facts: Any, expected: Any) -> None:
    facts["base"] = {"path": "/srv/bots", "exists": False}
    assert "/srv/bots does not exist" in only(facts, expected, "base folder", "blocker")


def test_base_folder_of_somebody_else(facts: Any, expected: Any) -> None:
    facts["base"].update(owner="root", group="root")
    text = only(facts, expected, "base folder", "blocker")
    assert "root:root" in text
    assert "chown william:william /srv/bots" in text


def test_disk_is_measured_against_the_sources(facts: Any, expected: Any) -> None:
    # 2 GiB of sources: 8 for databases, 2 for images, 1 in reserve.
    facts["disk"]["docker"]["free"] = 11 * GIB - 1
    text = only(facts, expected, "disk of /var/lib/docker", "blocker")
    assert "Free or add" in text
    facts["disk"]["docker"]["free"] = 11 * GIB
    assert judged(facts, expected) == {}


def test_images_on_the_host_need_no_space(facts: Any, expected: Any) -> None:
    facts["disk"]["docker"]["free"] = 9 * GIB
    facts["images"] = list(expected["images"].values())
    assert judged(facts, expected) == {}


def test_one_disk_for_everything_has_to_hold_the_sum(facts: Any, expected: Any) -> None:
    facts["disk"]["docker"]["device"] = facts["disk"]["base"]["device"]
    facts["disk"]["base"]["free"] = 15 * GIB - 1
    only(facts, expected, "disk of /srv/bots", "blocker")
    facts["disk"]["base"]["free"] = 15 * GIB
    assert judged(facts, expected) == {}


def test_memory_is_measured_against_the_limits(facts: Any, expected: Any) -> None:
    facts["memory"]["total"] = int(1.4 * GIB)
    only(facts, expected, "memory", "blocker")
    facts["memory"]["total"] = 2 * GIB
    facts["containers"][0]["memory"] = GIB
    only(facts, expected, "memory", "warning")


@pytest.mark.parametrize(("text", "size"), [("512m", 2**29), ("1.5g", 1610612736), ("7", 7)])
def test_sizes_are_read_as_compose_reads_them(text: str, size: int) -> None:
    assert preflight.bytes_of(text) == size


def test_a_size_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="'lots' is not a size"):
        preflight.bytes_of("lots")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "127.0.0.1", "::ffff:127.0.0.1"])
def test_a_port_held_by_a_process(facts: Any, expected: Any, address: str) -> None:
    facts["listeners"] = [{"address": address, "port": 6380, "holder": "redis-server (pid 7)"}]
    text = only(facts, expected, "port 6380 for redis", "blocker")
    assert "in use by redis-server (pid 7)" in text
    assert "ports.redis" in text


def test_a_port_on_another_address_is_no_collision(facts: Any, expected: Any) -> None:
    facts["listeners"] = [{"address": "10.0.0.5", "port": 6380, "holder": "redis-server (pid 7)"}]
    assert judged(facts, expected) == {}


def test_a_port_held_by_a_foreign_container(facts: Any, expected: Any) -> None:
    facts["containers"].append(container("other_pg", project="other", ports=[port(5432)]))
    facts["listeners"] = [{"address": "0.0.0.0", "port": 5432, "holder": "docker-proxy (pid 9)"}]
    text = only(facts, expected, "port 5432 for postgres", "blocker")
    assert "in use by container other_pg" in text


def test_our_own_running_services_are_no_collision(facts: Any, expected: Any) -> None:
    held = [port(5432, "127.0.0.1")]
    facts["containers"].append(container("trading_postgres", project="unified_db", ports=held))
    facts["listeners"] = [{"address": "127.0.0.1", "port": 5432, "holder": "docker-proxy (pid 9)"}]
    assert judged(facts, expected) == {}


def test_a_host_without_time_service(facts: Any, expected: Any) -> None:
    facts["time"] = {"services": [], "synchronized": False, "error": ""}
    assert "timedatectl" in only(facts, expected, "time synchronisation", "warning")


def test_a_stopped_bot_is_no_obstacle(facts: Any, expected: Any) -> None:
    facts["containers"][2]["state"] = "exited"
    facts["bots"][2]["offsets"] = []
    only(facts, expected, "legacy container lxalgo_trading", "warning")


def test_legacy_and_unified_must_not_share_a_project(facts: Any, expected: Any) -> None:
    expected["compose_project"] = "bots"
    wrong = judged(facts, expected)
    assert wrong["legacy container lxalgo_trading"]["severity"] == "blocker"


def test_a_legacy_database_that_is_down(facts: Any, expected: Any) -> None:
    facts["bots"][0]["postgres"] = {"error": "exited", "state": "exited"}
    text = only(facts, expected, "legacy database of shortseller_001", "blocker")
    assert "container shortseller_postgres: exited" in text
    assert "docker start shortseller_postgres" in text


def test_a_legacy_database_on_another_port(facts: Any, expected: Any) -> None:
    expected["bots"][0]["legacy"]["postgres"]["port"] = 5434
    text = only(facts, expected, "published port of shortseller_postgres", "blocker")
    assert text.startswith("5433")


def test_missing_and_unexpected_columns_are_named(facts: Any, expected: Any) -> None:
    columns = facts["bots"][0]["postgres"]["columns"]
    columns["trades"].remove("fees")
    columns["signals"].append("mood")
    del columns["risk_metrics"]
    wrong = judged(facts, expected)
    table = "legacy table trading.{} of shortseller_001"
    assert wrong[table.format("trades")]["found"] == "lacks column fees"
    assert wrong[table.format("trades")]["severity"] == "blocker"
    assert wrong[table.format("signals")]["found"] == "has unexpected column mood"
    assert wrong[table.format("signals")]["severity"] == "warning"
    assert wrong[table.format("risk_metrics")]["found"] == "does not exist"


def test_unknown_values_are_counted(facts: Any, expected: Any) -> None:
    unknown = {"table": "trades", "column": "side", "rows": 3, "values": ["hodl", None]}
    facts["bots"][0]["postgres"]["unknown"] = [unknown]
    fact = "values of trading.trades.side of shortseller_001"
    text = only(facts, expected, fact, "blocker")
    assert "3 rows with unknown side 'hodl', NULL" in text
    assert "data_migration_accepted_rejects=3" in text
    expected["accepted_rejects"] = 3
    only(facts, expected, fact, "warning")


@pytest.mark.parametrize("state", ["absent", "locked", "corrupt", "unreadable"])
def test_sqlite_states_are_told_apart(facts: Any, expected: Any, state: str) -> None:
    facts["bots"][1]["sqlite"] = {"path": "/srv/t.db", "state": state, "error": "because"}
    facts["bots"][1]["offsets"] = [{"at": SUMMER, "offset": 0}]
    text = only(facts, expected, "SQLite file of momentum_001", "blocker")
    assert f"/srv/t.db is {state}: because" in text


def test_an_integrity_check_that_was_broken_off(facts: Any, expected: Any) -> None:
    facts["bots"][1]["sqlite"]["state"] = "unchecked"
    only(facts, expected, "SQLite file of momentum_001", "warning")


def test_a_container_in_another_time_zone(facts: Any, expected: Any) -> None:
    # Berlin agrees with UTC+1 in winter and is found out in summer.
    expected["bots"][1]["timezone"] = "Europe/Berlin"
    facts["bots"][1]["sqlite"]["observed"] = []
    facts["bots"][1]["offsets"] = [
        {"at": SUMMER, "offset": 3600},
        {"at": WINTER, "offset": 3600},
    ]
    text = only(facts, expected, "time zone of momentum_001", "blocker")
    assert "UTC+01:00 on 2026-07-31" in text
    facts["bots"][1]["offsets"][0]["offset"] = 7200
    assert judged(facts, expected) == {}


def test_trades_written_in_another_time_zone(facts: Any, expected: Any) -> None:
    facts["bots"][1]["offsets"] = []
    facts["bots"][1]["sqlite"]["observed"] = [{"at": SUMMER, "offset": 7200}] * 9
    text = only(facts, expected, "time zone of momentum_001", "blocker")
    assert "9 of the last 9 trades were written at UTC+02:00" in text


def test_a_time_zone_without_witness(facts: Any, expected: Any) -> None:
    facts["bots"][1].update(offsets=[])
    facts["bots"][1]["sqlite"]["observed"] = []
    only(facts, expected, "time zone of momentum_001", "warning")


def test_a_zone_is_less_urgent_where_no_naive_time_is_read(facts: Any, expected: Any) -> None:
    facts["bots"][0]["offsets"] = [{"at": SUMMER, "offset": 7200}]
    only(facts, expected, "time zone of shortseller_001", "warning")


def test_a_host_without_time_zone_data(facts: Any, expected: Any) -> None:
    expected["bots"][2]["timezone"] = "Europe/Berlin"
    facts["bots"][2]["offsets"] = []
    facts["zones"] = []
    assert "tzdata" in only(facts, expected, "time zone data for Europe/Berlin", "blocker")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"type": "grid"}, "unknown bot type 'grid'"),
        ({"type": None}, "unknown bot type None"),
        ({"timezone": "Mars/Olympus"}, "unknown time zone 'Mars/Olympus'"),
        ({"timezone": ""}, "unknown time zone ''"),
        ({"id": "no spaces"}, "id 'no spaces'"),
        ({"id": "momentum_trial"}, "id 'momentum_trial'"),
        ({"id": "x" * 45}, f"id '{'x' * 45}'"),
        ({"strategy": ""}, "no strategy"),
        ({"initial_capital": "plenty"}, "initial_capital 'plenty'"),
        ({"max_positions": -1}, "max_positions -1"),
        ({"type": "momentum"}, "no legacy.sqlite.path"),
        ({"type": "momentum", "legacy": "trading.db"}, "no legacy.sqlite.path"),
    ],
)
def test_mistakes_in_the_inventory(facts: Any, expected: Any, change: dict[str, Any], found: str) -> None:
    expected["bots"][2].update(change)
    name = f"inventory of bot {expected['bots'][2]['id']}"
    assert found in only(facts, expected, name, "blocker")


def test_a_bot_of_which_nothing_is_known(facts: Any, expected: Any) -> None:
    expected["bots"][2].clear()
    wrong = judged(facts, expected)
    assert "inventory of bot number 3" in wrong


def test_two_bots_of_one_id(facts: Any, expected: Any) -> None:
    expected["bots"][2]["id"] = "momentum_001"
    assert "given to 2 bots" in judged(facts, expected)["bots, id momentum_001"]["found"]


def test_a_missing_bot_folder_and_an_open_env_file(facts: Any, expected: Any) -> None:
    facts["bots"][0]["env"] = path("shortseller/.env", mode="0644")
    facts["bots"][1]["env"] = {"path": "/srv/bots/momentum/.env", "exists": False}
    facts["bots"][2]["folder"] = {"path": "/srv/bots/lxalgo", "exists": False}
    wrong = judged(facts, expected)
    assert "mode 0644" in wrong["env file of shortseller_001"]["found"]
    assert "no /srv/bots/momentum/.env" in wrong["env file of momentum_001"]["found"]
    assert wrong["folder of lxalgo_001"]["severity"] == "blocker"


def finished(facts: dict[str, Any]) -> None:
    facts["containers"].append(container("trading_postgres", project="unified_db", health="healthy"))
    facts["volumes"].append("unified_db_postgres_data")
    facts["database"] = path("database", directory=True)
    keys = {"POSTGRES_PASSWORD": True, "REDIS_PASSWORD": True}
    facts["env_file"] = path(".env.database", keys=keys)


def test_a_finished_host_has_nothing_to_mend(facts: Any, expected: Any) -> None:
    finished(facts)
    assert judged(facts, expected) == {}
    report = preflight.preflight_report(preflight.preflight_findings(facts, expected))
    assert "trading_postgres healthy" in report
    assert "unified_db_postgres_data" in report


def test_data_without_its_secrets(facts: Any, expected: Any) -> None:
    finished(facts)
    facts["env_file"] = {"path": "/srv/bots/.env.database", "exists": False}
    text = only(facts, expected, "secrets of an earlier run", "blocker")
    assert "from your backup" in text


def test_secrets_that_are_incomplete_or_open(facts: Any, expected: Any) -> None:
    finished(facts)
    facts["env_file"]["mode"] = "0644"
    only(facts, expected, "secrets of an earlier run", "warning")
    facts["env_file"]["keys"] = {"POSTGRES_PASSWORD": False}
    text = only(facts, expected, "secrets of an earlier run", "blocker")
    assert "lacks POSTGRES_PASSWORD, REDIS_PASSWORD" in text


def test_it_asks_for_the_keys_that_the_secrets_role_writes() -> None:
    defaults = yaml.safe_load((ROOT / "roles/preflight/defaults/main.yml").read_text())
    secrets = yaml.safe_load((ROOT / "roles/secrets/vars/main.yml").read_text())
    written = {*secrets["_secrets_keys"], *secrets["_secrets_settings"]}
    assert set(defaults["preflight_env_keys"]) == written


def test_a_container_name_that_is_taken(facts: Any, expected: Any) -> None:
    facts["containers"].append(container("trading_redis", project=None))
    only(facts, expected, "container name trading_redis", "blocker")


def test_acknowledgements_are_reported_and_refused_where_it_matters(facts: Any, expected: Any) -> None:
    expected["acknowledgements"] = {"catalogue_reviewed": True, "window_scheduled": False}
    text = only(facts, expected, "acknowledgements", "warning")
    assert "window_scheduled" in text
    assert "given catalogue_reviewed" in text
    expected["require_acknowledgements"] = True
    only(facts, expected, "acknowledgements", "blocker")


def test_the_refusal_names_each_blocker_with_its_remedy(facts: Any, expected: Any) -> None:
    facts["python"]["version"] = "3.9.2"
    facts["memory"]["total"] = GIB
    findings = preflight.preflight_findings(facts, expected)
    refusal = preflight.preflight_refusal(findings)
    assert "2 to mend first" in refusal
    assert "Python: found 3.9.2; expected >= 3.10. Install" in refusal
    assert "memory: found 1.0 GiB" in refusal
    assert refusal.endswith("Then run playbooks/preflight.yml again.")


def test_the_report_fits_its_width(facts: Any, expected: Any) -> None:
    facts["python"]["version"] = "3.9.2"
    report = preflight.preflight_report(preflight.preflight_findings(facts, expected), width=100)
    assert max(map(len, report.splitlines())) <= 100
    assert "BLOCKER   Python\n          found     3.9.2\n" in report
