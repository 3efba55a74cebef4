"""Names of hosts are resolved without holding up the bot, and within the time that a call has."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from trading_db import Unavailable

from tests.applications.conftest import Opener
from tests.applications.test_failures import events
from tests.database.conftest import Target

# No resolver but the test's knows it: where libpq looks it up, nothing is found.
NAME = "pgbouncer.invalid"
look_up = socket.getaddrinfo


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def found(host: str, port: int, **options: Any) -> Any:
        assert host == NAME
        return [answer for address in addresses for answer in look_up(address, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def test_python_resolves_the_name_of_the_host(opener: Opener, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "127.0.0.1")
    opener(host=NAME).log_event("there")
    assert events(target) == ["there"]


def test_each_address_of_a_host_is_tried(opener: Opener, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    # PgBouncer listens on IPv4 alone.
    resolve_to(monkeypatch, "::1", "127.0.0.1")
    opener(host=NAME).log_event("there")
    assert events(target) == ["there"]


def test_a_name_that_is_not_known_is_named(opener: Opener) -> None:
    with pytest.raises(Unavailable, match=f"the host name {NAME} cannot be resolved: .*correct POSTGRES"):
        opener(host=NAME, start_seconds=0)


def test_a_resolver_that_hangs_holds_no_read_up(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    db = opener(read_seconds=0.5)

    def hang(*_: Any, **__: Any) -> Any:
        time.sleep(5)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"did not answer within 0\.5 s .*127\.0\.0\.1 was not resolved in time"):
        db.fetch("SELECT 1")
    assert time.monotonic() - began < 3
