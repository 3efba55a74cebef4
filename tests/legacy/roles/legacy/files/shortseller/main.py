"""Multi-asset short seller, trading on paper: every interval it looks at the
market, opens, fills, marks and closes shorts, and keeps its books."""

import os
import random
import signal
import sys
import threading
import uuid
from datetime import datetime, timezone
from decimal import Decimal

import psycopg2
import redis
from config.settings import Settings
from journal import Journal
from src.database.trade_logger import TradeLogger

BOT = "shortseller_001"
EIGHT_PLACES = Decimal("0.00000001")
MARKET = {
    "BTCUSDT": 67250.1,
    "ETHUSDT": 3480.55,
    "SOLUSDT": 172.345,
    "XRPUSDT": 0.52345678,
    "1000PEPEUSDT": 0.00912345,
}
OUTCOMES = ["filled", "partially_filled", "cancelled", "rejected", "expired"]
NOTES = [None, None, None, "Überkauft 📉 – short", "tab\tand\nnewline", "\\N", 'said "no"; it\'s fine']


def money(value):
    return Decimal(repr(value)).quantize(EIGHT_PLACES)


class Bot:
    def __init__(self, settings, trades, journal, cache):
        self.settings = settings
        self.trades = trades
        self.journal = journal
        self.cache = cache
        self.prices = dict(MARKET)
        self.waiting_signal = None
        self.unsettled = []

    def note(self, table, row, op):
        if row is not None:
            self.journal.append(table, row, op)
        return row

    def tick(self, number):
        for symbol in self.prices:
            self.prices[symbol] *= 1 + random.gauss(0, 0.0005)
        self.store_candles()
        self.fill_pending()
        self.settle()
        self.mark_positions()
        self.follow_signal()
        if number % 5 == 0:
            self.keep_books()
        self.remember_prices()

    def store_candles(self):
        minute = datetime.now(timezone.utc).replace(second=0, microsecond=0)
        for symbol, price in self.prices.items():
            opened, closed = price * random.uniform(0.999, 1.001), price
            candle = [
                money(opened),
                money(max(opened, closed) * 1.0004),
                money(min(opened, closed) * 0.9996),
                money(closed),
                money(random.uniform(0, 1000)),
            ]
            self.note("market_data", self.trades.store_candle(symbol, minute, candle, "1m"), "insert")

    def fill_pending(self):
        for trade in self.trades.get_pending_trades():
            status = random.choices(OUTCOMES, [90, 3, 3, 2, 2])[0]
            fees = money(float(trade["quantity"] * trade["price"]) * 0.00055)
            row = self.trades.update_trade_status(trade["id"], status, fees)
            self.note("trades", row, "update")
            if status == "filled":
                self.unsettled.append(row)

    def settle(self):
        """Profit and the final fees become known a moment after the fill."""
        while len(self.unsettled) > 2:
            trade = self.unsettled.pop(0)
            pnl = money(float(trade["quantity"] * trade["price"]) * random.gauss(0.001, 0.01))
            self.note("trades", self.trades.update_trade_pnl(trade["id"], pnl, trade["fees"] * 2), "update")

    def mark_positions(self):
        positions = self.trades.get_open_positions()
        for index, position in enumerate(positions):
            price = money(self.prices.get(position["symbol"], 1.0))
            pnl = ((position["avg_price"] - price) * position["size"]).quantize(EIGHT_PLACES)
            full = len(positions) >= self.settings.max_positions
            if index == 0 and full and random.random() < 0.4:
                self.place_trade(position["symbol"], random.choice(["Buy", "BUY", "buy"]), position["size"])
                self.note("positions", self.trades.close_position(position["id"], pnl), "update")
            elif random.random() < 0.5:
                self.note("positions", self.trades.update_position(position["id"], pnl), "update")

    def place_trade(self, symbol, side, quantity):
        order_id = None if random.random() < 0.1 else str(uuid.uuid4())
        exchange_order_id = None if random.random() < 0.1 else str(uuid.uuid4())
        price = money(self.prices.get(symbol, 1.0))
        row = self.trades.log_trade(symbol, side, quantity, price, order_id, exchange_order_id, random.choice(NOTES))
        return self.note("trades", row, "insert")

    def follow_signal(self):
        if self.waiting_signal is None:
            symbol = random.choice(list(self.prices))
            kind = random.choices(["short", "close", "long"], [6, 3, 1])[0]
            indicators = {"ema_240": self.prices[symbol] * 1.01, "ema_600": self.prices[symbol], "note": "Kreuzung ✂"}
            row = self.trades.log_signal(
                symbol, kind, Decimal(random.randrange(10001)) / 10000, money(self.prices[symbol]), indicators
            )
            self.waiting_signal = self.note("signals", row, "insert")
            return
        noted, self.waiting_signal = self.waiting_signal, None
        if noted["signal_type"] == "long":
            return
        size = money(100 / self.prices[noted["symbol"]])
        sells = noted["signal_type"] == "short"
        side = random.choice(["Sell", "SELL", "short"] if sells else ["Buy", "BUY", "Long"])
        trade = self.place_trade(noted["symbol"], side, size)
        self.note("signals", self.trades.mark_signal_executed(noted["id"], trade["id"]), "update")
        if sells and len(self.trades.get_open_positions()) < self.settings.max_positions:
            price = money(self.prices[noted["symbol"]])
            row = self.trades.open_position(
                noted["symbol"],
                "short",
                size,
                price,
                (price * Decimal("1.03")).quantize(EIGHT_PLACES),
                (price * Decimal("0.94")).quantize(EIGHT_PLACES),
                self.settings.leverage,
            )
            self.note("positions", row, "insert")

    def keep_books(self):
        last = self.trades.latest_balance()
        unrealized = sum((position["unrealized_pnl"] for position in self.trades.get_open_positions()), Decimal(0))
        total = last["total_balance"] + money(random.gauss(0, 5))
        margin = money(random.uniform(0, 900))
        row = self.trades.log_balance(total, total - margin, total + unrealized, margin, unrealized)
        self.note("account_balance", row, "insert")
        self.note("risk_metrics", self.trades.update_risk_metrics(), "upsert")

    def remember_prices(self):
        try:
            self.cache.hset("shortseller:prices", mapping={name: repr(price) for name, price in self.prices.items()})
        except redis.RedisError as error:
            print(f"cache unavailable: {error}", flush=True)


def run(settings, stop):
    """Trade until stopped or until the database goes away."""
    journal = Journal(os.path.join(os.getenv("JOURNAL_DIR", "/journal"), f"{BOT}.jsonl"))
    trades = TradeLogger(settings.database)
    try:
        journal.recover(lambda table, journaled: trades.row(table, journaled["id"]))
        cache = redis.Redis(host=settings.redis_host, port=settings.redis_port, socket_timeout=2)
        bot = Bot(settings, trades, journal, cache)
        number = 0
        while not stop.is_set():
            number += 1
            bot.tick(number)
            stop.wait(settings.interval_seconds)
    finally:
        trades.close()
        journal.close()


def main():
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = Settings()
    print("short seller started", flush=True)
    while not stop.is_set():
        try:
            run(settings, stop)
        except psycopg2.Error as error:
            print(f"database unavailable, trying again: {error}", file=sys.stderr, flush=True)
            stop.wait(2)
    print("short seller stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
