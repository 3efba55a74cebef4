#!/usr/bin/python
"""Build a Docker image where what goes into it has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: built_image
short_description: Build a Docker image where what goes into it has changed
description:
  - Builds an image from a folder with a Dockerfile, or from a Dockerfile's text and some files.
  - A fingerprint of what goes into it stands in the image's label C(trading.inputs). An image of the same fingerprint is
    left alone. Data that a running program writes into the folder would otherwise make another image each time.
  - What is excluded is not handed to Docker, so that no C(COPY . .) can put it into an image. Of an excluded file an
    empty one is, because a Dockerfile may name it.
  - In check mode nothing is built or pulled.
options:
  name: {description: Name of the image., type: str, required: true}
  context: {description: Folder with a Dockerfile., type: path}
  ignored: {description: Paths in it that are no reason to build again., type: list, elements: str, default: []}
  excluded: {description: Paths in it that no image may hold., type: list, elements: str, default: []}
  dockerfile: {description: Text of a Dockerfile that copies C(files/)., type: str}
  files: {description: Paths of files on the host by path below C(files/)., type: dict, default: {}}
  inputs: {description: What else goes into the image., type: raw}
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
"""

EXAMPLES = r"""
- name: Build a bot's image
  built_image:
    name: unified_db-momentum-base
    context: /srv/bots/momentum
    ignored: [data]
    excluded: [.env]
"""

RETURN = r"""
inputs: {description: Fingerprint of what goes into the image., returned: success, type: str}
"""

LABEL = "trading.inputs"
NEVER = {".git", "__pycache__"}
# A build pulls and installs; one that hangs must not hang for ever.
BUILD_SECONDS = 1800
SHOWN_LINES = 20


def counted(folder: Path, ignored: Collection[str]) -> Iterator[Path]:
    """The files of a folder that count, in order."""
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if name in NEVER or str(path) in ignored:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from counted(path, ignored)
        else:
            yield path


def described(path: Path) -> list[str]:
    """What an image keeps of a file: whether it is a program, and its content. A running program may have removed it."""
    try:
        if path.is_symlink():
            return ["link", os.readlink(path)]
        if not path.is_file():
            return ["other", ""]
        program = "program" if path.stat().st_mode & 0o111 else "file"
        return [program, hashlib.sha256(path.read_bytes()).hexdigest()]
    except FileNotFoundError:
        return ["other", ""]


def fingerprint(inputs: object) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def of_folder(context: Path, ignored: Collection[str]) -> str:
    """A fingerprint of a folder without what is ignored."""
    places = {str(context / name) for name in ignored}
    return fingerprint([[str(path.relative_to(context)), *described(path)] for path in counted(context, places)])


def staged(context: Path, folder: Path, excluded: Collection[str]) -> None:
    """A copy of a build context without what is excluded."""
    places = {str(context / name) for name in excluded}

    def left_out(where: str, names: list[str]) -> list[str]:
        found = {name: os.path.join(where, name) for name in names}
        return [name for name, path in found.items() if path in places or is_odd(path)]

    shutil.copytree(context, folder, symlinks=True, ignore=left_out, copy_function=copied)
    for name in excluded:
        if (context / name).is_file():
            (folder / name).touch()


def is_odd(path: str) -> bool:
    """Whether this is a pipe, a socket or gone: no part of a build context."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return True
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def copied(source: str, target: str) -> None:
    """A hard link where the disk is the same, because a bot's data may be large."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError:
        shutil.copy2(source, target)


def put_together(folder: Path, dockerfile: str, files: dict[str, str]) -> None:
    """A build context. Whoever runs the image may read the files, whatever their mode on the host."""
    (folder / "Dockerfile").write_text(dockerfile)
    (folder / "files").mkdir()
    for name, source in files.items():
        target = folder / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if os.stat(source).st_mode & 0o111 else 0o644)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


def built_from(module: AnsibleModule, name: str) -> str | None:
    """The fingerprint that an image on the host was built from; None where there is no image."""
    code, output, _ = module.run_command(
        ["docker", "image", "inspect", "--format", '{{index .Config.Labels "' + LABEL + '"}}', name]
    )
    return str(output).strip() if code == 0 else None


def build(name: str, inputs: str, context: str) -> str | None:
    """Build; the last lines of what it said where that fails."""
    command = ["docker", "build", "--label", f"{LABEL}={inputs}", "--tag", name, context]
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BUILD_SECONDS,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return f"no end after {BUILD_SECONDS} seconds"
    return None if done.returncode == 0 else "\n".join(done.stdout.splitlines()[-SHOWN_LINES:])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "context": {"type": "path"},
            "ignored": {"type": "list", "elements": "str", "default": []},
            "excluded": {"type": "list", "elements": "str", "default": []},
            "dockerfile": {"type": "str"},
            "files": {"type": "dict", "default": {}},
            "inputs": {"type": "raw"},
        },
        required_one_of=[("context", "dockerfile")],
        mutually_exclusive=[("context", "dockerfile")],
        supports_check_mode=True,
    )
    values = module.params
    try:
        ignored = [*values["ignored"], *values["excluded"]]
        own = of_folder(Path(values["context"]), ignored) if values["context"] else values["dockerfile"]
        inputs = fingerprint([own, values["inputs"]])
        changed = built_from(module, values["name"]) != inputs
        problem = None
        if changed and not module.check_mode:
            with tempfile.TemporaryDirectory(dir=module.tmpdir) as scratch:
                folder = Path(scratch) / "context"
                if values["context"]:
                    staged(Path(values["context"]), folder, values["excluded"])
                else:
                    folder.mkdir()
                    put_together(folder, values["dockerfile"], values["files"])
                problem = build(values["name"], inputs, str(folder))
    except OSError as error:
        module.fail_json(msg=f"{error}")
    if problem is not None:
        module.fail_json(msg=f"The image {values['name']} could not be built; docker build ended with:\n{problem}")
    module.exit_json(changed=changed, inputs=inputs)


if __name__ == "__main__":
    main()
