"""The module env_file: what it leaves alone, what it writes, what it takes back, and that it tells no secret."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from hypothesis import given
from hypothesis import strategies as st

from plugins.modules import env_file
from plugins.modules.env_file import Statement, parse, put_back, updated
from tests.env_files import OURS, VALUES, files, lines
from tests.playbooks import local_playbook

ROOT = Path(__file__).parents[2]
LEGACY = sorted((ROOT / "tests/legacy/roles/legacy").rglob("*.env*"))
ABSENT = "MAX_POSITIONS"
CHANGED = {*OURS, ABSENT}
SETTINGS = st.fixed_dictionaries(dict.fromkeys(OURS, VALUES))
SECRET = "n3w-Pa55word"
EXCHANGE_KEY = "vXk93hTqLmPz81RwYs"
OLD = f"""# Exchange
API_KEY={EXCHANGE_KEY}
export POSTGRES_HOST="localhost"   # the old one
POSTGRES_PASSWORD='0ld-Pa55word'
MAX_POSITIONS=3
DATABASE_URL=postgres://${{POSTGRES_HOST}}/trading
LAST=x""".encode()
NEW = f"""# Exchange
API_KEY={EXCHANGE_KEY}
export POSTGRES_HOST="pgbouncer"   # the old one
POSTGRES_PASSWORD='{SECRET}'
DATABASE_URL=postgres://${{POSTGRES_HOST}}/trading
LAST=x
BOT_ID=bot_001
""".encode()
TASK: dict[str, Any] = {
    "values": {"POSTGRES_HOST": "pgbouncer", "BOT_ID": "bot_001"},
    "secrets": {"POSTGRES_PASSWORD": SECRET},
    "absent": ["MAX_POSITIONS"],
}


def theirs(content: bytes) -> list[bytes]:
    """The lines that are none of our business, but for the end of the last one."""
    return env_file.ended([one.raw for one in parse(content) if one.key not in CHANGED])


def ours(content: bytes) -> list[bytes]:
    return [one.raw.rstrip(b"\r\n") for one in parse(content) if one.key in CHANGED]


@given(st.binary(max_size=60) | st.text("AB=:'\"\\# \t\r\n\0", max_size=30).map(str.encode))
def test_any_bytes_are_parsed_without_loss_or_refused(content: bytes) -> None:
    try:
        statements = parse(content)
    except env_file.Unreadable:
        return
    assert b"".join(one.raw for one in statements) == content


@given(files(), SETTINGS)
def test_other_lines_stay_byte_for_byte(content: bytes, values: dict[str, str]) -> None:
    after = updated(content, values, [ABSENT])
    assert theirs(after) == theirs(content)
    assert ABSENT not in {one.key for one in parse(after)}


@given(files(), SETTINGS)
def test_second_run_changes_nothing(content: bytes, values: dict[str, str]) -> None:
    once = updated(content, values, [ABSENT])
    assert updated(once, values, [ABSENT]) == once


@given(files(), SETTINGS, SETTINGS)
def test_original_comes_back_byte_for_byte(content: bytes, values: dict[str, str], later: dict[str, str]) -> None:
    after = updated(updated(content, values, [ABSENT]), later, [])
    assert put_back(content, after, CHANGED) == (content, False)


@given(files(), SETTINGS, st.data())
def test_changes_of_others_are_kept(content: bytes, values: dict[str, str], data: st.DataObject) -> None:
    edited = [one.raw for one in parse(updated(content, values, [ABSENT]))]
    edited = [line if line.endswith(b"\n") or line == env_file.BOM else line + b"\n" for line in edited]
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(int(edited[0] == env_file.BOM), len(edited)))
        line = data.draw(lines(["THEIR_OWN", "API_KEY"])).encode() + b"\n"
        edited[number : number + data.draw(st.integers(0, 1))] = [line]
    current = b"".join(edited)
    restored, kept = put_back(content, current, CHANGED)
    assert theirs(restored) == theirs(current)
    assert ours(restored) == ours(content)
    assert kept == (theirs(current) != theirs(content))
    assert put_back(content, restored, CHANGED)[0] == restored


@pytest.mark.parametrize("path", LEGACY, ids=lambda path: str(path.name))
def test_env_files_of_the_legacy_bots(path: Path) -> None:
    content = path.read_bytes()
    values = {"POSTGRES_HOST": "pgbouncer", "BOT_ID": "bot_001", "POSTGRES_PASSWORD": "a $b"}
    after = updated(content, values, [ABSENT])
    assert theirs(after) == theirs(content)
    assert put_back(content, after, CHANGED) == (content, False)
    added = after + b"THEIR_OWN=1\n"
    assert put_back(content, added, CHANGED)[0].rstrip().endswith(b"THEIR_OWN=1")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"A=1", b"A=1\nK=v w\n"),
        (b"A=1\r\nB=2\r\n", b"A=1\r\nB=2\r\nK=v w\r\n"),
        (b"A=1\r\nB=2\n", b"A=1\r\nB=2\nK=v w\n"),
        (b"\xef\xbb\xbf", b"\xef\xbb\xbfK=v w\n"),
        (b"\xef\xbb\xbfK=1", b"\xef\xbb\xbfK=v w"),
        (b"K=1\nA=\xff\xfe # \x80\nK=2\n", b"K=1\nA=\xff\xfe # \x80\nK=v w\n"),
        (b'  export K = "1" # why\n', b'  export K = "v w" # why\n'),
        (b"K: 1 # why\n", b"K: v w # why\n"),
        (b"K=#1 # why\n", b"K=v w # why\n"),
        (b"K\nA=1\n", b"K=v w\nA=1\n"),
        (b"K='1\n2'\nA=\"\n K=3\"\n", b"K='v w'\nA=\"\n K=3\"\n"),
        (b"#K=1\n", b"#K=1\nK=v w\n"),
        (b"", b"K=v w\n"),
    ],
)
def test_place_and_look_of_a_line(before: bytes, after: bytes) -> None:
    # Quoted, but for where it already was.
    after = after.replace(b"=v w", b"='v w'").replace(b": v w", b": 'v w'")
    assert updated(before, {"K": "v w"}, []) == after
    assert put_back(before, after, {"K"}) == (before, False)


def test_removed_line_returns_to_its_neighbour() -> None:
    original = b"A=1\nOURS=2\nB=3\n"
    assert put_back(original, b"NEW=0\nA=1\nB=4\nC=5\n", {"OURS"}) == (b"NEW=0\nA=1\nOURS=2\nB=4\nC=5\n", True)
    assert put_back(original, b"B=3\n", {"OURS"}) == (b"OURS=2\nB=3\n", True)
    assert put_back(original, b"A=9\nB=3", {"OURS"}) == (b"A=9\nOURS=2\nB=3", True)


@pytest.mark.parametrize(
    ("content", "line", "found"),
    [
        (b"A=1\n\nhidden value\n", 3, "no = behind the key"),
        (b"A=1\n=hidden\n", 2, "something that does not begin with a key"),
        (b"A='1\n2'\nB='hidden\nC=1\n", 3, "in the value of B no closing quotation mark"),
        (b'B="hidden" hidden\n', 1, "in the value of B text behind the closing quotation mark"),
        (b'B= "hidden" C=hidden\n', 1, "in the value of B text behind the closing quotation mark"),
        ("A=hidden\n".encode("utf-16-le"), 1, "a NUL byte (a file in UTF-16 has them)"),
        (b"\xffA=hidden\n", 1, "something that does not begin with a key"),
    ],
)
def test_line_that_cannot_be_read_is_named_without_its_value(content: bytes, line: int, found: str) -> None:
    with pytest.raises(env_file.Unreadable) as caught:
        parse(content)
    assert str(caught.value) == f"line {line}: found {found}; expected KEY=value, a comment or an empty line"


def test_parts_of_a_statement() -> None:
    assert parse(b'export A = "b" # c\r\n') == [Statement("A", b"export A = ", b'"b"', b" # c\r\n")]


Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the module on `.env`; its result."""

    def run(*, check: bool = False, **arguments: Any) -> dict[str, Any]:
        defaults = {"path": str(tmp_path / ".env"), "backup": str(tmp_path / "backup")}
        internal = {"_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(defaults | arguments | internal), pytest.raises(SystemExit):
            env_file.main()
        output = capsys.readouterr().out
        for secret in (SECRET, EXCHANGE_KEY, "0ld-Pa55word"):
            assert secret not in output
        result: dict[str, Any] = json.loads(output)
        return result

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / ".env"
    path.write_bytes(OLD)
    path.chmod(0o640)
    return path


def set_again(call: Call, path: Path) -> None:
    assert call(**TASK)["changed"]
    assert path.read_bytes() == NEW


def test_set_and_restore(call: Call, path: Path, tmp_path: Path) -> None:
    first = call(**TASK)
    assert first["changed_keys"] == ["BOT_ID", "MAX_POSITIONS", "POSTGRES_HOST", "POSTGRES_PASSWORD"]
    assert first["referring_keys"] == ["DATABASE_URL"]
    assert path.read_bytes() == NEW
    assert (tmp_path / "backup").read_bytes() == OLD
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    again = call(**TASK)
    assert (again["changed"], again["changed_keys"], again["diff"]["after"]) == (False, [], "")
    back = call(state="restored")
    assert (back["changed"], back["kept_changes"], back["changed_keys"]) == (True, False, first["changed_keys"])
    assert path.read_bytes() == OLD
    assert not call(state="restored")["changed"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [".env", "backup", "backup.json"]


def test_diff_shows_new_values_that_are_not_secret(call: Call, path: Path) -> None:
    diff = call(**TASK)["diff"]
    assert diff["before"].splitlines() == [
        f"{key}=******** (before)" for key in ("MAX_POSITIONS", "POSTGRES_HOST", "POSTGRES_PASSWORD")
    ]
    assert diff["after"].splitlines() == [
        "BOT_ID=bot_001",
        "POSTGRES_HOST=pgbouncer",
        "POSTGRES_PASSWORD=******** (after)",
    ]
    diff = call(state="restored")["diff"]
    assert "pgbouncer" not in diff["before"]
    assert "localhost" not in diff["after"]
    assert path.read_bytes() == OLD


def test_attributes_are_kept(call: Call, path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    os.setxattr(path, "user.note", b"theirs")
    before = path.stat()
    set_again(call, path)
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert os.getxattr(path, "user.note") == b"theirs"
    assert after.st_ino != before.st_ino, "replaced, not written over"


@pytest.mark.parametrize("arguments", [TASK, {"state": "restored"}])
def test_check_mode_touches_nothing(call: Call, path: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
    if "state" in arguments:
        set_again(call, path)

    def state() -> dict[str, tuple[bytes, int, int]]:
        return {
            file.name: (file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns) for file in tmp_path.iterdir()
        }

    before = state()
    promised = call(check=True, **arguments)
    assert state() == before
    done = call(**arguments)
    assert state() != before
    assert {**done, "invocation": None} == {**promised, "invocation": None}


def test_backup_is_the_original_after_many_runs(call: Call, path: Path, tmp_path: Path) -> None:
    set_again(call, path)
    call(values={"BOT_ID": "bot_002", "POSTGRES_DB": "trading_db"})
    path.write_bytes(path.read_bytes().replace(b"LAST=x", b"LAST=y"))
    call(**TASK)
    assert (tmp_path / "backup").read_bytes() == OLD
    assert call(state="restored")["kept_changes"]
    assert path.read_bytes() == OLD.replace(b"LAST=x", b"LAST=y\n")
    assert call(state="restored") | {"invocation": 0} == {
        "changed": False,
        "changed_keys": [],
        "referring_keys": [],
        "kept_changes": True,
        "kept_copy": "",
        "diff": {"before_header": str(path), "after_header": str(path), "before": "", "after": ""},
        "invocation": 0,
    }


def test_keys_that_already_had_their_value_are_not_taken_back(call: Call, path: Path) -> None:
    path.write_bytes(b"BOT_ID=bot_001\nPOSTGRES_HOST=localhost\n")
    call(values=TASK["values"])
    path.write_bytes(path.read_bytes().replace(b"bot_001", b"bot_007"))
    call(state="restored")
    assert path.read_bytes() == b"BOT_ID=bot_007\nPOSTGRES_HOST=localhost\n"


def test_what_was_changed_after_a_restore_is_the_next_original(call: Call, path: Path, tmp_path: Path) -> None:
    set_again(call, path)
    call(state="restored")
    between = OLD.replace(b'"localhost"', b'"elsewhere"')
    path.write_bytes(between)
    assert not call(state="restored")["changed"]
    call(**TASK)
    assert (tmp_path / "backup").read_bytes() == OLD
    assert (tmp_path / "backup.2").read_bytes() == between
    call(state="restored")
    assert path.read_bytes() == between


def test_run_that_was_cut_off_before_the_file_was_replaced(
    call: Call, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = env_file.put

    def cut_off(module: Any, target: Path, *rest: Any) -> None:
        if target == path:
            raise OSError("no space left on device")
        put(module, target, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(env_file, "put", cut_off)
        assert "no space left on device" in call(**TASK)["msg"]
    assert path.read_bytes() == OLD
    assert not call(state="restored")["changed"]
    set_again(call, path)
    call(state="restored")
    assert path.read_bytes() == OLD


def test_file_that_was_not_there(call: Call, tmp_path: Path) -> None:
    path = tmp_path / ".env"
    assert not call(state="restored")["changed"]
    assert not call(absent=["BOT_ID"])["changed"]
    assert f"{path} does not exist" in call(**TASK)["msg"]
    assert call(**TASK, create=True)["changed"]
    assert path.read_bytes() == f"POSTGRES_HOST=pgbouncer\nBOT_ID=bot_001\nPOSTGRES_PASSWORD={SECRET}\n".encode()
    assert path.stat().st_mode & 0o777 == 0o600
    assert call(state="restored")["changed"]
    assert not path.exists()
    assert not call(state="restored")["changed"]
    call(**TASK, create=True, mode="0640")
    assert path.stat().st_mode & 0o777 == 0o640
    path.write_bytes(path.read_bytes() + b"THEIRS=1\n")
    assert call(state="restored")["kept_changes"]
    assert path.read_bytes() == b"THEIRS=1\n"


def test_file_that_somebody_removed_comes_back(call: Call, path: Path) -> None:
    set_again(call, path)
    path.unlink()
    call(state="restored")
    assert path.read_bytes() == OLD


def test_changed_keys_of_ours_are_kept_before_they_are_set_again_or_taken_back(
    call: Call, path: Path, tmp_path: Path
) -> None:
    set_again(call, path)
    assert call(**TASK | {"values": {"POSTGRES_HOST": "pgbouncer", "BOT_ID": "bot_002"}})["kept_copy"] == ""
    rotated = path.read_bytes().replace(SECRET.encode(), b"r0tated").replace(b"LAST=x", b"LAST=y")
    path.write_bytes(rotated)
    assert call(**TASK, check=True)["kept_copy"] == f"{tmp_path}/backup.2"
    assert call(**TASK)["kept_copy"] == f"{tmp_path}/backup.2"
    assert (tmp_path / "backup.2").read_bytes() == rotated
    assert (tmp_path / "backup.2").stat().st_mode & 0o777 == 0o600
    changed = path.read_bytes().replace(b"pgbouncer", b"elsewhere")
    path.write_bytes(changed)
    assert call(state="restored")["kept_copy"] == f"{tmp_path}/backup.3"
    assert (tmp_path / "backup.3").read_bytes() == changed
    assert path.read_bytes() == OLD.replace(b"LAST=x", b"LAST=y\n")
    assert (tmp_path / "backup").read_bytes() == OLD


class Killed(BaseException):
    """Not an error that any code handles."""


def killed_at(step: int, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the module died before the given change of the disk."""
    left = [step]

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*args, **keywords)

        return call

    with monkeypatch.context() as patch, patch_module_args(arguments):
        for name in ("open", "fsync", "rename", "unlink", "chmod"):
            patch.setattr(os, name, guarded(getattr(os, name)))
        # The module's own cleaning up is killed with it.
        patch.setattr(Path, "unlink", guarded(Path.unlink))
        try:
            env_file.main()
        except Killed:
            return True
        except SystemExit:
            return False
    raise AssertionError


@pytest.mark.parametrize("killed", [TASK, {"state": "restored"}], ids=["set", "restore"])
def test_killed_anywhere_the_next_run_ends_well(
    killed: dict[str, Any],
    call: Call,
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"path": str(path), "backup": str(tmp_path / "backup")}
    for step in range(100):
        if killed is not TASK:
            call(**TASK)
        dead = killed_at(step, killed | places, monkeypatch)
        capsys.readouterr()
        assert path.read_bytes() in (OLD, NEW)
        if step % 2:
            set_again_or_still(call, path)
        call(state="restored")
        assert path.read_bytes() == OLD
        assert (tmp_path / "backup").read_bytes() == OLD if (tmp_path / "backup").exists() else dead
        assert {file.name for file in tmp_path.iterdir()} <= {".env", "backup", "backup.json"}, step
        if not dead:
            assert step > 10
            return
    pytest.fail("the run never came to its end")


def set_again_or_still(call: Call, path: Path) -> None:
    call(**TASK)
    assert path.read_bytes() == NEW


def test_links(call: Call, path: Path, tmp_path: Path) -> None:
    path.rename(tmp_path / ".env.production")
    path.symlink_to(".env.production")
    set_again(call, path)
    assert path.is_symlink()
    assert (tmp_path / ".env.production").stat().st_mode & 0o777 == 0o640
    path.unlink()
    path.symlink_to("/etc/hostname")
    assert "is a link to /etc/hostname; expected a file in its own folder" in call(**TASK)["msg"]


@pytest.mark.parametrize(
    ("arguments", "promised"),
    [
        ({"values": {"API_TOKEN": "x"}}, "values: API_TOKEN looks like a secret"),
        ({"values": {"A": True}}, "values: A is a bool; expected a text or a whole number"),
        ({"secrets": {"A": None}}, "secrets: A is a NoneType; expected a text or a whole number"),
        ({"values": {"A": "\0"}}, "values: A is a text with a NUL byte"),
        ({"values": {"A B": "x"}}, "'A B' is no key"),
        ({"values": {"A": "x"}, "absent": ["A"]}, "A stands in two of values, secrets and absent"),
        ({"state": "restored", "backup": None}, "backup is not given; expected where the original is kept"),
        ({"values": {"A": "x"}, "backup": "/nowhere/backup"}, "No such file or directory: '/nowhere/"),
    ],
)
def test_refused_arguments(call: Call, path: Path, arguments: dict[str, Any], promised: str) -> None:
    result = call(**arguments)
    assert promised in result["msg"]
    assert path.read_bytes() == OLD


def test_refused_file_is_left_alone(call: Call, path: Path, tmp_path: Path) -> None:
    path.write_bytes(OLD + b"\nhidden value\n")
    message = call(**TASK)["msg"]
    assert message == (
        f"{path} line 8: found no = behind the key; expected KEY=value, a comment or an empty line."
        " Mend that line, then run the playbook again."
    )
    assert list(tmp_path.iterdir()) == [path]


def test_missing_backup_is_named(call: Call, path: Path, tmp_path: Path) -> None:
    set_again(call, path)
    (tmp_path / "backup").unlink()
    assert f"Backup {tmp_path}/backup is not there; expected the original" in call(state="restored")["msg"]
    assert path.read_bytes() == NEW


def play(folder: Path, *options: str) -> str:
    """What ansible-playbook says, as loudly as it can, when it sets, sets again, restores and restores again."""
    target = {"path": str(folder / ".env"), "backup": str(folder / "backup")}
    back: dict[str, object] = {"state": "restored"}
    tasks = [TASK, TASK, back, back]
    file = folder / "play.yml"
    play = {"hosts": "localhost", "gather_facts": False, "tasks": [{"env_file": target | task} for task in tasks]}
    file.write_text(yaml.safe_dump([play]))
    command = local_playbook(file, {}, *options)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_playbook_tells_no_secret_and_its_check_mode_touches_nothing(path: Path, tmp_path: Path) -> None:
    before = path.stat()
    dry = play(tmp_path, "--check")
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino, path.read_bytes()) == (before.st_mtime_ns, before.st_ino, OLD)
    assert not (tmp_path / "backup").exists()
    assert "+POSTGRES_HOST=pgbouncer" in dry
    said = play(tmp_path)
    assert "changed=2 " in said
    assert path.read_bytes() == OLD
    assert path.stat().st_mode == before.st_mode
    for secret in (SECRET, EXCHANGE_KEY, "0ld-Pa55word", "${POSTGRES_HOST}"):
        assert secret not in dry + said
