#!/usr/bin/python
"""Set or remove keys of an env file that belongs to somebody else, and take that back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: env_file
short_description: Set or remove keys of somebody else's env file, and take that back
description:
  - Sets and removes keys in a file of the syntax of Compose's C(env_file). Every other byte stays, be it a comment, an
    order, a quotation mark, an C(export), a line ending, a byte order mark or text in another encoding; so do owner,
    group, mode and extended attributes. The file is replaced atomically.
  - A key keeps its line, its quotation marks and the comment behind it. Where it stands several times, Compose reads the
    last one; that one is set, the earlier ones stay as they are. A key that is not there is added at the end.
  - A value is quoted where Compose 2.18 or newer needs it, without interpolation. C(docker run --env-file) takes quotation
    marks for a part of the value, so there are none where none are needed.
  - A value in quotation marks may span lines. What Compose cannot read, or would read as two keys on a line, is refused.
  - A link that stays in its folder is followed and kept. One that leads elsewhere is refused, because a bot could then
    have root write where the bot may not.
  - A diff shows keys that change, new values that are not secret, and no old value. Values of other keys are never shown.
options:
  path: {description: The env file., type: path, required: true}
  values:
    description:
      - Values by key, none of them secret. A key whose name looks like that of a secret is refused here, because Ansible
        logs this.
    type: dict
    default: {}
  secrets: {description: Values by key that nobody may see., type: dict, default: {}}
  absent: {description: Keys to remove wherever they stand., type: list, elements: str, default: []}
  state:
    description:
      - V(present) sets and removes keys.
      - V(restored) takes back what V(present) did since the backup was made, and nothing else. Where nobody else changed
        the file meanwhile, it is then what it was, byte for byte; a file that was not there is removed. Otherwise only the
        lines of keys that were set or removed are put back to what they were. The backup stays. Where nothing is to be
        taken back, nothing changes.
    type: str
    choices: [present, restored]
    default: present
  backup:
    description:
      - Where the original is kept, mode 0600, from before the first change on; it is never overwritten. Which keys were
        changed since stands beside it, in a file with C(.json) behind its name. The folder must exist.
      - Where a file was restored, changed by somebody else and is now set again, what it was in between is kept beside
        the first original, with C(.2), C(.3) and so on behind its name. So is a file in which somebody else changed keys
        that were set here, before they are set again or taken back.
    type: path
  create: {description: Whether a file that is not there is made., type: bool, default: false}
  owner: {description: Owner of a file that is made., type: str}
  group: {description: Group of a file that is made., type: str}
  mode: {description: Mode of a file that is made., type: raw, default: "0600"}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Point the bot at the database
  ansible.legacy.env_file:
    path: /srv/bot/.env
    values: {POSTGRES_HOST: pgbouncer, POSTGRES_PORT: 6432}
    secrets: {POSTGRES_PASSWORD: "{{ password }}"}
    absent: [DATABASE_PATH]
    backup: /srv/backups/bot/env

- name: Take that back
  ansible.legacy.env_file:
    path: /srv/bot/.env
    backup: /srv/backups/bot/env
    state: restored
"""

RETURN = r"""
changed_keys: {description: Keys whose lines changed., returned: success, type: list}
referring_keys:
  description: Other keys whose values refer to a changed key, such as C(URL=postgres://${POSTGRES_HOST}/db).
  returned: success
  type: list
kept_changes:
  description: Whether somebody else changed the file since the backup; these changes are kept.
  returned: success
  type: bool
kept_copy:
  description: Where the file is kept as it was, because somebody else had changed keys that are now set or taken back.
  returned: success
  type: str
"""

import difflib
import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

BOM = b"\xef\xbb\xbf"
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_NAME = re.compile(r"PASS|SECRET|TOKEN|CREDENTIAL|PRIVATE|WEBHOOK|DSN|(^|_)KEY(_|$)", re.I)
# Without quotation marks these mean the same to Compose, to a shell and to `docker run --env-file`.
PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=-]*")

