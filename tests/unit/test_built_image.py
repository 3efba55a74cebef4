"""What makes another image of a bot, and what does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from plugins.modules import built_image

EXCLUDED = [".env", "outbox"]
IGNORED = [".env", "data", "database/trade_database.py"]


@pytest.fixture
def context(tmp_path: Path) -> Path:
    for name in ("Dockerfile", "main.py", "database/trade_database.py", "data/trading.db", ".env", ".git/HEAD"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (lambda folder: (folder / "main.py").write_text("more"), True),
        (lambda folder: (folder / "main.py").chmod(0o755), True),
        (lambda folder: (folder / "main.py").rename(folder / "bot.py"), True),
        (lambda folder: (folder / "new.py").symlink_to("main.py"), True),
        (lambda folder: (folder / "main.py").touch(), False),
        (lambda folder: (folder / "data/trading.db").write_text("a trade"), False),
        (lambda folder: (folder / "data/trading.db-wal").write_text("a trade"), False),
        (lambda folder: (folder / ".env").write_text("KEY=1"), False),
        (lambda folder: (folder / "database/trade_database.py").write_text("delivered"), False),
        (lambda folder: (folder / ".git/HEAD").write_text("main"), False),
        (lambda folder: (folder / "database/__pycache__").mkdir(), False),
    ],
)
def test_what_is_a_reason_to_build_again(change: Callable[[Path], object], other: bool, context: Path) -> None:
    before = built_image.of_folder(context, IGNORED)
    change(context)
    assert (built_image.of_folder(context, IGNORED) != before) is other


def test_no_secret_is_handed_to_docker_and_all_else_is(context: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (context / "outbox").mkdir()
    (context / "outbox/momentum_001.outbox").write_text("trades")
    (context / "main.py").chmod(0o750)
    (context / "link").symlink_to("/etc/hostname")
    (context / ".dockerignore").write_text("data\n")
    os.mkfifo(context / "pipe")
    folder = tmp_path_factory.mktemp("stage") / "context"
    built_image.staged(context, folder, EXCLUDED)
    assert (folder / ".env").read_text() == ""
    assert not (folder / "outbox").exists()
    assert not (folder / "pipe").exists()
    assert os.readlink(folder / "link") == "/etc/hostname"
    assert (folder / "main.py").stat().st_mode & 0o777 == 0o750
    for name in (
        "Dockerfile",
        "main.py",
        "database/trade_database.py",
        "data/trading.db",
        ".git/HEAD",
        ".dockerignore",
    ):
        assert (folder / name).read_bytes() == (context / name).read_bytes()
    assert (context / ".env").read_text() == ".env"


def test_module_hands_over_the_folder_without_what_is_excluded(
    context: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scratch = str(tmp_path_factory.mktemp("scratch"))
    handed: dict[str, str] = {}

    def build(name: str, inputs: str, folder: str) -> None:
        handed.update({path.name: path.read_text() for path in Path(folder).iterdir() if path.is_file()})

    monkeypatch.setattr(built_image, "build", build)
    monkeypatch.setattr(built_image, "built_from", lambda *_: None)
    arguments = {"name": "bot", "context": str(context), "excluded": EXCLUDED, "_ansible_remote_tmp": scratch}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        built_image.main()
    assert '"changed": true' in capsys.readouterr().out
    assert handed["main.py"] == (context / "main.py").read_text()
    assert handed[".env"] == ""


def test_file_that_a_running_bot_removes_stops_nothing(
    context: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names are read first, the files after that."""
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: [*real(folder), "trading.db-journal"])
    built_image.of_folder(context, IGNORED)
    built_image.copied(str(context / "gone"), str(tmp_path_factory.mktemp("stage") / "gone"))
    assert built_image.is_odd(str(context / "gone"))


def test_context_can_be_read_by_whoever_runs_the_image(context: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (context / "main.py").chmod(0o600)
    (context / "database/trade_database.py").chmod(0o700)
    folder = tmp_path_factory.mktemp("context")
    files = {name: str(context / name) for name in ("main.py", "database/trade_database.py")}
    built_image.put_together(folder, "FROM base\n", files)
    modes = {name: (folder / "files" / name).stat().st_mode & 0o777 for name in [*files, "database"]}
    assert modes == {"main.py": 0o644, "database/trade_database.py": 0o755, "database": 0o755}
    assert (folder / "Dockerfile").read_text() == "FROM base\n"
