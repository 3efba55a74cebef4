"""History of Momentum's SQLite file. Fed to `python -` inside the bot's image.

Arguments: database journal_mode seed trades snapshots events risk_events.
One transaction ends by setting user_version to 1, so a second run does
nothing; the same arguments in the same time zone give the same rows.
Prints one JSON object: {"changed": bool, "rows": {table: count}}.
"""

import json
import random
import sys
from datetime import datetime, timezone

from database.trade_database import TradeDatabase

END = int(datetime(2025, 10, 24, tzinfo=timezone.utc).timestamp())
# Symbol, price, and the decimals of the exchange's prices and quantities.
MARKET = [
    ("BTCUSDT", 67250.1, 1, 3),
    ("ETHUSDT", 3480.55, 2, 2),
    ("SOLUSDT", 172.345, 3, 1),
    ("XRPUSDT", 0.52345678, 4, 0),
    ("1000PEPEUSDT", 0.0091234567891, 7, 0),
]
SIDES = ["Buy", "Sell", "BUY", "sell", "buy", "SELL", "Long", "short"]
REASONS = ["Trailing Stop", "Stop Loss", "Take Profit", "Maximum holding time", "Manuell geschlossen ✋"]
# Values that a naive conversion damages: binary fractions, exponents, whole
# numbers in REAL columns, more digits than eight, a tie at the ninth digit.
AWKWARD = [0.1 + 0.2, 1e-05, 5, 1 / 3, 0.000001255, 123456.7890123456, 2.000000005, 7e2, 0.1]
DETAILS = [
    None,
    '{"order_id": "a-1", "retry": 2}',
    "Connection reset by peer (errno 104)",
    "{'symbol': 'BTCUSDT', 'ok': True}",
    '{"value": NaN, "limit": Infinity}',
    "",
    "[1, 2.50, 1e400]",
    '"just text"',
    '{"text": "Größe 📈 \\u0000 end"}',
    '{"cut": "off',
    '{"a": 1, "a": 2}',
    "null",
]
LEVELS = ["INFO", "INFO", "INFO", "WARNING", "ERROR", "DEBUG", "CRITICAL"]


def local_time(seconds):
    """As the bot writes it: naive, in the zone of the container."""
    return str(datetime.fromtimestamp(seconds))


