#!/usr/bin/python
"""Put programs of ours into folders of somebody else's, and take them back."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: delivered_files
short_description: Deliver files into folders that hold somebody else's work, and restore what stood there
description:
  - A file is written only where nothing stands, or what stands there is known (a published version, or what an earlier
    run delivered), or the very content found was acknowledged. All refusals are listed at once, before anything is
    written.
  - A patch is applied only where each of its hunks fits exactly, with no guessing. Where one does not, the file stays
    as it is and is named in the result.
  - What stood there is kept in I(backup), byte for byte, and a manifest says what was found and what was delivered. It
    is written before the files that it describes, so that a run can be killed at any time.
  - A delivered file that was changed, acknowledged and so replaced is kept there, too; what stood there first stays the
    original that is put back. A file to patch is somebody else's further on, and its original is what was patched.
  - No link is followed, be it a file or a folder on the way to it.
  - A delivered file that is not wanted any more is taken back.
  - With I(state=restored) everything that the manifest names is taken back. A file that was changed after its delivery
    is kept and named, unless its content was acknowledged; then a copy of it stays in I(backup).
options:
  path: {description: The folder that all paths are relative to., type: path, required: true}
  backup: {description: Folder of the originals and of manifest.json. Closed to others., type: path, required: true}
  files: {description: Contents by path., type: dict, default: {}}
  if_absent: {description: Those of them that are put only where nothing stands., type: list, elements: str, default: []}
  patches: {description: Unified diffs by path of the file to patch., type: dict, default: {}}
  known: {description: Checksums (SHA-256) of published versions by path., type: dict, default: {}}
  acknowledged: {description: Checksum by path of a content that may be replaced., type: dict, default: {}}
  owner: {description: Owner of what is new., type: str, required: true}
  group: {description: Group of what is new., type: str, required: true}
  state: {description: What to do., type: str, choices: [delivered, restored], default: delivered}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full, details: Checksums and patches, because somebody else's program may hold a password.}
"""

EXAMPLES = r"""
- name: Deliver a module
  delivered_files:
    path: /srv/bots
    backup: /srv/database/backups/applications
    files: {momentum/database/trade_database.py: "import trading_db\n"}
    known: {momentum/database/trade_database.py: [fc6e...]}
    owner: william
    group: william
"""

RETURN = r"""
changed_files: {description: Paths that were written or taken back., returned: always, type: list}
checksums: {description: Checksum by path of what stands there after the run., returned: always, type: dict}
refused: {description: Checksum by path of unknown contents; the task fails., returned: failure, type: dict}
unpatched: {description: Checksum by path of files that a patch does not fit; empty where there is none., type: dict}
kept: {description: Checksum by path of files changed after their delivery, and so not taken back., type: dict}
"""

MANIFEST = "manifest.json"
Hunk = tuple[int, list[str], list[str]]


@dataclass(frozen=True)
class Entry:
    """A delivered file: checksum and place of what stood there before (None: nothing), its attributes, and the
    checksums of all that was delivered since."""

    before: str | None
    original: str | None
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    delivered: list[str]


@dataclass
class Manifest:
    files: dict[str, Entry] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """What a run is going to do."""

    write: dict[str, bytes] = field(default_factory=dict)
    back: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    unpatched: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)


