"""Find what Compose prefers to a key of an env file: a service's `environment:`, and env files listed behind it.

Pure functions over the texts of compose files by path, the first of them in the project's folder. Read as Compose reads
them are mappings and lists, anchors, aliases and merge keys, several files for one service, and `extends` of a service
in the same or another given file. Not seen is what stands in no compose file: `docker compose run -e`, and the variables
that an image or a bot's own entry point sets. A file named by `extends` or `include` that is not given is told as such.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

Texts = Mapping[str, str]
Pair = tuple[yaml.Node, yaml.Node]


def root_of(file: str, text: str) -> yaml.Node | None:
    """A compose file's nodes, which know their lines. An error does not quote the file: it may hold secrets."""
    try:
        return yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise AnsibleFilterError(
            f"{file}{line}: {error.problem}; expected YAML. Mend it: Compose cannot read it either."
        ) from None


def pairs(node: yaml.Node | None) -> dict[str, Pair]:
    """A mapping's keys and values by name, with what it merges in."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    merged: dict[str, Pair] = {}
    own: dict[str, Pair] = {}
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for source in sources:
                merged = pairs(source) | merged
        else:
            own[str(key.value)] = (key, value)
    return merged | own


def below(node: yaml.Node | None, name: str) -> yaml.Node | None:
    """A mapping's value, or None."""
    return pairs(node)[name][1] if name in pairs(node) else None


def items(node: yaml.Node | None) -> list[yaml.Node]:
    """A list's nodes; a scalar is a list of one, and nothing a list of none."""
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    return [node] if isinstance(node, yaml.MappingNode) or (isinstance(node, yaml.ScalarNode) and node.value) else []


def line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def named_by(file: str, node: yaml.Node) -> str:
    """The path of a file that a compose file names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(file), str(node.value)))


def definitions(files: Texts, service: str, unread: list[tuple[str, int, str]]) -> Iterator[tuple[str, yaml.Node]]:
    """Every file and mapping that makes a service what it is. What names a file that is not given goes into `unread`."""
    waiting = [(file, service) for file in files]
    seen: set[tuple[str, str]] = set()
    while waiting:
        file, name = waiting.pop(0)
        if (file, name) in seen:
            continue
        seen.add((file, name))
        root = root_of(file, files[file])
        for included in items(below(root, "include")):
            for node in items(below(included, "path")) or [included]:
                if named_by(file, node) not in files:
                    unread.append((file, line_of(node), named_by(file, node)))
        definition = below(below(root, "services"), name)
        if not definition:
            continue
        yield file, definition
        extended = below(definition, "extends")
        if isinstance(extended, yaml.ScalarNode):
            waiting.append((file, str(extended.value)))
        elif extended and (base := below(extended, "service")):
            other = below(extended, "file")
            path = named_by(file, other) if other else file
            if path in files:
                waiting.append((path, str(base.value)))
            else:
                unread.append((file, line_of(other or extended), path))


def environment(definition: yaml.Node) -> Iterator[tuple[str, int]]:
    """The keys of an `environment:`, and their lines."""
    node = below(definition, "environment")
    for key, (where, _) in pairs(node).items():
        yield key, line_of(where)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield str(item.value).partition("=")[0], line_of(item)


def env_files(file: str, definition: yaml.Node) -> list[str]:
    """The paths of an `env_file:`, in order."""
    nodes = [below(item, "path") or item for item in items(below(definition, "env_file"))]
    return [named_by(file, node) for node in nodes]


def compose_env_files(files: Texts, services: Collection[str]) -> list[str]:
    """The paths of all env files of these services."""
    return sorted({path for name in services for found in definitions(files, name, []) for path in env_files(*found)})


def compose_shadowed_keys(
    files: Texts, services: Collection[str], keys: Collection[str] | None, others: Texts | None = None
) -> list[dict[str, Any]]:
    """Where these keys are set so that the services' own env files do not matter: `file`, `line`, `service`, `key`.

    Without `keys`, all that are set there. Where a file is taken in that is not given, `key` is empty and `unread` is its path.

    `others` are texts of env files that are not a bot's own, by path; they count where a service lists them behind one
    that is not among them.
    """
    found: dict[tuple[str, int, str, str, str], None] = {}
    for service in services:
        unread: list[tuple[str, int, str]] = []
        for file, definition in definitions(files, service, unread):
            for key, line in environment(definition):
                if keys is None or key in keys:
                    found[(file, line, service, key, "")] = None
            own = False
            for path in env_files(file, definition):
                own = own or path not in (others or {})
                for number, text in enumerate((others or {}).get(path, "").splitlines() if own else [], start=1):
                    setting = re.match(r"\ufeff?\s*(?:export\s+)?([\w.-]+)\s*[=:]", text)
                    if setting and (keys is None or setting[1] in keys):
                        found[(path, number, service, setting[1], "")] = None
        found |= {(file, line, service, "", path): None for file, line, path in unread}
    return [dict(zip(("file", "line", "service", "key", "unread"), one, strict=True)) for one in sorted(found)]


class FilterModule:
    """The filters that playbooks see."""

    def filters(self) -> dict[str, Any]:
        return {
            "compose_env_files": compose_env_files,
            "compose_shadowed_keys": compose_shadowed_keys,
        }
