"""Progress of long work, as the operator reads it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "files/migrations"))
from migration_engine import progress


def test_rows_rate_and_rest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    done = progress.Progress("bot: trades", 1000)
    for passed, rows in ((4, 0), (0, 100), (1, 100), (5, 300)):
        clock[0] += passed
        done.add(rows)
    assert capsys.readouterr().err.splitlines() == [
        "bot: trades: 100 of 1000 rows (10 %), 25 rows/s, 36 s left",
        "bot: trades: 500 of 1000 rows (50 %), 50 rows/s, 10 s left",
    ]
