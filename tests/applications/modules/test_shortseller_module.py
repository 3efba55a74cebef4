"""Shortseller's TradeLogger on the unified database, beside the class on its own PostgreSQL in whose place it comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import ModuleType, SimpleNamespace
from typing import Any

import psycopg2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.database import strategies
from tests.database.conftest import LEGACY_FILES, PASSWORD, Legacy

from .conftest import Environment, outcome

BOT = "shortseller_001"
TABLES = ("trades", "positions", "market_data", "signals", "account_balance", "risk_metrics")
Row = dict[str, Any]
Call = tuple[str, tuple[Any, ...]]

EXAMPLES = settings(
    max_examples=40,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TEXT = strategies.TEXT.map(lambda text: text[:20])
MONEY = st.decimals(-(10**11), 10**11, places=10) | st.floats(-1e9, 1e9) | st.integers(-(10**9), 10**9)
AMOUNT = MONEY.map(abs)
SIDE = st.sampled_from(["Buy", "SELL", "short", "Long", "buy", "sell"])
STATUS = st.sampled_from(
    ["filled", "filled", "partially_filled", "cancelled", "canceled", "Filled", "pending", "expired"]
)
# A row by the order of its making: ids differ.
NUMBER = st.integers(0, 3) | st.none()
ORDER = st.none() | st.sampled_from(["o-1", "o-2", "Größe"])
INDICATORS = st.none() | st.dictionaries(
    strategies.SANE, st.integers() | st.booleans() | strategies.SANE | st.floats(-1e6, 1e6)
)
CANDLE = st.tuples(*[st.decimals(1, 1000, places=9)] * 2, st.decimals(0, 10, places=8)).map(
    lambda c: [c[0], max(c[:2]) + c[2], min(c[:2]) - Decimal("0.5"), c[1], c[2]]
)
MINUTE = st.sampled_from([datetime(2026, 6, 1, 12, minute, tzinfo=UTC) for minute in range(3)])
CALLS = st.lists(
    st.tuples(st.just("log_trade"), st.tuples(TEXT, SIDE, AMOUNT, AMOUNT, ORDER, ORDER, st.none() | strategies.TEXT))
    | st.tuples(st.just("log_trade"), st.tuples(TEXT, SIDE, AMOUNT, AMOUNT))
    | st.tuples(st.just("update_trade_status"), st.tuples(NUMBER, STATUS, st.none() | AMOUNT))
    | st.tuples(st.just("update_trade_status"), st.tuples(NUMBER, STATUS))
    | st.tuples(st.just("update_trade_pnl"), st.tuples(NUMBER, MONEY, st.none() | AMOUNT))
    | st.tuples(st.just("get_pending_trades"), st.sampled_from([(), (1,), (None,), (0,)]))
    | st.tuples(
        st.just("open_position"),
        st.tuples(
            TEXT,
            st.sampled_from(["short", "long", "Buy", "SELL"]),
            AMOUNT,
            AMOUNT,
            st.none() | MONEY,
            MONEY,
            st.integers(1, 100),
        ),
    )
    | st.tuples(st.just("update_position"), st.tuples(NUMBER, MONEY))
    | st.tuples(st.just("close_position"), st.tuples(NUMBER, MONEY))
    | st.tuples(st.just("get_open_positions"), st.just(()))
    | st.tuples(
        st.just("log_signal"),
        st.tuples(
            TEXT,
            st.sampled_from(["short", "close", "long", "Close"]),
            st.floats(0, 1) | st.decimals(0, 1, places=6),
            MONEY,
            INDICATORS,
        ),
    )
    | st.tuples(st.just("mark_signal_executed"), st.tuples(NUMBER, NUMBER))
    | st.tuples(st.just("store_candle"), st.tuples(st.sampled_from(["A", "B"]), MINUTE, CANDLE, st.just("1m")))
    | st.tuples(st.just("log_balance"), st.tuples(MONEY, MONEY, MONEY, st.none() | MONEY, MONEY))
    | st.tuples(st.just("latest_balance"), st.just(()))
    | st.tuples(st.just("update_risk_metrics"), st.just(())),
    max_size=40,
)
# Of which table a call's row, and its arguments that are ids, are.
ROWS = {
    "log_trade": "trades",
    "open_position": "positions",
    "log_signal": "signals",
    "store_candle": "market_data",
    "log_balance": "account_balance",
    "latest_balance": "account_balance",
    "update_risk_metrics": "risk_metrics",
}
IDS = {
    "update_trade_status": ("trades",),
    "update_trade_pnl": ("trades",),
    "update_position": ("positions",),
    "close_position": ("positions",),
    "mark_signal_executed": ("signals", "trades"),
}


class Both:
    """The same calls on both classes."""

    def __init__(self, old: Any, new: Any) -> None:
        self.old, self.new = old, new
        # By table: the two ids of each row, in the order of their making.
        self.made: dict[str, dict[int, int]] = {table: {} for table in TABLES}

    def call(self, name: str, *arguments: Any) -> None:
        old, new = list(arguments), list(arguments)
        for place, table in enumerate(IDS.get(name, ())):
            pairs = [*self.made[table].items()]
            number = arguments[place]
            if number is not None:
                old[place], new[place] = pairs[number] if number < len(pairs) else (2**30, 2**30)
        found_old = outcome(getattr(self.old, name), old, psycopg2.IntegrityError)
        found_new = outcome(getattr(self.new, name), new, psycopg2.IntegrityError)
        if name in ROWS and isinstance(found_old, dict) and isinstance(found_new, dict):
            self.made[ROWS[name]].setdefault(found_old["id"], found_new["id"])
        self.compare(found_old, found_new, (name, arguments))

    def compare(self, old: Any, new: Any, where: Any) -> None:
        if isinstance(old, list) and isinstance(new, list):
            assert len(old) == len(new), where
            for pair in zip(old, new, strict=True):
                self.compare(*pair, where)
        elif isinstance(old, dict) and isinstance(new, dict):
            assert list(old) == list(new), where
            assert any(pairs.get(old["id"]) == new["id"] for pairs in self.made.values()), where
            for name in old:
                self.compare_value(name, old[name], new[name], where)
        else:
            assert old == new, where

    def compare_value(self, name: str, old: Any, new: Any, where: Any) -> None:
        assert type(old) is type(new), (name, old, new, where)
        if name == "execution_id" and old is not None:
            assert self.made["trades"][old] == new, where
        elif isinstance(old, datetime):
            # Each has its own clock.
            assert abs(old - new) < timedelta(minutes=1), (name, where)
            assert new.utcoffset() == timedelta(0)
        elif isinstance(old, Decimal):
            assert str(old) == str(new), (name, where)
        elif name != "id":
            assert old == new, (name, where)


@contextmanager
def both(environment: Environment, modules: dict[str, ModuleType], legacy: Legacy) -> Iterator[Both]:
    environment.use(BOT)
    config = SimpleNamespace(
        host="127.0.0.1", port=legacy.server.port, database=legacy.database, username="trading_user", password=PASSWORD
    )
    old = modules["legacy shortseller"].TradeLogger(config)
    # What it is told is not where the unified database is.
    new = modules["shortseller"].TradeLogger(config)
    try:
        yield Both(old, new)
    finally:
        old.close()
        new.close()


def forget(environment: Environment, legacy: Legacy) -> None:
    for table in TABLES:
        environment.target.execute(f"DELETE FROM trading.{table}")
    legacy.execute(
        "TRUNCATE trading.trades, trading.positions, trading.market_data, trading.signals, trading.account_balance, trading.risk_metrics"
    )
    legacy.execute(
        "INSERT INTO trading.account_balance (total_balance, available_balance, equity) VALUES (10000, 10000, 10000)"
    )


@EXAMPLES
@given(calls=CALLS)
def test_whatever_is_called_both_answer_the_same(
    environment: Environment, modules: dict[str, ModuleType], legacy: Legacy, calls: list[Call]
) -> None:
    forget(environment, legacy)
    with both(environment, modules, legacy) as pair:
        pair.call("latest_balance")
        for name, arguments in calls:
            pair.call(name, *arguments)
        for name in ("get_pending_trades", "get_open_positions", "latest_balance", "update_risk_metrics"):
            pair.call(name)
        for table, ids in pair.made.items():
            for old, new in ids.items():
                pair.compare(pair.old.row(table, old), pair.new.row(table, new), table)


def test_migrated_history_reads_as_before_and_goes_on(
    environment: Environment, modules: dict[str, ModuleType], legacy: Legacy
) -> None:
    seed(legacy)
    environment.target.migrate_shortseller()
    with both(environment, modules, legacy) as pair:
        # Migrated rows go by their legacy ids.
        for table in TABLES:
            ids = [row["id"] for row in pair.old._fetch(f"SELECT id FROM trading.{table} ORDER BY id")]
            assert ids, table
            pair.made[table] = {number: number for number in ids}
            for number in ids:
                assert pair.new.row(table, number) == pair.old.row(table, number)
        for name in ("get_pending_trades", "get_open_positions", "latest_balance"):
            pair.call(name)
        pair.call("get_pending_trades", None)
        for name, arguments in AFTER_THE_CUT_OVER:
            pair.call(name, *arguments)


AFTER_THE_CUT_OVER: list[Call] = [
    *[("update_trade_status", (number, "filled", Decimal("0.5"))) for number in range(20)],
    *[("update_trade_pnl", (number, Decimal(number - 9) / 3, None)) for number in range(20)],
    *[("update_position", (number, Decimal(number) / 7)) for number in range(10)],
    *[("close_position", (number, Decimal(number) / 7)) for number in range(5)],
    *[("mark_signal_executed", (number, number)) for number in range(5)],
    ("log_trade", ("BTCUSDT", "Buy", 1, 2)),
    ("log_balance", (1, 2, 3, 4, 5)),
    *[(name, ()) for name in ("get_pending_trades", "get_open_positions", "latest_balance", "update_risk_metrics")],
]


def seed(legacy: Legacy) -> None:
    """The fixture's history, by the bot's own schema."""
    counts = {"trades": 300, "positions": 30, "candles": 60, "signals": 60, "balances": 40, "risk_days": 20}
    done = legacy.server.psql(legacy.database, LEGACY_FILES / "seed_shortseller.sql", "trading_user", seed=7, **counts)
    assert done.returncode == 0, done.stderr
    # The opening balance is older than the history that was put behind it.
    legacy.execute("UPDATE trading.account_balance SET timestamp = '2020-01-01' WHERE id = 1")
