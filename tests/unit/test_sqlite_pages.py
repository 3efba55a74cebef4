"""Changed rows of a SQLite file, found by its pages: none is missed, and few are taken in vain."""

from __future__ import annotations

import sqlite3
import struct
import sys
import tempfile
import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "files/migrations"))
from migration_engine import sqlite_pages
from migration_engine.sqlite_pages import Pages, changed_ranges, digests

SCHEMA = """
CREATE TABLE trades (id INTEGER PRIMARY KEY AUTOINCREMENT, trade_id TEXT UNIQUE, symbol TEXT NOT NULL, pnl REAL, note TEXT);
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, trade_id TEXT UNIQUE, symbol TEXT NOT NULL, pnl REAL, note TEXT);
CREATE INDEX idx_symbol ON trades (symbol);
CREATE INDEX idx_pnl ON events (pnl);
"""
TABLES = ("trades", "events")
Ranges = list[tuple[int, int]] | None


class Source:
    """A bot's database, written through one connection, copied as the migration copies it."""

    def __init__(self, folder: Path, page_size: int = 4096, journal: str = "delete", vacuum: str = "none") -> None:
        self.folder = folder
        self.db = sqlite3.connect(folder / "source.db", isolation_level=None)
        # Freed pages keep their bytes: the hardest case, and not every build's default.
        for pragma in ("secure_delete = off", f"page_size = {page_size}", f"auto_vacuum = {vacuum}"):
            self.db.execute(f"PRAGMA {pragma}")
        self.db.execute(f"PRAGMA journal_mode = {journal}")
        self.db.execute("PRAGMA synchronous = off")
        self.db.executescript(SCHEMA)

    def insert(self, table: str, ids: range, length: int = 20) -> None:
        rows = [(i, f"{table}-{i}", f"S{i % 7}", i / 8, f"{i:x}." * (length // 3)) for i in ids]
        self.db.execute("BEGIN")
        self.db.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?, ?)", rows)
        self.db.execute("COMMIT")

    def copy(self, name: str) -> Path:
        with closing(sqlite3.connect(self.folder / name)) as target:
            self.db.backup(target)
        return self.folder / name


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    with closing(made.db):
        yield made


def root_of(source: Source, table: str) -> int:
    root: int = source.db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
    return root


@contextmanager
def whatever_the_share() -> Iterator[None]:
    """Give ranges however many leaves changed."""
    with patch.object(sqlite_pages, "_WORTHWHILE", 1.0):
        yield


def ranges_of(before: Path | Pages | None, after: Path, table: str = "trades") -> Ranges:
    known = digests(before) if isinstance(before, Path) else before
    # As a later run finds it.
    known = known and Pages.of(known.parts())
    with closing(sqlite3.connect(after)) as connection:
        return changed_ranges(after, connection, table, known, digests(after))


def rows(path: Path, table: str) -> dict[int, str]:
    """By rowid, as text that tells 1 from 1.0."""
    with closing(sqlite3.connect(path)) as connection:
        return {row[0]: repr(row) for row in connection.execute(f"SELECT * FROM {table}")}


def covered(ranges: Ranges, rowid: int) -> bool:
    return ranges is None or any(lower <= rowid <= upper for lower, upper in ranges)


def missed(before: Path, after: Path, table: str, ranges: Ranges) -> list[int]:
    """The rowids that were changed, inserted or deleted, and lie in no range."""
    old, new = rows(before, table), rows(after, table)
    return [i for i in old.keys() | new.keys() if old.get(i) != new.get(i) and not covered(ranges, i)]


def taken(path: Path, ranges: Ranges, table: str = "trades") -> int:
    return sum(covered(ranges, i) for i in rows(path, table))


def apply(source: Source, step: tuple[str, str, int, int, int]) -> None:
    what, table, first, span, length = step
    where = f"WHERE id BETWEEN {first} AND {first + span}"
    if what == "insert":
        source.insert(table, range(first, first + span), length)
    elif what == "append":
        (last,) = source.db.execute(f"SELECT coalesce(max(id), 0) FROM {table} WHERE id < 1000000").fetchone()
        source.insert(table, range(last + 1, last + 1 + span), length)
    elif what == "outermost":
        source.insert(table, range(-(1 << 63), -(1 << 63) + 2), length)
        source.insert(table, range((1 << 63) - 1, 1 << 63), length)
    elif what == "take over":  # Replaces its own row and, by the unique text, another one.
        values = (first, f"{table}-{first + span}", "R", None, "r" * length)
        source.db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?, ?)", values)
    else:
        statement = {
            "number": f"UPDATE {table} SET pnl = coalesce(pnl, 0) + 1 {where}",
            "indexed": f"UPDATE {table} SET symbol = symbol || 'x' {where}",
            "text": f"UPDATE {table} SET note = '{'t' * length}' {where}",
            "tail": f"UPDATE {table} SET note = substr(note, 1, length(note) - 1) || '!' {where}",
            "key": f"UPDATE OR REPLACE {table} SET id = id + {span} {where}",
            "delete": f"DELETE FROM {table} {where}",
            "clear": f"DELETE FROM {table}",
        }
        source.db.execute(statement[what])


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["insert", "append", "outermost", "number", "indexed", "text", "tail", "key", "delete", "clear"]
            + ["take over", "tail", "delete"]
        ),
        st.sampled_from(TABLES),
        st.integers(1, 300),
        st.integers(1, 80),
        st.sampled_from([0, 30, 400, 1500, 6000]),
    ),
    max_size=6,
)


