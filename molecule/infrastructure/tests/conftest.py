"""What the tests of the unified services share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def base(facts: dict[str, Any]) -> str:
    return str(facts["base_dir"])


@pytest.fixture
def secrets(host: Any, base: str) -> dict[str, str]:
    """The keys of .env.database."""
    return dict(re.findall(r"^([A-Z0-9_]+)='(.*)'$", host.check_output("cat %s/.env.database", base), re.MULTILINE))


@pytest.fixture
def psql(host: Any) -> Callable[[str], str]:
    """Runs SQL as the owner of trading_db, inside the server's container."""

    def run(sql: str, user: str = "trading_user") -> str:
        command = "docker exec trading_postgres psql -XAtq -v ON_ERROR_STOP=1 -U %s -d trading_db -c %s"
        return str(host.check_output(command, user, sql))

    return run


@pytest.fixture
def client(host: Any, facts: dict[str, Any]) -> Callable[..., Any]:
    """Runs psql in a container on the network where the bots will be."""

    def run(
        server: str, user: str, password: str, sql: str = "SELECT current_user", database: str = "trading_db"
    ) -> Any:
        name, port = server.split(":")
        return host.run(
            "docker run --rm --network trading_network -e PGPASSWORD=%s -e PGCONNECT_TIMEOUT=5 --entrypoint psql "
            "%s -XAtqw -h %s -p %s -U %s -d %s -c %s",
            *(password, facts["images"]["postgres"], name, port, user, database, sql),
        )

    return run
