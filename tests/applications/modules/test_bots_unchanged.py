"""The bots' own programs, unchanged, in their folders with the delivered files: they trade on the unified database."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from trading_db import Refused

from tests.database.conftest import LEGACY_FILES

from .conftest import APPLICATIONS, Environment, load

HERE = Path(__file__).parent
# Shortseller's cache: it may be away, and is.
REDIS = """
class RedisError(Exception): pass
class Redis:
    def __init__(self, **settings): pass
    def hset(self, *values, **more): raise RedisError("away")
"""


def assemble(bot: str, folder: Path) -> Path:
    """The bot's folder as its image has it after the delivery."""
    shutil.copytree(LEGACY_FILES / bot, folder)
    shutil.copy(LEGACY_FILES / "journal.py", folder / "journal.py")
    (folder / "redis.py").write_text(REDIS)
    ignored = shutil.ignore_patterns("*.patch", "*.md", "__pycache__")
    shutil.copytree(APPLICATIONS / bot, folder, dirs_exist_ok=True, ignore=ignored)
    shutil.copytree(APPLICATIONS / "trading_db", folder / "trading_db", ignore=ignored)
    shutil.copy(HERE / "drive_momentum.py", folder)
    shutil.copy(HERE / "drive_shortseller.py", folder)
    for patch in (APPLICATIONS / bot).rglob("*.patch"):
        done = subprocess.run(["patch", "-p1", "-F0", "-i", str(patch)], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def variables(environment: Environment, bot_id: str, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        **environment.of(bot_id),
        "JOURNAL_DIR": str(folder / "journals"),
        "TRADE_INTERVAL_SECONDS": "0.01",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def drive(environment: Environment, bot_id: str, folder: Path, ticks: int) -> str:
    driver = f"drive_{folder.name}.py"
    done = subprocess.run(
        [sys.executable, driver, str(ticks)],
        cwd=folder,
        env=variables(environment, bot_id, folder),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def last_entries(path: Path, table: str) -> dict[Any, dict[str, Any]]:
    """The rows of a table as the bot's journal had them last."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return {entry["id"]: entry["row"] for entry in entries if entry["table"] == table}


def test_momentum_trades_on_and_finds_its_open_trades_after_a_restart(environment: Environment, tmp_path: Path) -> None:
    folder = assemble("momentum", tmp_path / "momentum")
    first = json.loads(drive(environment, "momentum_001", folder, 70).splitlines()[-1])
    assert first
    drive(environment, "momentum_001", folder, 71)
    stored = environment.target.rows("SELECT id, exit_price, pnl_usd FROM trading.trades WHERE bot_id = 'momentum_001'")
    noted = last_entries(folder / "journal.jsonl", "trades")
    assert {row["id"] for row in stored} == set(noted)
    for row in stored:
        pnl = noted[row["id"]]["pnl_usd"]
        assert (row["pnl_usd"] is None) == (pnl is None)
        if pnl is not None:
            assert abs(row["pnl_usd"] - Decimal(repr(pnl))) <= Decimal("0.5e-8")
    # What is open is a position, and nothing else is.
    differing = environment.target.rows(
        "SELECT trade_id, p.status FROM trading.trades t FULL JOIN trading.positions p ON p.position_id = t.trade_id"
        " WHERE (t.exit_time IS NULL) IS DISTINCT FROM (p.status = 'open')"
    )
    assert differing == []


def test_shortseller_trades_on_and_recovers_its_journal_after_a_restart(
    environment: Environment, tmp_path: Path
) -> None:
    folder = assemble("shortseller", tmp_path / "shortseller")
    drive(environment, "shortseller_001", folder, 60)
    drive(environment, "shortseller_001", folder, 61)
    entries = [json.loads(line) for line in (folder / "journals/shortseller_001.jsonl").read_text().splitlines()]
    # Every row was found again as it had been noted.
    assert Counter(entry["op"] for entry in entries)["recover"] == 0
    columns = {"trades": "quantity, entry_price, pnl_usd, fees", "positions": "size, avg_entry_price, unrealized_pnl"}
    names = {"trades": ("quantity", "price", "pnl", "fees"), "positions": ("size", "avg_price", "unrealized_pnl")}
    for table in columns:
        noted = last_entries(folder / "journals/shortseller_001.jsonl", table)
        stored = environment.target.rows(f"SELECT id, {columns[table]} FROM trading.{table}")
        assert {row["id"]: [str(value) for value in list(row.values())[1:]] for row in stored} == {
            row["id"]: [row[name] for name in names[table]] for row in noted.values()
        }
        assert stored


def run_lxalgo(environment: Environment, folder: Path, seconds: float) -> str:
    process = subprocess.Popen(
        [sys.executable, "-u", "main.py"],
        cwd=folder,
        env=variables(environment, "lxalgo_001", folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    printed = process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0, printed + rest
    return printed + rest


def test_lxalgo_patched_records_entries_and_exits_and_remembers_them(environment: Environment, tmp_path: Path) -> None:
    folder = assemble("lxalgo", tmp_path / "lxalgo")
    printed = "".join(run_lxalgo(environment, folder, 2) for _ in range(2))
    trades = environment.target.rows("SELECT * FROM trading.trades WHERE bot_id = 'lxalgo_001' ORDER BY id")
    # Each buy is a trade, each sell the exit of one: nothing is recorded twice.
    assert len(trades) == printed.count("Buy ") == printed.count("Trade logged to database: lxalgo_001_")
    assert {trade["side"] for trade in trades} == {"buy"}
    closed = [trade for trade in trades if trade["exit_time"] is not None]
    assert len(closed) == printed.count("Sell ") > 0
    assert len(trades) - len(closed) <= 3, "after the restart, symbols that were held are not bought again"
    equity = environment.target.value("SELECT current_equity FROM trading.bots WHERE bot_id = 'lxalgo_001'")
    assert abs(equity - 10000 - sum(trade["pnl_usd"] for trade in closed)) < Decimal("0.0001")
    open_ids = {trade["trade_id"] for trade in trades} - {trade["trade_id"] for trade in closed}
    positions = environment.target.rows("SELECT position_id FROM trading.positions WHERE status = 'open'")
    assert {position["position_id"] for position in positions} == open_ids


def test_lxalgo_patched_holds_in_memory_what_the_database_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        """A connector that takes no trade, and knows an open one."""

        def get_open_trades(self) -> list[dict[str, Any]]:
            return [{"symbol": "BTCUSDT", "quantity": 1, "entry_price": 2, "trade_id": "known"}]

        def get_equity(self) -> int:
            return 10000

        def log_trade_entry(self, **columns: Any) -> str:
            raise Refused("no")

        def log_trade_exit(self, *columns: Any, **more: Any) -> None:
            raise Refused("no")

    connector = ModuleType("database.db_connector")
    connector.DatabaseConnector = Refusing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "database", ModuleType("database"))
    monkeypatch.setitem(sys.modules, "database.db_connector", connector)
    main: Any = load(assemble("lxalgo", tmp_path / "lxalgo") / "main.py")
    for side, symbol in (("Buy", "ETHUSDT"), ("Sell", "BTCUSDT")):
        with pytest.raises(Refused):
            main.execute_trade({"symbol": symbol, "side": side, "quantity": 1, "price": 3})
    assert (main.positions, main.trade_ids, main.equity) == ({"BTCUSDT": (1, 2)}, {"BTCUSDT": "known"}, 10000)


@pytest.mark.parametrize(("bot", "patched"), [("lxalgo", "main.py"), ("shortseller", "config/settings.py")])
def test_a_patch_fits_the_known_file_alone(bot: str, patched: str, tmp_path: Path) -> None:
    def applies(text: str) -> bool:
        path = tmp_path / patched
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        patch = APPLICATIONS / bot / f"{patched}.patch"
        command = ["patch", "-p1", "--dry-run", "--batch", "-i", str(patch)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0

    known = (LEGACY_FILES / bot / patched).read_text()
    assert applies(known)
    assert applies("# A line of the owner's.\n" + known), "what stands elsewhere in the file does not matter"
    for line in ("positions = {}", "localhost"):
        if line in known:
            assert not applies(known.replace(line, "something else"))
    instruction = APPLICATIONS / bot / f"{patched}.instruction.md"
    assert patched in instruction.read_text()


def test_the_tests_of_step_4_1_run_in_the_bots_folder_and_leave_nothing(
    environment: Environment, tmp_path: Path
) -> None:
    folder = assemble("lxalgo", tmp_path / "lxalgo")
    before = environment.target.contents()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "test_database_operations.py", "-v", "-p", "no:cacheprovider"],
        cwd=folder,
        env=variables(environment, "lxalgo_001", folder),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    for name in ("test_trade_logging", "test_position_tracking", "test_signal_logging"):
        assert f"::{name} PASSED" in done.stdout
    after = environment.target.contents()
    # Its trial id was alive meanwhile.
    assert {table: rows for table, rows in after.items() if table != "trading.bots"} == {
        table: rows for table, rows in before.items() if table != "trading.bots"
    }
