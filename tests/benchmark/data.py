"""The sources of the benchmark, filled by the fixtures' own seeds."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.benchmark import servers
from tests.benchmark.process import run
from tests.database.conftest import LEGACY_FILES, PASSWORD, Server, database

SEED = 1
# Enough for one of them to be replaced.
DAYS = 3
# Of the rows that change, one in so many is an old one.
OLD_ONE_IN = 20


@dataclass(frozen=True)
class Delta:
    """What a bot did after the bulk, in rows."""

    new: int
    changed: int
    replaced_days: int
    deleted: int

    @property
    def rows(self) -> int:
        return self.new + self.changed + self.replaced_days + self.deleted

    @classmethod
    def of(cls, rows: int) -> Delta:
        """0.1 % of the rows: half new, half changed. One day is replaced, one trade deleted."""
        half = max(rows // 2000, 5)
        return cls(new=half, changed=half, replaced_days=1, deleted=1)

    def ids(self, rows: int) -> list[int]:
        """The ids of the trades that change, of 1 to `rows`: recent ones, and a few scattered old ones."""
        old = self.changed // OLD_ONE_IN
        recent = list(range(rows - (self.changed - old) + 1, rows + 1))
        return recent + [1 + rows // 2 * number // old for number in range(old)]

    def deleted_id(self, rows: int) -> int:
        """The id of the trade that is deleted: none of ids()."""
        return rows * 3 // 4


class Source(Protocol):
    """A legacy store that can be filled, copied and traded on."""

    kind: str

    def seeded(self, rows: int) -> AbstractContextManager[None]:
        """Context: the store holds `rows` trades."""

    def copied(self) -> AbstractContextManager[dict[str, Any]]:
        """Context: a copy to trade on; its value is what bots.json says under `legacy`."""

    def trade_on(self, legacy: dict[str, Any], rows: int) -> Delta:
        """What happens between bulk and delta."""

    def for_pgloader(self) -> str:
        """The seeded store as pgloader's FROM names it."""

    def for_scripts(self) -> str:
        """The seeded store as row_lists.py is told."""


class Momentum:
    """A SQLite file, written by the bot's own class."""

    kind = "momentum"

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "trading.db"

    @contextmanager
    def seeded(self, rows: int) -> Iterator[None]:
        seed = LEGACY_FILES / "seed_momentum.py"
        environment = [f"PYTHONPATH={LEGACY_FILES / 'momentum'}", "PYTHONDONTWRITEBYTECODE=1", "TZ=UTC"]
        numbers = [str(number) for number in (SEED, rows, DAYS, 0, 0)]
        try:
            run(["env", *environment, sys.executable, str(seed), str(self.path), "delete", *numbers])
            yield
        finally:
            self.path.unlink(missing_ok=True)

    @contextmanager
    def copied(self) -> Iterator[dict[str, Any]]:
        copy = self.path.with_name("copy.db")
        try:
            shutil.copyfile(self.path, copy)
            flush(copy)
            yield {"sqlite_path": str(copy)}
        finally:
            copy.unlink(missing_ok=True)

    def for_pgloader(self) -> str:
        return f"{servers.SCRATCH}/{self.path.name}"

    def for_scripts(self) -> str:
        return str(self.path)

    def trade_on(self, legacy: dict[str, Any], rows: int) -> Delta:
        delta = Delta.of(rows)
        copied = (
            "mode, symbol, side, entry_time, entry_price, exit_time, exit_price, quantity, position_size_usd, stop_loss,"
            " take_profit, pnl_usd, pnl_pct, exit_reason, holding_time_seconds, signal_strength, created_at"
        )
        with closing(sqlite3.connect(legacy["sqlite_path"])) as connection, connection:
            connection.execute(
                f"INSERT INTO trades (trade_id, {copied}) SELECT 'new_' || id, {copied} FROM trades WHERE id > ? AND id <= ?",
                (rows - delta.new, rows),
            )
            connection.executemany(
                "UPDATE trades SET pnl_usd = coalesce(pnl_usd, 0) + 1.25, exit_time = coalesce(exit_time, '2025-10-24 00:00:00.5'),"
                " exit_price = coalesce(exit_price, entry_price * 1.01), exit_reason = coalesce(exit_reason, 'Take Profit')"
                " WHERE id = ?",
                [(number,) for number in delta.ids(rows)],
            )
            connection.execute(
                "INSERT OR REPLACE INTO daily_snapshots (date, mode, starting_equity, ending_equity, daily_pnl)"
                " SELECT date, mode, starting_equity, starting_equity + 7.5, 7.5 FROM daily_snapshots ORDER BY date DESC LIMIT 1"
            )
            connection.execute("DELETE FROM trades WHERE id = ?", (delta.deleted_id(rows),))
        return delta


class Shortseller:
    """A database on the legacy PostgreSQL server."""

    kind = "shortseller"

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"benchmark_{uuid.uuid4().hex[:8]}"

    @contextmanager
    def seeded(self, rows: int) -> Iterator[None]:
        none = dict.fromkeys(("positions", "candles", "signals", "balances"), 0)
        with database(self.server, "legacy_template", "trading_user") as self.name:
            servers.psql(
                self.server,
                self.name,
                LEGACY_FILES / "seed_shortseller.sql",
                trades=rows,
                risk_days=DAYS,
                seed=SEED,
                **none,
            )
            # Its workers would want more shared memory than Docker gives a container.
            run(servers.psql_command(self.server, self.name, "-c", "VACUUM (ANALYZE, PARALLEL 0)"))
            yield

    @contextmanager
    def copied(self) -> Iterator[dict[str, Any]]:
        with database(self.server, self.name, "trading_user") as copy:
            yield {"host": "127.0.0.1", "port": self.server.port, "database": copy, "user": "trading_user"}

    def for_pgloader(self) -> str:
        return f"pgsql://trading_user:{PASSWORD}@127.0.0.1:{self.server.port}/{self.name}"

    def for_scripts(self) -> str:
        return f"host=127.0.0.1 port={self.server.port} dbname={self.name} user=trading_user password={PASSWORD}"

    def trade_on(self, legacy: dict[str, Any], rows: int) -> Delta:
        delta = Delta.of(rows)
        copied = "symbol, side, quantity, price, status, strategy, timestamp, executed_at, pnl, fees, notes"
        with closing(self.server.connect(legacy["database"], "trading_user")) as connection, connection:
            cursor = connection.cursor()
            cursor.execute(
                f"INSERT INTO trading.trades (order_id, {copied})"
                f" SELECT 'new_' || id, {copied} FROM trading.trades WHERE id > %s ORDER BY id",
                (rows - delta.new,),
            )
            cursor.execute(
                "UPDATE trading.trades SET pnl = pnl + 1.25, status = 'filled', executed_at = coalesce(executed_at, timestamp)"
                " WHERE id = ANY (%s)",
                (delta.ids(rows),),
            )
            cursor.execute(
                "UPDATE trading.risk_metrics SET total_pnl = total_pnl + 7.5"
                " WHERE date = (SELECT max(date) FROM trading.risk_metrics)"
            )
            cursor.execute("DELETE FROM trading.trades WHERE id = %s", (delta.deleted_id(rows),))
        return delta


def flush(path: Path) -> None:
    """Bring a file to the disk, so that no route pays for it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
