"""The result as Markdown: a table per source, and the machine."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.benchmark.process import Step

BEGIN = "<!-- benchmark: begin -->"
END = "<!-- benchmark: end -->"

ENGINE = "engine"
RECONCILED = "engine and reconciliation"
DELTA = "engine, delta"
FLOOR = ("COPY, indexes in place", "COPY, indexes rebuilt")


@dataclass(frozen=True)
class Line:
    """One route over one number of trades: a step for each run. `rows` is what
    the route carried: the trades, or the rows of the delta."""

    route: str
    trades: int
    rows: int
    steps: Sequence[Step]

    @property
    def seconds(self) -> float:
        return median(step.seconds for step in self.steps)

    @property
    def peak(self) -> int | None:
        return max((step.peak for step in self.steps if step.peak is not None), default=None)


def ratio(line: Line, others: Sequence[Line]) -> str:
    """The median of the ratios within each run, to the fastest of the others in that run."""
    if not others:
        return "-"
    ratios = [
        step.seconds / min(other.steps[number].seconds for other in others) for number, step in enumerate(line.steps)
    ]
    return f"{median(ratios):.2f}"


def table(lines: Sequence[Line]) -> str:
    """The lines of one source, those of one number of trades together."""
    header = ("route", "rows", "seconds", "rows/s", "peak memory", "ratio to engine", "ratio to floor")
    out = [" | ".join(header), "---|" + "|".join(["---:"] * (len(header) - 1))]
    for line in lines:
        same = [other for other in lines if other.trades == line.trades]
        out.append(
            " | ".join(
                (
                    line.route,
                    f"{line.rows:,}",
                    f"{line.seconds:.2f}",
                    f"{line.rows / line.seconds:,.0f}",
                    "-" if line.peak is None else f"{line.peak / 2**20:,.0f} MiB",
                    ratio(line, [other for other in same if other.route == ENGINE]),
                    "-" if line.route == DELTA else ratio(line, [other for other in same if other.route in FLOOR]),
                )
            )
        )
    return "\n".join(f"| {row} |" if not row.startswith("---") else f"|{row}|" for row in out)


def machine(postgres: str, folder: Path, runs: int) -> str:
    """One paragraph on where this was measured; `folder` lies on the disk in use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"Measured on {os.cpu_count()} cores, {memory / 2**30:.0f} GiB, Linux {platform.release()}, {storage(folder)};"
        f" PostgreSQL {postgres}, Python {platform.python_version()} ({os.path.realpath(sys.executable)}), SQLite {sqlite3.sqlite_version};"
        f" medians of {runs} run{'s' if runs > 1 else ''}."
    )


def storage(folder: Path) -> str:
    """The device and filesystem of a folder, such as `vda (virtio disk), ext4`."""
    found = subprocess.run(
        ["findmnt", "--noheadings", "--output", "SOURCE,FSTYPE", "--target", str(folder)],
        capture_output=True,
        text=True,
    )
    device, _, kind = found.stdout.strip().partition(" ")
    name = device.rpartition("/")[2]
    block = Path("/sys/class/block") / name
    queue = next((path for path in (block / "queue/rotational", block / "../queue/rotational") if path.exists()), None)
    if name.startswith("nvme"):
        disk = "NVMe"
    elif name.startswith("vd"):
        disk = "virtio disk"
    elif queue is not None:
        disk = "rotating disk" if queue.read_text().strip() == "1" else "solid-state disk"
    else:
        disk = "unknown device"
    return f"{name or folder} ({disk}), {kind.strip()}"


def render(tables: dict[str, list[Line]], description: str, warnings: Sequence[str]) -> str:
    """The whole result. `tables` maps a source's title to its lines."""
    parts = [f"### {title}\n\n{table(lines)}" for title, lines in tables.items()]
    return "\n\n".join([*parts, description, *(f"Warning: {warning}" for warning in warnings)]) + "\n"


def has_block(path: Path) -> bool:
    """Whether a file has the two markers."""
    return path.is_file() and END in path.read_text(encoding="utf-8").partition(BEGIN)[2]


def replace_block(path: Path, text: str) -> None:
    """Put the result between the two markers of a file that has them."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
