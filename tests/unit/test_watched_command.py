"""Long programs: their result, their progress, and that they outlive whoever started them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COUNT = 'i=0; while [ "$i" -lt 30 ]; do i=$((i + 1)); echo "psql:<stdin>:3: NOTICE:  $i rows" >&2; sleep 0.1; done'


def loaded(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


watched = loaded("plugins/modules/watched_command.py")
action = loaded("plugins/action/watched_command.py")


def start(tmp_path: Path, script: str, linger: int = 5, **environment: str) -> Path:
    folder: Path = watched.start(["sh", "-c", script], str(tmp_path), environment, str(tmp_path), linger)
    return folder


def kill(folder: Path) -> None:
    """Kills the program and its supervisor: a session of their own, with the folder's lock open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) == str(folder / "lock") for fd in process.glob("fd/*")):
                os.killpg(os.getpgid(int(process.name)), signal.SIGKILL)
        except OSError:
            continue


def test_result_of_a_short_program(tmp_path: Path) -> None:
    folder = start(tmp_path, 'echo "$WORD"; echo "two" >&2; exit 3', WORD="one")
    assert watched.wait(folder, 10) == 3
    assert (folder / "stdout").read_text() == "one\n"
    assert (folder / "stderr").read_text() == "two\n"


def test_output_is_private_and_holds_no_environment(tmp_path: Path) -> None:
    folder = start(tmp_path, "true", PASSWORD="hidden-Pa55word")
    assert watched.wait(folder, 10) == 0
    assert folder.stat().st_mode & 0o077 == 0
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file.name
        assert "hidden" not in file.read_text()


def test_an_end_is_noticed_at_once(tmp_path: Path) -> None:
    folder = start(tmp_path, "sleep 0.5")
    began = time.monotonic()
    assert watched.wait(folder, 10) == 0
    assert time.monotonic() - began < 8


def test_latest_line_is_whole_and_plain(tmp_path: Path) -> None:
    folder = start(tmp_path, "echo 'psql:<stdin>:12: NOTICE:  bot: 5 rows' >&2; printf 'bot: 6 ro' >&2; sleep 20")
    while not (folder / "stderr").read_text().endswith("ro"):
        time.sleep(0.05)
    assert watched.wait(folder, 0) is None
    assert watched.latest(folder) == "bot: 5 rows"
    kill(folder)


def test_program_killed_together_with_its_supervisor(tmp_path: Path) -> None:
    folder = start(tmp_path, "sleep 60")
    assert watched.wait(folder, 0) is None
    kill(folder)
    assert watched.wait(folder, 10) == 255


def test_output_that_nobody_reads_is_removed(tmp_path: Path) -> None:
    folder = start(tmp_path, "true", linger=1)
    end = time.monotonic() + 60
    while folder.exists():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("reply", "code", "error"),
    [
        ({"rc": 4, "stderr": "MSByb3cKZXJyb3I6IG5vIHNvdXJjZQo="}, 4, "1 row\nerror: no source"),
        ({"rc": 137, "stderr": "MSByb3cK"}, 137, "1 row\nerror: the program was killed by signal 9; run it again"),
        ({"rc": 255}, 255, "error: the program was killed; run it again"),
        ({"failed": True, "msg": "no such folder"}, 255, "error: no such folder"),
    ],
)
def test_a_failure_has_a_code_and_a_reason(reply: dict[str, Any], code: int, error: str) -> None:
    result = action.outcome(reply)
    assert result["failed"]
    assert (result["rc"], result["stderr"]) == (code, error)


def playbook(tmp_path: Path, script: str) -> list[str]:
    """The command that runs a playbook with one watched command."""
    task = {
        "name": "Move rows",
        "watched_command": {
            "argv": ["sh", "-c", script],
            "secrets": {"PASSWORD": "hidden-Pa55word"},
            "parent": str(tmp_path),
        },
        "register": "moved",
        "no_log": True,
    }
    show = {"ansible.builtin.debug": {"msg": "{{ moved.rc }} and {{ moved.stdout }}"}}
    file = tmp_path / "play.yml"
    file.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": [task, show]}]))
    interpreter = f"ansible_python_interpreter={sys.executable}"
    return ["ansible-playbook", "-i", "localhost,", "-c", "local", "-e", interpreter, str(file)]


def test_playbook_shows_progress_and_result(tmp_path: Path) -> None:
    done = subprocess.run(
        playbook(tmp_path, f'{COUNT}; echo "5432 rows"'), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"^working: \[localhost\] Move rows 0:0\d \| .* rows$", done.stdout, re.MULTILINE)
    assert "0 and 5432 rows" in done.stdout
    assert "hidden-Pa55word" not in done.stdout + done.stderr
    assert list(tmp_path.glob("watched-*")) == []


def test_program_outlives_a_killed_playbook(tmp_path: Path) -> None:
    wait = f"timeout 120 sh -c 'until [ -e {tmp_path}/go ]; do sleep 0.1; done'"
    command = playbook(tmp_path, f"touch {tmp_path}/begun; {wait} && touch {tmp_path}/ended")
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "ended").exists()
    (tmp_path / "go").touch()
    end = time.monotonic() + 60
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    # Or else the supervisor would wait for a reader, for ten minutes. It may be at work in there
    # still, and so may the module, which a killed playbook leaves behind.
    while list(tmp_path.glob("watched-*")):
        assert time.monotonic() < end
        for folder in tmp_path.glob("watched-*"):
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)
