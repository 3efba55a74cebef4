#!/usr/bin/python
"""Put a set of small text files in place in one go."""

from __future__ import annotations

DOCUMENTATION = r"""
module: file_set
short_description: Put a set of small text files below one folder in place
description:
  - Does in one call what ansible.builtin.copy does in one per file; that many files would take minutes.
  - Each file is replaced atomically, only where it differs. Other files in the folder are left alone.
  - In check mode the folder need not exist yet.
options:
  path: {description: The folder., type: path, required: true}
  files: {description: Contents by path relative to the folder., type: dict, required: true}
  executable: {description: Which of them are programs., type: list, elements: str, default: []}
  owner: {description: Owner of what is put in place., type: str, required: true}
  group: {description: Group of what is put in place., type: str, required: true}
  show_content: {description: Whether a diff shows contents, or checksums alone., type: bool, default: true}
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Put the programs in place
  ansible.legacy.file_set:
    path: /srv/programs
    files: {lib/one.sql: "SELECT 1;\n"}
    owner: william
    group: william
"""

RETURN = r"""
changed_files: {description: Paths of the files that differed., returned: success, type: list}
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


def folders_of(files: dict[str, str]) -> list[str]:
    """Folders that the files stand in, relative, parents first."""
    return sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})


def described(content: str | None, show: bool) -> str:
    """A file's side of a diff."""
    if content is None:
        return ""
    return content if show else f"sha256 {hashlib.sha256(content.encode()).hexdigest()}\n"


def current(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def set_attributes(module: AnsibleModule, path: Path, mode: str) -> bool:
    """Whether owner, group or mode differed; mends them outside check mode."""
    arguments = module.load_file_common_arguments({**module.params, "path": str(path), "mode": mode})
    return bool(module.set_fs_attributes_if_different(arguments, False))


def put(module: AnsibleModule, path: Path, content: str) -> None:
    descriptor, scratch = tempfile.mkstemp()
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
        stream.write(content)
    module.atomic_move(scratch, str(path))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "files": {"type": "dict", "required": True},
            "executable": {"type": "list", "elements": "str", "default": []},
            "owner": {"type": "str", "required": True},
            "group": {"type": "str", "required": True},
            "show_content": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    base = Path(module.params["path"])
    files: dict[str, str] = module.params["files"]
    if not base.is_dir() and not module.check_mode:
        module.fail_json(msg=f"Folder {base} does not exist; expected it to be there. Run the step that creates it.")
    changed: list[str] = []
    diffs: list[dict[str, Any]] = []
    for folder in folders_of(files):
        path = base / folder
        missing = not path.is_dir()
        if missing and not module.check_mode:
            path.mkdir()
        if missing or set_attributes(module, path, "0755"):
            changed.append(f"{folder}/")
        if missing and not module.check_mode:
            set_attributes(module, path, "0755")
    for name, content in sorted(files.items()):
        path = base / name
        found = current(path)
        differs = found != content
        if differs:
            diffs.append(
                {
                    "before_header": str(path),
                    "after_header": str(path),
                    "before": described(found, module.params["show_content"]),
                    "after": described(content, module.params["show_content"]),
                }
            )
            if not module.check_mode:
                put(module, path, content)
        mode = "0755" if name in module.params["executable"] else "0644"
        attributes = (found is not None or not module.check_mode) and set_attributes(module, path, mode)
        if differs or attributes:
            changed.append(name)
    module.exit_json(changed=bool(changed), changed_files=changed, diff=diffs)


if __name__ == "__main__":
    main()
