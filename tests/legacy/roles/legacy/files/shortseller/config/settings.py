"""Settings of the short seller, from its environment."""

import os
from dataclasses import dataclass


@dataclass
class DatabaseConfig:
    host: str
    port: int
    database: str
    username: str
    password: str


class Settings:
    def __init__(self):
        self.database = DatabaseConfig(
            host=os.getenv("POSTGRES_HOST", "localhost"),
            port=int(os.getenv("POSTGRES_PORT", "5432")),
            database=os.getenv("POSTGRES_DB", "multiasset_trading"),
            username=os.getenv("POSTGRES_USER", "trading_user"),
            password=os.getenv("POSTGRES_PASSWORD"),
        )
        self.redis_host = os.getenv("REDIS_HOST", "shortseller-redis")
        self.redis_port = int(os.getenv("REDIS_PORT", "6379"))
        self.max_positions = int(os.getenv("MAX_POSITIONS", "3"))
        self.leverage = int(os.getenv("LEVERAGE", "10"))
        self.interval_seconds = float(os.getenv("TRADE_INTERVAL_SECONDS", "1"))
