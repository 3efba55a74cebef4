#!/usr/bin/python
"""Read the Python sources below some folders."""

from __future__ import annotations

DOCUMENTATION = r"""
module: read_sources
short_description: Read all Python sources below some folders in one call
description:
  - Reads every C(*.py) file; nothing is run, imported or changed.
  - Leaves out virtual environments, caches, C(node_modules) and version control.
  - A source that is too large or cannot be read, and a folder behind a link, is named with the reason.
  - What it returns may hold passwords. Use it with C(no_log).
options:
  folders: {description: Folders by the names they are returned under., type: dict, required: true}
  max_bytes: {description: Size beyond which a source is not read., type: int, default: 1048576}
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Read the sources of a bot
  ansible.legacy.read_sources:
    folders: {momentum: /srv/momentum}
  register: sources
  no_log: true
"""

RETURN = r"""
payload:
  description:
    - By name of the folder, C(files) by relative path as bytes in Latin-1, and C(skipped) with reasons.
    - It is JSON, packed by zlib and Base64.
  returned: success
  type: str
"""

import base64
import json
import os
import stat
import zlib

from ansible.module_utils.basic import AnsibleModule

PRUNED = {"__pycache__", "node_modules", "site-packages", "venv"}


def shown(path: str) -> str:
    """A path that can be printed, whatever bytes its name has."""
    return os.fsencode(path).decode(errors="backslashreplace")


def pruned(folder: str, name: str) -> bool:
    """Whether a folder holds no code of the bot's own: `.git`, caches, virtual environments."""
    return name.startswith(".") or name in PRUNED or os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))


def read(path: str, max_bytes: int) -> bytes:
    """A source. OSError says why it is not read."""
    # A pipe of that name would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise OSError("not a regular file")
        if state.st_size > max_bytes:
            raise OSError(f"{state.st_size} bytes, more than {max_bytes}")
        return file.read()


def sources_of(top: str, max_bytes: int) -> dict[str, dict[str, str]]:
    files: dict[str, str] = {}
    skipped: dict[str, str] = {}

    def relative(path: str) -> str:
        return shown(os.path.relpath(path, top))

    def refused(error: OSError) -> None:
        skipped[relative(str(error.filename or top))] = error.strerror or str(error)

    for folder, names, sources in os.walk(top, onerror=refused):
        names[:] = sorted(name for name in names if not pruned(folder, name))
        for name in list(names):
            if os.path.islink(os.path.join(folder, name)):
                skipped[relative(os.path.join(folder, name))] = "a link to a folder"
                names.remove(name)
        for name in sorted(name for name in sources if name.endswith(".py")):
            path = os.path.join(folder, name)
            try:
                files[relative(path)] = read(path, max_bytes).decode("latin-1")
            except OSError as error:
                skipped[relative(path)] = error.strerror or str(error)
    return {"files": files, "skipped": skipped}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "folders": {"type": "dict", "required": True},
            "max_bytes": {"type": "int", "default": 1 << 20},
        },
        supports_check_mode=True,
    )
    found = {name: sources_of(path, module.params["max_bytes"]) for name, path in module.params["folders"].items()}
    module.exit_json(changed=False, payload=base64.b64encode(zlib.compress(json.dumps(found).encode())).decode())


if __name__ == "__main__":
    main()
