"""Runs Momentum's own Bot for some ticks, in the bot's folder: python drive_momentum.py TICKS. Prints its open trades."""

import json
import random
import sqlite3
import sys
from contextlib import closing
from typing import Any

import main
from config.settings import Settings
from database.trade_database import TradeDatabase
from journal import Journal


class ReadBack:
    """Reads by the class alone what main.ReadBack reads from its file."""

    def __init__(self, database: Any) -> None:
        self.database = database

    def row(self, table: str, value: Any) -> Any:
        if table == "trades":
            return next(row for row in self.database.get_recent_trades(-1) if row["id"] == value)
        return next(row for row in self.database.get_daily_snapshots(-1) if row["date"] == value)

    def latest(self, table: str) -> Any:
        if table == "system_events":
            return self.database.get_recent_events(1)[0]
        with closing(sqlite3.connect(self.database.backup("copy.db"))) as copy:
            copy.row_factory = sqlite3.Row
            return dict(copy.execute(f"SELECT * FROM {table} ORDER BY id DESC LIMIT 1").fetchone())


random.seed(int(sys.argv[1]))
database = TradeDatabase(Settings().db_path)
journal = Journal("journal.jsonl")
bot = main.Bot(Settings(), database, journal, ReadBack(database))
for number in range(1, int(sys.argv[1]) + 1):
    bot.tick(number)
print(json.dumps(database.get_open_trades()))
journal.close()
database.close()
