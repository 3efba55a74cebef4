"""Work spread over processes: order, failure, and an end that leaves nobody behind."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "files/migrations"))
from migration_engine import parallel
from migration_engine.errors import MigrationError, SourceError


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_results_come_in_turn_until_all_have_ended() -> None:
    def work(share: int, of: int) -> Iterator[tuple[int, int]]:
        return ((share, number) for number in range(share, 7, of))

    assert list(parallel.shares(work, 3)) == [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4), (2, 5), (0, 6)]
    assert children() == []


def test_a_child_that_dies_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def work(share: int, of: int) -> Iterator[int]:
        yield share
        if share:
            raise ValueError("row 17")
        yield share

    with pytest.raises(MigrationError, match="ended early"):
        list(parallel.shares(work, 2))
    assert "row 17" in capfd.readouterr().err
    assert children() == []


@pytest.mark.parametrize("error", [SourceError("the file is damaged"), sqlite3.DatabaseError("malformed")])
def test_what_is_wrong_with_the_source_is_told_by_the_parent(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    def work(share: int, of: int) -> Iterator[int]:
        yield share
        if share:
            raise error

    with pytest.raises(type(error), match=str(error)):
        list(parallel.shares(work, 2))
    assert capfd.readouterr().err == ""
    assert children() == []


def test_nobody_is_left_behind_where_the_reader_stops() -> None:
    def work(share: int, of: int) -> Iterator[bytes]:
        while True:
            yield b"x" * 100_000

    began = time.monotonic()
    with closing(parallel.shares(work, 2)) as results:
        next(results)
    assert children() == []
    assert time.monotonic() - began < 10
