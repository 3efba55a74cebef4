"""What no linter checks: that the parts of the repository agree.

A molecule scenario without tests, or a role that no scenario runs, passes
unseen otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in ROOT.glob("roles/*") if path.is_dir())
SCENARIOS = sorted(path.parent for path in ROOT.glob("molecule/*/molecule.yml"))
PLAYBOOKS = sorted(ROOT.glob("playbooks/*.yml"))
ROLE_KEYS = {
    "ansible.builtin.import_role",
    "ansible.builtin.include_role",
}


def name_of(path: Path) -> str:
    return path.name


class Loader(yaml.SafeLoader):
    """Reads Ansible's own tags (!unsafe, !vault) as plain strings."""


Loader.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))


def load(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader)


def playbooks_of(scenario: Path) -> dict[str, Path]:
    """The playbooks that a scenario names, by action, and converge in any case."""
    named: dict[str, str] = {"converge": "converge.yml"}
    for config in (ROOT / ".config/molecule/config.yml", scenario / "molecule.yml"):
        named |= ((load(config) or {}).get("ansible") or {}).get("playbooks") or {}
    for action in sequence_of(scenario):
        verb, *paths = action.split()
        if paths and verb != "verify":
            named[action] = paths[0]
    return {action: (scenario / path).resolve() for action, path in named.items()}


def sequence_of(scenario: Path) -> list[str]:
    """What a scenario does in an order of its own, or nothing."""
    return ((load(scenario / "molecule.yml") or {}).get("scenario") or {}).get("test_sequence") or []


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a YAML document, at any depth."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from mappings(value)
    elif isinstance(node, list):
        for value in node:
            yield from mappings(value)


def roles_of(playbook: Path) -> set[str]:
    """The roles that a playbook runs, through the playbooks it imports."""
    found: set[str] = set()
    for mapping in mappings(load(playbook)):
        for role in mapping.get("roles") or []:
            found.add(role if isinstance(role, str) else role.get("role") or role.get("name"))
        for key in ROLE_KEYS & mapping.keys():
            found.add(mapping[key]["name"])
        if imported := mapping.get("ansible.builtin.import_playbook"):
            found |= roles_of(playbook.parent / imported)
    return found


def playbooks_run_by(playbook: Path) -> set[Path]:
    """A playbook and those that it imports."""
    found = {playbook.resolve()}
    for mapping in mappings(load(playbook)):
        if imported := mapping.get("ansible.builtin.import_playbook"):
            found |= playbooks_run_by(playbook.parent / imported)
    return found


def playbooks_in_tests(scenario: Path) -> set[Path]:
    """The playbooks that a scenario's tests run."""
    texts = [tests.read_text() for tests in scenario.rglob("test_*.py")]
    return {ROOT / path for text in texts for path in re.findall(r'"(playbooks/\w+\.yml)"', text)}


def test_collections_are_those_of_the_pinned_package() -> None:
    spec = find_spec("ansible_collections")
    assert spec is not None
    assert spec.submodule_search_locations
    installed = Path(next(iter(spec.submodule_search_locations)))
    for collection in load(ROOT / "requirements.yml")["collections"]:
        manifest = installed.joinpath(*collection["name"].split("."), "MANIFEST.json")
        version = json.loads(manifest.read_text())["collection_info"]["version"]
        assert collection["version"] == version, collection["name"]


def test_every_collection_in_use_is_required() -> None:
    required = {collection["name"] for collection in load(ROOT / "requirements.yml")["collections"]}
    used: set[str] = set()
    for folder in ("roles", "playbooks", "tests", "molecule"):
        for path in ROOT.joinpath(folder).rglob("*.yml"):
            used |= set(re.findall(r"^\s*(?:- )?(\w+\.\w+)\.\w+:", path.read_text(), flags=re.M))
    used = {name for name in used if name.split(".")[0] in {"community", "ansible"}}
    assert used - required - {"ansible.builtin"} == set()


def test_requirements_are_pinned_exactly() -> None:
    lines = ROOT.joinpath("requirements.txt").read_text().splitlines()
    loose = [line for line in lines if line and not re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line)]
    assert loose == []


@pytest.mark.parametrize("role", ROLES, ids=name_of)
def test_role_has_the_common_skeleton(role: Path) -> None:
    for part in ("README.md", "meta/argument_specs.yml", "tasks/main.yml"):
        assert (role / part).is_file(), f"{role.name} lacks {part}"
    assert not (role / "templates").exists(), "templates stand in the top-level templates/"
    assert [path for path in role.rglob("*.yml") if not load(path)] == [], "no empty file"


@pytest.mark.parametrize("role", ROLES, ids=name_of)
def test_every_default_of_a_role_is_specified(role: Path) -> None:
    specified: set[str] = set()
    for spec in load(role / "meta/argument_specs.yml")["argument_specs"].values():
        specified |= set(spec.get("options") or {})
    defaults = role / "defaults/main.yml"
    public = {name for name in (load(defaults) if defaults.exists() else {}) if not name.startswith("_")}
    assert public - specified == set()


@pytest.mark.parametrize("role", ROLES, ids=name_of)
def test_role_is_covered_by_a_scenario(role: Path) -> None:
    covered: set[str] = set()
    for scenario in SCENARIOS:
        for playbook in {*playbooks_of(scenario).values(), *playbooks_in_tests(scenario)}:
            covered |= roles_of(playbook)
    assert role.name in covered


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=name_of)
def test_playbook_is_covered_by_a_scenario(playbook: Path) -> None:
    covered: set[Path] = set()
    for scenario in SCENARIOS:
        for named in playbooks_of(scenario).values():
            covered |= playbooks_run_by(named)
        covered |= playbooks_in_tests(scenario)
    imported = playbooks_run_by(playbook) - {playbook}
    assert playbook in covered or (imported and imported <= covered)


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=name_of)
def test_playbook_opens_with_a_manual(playbook: Path) -> None:
    header = playbook.read_text().split("\n- ", 1)[0]
    assert f"ansible-playbook playbooks/{playbook.name}" in header
    assert re.search(r"way back", header, flags=re.I), "the header names the way back"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=name_of)
def test_scenario_has_all_its_files(scenario: Path) -> None:
    for action, playbook in playbooks_of(scenario).items():
        assert playbook.is_file(), f"{action} of {scenario.name}: {playbook} is not there"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=name_of)
def test_scenario_verifies_something(scenario: Path) -> None:
    folders = {"tests"} | {
        path for action in sequence_of(scenario) for path in action.split()[1:] if action[:6] == "verify"
    }
    for folder in folders:
        tests = sorted(scenario.glob(f"{folder}/test_*.py"))
        assert tests, f"{scenario.name} has no {folder}/test_*.py: molecule verify would pass without a word"
        for path in tests:
            assert re.search(r"^def test_", path.read_text(), flags=re.M), f"{path} holds no test"


def test_every_folder_of_molecule_is_a_scenario() -> None:
    folders = {path for path in ROOT.glob("molecule/*/") if path.name != "__pycache__"}
    assert folders == set(SCENARIOS)


def test_errors_are_not_ignored_and_nothing_waits_by_time() -> None:
    offenders = []
    for folder in ("roles", "playbooks", "tests", "molecule"):
        for path in ROOT.joinpath(folder).rglob("*.yml"):
            for mapping in mappings(load(path)):
                if mapping.keys() & {"ignore_errors", "ansible.builtin.pause"}:
                    offenders.append(f"{path.relative_to(ROOT)}: {mapping.get('name')}")
    assert offenders == []
