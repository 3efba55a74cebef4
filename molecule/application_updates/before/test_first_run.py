"""Phase 3 on a host with phases 1 and 2, while the bots trade: bad input, the dry run, the first run, half-way ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest

PHASE3 = "playbooks/phase3_application_updates.yml"
ROLLBACK = "playbooks/rollback.yml"
LEGACY = "docker ps --format '{{.ID}} {{.Names}} {{.CreatedAt}}' | grep -E 'shortseller|momentum|lxalgo' | sort"
EVERYTHING = {
    "Deliver the bots' database modules",
    "Make the folders of the originals",
    "Point the bots' env files to the unified database",
    "Build the bot's own image from its Dockerfile",
    "Add what the unified database needs",
    "Make the folder of the bot's outbox",
    "Render docker-compose.unified-db.yml",
    "Write the report",
}

pytestmark = pytest.mark.service("trading_postgres", "trading_pgbouncer")


@pytest.mark.parametrize(
    ("change", "promised"),
    [
        ({"folder": "momentum"}, "Bots share a folder (momentum, momentum, lxalgo): expected one for each bot"),
        ({"folder": "elsewhere"}, "elsewhere is no folder; expected that of shortseller_001"),
        ({"folder": "database"}, "The folder of shortseller_001 is 'database'; expected up to 41 of a-z"),
        ({"id": "shortseller_009"}, "trading_db does not know shortseller_009"),
    ],
    ids=["shared", "missing", "reserved", "unregistered"],
)
def test_bots_that_cannot_be_updated(
    change: dict[str, Any], promised: str, facts: dict[str, Any], play: Any, state: Any
) -> None:
    bots = copy.deepcopy(facts["bots"])
    bots[0] |= change
    before = state()
    run = play(PHASE3, bots=bots, bot_isolation=False)
    assert run.code != 0
    assert promised in run.text
    assert run.changed == frozenset()
    assert state() == before


def test_unknown_contents_and_unreadable_env_files_are_refused_at_once(
    host: Any, facts: dict[str, Any], play: Any, state: Any
) -> None:
    base = facts["base_dir"]
    files = [f"{base}/momentum/database/trade_database.py", f"{base}/shortseller/src/database/trade_logger.py"]
    for path in [*files, f"{base}/lxalgo/.env"]:
        host.check_output("cp --preserve=all %s %s.kept", path, path)
    try:
        for path in files:
            host.check_output("echo '# mine' >> %s", path)
        before = state()
        run = play(PHASE3)
        assert run.code != 0
        for path in files:
            checksum = host.check_output("sha256sum %s", path).split()[0]
            assert f"{path} has a content that is not known here (sha256 {checksum})" in run.text
            assert f"{path.removeprefix(base + '/')}: {checksum}" in run.text
        assert "bot_application_acknowledged: {" in run.text
        assert run.changed == frozenset()
        assert state() == before
        for path in files:
            host.check_output("mv %s.kept %s", path, path)
        host.check_output("echo 'no setting' > %s/lxalgo/.env", base)
        before = state()
        run = play(PHASE3)
        assert run.code != 0
        assert "line 1: found no = behind the key; expected KEY=value" in run.text
        assert run.changed == frozenset()
        assert state() == before
    finally:
        host.check_output("for kept in $(find %s -name '*.kept'); do mv $kept ${kept%%.kept}; done", base)


def test_rollback_of_nothing_changes_nothing(play: Any, state: Any) -> None:
    before = state()
    for options in (("--check", "--diff"), ()):
        run = play(ROLLBACK, *options)
        assert run.code == 0
        assert run.changed == frozenset()
        assert state() == before


def test_dry_run_announces_exactly_what_the_first_run_changes(
    host: Any, facts: dict[str, Any], play: Any, state: Any
) -> None:
    before, legacy = state(), host.check_output(LEGACY)
    announced = play(PHASE3, "--check", "--diff")
    assert announced.code == 0
    assert state() == before

    done = play(PHASE3, "--diff")
    assert done.code == 0
    assert done.changed == announced.changed == EVERYTHING
    assert host.check_output(LEGACY) == legacy

    keys = host.check_output("cat %s/.env.database", facts["base_dir"])
    secrets = [line.split("'")[1] for line in keys.splitlines() if "PASSWORD" in line]
    assert len(secrets) > 8
    assert [secret for secret in secrets if secret in announced.text + done.text] == []


def test_half_done_run_is_foreseen_and_finished(host: Any, facts: dict[str, Any], play: Any, state: Any) -> None:
    """Killed after the delivery: files are there, env files are not, and of the images one is missing."""
    base = facts["base_dir"]
    with host.sudo():
        host.check_output("cp %s/database/backups/applications/momentum/.env %s/momentum/.env", base, base)
    host.check_output("docker image rm --force unified_db-lxalgo")
    host.check_output("rm %s/momentum/trading_db/client.py", base)
    before = state()
    announced = play(PHASE3, "--check", "--diff")
    assert announced.code == 0
    assert state() == before
    done = play(PHASE3)
    assert done.code == 0
    assert done.changed == announced.changed
    assert done.changed == {
        "Deliver the bots' database modules",
        "Point the bots' env files to the unified database",
        "Add what the unified database needs",
    }


def test_second_run_changes_nothing(play: Any, state: Any) -> None:
    before = state()
    second = play(PHASE3)
    assert second.code == 0
    assert second.changed == frozenset()
    assert state() == before
