"""Files delivered into a bot's folder, and taken back, with kills in between."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from plugins.modules import delivered_files as delivered

LEGACY = "import sqlite3\n"
MAIN = "import os\n\n\ndef trade(decision):\n    place(decision)\n\n\ndef main():\n    trade(1)\n"
# Empty lines of the context are a space in a diff.
PATCH = """\
--- a/main.py
+++ b/main.py
@@ -1,8 +1,10 @@
 import os
+from database import db
.
.
 def trade(decision):
     place(decision)
+    db.log(decision)
.
.
 def main():
""".replace("\n.\n", "\n \n").replace("\n.\n", "\n \n")
PATCHED = MAIN.replace("import os\n", "import os\nfrom database import db\n").replace(
    "place(decision)\n", "place(decision)\n    db.log(decision)\n"
)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


FILES = {
    "momentum/database/trade_database.py": "import trading_db\n",
    "momentum/trading_db/__init__.py": "VERSION = 1\n",
    "lxalgo/database/__init__.py": "",
}
WANTED = {
    "files": FILES,
    "if_absent": ["lxalgo/database/__init__.py"],
    "patches": {"lxalgo/main.py": PATCH},
    "known": {"momentum/database/trade_database.py": [sha(LEGACY)]},
    "acknowledged": {},
    "state": "delivered",
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Two bots' folders, with modes and times of their own."""
    for name, content in {"momentum/database/trade_database.py": LEGACY, "lxalgo/main.py": MAIN}.items():
        path = tmp_path / "base" / name
        path.parent.mkdir(parents=True)
        path.write_text(content)
        path.chmod(0o640)
        os.utime(path, ns=(1_600_000_000_123_456_789,) * 2)
    return tmp_path / "base"


def make(base: Path, **changes: Any) -> delivered.Delivery:
    places = {"path": str(base), "backup": str(base.parent / "backups/applications")}
    return delivered.Delivery(WANTED | places | changes, os.getuid(), os.getgid())


def run(base: Path, **changes: Any) -> delivered.Plan:
    delivery = make(base, **changes)
    plan = delivery.plan()
    if not (plan.refused or plan.odd):
        delivery.carry_out(plan)
    return plan


def back(base: Path, **changes: Any) -> delivered.Plan:
    return run(base, state="restored", **changes)


