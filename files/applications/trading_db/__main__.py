"""For the operator, inside the bot's container:

    python -m trading_db status   what waits for the database, what it refused and why, who runs
    python -m trading_db check    proves connection, pooler, writing, reading, isolation; leaves no row behind
    python -m trading_db retry    has the bot send again, when it is started, what was refused; the bot is stopped

Exit codes: 0 all is well; 1 something waits or was refused (status), or a fact does not hold (check);
2 usage or settings, or the bot runs (retry); 3 the database cannot be reached.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import psycopg2

from .check import facts
from .connection import Connection, cause
from .delivery import send_again
from .errors import TradingDBError
from .outbox import Outbox, holder, listed
from .settings import Settings

EXIT_OK, EXIT_FOUND, EXIT_USAGE, EXIT_UNREACHABLE = range(4)
_SHOWN = 1000


def status(settings: Settings) -> int:
    """Print the state of the bot's outbox, connection and instance."""
    entries = listed(settings.outbox, settings.bot_id)
    refused = [entry for entry in entries if entry.refused is not None]
    waiting = [entry for entry in entries if entry.refused is None]
    print(f"outbox: {settings.outbox.absolute()}, held by {holder(settings.outbox, settings.bot_id) or 'nobody'}")
    print(f"waiting: {len(waiting)}" + (f", since {waiting[0].created_at}: {waiting[0].summary}" if waiting else ""))
    print(f"refused: {len(refused)}")
    for entry in refused:
        print(f"  {entry.sequence} of {entry.created_at}: {entry.summary}: {entry.refused}")
        print(f"    {entry.operations[:_SHOWN]}{'...' if len(entry.operations) > _SHOWN else ''}")
    if refused:
        print("to send them again: remove the cause, stop the bot, run python -m trading_db retry, start the bot")
    try:
        connection = Connection(settings)
        with connection.transaction(read_only=True):
            rows = connection.execute(
                "SELECT host, started_at, last_seen, details FROM trading.bot_heartbeats"
                " WHERE bot_id = %s ORDER BY last_seen DESC LIMIT 1",
                (settings.bot_id,),
            ).fetchall()
        connection.close()
    except psycopg2.Error as error:
        print(f"connection: {settings.where} does not answer: {cause(error)}")
        return EXIT_UNREACHABLE
    print(f"connection: {settings.where} answers")
    for host, started_at, last_seen, details in rows:
        print(f"instance: host {host}, started {started_at}, last seen {last_seen}, {details}")
    if not rows:
        print("instance: none was ever started")
    return EXIT_FOUND if entries else EXIT_OK


def check(settings: Settings) -> int:
    """Print one line for each fact."""
    failed = False
    try:
        for holds, text in facts(settings):
            print(f"{'ok' if holds else 'failed'}: {text}", flush=True)
            failed = failed or not holds
    except psycopg2.Error as error:
        print(
            f"failed: {settings.where} cannot be used: {cause(error)}; expected PgBouncer to answer: see whether it "
            "runs, and POSTGRES_* in the bot's .env"
        )
        return EXIT_UNREACHABLE
    return EXIT_FOUND if failed else EXIT_OK


def retry(settings: Settings) -> int:
    """Queue once more what was refused."""
    if not listed(settings.outbox, settings.bot_id):
        print("queued again: 0, nothing was refused")
        return EXIT_OK
    outbox = Outbox(settings.outbox, settings.bot_id)
    try:
        waiting, count = outbox.pending_count(), send_again(settings, outbox)
    except psycopg2.Error as error:
        print(f"nothing was changed: {settings.where} does not answer: {cause(error)}; bring it back and ask again")
        return EXIT_UNREACHABLE
    finally:
        outbox.close()
    print(
        f"queued again: {count}, after {waiting} that wait" + ("; start the bot, which delivers them" if count else "")
    )
    return EXIT_OK


_COMMANDS = {"status": status, "check": check, "retry": retry}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trading_db", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=list(_COMMANDS))
    command = _COMMANDS[parser.parse_args(argv).command]
    try:
        return command(Settings.from_environment())
    except TradingDBError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
