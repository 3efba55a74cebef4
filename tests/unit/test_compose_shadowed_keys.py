"""Keys that a compose file sets so that the bot's env file does not matter: each with its file, service and line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter.compose_shadowed_keys import compose_env_files, compose_shadowed_keys

ROOT = Path(__file__).parents[2]
KEYS = ["POSTGRES_HOST", "POSTGRES_PASSWORD", "BOT_ID"]
FILE = "/srv/docker-compose.yml"
SECRET = "hidden-Pa55word"


def found(text: str, **others: str) -> list[tuple[str, int, str, str]]:
    """File, line, service and key of what shadows keys of the service `bot`."""
    files = {FILE: text} | {f"/srv/{name}.yml": other for name, other in others.items()}
    return [
        (one["file"], one["line"], one["service"], one["key"]) for one in compose_shadowed_keys(files, ["bot"], KEYS)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("services:\n  bot:\n    environment:\n      TZ: UTC\n      POSTGRES_HOST: x\n      BOT_ID:\n", [(5, "POSTGRES_HOST"), (6, "BOT_ID")]),
        ("services:\n  bot:\n    environment:\n      - TZ=UTC\n      - 'POSTGRES_HOST=x=y'\n      - BOT_ID\n", [(5, "POSTGRES_HOST"), (6, "BOT_ID")]),
        ("services:\n  bot: {environment: {TZ: UTC}}\n  other: {environment: {BOT_ID: x}}\n", []),
        ("x-env: &env\n  BOT_ID: x\nservices:\n  bot:\n    environment: *env\n", [(2, "BOT_ID")]),
        ("x-env: &env\n  BOT_ID: x\nservices:\n  bot:\n    environment:\n      <<: *env\n      BOT_ID: y\n", [(7, "BOT_ID")]),
        ("x: &a {BOT_ID: x}\ny: &b\n  POSTGRES_HOST: x\nservices:\n  bot:\n    environment:\n      <<: [*a, *b]\n", [(1, "BOT_ID"), (3, "POSTGRES_HOST")]),
        ("x: &a\n  environment: [BOT_ID=x]\nservices:\n  bot:\n    <<: *a\n", [(2, "BOT_ID")]),
        ("services:\n  base:\n    environment: [BOT_ID=x]\n  bot: {extends: base}\n", [(3, "BOT_ID")]),
        ("services:\n  base:\n    environment: [BOT_ID=x]\n  bot: {extends: {service: base}}\n", [(3, "BOT_ID")]),
        ("services:\n  bot: {extends: bot, environment: }\n", []),
        ("services:\n  bot:\n    environment: !reset\n", []),
        ("services:\n  bot:\n", []),
        ("", []),
    ],
)  # fmt: skip
def test_forms_of_an_environment(text: str, expected: list[tuple[int, str]]) -> None:
    assert found(text) == [(FILE, line, "bot", key) for line, key in expected]


def test_several_files_and_a_service_of_another_file() -> None:
    text = "services:\n  bot: {extends: {file: ./base.yml, service: any}}\n"
    base = "services:\n  any:\n    environment: [BOT_ID=x]\n"
    override = "services:\n  bot:\n    environment: {POSTGRES_HOST: x}\n"
    assert found(text, base=base, override=override) == [
        ("/srv/base.yml", 3, "bot", "BOT_ID"),
        ("/srv/override.yml", 3, "bot", "POSTGRES_HOST"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "path"),
    [
        ("services:\n  bot: {extends: {file: base.yml, service: any}}\n", 2, "/srv/base.yml"),
        ("include:\n  - more.yml\nservices: {}\n", 2, "/srv/more.yml"),
        ("include: [{path: [more.yml]}]\n", 1, "/srv/more.yml"),
    ],
)
def test_file_that_is_not_given_is_told(text: str, line: int, path: str) -> None:
    (one,) = compose_shadowed_keys({FILE: text}, ["bot"], KEYS)
    assert one == {"file": FILE, "line": line, "service": "bot", "key": "", "unread": path}


def test_what_is_no_yaml_is_an_error_that_quotes_nothing() -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        found(f"services:\n  bot: {{environment: [PASSWORD={SECRET}\n")
    assert f"{FILE}, line 3: expected ',' or ']'" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_env_files_behind_the_bots_own() -> None:
    text = "services:\n  bot:\n    env_file:\n      - common.env\n      - path: ./bot/.env\n        required: false\n      - late.env\n"
    others = {"/srv/common.env": "BOT_ID=x\n", "/srv/late.env": "# BOT_ID\n export POSTGRES_HOST = x\nTZ=UTC\n"}
    assert compose_env_files({FILE: text}, ["bot"]) == ["/srv/bot/.env", "/srv/common.env", "/srv/late.env"]
    shadows = compose_shadowed_keys({FILE: text}, ["bot"], KEYS, others)
    assert shadows == [{"file": "/srv/late.env", "line": 2, "service": "bot", "key": "POSTGRES_HOST", "unread": ""}]
    assert compose_env_files({FILE: "services:\n  bot: {env_file: .env}\n"}, ["bot"]) == ["/srv/.env"]


def test_in_a_playbook(tmp_path: Path) -> None:
    """On text as Ansible hands it over."""
    compose = tmp_path / "compose.yml"
    compose.write_text(f"services:\n  bot:\n    environment:\n      POSTGRES_PASSWORD: {SECRET}\n")
    source = f"{{'{compose}': (slurped.content | b64decode)}}"
    found = f"{{{{ {source} | compose_shadowed_keys(['bot'], {KEYS}) | first }}}}"
    tasks = [
        {"ansible.builtin.slurp": {"src": str(compose)}, "register": "slurped"},
        {"ansible.builtin.debug": {"msg": "{{ found.file }}:{{ found.line }} {{ found.service }} {{ found.key }}"}},
    ]
    file = tmp_path / "play.yml"
    play = {"hosts": "localhost", "gather_facts": False, "vars": {"found": found}, "tasks": tasks}
    file.write_text(yaml.safe_dump([play]))
    interpreter = f"ansible_python_interpreter={sys.executable}"
    command = ["ansible-playbook", "-i", "localhost,", "-c", "local", "-e", interpreter, str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    assert f"{compose}:4 bot POSTGRES_PASSWORD" in done.stdout
    assert SECRET not in done.stdout
