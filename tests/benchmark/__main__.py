"""How long the migration takes, beside other routes for the same history.

    make bench [BENCH="--rows 100000 --runs 1 --source momentum"]
    python -m tests.benchmark --help

Progress goes to stderr, the result as Markdown to stdout. Nothing fails because
it is slow; where a route's result differs from the engine's, a line says so.
Exit codes: 0 done; 1 a command failed; 2 usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from tests.benchmark import report, servers
from tests.benchmark.data import Momentum, Shortseller, Source
from tests.benchmark.process import CommandFailed, Step, available_memory
from tests.benchmark.report import DELTA, ENGINE, FLOOR, RECONCILED, Line
from tests.benchmark.routes import Contents, Routes
from tests.runner import CACHE, EXIT_FAILED, EXIT_INTERRUPTED

TITLES = {"momentum": "Momentum (SQLite)", "shortseller": "Shortseller (PostgreSQL)"}
ROUTES = ("pgloader", "execute_values", "execute_values_unlogged", "copy", "copy_rebuilt", "delta")
NAMES = {
    "pgloader": "pgloader, then INSERT .. SELECT",
    "execute_values": "execute_values",
    "execute_values_unlogged": "execute_values, statements not logged",
    "copy": FLOOR[0],
    "copy_rebuilt": FLOOR[1],
}
# Far behind the others, and by far the slowest: measured in the first run alone.
ONCE = ("execute_values", "execute_values_unlogged")
ROWS = [100_000, 1_000_000]
LARGE = 10_000_000
# The source's seed needs some history to place its awkward values in.
FEWEST_ROWS = 1_000
# What a trade takes in row_lists.py, which holds all of them.
ROW_LIST_BYTES = 4_000


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that containers can read, on the disk of the checkout."""
    parent = CACHE / "benchmark"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


