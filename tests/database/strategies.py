"""Random legacy rows, awkward values included, for all tables of both sources."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

Row = dict[str, Any]
Rows = st.SearchStrategy[Row]

# Full hours, a gap and an overlap of half an hour, offsets off the hour, none at all.
ZONES = ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns", "Asia/Kathmandu"]
# Around the changes of the clocks of each zone, in its local time.
CHANGES = [
    *("2025-03-30 01:59:59.999999", "2025-03-30 02:00:00", "2025-03-30 02:30:00.5", "2025-03-30 03:00:00"),
    *("2025-10-26 01:59:59", "2025-10-26 02:00:00", "2025-10-26 02:59:59.999999", "2025-10-26 03:00:00"),
    *("2025-10-05 01:59:59", "2025-10-05 02:00:00", "2025-10-05 02:15:00.000001", "2025-10-05 02:30:00"),
    *("2025-04-06 01:29:59.999999", "2025-04-06 01:30:00", "2025-04-06 01:45:00", "2025-04-06 02:00:00"),
    *("2006-04-02 00:00:30", "2006-04-02 00:01:00", "2006-04-02 00:30:00", "2006-04-02 01:01:00"),
    *("2006-10-28 23:30:00", "2006-10-29 00:00:30", "2006-10-29 00:01:00", "2025-11-02 01:30:00"),
    *("1985-12-31 23:59:59", "1986-01-01 00:00:00", "1986-01-01 00:10:00", "1986-01-01 00:15:00"),
]
SANE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ESCAPED = st.sampled_from(
    ["", "\\N", "\\.", "NULL", "a\tb\nc\\d\r", 'say "no"', "Größe 📈", "\x01\x1f\x7f\u2028", "{}"]
)
TEXT = SANE | ESCAPED
ANY_TEXT = TEXT | st.just("zero\0byte")
PLACES = st.integers(-(10**12), 10**12)
REAL = (
    st.floats(-1e6, 1e6)
    | st.floats(allow_nan=False)
    # As many decimals as a column has, one more (a tie or not), two more.
    | st.builds(lambda units, places: units / 10**places, PLACES, st.sampled_from([2, 6, 7, 8, 9, 10]))
    | st.builds(lambda units: (10 * units + 5) / 10**9, st.integers(-(10**6), 10**6))
    | st.sampled_from([0.1 + 0.2, 1e-05, 1 / 3, 2.000000005, 0.000000015, -0.0, 5e-324, 1e12, 999999999999.99])
    | st.sampled_from([9999.9999999, 9999.9999994, 999999999998.5, 0.0001, 0.00009999, -0.0000004, 1e16, 1e22])
    | st.integers(-(10**9), 10**9)
)
AMOUNT = st.floats(0, 1e6) | REAL.map(abs)
NO_NUMBER = st.sampled_from(["text", b"blob", "", float("inf"), "12,5"])
COUNT = st.integers(0, 10**7) | st.floats(0, 1e7) | st.sampled_from([2**31 - 1, 2**31, -1, 2.5, 3.5, 2**62, "many"])
STAMP = st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1))
LOCAL = (
    STAMP.map(str)
    | STAMP.map(lambda d: str(d.replace(microsecond=d.microsecond // 1000 * 1000)))
    | st.sampled_from(CHANGES)
    | st.sampled_from(
        ["2025-06-01T12:00:00.5+02:00", "2025-06-01 12:00:00Z", "2025-06-01 12:00", "2025-06-01 12:00:00.123456789"]
    )
)
# The bounds of what a datetime holds, and what is no time at all.
ODD_TIME = st.sampled_from(
    [
        "9999-12-31 23:59:59",
        "9999-12-31 23:59:59Z",
        "0001-01-01 00:00:00",
        "0001-01-01 00:00:00+00:00",
        "1883-11-18 12:03:58",
    ]
    + [
        "2025-02-30 10:00:00",
        "2025-06-01",
        "yesterday",
        "",
        "2025-06-01 24:00:00",
        "2025-06-01 12:00:60",
        b"2025",
        1748772000,
    ]
)
UTC_TIME = st.none() | STAMP.map(lambda d: str(d.replace(microsecond=0)))
SIDE = st.sampled_from(["Buy", "SELL", "long", "Short", "buy", "sell", "Buy", "Sell"])
LEVEL = st.sampled_from(["INFO", "warning", "Error", "warn", "FATAL", "critical", "debug"])
JSON = st.recursive(
    st.none() | st.floats() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=5,
)
DETAILS = (
    ANY_TEXT
    | JSON.map(json.dumps)
    | JSON.map(lambda value: json.dumps(value, ensure_ascii=False))
    | st.sampled_from(['{"a": 1, "a": 2.50}', "1e400", "[1e-400]", '"\\u0000"', '"\\ud800"', "1e99999"])
)


def _row(**columns: st.SearchStrategy[Any]) -> Rows:
    return st.fixed_dictionaries(columns)


def _spoiled(rows: Rows, **bad: st.SearchStrategy[Any]) -> Rows:
    """Now and then a value that has no place in the unified table."""
    spoil = st.sampled_from(sorted(bad)).flatmap(lambda name: bad[name].map(lambda value: {name: value}))
    return st.tuples(rows, st.integers(0, 7).flatmap(lambda n: spoil if n == 7 else st.just({}))).map(
        lambda t: t[0] | t[1]
    )


def _maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


MOMENTUM: dict[str, Rows] = {
    "trades": _spoiled(
        _row(
            trade_id=_maybe(st.integers(0, 10**12).map(str) | SANE),
            mode=st.sampled_from(["live", "demo", "Größe"]),
            symbol=TEXT,
            side=SIDE,
            entry_time=LOCAL,
            entry_price=AMOUNT,
            exit_time=_maybe(LOCAL),
            exit_price=_maybe(REAL),
            quantity=AMOUNT,
            position_size_usd=REAL,
            stop_loss=_maybe(REAL),
            take_profit=_maybe(REAL),
            pnl_usd=_maybe(REAL),
            pnl_pct=_maybe(st.floats(-200, 200) | REAL),
            exit_reason=_maybe(TEXT),
            holding_time_seconds=_maybe(st.integers(0, 10**7) | st.floats(0, 1e7)),
            signal_strength=_maybe(st.floats(0, 1)),
            created_at=UTC_TIME,
        ),
        trade_id=st.sampled_from(["x" * 86, "x" * 90, "a\0b", b"blob"]),
        mode=st.sampled_from(["a\0b", b"\xff"]),
        symbol=st.sampled_from(["zero\0byte", b"blob"]),
        side=st.sampled_from(["sideways", "", b"buy"]),
        entry_time=ODD_TIME,
        exit_time=ODD_TIME,
        created_at=ODD_TIME,
        entry_price=NO_NUMBER | REAL,
        position_size_usd=NO_NUMBER,
        pnl_pct=NO_NUMBER,
        holding_time_seconds=COUNT,
        exit_reason=ANY_TEXT,
    ),
    "daily_snapshots": _spoiled(
        _row(
            date=st.dates(date(2000, 1, 1), date(2030, 1, 1)).map(str),
            mode=st.sampled_from(["live", "demo"]),
            starting_equity=_maybe(REAL),
            ending_equity=_maybe(REAL),
            daily_pnl=_maybe(REAL),
            daily_pnl_pct=_maybe(st.floats(-200, 200)),
            trades_count=_maybe(st.integers(0, 1000)),
            wins_count=_maybe(st.integers(0, 1000) | st.floats(0, 1000)),
            losses_count=_maybe(st.integers(0, 1000)),
            open_positions=_maybe(st.integers(-5, 5) | st.floats(0, 5) | TEXT),
            created_at=UTC_TIME,
        ),
        date=st.sampled_from(["2025-02-30", "2025-1-1", "", "2025-06-01 00:00:00", "9999-12-31", "0001-01-01"]),
        trades_count=COUNT,
        losses_count=NO_NUMBER,
        starting_equity=NO_NUMBER,
        daily_pnl_pct=REAL,
        open_positions=st.sampled_from([b"blob", "a\0b"]),
        created_at=ODD_TIME,
    ),
    "system_events": _spoiled(
        _row(
            event_time=LOCAL,
            event_type=TEXT,
            event_level=LEVEL,
            message=_maybe(TEXT),
            details=_maybe(DETAILS),
            created_at=UTC_TIME,
        ),
        event_time=ODD_TIME,
        event_type=ANY_TEXT,
        event_level=st.sampled_from(["LOUD", ""]),
        message=st.sampled_from(["zero\0byte", b"blob"]),
        created_at=ODD_TIME,
    ),
    "risk_events": _spoiled(
        _row(
            event_time=LOCAL,
            risk_type=TEXT,
            current_value=_maybe(REAL),
            limit_value=_maybe(REAL),
            action_taken=_maybe(TEXT),
            created_at=UTC_TIME,
        ),
        event_time=ODD_TIME,
        current_value=NO_NUMBER,
        action_taken=st.sampled_from(["zero\0byte", b"blob"]),
        risk_type=st.just(b"blob"),
    ),
}


# Rows as the bot writes them: what a batch converts on the spot.
USUAL: dict[str, Row] = {
    "trades": {
        "trade_id": None,
        "mode": "live",
        "symbol": "BTCUSDT",
        "side": "Buy",
        "entry_time": "2025-06-01 12:00:00.123456",
        "entry_price": 100.5,
        "exit_time": None,
        "exit_price": None,
        "quantity": 0.1,
        "position_size_usd": 10.05,
        "stop_loss": None,
        "take_profit": None,
        "pnl_usd": None,
        "pnl_pct": None,
        "exit_reason": None,
        "holding_time_seconds": None,
        "signal_strength": None,
        "created_at": "2025-06-01 12:00:01",
    },
    "daily_snapshots": {
        "date": "2025-06-01",
        "mode": "live",
        "starting_equity": 10000.0,
        "ending_equity": 10010.5,
        "daily_pnl": 10.5,
        "daily_pnl_pct": 0.105,
        "trades_count": 3,
        "wins_count": 2,
        "losses_count": 1,
        "open_positions": None,
        "created_at": "2025-06-01 12:00:01",
    },
    "system_events": {
        "event_time": "2025-06-01 12:00:00.123456",
        "event_type": "T",
        "event_level": "INFO",
        "message": "m",
        "details": None,
        "created_at": "2025-06-01 12:00:01",
    },
    "risk_events": {
        "event_time": "2025-06-01 12:00:00.123456",
        "risk_type": "R",
        "current_value": 1.5,
        "limit_value": 2.5,
        "action_taken": None,
        "created_at": "2025-06-01 12:00:01",
    },
}


def nearly_usual(table: str) -> Rows:
    """Usual rows but for a column or two: one awkward value takes a whole row off the fast path."""
    names = st.lists(st.sampled_from(sorted(USUAL[table])), min_size=1, max_size=2)
    return st.tuples(MOMENTUM[table], names).map(
        lambda found: USUAL[table] | {name: found[0][name] for name in found[1]}
    )


# The Shortseller's columns have types: what is odd here is what those hold.
def _decimal(low: int, high: int, places: int) -> st.SearchStrategy[Decimal]:
    return st.integers(low * 10**places, high * 10**places).map(lambda units: Decimal(units).scaleb(-places))


_MONEY = _decimal(-(10**12) + 1, 10**12 - 1, 8) | st.just(Decimal("0.00000001"))
_AMOUNT = _decimal(0, 10**12 - 1, 8)
_RATIO = _decimal(-9, 9, 4)
_WIDE = _decimal(-999999, 999999, 4) | st.just(Decimal("999999.9999"))
_INSTANT = st.datetimes(datetime(1990, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))
_NAN = st.just(Decimal("NaN"))
_WORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20) | ESCAPED
_JSONB = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=4,
).map(json.dumps) | st.sampled_from(['{"ema": 1.50, "note": "✂"}', "1e400", '"\\u001f"', "[0.10, 1E-3]"])

SHORTSELLER: dict[str, Rows] = {
    "trades": _spoiled(
        _row(
            symbol=_WORD,
            side=SIDE,
            quantity=_AMOUNT,
            price=_AMOUNT,
            order_id=_maybe(st.uuids().map(str)),
            exchange_order_id=_maybe(_WORD),
            status=st.sampled_from(["FILLED", "canceled", "pending", "Cancelled", "rejected"]),
            strategy=_WORD,
            timestamp=_INSTANT,
            executed_at=_maybe(_INSTANT),
            pnl=_maybe(_MONEY),
            fees=_maybe(_MONEY),
            notes=_maybe(TEXT),
        ),
        side=st.sampled_from(["sideways", ""]),
        status=st.just("odd"),
        quantity=_MONEY | _NAN,
        pnl=_NAN,
    ),
    "positions": _spoiled(
        _row(
            symbol=_WORD,
            side=SIDE,
            size=_AMOUNT,
            avg_price=_AMOUNT,
            unrealized_pnl=_maybe(_MONEY),
            realized_pnl=_maybe(_MONEY),
            status=st.sampled_from(["open", "Closed", "liquidated", "PARTIALLY_CLOSED"]),
            opened_at=_INSTANT,
            closed_at=_maybe(_INSTANT),
            stop_loss=_maybe(_MONEY),
            take_profit=_maybe(_MONEY),
            leverage=_maybe(st.integers(0, 9999)),
        ),
        side=st.just("both"),
        status=st.just("gone"),
        leverage=st.sampled_from([10000, -10000, 2**31 - 1]),
        stop_loss=_NAN,
    ),
    "market_data": _spoiled(
        st.tuples(
            _row(symbol=_WORD, timestamp=_INSTANT, interval=st.sampled_from(["1m", "5m", "", "1ü"]), volume=_AMOUNT),
            st.lists(_MONEY, min_size=4, max_size=4).map(sorted),
            st.booleans(),
            _row(created_at=_INSTANT),
        ).map(
            lambda t: (
                t[0]
                | dict(zip(("low_price", "open_price", "close_price", "high_price"), t[1], strict=True))
                | ({"open_price": t[1][2], "close_price": t[1][1]} if t[2] else {})
                | t[3]
            )
        ),
        high_price=_MONEY,
        low_price=_NAN,
        volume=_MONEY,
        created_at=st.none(),
    ),
    "signals": _spoiled(
        _row(
            symbol=_WORD,
            signal_type=st.sampled_from(["long", "SHORT", "close", "Close_Long", "hold"]),
            strength=_maybe(_decimal(0, 1, 4)),
            price=_MONEY,
            timestamp=_INSTANT,
            strategy=_WORD,
            indicators=_maybe(_JSONB),
            executed=_maybe(st.booleans()),
            # Which of the trades, none, or the place of one.
            execution_id=_maybe(st.integers(0, 100)),
        ),
        signal_type=st.just("buy"),
        strength=_RATIO | _NAN,
        price=_NAN,
    ),
    "account_balance": _spoiled(
        _row(
            total_balance=_MONEY,
            available_balance=_MONEY,
            equity=_MONEY,
            margin_used=_maybe(_MONEY),
            unrealized_pnl=_maybe(_MONEY),
            timestamp=_INSTANT,
        ),
        equity=_NAN,
        margin_used=_NAN,
    ),
    "risk_metrics": _spoiled(
        _row(
            date=st.dates(date(2000, 1, 1), date(2030, 1, 1)),
            total_pnl=_maybe(_MONEY),
            max_drawdown=_maybe(_WIDE),
            win_rate=_maybe(_RATIO),
            profit_factor=_maybe(_WIDE),
            sharpe_ratio=_maybe(_WIDE),
            total_trades=_maybe(st.integers(-(2**31), 2**31 - 1)),
            winning_trades=_maybe(st.integers(0, 100)),
            losing_trades=_maybe(st.integers(0, 100)),
        ),
        total_pnl=_NAN,
        win_rate=_NAN,
    ),
}
