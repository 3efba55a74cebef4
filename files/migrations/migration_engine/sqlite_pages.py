"""Which rows of a SQLite file may differ from an earlier copy of it, told by its pages.

The copies are whole and quiescent: no WAL beside them, no writer. The format is that of
https://www.sqlite.org/fileformat2.html.

Why no row escapes: with the same table definitions a row is what its leaf page and the overflow pages
behind it hold. A leaf counts as unchanged only if it has the same bytes and was a leaf of the same table,
because a page that was free, or another table's, may hold those bytes already (DELETE, then a restored
file). An unchanged leaf therefore held the same rows, which began their overflow chains on the same pages;
such a row differs only if a page of its chain does. Rows that are gone were on a leaf that changed or left
the table; the earlier copy says which rowids that leaf was for.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from itertools import compress
from operator import ne, or_
from pathlib import Path

from . import parallel

DIGEST_BYTES = 8
# So much is read at once: whole pages of any size.
_CHUNK = 1 << 20
# Magic and version, page size, digest of the definitions: the layout. Then the number of places in each array.
_PREFIX = struct.Struct("=8sI32s")
_PLACES = struct.Struct("=I")
_MAGIC = b"sqpages2"
# So many pages are stored as one part.
_PART = 1 << 15
_INTERIOR, _LEAF = 0x05, 0x0D
_LOWEST, _HIGHEST = -(1 << 63), (1 << 63) - 1
# Up to here an overflow page, which begins with the number of the next, begins with 0 or 1, and no b-tree page does.
_MOST_PAGES = 1 << 25
# A larger share of changed leaves is a rewritten table: reading all of it is cheaper.
_WORTHWHILE = 0.5
_UNEXPECTED = (ValueError, IndexError, struct.error, sqlite3.DatabaseError)


@dataclass(frozen=True, eq=False)
class Pages:
    """What is known of the pages of a copy, for a later one to be compared with: 20 bytes a page.

    `layout` is what must be the same in both. The arrays are indexed by page number, 0 is no page: digests; the
    root of the table whose leaf a page is, 0 for all other pages; the largest rowid that such a leaf is for.
    """

    layout: bytes
    digests: array[int] = field(default_factory=lambda: array("Q"))
    owners: array[int] = field(default_factory=lambda: array("I"))
    uppers: array[int] = field(default_factory=lambda: array("q"))

    @classmethod
    def of(cls, parts: Iterable[bytes | memoryview]) -> Pages | None:
        """From what parts() gave; None where that is something else, or nothing."""
        stored = iter(parts)
        first = bytes(next(stored, b""))
        if len(first) != _PREFIX.size + _PLACES.size or not first.startswith(_MAGIC):
            return None
        found = cls(first[: _PREFIX.size])
        (places,) = _PLACES.unpack_from(first, _PREFIX.size)
        for part in stored:
            pages, rest = divmod(len(part), sum(values.itemsize for values in found._arrays))
            if rest:
                return None
            at = 0
            for values in found._arrays:
                values.frombytes(part[at : at + pages * values.itemsize])
                at += pages * values.itemsize
        return found if len(found.owners) == places else None

    def parts(self) -> Iterator[bytes]:
        """All of it, in parts of less than a megabyte."""
        yield self.layout + _PLACES.pack(len(self.owners))
        for at in range(0, len(self.owners), _PART):
            yield b"".join(values[at : at + _PART].tobytes() for values in self._arrays)

    @property
    def _arrays(self) -> tuple[array[int], ...]:
        return self.digests, self.owners, self.uppers

    @property
    def page_size(self) -> int:
        size: int = _PREFIX.unpack(self.layout)[1]
        return size

    def leaves(self, root: int) -> Iterator[int]:
        """The leaf pages of a table."""
        return compress(range(len(self.owners)), map(root.__eq__, self.owners))

    def owns(self, root: int, page: int) -> bool:
        """Whether there is such a page, and it is a leaf of the table."""
        return page < len(self.owners) and self.owners[page] == root

    def intervals(self, root: int, leaves: Iterable[int]) -> list[tuple[int, int]]:
        """The inclusive ranges of rowids that some leaves of a table are for, sorted."""
        ends = sorted(map(self.uppers.__getitem__, leaves))
        # Where the leaf before each ends, found without a list of all.
        lowers = [_LOWEST - 1] * (len(ends) + 1)
        for upper in map(self.uppers.__getitem__, self.leaves(root) if ends else ()):
            place = bisect_right(ends, upper)
            if upper > lowers[place]:
                lowers[place] = upper
        return [(lower + 1, upper) for lower, upper in zip(lowers, ends, strict=False)]


def digests(path: Path, processes: int = 1) -> Pages | None:
    """What changed_ranges compares. None where the file is not as expected. Raises OSError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            header = stream.read(100)
            size = _page_size(header)
            total = os.fstat(stream.fileno()).st_size

            def share(number: int, of: int) -> Iterator[tuple[bytes, bytes]]:
                return (_page_sums(stream.fileno(), at, size) for at in range(number * _CHUNK, total, of * _CHUNK))

            roots, definitions = _tables(path, header)
            pages = Pages(_PREFIX.pack(_MAGIC, size, definitions))
            # Index 0 is no page.
            kinds = bytearray(1)
            pages.digests.append(0)
            for some_digests, some_kinds in share(0, 1) if processes == 1 else parallel.shares(share, processes):
                pages.digests.frombytes(some_digests)
                kinds += some_kinds
            count = len(kinds) - 1
            if total != count * size or count >= _MOST_PAGES:
                return None
            for values in (pages.owners, pages.uppers):
                values.frombytes(bytes(values.itemsize * len(kinds)))
            file = _File(stream.fileno(), size, count)
            for root in roots:
                # WITHOUT ROWID tables are index b-trees.
                if kinds[root] in (_INTERIOR, _LEAF):
                    for leaf, upper in _leaves(file, kinds, root):
                        if pages.owners[leaf]:
                            return None
                        pages.owners[leaf], pages.uppers[leaf] = root, upper
    except _UNEXPECTED:
        return None
    return pages


