"""One client a process, however many parts of a bot ask for one: a second would be a second instance."""

from __future__ import annotations

import threading

from .client import TradingDB
from .settings import Settings

_lock = threading.Lock()
_clients: dict[Settings, tuple[TradingDB, int]] = {}


def acquire() -> TradingDB:
    """The process's client for what the environment says now; give it back with release()."""
    settings = Settings.from_environment()
    with _lock:
        client, users = _clients.get(settings) or (TradingDB(settings), 0)
        _clients[settings] = (client, users + 1)
    return client


def release(client: TradingDB) -> None:
    """Give a client back; the last user's closes it."""
    with _lock:
        for settings, (known, users) in list(_clients.items()):
            if known is client:
                if users > 1:
                    _clients[settings] = (known, users - 1)
                    return
                del _clients[settings]
                client.close()
