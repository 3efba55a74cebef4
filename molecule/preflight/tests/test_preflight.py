"""Preflight reports everything that is wrong with a host, and touches nothing."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[3]

# Two databases that a test may spoil: copies, so that the bots trade on.
SPOILED = "spoiled"


@dataclass(frozen=True)
class Report:
    """What one run said: exit code, and the text with its line breaks undone."""

    code: int
    text: str

    def blocks(self, fact: str, found: str) -> bool:
        return f"BLOCKER {fact} found {found}" in self.text

    def warns(self, fact: str, found: str) -> bool:
        return f"WARNING {fact} found {found}" in self.text


Preflight = Callable[..., Report]


@pytest.fixture
def preflight(tmp_path: Path) -> Preflight:
    """Runs the playbook; keywords are extra variables, `options` go before them."""

    def run(*options: str, **variables: Any) -> Report:
        file = tmp_path / "variables.json"
        file.write_text(json.dumps(variables))
        result = subprocess.run(
            [
                *("ansible-playbook", "playbooks/preflight.yml"),
                *("-i", os.environ["MOLECULE_INVENTORY_FILE"], *options, "-e", f"@{file}"),
            ],
            cwd=PROJECT,
            env=os.environ | {"ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"},
            capture_output=True,
            text=True,
            check=False,
        )
        print(result.stdout, result.stderr)
        return Report(result.returncode, " ".join(result.stdout.split()))

    return run


@pytest.fixture
def bots(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The inventory's bots by type, to be changed for one run."""
    return {bot["type"]: copy.deepcopy(bot) for bot in facts["bots"]}


@contextmanager
def kept(host: Any, do: str, undo: str) -> Iterator[None]:
    """A state of the host, for as long as it is needed."""
    with host.sudo():
        host.check_output(do)
    try:
        yield
    finally:
        with host.sudo():
            host.check_output(undo)


def running(host: Any, program: str) -> Any:
    """A Python program that runs on the host meanwhile and says when it is ready."""
    start = (
        "systemd-run --quiet --unit=sabotage --collect --service-type=notify --property=NotifyAccess=all "
        f"python3 -c '{program}\nimport os, time\nos.system(\"systemd-notify --ready\")\ntime.sleep(600)'"
    )
    return kept(host, start, "systemctl stop sabotage")


@pytest.fixture
def sqlite_copy(host: Any, facts: dict[str, Any]) -> Iterator[str]:
    """A copy of Momentum's database in a folder of its own, relative to the base folder."""
    base = facts["base_dir"]
    copy_it = f"""python3 -c '
import sqlite3
source = sqlite3.connect("file:{base}/momentum/data/trading.db?mode=ro", uri=True)
target = sqlite3.connect("{base}/sabotage/trading.db")
source.backup(target)
target.execute("PRAGMA journal_mode=delete")
'"""
    with kept(host, f"mkdir {base}/sabotage && {copy_it}", f"rm -r {base}/sabotage"):
        yield "sabotage/trading.db"


@pytest.fixture
def postgres_copy(host: Any) -> Iterator[None]:
    """A database with the legacy schema and no rows."""
    psql = "docker exec -i shortseller_postgres psql -q -v ON_ERROR_STOP=1 -U trading_user -d"
    dump = "docker exec shortseller_postgres pg_dump -U trading_user --schema-only multiasset_trading"
    create = f"{psql} postgres -c 'CREATE DATABASE {SPOILED}' && {dump} | {psql} {SPOILED} >/dev/null"
    with kept(host, create, f"{psql} postgres -c 'DROP DATABASE {SPOILED}'"):
        yield


def spoil(host: Any, sql: str) -> None:
    host.check_output(
        f'docker exec shortseller_postgres psql -v ON_ERROR_STOP=1 -U trading_user -d {SPOILED} -c "{sql}"'
    )


