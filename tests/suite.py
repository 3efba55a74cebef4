"""The test suite: lint, then unit tests, integration tests and every Molecule scenario.

    make test | make lint | make unit | make integration | make molecule [SCENARIO=x] [KEEP=1]

These jobs run two at a time (JOBS=n in the environment changes
it), each scenario on a host of its own, each into a log of its own, with a line
of progress now and then. The first failure stops what has not begun.

Exit codes: 0 all passed; 1 something failed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.runner import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    ROOT,
    Step,
    clock,
    environment,
    explain,
    log_path,
    paint,
    prepare_step,
    run_step,
    with_docker,
)

HEARTBEAT_SECONDS = 20
TAIL_LINES = 60


def shell_scripts() -> list[str]:
    """The files under version control that a shell runs."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    files = [name for name in listed.stdout.splitlines() if not name.endswith(".j2")]
    shebang = re.compile(rb"#!/(usr/)?bin/(env )?(ba|da)?sh\b")
    return [name for name in files if (ROOT / name).is_file() and shebang.match((ROOT / name).read_bytes())]


LINT = [
    Step("yamllint", ["yamllint", "--strict", "-c", ".config/yamllint.yml", "."]),
    Step("ruff", ["ruff", "check", "."]),
    Step("ruff format", ["ruff", "format", "--check", "."]),
    Step("mypy", ["mypy"]),
    Step("shellcheck", ["shellcheck", *shell_scripts()]),
    Step("ansible-lint", ["ansible-lint", "--yamllint-file", ".config/yamllint.yml"]),
]
UNIT = Step("Unit tests", ["pytest", "tests/unit"])
INTEGRATION = with_docker("Integration tests", "pytest", "--ignore=tests/unit")


@dataclass(frozen=True)
class Job:
    """What runs beside others: its command, and what to type to run it alone."""

    name: str
    command: Sequence[str]
    repeat: str


@dataclass
class Running:
    """A job at work: its process, its log, when it began."""

    job: Job
    process: subprocess.Popen[bytes]
    file: BinaryIO
    log: Path
    started: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def progress(self) -> str:
        """Where it is, read from its log: pytest's percentage, or Molecule's step and task."""
        text = self.log.read_text(errors="replace")
        place = re.findall(r"\[ *\d+%\]$", text, flags=re.M)[-1:]
        if steps := list(re.finditer(r" > (\w+)\] Executing$", text, flags=re.M)):
            tasks = re.findall(r"^TASK \[(.+?)\]", text[steps[-1].end() :], flags=re.M)
            place = [": ".join([steps[-1][1], *tasks[-1:]])]
        return f"{self.job.name} {clock(self.seconds)} {''.join(place) or 'starts'}"


def scenarios() -> list[str]:
    """All scenarios, by name."""
    return sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))


def scenario_job(name: str, keep: bool) -> Job:
    """A scenario from the start to the end."""
    repeat = f"make molecule SCENARIO={name} KEEP=1  (its host stays: ssh -F .cache/testbed/trading_{name}.ssh trading_{name})"
    return Job(name, ["molecule", "test", "-s", name, *(["--destroy", "never"] if keep else [])], repeat)


def start(job: Job, number: int) -> Running:
    """Starts a job in the background."""
    log = log_path("jobs", number, job.name)
    file = log.open("wb")
    env = environment() | {
        "ANSIBLE_FORCE_COLOR": "false",
        "ANSIBLE_NOCOLOR": "true",
        "NO_COLOR": "1",
        "PY_COLORS": "0",
        "MOLECULE_COMMAND_BORDERS": "0",
    }
    env.pop("FORCE_COLOR", None)
    process = subprocess.Popen(
        ["scripts/with-docker", *job.command],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
    )
    return Running(job, process, file, log, time.monotonic())


def show_failure(run: Running, code: int) -> None:
    """Prints the end of the log of a job that failed."""
    lines = run.log.read_text(errors="replace").splitlines()
    print(paint(f"\n--- the last lines of {run.log.relative_to(ROOT)} ---", "31"))
    print("\n".join(lines[-TAIL_LINES:]))
    print(paint(f"--- {run.job.name} failed with exit code {code} ---\n", "31"), flush=True)