# The grammar is Compose's own: it begins a comment behind a bare value with " #", and takes `KEY: value`.
BLANK = re.compile(rb"[ \t\r\f\v]*(?:#[^\n]*)?(?:\n|\Z)")
NAME = re.compile(rb"[ \t]*(?:export[ \t]+)?(?P<key>[A-Za-z0-9_.\[\]-]+)[ \t]*")
VALUE = re.compile(
    rb"""(?P<separator>[=:][ \t]*?)
    (?: (?P<quoted> '(?:\\.|[^'\\])*' | "(?:\\.|[^"\\])*" ) (?P<end>[ \t]*(?:\#[^\n]*)?)
      | (?P<bare> | (?:(?<![ ])\#|[^ \t\n\#'"])[^\n]*? ) (?P<bare_end>[ \t]*(?:[ ]\#[^\n]*)?) )
    (?P<line_end>\r?\n|\r?\Z)""",
    re.X | re.S,
)
LINE_END = re.compile(rb"[ \t]*(?:\r?\n|\r?\Z)")


class Unreadable(Exception):
    """What a line is instead of a setting, without any value."""

    def __init__(self, line: int, found: str) -> None:
        super().__init__(f"line {line}: found {found}; expected KEY=value, a comment or an empty line")


@dataclass(frozen=True)
class Statement:
    """A setting, or a line without one: `key` is empty then. Together its parts are the bytes of the file."""

    key: str
    head: bytes
    value: bytes = b""
    tail: bytes = b""

    @property
    def raw(self) -> bytes:
        return self.head + self.value + self.tail


def parse(content: bytes) -> list[Statement]:
    """The statements of an env file, in order."""
    start = len(BOM) if content.startswith(BOM) else 0
    statements = [Statement("", BOM)] if start else []
    while start < len(content):
        if blank := BLANK.match(content, start):
            statements.append(Statement("", blank.group()))
        else:
            statements.append(setting(content, start))
        start += len(statements[-1].raw)
    return statements


def setting(content: bytes, start: int) -> Statement:
    line = content.count(b"\n", 0, start) + 1
    if content.find(b"\0") >= 0:
        raise Unreadable(content.count(b"\n", 0, content.find(b"\0")) + 1, "a NUL byte (a file in UTF-16 has them)")
    name = NAME.match(content, start)
    if not name:
        raise Unreadable(line, "something that does not begin with a key")
    key = name["key"].decode()
    if inherited := LINE_END.match(content, name.end()):
        return Statement(key, name.group(), tail=inherited.group())
    if content[name.end() : name.end() + 1] not in (b"=", b":"):
        raise Unreadable(line, "no = behind the key")
    value = VALUE.match(content, name.end())
    if not value:
        rest = content[name.end() + 1 :].lstrip(b" \t")
        closed = re.match(rb"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", rest, re.S)
        raise Unreadable(
            line, f"in the value of {key} " + ("text behind the" if closed else "no") + " closing quotation mark"
        )
    token = value["quoted"] or value["bare"] or b""
    tail = (value["end"] or value["bare_end"] or b"") + value["line_end"]
    return Statement(key, name.group() + value["separator"], token, tail)


def rendered(value: str, quote: str = "") -> str:
    """A value as Compose reads it back, in these quotation marks ('', ' or ") if they can hold it."""
    fits = {
        "": PLAIN.fullmatch(value) is not None,
        # A backslash before the closing mark would take its meaning, in some versions even a doubled one.
        "'": not re.search(r"['\r\n]|\\\Z", value),
        '"': True,
    }
    quote = next(mark for mark in (quote, "", "'", '"') if fits[mark])
    if quote == '"':
        value = re.sub(r'[\\"$]', r"\\\g<0>", value).replace("\n", r"\n").replace("\r", r"\r")
        value = re.sub(r"\\\\\Z", r"\\0134", value)
    return quote + value + quote