@settings(max_examples=120)
@given(
    steps,
    steps,
    st.sampled_from([512, 1024, 4096]),
    st.sampled_from(["wal", "delete"]),
    st.sampled_from(["none", "full"]),
)
def test_no_row_is_missed(
    first: list[tuple[str, str, int, int, int]],
    second: list[tuple[str, str, int, int, int]],
    page_size: int,
    journal: str,
    vacuum: str,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Source(Path(folder), page_size, journal, vacuum)
        with closing(source.db):
            for table in TABLES:
                source.insert(table, range(1, 200))
            for step in first:
                apply(source, step)
            before = source.copy("before.db")
            for step in second:
                apply(source, step)
            after = source.copy("after.db")
        # Backwards it is a backup restored over the file.
        for one, other in ((before, after), (after, before)):
            for table in TABLES:
                with whatever_the_share():
                    ranges = ranges_of(one, other, table)
                assert ranges is not None
                assert not missed(one, other, table, ranges)
                assert all(a[1] + 1 < b[0] for a, b in pairwise(ranges))


def test_an_unchanged_file_has_no_ranges(source: Source) -> None:
    source.insert("trades", range(1, 1000), 400)
    before = source.copy("before.db")
    assert ranges_of(before, before) == []
    source.insert("events", range(1, 50), 20_000)
    assert ranges_of(before, source.copy("after.db")) == []


def test_few_changes_in_a_large_table_are_few_rows(source: Source) -> None:
    source.insert("trades", range(1, 5001), 60)
    before = source.copy("before.db")
    source.db.execute("UPDATE trades SET pnl = -1 WHERE id IN (17, 2500, 4200)")
    after = source.copy("after.db")
    ranges = ranges_of(before, after)
    assert ranges is not None
    assert not missed(before, after, "trades", ranges)
    assert taken(after, ranges) < 300

    source.insert("trades", range(5001, 5051), 60)
    appended = source.copy("appended.db")
    assert not missed(after, appended, "trades", ranges_of(after, appended))
    assert taken(appended, ranges_of(after, appended)) < 200


def test_deleted_rows_are_told_even_where_whole_pages_went(source: Source) -> None:
    source.insert("trades", range(1, 5001), 60)
    before = source.copy("before.db")
    source.db.execute("DELETE FROM trades WHERE id BETWEEN 1000 AND 2000")
    after = source.copy("after.db")
    ranges = ranges_of(before, after)
    assert ranges is not None
    assert not missed(before, after, "trades", ranges)
    assert taken(after, ranges) < 300


def test_a_page_that_had_the_bytes_but_not_the_table_is_new(source: Source) -> None:
    source.insert("trades", range(1, 5001), 60)
    full = source.copy("full.db")
    # As after DELETE, before the file is restored: the last leaves are there, but out of the table.
    cut = bytearray(full.read_bytes())
    start = (root_of(source, "trades") - 1) * 4096
    (cells,) = struct.unpack_from(">H", cut, start + 3)
    (last,) = struct.unpack_from(">H", cut, start + 12 + 2 * (cells - 10))
    struct.pack_into(">H", cut, start + 3, cells - 10)
    cut[start + 8 : start + 12] = cut[start + last : start + last + 4]
    before = source.folder / "cut.db"
    before.write_bytes(cut)
    assert 4000 < len(rows(before, "trades")) < 5000
    for one, other in ((before, full), (full, before)):
        ranges = ranges_of(one, other)
        assert ranges is not None
        assert not missed(one, other, "trades", ranges)
        assert taken(other, ranges) < 1000


def test_a_cleared_and_restored_table_is_all_new(source: Source) -> None:
    source.insert("trades", range(1, 2000), 60)
    full = source.copy("full.db")
    source.db.execute("DELETE FROM trades")
    cleared = source.copy("cleared.db")
    with whatever_the_share():
        ranges = ranges_of(cleared, full)
    assert ranges is not None
    assert not missed(cleared, full, "trades", ranges)


# The longer one leaves only the least on its leaf.
@pytest.mark.parametrize("length", [20_000, 20_500])
def test_a_change_in_the_tail_of_a_long_text_is_seen(source: Source, length: int) -> None:
    source.insert("trades", range(1, 3001), 60)
    source.db.execute("UPDATE trades SET note = ? WHERE id IN (700, 1500, 2300)", ("n" * length,))
    before = source.copy("before.db")
    source.db.execute("UPDATE trades SET note = ? WHERE id = 1500", ("n" * (length - 1) + "!",))
    assert ranges_of(before, source.copy("after.db")) == [(1500, 1500)]


def test_long_texts_of_another_table_cost_no_read_of_this_one(source: Source) -> None:
    source.insert("trades", range(1, 3001), 60)
    before = source.copy("before.db")
    source.insert("events", range(1, 10), 20_000)
    source.db.execute("DELETE FROM events WHERE id < 5")
    after = source.copy("after.db")
    with patch.object(sqlite_pages, "_chains", wraps=sqlite_pages._chains) as read:
        assert ranges_of(before, after) == []
    assert 0 < read.call_count < 5


def test_a_rewritten_table_is_taken_whole(source: Source) -> None:
    source.insert("trades", range(1, 2000), 60)
    source.db.execute("DELETE FROM trades WHERE id % 3 = 0")
    before = source.copy("before.db")
    source.db.execute("UPDATE trades SET pnl = 0 WHERE id > 800")
    assert ranges_of(before, source.copy("updated.db")) is None
    source.db.execute("VACUUM")
    assert ranges_of(before, source.copy("vacuumed.db")) is None


def test_a_leaf_is_for_the_rowids_after_those_of_the_leaf_before() -> None:
    pages = Pages(b"", owners=array("I", [0, 9, 9, 9, 4]), uppers=array("q", [0, 30, 20, 10, 25]))
    assert pages.intervals(9, [1]) == [(21, 30)]
    assert pages.intervals(9, [1, 3]) == [(-(1 << 63), 10), (21, 30)]
    assert pages.intervals(9, []) == []


@pytest.mark.parametrize("rows", ["id > 19000", "true"])
def test_memory_is_a_few_bytes_a_page(rows: str, tmp_path: Path) -> None:
    source = Source(tmp_path, page_size=512)
    with closing(source.db):
        source.insert("trades", range(1, 20_000), 240)
        before = source.copy("before.db")
        source.db.execute(f"UPDATE trades SET pnl = -1 WHERE {rows}")
        after = source.copy("after.db")
    with patch.object(sqlite_pages, "_CHUNK", 1 << 14), patch.object(sqlite_pages, "_PART", 1 << 8):
        tracemalloc.start()
        ranges_of(before, after)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # What is known of a page takes 20, and there are two copies.
    assert most < 64 * (after.stat().st_size // 512)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE trades ADD COLUMN mode TEXT DEFAULT 'live'",
        "ALTER TABLE trades RENAME COLUMN note TO remark",
        "DROP TABLE trades; CREATE TABLE trades (id INTEGER PRIMARY KEY)",
        "ALTER TABLE trades RENAME TO t; ALTER TABLE events RENAME TO trades; ALTER TABLE t RENAME TO events",
        "PRAGMA page_size = 1024; VACUUM",
    ],
)
def test_another_schema_or_page_size_is_everything(source: Source, change: str) -> None:
    source.insert("trades", range(1, 500))
    before = source.copy("before.db")
    source.db.executescript(change)
    assert ranges_of(before, source.copy("after.db")) is None


