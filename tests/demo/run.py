"""The demo: a list of steps against a disposable production host.

    make demo | make demo-shell | make demo-clean

Each step is a plain command that a person could type. To extend the demo, add
a step. Durations go to .cache/demo/steps.json, which the summary reads:
[{"name": str, "command": str, "seconds": float}]. Safe to repeat and to
interrupt: every step keeps what is there.

Exit codes: 0 all went well; 1 a step failed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

import yaml

from tests.runner import (
    CACHE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    ROOT,
    Done,
    Step,
    clock,
    explain,
    paint,
    prepare_step,
    run_step,
    with_docker,
)

HOST = "trading_demo_host"
STEPS_FILE = CACHE / "demo" / "steps.json"
SSH_CONFIG = CACHE / "testbed" / f"{HOST}.ssh"


def playbook(name: str, path: str, *extra: str) -> Step:
    """A step that runs a playbook against the demo host, as against production."""
    return Step(name, ["ansible-playbook", "-i", "inventory/demo", path, *extra])


STEPS = [
    prepare_step(),
    with_docker(
        "Create the production host",
        *("ansible-playbook", "tests/testbed/create.yml", "-e", f"testbed_host={HOST}"),
    ),
    playbook(
        "Install the legacy system with live bots",
        *("tests/legacy/install.yml", "-e", "@tests/legacy/demo_history.yml"),
    ),
    playbook("Preflight", "playbooks/preflight.yml"),
    playbook("Phase 1: infrastructure", "playbooks/phase1_infrastructure.yml"),
    playbook("Phase 2: data migration", "playbooks/phase2_data_migration.yml"),
    playbook("Let the bots trade on", "tests/demo/trade_on.yml"),
    playbook("Phase 2 again: what the bots traded since", "playbooks/phase2_data_migration.yml"),
    playbook("Reconcile with the live bots", "playbooks/reconcile.yml"),
    playbook("Look up every acknowledged write", "tests/legacy/check_journal.yml"),
    playbook("Phase 3: application updates", "playbooks/phase3_application_updates.yml"),
    playbook("Trial run of the updated bots", "tests/demo/trial_run.yml"),
]

SUMMARY = Step("Summary", ["python", "tests/demo/summary.py"])
DESTROY = with_docker(
    "Remove the demo host",
    *("ansible-playbook", "tests/testbed/destroy.yml", "-e", f"testbed_host={HOST}"),
)


def record(finished: Sequence[Done]) -> None:
    """Writes the durations of the finished steps, for the summary."""
    STEPS_FILE.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"name": d.step.name, "command": d.step.typed, "seconds": round(d.seconds, 1)} for d in finished]
    STEPS_FILE.write_text(json.dumps(rows, indent=2) + "\n")


def demo() -> int:
    """Runs all steps, then the summary."""
    steps = [*STEPS, SUMMARY]
    finished: list[Done] = []
    for number, step in enumerate(steps, start=1):
        done = run_step(step, number, len(steps), "demo")
        if done.code != 0:
            explain(done, number, len(steps), "make demo")
            return EXIT_FAILED
        finished.append(done)
        if step is not SUMMARY:
            record(finished)
            print(paint(f"({number}/{len(steps)}) done in {clock(done.seconds)}", "32"))
    return 0


def shell() -> int:
    """Opens a login shell in the folder of the bots; its exit code is ours."""
    if not SSH_CONFIG.exists():
        print("There is no demo host. Create one: make demo", file=sys.stderr)
        return EXIT_FAILED
    facts = yaml.safe_load((ROOT / "inventory/demo/group_vars/trading/host.yml").read_text())
    enter = f"cd {facts['base_dir']} && exec bash -l"
    return subprocess.call(["ssh", "-F", str(SSH_CONFIG), "-t", HOST, enter])


def clean() -> int:
    """Removes the demo host; without one, there is nothing to do."""
    done = run_step(DESTROY, 1, 1, "demo-clean")
    if done.code != 0:
        explain(done, 1, 1, "make demo-clean")
        return EXIT_FAILED
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The demo.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--shell", action="store_true", help="log in to the demo host")
    action.add_argument("--clean", action="store_true", help="remove the demo host")
    args = parser.parse_args(argv)
    try:
        if args.shell:
            return shell()
        return clean() if args.clean else demo()
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing to repair: make demo goes on.", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
