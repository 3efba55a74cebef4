"""The modules that bots get, on real servers: PostgreSQL behind PgBouncer, row level security on."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.applications.conftest import Platform

# Their fixtures are those of this folder as well.
from tests.database.conftest import (
    BOTS,
    LEGACY_FILES,
    PASSWORD,
    ROOT,
    Target,
    legacy,
    legacy_server,
    migrations,
    momentum,
)

__all__ = ["legacy", "legacy_server", "migrations", "momentum"]

APPLICATIONS = ROOT / "files/applications"


@dataclass
class Environment:
    """What the .env of a bot says (guide, step 3.4)."""

    target: Target
    platform: Platform
    folder: Path
    set: Callable[[str, str], None]

    def of(self, bot_id: str) -> dict[str, str]:
        return {
            "BOT_ID": bot_id,
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(self.platform.port),
            "POSTGRES_DB": self.target.database,
            "POSTGRES_USER": bot_id.removesuffix("_trial"),
            "POSTGRES_PASSWORD": PASSWORD,
            "TRADING_DB_OUTBOX": str(self.folder / bot_id),
            # So patient that an answer is certain while the database is there.
            "TRADING_DB_WAIT_SECONDS": "30",
            "TRADING_DB_READ_SECONDS": "30",
        }

    def use(self, bot_id: str) -> None:
        for name, value in self.of(bot_id).items():
            self.set(name, value)

    def hurry(self) -> None:
        """As in production, for classes made from now on: where the database goes away."""
        self.set("TRADING_DB_WAIT_SECONDS", "0.5")
        self.set("TRADING_DB_READ_SECONDS", "3")

    @contextmanager
    def away(self) -> Iterator[None]:
        """PgBouncer neither answers nor refuses, as when the network is gone."""
        pgbouncer = self.platform.container(self.platform.pgbouncer)
        pgbouncer.pause()
        try:
            yield
        finally:
            pgbouncer.unpause()


@pytest.fixture
def environment(target: Target, platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """The three bots and their trial ids, registered, in a trading_db without rows."""
    for bot in BOTS:
        target.execute("SELECT trading.register_trial(%s)", bot["bot_id"])
    return Environment(target, platform, tmp_path, monkeypatch.setenv)


def load(path: Path) -> ModuleType:
    """A module of its own from a file that others have the name of."""
    name = f"loaded_{uuid.uuid4().hex}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def modules() -> dict[str, ModuleType]:
    """The delivered modules and the legacy ones in whose place they come."""
    legacy_momentum = "momentum/database/trade_database.py"
    legacy_shortseller = "shortseller/src/database/trade_logger.py"
    return {
        "momentum": load(APPLICATIONS / legacy_momentum),
        "legacy momentum": load(LEGACY_FILES / legacy_momentum),
        "shortseller": load(APPLICATIONS / legacy_shortseller),
        "legacy shortseller": load(LEGACY_FILES / legacy_shortseller),
    }


class Clock:
    """Stands still until it is told; stands in for `datetime` in modules."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *frozen: ModuleType) -> None:
        self.moment = datetime(2026, 6, 1, tzinfo=UTC)
        clock = self

        class Stopped(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                return cls.fromtimestamp(clock.moment.timestamp(), tz)

        for module in frozen:
            monkeypatch.setattr(module, "datetime", Stopped)

    def forward(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@contextmanager
def local_zone(name: str) -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


def outcome(call: Callable[..., Any], arguments: Sequence[Any], error: type[Exception]) -> Any:
    """What a call returns, or the kind of error that it raises."""
    try:
        return call(*arguments)
    except error:
        return error
