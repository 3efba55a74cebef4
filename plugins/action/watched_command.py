"""Shows what a program says while it works: the controller's half of the module watched_command."""

from __future__ import annotations

import base64
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()

# Seconds until the program is asked again. It is noticed at once when it ends.
INTERVALS = (2, 3, 5, 8, 10)
# A program that says nothing new is named all the same, this often.
SILENCE_SECONDS = 30
# How often, and after how many seconds, a lost connection is tried again.
RECONNECTIONS = 6
RECONNECTION_SECONDS = 5


class ActionModule(ActionBase):  # type: ignore[misc]
    TRANSFERS_FILES = False
    _supports_check_mode = False
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        started = time.monotonic()
        shown, shown_at = "", 0.0
        reply = self._ask({**self._task.args, "wait": INTERVALS[0]}, task_vars, attempts=1)
        asked = 1
        while "job" in reply:
            line, seconds = reply["line"], time.monotonic() - started
            if line != shown or seconds - shown_at >= SILENCE_SECONDS:
                # The task's own heading comes with its result.
                host, clock = (
                    (task_vars or {}).get("inventory_hostname"),
                    f"{int(seconds) // 60}:{int(seconds) % 60:02d}",
                )
                display.display(f"working: [{host}] {self._task.name} {clock} | {line or 'no word yet'}")
                shown, shown_at = line, seconds
            interval = INTERVALS[min(asked, len(INTERVALS) - 1)]
            reply = self._ask({"job": reply["job"], "wait": interval}, task_vars, attempts=RECONNECTIONS)
            asked += 1
        return result | outcome(reply)

    def _ask(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None, attempts: int) -> dict[str, Any]:
        """Runs the module; `attempts` times where the host does not answer."""
        for left in reversed(range(attempts)):
            try:
                reply: dict[str, Any] = self._execute_module(
                    module_name="watched_command", module_args=arguments, task_vars=task_vars
                )
                return reply
            except AnsibleConnectionFailure:
                if not left:
                    raise
                time.sleep(RECONNECTION_SECONDS)
        raise AssertionError("at least one attempt")


def outcome(reply: dict[str, Any]) -> dict[str, Any]:
    """The module's last reply as ansible.builtin.command would have put it. A failure always has an `error:`."""
    code = reply.get("rc", 255)
    stdout, stderr = (
        base64.b64decode(reply.get(name, "")).decode(errors="replace").rstrip("\n") for name in ("stdout", "stderr")
    )
    problem = ""
    if "rc" not in reply:
        problem = reply.get("msg") or reply.get("module_stderr") or "the host's Python said nothing"
    elif code > 128:
        problem = "the program was killed" + (f" by signal {code - 128}" if code < 255 else "") + "; run it again"
    if problem and "error: " not in stderr.lower():
        stderr = f"{stderr}\nerror: {problem}".strip()
    return {
        "changed": True,
        "failed": code != 0,
        "rc": code,
        "stdout": stdout,
        "stdout_lines": stdout.splitlines(),
        "stderr": stderr,
        "stderr_lines": stderr.splitlines(),
    } | ({"msg": f"exit code {code}"} if code else {})