def run_jobs(jobs: Sequence[Job], at_once: int) -> int:
    """Runs jobs, some at a time. Returns 0 or EXIT_FAILED."""
    waiting = list(jobs)
    running: list[Running] = []
    passed: list[Job] = []
    failed: list[Job] = []
    began = last_sign = time.monotonic()
    print(paint(f"\nTests and Molecule scenarios: {len(jobs)} to run, {at_once} at a time", "1"))
    try:
        while running or (waiting and not failed):
            while waiting and not failed and len(running) < at_once:
                job = waiting.pop(0)
                running.append(start(job, jobs.index(job) + 1))
                print(
                    f"  {job.name} started: {shlex.join(job.command)} > {running[-1].log.relative_to(ROOT)}", flush=True
                )
            time.sleep(0.5)
            for run in list(running):
                code = run.process.poll()
                if code is None:
                    continue
                running.remove(run)
                run.file.close()
                (failed if code else passed).append(run.job)
                verdict = paint("failed", "31") if code else paint("passed", "32")
                print(
                    f"  {run.job.name} {verdict} in {clock(run.seconds)} ({len(passed) + len(failed)}/{len(jobs)})",
                    flush=True,
                )
                if code:
                    show_failure(run, code)
            if running and time.monotonic() - last_sign >= HEARTBEAT_SECONDS:
                last_sign = time.monotonic()
                print("  ... " + " | ".join(run.progress() for run in running), flush=True)
    except KeyboardInterrupt:
        for run in running:
            try:
                run.process.wait(timeout=30)
            except (KeyboardInterrupt, subprocess.TimeoutExpired):
                run.process.kill()
        raise
    print(f"{len(passed)} passed, {len(failed)} failed in {clock(time.monotonic() - began)}")
    if not failed:
        return 0
    print(
        f"\nFailed: {', '.join(job.name for job in failed)}."
        f" Not run: {', '.join(job.name for job in waiting) or 'none'}.\n"
        "  logs:   .cache/logs/jobs/\n"
        f"  repeat: {failed[0].repeat}\n"
        "  or all: make test",
        file=sys.stderr,
    )
    return EXIT_FAILED


def run_steps(steps: Sequence[Step], again: str) -> int:
    """Runs steps in the foreground until one fails. Returns 0 or EXIT_FAILED."""
    for number, step in enumerate(steps, start=1):
        done = run_step(step, number, len(steps), "test")
        if done.code != 0:
            explain(done, number, len(steps), again)
            return EXIT_FAILED
    return 0


def run(part: str, names: Sequence[str], keep: bool, at_once: int) -> int:
    """Runs a part of the suite, or all of it."""
    if part == "lint":
        return run_steps(LINT, "make lint")
    if part == "unit":
        return run_steps([UNIT], "make unit")
    if part == "integration":
        return run_steps([prepare_step(), INTEGRATION], "make integration")
    jobs = [scenario_job(name, keep) for name in names]
    if part == "molecule":
        return run_steps([prepare_step()], "make molecule") or run_jobs(jobs, at_once)
    tests = [Job("unit", UNIT.command, "make unit"), Job("integration", INTEGRATION.command, "make integration")]
    return run_steps([*LINT, prepare_step()], "make test") or run_jobs([*tests, *jobs], at_once)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The test suite.")
    parser.add_argument("part", nargs="?", default="all", choices=["all", "lint", "unit", "integration", "molecule"])
    parser.add_argument("scenario", nargs="*", help="scenarios to run; all by default")
    parser.add_argument("--keep", action="store_true", help="keep the hosts of the scenarios")
    args = parser.parse_args(argv)
    known = scenarios()
    for name in args.scenario:
        if name not in known:
            print(f"There is no scenario {name}. There are: {', '.join(known)}", file=sys.stderr)
            return EXIT_FAILED
    at_once = int(os.environ.get("JOBS", "2"))
    started = time.monotonic()
    try:
        code = run(args.part, args.scenario or known, args.keep, at_once)
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing to repair: run it again.", file=sys.stderr)
        return EXIT_INTERRUPTED
    if code == 0:
        print(paint(f"\nAll passed in {clock(time.monotonic() - started)}.", "32"))
    return code


if __name__ == "__main__":
    sys.exit(main())