def state_of(host: Any, facts: dict[str, Any]) -> dict[str, str]:
    """Everything that preflight might leave behind."""
    # The bots that run write their journals; what else is in them stands still.
    tree = f"find {facts['base_dir']} -path '*/journal/*' -o -printf '%p %m %u %g %s %T@\\n' | sort"
    with host.sudo():
        return {
            "files": host.check_output(tree),
            "temporary": host.check_output(
                "find /tmp /var/tmp -xdev | grep -v -e systemd-private -e runc-process | sort"
            ),
            "containers": host.check_output("docker ps --all --format '{{.ID}} {{.Names}} {{.State}}' | sort"),
            "images": host.check_output("docker images --all --no-trunc --quiet | sort"),
            "volumes": host.check_output("docker volume ls --quiet | sort"),
            "networks": host.check_output("docker network ls --quiet --no-trunc | sort"),
        }


@pytest.mark.parametrize("options", [[], ["--check", "--diff"]])
def test_a_ready_host_is_approved_and_left_as_it_was(
    host: Any, facts: dict[str, Any], preflight: Preflight, options: list[str]
) -> None:
    # Of a bot that does not write, not even the database's folder may change.
    with kept(host, "docker stop momentum_trading", "docker start momentum_trading"):
        before = state_of(host, facts)
        report = preflight(*options)
        assert state_of(host, facts) == before
    assert report.code == 0
    assert "0 to mend first" in report.text
    assert "changed=0" in report.text
    assert report.warns("legacy container momentum_trading", "exited")
    assert "time zone of momentum_001: agrees with the last 50 trades" in report.text


def test_live_bots_are_read_too(preflight: Preflight) -> None:
    report = preflight()
    assert report.code == 0
    for text in (
        "legacy database of shortseller_001: answers",
        "legacy schema of shortseller_001: 6 tables as expected",
        "legacy schema of momentum_001: 4 tables as expected",
        "intact, journal mode wal",
        "time zone of momentum_001: agrees with the clock of momentum_trading and the last 50 trades",
        "port 5432 for postgres: free",
        "Docker for operator: allowed",
    ):
        assert text in report.text


def test_all_that_is_wrong_is_reported_in_one_run(
    host: Any, bots: Any, preflight: Preflight, postgres_copy: None, sqlite_copy: str
) -> None:
    spoil(host, "ALTER TABLE trading.positions DROP COLUMN leverage CASCADE")
    spoil(host, "ALTER TABLE trading.trades ADD COLUMN mood text")
    spoil(host, "INSERT INTO trading.trades (symbol, side, quantity, price) VALUES ('BTCUSDT', 'hodl', 1, 1)")
    bots["shortseller"]["legacy"]["postgres"]["database"] = SPOILED
    bots["momentum"]["legacy"]["sqlite"]["path"] = sqlite_copy
    bots["momentum"]["timezone"] = "Europe/Atlantis"
    bots["lxalgo"]["type"] = "grid"
    with ExitStack() as stack:
        port = 'import socket\nserver = socket.create_server(("0.0.0.0", 6432))'
        stack.enter_context(running(host, port))
        volume = "unified_db_postgres_data"
        stack.enter_context(kept(host, f"docker volume create {volume}", f"docker volume rm {volume}"))
        with host.sudo():
            path = f"$(find /home -path '*/{sqlite_copy}')"
            host.check_output(f"dd if=/dev/urandom of={path} bs=4096 seek=3 count=20 conv=notrunc status=none")
        report = preflight(
            bots=list(bots.values()),
            preflight_disk_reserve="900t",
            preflight_require_acknowledgements=True,
            preflight_acknowledgements={"catalogue_reviewed": True},
        )
    assert report.code != 0
    assert report.blocks("port 6432 for pgbouncer", "in use by python3 (pid")
    assert report.blocks("legacy table trading.positions of shortseller_001", "lacks column leverage")
    assert report.warns("legacy table trading.trades of shortseller_001", "has unexpected column mood")
    assert report.blocks("values of trading.trades.side of shortseller_001", "1 rows with unknown side 'hodl'")
    assert report.blocks(
        "SQLite file of momentum_001", "/home/operator/STRATEGIES/Alpha/sabotage/trading.db is corrupt"
    )
    assert report.blocks("inventory of bot momentum_001", "unknown time zone 'Europe/Atlantis'")
    assert report.blocks("inventory of bot lxalgo_001", "unknown bot type 'grid'")
    assert report.blocks("disk of /var/lib/docker", "")
    assert report.blocks("secrets of an earlier run", "no /home/operator/STRATEGIES/Alpha/.env.database, but volume")
    assert report.blocks("acknowledgements", "missing databases_backed_up")
    assert "Then run playbooks/preflight.yml again." in report.text


