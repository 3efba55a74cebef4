"""Work on several cores, its results in order."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any, BinaryIO, TypeVar

from .errors import MigrationError

T = TypeVar("T")
MOST = 4
# The most that an account may have without privileges, unless it has many.
PIPE = 1 << 20
_HEADER = 8


class _Mark(Enum):
    END = 0


_END = _Mark.END
# What a child reads may be wrong, and what it raises then is the parent's to tell.
_FORWARDED = (MigrationError, sqlite3.DatabaseError)


def cores() -> int:
    """How many processes are worth starting."""
    return min(len(os.sched_getaffinity(0)), MOST)


def wide_pipe() -> tuple[int, int]:
    """A pipe that holds much, so that neither end waits for the other every few rows."""
    read_end, write_end = os.pipe()
    with suppress(OSError):
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE)
    return read_end, write_end


def shares(work: Callable[[int, int], Iterator[T]], processes: int) -> Generator[T, None, None]:
    """The results of work(0, n), work(1, n), ..., one of each in turn, each made by a process of its own.

    A child that cannot write waits, so that memory stays flat; it ends when its
    parent has. Raises what a child raised of _FORWARDED, and MigrationError where
    one dies.
    """
    with _children(work, processes) as pipes:
        waiting = list(pipes)
        while waiting:
            for pipe in list(waiting):
                message = _receive(pipe)
                if message is _END:
                    waiting.remove(pipe)
                else:
                    yield message


@contextmanager
def _children(work: Callable[[int, int], Iterator[object]], processes: int) -> Iterator[list[BinaryIO]]:
    """Context: children at work, and the pipes that they write to."""
    pipes: list[BinaryIO] = []
    children: list[int] = []
    try:
        for share in range(processes):
            read_end, write_end = wide_pipe()
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if not pid:
                os.close(read_end)
                for pipe in pipes:
                    pipe.close()
                _child(work, share, processes, write_end)
            os.close(write_end)
            pipes.append(os.fdopen(read_end, "rb"))
            children.append(pid)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for pid in children:
            os.waitpid(pid, 0)


def _child(work: Callable[[int, int], Iterator[object]], share: int, processes: int, write_end: int) -> None:
    """Send results until there are no more or nobody reads; never returns."""
    status = 1
    # Ctrl-C is the parent's to tell.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with os.fdopen(write_end, "wb") as stream:
            try:
                for result in work(share, processes):
                    _send(stream, result)
                _send(stream, _END)
            except _FORWARDED as error:
                _send(stream, error)
        status = 0
    except BrokenPipeError:
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit(): the parent's connections are not this process's to close.
        os._exit(status)


def _send(stream: BinaryIO, message: object) -> None:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    stream.write(len(data).to_bytes(_HEADER, "big"))
    stream.write(data)


def _receive(pipe: BinaryIO) -> Any:
    header = pipe.read(_HEADER)
    data = pipe.read(int.from_bytes(header, "big")) if len(header) == _HEADER else b""
    if not data:
        raise MigrationError("a process that converts rows ended early; see its message above. Nothing was changed.")
    message = pickle.loads(data)
    if isinstance(message, _FORWARDED):
        raise message
    return message
