"""The statements of a bot's writes. Pure functions: table, bot and values in, operations out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .columns import convert
from .errors import Refused
from .outbox import Operation

_ALLOWED = re.compile(r"\s*(INSERT|UPDATE|DELETE|SELECT|WITH|MERGE)\b", re.IGNORECASE)
_OPEN = "('open', 'partially_closed')"

# The closed part of a trade. What made the row a migrated one stays with the
# trade: a migrated row exists once.
_SPLIT_OFF = """INSERT INTO trading.trades (id, trade_id, bot_id, symbol, exchange_order_id, side, trade_type, quantity,
    entry_price, exit_price, position_size_usd, leverage, stop_loss, take_profit, status, entry_time, exit_time,
    holding_time_seconds, pnl_usd, pnl_pct, fees, exit_reason, strategy, signal_strength, confidence_score, metadata)
SELECT %(id)s, %(part_id)s, bot_id, symbol, exchange_order_id, side, trade_type, %(quantity)s,
    entry_price, %(exit_price)s, round(position_size_usd * %(quantity)s / quantity, 8), leverage, stop_loss, take_profit,
    'filled', entry_time, %(exit_time)s, extract(epoch FROM %(exit_time)s - entry_time)::bigint,
    %(pnl_usd)s, %(pnl_pct)s, %(fees)s, %(exit_reason)s, strategy, signal_strength, confidence_score,
    (metadata - 'legacy') || jsonb_strip_nulls(jsonb_build_object(
        'mode', coalesce(metadata -> 'mode', metadata #> '{legacy,mode}'), 'partial_of', trade_id::text))
        || %(metadata)s::jsonb
FROM trading.trades
WHERE trade_id = %(trade_id)s AND bot_id = %(bot_id)s AND exit_time IS NULL AND quantity > %(quantity)s"""
_KEEP_REST = """UPDATE trading.trades SET quantity = quantity - %(quantity)s,
    position_size_usd = position_size_usd - round(position_size_usd * %(quantity)s / quantity, 8)
WHERE trade_id = %(trade_id)s AND bot_id = %(bot_id)s"""
# A closed position keeps the size that it had. An exit that is logged again
# has reduced it already, also where other trades keep it open.
_REDUCE = f"""UPDATE trading.positions p SET
    size = CASE WHEN p.size > t.quantity THEN p.size - t.quantity ELSE p.size END,
    status = CASE WHEN p.size > t.quantity THEN 'partially_closed' ELSE 'closed' END,
    closed_at = CASE WHEN p.size > t.quantity THEN p.closed_at ELSE t.exit_time END,
    unrealized_pnl = CASE WHEN p.size > t.quantity THEN p.unrealized_pnl ELSE 0 END,
    realized_pnl = coalesce(p.realized_pnl, 0) + coalesce(t.pnl_usd, 0),
    current_price = coalesce(t.exit_price, p.current_price),
    last_updated = t.exit_time,
    exit_trade_ids = array_append(p.exit_trade_ids, t.trade_id::text)
FROM trading.trades t
WHERE t.trade_id = %(closed_id)s AND t.bot_id = %(bot_id)s AND p.bot_id = %(bot_id)s
  AND p.entry_trade_ids @> ARRAY[%(trade_id)s::text] AND p.status IN {_OPEN}
  AND NOT p.exit_trade_ids @> ARRAY[%(closed_id)s::text]"""


def insert(
    table: str, bot_id: str | None, columns: Mapping[str, Any], after: str = "", row_id: int | None = None
) -> Operation:
    """A new row; columns that are None get their defaults. Without bot_id the row is everybody's."""
    values = {name: value for name, value in convert(table, columns).items() if value is not None}
    if bot_id is not None:
        values["bot_id"] = bot_id
    if row_id is not None:
        values["id"] = row_id
    names = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join(f"%({name})s" for name in values)
    return Operation(f"INSERT INTO {table} ({names}) VALUES ({marks}) {after}".rstrip(), values)


def upsert_day(bot_id: str, columns: Mapping[str, Any]) -> Operation:
    """A day's row of trading.risk_metrics; what is not given stays."""
    given = [name for name, value in columns.items() if value is not None and name not in ("date", "metadata")]
    sets = [f'"{name}" = EXCLUDED."{name}"' for name in given] + ["metadata = m.metadata || EXCLUDED.metadata"]
    found = insert(
        "trading.risk_metrics", bot_id, columns, f"ON CONFLICT (bot_id, date) DO UPDATE SET {', '.join(sets)}"
    )
    return found._replace(sql=found.sql.replace("trading.risk_metrics (", "trading.risk_metrics AS m (", 1))


def own_fill(fill: Operation) -> Operation:
    """Refuses a fill that was not inserted because its execution is another's."""
    known = fill.parameters
    return Operation(
        "SELECT FROM trading.fills WHERE exchange = %(exchange)s AND execution_id = %(execution_id)s"
        " AND bot_id = %(bot_id)s AND symbol = %(symbol)s",
        {name: known[name] for name in ("exchange", "execution_id", "bot_id", "symbol")},
        f"execution {known['execution_id']} of {known['exchange']} is stored already, of another bot or another symbol "
        f"than {known['symbol']}: expected an execution of {known['bot_id']}; see whether two bots share an account",
    )


def update(
    table: str, bot_id: str, key: str, row: str, columns: Mapping[str, Any], more: Sequence[str] = ()
) -> Operation:
    """Set columns of one row of the bot; None sets NULL. Refused where there is no such row."""
    values = convert(table, columns)
    sets = [f'"{name}" = %({name})s' for name in values] + list(more)
    if not sets:
        raise Refused(f"nothing to change in {table}: expected at least one column")
    return Operation(
        f"UPDATE {table} SET {', '.join(sets)} WHERE {key} = %(_row)s AND bot_id = %(_bot)s",
        {**values, "_row": row, "_bot": bot_id},
        f"{table} has no {key} {row} of bot {bot_id}",
    )


def exit_trade(bot_id: str, trade_id: str, columns: Mapping[str, Any]) -> list[Operation]:
    """A trade's exit, and what it means for its position."""
    values = {name: value for name, value in columns.items() if value is not None}
    fees = values.pop("fees", None)
    more = []
    if "holding_time_seconds" not in values:
        more.append("holding_time_seconds = extract(epoch FROM %(exit_time)s - entry_time)::bigint")
    if fees is not None:
        # An exit that is logged again replaces the first one, and its fees were added then.
        more.append("fees = CASE WHEN exit_time IS NULL THEN coalesce(fees, 0) + %(_fees)s ELSE fees END")
    changed = update("trading.trades", bot_id, "trade_id", trade_id, values, more)
    if fees is not None:
        changed.parameters["_fees"] = convert("trading.trades", {"fees": fees})["fees"]
    return [changed, _reduced(bot_id, trade_id, trade_id)]


def split_trade(bot_id: str, trade_id: str, part_id: str, row_id: int, columns: Mapping[str, Any]) -> list[Operation]:
    """The closed part of a trade becomes a trade of its own."""
    values = {**convert("trading.trades", columns), "bot_id": bot_id, "trade_id": trade_id, "part_id": part_id}
    values["id"] = row_id
    unmatched = (
        f"trading.trades has no open trade {trade_id} of bot {bot_id} that is larger than {values['quantity']}: "
        "the last part of a trade is closed by log_trade_exit"
    )
    return [
        Operation(_SPLIT_OFF, values, unmatched),
        Operation(_KEEP_REST, values),
        _reduced(bot_id, trade_id, part_id),
    ]


def _reduced(bot_id: str, trade_id: str, closed_id: str) -> Operation:
    return Operation(_REDUCE, {"bot_id": bot_id, "trade_id": trade_id, "closed_id": closed_id})


def checked(sql: str, parameters: Sequence[Any] | Mapping[str, Any]) -> Operation:
    """A statement of a bot's own. Raises Refused unless it is one statement whose parameters fit."""
    if not _ALLOWED.match(sql) or ";" in sql.strip().rstrip(";"):
        raise Refused(
            f"{sql.strip()[:80]!r} is not one statement that reads or changes rows: expected INSERT, UPDATE, DELETE, "
            "MERGE, SELECT or WITH, values as parameters, and a transaction is made by the client"
        )
    given: Any = dict(parameters) if isinstance(parameters, Mapping) else list(parameters)
    try:
        # Without parameters psycopg2 leaves per cent signs alone.
        given and sql % (given if isinstance(given, dict) else tuple(given))
    except (TypeError, ValueError, KeyError) as error:
        raise Refused(
            f"{sql.strip()[:80]!r} and its parameters do not fit ({error}): expected one value a mark"
        ) from None
    return Operation(sql, given)
