"""The host after phase 3: what was delivered, what stayed, and the way back.

From the first rollback on, the tests go on where the one before ended: a run of phase 3 takes its time.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[3]
DELIVERED = PROJECT / "files/applications"
LEGACY_FILES = PROJECT / "tests/legacy/roles/legacy/files"
PHASE1 = "playbooks/phase1_infrastructure.yml"
PHASE3 = "playbooks/phase3_application_updates.yml"
ROLLBACK = "playbooks/rollback.yml"
AUDIT = "playbooks/audit_bots.yml"
BOTS = {"shortseller": "shortseller_001", "momentum": "momentum_001", "lxalgo": "lxalgo_001"}
KEYS = {"BOT_ID", "POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"} | {
    *("TRADING_DB_OUTBOX", "USE_POSTGRES", "REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD")
}
LEGACY = "docker ps --format '{{.ID}} {{.Names}} {{.CreatedAt}}' | grep -E 'shortseller|momentum|lxalgo' | sort"

# The bots' folders before the first rollback.
UPDATED: list[list[str]] = []

pytestmark = pytest.mark.service("trading_postgres", "trading_pgbouncer")


@pytest.fixture(scope="session")
def base(facts: dict[str, Any]) -> str:
    return str(facts["base_dir"])


@pytest.fixture
def compose(host: Any, base: str) -> Callable[[str], Any]:
    """The guide's docker-compose, in the base folder."""
    return lambda words: host.run(f"cd {base} && docker-compose -f docker-compose.unified-db.yml {words}")


@pytest.fixture
def folders(host: Any, base: str) -> Callable[[], str]:
    """Path, owner, mode, time and checksum of all in the bots' folders but what the bots write."""
    command = (
        f"cd {base} && find {' '.join(BOTS)} -path momentum/data -prune -o -type d -printf '%p %u %g %m\\n' -o -type f "
        "-printf '%p %u %g %m %T@ ' -exec sha256sum {} \\; | sort"
    )

    def read() -> str:
        with host.sudo():
            return str(host.check_output(command))

    return read


def names_and_checksums(listing: str) -> list[list[str]]:
    return [line.split()[0::5] for line in listing.splitlines()]


def content(host: Any, path: str) -> str:
    with host.sudo():
        return str(host.check_output("base64 --wrap=0 %s", path))


def encoded(text: bytes) -> str:
    import base64

    return base64.b64encode(text).decode()


def test_files_are_as_delivered_and_keep_their_owner(folders: Callable[[], str], host: Any, base: str) -> None:
    found = {line.split()[0]: line.split() for line in folders().splitlines()}
    expected = {}
    for folder in BOTS:
        for source in [*DELIVERED.joinpath(folder).rglob("*.py"), *DELIVERED.joinpath("trading_db").glob("*.py")]:
            root = DELIVERED if source.parent.name == "trading_db" else DELIVERED / folder
            expected[f"{folder}/{source.relative_to(root)}"] = hashlib.sha256(source.read_bytes()).hexdigest()
    assert len(expected) > 30
    assert {name: found[name][5] for name in expected} == expected
    assert {tuple(found[name][1:4]) for name in expected} == {("operator", "operator", "644")}
    main = host.file(f"{base}/lxalgo/main.py").content_string
    assert "from database.db_connector import DatabaseConnector" in main


def test_env_files_have_the_keys_and_every_other_line_is_untouched(host: Any, base: str) -> None:
    passwords = host.file(f"{base}/.env.database").content_string
    for folder, bot in BOTS.items():
        with host.sudo():
            original = host.file(f"{base}/database/backups/applications/{folder}/.env").content
        now = host.file(f"{base}/{folder}/.env").content
        settings = dict(
            line.decode().rstrip("\r").split("=", 1)
            for line in now.split(b"\n")
            if line.split(b"=")[0].decode() in KEYS
        )
        password = passwords.split(f"BOT_PASSWORD_{bot.upper()}='")[1].split("'")[0]
        expected = {"BOT_ID": bot, "POSTGRES_HOST": "pgbouncer", "POSTGRES_PORT": "6432", "POSTGRES_DB": "trading_db"}
        expected |= {"POSTGRES_USER": bot, "POSTGRES_PASSWORD": password, "TRADING_DB_OUTBOX": "/var/lib/trading_db"}
        redis = {"REDIS_HOST": "redis", "REDIS_PORT": "6379"}
        redis["REDIS_PASSWORD"] = passwords.split("\nREDIS_PASSWORD='")[1].split("'")[0]
        assert settings == expected | {"shortseller": redis, "momentum": {"USE_POSTGRES": "true"}}.get(folder, {})

        def others(text: bytes) -> list[bytes]:
            return [line for line in text.rstrip(b"\r\n").split(b"\n") if line.split(b"=")[0].decode() not in KEYS]

        assert [line.rstrip(b"\r") for line in others(now)] == [line.rstrip(b"\r") for line in others(original)]


