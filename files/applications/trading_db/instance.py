"""One live instance of a bot: its row in trading.bot_heartbeats.

The database refuses a second live row of another host (see 001's trigger). On
the same host a new instance is a restart and takes over. Whoever claims ends
the rows of the others, and an instance whose row was ended finds out by its
next heartbeat.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import psycopg2

from .connection import Connection
from .errors import SecondInstance
from .settings import Settings
from .values import json_text

BEAT_SECONDS = 10.0
# A row that was not seen for so long is nobody's; 001's trigger has the same.
LIVE_SECONDS = 30.0
_PATIENCE_SECONDS = LIVE_SECONDS + 5
_log = logging.getLogger("trading_db")

_CLAIM = """INSERT INTO trading.bot_heartbeats (bot_id, host, started_at, last_seen, version, details)
SELECT %(bot_id)s, %(host)s, clock_timestamp(), now(), %(version)s, %(details)s::jsonb
WHERE NOT %(only_free)s OR NOT EXISTS (
    SELECT FROM trading.bot_heartbeats WHERE bot_id = %(bot_id)s AND last_seen > now() - interval '30 seconds')
RETURNING id"""
# What was seen within 30 seconds would keep a successor out.
_END = """UPDATE trading.bot_heartbeats SET last_seen = last_seen - interval '30 seconds',
    details = details || jsonb_build_object('ended', %(reason)s::text, 'ended_at', now())
WHERE bot_id = %(bot_id)s AND NOT details ? 'ended' AND id """
_BEAT = """UPDATE trading.bot_heartbeats SET last_seen = now(), details = %(details)s::jsonb
WHERE bot_id = %(bot_id)s AND id = %(id)s AND NOT details ? 'ended'"""
_SEEN = """UPDATE trading.bots SET last_heartbeat = now() WHERE bot_id = %(bot_id)s"""
_OTHER = """SELECT id, host, last_seen FROM trading.bot_heartbeats
WHERE bot_id = %(bot_id)s AND host <> %(host)s AND NOT details ? 'ended' ORDER BY last_seen DESC LIMIT 1"""


class Instance:
    """This process as the database knows it. `flag` is told of a second one where the settings let it run."""

    def __init__(self, settings: Settings, version: str, flag: Callable[[str], None]) -> None:
        self._settings = settings
        self._version = version
        self._flag = flag
        self._flagged = False
        self._row: int | None = None
        self._details = "{}"
        self._beaten = time.monotonic()
        # Why this instance may not go on.
        self.superseded: str | None = None

    @property
    def due_in(self) -> float:
        """Seconds until the next heartbeat."""
        return self._beaten + BEAT_SECONDS - time.monotonic()

    @property
    def in_doubt(self) -> bool:
        """Whether another instance may have taken over since the last heartbeat."""
        return time.monotonic() - self._beaten > LIVE_SECONDS

    def describe(self, details: dict[str, Any]) -> None:
        """What the next heartbeats carry."""
        self._details = json_text("details", details)

    def claim(self, connection: Connection) -> None:
        """Become the bot's instance. Raises SecondInstance if another one is alive.

        The row of an instance that was killed is waited out: only one whose
        heartbeat goes on is alive.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        seen: dict[int, Any] = {}
        while (refusal := self._try_claim(connection)) is not None:
            with connection.transaction(_OTHER, self._parameters(), read_only=True) as cursor:
                other = cursor.fetchone()
            if other:
                row, host, last_seen = other
                if seen.setdefault(row, last_seen) != last_seen or time.monotonic() > deadline:
                    self._refuse(f"its heartbeat from host {host} goes on, last at {last_seen:%Y-%m-%d %H:%M:%S%z}")
                    return
                _log.info("waiting whether the instance of %s on %s is alive: %s", self._settings.bot_id, host, refusal)
            time.sleep(0.5)

    def _try_claim(self, connection: Connection, only_free: bool = False) -> str | None:
        """The refusal of the database, or None."""
        try:
            with connection.transaction(_CLAIM, self._parameters(only_free=only_free)) as cursor:
                row = cursor.fetchone()
                if row is None:
                    return "another instance is alive"
                ended = self._parameters(id=row[0], reason=f"superseded by host {self._settings.instance_host}")
                connection.execute(_END + "<> %(id)s", ended)
                connection.execute(_SEEN, ended)
        except psycopg2.errors.UniqueViolation as error:
            return error.diag.message_primary or "another instance is alive"
        self._row, self._flagged, self._beaten = row[0], False, time.monotonic()
        return None

    def _refuse(self, fact: str) -> None:
        text = (
            f"another instance of {self._settings.bot_id} runs: {fact}; this one is on host "
            f"{self._settings.instance_host}. Expected one instance a bot: stop the other one, or this one"
        )
        self._row = None
        if self._settings.second_instance == "refuse":
            self.superseded = text
            raise SecondInstance(text)
        if not self._flagged:
            self._flagged = True
            self._flag(text)

    def beat(self, connection: Connection) -> None:
        """Say that this instance lives. Raises SecondInstance once another one has taken over."""
        if self.superseded is None:
            if self._row is None:
                self._try_claim(connection, only_free=True)
            else:
                with connection.transaction(_BEAT, self._parameters(id=self._row)) as cursor:
                    alive = cursor.rowcount == 1
                    connection.execute(_SEEN, self._parameters())
                if not alive:
                    self._beaten = time.monotonic()
                    self._refuse("it has taken over")
        self._beaten = time.monotonic()

    def end(self, connection: Connection) -> None:
        """Make room for a successor."""
        if self._row is not None and self.superseded is None:
            with connection.transaction(_END + "= %(id)s", self._parameters(id=self._row, reason="closed")):
                self._row = None

    def _parameters(self, **more: Any) -> dict[str, Any]:
        return {
            "bot_id": self._settings.bot_id,
            "host": self._settings.instance_host,
            "version": self._version,
            "details": self._details,
            **more,
        }


VERSION = f"trading_db 1.0.0, Python {sys.version_info.major}.{sys.version_info.minor}"
