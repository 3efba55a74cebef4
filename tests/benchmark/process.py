"""Runs commands and measures them: wall time, and peak memory of the client."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05


class CommandFailed(Exception):
    """A command ended with an exit code other than 0; the text holds its stderr."""


@dataclass(frozen=True)
class Step:
    """What a route took: `seconds` of wall time, and `peak` bytes of resident
    memory of its client processes, None where the server did the work."""

    seconds: float
    peak: int | None = None

    def __add__(self, other: Step) -> Step:
        """One after the other: times add up, the higher peak counts."""
        peaks = [step.peak for step in (self, other) if step.peak is not None]
        return Step(self.seconds + other.seconds, max(peaks, default=None))


def watch(process: subprocess.Popen[str], started: float) -> Step:
    """Wait for a process that began at `started` (monotonic seconds).

    Its memory is read from /proc while it runs. ru_maxrss would not do: it
    begins with what the parent had when it forked. Raises CommandFailed.
    """
    peak = 0
    try:
        while True:
            peak = max(peak, sum(map(high_water, family(process.pid))))
            try:
                _, error = process.communicate(timeout=SAMPLE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
        seconds = time.monotonic() - started
    except BaseException:
        for pid in family(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode != 0:
        raise CommandFailed(f"{process.args!r} ended with exit code {process.returncode}:\n{error}")
    return Step(seconds, peak)


def family(pid: int) -> list[int]:
    """A process and its descendants, as far as they still run."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in path.read_text().split()]
            except OSError:
                continue
    return found


def high_water(pid: int) -> int:
    """The most resident memory that a process ever had, in bytes; 0 when it is gone."""
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), flags=re.M)
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0


def run(command: Sequence[str], stdin: Path | None = None) -> tuple[Step, str]:
    """Run a command whose client is not measured; the step and its stderr. Raises CommandFailed."""
    started = time.monotonic()
    with stdin.open("rb") if stdin else Path("/dev/null").open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True)
    step = Step(time.monotonic() - started)
    error = done.stderr.decode(errors="replace")
    if done.returncode != 0:
        output = done.stdout.decode(errors="replace")
        raise CommandFailed(f"{list(command)!r} ended with exit code {done.returncode}:\n{output}{error}")
    return step, error


def available_memory() -> int:
    """What processes can have without swapping, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