def tree(base: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, time and content of each file; the folders are named too."""
    return {
        str(path.relative_to(base)): (
            (path.stat().st_mode, path.stat().st_mtime_ns, path.read_text()) if path.is_file() else (0, 0, "")
        )
        for path in sorted(base.rglob("*"))
    }


def contents(base: Path) -> dict[str, str]:
    return {name: content for name, (mode, _, content) in tree(base).items() if mode}


def test_delivered_and_taken_back_byte_for_byte(base: Path) -> None:
    before = tree(base)
    run(base)
    assert contents(base) == FILES | {"lxalgo/main.py": PATCHED}
    assert (base / "momentum/database/trade_database.py").stat().st_mode & 0o777 == 0o640
    assert (base / "momentum/trading_db/__init__.py").stat().st_mode & 0o777 == 0o644
    back(base)
    assert tree(base) == before
    assert not (base.parent / "backups/applications/manifest.json").exists()


def test_second_run_finds_nothing_to_do(base: Path) -> None:
    run(base)
    assert run(base) == delivered.Plan()
    back(base)
    assert back(base) == delivered.Plan()


def test_backup_is_closed_to_others(base: Path) -> None:
    run(base)
    for path in (base.parent / "backups/applications").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_all_unknown_contents_are_named_and_nothing_is_written(base: Path) -> None:
    (base / "momentum/database/trade_database.py").write_text("mine\n")
    (base / "momentum/trading_db").mkdir()
    (base / "momentum/trading_db/__init__.py").write_text("mine too\n")
    before = tree(base)
    plan = run(base)
    assert plan.refused == {
        "momentum/database/trade_database.py": sha("mine\n"),
        "momentum/trading_db/__init__.py": sha("mine too\n"),
    }
    message = delivered.refusal(plan, base)
    assert f"{base}/momentum/trading_db/__init__.py has a content that is not known here" in message
    assert sha("mine\n") in message
    assert tree(base) == before


def test_acknowledging_one_content_does_not_acknowledge_another(base: Path) -> None:
    name = "momentum/database/trade_database.py"
    (base / name).write_text("mine\n")
    assert run(base, acknowledged={name: sha("other\n")}).refused
    assert not run(base, acknowledged={name: sha("mine\n")}).refused
    back(base)
    assert (base / name).read_text() == "mine\n"


def test_no_link_is_followed(base: Path) -> None:
    path = base / "momentum/database/trade_database.py"
    path.rename(base / "elsewhere.py")
    path.symlink_to(base / "elsewhere.py")
    assert run(base).odd == ["momentum/database/trade_database.py"]
    assert (base / "elsewhere.py").read_text() == LEGACY


def test_package_marker_of_the_bot_stays(base: Path) -> None:
    path = base / "lxalgo/database/__init__.py"
    path.parent.mkdir()
    path.write_text("# the bot's own\n")
    run(base)
    back(base)
    assert path.read_text() == "# the bot's own\n"


def test_new_version_and_a_file_that_is_not_delivered_any_more(base: Path) -> None:
    before = tree(base)
    run(base)
    files = dict(FILES) | {"momentum/database/trade_database.py": "import trading_db as db\n"}
    del files["momentum/trading_db/__init__.py"]
    plan = run(base, files=files)
    assert list(plan.write) == ["momentum/database/trade_database.py"]
    assert plan.back == ["momentum/trading_db/__init__.py"]
    assert not (base / "momentum/trading_db").exists()
    back(base)
    assert tree(base) == before


def test_what_was_changed_after_its_delivery_is_kept_unless_acknowledged(base: Path) -> None:
    run(base)
    path = base / "momentum/database/trade_database.py"
    path.write_text("changed since\n")
    plan = back(base)
    assert plan.kept == {"momentum/database/trade_database.py": sha("changed since\n")}
    assert path.read_text() == "changed since\n"
    assert (base / "lxalgo/main.py").read_text() == MAIN
    assert not back(base, acknowledged=plan.kept).kept
    assert path.read_text() == LEGACY
    copies = (base.parent / "backups/applications/momentum/database").iterdir()
    assert "changed since\n" in [copy.read_text() for copy in copies]


def test_original_stays_the_first_one_when_a_changed_delivery_is_replaced(base: Path) -> None:
    before = tree(base)
    run(base)
    name = "momentum/database/trade_database.py"
    (base / name).write_text("import trading_db  # mine\n")
    assert run(base).refused == {name: sha("import trading_db  # mine\n")}
    run(base, acknowledged={name: sha("import trading_db  # mine\n")})
    assert (base / name).read_text() == FILES[name]
    back(base)
    assert tree(base) == before
    copies = (base.parent / "backups/applications/momentum/database").iterdir()
    assert {copy.read_text() for copy in copies} == {LEGACY, "import trading_db  # mine\n"}


def test_patched_file_that_was_developed_further_is_its_own_original(base: Path) -> None:
    run(base)
    (base / "lxalgo/main.py").write_text(f"{MAIN}# more\n")
    run(base)
    assert (base / "lxalgo/main.py").read_text() == f"{PATCHED}# more\n"
    back(base)
    assert (base / "lxalgo/main.py").read_text() == f"{MAIN}# more\n"


def test_no_folder_behind_a_link_is_written_to(base: Path) -> None:
    shared = base.parent / "shared"
    (base / "momentum/database").rename(shared)
    (base / "momentum/database").symlink_to(shared)
    assert run(base).odd == ["momentum/database/trade_database.py"]
    assert (shared / "trade_database.py").read_text() == LEGACY
    (base / "momentum/database").unlink()
    shared.rename(base / "momentum/database")
    run(base)
    (base / "momentum/database").rename(shared)
    (base / "momentum/database").symlink_to(shared)
    assert list(back(base).kept) == ["momentum/database/trade_database.py"]
    assert (shared / "trade_database.py").read_text() == FILES["momentum/database/trade_database.py"]


def test_bots_folder_may_be_a_link(base: Path) -> None:
    (base / "momentum").rename(base.parent / "elsewhere")
    (base / "momentum").symlink_to(base.parent / "elsewhere")
    run(base)
    assert (base.parent / "elsewhere/trading_db/__init__.py").read_text() == "VERSION = 1\n"


def test_folder_that_was_made_stays_where_something_else_is_in_it(base: Path) -> None:
    run(base)
    (base / "lxalgo/database/__pycache__").mkdir()
    (base / "momentum/trading_db/notes.txt").write_text("mine\n")
    back(base)
    assert not (base / "lxalgo/database").exists()
    assert [path.name for path in (base / "momentum/trading_db").iterdir()] == ["notes.txt"]


class Killed(BaseException):
    """Not an error that any code handles."""


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The run dies before the given change of the disk."""
    left = [step]

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*args, **keywords)

        return call

    for target in ("os.replace", "os.unlink", "os.mkdir", "os.fsync", "os.chmod", "os.chown"):
        monkeypatch.setattr(target, guarded(getattr(os, target.split(".")[1])))
    for method in ("unlink", "mkdir"):
        monkeypatch.setattr(Path, method, guarded(getattr(Path, method)))
    return monkeypatch.undo


