"""The routes from a legacy store into trading.trades, each measured on a fresh trading_db."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmark import servers
from tests.benchmark.data import Delta, Source
from tests.benchmark.process import CommandFailed, Step, available_memory, run, watch
from tests.database.conftest import BOTS, PASSWORD, Server, database

FLOOR_FILE = "/tmp/trades.copy"
# What a route needs of it for its files, about, in bytes.
MEMORY = 2 << 30
TRADES = "'trading.trades'::regclass"
INDEXES = f"""
SELECT indexrelid::regclass, pg_get_indexdef(indexrelid) FROM pg_index i WHERE indrelid = {TRADES} AND NOT EXISTS (
    SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid AND c.conrelid = i.indrelid) ORDER BY indexrelid
"""
FOREIGN_KEYS = (
    f"SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = {TRADES} AND contype = 'f'"
)
# All but what the target itself gives a row.
COLUMNS = f"""
SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
WHERE attrelid = {TRADES} AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('id', 'updated_at') ORDER BY attnum
"""


@dataclass(frozen=True)
class Contents:
    """What a route left in trading.trades; `columns` maps each column to a hash of all its values, if asked for."""

    rows: int
    pnl_usd: str
    quantity: str
    columns: dict[str, str]

    def differences(self, expected: Contents) -> list[str]:
        """In words; columns are compared where both know them."""
        found = [
            f"{name} is {value}, the engine's {other}"
            for name, value, other in (
                ("count", self.rows, expected.rows),
                ("sum(pnl_usd)", self.pnl_usd, expected.pnl_usd),
                ("sum(quantity)", self.quantity, expected.quantity),
            )
            if value != other
        ]
        both = self.columns.keys() & expected.columns.keys()
        return found + [
            f"values of {name} differ" for name in sorted(both) if self.columns[name] != expected.columns[name]
        ]


@dataclass(frozen=True)
class EngineRun:
    """The engine on one fresh database: its commands, the reconciliation after
    them, and the commands again after `delta`."""

    bulk: Step
    reconciliation: Step
    again: Step | None
    delta: Delta | None


class Routes:
    """The routes of one seeded source into one server. Each leaves nothing behind but FLOOR_FILE."""

    def __init__(self, server: Server, source: Source, pgloader: str | None, scratch: Path) -> None:
        self.server = server
        self.source = source
        self.pgloader_container = pgloader
        self.scratch = scratch
        self.address = servers.address(server)
        (self.bot,) = [dict(bot) for bot in BOTS if bot["bot_type"] == source.kind]
        self.bot_id = str(self.bot["bot_id"])
        # Whether contents() hashes every column: a pass over the table that takes a while.
        self.thorough = True

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """A database with the schema and the bots, on a server without unfinished work."""
        with database(self.server, servers.TEMPLATE) as name:
            self.settle()
            yield name

    def settle(self) -> None:
        """Bring to the disk what is still to be written, so that no route pays for another's rows.

        A virtual machine gets memory from its host when it is first written to: no route is to pay for that either.
        """
        self.server.execute("postgres", "CHECKPOINT")
        os.sync()
        _ = b"1" * min(MEMORY, available_memory() // 4)

    def engine_commands(self, name: str) -> Step:
        """The commands of an operator, as the playbooks run them."""
        if self.source.kind == "momentum":
            return self.sql(name, "003_register_momentum_bot.sql") + self.script(
                name, "migrate_momentum_sqlite_to_postgres.py"
            )
        return self.script(name, "stage_shortseller.py") + self.sql(name, "002_migrate_shortseller_data.sql")

    def reconcile(self, name: str) -> Step:
        """The full reconciliation, a command of its own."""
        known = ("reconcile.py", "verify_migration.py")
        return self.script(name, next(file for file in known if (self.server.migrations / file).exists()))

    def write_bots(self, legacy: dict[str, Any]) -> None:
        """The bots file that the engine reads: this source's bot alone."""
        (self.server.migrations / "bots.json").write_text(json.dumps([{**self.bot, "legacy": legacy}]))

    def sql(self, name: str, file: str) -> Step:
        return servers.psql(self.server, name, self.server.migrations / file)

    def script(self, name: str, file: str | Path, *arguments: str) -> Step:
        """A Python script over database `name`, measured with its memory. A bare file name is the engine's."""
        environment = {
            **os.environ,
            # The engine's private copy goes where everything is removed.
            "TMPDIR": str(self.scratch),
            "POSTGRES_HOST": self.address,
            "POSTGRES_PORT": "5432",
            "POSTGRES_DB": name,
            "POSTGRES_USER": "trading_user",
            "POSTGRES_PASSWORD": PASSWORD,
            "LEGACY_POSTGRES_PASSWORD": PASSWORD,
            f"LEGACY_POSTGRES_PASSWORD_{self.bot_id.upper()}": PASSWORD,
        }
        started = time.monotonic()
        return watch(
            subprocess.Popen(
                [sys.executable, str(self.server.migrations / file), *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ),
            started,
        )

    def engine(self, rows: int, with_delta: bool, say: Callable[[str], None]) -> tuple[EngineRun, Contents]:
        """The engine, and FLOOR_FILE from its result. Tells `say` which part begins."""
        with self.source.copied() as legacy, self.fresh() as name:
            self.write_bots(legacy)
            bulk = self.engine_commands(name)
            say("reconciliation")
            reconciliation = self.reconcile(name)
            contents = self.contents(name)
            self.write_floor_file(name)
            if not with_delta:
                return EngineRun(bulk, reconciliation, None, None), contents
            say("delta")
            delta = self.source.trade_on(legacy, rows)
            self.settle()
            again = self.engine_commands(name)
            arrived = self.contents(name).rows
            # A row that is gone at the source stays.
            if arrived != rows + delta.new:
                raise CommandFailed(f"after the delta {arrived} trades are there, expected {rows + delta.new}")
            return EngineRun(bulk, reconciliation, again, delta), contents

    def pgloader(self) -> tuple[Step, Contents]:
        """pgloader into a schema of its own, then INSERT .. SELECT with the engine's mapping."""
        assert self.pgloader_container is not None
        folder = Path(__file__).parent / "pgloader"
        with self.fresh() as name:
            target = f"pgsql://trading_user:{PASSWORD}@{self.address}:5432/{name}"
            command = (folder / f"{self.source.kind}.load").read_text()
            command = command.replace("{{SOURCE}}", self.source.for_pgloader()).replace("{{TARGET}}", target)
            (self.scratch / "pgloader.load").write_text(command)
            loaded, report = run(
                [
                    "docker",
                    "exec",
                    self.pgloader_container,
                    "time",
                    "--format=peak_kib=%M",
                    "pgloader",
                    f"{servers.SCRATCH}/pgloader.load",
                ]
            )
            peak = re.search(r"^peak_kib=(\d+)$", report, flags=re.M)
            assert peak is not None
            inserted = servers.psql(self.server, name, folder / f"{self.source.kind}.sql", bot_id=self.bot_id)
            return Step(loaded.seconds, int(peak[1]) * 1024) + inserted, self.contents(name)

    def execute_values(self) -> tuple[Step, Contents]:
        """Row lists, by a script of its own."""
        return self._row_lists(logged=True)

    def execute_values_unlogged(self) -> tuple[Step, Contents]:
        """The same on a server that does not log statements, which production's does."""
        return self._row_lists(logged=False)

    def _row_lists(self, logged: bool) -> tuple[Step, Contents]:
        with self.fresh() as name:
            if not logged:
                for setting in ("log_statement = 'none'", "log_min_duration_statement = -1"):
                    self.server.execute("postgres", f"ALTER DATABASE {name} SET {setting}")
            script = Path(__file__).with_name("row_lists.py")
            step = self.script(name, script, self.source.kind, self.bot_id, self.source.for_scripts())
            return step, self.contents(name)

    def copy(self) -> tuple[Step, Contents]:
        """The floor: the server reads a ready file, all indexes in place."""
        return self._copied(rebuild=False)

    def copy_rebuilt(self) -> tuple[Step, Contents]:
        """The floor: secondary indexes and the foreign key dropped before and built after, in one transaction."""
        return self._copied(rebuild=True)

    def _copied(self, rebuild: bool) -> tuple[Step, Contents]:
        with self.fresh() as name:
            with closing(self.server.connect(name)) as connection:
                cursor = connection.cursor()
                columns = self._columns(cursor)
                started = time.monotonic()
                cursor.execute(INDEXES)
                indexes = cursor.fetchall() if rebuild else []
                cursor.execute(FOREIGN_KEYS)
                keys = cursor.fetchall() if rebuild else []
                for index, _ in indexes:
                    cursor.execute(f"DROP INDEX {index}")
                for key, _ in keys:
                    cursor.execute(f"ALTER TABLE trading.trades DROP CONSTRAINT {key}")
                cursor.execute(f"COPY trading.trades ({', '.join(columns)}) FROM '{FLOOR_FILE}'")
                for _, definition in indexes:
                    cursor.execute(definition)
                for key, definition in keys:
                    cursor.execute(f"ALTER TABLE trading.trades ADD CONSTRAINT {key} {definition}")
                connection.commit()
                step = Step(time.monotonic() - started)
            return step, self.contents(name)

    def write_floor_file(self, name: str) -> None:
        with closing(self.server.connect(name)) as connection:
            cursor = connection.cursor()
            columns = ", ".join(self._columns(cursor))
            cursor.execute(f"COPY (SELECT {columns} FROM trading.trades ORDER BY id) TO '{FLOOR_FILE}'")

    def contents(self, name: str) -> Contents:
        """The contents of trading.trades. JSONB is hashed by its value, all else by its text."""
        with closing(self.server.connect(name)) as connection:
            cursor = connection.cursor()
            columns = self._columns(cursor) if self.thorough else {}
            hashes = [
                f"sum({f'jsonb_hash_extended({column}' if kind == 'jsonb' else f'hashtextextended({column}::text'}, 0)::numeric)::text"
                for column, kind in columns.items()
            ]
            cursor.execute(
                f"SELECT count(*), sum(pnl_usd)::text, sum(quantity)::text, ARRAY[{', '.join(hashes)}]::text[]"
                " FROM trading.trades"
            )
            rows, pnl_usd, quantity, values = cursor.fetchone()
            return Contents(rows, pnl_usd, quantity, dict(zip(columns, values, strict=True)))

    @staticmethod
    def _columns(cursor: Any) -> dict[str, str]:
        cursor.execute(COLUMNS)
        return dict(cursor.fetchall())
