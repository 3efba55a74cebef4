"""Rows as the text format of PostgreSQL's COPY, streamed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence


def line(fields: Sequence[str | None]) -> str:
    """One row; None is NULL."""
    return "\t".join(["\\N" if f is None else escape(f) for f in fields]) + "\n"


def escape(field: str) -> str:
    """Escape what COPY would read as syntax."""
    if "\\" in field:
        field = field.replace("\\", "\\\\")
    if field.isprintable():
        return field
    return field.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


class LineStream(io.RawIOBase):
    """A readable file over an iterator of lines: memory stays flat."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines: Iterator[str] = iter(lines)
        self._pending = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts = [self._pending]
        held = len(self._pending)
        for text in self._lines:
            data = text.encode("utf-8")
            parts.append(data)
            held += len(data)
            if 0 <= size <= held:
                break
        data = b"".join(parts)
        if size < 0:
            self._pending = b""
            return data
        self._pending = data[size:]
        return data[:size]