def test_another_schema_format_is_everything(source: Source) -> None:
    source.insert("trades", range(1, 500))
    copy = source.copy("copy.db")
    known = digests(copy)
    with copy.open("r+b") as stream:
        stream.seek(47)
        stream.write(b"\1")
    assert ranges_of(known, copy) is None


def test_an_index_more_changes_no_row(source: Source) -> None:
    source.insert("trades", range(1, 500))
    before = source.copy("before.db")
    source.db.execute("CREATE INDEX late ON trades (pnl, note)")
    source.db.execute("ANALYZE trades")
    source.db.execute("DROP TABLE sqlite_stat1")
    assert ranges_of(before, source.copy("after.db")) == []


def test_what_is_no_table_with_rowids_cannot_be_told(source: Source) -> None:
    source.db.executescript("CREATE TABLE plain (id TEXT PRIMARY KEY) WITHOUT ROWID; CREATE VIEW seen AS SELECT 1")
    copy = source.copy("copy.db")
    for table in ("plain", "seen", "idx_symbol", "absent"):
        assert ranges_of(copy, copy, table) is None
    assert ranges_of(copy, copy, "TRADES") == []


def test_the_first_and_the_last_row_of_a_table(source: Source) -> None:
    empty = source.copy("empty.db")
    assert ranges_of(empty, empty) == []
    source.insert("trades", range(1, 4))
    small = source.copy("small.db")
    assert ranges_of(small, small) == []
    for before, after in ((empty, small), (small, empty)):
        assert ranges_of(before, after) is None
        with whatever_the_share():
            assert not missed(before, after, "trades", ranges_of(before, after))


