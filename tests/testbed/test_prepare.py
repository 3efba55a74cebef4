"""prepare.yml says what a machine lacks, and changes nothing then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_ENGINE = "echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock.' >&2; exit 1"
DENIED = "echo 'permission denied while trying to connect to the Docker daemon socket' >&2; exit 1"


def engine(version: str) -> str:
    """A client whose engine answers."""
    return f'test "$1" = info && echo "{version} /"'


def prepare(folder: Path, docker: str | None = None, **variables: Any) -> tuple[int, str]:
    """Exit code and output of prepare.yml; `docker` is the script that stands in for the command."""
    programs = folder / "bin"
    programs.mkdir()
    path = os.environ["PATH"]
    if docker is not None:
        for program in Path("/usr/bin").iterdir():
            if not program.name.startswith("docker"):
                (programs / program.name).symlink_to(program)
        (programs / "docker").write_text(f"#!/bin/sh\n{docker}\n")
        (programs / "docker").chmod(0o755)
        path = str(programs)
    environment = {**os.environ, "PATH": path, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_HOME": str(folder / "ansible")}
    variables |= {"testbed_state": f"{folder}/state", "ansible_python_interpreter": sys.executable}
    playbook = Path(sys.executable).parent / "ansible-playbook"
    command = [sys.executable, str(playbook), "tests/testbed/prepare.yml", "-e", json.dumps(variables)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    # Ansible wraps long messages.
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("docker", "variables", "promised"),
    [
        (DENIED, {}, "A Docker Engine runs, but"),
        (engine("19.03.15"), {}, "Docker Engine 19.03.15 found, 20.10 or newer expected"),
        (engine("20.10.24"), {"testbed_disk_gib": 99999}, "99999 GiB expected: free some"),
        (NO_ENGINE, {"testbed_is_root": False}, "may not install or start one: run as root (sudo make ...)"),
        (NO_ENGINE, {"testbed_package_manager": "dnf"}, "package manager dnf; expected Debian or Ubuntu"),
    ],
)
def test_a_machine_that_is_refused(tmp_path: Path, docker: str, variables: dict[str, Any], promised: str) -> None:
    code, said = prepare(tmp_path, docker, **{"testbed_is_root": True} | variables)
    assert code != 0
    assert promised in said
    assert not (tmp_path / "state").exists()


def test_neither_registry_nor_package_mirror(tmp_path: Path) -> None:
    base = {"name": "trading-testbed-missing:latest", "suite": "trixie", "include": [], "purge": []}
    code, said = prepare(
        tmp_path, testbed_mirror=True, testbed_bases=[base], testbed_debian_mirror="http://127.0.0.1:1/debian"
    )
    assert code != 0
    assert "Neither docker.io nor http://127.0.0.1:1/debian answers" in said
    assert not (tmp_path / "state").exists()
