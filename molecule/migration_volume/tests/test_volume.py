"""Momentum's SQLite in a Docker volume, its times in a zone that is not UTC."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

pytestmark = pytest.mark.service("trading_postgres", "momentum_trading")

SQLITE = "/var/lib/docker/volumes/alpha_momentum_data/_data/trading.db"


def first_trade(host: Any) -> tuple[str, str]:
    """(entry_time as the bot wrote it, trade_id) of Momentum's oldest trade."""
    program = (
        "import sqlite3; "
        f"c = sqlite3.connect('file:{SQLITE}?mode=ro', uri=True); "
        "print('|'.join(c.execute('SELECT entry_time, trade_id FROM trades WHERE trade_id IS NOT NULL "
        "ORDER BY id LIMIT 1').fetchone()))"
    )
    with host.sudo():
        entered, trade_id = host.check_output("python3 -c %s", program).split("|")
    return entered, trade_id


def test_the_file_was_found_in_its_volume(host: Any, facts: dict[str, Any]) -> None:
    bots = json.loads(host.check_output(f"cat {facts['base_dir']}/database/migrations/bots.json"))
    assert {bot["legacy"].get("sqlite_path") for bot in bots} == {None, SQLITE}
    header = f"head --bytes=19 {facts['base_dir']}/database/backups/momentum_backup_*.db | head --bytes=15"
    assert host.check_output(header) == "SQLite format 3"


def test_nothing_that_a_database_acknowledged_is_missing(check_journals: Any) -> None:
    check_journals()


def test_local_time_is_read_in_the_zone_of_the_bot(host: Any) -> None:
    entered, trade_id = first_trade(host)
    expected = datetime.fromisoformat(entered).replace(tzinfo=ZoneInfo("Europe/Berlin"))
    stored = host.check_output(
        "docker exec trading_postgres psql -XAtq -U trading_user -d trading_db -c "
        f"\"SELECT extract(epoch FROM entry_time) FROM trading.trades WHERE trade_id = 'momentum_001_{trade_id}'\""
    )
    assert float(stored) == pytest.approx(expected.timestamp(), abs=1e-6)


def test_report_says_equal(host: Any, facts: dict[str, Any]) -> None:
    report = json.loads(host.check_output(f"cat {facts['base_dir']}/database/reports/reconciliation.json"))
    assert report["ok"] is True
