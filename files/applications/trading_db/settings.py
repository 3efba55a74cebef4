"""Settings of the client, from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Where the database is, who the bot is, and how long a call may take (seconds)."""

    bot_id: str
    user: str
    password: str = field(repr=False)
    host: str = "pgbouncer"
    port: int = 6432
    database: str = "trading_db"
    outbox: Path = Path("outbox")
    # A write waits so long for its delivery; 0: not at all.
    wait_seconds: float = 0.5
    # A read, waiting for earlier writes included.
    read_seconds: float = 5.0
    # The database has to answer within it when the bot starts.
    start_seconds: float = 60.0
    # A statement on the server.
    statement_seconds: float = 10.0
    # refuse or flag.
    second_instance: str = "refuse"
    # Row ids kept for trades while the database is away.
    id_reserve: int = 1000

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read BOT_ID, POSTGRES_HOST, _PORT, _DB, _USER, _PASSWORD, TRADING_DB_OUTBOX, TRADING_DB_WAIT_SECONDS,
        _READ_SECONDS, _START_SECONDS, _STATEMENT_SECONDS, _SECOND_INSTANCE and _ID_RESERVE.

        Raises TradingDBError naming the variable.
        """
        raise NotImplementedError
