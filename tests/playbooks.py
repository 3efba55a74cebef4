"""How tests run a playbook on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path


def local_playbook(file: Path, variables: Mapping[str, object], *options: str) -> list[str]:
    """The command: with this Python, telling as much as Ansible ever tells."""
    given = json.dumps({"ansible_python_interpreter": sys.executable, **variables})
    return ["ansible-playbook", "-vvv", "--diff", "-i", "localhost,", "-c", "local", "-e", given, *options, str(file)]