def test_processes_share_the_work(source: Source) -> None:
    # More than a chunk for each, and a part of one.
    source.insert("trades", range(1, 40_000))
    copy = source.copy("copy.db")
    assert copy.stat().st_size > 3 << 20
    alone, shared = digests(copy), digests(copy, 3)
    assert alone
    assert shared
    assert list(alone.parts()) == list(shared.parts())


def test_digests_of_another_kind_tell_nothing(source: Source) -> None:
    source.insert("trades", range(1, 500))
    copy = source.copy("copy.db")
    known = digests(copy)
    assert known
    first, part = known.parts()
    assert len(part) == 20 * (copy.stat().st_size // 4096 + 1)
    assert ranges_of(Pages.of([first, part]), copy) == []
    # The last: a part that was lost, and one too many.
    for parts in (
        [],
        [b"", part],
        [first, part[:-1]],
        [first + b"x", part],
        [part, first],
        [first],
        [first, part, part],
    ):
        assert Pages.of(parts) is None
    assert Pages.of([first.replace(b"sqpages2", b"sqpages1"), part]) is None
    # A byte of the digest of the definitions.
    other = Pages.of([first[:43] + bytes([first[43] ^ 1]) + first[44:], part])
    assert other
    assert ranges_of(other, copy) is None
    assert ranges_of(None, copy) is None


def test_many_pages_are_stored_in_parts(source: Source) -> None:
    source.insert("trades", range(1, 5000))
    before = source.copy("before.db")
    source.db.execute("UPDATE trades SET pnl = 1 WHERE id IN (3, 4900)")
    with patch.object(sqlite_pages, "_PART", 7):
        ranges = ranges_of(before, source.copy("after.db"))
    assert ranges == ranges_of(before, source.folder / "after.db")
    assert covered(ranges, 3)
    assert covered(ranges, 4900)


def test_a_copy_in_wal_mode_stays_alone_in_its_folder(tmp_path: Path) -> None:
    source = Source(tmp_path, journal="wal")
    with closing(source.db):
        (tmp_path / "copies #1?").mkdir()
        copy = source.copy("copies #1?/copy.db")
    assert digests(copy)
    assert list(copy.parent.iterdir()) == [copy]


def pointer(page: int, at: int, value: int) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into(">I", data, (page - 1) * 4096 + at, value)


def test_what_is_not_a_whole_database_has_no_digests(source: Source, tmp_path: Path) -> None:
    source.insert("trades", range(1, 2000), 60)
    root = root_of(source, "trades")
    copy = source.copy("copy.db")
    whole = copy.read_bytes()
    start = (root - 1) * 4096
    (cell,) = struct.unpack_from(">H", whole, start + 12)
    (child,) = struct.unpack_from(">I", whole, start + cell)
    broken = tmp_path / "broken.db"
    for part in (b"", b"text", whole[:50], whole[:-1], whole[:100] + b"\0" * 8092):
        broken.write_bytes(part)
        assert digests(broken) is None
    # The right-most pointer of the table: to itself, to no page, to a leaf that is there already.
    for value in (root, 0, 1, 1 << 30, child):
        data = bytearray(whole)
        pointer(root, 8, value)(data)
        broken.write_bytes(data)
        assert digests(broken) is None
        assert ranges_of(copy, broken) is None
    # Its first two keys in the wrong order.
    data = bytearray(whole)
    data[start + 12 : start + 16] = data[start + 14 : start + 16] + data[start + 12 : start + 14]
    broken.write_bytes(data)
    assert digests(broken) is None
    with pytest.raises(FileNotFoundError):
        digests(tmp_path / "absent.db")


def test_broken_chains_and_freelists_cannot_be_told(source: Source, tmp_path: Path) -> None:
    source.insert("trades", range(1, 500))
    source.db.execute("UPDATE trades SET note = ? WHERE id = 100", ("n" * 20_000,))
    source.insert("events", range(1, 500))
    source.db.execute("DELETE FROM events")
    copy = source.copy("copy.db")
    whole = copy.read_bytes()
    chain = next(p for p in range(2, len(whole) // 4096) if whole[(p - 1) * 4096 :][4:4096] == b"n" * 4092)
    (trunk,) = struct.unpack_from(">I", whole, 32)
    broken = tmp_path / "broken.db"
    for damage in (pointer(chain, 0, 1 << 24), pointer(chain, 0, 0)):
        data = bytearray(whole)
        damage(data)
        broken.write_bytes(data)
        assert ranges_of(copy, broken) is None
    for damage in (pointer(trunk, 0, trunk), pointer(trunk, 4, 1 << 31)):
        data = bytearray(whole)
        pointer(chain, 4000, 0)(data)
        broken.write_bytes(data)
        assert ranges_of(copy, broken) == [(100, 100)]
        damage(data)
        broken.write_bytes(data)
        assert ranges_of(copy, broken) is None


def test_ranges_that_touch_or_nest_are_one() -> None:
    assert sqlite_pages._merged([(14, 15), (1, 9), (10, 12), (3, 4)]) == [(1, 12), (14, 15)]