def test_backups_are_closed_to_others(host: Any, base: str) -> None:
    with host.sudo():
        assert host.check_output("find %s/database/backups/applications -perm /077", base) == ""


def test_services_are_defined_and_not_started(host: Any, base: str, compose: Callable[[str], Any]) -> None:
    before = host.check_output("docker ps --format '{{.Names}}' | sort")
    assert compose("up -d").rc == 0
    assert host.check_output("docker ps --format '{{.Names}}' | sort") == before
    services = yaml.safe_load(compose("--profile bots config --no-interpolate").stdout)["services"]
    for folder in BOTS:
        service = services[folder]
        assert service["container_name"] == f"trading_{folder}"
        assert service["profiles"] == ["bots"]
        assert service["depends_on"]["pgbouncer"]["condition"] == "service_healthy"
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"
    rendered = yaml.safe_load(host.file(f"{base}/docker-compose.unified-db.yml").content_string)["services"]
    assert {key for folder in BOTS for key in rendered[folder]["environment"]} == {"TZ"}


def test_legacy_bots_never_stopped(host: Any) -> None:
    for bot in BOTS:
        state = "docker inspect --format '{{.RestartCount}} {{.State.Status}} {{.Config.Image}}' %s"
        assert host.check_output(state, f"{bot}_trading") == f"0 running alpha-{bot}"


def test_dry_run_on_a_finished_host_announces_nothing(play: Any, state: Any) -> None:
    before = state()
    run = play(PHASE3, "--check", "--diff")
    assert run.code == 0
    assert run.changed == frozenset()
    assert state() == before


def test_phase_1_again_leaves_the_bots_services_alone(play: Any, host: Any, base: str) -> None:
    path = f"{base}/docker-compose.unified-db.yml"
    before = content(host, path)
    run = play(PHASE1)
    assert run.code == 0
    assert run.changed == frozenset()
    assert content(host, path) == before


def test_what_is_to_be_known_is_reported(host: Any, base: str) -> None:
    report = json.loads(host.file(f"{base}/database/reports/application_updates.json").content_string)
    assert report["to_settle"] == []
    for words in (
        ("docker-compose.yml, line", "POSTGRES_HOST of shortseller"),
        ("momentum_trading has", "/app/data"),
        ("/shortseller reads REDIS_PASSWORD",),
    ):
        assert any(all(word in note for word in words) for note in report["to_know"]), words


def test_image_holds_what_was_delivered_and_a_driver(host: Any) -> None:
    for folder in BOTS:
        run = f"docker run --rm --network none --entrypoint python unified_db-{folder} -c"
        assert host.check_output(f"{run} 'import psycopg2, trading_db; print(trading_db.__file__)'") == (
            "/app/trading_db/__init__.py"
        )


def test_changed_program_makes_another_image_and_data_does_not(host: Any, base: str, play: Any) -> None:
    path = f"{base}/lxalgo/main.py"
    host.check_output("cp --preserve=all %s /tmp/main.kept && echo '# more' >> %s", path, path)
    try:
        announced = play(PHASE3, "--check", "--tags", "bot_image")
        assert announced.changed == {"Add what the unified database needs"}
        done = play(PHASE3, "--tags", "bot_image")
        assert done.changed == announced.changed
        image = "docker run --rm --network none --entrypoint tail unified_db-lxalgo -n 1 main.py"
        assert host.check_output(image) == "# more"
    finally:
        host.check_output("mv /tmp/main.kept %s", path)


def test_rollback_is_refused_while_a_bot_of_the_unified_system_runs(
    host: Any, play: Any, compose: Callable[[str], Any], folders: Callable[[], str]
) -> None:
    before = folders()
    assert compose("--profile bots run --detach --no-deps --entrypoint 'sleep 600' --name probe lxalgo").rc == 0
    try:
        run = play(ROLLBACK)
        assert run.code != 0
        assert "probe runs on" in run.text
        assert folders() == before
    finally:
        host.check_output("docker rm --force probe")


def test_audit_reads_the_delivered_sources(play: Any) -> None:
    run = play(AUDIT)
    assert "trading_db/client.py" not in run.text
    assert "momentum:main.py" in run.text