def test_sources_that_are_not_there(host: Any, bots: Any, preflight: Preflight) -> None:
    bots["momentum"]["legacy"]["sqlite"]["path"] = "momentum/data/elsewhere.db"
    with kept(host, "docker stop shortseller_postgres", "docker start shortseller_postgres"):
        report = preflight(bots=list(bots.values()))
    assert report.code != 0
    assert report.blocks("legacy database of shortseller_001", "container shortseller_postgres: exited")
    assert "remedy docker start shortseller_postgres." in report.text
    path = "/home/operator/STRATEGIES/Alpha/momentum/data/elsewhere.db"
    assert report.blocks("SQLite file of momentum_001", f"{path} is absent")


def test_a_locked_sqlite_file(host: Any, bots: Any, preflight: Preflight, sqlite_copy: str) -> None:
    bots["momentum"]["legacy"]["sqlite"]["path"] = sqlite_copy
    path = f"/home/operator/STRATEGIES/Alpha/{sqlite_copy}"
    lock = f'import sqlite3\nc = sqlite3.connect("{path}", isolation_level=None)\nc.execute("BEGIN EXCLUSIVE")'
    with running(host, lock):
        report = preflight(bots=list(bots.values()))
    assert report.code != 0
    assert report.blocks("SQLite file of momentum_001", f"{path} is locked: database is locked")


def test_a_sqlite_file_in_a_named_volume_and_another_time_zone(
    host: Any, facts: dict[str, Any], bots: Any, preflight: Preflight, sqlite_copy: str
) -> None:
    bots["momentum"]["legacy"]["sqlite"] = {"path": "trading.db", "volume": SPOILED}
    bots["momentum"]["timezone"] = "Asia/Tokyo"
    path = f"/var/lib/docker/volumes/{SPOILED}/_data/trading.db"
    create = f"docker volume create {SPOILED} && cp {facts['base_dir']}/{sqlite_copy} {path}"
    with kept(host, create, f"docker volume rm {SPOILED}"):
        report = preflight(bots=list(bots.values()))
    assert report.code != 0
    assert f"SQLite file of momentum_001: {path}" in report.text
    assert "intact, journal mode delete" in report.text
    assert report.blocks("time zone of momentum_001", "container momentum_trading was at UTC+00:00")
    assert report.blocks("time zone of momentum_001", "50 of the last 50 trades were written at UTC+00:00")


def test_a_named_volume_that_does_not_exist(bots: Any, preflight: Preflight) -> None:
    bots["momentum"]["legacy"]["sqlite"] = {"path": "trading.db", "volume": "nowhere"}
    report = preflight(bots=list(bots.values()))
    assert report.code != 0
    assert report.blocks("SQLite file of momentum_001", "(path unknown) is absent: volume nowhere:")


def test_a_base_folder_that_does_not_exist(preflight: Preflight) -> None:
    report = preflight(base_dir="/home/operator/nowhere")
    assert report.code != 0
    assert report.blocks("base folder", "/home/operator/nowhere does not exist")
    assert report.blocks("folder of lxalgo_001", "no folder /home/operator/nowhere/lxalgo")


def test_a_small_disk_of_somebody_else(host: Any, preflight: Preflight) -> None:
    mount = "mkdir /mnt/small && mount -t tmpfs -o size=64m tmpfs /mnt/small"
    with kept(host, mount, "umount /mnt/small && rmdir /mnt/small"):
        report = preflight(base_dir="/mnt/small")
    assert report.code != 0
    assert report.blocks("disk of /mnt/small", "64.0 MiB free")
    assert report.blocks("base folder", "/mnt/small, root:root 1777")


def test_an_account_without_sudo(preflight: Preflight) -> None:
    report = preflight(ansible_become_exe="/bin/false")
    assert report.code != 0
    assert report.blocks("privileges", "cannot become root")
    # All that does not need root is told all the same.
    assert "legacy schema of shortseller_001: 6 tables as expected" in report.text
