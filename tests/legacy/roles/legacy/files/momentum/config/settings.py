"""Settings of the momentum bot, from its environment."""

import os


class Settings:
    def __init__(self):
        self.db_path = os.getenv("DATABASE_PATH", "data/trading.db")
        self.max_positions = int(os.getenv("MAX_POSITIONS", "3"))
        self.interval_seconds = float(os.getenv("TRADE_INTERVAL_SECONDS", "1"))
