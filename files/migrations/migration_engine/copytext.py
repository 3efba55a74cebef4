"""Rows as the text format of PostgreSQL's COPY, streamed."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import psycopg2
import psycopg2.extensions

_BUFFER = 1 << 18


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
        self._chunk = b""
        self._at = 0
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while self._at == len(self._chunk):
            try:
                chunk = next(self._chunks, None)
            except Exception as error:
                self.failure = error
                raise
            if chunk is None:
                return b""
            self._chunk, self._at = chunk, 0
        end = len(self._chunk) if size < 0 else self._at + size
        # A slice of everything is no copy.
        part = self._chunk[self._at : end]
        self._at += len(part)
        return part


def copy_from(cursor: psycopg2.extensions.cursor, into: str, chunks: Iterable[bytes]) -> None:
    """COPY chunks of text into a table, given with its columns. Raises what they raise."""
    stream = ChunkStream(chunks)
    try:
        cursor.copy_expert(f"COPY {into} FROM STDIN", stream, _BUFFER)
    except psycopg2.Error:
        # psycopg2 tells it as an error of the server.
        if stream.failure is not None:
            raise stream.failure from None
        raise
