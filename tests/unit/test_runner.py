"""The runners of `make demo` and `make test` say what failed, where, and what to type."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests import runner, suite
from tests.demo import run as demo
from tests.runner import Done, Step
from tests.suite import Job


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


def job(name: str, script: str) -> Job:
    return Job(name, ["sh", "-c", script], f"make {name}")


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
    assert re.search(r"\(1/2\) Break failed after \d:\d\d with exit code 3", error)
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
    assert all(row["seconds"] >= 0 for row in rows)


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


def test_job_that_fails_shows_its_log_and_stops_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [job("a", "true"), job("b", "echo log of b; false"), job("c", "true")]
    assert suite.run_jobs(jobs, at_once=1) == 1
    out, err = capsys.readouterr()
    assert "a passed" in out
    assert "log of b" in out
    assert "1 passed, 1 failed" in out
    assert "Failed: b. Not run: c." in err
    assert "repeat: make b" in err


def test_two_jobs_run_at_a_time(tmp_path: Path) -> None:
    # Each waits for the other: alone, neither would end within the time.
    meet = 'touch {0}/{1}; timeout 10 sh -c "until [ -e {0}/{2} ]; do sleep 0.05; done"'
    jobs = [job("a", meet.format(tmp_path, "a", "b")), job("b", meet.format(tmp_path, "b", "a"))]
    assert suite.run_jobs(jobs, at_once=2) == 0


def test_scenario_is_repeated_on_a_host_that_stays() -> None:
    assert suite.scenario_job("host", keep=False).repeat.startswith("make molecule SCENARIO=host KEEP=1")
    assert "--destroy" in suite.scenario_job("host", keep=True).command


@pytest.mark.parametrize(
    ("log", "place"),
    [
        (
            "INFO     [host > converge] Executing\n\nTASK [redis : Render redis.conf] ****\nok: [host]\n",
            "converge: redis : Render redis.conf",
        ),
        ("tests/unit/test_x.py .....  [  4%]\ntests/unit/test_y.py ...", "[  4%]"),
        ("", "starts"),
    ],
    ids=["molecule", "pytest", "nothing"],
)
def test_progress_is_read_from_the_log(tmp_path: Path, log: str, place: str) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    running = suite.Running(job("host", "true"), None, None, path, 0)  # type: ignore[arg-type]
    assert running.progress().endswith(f" {place}")


def test_unknown_scenario_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main(["molecule", "nowhere"]) == 1
    assert "There is no scenario nowhere" in capsys.readouterr().err
