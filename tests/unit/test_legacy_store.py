"""What the bots' modules remember of their rows, while other threads of the bot write."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from trading_db import shared
from trading_db.errors import Unavailable
from trading_db.legacy import LegacyStore, Row

TABLE: Any = SimpleNamespace(name="positions", target="trading.positions", where_id=lambda: "id = %(row_id)s")
OLD: Row = {"id": 1, "status": "open", "size": 1}
CHANGED: Row = {"id": 1, "status": "closed", "size": 0}
NEW: Row = {"id": 2, "status": "open", "size": 5}


class Store(LegacyStore):
    """Its database answers with `answer`, after another thread has remembered `meanwhile`."""

    answer: list[Row] | None = None
    meanwhile: tuple[Row, ...] = ()

    def select(self, *_: Any, **__: Any) -> list[Row]:
        self.remember(TABLE, self.meanwhile)
        if self.answer is None:
            raise Unavailable("away")
        return [dict(row) for row in self.answer]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    client = SimpleNamespace(bot_id="bot_001", keep_ids=lambda *_: None)
    monkeypatch.setattr(shared, "acquire", lambda: client)
    made = Store(TABLE)
    made.remember(TABLE, [OLD])
    return made


def is_open(row: Row) -> bool:
    return bool(row["status"] == "open")


def test_an_answer_does_not_undo_what_was_written_while_it_came(store: Store) -> None:
    store.answer, store.meanwhile = [OLD], (CHANGED, NEW)
    assert store.known(TABLE, "open", is_open) == [NEW]
    assert store.recall(TABLE, lambda _: True) == [CHANGED, NEW]
    store.meanwhile = ({**CHANGED, "size": 3},)
    assert store.find(TABLE, 1) == {**CHANGED, "size": 3}


def test_what_the_database_no_longer_has_is_forgotten(store: Store) -> None:
    store.answer = [NEW]
    assert store.known(TABLE, "open", is_open) == [NEW]
    assert store.recall(TABLE, lambda _: True) == [NEW]


def test_without_an_answer_memory_tells(store: Store) -> None:
    store.meanwhile = (NEW,)
    assert store.known(TABLE, "open", is_open) == [OLD, NEW]
    assert store.find(TABLE, 2) == NEW
    with pytest.raises(Unavailable):
        store.find(TABLE, 3)


def test_nobody_who_writes_waits_for_an_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **__: Any) -> list[Row]:
        with ThreadPoolExecutor(1) as other:
            other.submit(store.remember, TABLE, [NEW]).result(timeout=5)
        return []

    monkeypatch.setattr(store, "_ask", ask)
    assert store.find(TABLE, 2) == NEW
