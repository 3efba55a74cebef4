"""Volatility breakout momentum bot, trading on paper: it reaches its database
only through TradeDatabase."""

import os
import random
import signal
import sqlite3
import sys
import threading
from datetime import datetime

from config.settings import Settings
from database.trade_database import TradeDatabase
from journal import Journal

BOT = "momentum_001"
MARKET = {"BTCUSDT": 67250.1, "ETHUSDT": 3480.55, "SOLUSDT": 172.345, "1000PEPEUSDT": 0.00912345}
KEYS = {"trades": "id", "daily_snapshots": "date", "system_events": "id", "risk_events": "id"}
SIDES = ["Buy", "Sell", "BUY", "sell", "Long"]
REASONS = ["Trailing Stop", "Stop Loss", "Take Profit", "Zeitlimit ⏰"]
DETAILS = [None, {"latency_ms": 12.5}, {"value": float("nan")}, "timeout after 5s", "{'not': 'json'}", "Größe 📈"]


class ReadBack:
    """Reads for the journal what was just committed, over a connection of its own."""

    def __init__(self, path):
        self.conn = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        self.conn.row_factory = sqlite3.Row

    def row(self, table, value):
        found = self.conn.execute(f"SELECT * FROM {table} WHERE {KEYS[table]} = ?", (value,)).fetchone()
        return dict(found) if found else None

    def latest(self, table):
        return dict(self.conn.execute(f"SELECT * FROM {table} ORDER BY id DESC LIMIT 1").fetchone())

    def again(self, table, journaled):
        """The same row as it is stored now; a replaced snapshot has a new id."""
        return self.row(table, journaled[KEYS[table]])

    def close(self):
        self.conn.close()


class Bot:
    def __init__(self, settings, database, journal, reader):
        self.settings = settings
        self.database = database
        self.journal = journal
        self.reader = reader
        self.prices = dict(MARKET)
        self.equity = 10000 + random.random()
        self.day = {"pnl": 0.0, "trades": 0, "wins": 0}

    def tick(self, number):
        for symbol in self.prices:
            self.prices[symbol] *= 1 + random.gauss(0, 0.001)
        mode = "demo" if number % 4 == 0 else "live"
        # A trade without an id cannot be closed through this API.
        open_trades = [trade for trade in self.database.get_open_trades(mode) if trade["trade_id"]]
        if len(open_trades) >= self.settings.max_positions or (open_trades and random.random() < 0.3):
            self.exit(open_trades[-1])
        else:
            self.enter(mode, number)
        if number % 3 == 0:
            self.event(number)
        if number % 5 == 0:
            self.snapshot()
        if number % 7 == 0:
            self.database.log_risk_event(
                "MAX_POSITIONS", random.random() * 3, 3, random.choice([None, "Entry refused"])
            )
            self.journal.append("risk_events", self.reader.latest("risk_events"), "insert")
        if number % 60 == 0:
            print(self.database.get_performance_stats(days=1), flush=True)

    def enter(self, mode, number):
        symbol = random.choice(list(self.prices))
        price = self.prices[symbol]
        quantity = random.uniform(10, 200) / price
        trade_id = None
        if number % 23:
            trade_id = f"{symbol}_{datetime.now().strftime('%Y%m%d%H%M%S%f')}"
        row_id = self.database.log_trade_entry(
            trade_id,
            mode,
            symbol,
            random.choice(SIDES),
            price,
            quantity,
            price * quantity,
            stop_loss=price * 0.97,
            take_profit=random.choice([None, price * 1.05]),
            signal_strength=random.random(),
        )
        self.journal.append("trades", self.reader.row("trades", row_id), "insert")

    def exit(self, trade):
        price = self.prices.get(trade["symbol"], trade["entry_price"])
        change = (price - trade["entry_price"]) / trade["entry_price"]
        pnl = change * trade["position_size_usd"] * (1 if trade["side"].lower() in ("buy", "long") else -1)
        held = int((datetime.now() - datetime.fromisoformat(trade["entry_time"])).total_seconds())
        self.database.log_trade_exit(trade["trade_id"], price, pnl, change * 100, random.choice(REASONS), held)
        self.journal.append("trades", self.reader.row("trades", trade["id"]), "update")
        self.day["pnl"] += pnl
        self.day["trades"] += 1
        self.day["wins"] += pnl > 0

    def event(self, number):
        level = random.choice(["INFO", "INFO", "WARNING", "ERROR"])
        self.database.log_event("HEARTBEAT", level, f"Takt {number} – alles läuft ✓", random.choice(DETAILS))
        self.journal.append("system_events", self.reader.latest("system_events"), "insert")

    def snapshot(self):
        today = datetime.now().date()
        half_written = random.random() < 0.2
        ending = None if half_written else self.equity + self.day["pnl"]
        self.database.save_daily_snapshot(
            today,
            "live",
            self.equity,
            ending,
            None if half_written else self.day["pnl"],
            None if half_written else self.day["pnl"] / self.equity * 100,
            self.day["trades"],
            self.day["wins"],
            self.day["trades"] - self.day["wins"],
            len(self.database.get_open_trades("live")),
        )
        self.journal.append("daily_snapshots", self.reader.row("daily_snapshots", str(today)), "replace")


def run(settings, stop):
    """Trade until stopped or until the database refuses."""
    journal = Journal(os.path.join(os.getenv("JOURNAL_DIR", "/journal"), f"{BOT}.jsonl"))
    database = TradeDatabase(settings.db_path)
    reader = ReadBack(settings.db_path)
    try:
        journal.recover(reader.again)
        bot = Bot(settings, database, journal, reader)
        number = 0
        while not stop.is_set():
            number += 1
            bot.tick(number)
            stop.wait(settings.interval_seconds)
    finally:
        reader.close()
        database.close()
        journal.close()


def main():
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print("momentum started", flush=True)
    while not stop.is_set():
        try:
            run(Settings(), stop)
        except sqlite3.Error as error:
            print(f"database unavailable, trying again: {error}", file=sys.stderr, flush=True)
            stop.wait(2)
    print("momentum stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
