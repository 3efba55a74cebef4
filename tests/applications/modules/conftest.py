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

import docker
import psycopg2
import pytest

# Their fixtures are those of this folder as well.
from tests.database.conftest import (
    BOTS,
    LEGACY_FILES,
    PASSWORD,
    ROOT,
    Server,
    Target,
    legacy,
    legacy_server,
    migrations,
    momentum,
    target,
    target_server,
)

__all__ = ["legacy", "legacy_server", "migrations", "momentum", "target", "target_server"]

APPLICATIONS = ROOT / "files/applications"
PGBOUNCER_INI = """
[databases]
* = host={host} port=5432
[pgbouncer]
listen_addr = 0.0.0.0
listen_port = 6432
auth_type = scram-sha-256
auth_file = /etc/pgbouncer/userlist.txt
pool_mode = transaction
ignore_startup_parameters = extra_float_digits
server_login_retry = 1
"""


@dataclass
class Pooler:
    """PgBouncer before the server of a test's database."""

    container: Any

    @property
    def port(self) -> int:
        self.container.reload()
        return int(self.container.ports["6432/tcp"][0]["HostPort"])

    @contextmanager
    def away(self) -> Iterator[None]:
        """Neither answers nor refuses, as when the network is gone."""
        self.container.pause()
        try:
            yield
        finally:
            self.container.unpause()


@pytest.fixture(scope="session")
def pooler(target_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooler]:
    client = docker.from_env()
    folder = tmp_path_factory.mktemp("pgbouncer")
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path("/tmp"):
            parent.chmod(0o755)
    (folder / "pgbouncer.ini").write_text(PGBOUNCER_INI.format(host=target_server.container))
    users = ["trading_user", *(bot["bot_id"] for bot in BOTS)]
    (folder / "userlist.txt").write_text("".join(f'"{user}" "{PASSWORD}"\n' for user in users))
    labels = {"trading.testbed": "database-tests"}
    network = client.networks.create(f"trading-modules-{uuid.uuid4().hex[:8]}", labels=labels)
    try:
        network.connect(target_server.container)
        container = client.containers.run(
            "edoburu/pgbouncer:v1.24.1-p1",
            volumes={str(folder): {"bind": "/etc/pgbouncer", "mode": "ro"}},
            network=network.name,
            ports={"6432/tcp": ("127.0.0.1", None)},
            labels=labels,
            detach=True,
        )
        try:
            found = Pooler(container)
            deadline = time.monotonic() + 30
            while True:
                try:
                    psycopg2.connect(
                        host="127.0.0.1", port=found.port, dbname="postgres", user="trading_user", password=PASSWORD
                    ).close()
                    break
                except (psycopg2.OperationalError, KeyError, IndexError, TypeError):
                    assert time.monotonic() < deadline, container.logs().decode()
                    time.sleep(0.2)
            yield found
        finally:
            container.remove(force=True, v=True)
    finally:
        network.disconnect(target_server.container, force=True)
        network.remove()
        client.close()


@dataclass
class Environment:
    """What the .env of a bot says (guide, step 3.4)."""

    target: Target
    pooler: Pooler
    folder: Path
    set: Callable[[str, str], None]

    def of(self, bot_id: str) -> dict[str, str]:
        return {
            "BOT_ID": bot_id,
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(self.pooler.port),
            "POSTGRES_DB": self.target.database,
            "POSTGRES_USER": bot_id.removesuffix("_trial"),
            "POSTGRES_PASSWORD": PASSWORD,
            "TRADING_DB_OUTBOX": str(self.folder / bot_id),
            "TRADING_DB_READ_SECONDS": "3",
        }

    def use(self, bot_id: str) -> None:
        for name, value in self.of(bot_id).items():
            self.set(name, value)


@pytest.fixture
def environment(target: Target, pooler: Pooler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """The three bots, registered, in an empty trading_db."""
    for bot in BOTS:
        target.execute(
            "INSERT INTO trading.bots (bot_id, bot_name, bot_type, initial_capital) VALUES (%s, %s, %s, 10000)",
            bot["bot_id"],
            bot["bot_name"],
            bot["bot_type"],
        )
        target.execute("SELECT trading.register_trial(%s)", bot["bot_id"])
    return Environment(target, pooler, tmp_path, monkeypatch.setenv)


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
