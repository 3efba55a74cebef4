"""Settings of the client, from the environment."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import TradingDBError

_BOT_ID = re.compile(r"[a-z0-9][a-z0-9_]{0,49}")
_POLICIES = ("refuse", "flag")


@dataclass(frozen=True)
class Settings:
    """Where the database is, who the bot is, and how long a call may take (seconds)."""

    bot_id: str
    user: str
    password: str = field(repr=False)
    host: str = "pgbouncer"
    port: int = 6432
    database: str = "trading_db"
    # The folder of the durable outbox; each bot id has a file of its own in it.
    outbox: Path = Path("outbox")
    # A write waits so long for its delivery; 0: not at all.
    wait_seconds: float = 0.5
    # A read, waiting for earlier writes included.
    read_seconds: float = 5.0
    # The database has to answer within it when the bot starts.
    start_seconds: float = 60.0
    # A statement on the server.
    statement_seconds: float = 10.0
    # What a second live instance of the bot does: refuse to run, or flag it and run.
    second_instance: str = "refuse"
    # Row ids kept for trades while the database is away.
    id_reserve: int = 1000
    # Tells instances apart: the container's.
    instance_host: str = field(default_factory=socket.gethostname)

    @property
    def where(self) -> str:
        """The database, for messages."""
        return f"{self.database} on {self.host}:{self.port} as {self.user}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read BOT_ID, POSTGRES_HOST, _PORT, _DB, _USER, _PASSWORD, TRADING_DB_OUTBOX, TRADING_DB_WAIT_SECONDS,
        _READ_SECONDS, _START_SECONDS, _STATEMENT_SECONDS, _SECOND_INSTANCE and _ID_RESERVE.

        Raises TradingDBError naming the variable.
        """
        given = os.environ if environment is None else environment
        found: dict[str, Any] = {}
        for name, (variable, convert, expected) in _VARIABLES.items():
            value = given.get(variable, "")
            if not value:
                continue
            try:
                found[name] = convert(value)
            except ValueError:
                shown = "a value" if name == "password" else repr(value)
                raise TradingDBError(
                    f"{variable} is {shown}: expected {expected}; correct it in the bot's .env"
                ) from None
        for name in ("bot_id", "user", "password"):
            if name not in found:
                variable, _, expected = _VARIABLES[name]
                raise TradingDBError(f"{variable} is not set: expected {expected}; set it in the bot's .env")
        return cls(**found)


def _bot_id(value: str) -> str:
    if not _BOT_ID.fullmatch(value):
        raise ValueError(value)
    return value


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 <= seconds <= 86400:
        raise ValueError(value)
    return seconds


def _positive(low: float) -> Callable[[str], float]:
    def convert(value: str) -> float:
        if _seconds(value) < low:
            raise ValueError(value)
        return float(value)

    return convert


def _whole(low: int, high: int) -> Callable[[str], int]:
    def convert(value: str) -> int:
        if not low <= int(value) <= high:
            raise ValueError(value)
        return int(value)

    return convert


def _policy(value: str) -> str:
    if value not in _POLICIES:
        raise ValueError(value)
    return value


_VARIABLES: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "bot_id": ("BOT_ID", _bot_id, "the bot's id such as momentum_001 (lower case, digits, underscores)"),
    "user": ("POSTGRES_USER", str, "the bot's role"),
    "password": ("POSTGRES_PASSWORD", str, "the role's password"),
    "host": ("POSTGRES_HOST", str, "the host name of PgBouncer"),
    "port": ("POSTGRES_PORT", _whole(1, 65535), "a port such as 6432"),
    "database": ("POSTGRES_DB", str, "the name of the database"),
    "outbox": ("TRADING_DB_OUTBOX", Path, "a folder"),
    "wait_seconds": ("TRADING_DB_WAIT_SECONDS", _seconds, "seconds such as 0.5, or 0 not to wait"),
    "read_seconds": ("TRADING_DB_READ_SECONDS", _positive(0.1), "seconds such as 5"),
    "start_seconds": ("TRADING_DB_START_SECONDS", _seconds, "seconds such as 60"),
    "statement_seconds": ("TRADING_DB_STATEMENT_SECONDS", _positive(0.1), "seconds such as 10"),
    "second_instance": ("TRADING_DB_SECOND_INSTANCE", _policy, " or ".join(_POLICIES)),
    "id_reserve": ("TRADING_DB_ID_RESERVE", _whole(1, 100000), "a number such as 1000"),
}
