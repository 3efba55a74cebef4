"""The parts of the backup module that need no server."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from plugins.modules import legacy_database_backup as backup


@pytest.fixture(params=["wal", "delete"])
def database(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A database of 500 trades, closed by its bot."""
    path = tmp_path / "trading.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode = {request.param}")
        connection.execute("CREATE TABLE trades (id INTEGER PRIMARY KEY, price REAL)")
        connection.executemany("INSERT INTO trades (price) VALUES (?)", [(i / 7,) for i in range(500)])
        connection.commit()
    return path


@pytest.fixture
def writer(database: Path) -> Iterator[sqlite3.Connection]:
    """A bot that holds the database open, with a trade that no checkpoint has seen."""
    with closing(sqlite3.connect(database, timeout=0)) as connection:
        connection.execute("INSERT INTO trades (price) VALUES (1)")
        connection.commit()
        yield connection


def published(directory: Path, stem: str, content: bytes) -> backup.Manifest:
    partial = directory / f".{stem}.db.partial"
    partial.write_bytes(content)
    manifest = backup.Manifest(
        source="momentum",
        file=f"{stem}.db",
        bytes=len(content),
        sha256=backup.sha256_of(partial),
        taken_at="2026-11-22T00:00:00+00:00",
        server="SQLite",
        fingerprint="f",
        tables={"trades": 1},
        proof="counted",
    )
    backup.publish(partial, directory, manifest)
    return manifest


def test_copy_of_a_closed_database_leaves_nothing_beside_it(database: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "c.db"
    copy.parent.mkdir()
    assert backup.copy_sqlite(database, copy, 1) == {"trades": 500}
    backup.prove_copy(copy, {"trades": 500}, database)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "trading.db"]
    assert [path.name for path in copy.parent.iterdir()] == ["c.db"]


@pytest.mark.usefixtures("writer")
def test_copy_of_an_open_database_holds_what_was_committed(database: Path, tmp_path: Path) -> None:
    assert backup.copy_sqlite(database, tmp_path / "c.db", 1) == {"trades": 501}


@pytest.mark.usefixtures("writer")
def test_copies_of_a_standing_database_are_equal(database: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.db", tmp_path / "2.db"
    backup.copy_sqlite(database, first, 1)
    backup.copy_sqlite(database, second, 1)
    assert first.read_bytes() == second.read_bytes()


def test_locked_database_is_named(database: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("DELETE FROM trades WHERE id = 1")
        with pytest.raises(backup.BackupError, match=r"locked by another process.*fuser"):
            backup.copy_sqlite(database, tmp_path / "c.db", 0)


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to look at"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trading.db"
    path.write_bytes(content)
    with pytest.raises(backup.BackupError, match="is not a SQLite database"):
        backup.copy_sqlite(path, tmp_path / "c.db", 0)


def test_damaged_pages_are_found(database: Path, tmp_path: Path) -> None:
    content = bytearray(database.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    database.write_bytes(content)
    copy = tmp_path / "c.db"

    def attempt() -> None:
        backup.prove_copy(copy, backup.copy_sqlite(database, copy, 0), database)

    with pytest.raises(backup.BackupError, match=r"malformed|corrupt"):
        attempt()


def test_a_copy_with_other_rows_is_refused(database: Path, tmp_path: Path) -> None:
    copy = tmp_path / "c.db"
    backup.copy_sqlite(database, copy, 1)
    with pytest.raises(backup.BackupError, match="trades: source 499, backup 500"):
        backup.prove_copy(copy, {"trades": 499}, database)


def test_published_backup_is_private_and_checkable(tmp_path: Path) -> None:
    manifest = published(tmp_path, "momentum_backup_20261122T000000Z", b"rows")
    assert backup.newest_manifest(tmp_path, "momentum") == manifest
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    line = (tmp_path / f"{manifest.file}.sha256").read_text()
    assert line == f"{manifest.sha256}  {manifest.file}\n"


@pytest.mark.parametrize("damage", ["file", "manifest", "missing"])
def test_damaged_backup_does_not_count(tmp_path: Path, damage: str) -> None:
    manifest = published(tmp_path, "momentum_backup_20261122T000000Z", b"rows")
    file = tmp_path / manifest.file
    if damage == "file":
        file.write_bytes(b"rowz")
    elif damage == "manifest":
        file.with_suffix(".json").write_text("{")
    else:
        file.unlink()
    assert backup.newest_manifest(tmp_path, "momentum") is None


def test_remains_of_a_killed_run_go_and_backups_stay(tmp_path: Path) -> None:
    published(tmp_path, "momentum_backup_20261122T000000Z", b"rows")
    before = set(tmp_path.iterdir())
    (tmp_path / ".momentum_backup_20261122T000001Z.db.partial").write_bytes(b"torn")
    backup.remove_partials(tmp_path, "momentum")
    assert set(tmp_path.iterdir()) == before


def test_schema_dump_is_compared_without_its_random_key() -> None:
    dump = "--\n-- comment\n\\restrict {key}\n\nCREATE TABLE t (a int);\n\\unrestrict {key}\n"
    assert backup.schema_without_noise(dump.format(key="a")) == "CREATE TABLE t (a int);"
    assert backup.schema_without_noise(dump.format(key="a")) == backup.schema_without_noise(dump.format(key="b"))


def test_two_backups_do_not_run_at_once(tmp_path: Path) -> None:
    with (
        backup.exclusive(tmp_path, 0),
        pytest.raises(backup.BackupError, match="Another backup"),
        backup.exclusive(tmp_path, 0),
    ):
        pass
