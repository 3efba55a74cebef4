"""Runs named steps one after another: heading, live output, log, duration.

What `make demo` and `make test` share. A step is a command; its output goes to
the terminal as it comes and, without colours, to a log of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

_ANSI = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Step:
    """One command, as a person would type it.

    `wrapper` goes before the command without being shown: scripts/as-root and
    scripts/with-docker, which do nothing where they have nothing to do.
    """

    name: str
    command: Sequence[str]
    wrapper: Sequence[str] = ()

    @property
    def typed(self) -> str:
        return shlex.join(self.command)


@dataclass(frozen=True)
class Done:
    """A step that came to its end, after `seconds`, with this exit code."""

    step: Step
    seconds: float
    code: int
    log: Path


def prepare_step() -> Step:
    """The step that provides Docker Engine, images and the mirror."""
    return Step(
        "Prepare Docker Engine and images",
        ["ansible-playbook", "tests/testbed/prepare.yml"],
        wrapper=["scripts/as-root"],
    )


def with_docker(name: str, *command: str) -> Step:
    """A step that talks to the Docker Engine of this machine."""
    return Step(name, command, wrapper=["scripts/with-docker"])


def paint(text: str, code: str) -> str:
    """Wraps text in an ANSI code (bold "1", red "31", ...) on a terminal."""
    return f"\x1b[{code}m{text}\x1b[0m" if sys.stdout.isatty() else text


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def environment() -> dict[str, str]:
    """The environment of a step: colours follow the terminal through the pipe."""
    env = dict(os.environ)
    env["PYTHONUNBUFFERED"] = "1"
    if sys.stdout.isatty():
        env |= {"ANSIBLE_FORCE_COLOR": "true", "PY_COLORS": "1", "FORCE_COLOR": "1"}
    else:
        env |= {"ANSIBLE_NOCOLOR": "true", "PY_COLORS": "0", "NO_COLOR": "1"}
        env.pop("FORCE_COLOR", None)
    return env


def log_path(folder: str, number: int, name: str) -> Path:
    """Where the output of a step goes, its folder made."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = CACHE / "logs" / folder / f"{number}-{slug}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def run_step(step: Step, number: int, total: int, folder: str) -> Done:
    """Runs a step in the foreground. KeyboardInterrupt passes, the child waited for."""
    print(paint(f"\n({number}/{total}) {step.name}", "1"))
    print(paint(f"$ {step.typed}", "2"), flush=True)
    log = log_path(folder, number, step.name)
    started = time.monotonic()
    process = subprocess.Popen(
        [*step.wrapper, *step.command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    with log.open("wb") as file:
        try:
            while chunk := os.read(process.stdout.fileno(), 65536):
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
                file.write(_ANSI.sub(b"", chunk))
            code = process.wait()
        except KeyboardInterrupt:
            # The child got the same signal: let it end in its own way.
            try:
                process.wait(timeout=30)
            except (KeyboardInterrupt, subprocess.TimeoutExpired):
                process.kill()
            raise
    return Done(step, time.monotonic() - started, code, log)


def explain(done: Done, number: int, total: int, again: str) -> None:
    """Says on stderr which step failed, where its log is, and what to type."""
    sys.stdout.flush()
    print(
        f"\n({number}/{total}) {done.step.name} failed after {clock(done.seconds)}"
        f" with exit code {done.code}.\n"
        f"  log:    {done.log.relative_to(ROOT)}\n"
        f"  repeat: . .venv/bin/activate && {done.step.typed}\n"
        f"  or all: {again}",
        file=sys.stderr,
    )
