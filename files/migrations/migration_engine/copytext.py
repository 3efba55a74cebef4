"""Rows as the text format of PostgreSQL's COPY, streamed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator


def escape(field: str) -> str:
    """Escape what COPY would read as syntax."""
    if "\\" in field:
        field = field.replace("\\", "\\\\")
    if field.isprintable():
        return field
    return field.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


class ChunkStream(io.RawIOBase):
    """A readable file over chunks of COPY text: memory stays flat."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._chunk = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not self._chunk:
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._chunk = memoryview(chunk)
        part = bytes(self._chunk[:size] if size >= 0 else self._chunk)
        self._chunk = self._chunk[len(part) :]
        return part