def checksum(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def hunks(patch: str) -> Iterator[Hunk]:
    """Each hunk of a unified diff: index of its first line, lines before, lines after."""
    start, before, after = 0, list[str](), list[str]()
    side: Sequence[list[str]] = ()
    for line in patch.splitlines(keepends=True):
        if line.startswith("@@"):
            if before or after:
                yield start, before, after
            start, before, after = max(0, int(line.split()[1].split(",")[0][1:]) - 1), [], []
        elif line.startswith(("---", "+++")) and not before and not after:
            continue
        elif line.startswith("\\"):
            for lines in side:
                lines[-1] = lines[-1].rstrip("\n")
        elif line[0] in " +-":
            side = {" ": (before, after), "-": (before,), "+": (after,)}[line[0]]
            for lines in side:
                lines.append(line[1:])
    if before or after:
        yield start, before, after


def patched(content: str, patch: str, reverse: bool = False) -> str | None:
    """The content with the patch applied; None where a hunk fits nowhere, or in several places and not in its own."""
    lines, done, shift = content.splitlines(keepends=True), 0, 0
    for start, *sides in hunks(patch):
        before, after = reversed(sides) if reverse else sides
        places = [i for i in range(done, len(lines) - len(before) + 1) if lines[i : i + len(before)] == before]
        if start + shift in places:
            place = start + shift
        elif len(places) == 1:
            place = places[0]
        else:
            return None
        lines[place : place + len(before)] = after
        done = place + len(after)
        shift = place - start + len(after) - len(before)
    return "".join(lines)


def with_patch(content: bytes, patch: str) -> bytes | None:
    """What a file is to be: itself where the patch is in it already, None where it does not fit."""
    text = content.decode("utf-8", "surrogateescape")
    if patched(text, patch, reverse=True) is not None:
        return content
    result = patched(text, patch)
    return None if result is None else result.encode("utf-8", "surrogateescape")


def replaceable(found: bytes | None, entry: Entry | None, known: Sequence[str], acknowledged: str | None) -> bool:
    """Whether what stands there may be replaced."""
    ours = [entry.before, *entry.delivered] if entry else []
    return found is None or checksum(found) in [*ours, *known, acknowledged]


def read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def scratch_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.delivered")


def write(path: Path, content: bytes, mode: int, uid: int, gid: int, mtime_ns: int | None = None) -> None:
    """Replace a file atomically; what a killed run left beside it is overwritten."""
    scratch = scratch_of(path)
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        os.fchown(stream.fileno(), uid, gid)
        os.fchmod(stream.fileno(), mode)
        stream.flush()
        os.fsync(stream.fileno())
    if mtime_ns is not None:
        os.utime(scratch, ns=(mtime_ns, mtime_ns))
    os.replace(scratch, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Delivery:
    """The folder, what an earlier run noted about it, and what is wanted now."""

    def __init__(self, values: Mapping[str, Any], uid: int, gid: int) -> None:
        self.base, self.backup = Path(values["path"]), Path(values["backup"])
        self.uid, self.gid = uid, gid
        self.known: dict[str, list[str]] = values["known"]
        self.acknowledged: dict[str, str] = values["acknowledged"]
        restored = values["state"] == "restored"
        self.files: dict[str, str] = {} if restored else values["files"]
        self.patches: dict[str, str] = {} if restored else values["patches"]
        self.if_absent: list[str] = values["if_absent"]
        self.restored = restored
        self.manifest = self.load()

    def load(self) -> Manifest:
        content = read(self.backup / MANIFEST)
        if content is None:
            return Manifest()
        noted = json.loads(content)
        return Manifest({name: Entry(**entry) for name, entry in noted["files"].items()}, noted["folders"])

    def save(self) -> None:
        path = self.backup / MANIFEST
        if not self.manifest.files and not self.manifest.folders:
            path.unlink(missing_ok=True)
            return
        content = (json.dumps(asdict(self.manifest), indent=2, sort_keys=True) + "\n").encode()
        if read(path) != content:
            self.make_backup_folder(self.backup)
            write(path, content, 0o600, self.uid, self.gid)

    def plan(self) -> Plan:
        plan = Plan()
        for name in sorted({*self.files, *self.patches, *self.manifest.files}):
            path = self.base / name
            other = (path.exists() or path.is_symlink()) and not stat.S_ISREG(path.lstat().st_mode)
            if other or self.linked(name):
                if self.restored:
                    plan.kept[name] = "no regular file, or its folder is a link"
                else:
                    plan.odd.append(name)
                continue
            found, entry = read(path), self.manifest.files.get(name)
            if name in self.files:
                self.plan_file(plan, name, found, entry)
            elif name in self.patches:
                self.plan_patch(plan, name, found, entry)
            elif entry and (self.restored or name.split("/")[0] in {wanted.split("/")[0] for wanted in self.files}):
                self.plan_back(plan, name, found, entry)
        return plan

    def linked(self, name: str) -> bool:
        """Whether a link leads to the file's folder. The bot's own folder may be one."""
        inner = [self.base / parent for parent in Path(name).parents][:-2]
        return any(folder.is_symlink() for folder in inner)

    def plan_file(self, plan: Plan, name: str, found: bytes | None, entry: Entry | None) -> None:
        wanted = self.files[name].encode("utf-8", "surrogateescape")
        if found == wanted or (found is not None and entry is None and name in self.if_absent):
            return
        if replaceable(found, entry, self.known.get(name, []), self.acknowledged.get(name)):
            plan.write[name] = wanted
        else:
            plan.refused[name] = str(checksum(found))

    def plan_patch(self, plan: Plan, name: str, found: bytes | None, entry: Entry | None) -> None:
        ours = entry is not None and entry.original is not None and checksum(found) in entry.delivered
        source = read(self.backup / str(entry.original)) if ours and entry else found
        wanted = None if source is None else with_patch(source, self.patches[name])
        if wanted is None:
            # The checksum of nothing says that there is no such file.
            if self.acknowledged.get(name) != checksum(found or b""):
                plan.unpatched[name] = checksum(found) or ""
        elif wanted != found:
            plan.write[name] = wanted

    def plan_back(self, plan: Plan, name: str, found: bytes | None, entry: Entry) -> None:
        if checksum(found) == entry.before:
            plan.drop.append(name)
        elif found is None or checksum(found) in [*entry.delivered, self.acknowledged.get(name)]:
            plan.back.append(name)
        else:
            plan.kept[name] = str(checksum(found))

    def folders(self, plan: Plan) -> list[str]:
        """Folders that have to be made, parents first."""
        parents = {str(parent) for name in plan.write for parent in Path(name).parents}
        return sorted(name for name in parents - {"."} if not (self.base / name).exists())

    def carry_out(self, plan: Plan) -> None:
        """Originals first, then the manifest, then what it describes: killed at any point, a later run goes on."""
        for name in self.manifest.files:
            scratch_of(self.base / name).unlink(missing_ok=True)
        for name, content in plan.write.items():
            self.manifest.files[name] = self.noted(name, content)
        self.manifest.folders = sorted({*self.manifest.folders, *self.folders(plan)})
        self.save()
        missing = self.folders(plan)
        for folder in (self.base / name for name in self.manifest.folders):
            if str(folder.relative_to(self.base)) in missing:
                folder.mkdir()
            # One that is empty may be a killed run's, which made it for root.
            if folder.is_dir() and not any(folder.iterdir()):
                os.chmod(folder, 0o755)
                os.chown(folder, self.uid, self.gid)
        for name, content in plan.write.items():
            there = self.attributes(name)
            write(self.base / name, content, there.mode, there.uid, there.gid)
        for name in [*plan.back, *plan.drop]:
            if name in plan.back:
                self.put_back(name)
            del self.manifest.files[name]
            self.save()
        self.remove_folders()

    def attributes(self, name: str) -> Entry:
        """Mode, owner and time of what stands there, or of what is to be made."""
        try:
            found = (self.base / name).stat()
        except FileNotFoundError:
            return Entry(None, None, 0o644, self.uid, self.gid, 0, [])
        return Entry(None, None, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns, [])

    def noted(self, name: str, content: bytes) -> Entry:
        """The manifest's entry for a file that is about to be written; the original is kept first."""
        found, entry = read(self.base / name), self.manifest.files.get(name)
        delivered = [*(entry.delivered if entry else []), str(checksum(content))]
        unique = list(dict.fromkeys(delivered))
        ours = entry is not None and (found is None or checksum(found) in [entry.before, *entry.delivered])
        if entry and (ours or name in self.files):
            if found is not None and not ours:
                self.keep(name, found)
            return replace(entry, delivered=unique)
        original = None if found is None else self.keep(name, found)
        return replace(self.attributes(name), before=checksum(found), original=original, delivered=unique)

    def keep(self, name: str, content: bytes) -> str:
        """Copy a content into the backup, under a name that no other content will ever have."""
        kept = f"{name}.{str(checksum(content))[:12]}"
        self.make_backup_folder((self.backup / kept).parent)
        write(self.backup / kept, content, 0o600, self.uid, self.gid)
        return kept

    def make_backup_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self.make_backup_folder(folder.parent)
            folder.mkdir(mode=0o700)
            os.chown(folder, self.uid, self.gid)

    def put_back(self, name: str) -> None:
        path, entry = self.base / name, self.manifest.files[name]
        found = read(path)
        if found is not None and checksum(found) not in entry.delivered:
            self.keep(name, found)
        if entry.original is None:
            path.unlink(missing_ok=True)
            return
        content = read(self.backup / entry.original)
        if checksum(content) != entry.before or content is None:
            raise OSError(f"{self.backup / entry.original} is not what was kept there (sha256 {entry.before})")
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content, entry.mode, entry.uid, entry.gid, entry.mtime_ns)

    def remove_folders(self) -> None:
        """Folders that were made here and hold nothing but what Python compiled of our files."""
        used = {str(parent) for name in self.manifest.files for parent in Path(name).parents}
        for name in sorted(set(self.manifest.folders) - used, reverse=True):
            folder = self.base / name
            if folder.is_dir() and not {path.name for path in folder.iterdir()} - {"__pycache__"}:
                shutil.rmtree(folder)
            self.manifest.folders.remove(name)
        self.save()

    def described(self, name: str, plan: Plan) -> dict[str, str]:
        """A file's change: its patch, or the checksums of both sides."""
        if name in plan.write and name in self.patches:
            return {"prepared": self.patches[name]}
        entry = self.manifest.files.get(name)
        after = checksum(plan.write.get(name)) if name in plan.write else entry and entry.before
        sides = {"before": checksum(read(self.base / name)), "after": after}
        header = str(self.base / name)
        return {f"{side}_header": header for side in sides} | {
            side: f"sha256 {value}\n" if value else "" for side, value in sides.items()
        }

    def checksums(self, plan: Plan) -> dict[str, str]:
        """What stands at each wanted path after this run."""
        after = {
            name: checksum(plan.write.get(name, read(self.base / name)))
            for name in sorted({*self.files, *self.patches})
        }
        return {name: value for name, value in after.items() if value is not None}


def refusal(plan: Plan, base: Path) -> str:
    """What stands in the way, all of it at once."""
    lines = [
        f"{base / name} is no regular file, or its folder is a link; expected a file in the bot's own folder, or nothing."
        for name in plan.odd
    ]
    lines += [
        f"{base / name} has a content that is not known here (sha256 {found}); expected nothing there, a published "
        "version, or what an earlier run delivered."
        for name, found in plan.refused.items()
    ]
    return " ".join(lines)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "backup": {"type": "path", "required": True},
            "files": {"type": "dict", "default": {}},
            "if_absent": {"type": "list", "elements": "str", "default": []},
            "patches": {"type": "dict", "default": {}},
            "known": {"type": "dict", "default": {}},
            "acknowledged": {"type": "dict", "default": {}},
            "owner": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["delivered", "restored"], "default": "delivered"},
        },
        supports_check_mode=True,
    )
    try:
        uid = pwd.getpwnam(module.params["owner"]).pw_uid
        gid = grp.getgrnam(module.params["group"]).gr_gid
        delivery = Delivery(module.params, uid, gid)
        plan = delivery.plan()
        if plan.refused or plan.odd:
            module.fail_json(msg=refusal(plan, delivery.base), refused=plan.refused)
        changed = [*plan.write, *plan.back]
        result: dict[str, Any] = {
            "changed": bool(changed),
            "changed_files": changed,
            "checksums": delivery.checksums(plan),
            "unpatched": plan.unpatched,
            "kept": plan.kept,
            "diff": [delivery.described(name, plan) for name in changed],
        }
        if not module.check_mode:
            delivery.carry_out(plan)
    except (OSError, ValueError, KeyError, TypeError) as error:
        module.fail_json(msg=f"{error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
