"""A bot in a process of its own, which tests kill: trades in a loop and notes in a journal what was acknowledged.

    python writer.py <journal> <host> [number of trades]

The environment is a bot's; WRITER_BEAT_SECONDS shortens its heartbeat. Ends with 0 when all trades are made, with 7 when another instance has taken over.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "files/applications"))
from trading_db import SecondInstance, Settings, TradingDB, TradingDBError
from trading_db import instance as instances


def main() -> int:
    journal = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    settings = dataclasses.replace(Settings.from_environment(), instance_host=sys.argv[2])
    instances.BEAT_SECONDS = float(os.environ.get("WRITER_BEAT_SECONDS", instances.BEAT_SECONDS))
    number = int(sys.argv[3]) if len(sys.argv) > 3 else 1_000_000
    try:
        db = TradingDB(settings)
        os.write(journal, b"started\n")
        for count in range(number):
            trade = db.log_trade_entry("BTCUSDT", "Buy", 1, 100, metadata={"count": count, "process": os.getpid()})
            os.write(journal, f"{trade.trade_id} {trade.id}\n".encode())
            time.sleep(0.002)
        db.close()
    except SecondInstance as error:
        print(error, file=sys.stderr)
        return 7
    except TradingDBError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
