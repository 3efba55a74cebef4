#!/usr/bin/python
"""Run a long program apart from the connection, and tell how far it is."""

from __future__ import annotations

import base64
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: watched_command
short_description: Run a long program on the host and show its progress
description:
  - Like ansible.builtin.command for a program that takes its time and says on standard error how far it is; its
    latest line is shown now and then. The result is that of ansible.builtin.command.
  - The program belongs to no connection. Where the playbook is interrupted, it goes on to its end.
  - Its output is kept in a private folder in memory until the playbook has read it, at most ten minutes.
  - Ansible's own `async` is not used, because that puts the task's arguments, and with them secrets, into a file.
  - In check mode the task is skipped, unless it says check_mode false.
options:
  argv: {description: The program and its arguments., type: list, elements: str}
  chdir: {description: Folder to run it in., type: path}
  environment: {description: Environment variables., type: dict, default: {}}
  secrets: {description: Environment variables that nobody may see., type: dict, default: {}}
  parent: {description: "Folder for that private one; of root's, and of no disk.", type: path, default: /run}
  job: {description: "A program at work: wait for it. For the action plugin.", type: path}
  wait: {description: How many seconds to wait for its end. For the action plugin., type: float, default: 2}
"""

EXAMPLES = r"""
- name: Move a lot of rows
  watched_command:
    argv: [python3, /srv/move_rows.py]
    secrets: {PASSWORD: "{{ password }}"}
  register: moved
"""

RETURN = r"""
rc: {description: Exit code; 255 where the program or its host went away., returned: always, type: int}
stdout: {description: Standard output., returned: always, type: str}
stderr: {description: Standard error., returned: always, type: str}
"""

# How long an ended program's output waits for a playbook that may be gone.
LINGER_SECONDS = 600
# What runs the program, in a session of its own. The exit code comes last.
SUPERVISOR = """
folder=$1 linger=$2
shift 2
"$@" > "$folder/stdout" 2> "$folder/stderr"
code=$?
umask 077
echo "$code" > "$folder/rc.new"
mv "$folder/rc.new" "$folder/rc"
while [ -d "$folder" ] && [ "$linger" -gt 0 ]; do sleep 1; linger=$((linger - 1)); done
rm -rf "$folder"
"""


def start(
    argv: Sequence[str], chdir: str | None, environment: Mapping[str, str], parent: str, linger: int = LINGER_SECONDS
) -> Path:
    """Start a program; the folder that will hold its output."""
    folder = Path(tempfile.mkdtemp(prefix="watched-", dir=parent))
    for name in ("stdout", "stderr", "lock"):
        (folder / name).touch(mode=0o600)
    # Held by the program and its supervisor as long as one of them lives.
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            subprocess.Popen(
                ["/bin/sh", "-c", SUPERVISOR, "watched_command", str(folder), str(linger), *argv],
                cwd=chdir,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        except OSError:
            shutil.rmtree(folder)
            raise
    return folder


def gone(folder: Path) -> bool:
    """Whether program and supervisor have died without an exit code."""
    with (folder / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return not (folder / "rc").exists()


def wait(folder: Path, seconds: float) -> int | None:
    """The exit code (255: killed together with its supervisor), or None while the program is at work."""
    end = time.monotonic() + seconds
    pause = 0.02
    while not (folder / "rc").exists():
        if gone(folder):
            return 255
        if time.monotonic() >= end:
            return None
        time.sleep(pause)
        pause = min(2 * pause, 0.25)
    return int((folder / "rc").read_text())


def latest(folder: Path) -> str:
    """The last whole line on standard error, without what psql puts before it."""
    with (folder / "stderr").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        lines = file.read().decode(errors="replace").split("\n")[:-1]
    line = next((line for line in reversed(lines) if line.strip()), "")
    return re.sub(r"^(psql:\S+ )?(NOTICE|INFO|WARNING): +", "", line).strip()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "argv": {"type": "list", "elements": "str"},
            "chdir": {"type": "path"},
            "environment": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "parent": {"type": "path", "default": "/run"},
            "job": {"type": "path"},
            "wait": {"type": "float", "default": 2},
        },
        required_one_of=[("argv", "job")],
        mutually_exclusive=[("argv", "job")],
    )
    values: dict[str, Any] = module.params
    try:
        if values["job"]:
            folder = Path(values["job"])
        else:
            environment = {name: str(text) for name, text in {**values["environment"], **values["secrets"]}.items()}
            folder = start(values["argv"], values["chdir"], environment, values["parent"])
        code = wait(folder, values["wait"])
        if code is None:
            module.exit_json(changed=True, job=str(folder), line=latest(folder))
        # Encoded, because Ansible would blot out whatever looks like a secret, be it part of a number.
        output = {name: base64.b64encode((folder / name).read_bytes()).decode() for name in ("stdout", "stderr")}
    except OSError as error:
        module.fail_json(msg=f"{error}: the program cannot be started, or its host was restarted meanwhile")
    shutil.rmtree(folder, ignore_errors=True)
    module.exit_json(changed=True, rc=code, **output)


if __name__ == "__main__":
    main()
