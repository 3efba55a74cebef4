"""What the tests of all scenarios share.

`host` is testinfra's, connected over SSH as the unprivileged account that owns
the bots; `host.sudo()` is root. A test that needs a service marks it, and its
failure shows the service's logs:

    pytestmark = pytest.mark.service("trading_postgres")
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Generator
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