def line_end(content: bytes) -> bytes:
    """How the file ends its lines, at the end at least."""
    last = content.rfind(b"\n")
    return b"\r\n" if last > 0 and content[last - 1 : last] == b"\r" else b"\n"


def joined(lines: Sequence[bytes], end: bytes) -> bytes:
    """A file of these lines. Only its last may lack an end."""
    ended = [line if line.endswith(b"\n") or line == BOM else line + end for line in lines[:-1]]
    return b"".join([*ended, *lines[-1:]])


def updated(content: bytes, values: Mapping[str, str], absent: Collection[str]) -> bytes:
    """The file with these keys set and removed."""
    statements = [one for one in parse(content) if one.key not in absent]
    end = line_end(content)
    lines = [one.raw for one in statements]
    effective = {one.key: number for number, one in enumerate(statements)}
    for key, value in values.items():
        if key not in effective:
            lines.append(f"{key}={rendered(value)}".encode() + end)
            continue
        old = statements[effective[key]]
        mark = old.value[:1].decode() if old.value[:1] in (b"'", b'"') else ""
        if not value and b"#" in old.tail:
            # Compose takes a comment behind nothing for the value.
            mark = mark or "'"
        head = old.head if re.search(rb"[=:][ \t]*\Z", old.head) else old.head.rstrip(b" \t") + b"="
        lines[effective[key]] = head + rendered(value, mark).encode() + old.tail
    return joined(lines, end)


def put_back(original: bytes, current: bytes, keys: Collection[str]) -> tuple[bytes, bool]:
    """The file with the lines of these keys as they were, and whether it differs from the original in others."""
    before = parse(original)
    kept = [one.raw for one in before if one.key not in keys]
    now = [one.raw for one in parse(current) if one.key not in keys]
    matcher = difflib.SequenceMatcher(None, ended(kept), ended(now), autojunk=False)
    blocks = matcher.get_opcodes()
    if all(kind == "equal" for kind, *_ in blocks):
        return original, False
    lines: dict[int, list[bytes]] = {}
    passed = 0
    for one in before:
        if one.key not in keys:
            passed += 1
            continue
        # Behind the line that it stood behind, or what became of that.
        place = next((j1 + min(passed - i1, j2 - j1) for _, i1, i2, j1, j2 in blocks if i1 < passed <= i2), 0)
        lines.setdefault(place, []).append(one.raw)
    merged = [*lines.get(0, [])]
    for number, line in enumerate(now, start=1):
        merged += [line, *lines.get(number, [])]
    return joined(merged, line_end(current)), True


def ended(lines: Sequence[bytes]) -> list[bytes]:
    """Lines to compare: the end that the last one lacked was perhaps added by us."""
    return [*lines[:-1], *(line.rstrip(b"\r\n") for line in lines[-1:])]


def settings(content: bytes | None, keys: Iterable[str]) -> dict[str, list[bytes]]:
    """The settings of these keys, by key, without what is around them."""
    found: dict[str, list[bytes]] = {key: [] for key in keys}
    for one in parse(content or b""):
        if one.key in found:
            found[one.key].append(one.head + one.value)
    return found


def checksum(content: bytes | None, keys: Iterable[str]) -> str:
    """Of the settings of these keys."""
    found = settings(content, sorted(keys)) if content is not None else {}
    return hashlib.sha256(repr(found).encode()).hexdigest()


def changed_keys(before: bytes | None, after: bytes | None, keys: Iterable[str]) -> list[str]:
    old, new = settings(before, keys), settings(after, keys)
    return sorted(key for key in old if old[key] != new[key])


def referring_keys(content: bytes | None, keys: Collection[str]) -> list[str]:
    """Keys whose values Compose makes of one of these keys."""
    pattern = re.compile(rb"\$\{?(" + b"|".join(key.encode() for key in keys) + rb")(?![A-Za-z0-9_])")
    return sorted(
        {
            one.key
            for one in parse(content or b"")
            if keys and one.key not in keys and not one.value.startswith(b"'") and pattern.search(one.value)
        }
    )


