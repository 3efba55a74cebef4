"""What the tests of all scenarios share.

`host` is testinfra's, connected over SSH as the unprivileged account that owns
the bots; `host.sudo()` is root. A test that needs a service marks it, and its
failure shows the service's logs:

    pytestmark = pytest.mark.service("trading_postgres")
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parent.parent
LOG_LINES = 40


@pytest.fixture(scope="session")
def facts() -> dict[str, Any]:
    """The platform's facts as the playbooks see them on this host: base_dir, ports, bots, ..."""
    names: set[str] = set()
    for path in sorted((PROJECT / "inventory/demo/group_vars").glob("*/*.yml")):
        names |= set(yaml.safe_load(path.read_text()) or {})
    pairs = ", ".join(f"'{name}': {name}" for name in sorted(names))
    wanted = "{{ {" + pairs + "} | to_json }}"
    result = subprocess.run(
        [
            *("ansible", "trading", "-i", os.environ["MOLECULE_INVENTORY_FILE"]),
            *("-m", "ansible.builtin.debug", "-a", f"msg={json.dumps(wanted)}"),
        ],
        cwd=PROJECT,
        env=os.environ | {"ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_FORCE_COLOR": "false"},
        capture_output=True,
        text=True,
        check=True,
    )
    reply = json.loads(result.stdout.split("=>", 1)[1])
    values: dict[str, Any] = json.loads(reply["msg"]) if isinstance(reply["msg"], str) else reply["msg"]
    return values


@dataclass(frozen=True)
class Run:
    """What one run of a playbook did: exit code, everything it printed with
    line breaks undone, and the names of the tasks that changed something."""

    code: int
    text: str
    changed: frozenset[str]


Play = Callable[..., Run]
State = Callable[[], dict[str, str]]


def command_of(playbook: str, *options: str) -> list[str]:
    """The command that runs a playbook, named from the project's folder, against the scenario's host."""
    return ["ansible-playbook", playbook, "-i", os.environ["MOLECULE_INVENTORY_FILE"], *options]


def changed_tasks(output: str) -> frozenset[str]:
    """Names of the tasks, without their roles, under which a result says changed."""
    changed = set()
    task = ""
    for line in output.splitlines():
        if match := re.match(r"(?:TASK|RUNNING HANDLER) \[(?:[a-z_]+ : )?(.*)\] \**$", line):
            task = match[1]
        elif line.startswith("changed: "):
            changed.add(task)
    return frozenset(changed)


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Runs a playbook; keywords are extra variables."""

    def run(playbook: str, *options: str, project: Path = PROJECT, **variables: Any) -> Run:
        file = tmp_path / "variables.json"
        file.write_text(json.dumps(variables))
        result = subprocess.run(
            command_of(playbook, *options, "-e", f"@{file}"),
            cwd=project,
            env=os.environ
            | {
                "ANSIBLE_CONFIG": str(project / "ansible.cfg"),
                "ANSIBLE_FORCE_COLOR": "false",
                "ANSIBLE_NOCOLOR": "true",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(result.stdout)
        return Run(result.returncode, " ".join(result.stdout.split()), changed_tasks(result.stdout))

    return run


@pytest.fixture
def state(host: Any, facts: dict[str, Any]) -> State:
    """Reads all that a run might leave on the host. What trading bots write is left out: their journals and
    Momentum's data."""
    rows = (
        "SELECT n.nspname || '.' || c.relname, (xpath('/row/n/text()', query_to_xml(format("
        "'SELECT count(*) AS n FROM %I.%I', n.nspname, c.relname), false, true, '')))[1] "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1"
    )
    psql = "docker exec -i trading_postgres psql -XAtq -U postgres -d trading_db"
    commands = {
        "files": f"find {facts['base_dir']} \\( -path '*/journal/*' -o -path '*/momentum/data' \\) -prune -o "
        "-printf '%p %m %u %g %s %T@\\n' | sort",
        "temporary": "find /tmp /var/tmp -xdev | grep -v -e systemd-private -e runc-process | sort",
        "containers": "docker ps --all --format '{{.ID}} {{.Names}} {{.State}}' | sort",
        "images": "docker images --all --no-trunc --quiet | sort",
        "networks": "docker network ls --no-trunc --quiet | sort",
        "volumes": "docker volume ls --quiet | sort",
        "rows": f'docker inspect trading_postgres >/dev/null 2>&1 || exit 0; {psql} -c "{rows}"',
    }

    def read() -> dict[str, str]:
        with host.sudo():
            return {name: host.check_output(command) for name, command in commands.items()}

    return read


@pytest.fixture
def check_journals(host: Any, facts: dict[str, Any]) -> Callable[[], None]:
    """Fails unless all that the legacy databases acknowledged before the last migration is in trading_db."""
    zones = " ".join(f"--timezone {bot['id']}={bot['timezone']}" for bot in facts["bots"])
    dsn = f"host=127.0.0.1 port={facts['ports']['postgres']} dbname=trading_db user=trading_user"
    command = (
        f"cd {facts['base_dir']} && . ./.env.database && "
        f"PGPASSWORD=$POSTGRES_PASSWORD python3 - --dsn '{dsn}' {zones} journal"
    )

    def check() -> None:
        name = host.backend.host.name
        with PROJECT.joinpath("tests/legacy/check_journal.py").open() as program:
            subprocess.run(
                ["ssh", "-F", PROJECT / f".cache/testbed/{name}.ssh", name, command], stdin=program, check=True
            )

    return check


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the logs of the services concerned to the report of a failure."""
    report = yield
    host = getattr(item, "funcargs", {}).get("host")
    if not report.failed or host is None:
        return report
    containers = [name for mark in item.iter_markers("service") for name in mark.args]
    state = host.run("docker ps --all --format 'table {{.Names}}\\t{{.Status}}\\t{{.Image}}'")
    report.sections.append(("Containers of the host", state.stdout))
    for name in containers:
        logs = host.run("docker logs --tail %s %s 2>&1", str(LOG_LINES), name)
        report.sections.append((f"The last {LOG_LINES} lines of {name}", logs.stdout))
    return report
