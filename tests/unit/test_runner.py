"""The runners of `make demo` and `make test` say what failed, where, and what to type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import runner, suite
from tests.demo import run as demo
from tests.runner import Done, Step


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Logs and records go to a folder of the test, which looks like the repository."""
    (tmp_path / "scripts").mkdir()
    for name in ("as-root", "with-docker"):
        script = tmp_path / "scripts" / name
        script.write_text('#!/bin/sh\nexec "$@"\n')
        script.chmod(0o755)
    for module in (runner, suite):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "CACHE", tmp_path / ".cache")
    monkeypatch.setattr(demo, "STEPS_FILE", tmp_path / ".cache/demo/steps.json")
    return tmp_path / ".cache"


def step(name: str, script: str) -> Step:
    return Step(name, ["sh", "-c", script])


def put_molecule(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a molecule of our own first on the PATH; $3 is the scenario."""
    path = folder / "bin/molecule"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


def test_step_streams_and_logs_without_colours(cache: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    done = runner.run_step(step("Paint it", r"printf '\033[31mred\033[0m\n'"), 2, 3, "x")
    assert done.code == 0
    assert done.log == cache / "logs/x/2-paint-it.log"
    assert done.log.read_bytes() == b"red\n"
    out = capfdbinary.readouterr().out
    assert b"(2/3) Paint it" in out
    assert b"\x1b[31mred" in out


def test_failure_names_log_and_command(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = runner.run_step(step("Break", "exit 3"), 1, 2, "x")
    runner.explain(done, 1, 2, "make demo")
    error = capsys.readouterr().err
    assert "(1/2) Break failed after 0:00 with exit code 3" in error
    assert ".cache/logs/x/1-break.log" in error
    assert "sh -c 'exit 3'" in error
    assert "or all: make demo" in error


def test_demo_stops_at_the_first_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = [step("One", "true"), step("Two", "false"), step("Three", f"touch {tmp_path}/three")]
    monkeypatch.setattr(demo, "STEPS", steps)
    assert demo.main([]) == 1
    assert not (tmp_path / "three").exists()


def test_demo_records_the_durations_before_the_summary(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    monkeypatch.setattr(demo, "STEPS", [step("One", "true"), step("Two", "true")])
    monkeypatch.setattr(demo, "SUMMARY", step("Summary", f"cp {cache}/demo/steps.json {tmp_path}/seen"))
    assert demo.main([]) == 0
    rows = json.loads((tmp_path / "seen").read_text())
    assert [(row["name"], row["command"]) for row in rows] == [("One", "sh -c true"), ("Two", "sh -c true")]
    assert all(0 <= row["seconds"] < 5 for row in rows)


def test_interruption_says_that_nothing_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> Done:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_step", interrupted)
    assert demo.main([]) == 130
    assert "make demo goes on" in capsys.readouterr().err


def test_demo_shell_without_a_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SSH_CONFIG", tmp_path / "none")
    assert demo.main(["--shell"]) == 1
    assert "There is no demo host. Create one: make demo" in capsys.readouterr().err


def test_scenario_that_fails_shows_its_log_and_stops_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_molecule(tmp_path, monkeypatch, 'echo "log of $3"; [ "$3" != b ]')
    assert suite.run_scenarios(["a", "b", "c"], keep=False, jobs=1) == 1
    out, err = capsys.readouterr()
    assert "a passed" in out
    assert "log of b" in out
    assert "1 passed, 1 failed" in out
    assert "Failed: b. Not run: c." in err
    assert "make molecule SCENARIO=b KEEP=1" in err


def test_two_scenarios_run_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Each waits for the other: alone, neither would end within the time.
    other = 'if [ "$3" = a ]; then echo b; else echo a; fi'
    put_molecule(
        tmp_path,
        monkeypatch,
        f'touch {tmp_path}/$3; timeout 10 sh -c "until [ -e {tmp_path}/$({other}) ]; do sleep 0.05; done"',
    )
    assert suite.run_scenarios(["a", "b"], keep=False, jobs=2) == 0


def test_progress_names_step_and_task(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("INFO     [host > converge] Executing\n\nTASK [redis : Render redis.conf] ****\nok: [host]\n")
    scenario = suite.Scenario("host", None, None, log, 0)  # type: ignore[arg-type]
    assert scenario.progress().endswith(" converge: redis : Render redis.conf")


def test_unknown_scenario_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main(["molecule", "nowhere"]) == 1
    assert "There is no scenario nowhere" in capsys.readouterr().err