def changed_ranges(
    path: Path, connection: sqlite3.Connection, table: str, before: Pages | None, now: Pages | None
) -> list[tuple[int, int]] | None:
    """Inclusive rowid ranges, sorted and apart, with every row that was changed, inserted or deleted.

    `now` is digests(path), `before` that of the earlier copy, `connection` has `path` open. None: cannot be
    told, or not worth it; take every row. Raises OSError where `path` cannot be read.
    """
    found = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE type = 'table' AND name = ? COLLATE NOCASE", (table,)
    ).fetchone()
    if before is None or now is None or found is None or before.layout != now.layout:
        return None
    root = found[0]
    changed, unlike = _compared(before, now)
    moved = array("I", (leaf for leaf in _marked(unlike) if now.owns(root, leaf)))
    if root not in now.owners or len(moved) > _WORTHWHILE * now.owners.count(root):
        return None
    gone = (leaf for leaf in _marked(unlike) if before.owns(root, leaf))
    ranges = [*now.intervals(root, moved), *before.intervals(root, gone)]
    try:
        with path.open("rb") as stream:
            file = _File(stream.fileno(), now.page_size, len(now.digests) - 1)
            same = (leaf for leaf in now.leaves(root) if not unlike[leaf])
            ranges += [(rowid, rowid) for rowid in _spilled(file, now, changed[: file.count + 1], same)]
    except _UNEXPECTED:
        return None
    return _merged(ranges)


def _page_sums(descriptor: int, start: int, size: int) -> tuple[bytes, bytes]:
    """The digests of the pages of a chunk, and their first bytes."""
    chunk = os.pread(descriptor, _CHUNK, start)
    view = memoryview(chunk)
    sums = [sha256(view[at : at + size]).digest()[:DIGEST_BYTES] for at in range(0, len(chunk), size)]
    return b"".join(sums), chunk[::size]


@lru_cache(1)
def _compared(before: Pages, now: Pages) -> tuple[bytes, bytes]:
    """Which pages have other bytes, and which have those or another owner, marked by 1; the same for every table."""
    changed = _unequal(before.digests, now.digests)
    return changed, bytes(map(or_, changed, _unequal(before.owners, now.owners)))


def _unequal(earlier: array[int], later: array[int]) -> bytes:
    """The places at which two arrays differ, and those that one of them lacks, marked by 1."""
    return bytes(map(ne, earlier, later)) + b"\1" * abs(len(earlier) - len(later))


def _marked(places: bytes) -> Iterator[int]:
    """The numbers of the marked ones."""
    return compress(range(len(places)), places)


@dataclass(frozen=True)
class _File:
    descriptor: int
    page_size: int
    count: int

    def page(self, number: int) -> bytes:
        """One page. Raises ValueError where there is none of that number."""
        if not 1 <= number <= self.count:
            raise ValueError(f"page {number} of {self.count}")
        data = os.pread(self.descriptor, self.page_size, (number - 1) * self.page_size)
        if len(data) != self.page_size:
            raise ValueError(f"page {number} is cut off")
        return data


def _page_size(header: bytes) -> int:
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise ValueError("not a database")
    size: int = struct.unpack_from(">H", header, 16)[0]
    size = 65536 if size == 1 else size
    if size < 512 or size & (size - 1):
        raise ValueError(f"page size {size}")
    return size


