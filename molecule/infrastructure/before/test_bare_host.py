"""Phase 1 on a bare host: bad input, the dry run, the first and the second run."""

from __future__ import annotations

import re
from typing import Any

import pytest

PHASE1 = "playbooks/phase1_infrastructure.yml"


@pytest.mark.parametrize(
    ("variables", "promised"),
    [
        (
            {"base_dir": "/home/operator/STRATEGIES/Beta"},
            r"base_dir is /home/operator/STRATEGIES/Beta but \S+ has no such folder: expected the existing folder",
        ),
        ({"base_owner": "nobody_here"}, r"base_owner is nobody_here .* lacks one of them"),
        (
            {"ports": {"postgres": 5432, "pgbouncer": 6432, "redis": 6379, "influxdb": 8086, "grafana": 3000}},
            r"port 6379 \(redis\) is published by the container shortseller_redis: expected ports that are free",
        ),
        (
            {"ports": {"postgres": 22, "pgbouncer": 6432, "redis": 6380, "influxdb": 8086, "grafana": 3000}},
            r"port 22 \(postgres\) cannot be bound \(Address already in use\)",
        ),
        ({"pgbouncer_pool_size": 200}, r"pgbouncer_pool_size is 200 .* but PostgreSQL accepts 100 connections"),
        (
            {"pgbouncer_pool_size": 3},
            r"pgbouncer_pool_size is 3 for 4 users, .* expected a connection or more for each",
        ),
        ({"bots": [{"id": "grafana_reader"}]}, r"Bot id 'grafana_reader' found; expected up to 44 of a-z"),
        ({"bots": [{"id": "momentum_trial"}]}, r"Bot id 'momentum_trial' found; expected .* with no _trial at its end"),
        ({"postgresql_settings": {"listen_addresses": "localhost"}}, r"postgresql_settings holds listen_addresses"),
        ({"redis_maxmemory": "lots"}, r'redis_maxmemory is "lots": expected a number'),
        ({"redis_maxmemory_policy": "first-come"}, r"redis_maxmemory_policy must be one of"),
        ({"secrets_provided": {"REDIS_PASWORD": "long-enough"}}, r"secrets_provided holds REDIS_PASWORD"),
        ({"secrets_provided": {"REDIS_PASSWORD": "with 'quotes'"}}, r"secrets_provided holds REDIS_PASSWORD"),
        ({"secrets_influx_bucket": "elsewhere"}, r"secrets_influx_bucket is elsewhere but influxdb_buckets names"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_named_and_nothing_is_changed(
    variables: dict[str, Any], promised: str, play: Any, state: Any
) -> None:
    before = state()
    run = play(PHASE1, **variables)
    assert run.code != 0
    assert re.search(promised, run.text)
    assert run.changed == frozenset()
    assert state() == before


def test_one_part_alone_asks_for_the_whole_first(play: Any, state: Any) -> None:
    before = state()
    run = play(PHASE1, "--tags", "pgbouncer")
    assert run.code != 0
    assert "--tags pgbouncer leaves out the role that writes it" in run.text
    assert state() == before


def test_the_dry_run_announces_exactly_what_the_first_run_changes(play: Any, state: Any, host: Any) -> None:
    legacy = "docker ps --format '{{.ID}} {{.Names}} {{.CreatedAt}}' --filter name=shortseller --filter name=momentum"
    running = host.check_output(legacy)
    before = state()

    announced = play(PHASE1, "--check", "--diff")
    assert announced.code == 0
    assert state() == before

    first = play(PHASE1, "--diff")
    assert first.code == 0
    assert first.changed == announced.changed
    assert host.check_output(legacy) == running

    keys = host.check_output("cat /home/operator/STRATEGIES/Alpha/.env.database")
    for secret in re.findall(r"(?:PASSWORD|TOKEN)\w*='(.+)'", keys):
        assert secret not in first.text


def test_second_run_changes_nothing(play: Any, state: Any) -> None:
    before = state()
    second = play(PHASE1)
    assert second.code == 0
    assert second.changed == frozenset()
    assert state() == before
