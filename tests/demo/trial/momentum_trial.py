"""Momentum's own main.py on the delivered TradeDatabase, for a trial run.

main.py of the fixture reads back from SQLite what it notes in its journal; there
is no SQLite any more. Here each call of TradeDatabase is noted instead, with what
the bot passed, in /trial/momentum.jsonl.
"""

import json
import os
import sys

sys.path.insert(0, os.getcwd())
import main
from database.trade_database import TradeDatabase

NOTES = open("/trial/momentum.jsonl", "a", encoding="utf-8")  # noqa: SIM115


def note(table, values):
    NOTES.write(json.dumps({"table": table, "row": values}, default=str) + "\n")
    NOTES.flush()


class Noted(TradeDatabase):
    def log_trade_entry(self, trade_id, mode, symbol, side, entry_price, quantity, position_size_usd, **more):
        row_id = super().log_trade_entry(
            trade_id, mode, symbol, side, entry_price, quantity, position_size_usd, **more
        )
        values = {"symbol": symbol, "side": side, "entry_price": entry_price, "quantity": quantity}
        note("trades", {"id": row_id, **values, "position_size_usd": position_size_usd, **more})
        return row_id

    def log_trade_exit(self, trade_id, exit_price, pnl_usd, pnl_pct, exit_reason, holding_time_seconds):
        row_id = next(trade["id"] for trade in self.get_open_trades() if trade["trade_id"] == trade_id)
        super().log_trade_exit(trade_id, exit_price, pnl_usd, pnl_pct, exit_reason, holding_time_seconds)
        values = {"exit_price": exit_price, "pnl_usd": pnl_usd, "exit_reason": exit_reason}
        note("trades", {"id": row_id, **values, "holding_time_seconds": holding_time_seconds})

    def log_event(self, event_type, level, message, details=None):
        super().log_event(event_type, level, message, details)
        note("events", {"message": message})

    def log_risk_event(self, risk_type, current_value, limit_value, action_taken):
        super().log_risk_event(risk_type, current_value, limit_value, action_taken)
        note("risk_events", {"current_value": current_value})


class NothingToReadBack:
    def __init__(self, path):
        pass

    def row(self, table, value):
        return {"id": 0}

    def latest(self, table):
        return {"id": 0}

    def again(self, table, journaled):
        return None

    def close(self):
        pass


main.TradeDatabase = Noted
main.ReadBack = NothingToReadBack
sys.exit(main.main())
