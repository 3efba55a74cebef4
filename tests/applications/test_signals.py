"""A signal handler that uses the client in the middle of a write of the same thread."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from trading_db import TradingDB, TradingDBError, Unavailable
from trading_db import base as bases
from trading_db.outbox import encode

from tests.applications.conftest import Opener
from tests.applications.test_failures import events
from tests.database.conftest import Target


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Has a signal come in the middle of the next write's transaction, and be handled."""
    before = signal.getsignal(signal.SIGUSR1)

    def come(operations: Any) -> str:
        monkeypatch.setattr(bases, "encode", encode)
        signal.raise_signal(signal.SIGUSR1)
        return encode(operations)

    def prepare(handler: Callable[[], Any]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: handler())
        monkeypatch.setattr(bases, "encode", come)

    yield prepare
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda db: db.log_event("handler"),
        lambda db: db.reserve_id("trading.trades"),
        lambda db: db.get_open_trades(),
    ],
    ids=["write", "reserve_id", "read"],
)
def test_a_call_in_the_middle_of_a_write_is_refused_and_the_write_goes_on(
    db: TradingDB, target: Target, interrupt: Callable[..., None], call: Callable[[TradingDB], Any]
) -> None:
    refused = []

    def handler() -> None:
        with pytest.raises(Unavailable, match="signal handler interrupted a write of this thread") as caught:
            call(db)
        refused.append(caught)

    interrupt(handler)
    trade = db.log_trade_entry("BTCUSDT", "Buy", 1, 1)
    assert len(refused) == 1
    db.log_event("after")
    assert events(target) == ["after"]
    assert target.value("SELECT trade_id FROM trading.trades") == trade.trade_id


def test_what_a_handler_raises_undoes_the_write_alone(
    db: TradingDB, target: Target, interrupt: Callable[..., None]
) -> None:
    interrupt(lambda: db.log_event("handler"))
    with pytest.raises(Unavailable, match="nothing of this call was stored"):
        db.log_event("interrupted")
    db.log_event("after")
    assert events(target) == ["after"]


def test_a_client_closed_in_the_middle_of_a_write_is_closed_at_the_end(
    opener: Opener, target: Target, interrupt: Callable[..., None]
) -> None:
    db = opener()
    closed = []

    def handler() -> None:
        closed.append(db.close())
        raise SystemExit

    interrupt(handler)
    with suppress(SystemExit):
        db.log_event("interrupted")
    assert closed == [False]
    assert db.close()
    assert events(target) == []
    opener().log_event("after a restart")
    assert events(target) == ["after a restart"]


def test_a_closing_that_a_handler_ends_is_made_up_for(db: TradingDB, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, closed = db.flush, []

    def interrupted(timeout: float | None = None) -> bool:
        monkeypatch.setattr(db, "flush", flush)
        closed.append(db.close())
        raise SystemExit

    monkeypatch.setattr(db, "flush", interrupted)
    with pytest.raises(SystemExit):
        db.close()
    assert closed == [True]
    db.log_event("still open")
    assert db.close()
    with pytest.raises(TradingDBError, match="closed"):
        db.log_event("closed")
