"""Tasks of phase 3's roles, run for real in folders of this machine."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.playbooks import local_playbook

ROOT = Path(__file__).parents[2]
PASSWORD, REDIS_PASSWORD = "own-Pa55word", "cache-Pa55word"
OLD = "REDIS_HOST=shortseller-redis\nREDIS_PORT=6379\nPOSTGRES_PASSWORD=0ld-Pa55word\n"
# What docker-compose 1 labels a container with.
DOCKER = """\
#!/bin/sh
[ "$1" = ps ] && exit 0
[ "$3" = shortseller_trading ] && cat {base}/inspected.json && exit 0
[ "$5" = shortseller_trading ] && echo "shortseller|{base}|docker-compose.yml,./more.yml" || exit 1
"""

MOUNTS = [
    {"Type": "tmpfs", "Source": "", "Destination": "/tmp"},
    {"Type": "bind", "Source": "{base}/shortseller", "Destination": "/app"},
    {"Type": "volume", "Name": "data", "Source": "/var/lib/docker/volumes/data/_data", "Destination": "/data"},
]

Run = Callable[..., str]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    base = tmp_path / "Alpha"
    for folder in ("shortseller", "momentum"):
        (base / "database/backups/applications" / folder).mkdir(parents=True)
        (base / folder).mkdir()
        (base / folder / ".env").write_text(OLD)
    mounts = json.loads(json.dumps(MOUNTS).replace("{base}", str(base)))
    (base / "inspected.json").write_text(json.dumps([{"Name": "/shortseller_trading", "Mounts": mounts}]))
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER.format(base=base))
    docker.chmod(0o755)
    return base


@pytest.fixture
def play(base: Path) -> Run:
    """What ansible-playbook says when it runs these entry points: role/tasks."""

    def run(*steps: str, fails: bool = False, **more: Any) -> str:
        owner, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
        bots = [
            {"id": f"{name}_001", "type": name, "folder": name, "legacy": {"container": f"{name}_trading"}}
            for name in ("shortseller", "momentum")
        ]
        common = {"base_dir": str(base), "owner": owner, "group": group, "bots": bots}
        variables: dict[str, Any] = {
            f"{role}_{name}": value for role in {step.split("/")[0] for step in steps} for name, value in common.items()
        }
        variables |= {
            "bot_environment_users": {bot["id"]: {"user": bot["id"], "password": PASSWORD} for bot in bots},
            "bot_environment_outbox": "/var/lib/trading_db",
            "bot_environment_redis_password": REDIS_PASSWORD,
            "bot_application_project": "unified_db",
            "bot_application_inventory": "the inventory",
        }
        tasks: list[dict[str, Any]] = [
            {"ansible.builtin.include_role": {"name": role, "tasks_from": entry}}
            for role, entry in (step.split("/") for step in steps)
        ]
        tasks += [
            {"ansible.builtin.debug": {"var": name}, "when": f"{name} is defined"} for name in more.pop("shown", [])
        ]
        file = base.parent / "play.yml"
        file.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
        done = subprocess.run(
            local_playbook(file, variables | more),
            cwd=ROOT,
            env=os.environ | {"PATH": f"{base.parent}/bin:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "true"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        said = done.stdout + done.stderr
        print(said)
        assert (done.returncode == 0) is not fails
        for secret in (PASSWORD, REDIS_PASSWORD, "0ld-Pa55word"):
            assert secret not in said
        return " ".join(said.split())

    return run


def settings(base: Path, folder: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in (base / folder / ".env").read_text().splitlines())


def test_the_shortseller_is_led_to_the_unified_redis_and_back(base: Path, play: Run) -> None:
    play("bot_environment/set")
    redis = {"REDIS_HOST": "redis", "REDIS_PORT": "6379", "REDIS_PASSWORD": REDIS_PASSWORD}
    assert settings(base, "shortseller").items() >= redis.items()
    assert settings(base, "momentum")["REDIS_HOST"] == "shortseller-redis"
    assert "REDIS_PASSWORD" not in settings(base, "momentum")
    play("bot_environment/restore")
    assert (base / "shortseller/.env").read_text() == OLD


def test_env_file_that_was_removed_comes_back_to_its_owner(base: Path, play: Run) -> None:
    if os.getuid() != 0:
        pytest.skip("only root gives files away")
    play("bot_environment/set")
    (base / "momentum/.env").unlink()
    play("bot_environment/restore", bot_environment_owner="nobody")
    assert (base / "momentum/.env").owner() == "nobody"
    assert (base / "momentum/.env").read_text() == OLD


def test_bot_that_left_the_inventory_is_put_back_too(base: Path, play: Run) -> None:
    play("bot_environment/set")
    shutil.rmtree(base / "shortseller")
    play("bot_environment/restore", bot_environment_bots=[])
    assert (base / "momentum/.env").read_text() == OLD
    assert not (base / "shortseller").exists()


def test_changed_keys_of_ours_are_kept_and_named(base: Path, play: Run) -> None:
    play("bot_environment/set")
    path = base / "momentum/.env"
    path.write_text(path.read_text().replace("pgbouncer", "elsewhere"))
    copy = f"{base}/database/backups/applications/momentum/.env.2"
    assert f"and keeps the file as it was in {copy}." in play("bot_environment/restore")
    assert "elsewhere" in Path(copy).read_text()


def test_a_bot_that_does_not_read_the_password_of_redis_is_named(base: Path, play: Run) -> None:
    notes = {"shown": ["bot_environment_notes"]}
    named = f"No Python source in {base}/shortseller reads REDIS_PASSWORD"
    assert named in play("bot_environment/validate", **notes)
    (base / "shortseller/cache.py").write_text("password = os.getenv('REDIS_PASSWORD')\n")
    said = play("bot_environment/validate", **notes)
    assert "reads REDIS_PASSWORD" not in said


def test_compose_files_that_docker_compose_1_named_are_read(base: Path, play: Run) -> None:
    (base / "docker-compose.yml").write_text(
        "services:\n  shortseller:\n    extends: {file: base.yml, service: bot}\n    environment: {POSTGRES_HOST: x}\n"
    )
    (base / "more.yml").write_text("services:\n  shortseller:\n    environment:\n      REDIS_HOST: x\n")
    said = play("bot_environment/validate", shown=["bot_environment_notes"])
    assert f"{base}/docker-compose.yml, line 4, sets POSTGRES_HOST of shortseller" in said
    assert f"{base}/./more.yml, line 4, sets REDIS_HOST of shortseller" in said
    assert f"{base}/docker-compose.yml, line 3, takes in {base}/base.yml, which was not read here" in said


@pytest.mark.parametrize(
    ("line", "defined"),
    [
        ("BOT_ID=momentum_001\r\n", True),
        ("export BOT_ID='momentum_001'\n", True),
        (" BOT_ID = momentum_001 # mine\n", True),
        ('BOT_ID: "momentum_001"\n', True),
        ("BOT_ID=momentum_0011\n", False),
        ("#BOT_ID=momentum_001\n", False),
        ("OLD_BOT_ID=momentum_001\n", False),
    ],
)
def test_which_bots_are_services_is_seen_in_their_env_files(line: str, defined: bool, base: Path) -> None:
    """The very command that the role runs."""
    (base / "momentum/.env").write_text(f"A=1\n{line}")
    role = ROOT / "roles/unified_services"
    pattern = yaml.safe_load((role / "vars/main.yml").read_text())["_unified_services_bot_line"]
    argv = yaml.safe_load((role / "tasks/bots.yml").read_text())[0]["ansible.builtin.command"]["argv"]
    assert argv[3] == "{{ _unified_services_bot_line }}"
    command = [*argv[:3], pattern.replace("{{ item.id }}", "momentum_001"), base / "momentum/.env"]
    assert subprocess.run(command, check=False).returncode == (0 if defined else 1)


def test_what_the_legacy_compose_file_sets_beside_the_env_file_is_named(base: Path, play: Run) -> None:
    (base / "docker-compose.yml").write_text(
        "services:\n  shortseller:\n    env_file: [./common.env, ./shortseller/.env]\n"
        "    environment: {LEVERAGE: 5, TZ: UTC, POSTGRES_HOST: x, MODE: live}\n"
    )
    said = play("bot_environment/validate", shown=["bot_environment_notes"])
    assert "The legacy compose file sets LEVERAGE, MODE of shortseller itself" in said
    assert f"that {base}/shortseller/.env has the same values" in said
    assert f"shortseller reads {base}/common.env, the unified service does not" in said
    assert f"shortseller reads {base}/shortseller/.env" not in said


def test_two_names_of_one_folder_are_refused(base: Path, play: Run) -> None:
    (base / "momentum/.env").unlink()
    (base / "momentum").rmdir()
    (base / "momentum").symlink_to("shortseller")
    assert "Bots share a folder (shortseller, momentum): expected one" in play("bot_application/validate", fails=True)


@pytest.mark.parametrize("source", ["shortseller", "shortseller/.env"])
def test_mounts_of_a_legacy_container_are_told_apart(source: str, base: Path, play: Run) -> None:
    inspected = base / "inspected.json"
    inspected.write_text(inspected.read_text().replace(f"{base}/shortseller", f"{base}/{source}"))
    said = play("bot_application/validate", shown=["bot_application_notes"])
    notes = said[said.index("TASK [ansible.builtin.debug]") :]
    assert f"shortseller_trading runs its code or reads its .env from {base}/{source}," in notes
    assert "shortseller_trading has data at /data, the unified service has not" in notes
    assert notes.count("shortseller_trading") == 2


def test_patch_without_its_file_can_be_settled(base: Path, play: Run) -> None:
    path, nothing = "shortseller/config/settings.py", hashlib.sha256(b"").hexdigest()
    said = play("bot_application/validate", shown=["bot_application_open"])
    assert f"{path} does not exist; what stands in for it has to be changed by hand" in said
    assert f"bot_application_acknowledged: {{{path}: {nothing}}}" in said
    acknowledged = {"bot_application_acknowledged": {path: nothing}}
    assert "has to be changed by hand" not in play(
        "bot_application/validate", shown=["bot_application_open"], **acknowledged
    )


def test_file_that_was_patched_by_hand_is_named_before_a_rollback(base: Path, play: Run) -> None:
    path = "shortseller/config/settings.py"
    by_hand = "Change back yourself, where you patched it by hand: "
    assert f"{by_hand}nothing" in play("bot_application/plan_restore")
    assert by_hand + path in play("bot_application/plan_restore", bot_application_acknowledged={path: "0" * 64})


def test_env_file_that_everybody_can_read_is_named(base: Path, play: Run) -> None:
    (base / "shortseller/.env").chmod(0o600)
    (base / "momentum/.env").chmod(0o644)
    said = play("bot_environment/validate", shown=["bot_environment_notes"])
    assert f"chmod o-rwx {base}/momentum/.env." in said
    assert f"chmod o-rwx {base}/shortseller/.env" not in said
