"""What can go wrong. Each text says the cause and the remedy."""

from __future__ import annotations


class TradingDBError(Exception):
    """A call of the client did not do what it promises; whatever was acknowledged before is safe."""


class Unavailable(TradingDBError):
    """The database cannot be reached in time, and the answer needs it."""


class Refused(TradingDBError):
    """A value or a statement that will never be accepted; nothing of the write was stored."""


class SecondInstance(TradingDBError):
    """Another instance of the same bot is alive, or has taken over."""
