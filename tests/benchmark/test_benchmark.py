"""The benchmark still runs, and its routes still lead to the same rows. No times are asserted."""

from __future__ import annotations

from pathlib import Path

from tests.benchmark.__main__ import benchmark
from tests.benchmark.process import Step
from tests.benchmark.report import BEGIN, DELTA, END, ENGINE, FLOOR, RECONCILED, Line, has_block, render, replace_block
from tests.benchmark.routes import Contents

TRADES = 2000


def test_all_routes_lead_to_the_same_rows() -> None:
    # Without pgloader: its image is built only where the benchmark is asked for.
    text, tables, warnings = benchmark(
        ["momentum"], [TRADES], ["execute_values", "copy", "copy_rebuilt", "delta"], runs=1
    )
    assert warnings == []
    lines = tables["Momentum (SQLite)"]
    assert [line.route for line in lines] == [ENGINE, RECONCILED, DELTA, "execute_values", *FLOOR]
    assert [line.rows for line in lines] == [TRADES, TRADES, 12, TRADES, TRADES, TRADES]
    assert all(line.peak is not None for line in lines[:4])
    assert f"| {ENGINE} | 2,000 | " in text


def test_a_route_that_changes_values_is_named() -> None:
    expected = Contents(2, "1.5", "3", {"symbol": "1", "metadata": "2"})
    assert Contents(2, "1.5", "3", {"symbol": "1", "metadata": "2"}).differences(expected) == []
    assert Contents(1, "1.5", "4", {"symbol": "1", "metadata": "3"}).differences(expected) == [
        "count is 1, the engine's 2",
        "sum(quantity) is 4, the engine's 3",
        "values of metadata differ",
    ]


def test_report_gives_medians_and_ratios_within_a_run() -> None:
    lines = [
        Line(ENGINE, 1000, 1000, [Step(10.0, 2**20), Step(2.0, 3 * 2**20), Step(4.0, 2**20)]),
        Line(DELTA, 1000, 12, [Step(1.0, 2**20), Step(1.0, 2**20), Step(1.0, 2**20)]),
        Line(FLOOR[0], 1000, 1000, [Step(5.0), Step(2.0), Step(1.0)]),
        Line(FLOOR[1], 1000, 1000, [Step(4.0), Step(4.0), Step(2.0)]),
    ]
    rows = render({"Source": lines}, "Machine.", ["differs"]).splitlines()
    assert rows[4:8] == [
        f"| {ENGINE} | 1,000 | 4.00 | 250 | 3 MiB | 1.00 | 2.50 |",
        f"| {DELTA} | 12 | 1.00 | 12 | 1 MiB | 0.25 | - |",
        f"| {FLOOR[0]} | 1,000 | 2.00 | 500 | - | 0.50 | 1.00 |",
        f"| {FLOOR[1]} | 1,000 | 4.00 | 250 | - | 0.50 | 2.00 |",
    ]
    assert rows[-3:] == ["Machine.", "", "Warning: differs"]


def test_report_replaces_its_block_alone(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.md"
    path.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    for _ in range(2):
        replace_block(path, "new\n")
        assert path.read_text() == f"before\n\n{BEGIN}\n\nnew\n\n{END}\n\nafter\n"
    assert has_block(path)
    path.write_text("no markers\n")
    assert not has_block(path)