def utc_time(seconds):
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def make_trades(rng, count):
    for number in range(1, count + 1):
        symbol, base, ticks, lots = rng.choice(MARKET)
        # A whole second now and then: str(datetime) leaves the fraction out.
        entered = END - (count - number) * 600 - (0 if number % 211 == 0 else rng.randrange(10**6) / 10**6)
        price = round(base * rng.uniform(0.7, 1.3), ticks)
        quantity = round(rng.uniform(50, 5000) / price, lots)
        is_open = number > count - 6
        if number % 13 == 0 and not is_open:
            quantity = AWKWARD[number // 13 % len(AWKWARD)]
        if number % 17 == 0:
            price = base * rng.uniform(0.7, 1.3)
        size = price * quantity
        held = rng.randrange(30, 4 * 86400)
        percent = rng.gauss(0.2, 2.5)
        pnl = size * percent / 100
        if number % 19 == 0:
            pnl = AWKWARD[number // 19 % len(AWKWARD)] * rng.choice([1, -1])
        trade_id = None if number % 29 == 3 or number == count - 2 else f"{symbol}_{int(entered)}_{number}"
        yield {
            "id": number,
            "trade_id": trade_id,
            "mode": "demo" if number % 4 == 1 else "live",
            "symbol": symbol,
            "side": SIDES[rng.randrange(len(SIDES))],
            "entry_time": local_time(entered),
            "entry_price": price,
            "exit_time": None if is_open else local_time(entered + held),
            "exit_price": None if is_open else round(price * (1 + percent / 100), ticks),
            "quantity": quantity,
            "position_size_usd": size,
            "stop_loss": None if number % 5 == 0 else price * 0.97,
            "take_profit": None if number % 6 == 0 else price * 1.05,
            "pnl_usd": None if is_open else pnl,
            "pnl_pct": None if is_open else percent,
            "exit_reason": None if is_open else rng.choice(REASONS),
            "holding_time_seconds": None if is_open else held,
            "signal_strength": None if number % 7 == 0 else rng.random(),
            "created_at": utc_time(entered),
        }


def make_snapshots(rng, count):
    equity = 10000.0
    for number in range(1, count + 1):
        day_end = END - (count - number) * 86400 - 3600
        pnl = rng.gauss(3, 60)
        half_written = number % 31 == 7
        wins, losses = rng.randrange(6), rng.randrange(6)
        yield {
            # INSERT OR REPLACE burns ids.
            "id": number * 3,
            "date": local_time(day_end)[:10],
            "mode": "demo" if number % 9 == 2 else "live",
            "starting_equity": equity,
            "ending_equity": None if half_written else equity + pnl,
            "daily_pnl": None if half_written else pnl,
            "daily_pnl_pct": None if half_written else pnl / equity * 100,
            "trades_count": None if half_written else wins + losses,
            "wins_count": None if half_written else wins,
            "losses_count": None if half_written else losses,
            "open_positions": rng.randrange(4),
            "created_at": utc_time(day_end),
        }
        equity += pnl


def make_events(rng, count):
    for number in range(1, count + 1):
        happened = END - (count - number) * 3600 - rng.randrange(10**6) / 10**6
        yield {
            "id": number,
            "event_time": local_time(happened),
            "event_type": ["STARTUP", "ORDER", "API_ERROR", "HEARTBEAT"][number % 4],
            "event_level": LEVELS[number % len(LEVELS)],
            "message": ["Order accepted", "Verbindung verloren – neuer Versuch ⏳", "line one\nline two"][number % 3],
            "details": DETAILS[number % len(DETAILS)],
            "created_at": utc_time(happened),
        }


def make_risk_events(rng, count):
    for number in range(1, count + 1):
        happened = END - (count - number) * 7200 - rng.randrange(10**6) / 10**6
        yield {
            "id": number,
            "event_time": local_time(happened),
            "risk_type": ["DAILY_LOSS", "MAX_POSITIONS", "DRAWDOWN"][number % 3],
            "current_value": AWKWARD[number % len(AWKWARD)],
            "limit_value": rng.choice([3, 8, 15.0, 0.1 + 0.2]),
            "action_taken": [None, "Trading paused", "Positions closed ⚠"][number % 3],
            "created_at": utc_time(happened),
        }


def insert(conn, table, rows):
    rows = list(rows)
    if rows:
        columns = ", ".join(rows[0])
        values = ", ".join(f":{name}" for name in rows[0])
        conn.executemany(f"INSERT INTO {table} ({columns}) VALUES ({values})", rows)
    return len(rows)


def seed(conn, seed_number, trades, snapshots, events, risk_events):
    """Fill an empty database; returns {table: rows}, None where it was filled before."""
    with conn:
        # A run that was cut off may still be at work: wait for it.
        conn.execute("BEGIN IMMEDIATE")
        if conn.execute("PRAGMA user_version").fetchone()[0]:
            return None
        counts = {
            "trades": insert(conn, "trades", make_trades(random.Random(seed_number), trades)),
            "daily_snapshots": insert(
                conn, "daily_snapshots", make_snapshots(random.Random(seed_number + 1), snapshots)
            ),
            "system_events": insert(conn, "system_events", make_events(random.Random(seed_number + 2), events)),
            "risk_events": insert(conn, "risk_events", make_risk_events(random.Random(seed_number + 3), risk_events)),
        }
        conn.execute("PRAGMA user_version = 1")
    return counts


def main(argv):
    path, journal_mode, *numbers = argv
    database = TradeDatabase(path)
    database.conn.execute("PRAGMA busy_timeout = 60000")
    if not database.conn.execute("PRAGMA user_version").fetchone()[0]:
        database.conn.execute(f"PRAGMA journal_mode = {'WAL' if journal_mode == 'wal' else 'DELETE'}")
    counts = seed(database.conn, *(int(number) for number in numbers))
    database.close()
    print(json.dumps({"changed": counts is not None, "rows": counts}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
