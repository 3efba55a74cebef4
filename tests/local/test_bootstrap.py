"""scripts/bootstrap says what a machine lacks, and how to mend it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (
    *("bash", "cat", "cut", "df", "dirname", "env", "flock", "grep", "id", "mkdir", "pwd"),
    *("rm", "sh", "sha256sum", "ssh", "ssh-keygen", "tail", "tr"),
)
NOBODY = 65534


class Machine:
    """A copy of the scripts, and a PATH that holds only what the test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        (folder / "scripts").mkdir()
        shutil.copy(ROOT / "scripts/bootstrap", folder / "scripts/bootstrap")
        shutil.copy(ROOT / "scripts/as-root", folder / "scripts/as-root")
        (folder / "requirements.txt").write_text("# none\n")
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path, tool
            (self.bin / tool).symlink_to(path)
        python = shutil.which("python3", path="/usr/local/bin:/usr/bin") or shutil.which("python3")
        assert python
        self.put("python3", f'exec {Path(python).resolve()} "$@"')

    def put(self, name: str, body: str) -> None:
        """Puts a small shell script on the PATH, or replaces the one there."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def lack(self, name: str) -> None:
        (self.bin / name).unlink()

    def run(
        self, script: str = "scripts/bootstrap", *arguments: str, unprivileged: bool = False, **env: str
    ) -> subprocess.CompletedProcess[str]:
        user = None
        if unprivileged and os.geteuid() == 0:
            user = NOBODY
            for path in [self.folder, *self.folder.rglob("*")]:
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        return subprocess.run(
            [self.folder / script, *arguments],
            env={"PATH": str(self.bin), "HOME": str(self.folder), "LC_ALL": "C.UTF-8", **env},
            user=user,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def machine() -> Iterator[Machine]:
    # Others have no way into pytest's folders.
    with tempfile.TemporaryDirectory() as folder:
        yield Machine(Path(folder))


def test_no_python(machine: Machine) -> None:
    machine.lack("python3")
    result = machine.run()
    assert result.returncode == 1
    assert "Python was not found; 3.11 or newer is needed" in result.stderr
    assert "apt-get install python3" in result.stderr


def test_old_python(machine: Machine) -> None:
    machine.put("python3", "case $1 in --version) echo Python 3.10.12 ;; *) exit 1 ;; esac")
    result = machine.run()
    assert result.returncode == 1
    assert "Python 3.10.12 was found; ansible-core needs 3.11 or newer" in result.stderr
    assert "PYTHON=python3.11 make" in result.stderr


def test_missing_package_without_apt(machine: Machine) -> None:
    machine.lack("ssh")
    result = machine.run()
    assert result.returncode == 1
    assert "An SSH client is missing, and there is no apt-get" in result.stderr
    assert "openssh-client" in result.stderr


def test_missing_package_without_root_or_sudo(machine: Machine) -> None:
    machine.lack("ssh")
    machine.put("apt-get", "exit 0")
    result = machine.run(unprivileged=True)
    assert result.returncode == 1
    assert "installing it takes root" in result.stderr
    assert "there is no sudo" in result.stderr


def test_missing_package_that_apt_cannot_fetch(machine: Machine) -> None:
    machine.lack("ssh")
    machine.put("apt-get", "echo 'E: Unable to locate package'; exit 100")
    machine.put("sudo", 'exec "$@"')
    result = machine.run()
    assert result.returncode == 1
    assert "openssh-client could not be installed" in result.stderr
    assert "E: Unable to locate package" in result.stderr
    assert "Check the network" in result.stderr


def test_full_disk(machine: Machine) -> None:
    machine.put("df", "echo Avail; echo 12")
    result = machine.run()
    assert result.returncode == 1
    assert "has 12 MiB free; .venv needs 1500 MiB" in result.stderr


def test_no_network(machine: Machine) -> None:
    (machine.folder / "requirements.txt").write_text("no-such-package-anywhere==1.0\n")
    result = machine.run(PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_CONFIG_FILE="/dev/null")
    assert result.returncode == 1
    assert "pip could not install requirements.txt" in result.stderr
    assert "Index: http://127.0.0.1:9/simple" in result.stderr
    assert not (machine.folder / ".venv/.complete").exists()


def test_second_run_is_silent_and_an_interrupted_one_is_redone(machine: Machine) -> None:
    assert "Making .venv" in machine.run().stdout
    again = machine.run()
    assert (again.returncode, again.stdout) == (0, "")
    (machine.folder / ".venv/.complete").unlink()
    (machine.folder / ".venv/bin/python").unlink()
    assert machine.run().returncode == 0
    assert (machine.folder / ".venv/bin/python").exists()


def test_changed_requirements_make_a_new_environment(machine: Machine) -> None:
    machine.run()
    (machine.folder / "requirements.txt").write_text("# changed\n")
    assert "Making .venv" in machine.run().stdout


def test_as_root_without_root_or_sudo(machine: Machine) -> None:
    if os.geteuid() != 0 and shutil.which("setpriv") is None:
        pytest.skip("needs an unprivileged account")
    result = machine.run("scripts/as-root", "true", unprivileged=True)
    assert result.returncode == 1
    assert "This takes root" in result.stderr
    assert "there is no sudo" in result.stderr
