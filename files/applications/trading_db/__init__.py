"""trading_db: how a bot writes to the unified database and reads from it.

    from trading_db import TradingDB

    db = TradingDB.from_environment()
    trade = db.log_trade_entry("BTCUSDT", "Buy", 0.01, 45000)
    db.log_trade_exit(trade.trade_id, 46000, pnl_usd=10)
    db.close()

`python -m trading_db status` shows what waits for delivery and what was
refused; `python -m trading_db check` proves the connection.
"""

from .base import Trade
from .client import TradingDB
from .errors import Refused, SecondInstance, TradingDBError, Unavailable
from .settings import Settings

__all__ = ["Refused", "SecondInstance", "Settings", "Trade", "TradingDB", "TradingDBError", "Unavailable"]