def shown(content: bytes | None, keys: Iterable[str], values: Mapping[str, str], side: str) -> str:
    """A file's side of a diff: the changed keys, and the values that may be seen."""
    lines = [
        f"{key}={rendered(values[key]) if key in values else f'******** ({side})'}\n"
        for key, found in settings(content, keys).items()
        if found
    ]
    return "".join(lines)


def current(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def scratch_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def put(module: AnsibleModule, path: Path, content: bytes, made: Mapping[str, Any] | None = None) -> None:
    """Replace a file, or make it with these attributes; at no moment is it half written or open to others."""
    scratch = scratch_of(path)
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            module.atomic_move(str(scratch), str(path))
        else:
            attributes = {"owner": None, "group": None, "mode": "0600", **(made or {}), "path": str(scratch)}
            module.set_fs_attributes_if_different(module.load_file_common_arguments(attributes), False)
            os.rename(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


class Backup:
    """The original of a file, and the keys that were changed since. Without such keys, it is what the file was once."""

    def __init__(self, module: AnsibleModule, path: str) -> None:
        self.module = module
        self.path = Path(path)
        self.record = Path(f"{path}.json")
        try:
            noted = json.loads(current(self.record) or b"{}")
        except ValueError as error:
            module.fail_json(
                msg=f"{self.record} is not JSON ({error}); expected the keys that were changed. Put it back."
            )
        self.original: str | None = noted.get("original")
        self.keys: set[str] = set(noted.get("keys", []))
        # A checksum of what these keys were set to.
        self.left: str | None = noted.get("left")

    def note(self, keys: Collection[str], after: bytes | None) -> None:
        noted = {"original": self.original, "keys": sorted(keys), "left": checksum(after, keys)}
        content = f"{json.dumps(noted, indent=2)}\n".encode()
        if content != current(self.record):
            put(self.module, self.record, content)

    def begin(self, content: bytes | None, after: bytes | None, keys: Collection[str]) -> None:
        """Before a file is set: keep it unless it holds changes already, and note the keys."""
        if not self.keys:
            self.original = None if content is None else self.keep(content)
        self.note(self.keys.union(keys), after)

    def place(self, content: bytes) -> Path:
        """Where this content is kept, or is to be; an earlier one is not overwritten."""
        names = itertools.chain([self.path], (Path(f"{self.path}.{number}") for number in itertools.count(2)))
        return next(path for path in names if current(path) in (None, content))

    def keep(self, content: bytes) -> str:
        """Keep a content; the name of its file."""
        path = self.place(content)
        if not path.exists():
            put(self.module, path, content)
        return path.name

    def overruled(self, content: bytes | None) -> bool:
        """Whether somebody else changed what was set, and is about to lose that."""
        return content is not None and bool(self.keys) and checksum(content, self.keys) != self.left

    def restored(self, content: bytes | None) -> tuple[bytes | None, bool]:
        """The file as it should be (None: not there), and whether it keeps somebody else's changes."""
        path = self.path.with_name(self.original) if self.original else None
        original = current(path) if path else None
        if not self.keys:
            return content, self.record.exists() and content != original
        if path and original is None:
            self.module.fail_json(
                msg=f"Backup {path} is not there; expected the original, which {self.record} names. Put it back, or set"
                f" {', '.join(sorted(self.keys))} by hand and remove {self.record}."
            )
        if content is None:
            return original, False
        merged, changed = put_back(original or b"", content, self.keys)
        return (None if original is None and not merged else merged), changed


def resolved(module: AnsibleModule, path: Path) -> Path:
    """The file itself."""
    if path.is_symlink():
        target = Path(os.path.realpath(path))
        if target.parent != Path(os.path.realpath(path.parent)):
            module.fail_json(
                msg=f"{path} is a link to {target}; expected a file in its own folder. Put the file itself there:"
                f" cp --remove-destination {target} {path}"
            )
        path = target
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        module.fail_json(msg=f"{path} is not a file; expected an env file. Move it away, or correct the path.")
    return path


def texts(module: AnsibleModule, option: str) -> dict[str, str]:
    """Values by key; a whole number is as good as a text."""
    found: dict[str, str] = {}
    for key, value in module.params[option].items():
        if not isinstance(value, (str, int)) or isinstance(value, bool) or "\0" in str(value):
            kind = "text with a NUL byte" if isinstance(value, str) else type(value).__name__
            module.fail_json(
                msg=f"{option}: {key} is a {kind}; expected a text or a whole number. Quote it in the playbook."
            )
        if option == "values" and SECRET_NAME.search(key):
            module.fail_json(
                msg=f"values: {key} looks like a secret, and Ansible logs values; expected it in secrets. Move it there."
            )
        found[key] = str(value)
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "values": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "absent": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
            "backup": {"type": "path"},
            "create": {"type": "bool", "default": False},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "mode": {"type": "raw", "default": "0600"},
        },
        supports_check_mode=True,
    )
    try:
        run(module)
    except Unreadable as error:
        module.fail_json(msg=f"{module.params['path']} {error}. Mend that line, then run the playbook again.")
    except OSError as error:
        module.fail_json(msg=f"{error}: the env file or its backup cannot be read or written. Nothing is half written.")