class Progress:
    """Says what runs, which of how many, and warns of results that differ."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.number = 0
        self.warnings: list[str] = []

    def begin(self, what: str) -> None:
        self.number += 1
        say(f"[{self.number}/{self.total}] {what}")

    def took(self, what: str, step: Step) -> None:
        memory = f", {step.peak / 2**20:,.0f} MiB" if step.peak is not None else ""
        say(f"    {what}: {step.seconds:.2f} s{memory}")

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        say(f"    warning: {text}")

    def compare(self, what: str, found: Contents, expected: Contents) -> None:
        for difference in found.differences(expected):
            self.warn(f"{what}: {difference}")


def measure(routes: Routes, rows: int, wanted: Sequence[str], runs: int, progress: Progress) -> list[Line]:
    """All wanted routes over a seeded source, `runs` times, in turn."""
    steps: dict[str, list[Step]] = {}
    changed = 0

    def note(name: str, step: Step) -> None:
        steps.setdefault(name, []).append(step)
        progress.took(name, step)

    by_name: dict[str, Callable[[], tuple[Step, Contents]]] = {
        "pgloader": routes.pgloader,
        "execute_values": routes.execute_values,
        "execute_values_unlogged": routes.execute_values_unlogged,
        "copy": routes.copy,
        "copy_rebuilt": routes.copy_rebuilt,
    }
    if rows * ROW_LIST_BYTES > available_memory():
        for name in [name for name in by_name if name in wanted and name.startswith("execute_values")]:
            progress.warn(
                f"{routes.source.kind}, {rows:,} trades: {name} is left out, it would take {rows * ROW_LIST_BYTES >> 30} GiB"
            )
            del by_name[name]
    for number in range(1, runs + 1):
        # The same programs on the same rows: one close look is enough.
        routes.thorough = number == 1
        what = f"{routes.source.kind}, {rows:,} trades, run {number}"
        progress.begin(f"{what}: engine")
        done, expected = routes.engine(rows, "delta" in wanted, lambda part: say(f"    ... {part}"))
        note(ENGINE, done.bulk)
        note(RECONCILED, done.bulk + done.reconciliation)
        if expected.rows != rows:
            progress.warn(f"{what}: the engine migrated {expected.rows:,} trades")
        if done.again and done.delta:
            note(DELTA, done.again)
            changed = done.delta.rows
        for name in [name for name in by_name if name in wanted and (number == 1 or name not in ONCE)]:
            progress.begin(f"{what}: {name}")
            try:
                step, contents = by_name[name]()
            except CommandFailed as error:
                # A finding about that route, not the end of an hour's work.
                say(str(error))
                progress.warn(f"{what}: {name} failed, and is left out")
                steps.pop(NAMES[name], None)
                del by_name[name]
                continue
            note(NAMES[name], step)
            progress.compare(f"{what}: {name}", contents, expected)
    return [Line(name, rows, changed if name == DELTA else rows, found) for name, found in steps.items()]


def benchmark(
    kinds: Sequence[str], sizes: Sequence[int], wanted: Sequence[str], runs: int
) -> tuple[str, dict[str, list[Line]], list[str]]:
    """The whole session: the Markdown, the lines of each source, the warnings."""
    once = sum(name in ONCE for name in wanted)
    always = sum(name != "delta" for name in wanted) + 1 - once
    progress = Progress(len(kinds) * len(sizes) * (runs * always + once))
    tables: dict[str, list[Line]] = {}
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder())
        say("Starting servers")
        target = stack.enter_context(servers.target_server(scratch))
        pgloader = stack.enter_context(servers.pgloader(scratch)) if "pgloader" in wanted else None
        for kind in kinds:
            source = stack.enter_context(open_source(kind, scratch))
            for rows in sizes:
                say(f"Seeding {kind} with {rows:,} trades")
                with source.seeded(rows):
                    lines = measure(Routes(target, source, pgloader, scratch), rows, wanted, runs, progress)
                tables.setdefault(TITLES[kind], []).extend(lines)
        description = report.machine(servers.server_version(target), scratch, runs)
    return report.render(tables, description, progress.warnings), tables, progress.warnings


@contextmanager
def open_source(kind: str, scratch: Path) -> Iterator[Source]:
    """A source, its server with it."""
    if kind == "momentum":
        yield Momentum(scratch)
    else:
        with servers.legacy_server(scratch / "migrations") as server:
            yield Shortseller(server)


def terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=ROWS, metavar="N", help="trades per source (default %(default)s)"
    )
    parser.add_argument("--large", action="store_true", help=f"{LARGE} trades as well")
    parser.add_argument(
        "--runs", type=int, default=3, metavar="N", help="runs to take the median of (default %(default)s)"
    )
    parser.add_argument("--source", choices=list(TITLES), help="this source alone")
    parser.add_argument(
        "--route", choices=ROUTES, nargs="+", default=list(ROUTES), help="these beside the engine, which always runs"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the result between the markers of this file")
    arguments = parser.parse_args(argv)
    if min(arguments.rows) < FEWEST_ROWS or arguments.runs < 1:
        parser.error(f"expected --rows of at least {FEWEST_ROWS} and --runs of at least 1")
    if arguments.write and not report.has_block(arguments.write):
        parser.error(
            f"{arguments.write} has no lines {report.BEGIN} and {report.END}: add them where the result belongs"
        )
    sizes = [*arguments.rows, *([LARGE] if arguments.large else [])]
    kinds = [arguments.source] if arguments.source else list(TITLES)
    wanted = [name for name in ROUTES if name in arguments.route]
    signal.signal(signal.SIGTERM, terminate)
    try:
        text, _, _ = benchmark(kinds, sizes, wanted, arguments.runs)
    except CommandFailed as error:
        say(str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        say("Interrupted. Nothing to repair: run it again.")
        return EXIT_INTERRUPTED
    print(text, end="")
    if arguments.write:
        report.replace_block(arguments.write, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
