"""How the rows of a copied SQLite file are read."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "files/migrations"))
from migration_engine.momentum_source import Copy

ROWS = 2500


@pytest.mark.parametrize("broken", [(), (1,), (1000, 1001), (1500, 2500), (ROWS,)])
@pytest.mark.parametrize("ranges", [None, [(1, 10), (900, 1600), (2400, 9999)]])
def test_rows_are_read_once_whatever_their_text_is(
    tmp_path: Path, broken: tuple[int, ...], ranges: list[tuple[int, int]] | None
) -> None:
    path = tmp_path / "trading.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, message TEXT)")
        connection.executemany("INSERT INTO events VALUES (?, ?)", [(n, f"message {n} ✋") for n in range(1, ROWS + 1)])
        for number in broken:
            connection.execute("UPDATE events SET message = CAST(x'4bff' AS TEXT) WHERE id = ?", (number,))
    with closing(sqlite3.connect(path)) as connection:
        copy = Copy(path, path, connection, datetime.now(UTC), {})
        batches = list(copy.batches("events", ["id", "message"], ranges))
    wanted = [n for n in range(1, ROWS + 1) if ranges is None or any(low <= n <= high for low, high in ranges)]
    expected = [(n, "K\udcff" if n in broken else f"message {n} ✋") for n in wanted]
    assert [row for batch in batches for row in batch] == expected
    assert all(len(batch) == 1000 for batch in batches[:-1])
