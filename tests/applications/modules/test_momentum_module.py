"""Momentum's TradeDatabase on PostgreSQL, beside the class on SQLite in whose place it comes."""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.database import strategies
from tests.database.conftest import LEGACY_FILES, Momentum

from .conftest import Clock, Environment, load, local_zone, outcome

BOT = "momentum_001"
TABLES = ("trades", "daily_snapshots", "system_events", "risk_events")
CREATED_AT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d").fullmatch
Row = dict[str, Any]
Call = tuple[str, tuple[Any, ...]]

EXAMPLES = settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TEXT = strategies.TEXT
REAL = st.none() | st.floats() | strategies.REAL
PRICE = st.floats(0, 1e6) | strategies.AMOUNT.filter(lambda value: value < 999_999_999_999) | st.just(float("nan"))
COUNT = st.none() | st.integers(-1, 2**40) | st.floats(-1e20, 1e20) | st.just(float("inf"))
MODE = st.sampled_from(["live", "demo", "Live"])
ASKED = st.none() | MODE
NAME = st.none() | st.sampled_from(["a", "b", "BTCUSDT_20260601", "Größe '1'", 5])
LIMIT = st.integers(-1, 5)
ENTRY = st.tuples(
    NAME,
    MODE,
    TEXT,
    strategies.SIDE,
    PRICE,
    PRICE,
    REAL,
    REAL,
    REAL,
    REAL,
)
EXIT = st.tuples(NAME, REAL, REAL, REAL, st.none() | TEXT, COUNT)
SNAPSHOT = st.tuples(
    st.dates().map(str) | st.sampled_from(["2026-06-01", "2026-06-02"]), MODE, *[REAL] * 4, *[COUNT] * 4
)
DETAILS = st.none() | TEXT | strategies.JSON
EVENT = st.tuples(TEXT, strategies.LEVEL | st.sampled_from(["SUCCESS", "Info"]), st.none() | TEXT, DETAILS)
CALLS = st.lists(
    st.tuples(st.just("log_trade_entry"), ENTRY)
    | st.tuples(st.just("log_trade_entry"), ENTRY)
    | st.tuples(st.just("log_trade_exit"), EXIT)
    | st.tuples(st.just("log_trade_exit"), EXIT)
    | st.tuples(st.just("get_open_trades"), st.tuples(ASKED))
    | st.tuples(st.just("get_recent_trades"), st.tuples(LIMIT, ASKED))
    | st.tuples(st.just("save_daily_snapshot"), SNAPSHOT)
    | st.tuples(st.just("get_daily_snapshots"), st.tuples(LIMIT, ASKED))
    | st.tuples(st.just("log_event"), EVENT)
    | st.tuples(st.just("get_recent_events"), st.tuples(LIMIT, st.none() | st.sampled_from(["INFO", "warn"])))
    | st.tuples(st.just("log_risk_event"), st.tuples(TEXT, REAL, REAL, st.none() | TEXT))
    | st.tuples(st.just("get_performance_stats"), st.tuples(ASKED, st.sampled_from([None, 0, 0.001, 1, 30])))
    # Time goes by; no zone changes its clocks in these months.
    | st.tuples(st.just("wait"), st.tuples(st.sampled_from([30, 90_000]))),
    max_size=40,
)
ALL_READS: list[Call] = [
    ("get_open_trades", ()),
    ("get_recent_trades", (-1,)),
    ("get_daily_snapshots", (-1,)),
    ("get_recent_events", (-1,)),
    ("get_performance_stats", ()),
    ("get_performance_stats", ("live",)),
    ("get_performance_stats", ("demo", 300)),
    ("get_performance_stats", (None, 0.5)),
]


class Both:
    """The same calls on both classes."""

    def __init__(self, old: Any, new: Any, clock: Clock) -> None:
        self.old, self.new, self.clock = old, new, clock
        self.ids: dict[int, int] = {}

    def call(self, name: str, *arguments: Any) -> None:
        if name == "wait":
            self.clock.forward(*arguments)
            return
        self.clock.forward(0.001)
        old, new = (
            outcome(getattr(database, name), arguments, sqlite3.IntegrityError) for database in (self.old, self.new)
        )
        if name == "log_trade_entry" and isinstance(old, int) and isinstance(new, int):
            self.ids[old] = new
        else:
            assert self.plain(new, mapped=False) == self.plain(old, name.endswith("_trades")), (name, arguments)

    def plain(self, found: Any, mapped: bool) -> Any:
        """A result without what the two cannot share: the ids, and SQLite's own clock."""
        if not isinstance(found, list):
            return found
        rows = []
        for row in found:
            assert CREATED_AT(row["created_at"])
            kinds = {name: type(value) for name, value in row.items()}
            changed = {"id": self.ids[row["id"]] if mapped else row["id"], "created_at": ""}
            if "trade_id" not in row:
                changed.pop("id")
                row = {name: value for name, value in row.items() if name != "id"}
            rows.append((list(row), row | changed, kinds))
        return rows


