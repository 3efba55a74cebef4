"""Momentum's own main.py on the delivered TradeDatabase, for a trial run.

main.py of the fixture reads back from SQLite what it notes in its journal; there
is no SQLite any more. Here each call of TradeDatabase is noted instead, with what
the bot passed, in /trial/momentum.jsonl.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, os.getcwd())
import main
from database.trade_database import TradeDatabase

NOTES = Path("/trial/momentum.jsonl")
ENTRY = ("trade_id", "mode", "symbol", "side", "entry_price", "quantity", "position_size_usd")
EXIT = ("trade_id", "exit_price", "pnl_usd", "pnl_pct", "exit_reason", "holding_time_seconds")
# What the class rounds or respells, or keeps elsewhere.
NOT_COMPARED = {"trade_id", "mode", "pnl_pct"}


def note(table: str, values: dict[str, Any]) -> None:
    row = {name: value for name, value in values.items() if name not in NOT_COMPARED}
    with NOTES.open("a", encoding="utf-8") as notes:
        notes.write(json.dumps({"table": table, "row": row}) + "\n")


class Noted(TradeDatabase):  # type: ignore[misc,unused-ignore]
    def log_trade_entry(self, *values: Any, **more: Any) -> int:
        row_id: int = super().log_trade_entry(*values, **more)
        note("trades", {"id": row_id, **dict(zip(ENTRY, values, strict=True)), **more})
        return row_id

    def log_trade_exit(self, *values: Any) -> None:
        noted = dict(zip(EXIT, values, strict=True))
        row_id = next(trade["id"] for trade in self.get_open_trades() if trade["trade_id"] == noted["trade_id"])
        super().log_trade_exit(*values)
        note("trades", {"id": row_id, **noted})

    def log_event(self, event_type: str, level: str, message: str, details: Any = None) -> None:
        super().log_event(event_type, level, message, details)
        note("events", {"message": message})

    def log_risk_event(self, risk_type: str, current_value: float, limit_value: float, action: str | None) -> None:
        super().log_risk_event(risk_type, current_value, limit_value, action)
        note("risk_events", {"current_value": current_value})


class NothingToReadBack:
    def __init__(self, path: str) -> None:
        self.path = path

    def row(self, table: str, value: object) -> dict[str, int]:
        return {"id": 0}

    def latest(self, table: str) -> dict[str, int]:
        return {"id": 0}

    def again(self, table: str, journaled: object) -> None:
        return None

    def close(self) -> None:
        pass


main.TradeDatabase = Noted
main.ReadBack = NothingToReadBack
sys.exit(main.main())
