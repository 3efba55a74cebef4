"""Compose itself reads what env_file writes, and shadows what compose_shadowed_keys finds."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from plugins.filter.compose_shadowed_keys import compose_shadowed_keys
from plugins.modules import env_file
from tests.env_files import OURS, VALUES, files

# With Compose as Debian packages it.
IMAGE = "trading-testbed-host:latest"
ABSENT = "MAX_POSITIONS"
# Making a failing example smaller would take minutes.
SLOW = settings(
    max_examples=25, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)


class Compose:
    """Compose in a container, and a folder that both see."""

    def __init__(self, container: str, folder: Path) -> None:
        self.container = container
        self.folder = folder

    def environments(self) -> dict[str, dict[str, str | None]]:
        """What the services of the folder's compose file get."""
        command = [
            "docker",
            "exec",
            "-w",
            str(self.folder),
            self.container,
            "docker",
            "compose",
            "config",
            "--format",
            "json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        services = json.loads(done.stdout)["services"]
        return {name: unescaped(service.get("environment") or {}) for name, service in services.items()}

    def read(self, contents: list[bytes]) -> list[dict[str, str | None]]:
        """What Compose reads in env files."""
        services: dict[str, Any] = {}
        for number, content in enumerate(contents):
            self.folder.joinpath(f"{number}.env").write_bytes(content)
            services[f"s{number}"] = {"image": "x", "env_file": f"{number}.env"}
        self.folder.joinpath("compose.yml").write_text(json.dumps({"services": services}))
        found = self.environments()
        return [found[f"s{number}"] for number in range(len(contents))]


def unescaped(environment: dict[str, str | None]) -> dict[str, str | None]:
    """`config` prints what can be read as a compose file again."""
    return {key: value and value.replace("$$", "$") for key, value in environment.items()}


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    folder = tmp_path_factory.mktemp("compose")
    name = f"trading-compose-tests-{uuid.uuid4().hex[:8]}"
    options = ["--label", "trading.testbed=compose-tests", "--user", str(os.getuid()), "-v", f"{folder}:{folder}"]
    subprocess.run(
        ["docker", "run", "--detach", "--init", "--name", name, *options, "--entrypoint", "sleep", IMAGE, "infinity"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    try:
        yield Compose(name, folder)
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True, timeout=60)


@SLOW
@given(cases=st.lists(st.tuples(files(), st.fixed_dictionaries(dict.fromkeys(OURS, VALUES))), min_size=4, max_size=12))
def test_values_are_read_back_and_others_stay(compose: Compose, cases: list[tuple[bytes, dict[str, str]]]) -> None:
    originals = [content for content, _ in cases]
    changed = [env_file.updated(content, values, [ABSENT]) for content, values in cases]
    environments = compose.read(originals + changed)
    for (_, values), before, after in zip(cases, environments, environments[len(cases) :], strict=False):
        assert {key: after[key] for key in OURS} == values
        assert ABSENT not in after
        others = before.keys() - {*OURS, ABSENT}
        assert {key: after.get(key) for key in others} == {key: before[key] for key in others}
        assert after.keys() == others | set(OURS)


@SLOW
@given(values=st.lists(VALUES, min_size=20, max_size=60))
def test_any_value_in_any_quotation_marks(compose: Compose, values: list[str]) -> None:
    lines = [
        f"K{number}{name}={env_file.rendered(value, mark)}\n"
        for number, value in enumerate(values)
        for name, mark in (("B", ""), ("S", "'"), ("D", '"'))
    ]
    (found,) = compose.read(["".join(lines).encode()])
    assert found == {f"K{number}{name}": value for number, value in enumerate(values) for name in "BSD"}


@pytest.mark.parametrize(
    "path", sorted(Path("tests/legacy/roles/legacy").rglob("*.env*")), ids=lambda path: str(path.name)
)
def test_env_files_of_the_legacy_bots(compose: Compose, path: Path) -> None:
    values = {
        "POSTGRES_HOST": "pgbouncer",
        "POSTGRES_PASSWORD": "a'b $c \\ #d\\",
        "BOT_ID": "bot_001",
        "API_KEY": "x y",
    }
    original = path.read_bytes()
    before, after = compose.read([original, env_file.updated(original, values, [])])
    assert after == before | values


SHADOWS = """\
x-env: &env
  POSTGRES_HOST: anchored
x-more: &more {BOT_ID: merged, TZ: UTC}
services:
  mapping: {image: x, env_file: bot.env, environment: {TZ: UTC, POSTGRES_HOST: shadow}}
  list:
    image: x
    env_file: [bot.env]
    environment:
      - TZ=UTC
      - POSTGRES_HOST=shadow
      - BOT_ID
  alias: {image: x, env_file: bot.env, environment: *env}
  merge:
    image: x
    env_file: bot.env
    environment:
      <<: [*env, *more]
      POSTGRES_DB:
  extended: {extends: {service: mapping}, environment: {BOT_ID: own}}
  files: {image: x, env_file: [common.env, bot.env, late.env]}
  whole: {<<: {environment: {POSTGRES_HOST: shadow}}, image: x, env_file: bot.env}
  free: {image: x, env_file: bot.env, environment: {TZ: UTC}}
"""
OTHERS = {"common.env": "BOT_ID=early\n", "late.env": "# POSTGRES_DB=no\nexport POSTGRES_DB=late\n"}


def test_shadowed_keys_are_those_that_compose_shadows(compose: Compose) -> None:
    file = f"{compose.folder}/compose.yml"
    wanted = {"POSTGRES_HOST": "pgbouncer", "POSTGRES_DB": "trading_db", "BOT_ID": "bot_001"}
    Path(file).write_text(SHADOWS)
    for name, text in OTHERS.items():
        compose.folder.joinpath(name).write_text(text)
    compose.folder.joinpath("bot.env").write_bytes(env_file.updated(b"", wanted, []))
    environments = compose.environments()
    shadowed = {(name, key) for name, found in environments.items() for key in wanted if found[key] != wanted[key]}
    others = {f"{compose.folder}/{name}": text for name, text in OTHERS.items()}
    found = compose_shadowed_keys({file: SHADOWS}, list(environments), list(wanted), others)
    assert {(one["service"], one["key"]) for one in found} == shadowed
    assert {name for name, _ in shadowed} == environments.keys() - {"free"}