def test_a_proof_that_fails_says_so(host: Any, base: str, play: Any) -> None:
    host.check_output("docker stop trading_pgbouncer")
    try:
        run = play(PHASE3, "--tags", "bot_check")
        assert run.code != 0
        assert "cannot use the unified database" in run.text
    finally:
        host.check_output("docker start trading_pgbouncer")
    assert play(PHASE3, "--tags", "bot_check").code == 0
    rows = shlex.quote("SELECT count(*) FROM trading.bots WHERE bot_id LIKE '%trial'")
    assert host.check_output(f"docker exec trading_postgres psql -XAtq -U trading_user -d trading_db -c {rows}") == "0"


def test_rollback_restores_byte_for_byte(
    host: Any, base: str, play: Any, state: Any, folders: Callable[[], str]
) -> None:
    legacy = host.check_output(LEGACY)
    UPDATED.extend(names_and_checksums(folders()))
    before = state()
    announced = play(ROLLBACK, "--check", "--diff")
    assert announced.code == 0
    assert "Put back, or remove where there was none: lxalgo/" in announced.text
    assert state() == before

    run = play(ROLLBACK)
    assert run.code == 0
    assert run.changed == announced.changed
    for name in ("momentum/database/trade_database.py", "lxalgo/main.py", "shortseller/config/settings.py"):
        assert content(host, f"{base}/{name}") == encoded((LEGACY_FILES / name).read_bytes())
        assert host.file(f"{base}/{name}").mtime.timestamp() == 0
    for folder in ("momentum", "lxalgo"):
        original = (LEGACY_FILES / f"{folder}.env").read_bytes()
        assert content(host, f"{base}/{folder}/.env") == encoded(original)
    with host.sudo():
        left = host.check_output(f"find {base} -name trading_db -o -name outbox -o -name db_connector.py")
    assert left == ""
    assert "trading_lxalgo" not in host.file(f"{base}/docker-compose.unified-db.yml").content_string
    restored = folders()

    assert play(ROLLBACK).changed == frozenset()
    assert folders() == restored
    assert host.check_output(LEGACY) == legacy


def test_a_patch_that_does_not_fit_is_shown_and_can_be_settled(host: Any, base: str, play: Any) -> None:
    path = f"{base}/lxalgo/main.py"
    host.check_output("cp --preserve=all %s /tmp/main.kept", path)
    try:
        host.check_output("sed --in-place 's/equity = 10000.0/equity = 20000.0/' %s", path)
        mine = content(host, path)
        checksum = host.check_output("sha256sum %s", path).split()[0]
        run = play(PHASE3, "--tags", "bot_application")
        assert run.code == 0
        assert f"lxalgo/main.py (sha256 {checksum}) has to be changed by hand" in run.text
        assert "db.log_trade_entry(symbol=symbol" in run.text
        assert content(host, path) == mine
        report = host.file(f"{base}/database/reports/application_updates.json")
        assert f"lxalgo/main.py (sha256 {checksum})" in report.content_string
        settled = play(PHASE3, "--tags", "bot_application", bot_application_acknowledged={"lxalgo/main.py": checksum})
        assert settled.code == 0
        assert "has to be changed by hand" not in settled.text
    finally:
        host.check_output("mv /tmp/main.kept %s", path)


def test_phase_3_after_a_rollback_ends_as_the_first_one(play: Any, folders: Callable[[], str]) -> None:
    assert UPDATED
    assert play(PHASE3).code == 0
    assert names_and_checksums(folders()) == UPDATED


def test_what_was_changed_since_is_kept_and_fails_the_rollback(host: Any, base: str, play: Any) -> None:
    name = "momentum/database/trade_database.py"
    host.check_output("echo '# mine' >> %s/%s", base, name)
    host.check_output("sed --in-place 's/^BREAKOUT_LOOKBACK=20/BREAKOUT_LOOKBACK=21/' %s/momentum/.env", base)
    checksum = host.check_output("sha256sum %s/%s", base, name).split()[0]
    run = play(ROLLBACK)
    assert run.code != 0
    assert f"{name} ({checksum})" in run.text
    assert host.check_output("tail -n 1 %s/%s", base, name) == "# mine"
    done = play(ROLLBACK, bot_application_acknowledged={name: checksum})
    assert done.code == 0
    assert hashlib.sha256((LEGACY_FILES / name).read_bytes()).hexdigest() in host.check_output(
        "sha256sum %s/%s", base, name
    )
    with host.sudo():
        kept = host.check_output(f"grep -rl '^# mine' {base}/database/backups/applications")
    assert kept.endswith(checksum[:12])
    # The keys are back, what somebody else set stays.
    now = host.file(f"{base}/momentum/.env").content_string
    assert now == (LEGACY_FILES / "momentum.env").read_text().replace("LOOKBACK=20", "LOOKBACK=21")
    host.check_output("sed --in-place 's/^BREAKOUT_LOOKBACK=21/BREAKOUT_LOOKBACK=20/' %s/momentum/.env", base)