def contents(path: str | Path, *left_out: str) -> dict[str, list[Row]]:
    """Every row of an SQLite file of the bot."""
    with closing(sqlite3.connect(path)) as file:
        file.row_factory = sqlite3.Row
        return {
            table: [
                {name: value for name, value in dict(row).items() if name not in left_out}
                for row in file.execute(f"SELECT * FROM {table} ORDER BY {'date' if 'daily' in table else 'id'}")
            ]
            for table in TABLES
        }


@contextmanager
def both(
    environment: Environment, modules: dict[str, ModuleType], folder: Path, legacy_path: Path | None = None
) -> Iterator[Both]:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch, modules["momentum"], modules["legacy momentum"])
        environment.use(BOT)
        old = modules["legacy momentum"].TradeDatabase(str(legacy_path or folder / "old.db"))
        new = modules["momentum"].TradeDatabase(str(folder / "new.db"))
        try:
            yield Both(old, new, clock)
        finally:
            old.close()
            new.close()


def forget(environment: Environment) -> None:
    for table in ("trading.trades", "trading.positions", "trading.risk_metrics", "audit.risk_events"):
        environment.target.execute(f"DELETE FROM {table}")
    environment.target.execute("DELETE FROM audit.system_events WHERE component = 'momentum'")


@EXAMPLES
@given(calls=CALLS, zone=st.sampled_from(strategies.ZONES))
def test_whatever_is_called_both_answer_the_same(
    environment: Environment,
    modules: dict[str, ModuleType],
    tmp_path_factory: pytest.TempPathFactory,
    calls: list[Call],
    zone: str,
) -> None:
    forget(environment)
    folder = tmp_path_factory.mktemp("example")
    with local_zone(zone), both(environment, modules, folder) as pair:
        for name, arguments in [*calls, *ALL_READS]:
            pair.call(name, *arguments)
        left_out = ("id", "created_at")
        assert contents(pair.new.backup(folder / "copy.db"), *left_out) == contents(folder / "old.db", *left_out)


@pytest.mark.parametrize("days", [None, 1])
def test_statistics_of_no_trades_are_those_of_the_legacy_class(
    environment: Environment, modules: dict[str, ModuleType], tmp_path: Path, days: int | None
) -> None:
    with both(environment, modules, tmp_path) as pair:
        pair.call("get_performance_stats", None, days)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_migrated_history_reads_as_before_and_goes_on(
    environment: Environment, modules: dict[str, ModuleType], tmp_path: Path, momentum: Momentum, zone: str
) -> None:
    with local_zone(zone):
        seed(momentum)
        environment.target.bot(BOT)["timezone"] = zone
        environment.target.migrate_momentum()
        with both(environment, modules, tmp_path, momentum.path) as pair:
            exact = pair.old.get_recent_trades(-1), pair.old.get_daily_snapshots(-1), pair.old.get_recent_events(-1)
            assert exact == (
                pair.new.get_recent_trades(-1),
                pair.new.get_daily_snapshots(-1),
                pair.new.get_recent_events(-1),
            )
            # Migrated rows go by their legacy ids.
            pair.ids = {trade["id"]: trade["id"] for trade in exact[0]}
            assert contents(pair.new.backup()) == contents(momentum.path)
            for call in ALL_READS:
                pair.call(call[0], *call[1])
            for trade in pair.old.get_open_trades():
                pair.call("log_trade_exit", trade["trade_id"], 1 / 3, 0.1 + 0.2, -1.5, "Trailing Stop", 7.5)
            last = exact[1][0]["date"]
            pair.call("save_daily_snapshot", last, "live", 1.1, None, None, None, 1, 2, 3, None)
            pair.call("log_trade_entry", "new", "live", "BTCUSDT", "Buy", 0.1 + 0.2, 1 / 3, 0.1)
            for call in ALL_READS:
                pair.call(call[0], *call[1])


def seed(momentum: Momentum) -> None:
    """History with every oddity that the migration knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(LEGACY_FILES / "momentum"))
        seeding = load(LEGACY_FILES / "seed_momentum.py")
    for name in ("database", "database.trade_database"):
        sys.modules.pop(name, None)
    assert seeding.seed(momentum.connection, 7, 300, 60, 50, 40)