@pytest.mark.parametrize("killed", [run, back])
@pytest.mark.parametrize("after", [run, back])
def test_killed_anywhere_the_next_run_ends_well(
    killed: Callable[..., Any],
    after: Callable[..., Any],
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    before = tree(base)
    mask = os.umask(0o077)
    request.addfinalizer(lambda: os.umask(mask))
    for step in range(1000):
        if killed is back:
            run(base)
        undo = killed_at(step, monkeypatch)
        try:
            killed(base)
            finished = True
        except Killed:
            finished = False
        undo()
        after(base)
        if after is run:
            assert contents(base) == FILES | {"lxalgo/main.py": PATCHED}, step
            assert (base / "lxalgo/database").stat().st_mode & 0o777 == 0o755, step
            back(base)
        assert tree(base) == before, step
        if finished:
            assert step > 20
            return
    pytest.fail("the run never came to its end")


def test_patch_fits_where_the_lines_have_moved() -> None:
    moved = "# a comment\n" + MAIN
    assert delivered.patched(moved, PATCH) == "# a comment\n" + PATCHED
    assert delivered.with_patch(PATCHED.encode(), PATCH) == PATCHED.encode()


@pytest.mark.parametrize(
    "content",
    [
        MAIN.replace("place(decision)", "place(decision, 1)"),
        MAIN.replace("\n", "\r\n"),
        "# x\n" + MAIN + MAIN,
        "",
    ],
    ids=["changed", "line ends", "ambiguous", "empty"],
)
def test_patch_that_does_not_fit_is_named_and_the_file_stays(content: str, base: Path) -> None:
    path = base / "lxalgo/main.py"
    path.write_bytes(content.encode())
    plan = run(base)
    assert plan.unpatched == {"lxalgo/main.py": sha(content)}
    assert path.read_bytes() == content.encode()
    assert not run(base, acknowledged=plan.unpatched).unpatched


def test_patch_without_its_file_is_named(base: Path) -> None:
    (base / "lxalgo/main.py").unlink()
    assert run(base).unpatched == {"lxalgo/main.py": ""}
    assert run(base, acknowledged={"lxalgo/main.py": sha("")}).unpatched == {}
    assert not (base / "lxalgo/main.py").exists()


def test_patch_of_a_file_without_a_last_line_end() -> None:
    patch = "@@ -1 +1 @@\n-old\n\\ No newline at end of file\n+new\n\\ No newline at end of file\n"
    assert delivered.patched("old", patch) == "new"
    assert delivered.patched("old\n", patch) is None


def test_new_patch_starts_from_the_original(base: Path) -> None:
    run(base)
    run(base, patches={"lxalgo/main.py": PATCH.replace("db.log", "db.log_trade")})
    assert (base / "lxalgo/main.py").read_text() == PATCHED.replace("db.log", "db.log_trade")
    back(base)
    assert (base / "lxalgo/main.py").read_text() == MAIN


def test_known_contents_are_those_of_the_published_bots() -> None:
    root = Path(__file__).resolve().parents[2]
    known = yaml.safe_load((root / "roles/bot_application/vars/main.yml").read_text())["_bot_application_known"]
    for bot, files in known.items():
        replaced = {
            str(path.relative_to(root / "files/applications" / bot))
            for path in (root / "files/applications" / bot).rglob("*.py")
            if (
                root / "tests/legacy/roles/legacy/files" / bot / path.relative_to(root / "files/applications" / bot)
            ).exists()
        }
        assert files.keys() == {name for name in replaced if not name.endswith("__init__.py")}
        for name, checksums in files.items():
            published = root / "tests/legacy/roles/legacy/files" / bot / name
            assert hashlib.sha256(published.read_bytes()).hexdigest() in checksums


@pytest.mark.parametrize(
    "patch",
    sorted(Path(__file__).resolve().parents[2].glob("files/applications/**/*.patch")),
    ids=lambda path: path.name,
)
def test_patches_fit_the_published_bots(patch: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    name = str(patch.relative_to(root / "files/applications")).removesuffix(".patch")
    original = (root / "tests/legacy/roles/legacy/files" / name).read_bytes()
    result = delivered.with_patch(original, patch.read_text())
    assert result not in (None, original)
    assert patch.with_name(f"{Path(name).name}.instruction.md").exists()
