"""The test suite: lint, unit tests, then every Molecule scenario.

    make test | make lint | make unit | make molecule [SCENARIO=x] [KEEP=1]

Scenarios run two at a time (JOBS=n in the environment changes it), each on a
host of its own and into a log of its own, with a line of progress now and
then. The first failure stops what has not begun.

Exit codes: 0 all passed; 1 something failed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
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
    Step("mypy", ["mypy"]),
    Step("shellcheck", ["shellcheck", *shell_scripts()]),
    Step("ansible-lint", ["ansible-lint", "--yamllint-file", ".config/yamllint.yml"]),
]
UNIT = [Step("Unit tests", ["pytest"], wrapper=["scripts/with-docker"])]


@dataclass
class Scenario:
    """A scenario that runs: its process, its log, when it began."""

    name: str
    process: subprocess.Popen[bytes]
    file: BinaryIO
    log: Path
    started: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def progress(self) -> str:
        """The step and task it is at, read from its log."""
        text = self.log.read_text(errors="replace")
        steps = list(re.finditer(r" > (\w+)\] Executing$", text, flags=re.M))
        if not steps:
            return f"{self.name} {clock(self.seconds)} starts"
        tasks = re.findall(r"^TASK \[(.+?)\]", text[steps[-1].end() :], flags=re.M)
        return f"{self.name} {clock(self.seconds)} {': '.join([steps[-1][1], *tasks[-1:]])}"


def scenarios() -> list[str]:
    """All scenarios, by name."""
    return sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))


def molecule_command(name: str, keep: bool) -> list[str]:
    """The command that runs a scenario from the start to the end."""
    return ["molecule", "test", "-s", name, *(["--destroy", "never"] if keep else [])]


def start(name: str, number: int, keep: bool) -> Scenario:
    """Starts a scenario in the background."""
    log = log_path("molecule", number, name)
    file = log.open("wb")
    env = environment() | {
        "ANSIBLE_FORCE_COLOR": "false",
        "ANSIBLE_NOCOLOR": "true",
        "FORCE_COLOR": "0",
        "NO_COLOR": "1",
        "PY_COLORS": "0",
        "MOLECULE_COMMAND_BORDERS": "0",
    }
    env.pop("FORCE_COLOR")
    process = subprocess.Popen(
        ["scripts/with-docker", *molecule_command(name, keep)],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
    )
    return Scenario(name, process, file, log, time.monotonic())


def show_failure(scenario: Scenario, code: int) -> None:
    """Prints the end of the log of a scenario that failed."""
    lines = scenario.log.read_text(errors="replace").splitlines()
    print(paint(f"\n--- the last lines of {scenario.log.relative_to(ROOT)} ---", "31"))
    print("\n".join(lines[-TAIL_LINES:]))
    print(paint(f"--- {scenario.name} failed with exit code {code} ---\n", "31"), flush=True)


def run_scenarios(names: Sequence[str], keep: bool, jobs: int) -> int:
    """Runs scenarios, `jobs` at a time. Returns 0 or EXIT_FAILED."""
    waiting = list(names)
    running: list[Scenario] = []
    passed: list[str] = []
    failed: list[str] = []
    began = last_sign = time.monotonic()
    print(paint(f"\nMolecule: {len(names)} scenarios, {jobs} at a time", "1"))
    print(paint(f"$ {' '.join(molecule_command('<scenario>', keep))}", "2"), flush=True)
    try:
        while running or (waiting and not failed):
            while waiting and not failed and len(running) < jobs:
                name = waiting.pop(0)
                running.append(start(name, names.index(name) + 1, keep))
                print(f"  {name} started, log {running[-1].log.relative_to(ROOT)}", flush=True)
            time.sleep(0.5)
            for scenario in list(running):
                code = scenario.process.poll()
                if code is None:
                    continue
                running.remove(scenario)
                scenario.file.close()
                (failed if code else passed).append(scenario.name)
                verdict = paint("failed", "31") if code else paint("passed", "32")
                print(
                    f"  {scenario.name} {verdict} in {clock(scenario.seconds)}"
                    f" ({len(passed) + len(failed)}/{len(names)})",
                    flush=True,
                )
                if code:
                    show_failure(scenario, code)
            if running and time.monotonic() - last_sign >= HEARTBEAT_SECONDS:
                last_sign = time.monotonic()
                print("  ... " + " | ".join(s.progress() for s in running), flush=True)
    except KeyboardInterrupt:
        for scenario in running:
            try:
                scenario.process.wait(timeout=30)
            except (KeyboardInterrupt, subprocess.TimeoutExpired):
                scenario.process.kill()
        raise
    print(f"Molecule: {len(passed)} passed, {len(failed)} failed in {clock(time.monotonic() - began)}")
    if not failed:
        return 0
    print(
        f"\nFailed: {', '.join(failed)}. Not run: {', '.join(waiting) or 'none'}.\n"
        f"  logs:   .cache/logs/molecule/\n"
        f"  repeat: make molecule SCENARIO={failed[0]} KEEP=1"
        f"  (its host stays: ssh -F .cache/testbed/trading_{failed[0]}.ssh trading_{failed[0]})\n"
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


def run(part: str, names: Sequence[str], keep: bool, jobs: int) -> int:
    """Runs a part of the suite, or all of it."""
    if part == "lint":
        return run_steps(LINT, "make lint")
    if part == "unit":
        return run_steps([prepare_step(), *UNIT], "make unit")
    if part == "molecule":
        return run_steps([prepare_step()], "make molecule") or run_scenarios(names, keep, jobs)
    return run_steps([*LINT, prepare_step(), *UNIT], "make test") or run_scenarios(
        names, keep, jobs
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The test suite.")
    parser.add_argument("part", nargs="?", default="all", choices=["all", "lint", "unit", "molecule"])
    parser.add_argument("scenario", nargs="*", help="scenarios to run; all by default")
    parser.add_argument("--keep", action="store_true", help="keep the hosts of the scenarios")
    args = parser.parse_args(argv)
    known = scenarios()
    for name in args.scenario:
        if name not in known:
            print(f"There is no scenario {name}. There are: {', '.join(known)}", file=sys.stderr)
            return EXIT_FAILED
    jobs = int(os.environ.get("JOBS", "2"))
    started = time.monotonic()
    try:
        code = run(args.part, args.scenario or known, args.keep, jobs)
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing to repair: run it again.", file=sys.stderr)
        return EXIT_INTERRUPTED
    if code == 0:
        print(paint(f"\nAll passed in {clock(time.monotonic() - started)}.", "32"))
    return code


if __name__ == "__main__":
    sys.exit(main())