def _tables(path: Path, header: bytes) -> tuple[list[int], bytes]:
    """The roots of the tables, and a digest of all that gives the bytes of their rows a meaning."""
    # Immutable: opening must not make a WAL beside the copy.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        connection.text_factory = bytes
        tables = connection.execute(
            "SELECT rootpage, name, sql FROM sqlite_master WHERE type = 'table' ORDER BY rootpage, name"
        ).fetchall()
    # Reserved bytes a page, schema format, text encoding.
    meaning = header[20:21], header[44:48], header[56:60], tables
    # A virtual table has no root.
    return [root for root, *_ in tables if root], sha256(repr(meaning).encode()).digest()


def _leaves(file: _File, kinds: bytearray, root: int) -> Iterator[tuple[int, int]]:
    """Each leaf page of a table with the largest rowid it may hold; only interior pages are read."""
    interior: set[int] = set()
    todo = [(root, _LOWEST - 1, _HIGHEST)]
    while todo:
        number, lower, upper = todo.pop()
        # Keys ascend, or leaves would be given each other's ranges.
        if lower >= upper or kinds[number] not in (_INTERIOR, _LEAF) or number in interior:
            raise ValueError(f"page {number} is no part of the table at {root}")
        if kinds[number] == _LEAF:
            yield number, upper
            continue
        interior.add(number)
        page = file.page(number)
        cells, right = struct.unpack_from(">3xH3xI", page)
        for start in struct.unpack_from(f">{cells}H", page, 12):
            key, _ = _varint(page, start + 4)
            todo.append((int.from_bytes(page[start : start + 4], "big"), lower, key))
            lower = key
        todo.append((right, lower, upper))


def _spilled(file: _File, pages: Pages, changed: bytes, same: Iterable[int]) -> Iterator[int]:
    """The rowids on the unchanged leaves `same` of a table whose overflow pages changed."""
    first = file.page(1)
    usable = file.page_size - first[20]
    suspects = {n for n in _marked(changed) if n > 1 and not pages.owners[n] and file.page(n)[0] <= 1}
    if suspects:
        suspects -= _free(file, first)
    # Most overflow pages change with the leaf before them, of this table or of another.
    for leaf in _marked(changed) if suspects else ():
        if pages.owners[leaf]:
            for _, chain in _chains(file, leaf, usable):
                suspects.difference_update(chain)
    # What is left may be an index's or a pointer map: then this finds nothing, at the cost of a read of the table.
    for leaf in same:
        if not suspects:
            return
        for rowid, chain in _chains(file, leaf, usable):
            if not suspects.isdisjoint(chain):
                suspects.difference_update(chain)
                yield rowid


def _free(file: _File, first: bytes) -> set[int]:
    """The pages of the freelist: trunks, and the pages they list."""
    free: set[int] = set()
    trunk: int = struct.unpack_from(">I", first, 32)[0]
    while trunk:
        if trunk in free:
            raise ValueError("the freelist is a ring")
        page = file.page(trunk)
        following, count = struct.unpack_from(">II", page)
        free.add(trunk)
        free.update(struct.unpack_from(f">{count}I", page, 8))
        trunk = following
    return free


def _chains(file: _File, leaf: int, usable: int) -> Iterator[tuple[int, list[int]]]:
    """(rowid, overflow pages) of each row of a leaf that does not fit on it."""
    page = file.page(leaf)
    most, least = usable - 35, (usable - 12) * 32 // 255 - 23
    (cells,) = struct.unpack_from(">H", page, 3)
    for start in struct.unpack_from(f">{cells}H", page, 8):
        size, at = _varint(page, start)
        if size <= most:
            continue
        rowid, at = _varint(page, at)
        local = least + (size - least) % (usable - 4)
        if local > most:
            local = least
        (number,) = struct.unpack_from(">I", page, at + local)
        chain: list[int] = []
        for _ in range(-((local - size) // (usable - 4))):
            chain.append(number)
            number = int.from_bytes(file.page(number)[:4], "big")
            if len(chain) > file.count:
                raise ValueError("an overflow chain is a ring")
        yield rowid, chain


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """A signed 64-bit integer of 1 to 9 bytes, and where the next field begins."""
    value = 0
    for end in range(at, at + 8):
        byte = page[end]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, end + 1
    value = value << 8 | page[at + 8]
    return (value - (1 << 64) if value > _HIGHEST else value), at + 9


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same rowids in as few ranges as possible, in order."""
    merged: list[tuple[int, int]] = []
    for lower, upper in sorted(ranges):
        if merged and lower <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(upper, merged[-1][1])
        else:
            merged.append((lower, upper))
    return merged
