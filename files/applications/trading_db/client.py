"""The client that bots use: everything is scoped by the bot's id."""

from __future__ import annotations

from types import TracebackType

from .records import Records
from .settings import Settings
from .trades import Trades


class TradingDB(Trades, Records):
    """One bot's way to trading_db; one instance a process, used by any number of threads.

    A write is stored durably beside the bot before the call returns and is
    delivered in order, exactly once. The call waits for the delivery for at most
    TRADING_DB_WAIT_SECONDS; it returns either way, and raises Refused if the
    database has refused the write by then. A read waits until all that was
    written before it is in the database, or raises Unavailable: it is never stale.

    Amounts may be Decimal, int, float (by its shortest repr) or the exchange's
    decimal text. Times are aware datetimes; None means now. Rows come as dicts
    with Decimal amounts and UTC times. `**columns` are further columns of the
    table by their names.
    """

    @classmethod
    def from_environment(cls) -> TradingDB:
        """The client that the environment describes (see Settings). Claims the bot's instance.

        Raises Unavailable if the database does not answer within TRADING_DB_START_SECONDS,
        SecondInstance if another instance of the bot is alive.
        """
        return cls(Settings.from_environment())

    def __enter__(self) -> TradingDB:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
