"""LX technical analysis bot, trading on paper. Its state lives in memory and is
lost on a restart."""

import os
import random
import signal
import sys
import threading

positions = {}
equity = 10000.0


def execute_trade(decision):
    global equity
    symbol, side, quantity, price = (decision[key] for key in ("symbol", "side", "quantity", "price"))
    if side == "Buy":
        positions[symbol] = (quantity, price)
    elif symbol in positions:
        held, entry = positions.pop(symbol)
        equity += (price - entry) * held
    print(f"{side} {quantity:.6f} {symbol} at {price:.4f}, equity {equity:.2f}", flush=True)


def decide(prices):
    symbol = random.choice(list(prices))
    prices[symbol] *= 1 + random.gauss(0, 0.002)
    side = "Sell" if symbol in positions else "Buy"
    return {"symbol": symbol, "side": side, "quantity": 50 / prices[symbol], "price": prices[symbol]}


def main():
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    prices = {"BTCUSDT": 67250.1, "ETHUSDT": 3480.55, "SOLUSDT": 172.345}
    print("lxalgo started", flush=True)
    while not stop.is_set():
        execute_trade(decide(prices))
        stop.wait(float(os.getenv("TRADE_INTERVAL_SECONDS", "1")))
    print("lxalgo stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
