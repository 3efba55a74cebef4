"""Audit the bots' sources in a playbook: the role bot_audit's way to src/bot_audit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

SRC = str(Path(__file__).resolve().parents[2] / "src")


def bot_audit(
    payload: str, bots: Sequence[Mapping[str, Any]], accepted: Sequence[str], delivered: str
) -> dict[str, Any]:
    """What read_sources packed, judged: `text`, `summary`, the number of open `findings` and the `report`."""
    if SRC not in sys.path:
        sys.path.insert(0, SRC)
    try:
        from bot_audit import bots as audit
    except ImportError as error:
        raise AnsibleFilterError(
            f"The audit needs a Python package that this controller lacks ({error}); expected those of requirements.txt."
            " Run `make venv && . .venv/bin/activate`, then this playbook again."
        ) from error
    ours = audit.delivered(Path(delivered))
    result = audit.audit(audit.unpacked(str(payload)), bots, [str(name) for name in accepted], ours)
    return {
        "text": audit.listing(result),
        "summary": audit.summary(result),
        "findings": len(result.findings),
        "report": audit.report(result),
    }


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"bot_audit": bot_audit}
