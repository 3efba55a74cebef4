"""playbooks/audit_bots.yml, run for real over the legacy bots' folders on this machine."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bot_audit import bots
from bot_audit.finding import Finding

ROOT = Path(__file__).parents[2]
LEGACY = ROOT / "tests/legacy/roles/legacy/files"
BOTS = ("shortseller", "momentum", "lxalgo")
SECRET = "hunter2-Geheim!"
COSTLY = f'''"""Settings."""
BYBIT_API_SECRET = "{SECRET}"
DSN = "postgresql://bot:{SECRET}@pgbouncer:6432/trading_db"
cursor.execute("SELECT * FROM trading.trades WHERE note = '{SECRET}' AND '{{{{ 6 * 7 }}}}' = symbol")
'''


@dataclass(frozen=True)
class Run:
    """Exit code and output; `text` is the output with its line breaks undone."""

    code: int
    output: str

    @property
    def text(self) -> str:
        return " ".join(self.output.split())

    @property
    def names(self) -> list[str]:
        return re.findall(r"^\s+name +(\S+)$", self.output, flags=re.M)


@dataclass
class Host:
    """A base folder on this machine, and the inventory that describes it."""

    base: Path
    inventory: Path
    bots: tuple[str, ...] = BOTS

    def audit(self, *options: str, accepted: list[str] | None = None) -> Run:
        platform: dict[str, Any] = {
            "base_dir": str(self.base),
            "base_owner": pwd.getpwuid(os.getuid()).pw_name,
            "base_group": grp.getgrgid(os.getgid()).gr_name,
            "bots": [{"id": f"{bot}_001", "folder": bot} for bot in self.bots],
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "bot_audit_accepted": accepted or [],
        }
        (self.inventory / "group_vars/all.json").write_text(json.dumps(platform))
        done = subprocess.run(
            ["ansible-playbook", "playbooks/audit_bots.yml", "-i", self.inventory, "-c", "local", *options],
            cwd=ROOT,
            env=os.environ | {"ANSIBLE_NOCOLOR": "true", "ANSIBLE_FORCE_COLOR": "false", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout, done.stderr)
        assert SECRET not in done.stdout + done.stderr
        return Run(done.returncode, done.stdout)

    def findings(self) -> list[Finding]:
        """What the audit finds without Ansible."""
        sources: bots.Sources = {}
        for bot in self.bots:
            files = {str(path.relative_to(self.base / bot)): path for path in (self.base / bot).rglob("*.py")}
            texts = {name: path.read_bytes().decode("latin-1") for name, path in files.items()}
            sources[bot] = {"files": texts, "skipped": {}}
        return bots.audit(sources, [{"id": f"{bot}_001", "folder": bot} for bot in self.bots], [], []).findings

    def state(self) -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_mode) for path in sorted(self.base.rglob("*"))}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    base, inventory = tmp_path / "Alpha", tmp_path / "inventory"
    for bot in BOTS:
        shutil.copytree(LEGACY / bot, base / bot, ignore=shutil.ignore_patterns("__pycache__"))
    (inventory / "group_vars").mkdir(parents=True)
    (inventory / "hosts.yml").write_text("trading: {hosts: {localhost: {}}}\n")
    return Host(base, inventory)


def test_findings_stop_the_play_and_all_are_listed_in_a_dry_run_too(host: Host) -> None:
    (host.base / "database/reports").mkdir(parents=True)
    host.bots = (*BOTS, "fourth")
    # What is not the bot's own code, and what cannot be read.
    for other in (".venv/lib/x.py", "__pycache__/x.py", "node_modules/x.py", "env/x.py", "data/big.py"):
        file = host.base / "lxalgo" / other
        file.parent.mkdir(parents=True)
        file.write_text("import sqlite3\n")
    (host.base / "lxalgo/env/pyvenv.cfg").touch()
    (host.base / "lxalgo/data/big.py").write_text("#" * 20000)
    os.mkfifo(host.base / "lxalgo/pipe.py")
    (host.base / "lxalgo/linked").symlink_to(host.base / "momentum")
    (host.base / "lxalgo/broken.py").write_text("def f(:\n")
    (host.base / "lxalgo/settings.py").write_text(COSTLY)
    before = host.state()
    run = host.audit("-e", "bot_audit_max_bytes=10000", "--check", "-vvv")
    assert run.code == 2
    assert "changed=1" in run.text
    assert host.state() == before
    # What the sources are packed in stays out of sight, too.
    assert "censored" in run.text
    assert re.search(r"payload: eJ", run.text) is None
    assert "shortseller (shortseller_001): 16 findings, 0 accepted; 7 sources checked, 0 of ours left out" in run.text
    assert (
        "config/settings.py:20: connection that bypasses PgBouncer why POSTGRES_PORT is 5432 unless .env sets it, past"
        " PgBouncer (pgbouncer:6432) change Use os.getenv('POSTGRES_HOST', 'pgbouncer')" in run.text
    )
    assert (
        "database/trade_database.py:145: statement without bot_id why reads trading.trades without bot_id: the rows of"
        " all bots stand in that table. change SELECT * FROM trading.trades WHERE bot_id = %s AND mode = COALESCE(%s,"
        " mode) ORDER BY entry_time DESC LIMIT %s name momentum:database/trade_database.py:bot_id:120af2" in run.text
    )
    lxalgo = [name.split(":")[1:3] for name in run.names if name.startswith("lxalgo:")]
    assert lxalgo == [
        ["broken.py", "unread"],
        ["data/big.py", "unread"],
        ["linked", "unread"],
        ["pipe.py", "unread"],
        ["settings.py", "password"],
        ["settings.py", "password"],
        ["settings.py", "bot_id"],
    ]
    assert "fourth (fourth_001): 1 finding, 0 accepted; 0 sources checked" in run.text
    assert "cannot be read: No such file or directory" in run.text
    assert "20000 bytes, more than 10000" in run.text
    assert "SELECT * FROM trading.trades WHERE bot_id = %s AND note = '***' AND '***' = symbol" in run.text
    assert re.search(
        r"findings in the code of 4 bots: statement without bot_id \d+; .*Expected none but accepted ones\. .*"
        r"bot_audit_accepted in .*/inventory/group_vars/all; then run playbooks/audit_bots\.yml\.",
        run.text,
    )


def test_what_is_accepted_by_name_does_not_stop_the_play(host: Host) -> None:
    reports = host.base / "database/reports"
    reports.mkdir(parents=True)
    names = [finding.name for finding in host.findings()]
    first, *others = names
    run = host.audit(accepted=others)
    assert run.code == 2
    assert "changed=1" in run.text
    assert run.names == names
    assert "shortseller (shortseller_001): 1 finding, 15 accepted" in run.text
    assert [finding["name"] for finding in report_of(reports)["findings"]] == [first]
    gone = "momentum:main.py:sqlite:000000"
    run = host.audit(accepted=[*names, gone])
    assert run.code == 0
    assert f"accepted, but not found any more: {gone}." in run.text
    assert f"No open finding in the code of 3 bots, {len(names)} accepted." in run.text
    report = report_of(reports)
    assert report["findings"] == []
    assert [finding["name"] for finding in report["accepted"]] == names
    assert report["accepted_without_finding"] == [gone]
    again = host.audit("--check", accepted=[*names, gone])
    assert again.code == 0
    assert "changed=0" in again.text


def report_of(reports: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((reports / "bot_audit.json").read_text())
    return report