def run(module: AnsibleModule) -> None:
    values, secrets = texts(module, "values"), texts(module, "secrets")
    absent: list[str] = module.params["absent"]
    named = [*values, *secrets, *absent]
    for key in named:
        if not KEY.fullmatch(key):
            module.fail_json(msg=f"{key!r} is no key; expected letters, digits and _. Correct it in the playbook.")
        if named.count(key) > 1:
            module.fail_json(msg=f"{key} stands in two of values, secrets and absent; expected one. Decide for one.")
    path = resolved(module, Path(module.params["path"]))
    backup = Backup(module, module.params["backup"]) if module.params["backup"] else None
    restore = backup if module.params["state"] == "restored" else None
    if module.params["state"] == "restored" and not backup:
        module.fail_json(
            msg="backup is not given; expected where the original is kept. Say what state: present was told."
        )
    if restore and not path.parent.is_dir():
        module.exit_json(changed=False, changed_keys=[], referring_keys=[], kept_changes=False, kept_copy="")
    before = current(path)
    kept = False
    if restore:
        named = sorted(restore.keys)
        after, kept = restore.restored(before)
    elif before is None and not (values or secrets):
        after = None
    elif before is None and not module.params["create"]:
        module.fail_json(msg=f"{path} does not exist; expected the env file. Put it there, or say create: true.")
    else:
        after = updated(before or b"", {**values, **secrets}, absent)
    changed = changed_keys(before, after, named)
    copy = backup.place(before) if backup and before not in (None, after) and backup.overruled(before) else None
    if not module.check_mode:
        # What a killed run left may hold a secret.
        for one in (path, *((backup.path, backup.record) if backup else ())):
            scratch_of(one).unlink(missing_ok=True)
    if before != after and not module.check_mode:
        if backup and copy and before is not None:
            backup.keep(before)
        if backup and not restore:
            backup.begin(before, after, changed)
        if after is None:
            path.unlink()
        else:
            put(module, path, after, {name: module.params[name] for name in ("owner", "group", "mode")})
    if restore and restore.keys and not module.check_mode:
        restore.note([], None)
    module.exit_json(
        changed=before != after,
        changed_keys=changed,
        referring_keys=referring_keys(after, changed),
        kept_changes=kept,
        kept_copy=str(copy or ""),
        diff={
            "before_header": str(path),
            "after_header": str(path),
            "before": shown(before, changed, {}, "before"),
            "after": shown(after, changed, values, "after"),
        },
    )


if __name__ == "__main__":
    main()
