"""Which bots there are (bots.json) and how the legacy tables look."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UsageError

DIRECTORY = Path(__file__).resolve().parent.parent
BOT_TYPES = ("shortseller", "momentum", "lxalgo")


@dataclass(frozen=True)
class Bot:
    """One entry of bots.json; `legacy` says where its history is."""

    bot_id: str
    bot_type: str
    timezone: str
    legacy: dict[str, Any]
    exchange: str | None = None
    initial_capital: object = None

    def engine(self) -> str:
        """Digest of all that decides how a row is migrated: the code, and what the inventory says of the bot.

        A run builds upon an earlier one only if both have the same.
        """
        digest = hashlib.sha256(
            json.dumps(
                [self.bot_id, self.timezone, self.legacy, self.exchange, self.initial_capital], sort_keys=True
            ).encode()
        )
        steps = (
            DIRECTORY / name
            for name in ("stage_shortseller.py", "migrate_momentum_sqlite_to_postgres.py", "legacy_schema.json")
        )
        for path in sorted([*DIRECTORY.glob("lib/*"), *DIRECTORY.glob("migration_engine/*.py"), *steps]):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Bots:
    """The bots of the inventory, and the text they were read from."""

    text: str
    bots: tuple[Bot, ...]

    def of_type(self, bot_type: str, only: str | None) -> list[Bot]:
        """The bots of a type, or the one asked for."""
        found = [b for b in self.bots if b.bot_type == bot_type and only in (None, "", b.bot_id)]
        if only and not found:
            known = ", ".join(b.bot_id for b in self.bots if b.bot_type == bot_type) or "none"
            raise UsageError(f"bots.json has no {bot_type} bot {only}: expected one of {known}; correct --bot")
        return found


def parse_bots(text: str) -> Bots:
    """Read bots.json, or say what is wrong with it."""
    try:
        entries = json.loads(text)
        if not isinstance(entries, list):
            raise TypeError(f"it holds {type(entries).__name__}")
        bots = tuple(
            Bot(
                str(e["bot_id"]),
                str(e["bot_type"]),
                str(e.get("timezone") or "UTC"),
                e.get("legacy") or {},
                e.get("exchange"),
                e.get("initial_capital"),
            )
            for e in entries
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"bots.json is not a list of bots ({error!r}): run playbooks/phase2_data_migration.yml, "
            "which writes it from the inventory"
        ) from error
    unknown = [f"{b.bot_id} has bot_type {b.bot_type}" for b in bots if b.bot_type not in BOT_TYPES]
    if unknown:
        raise UsageError(
            f"unknown bot type: {'; '.join(unknown)}; expected {', '.join(BOT_TYPES)}: "
            "correct the list `bots` of the inventory"
        )
    return Bots(text, bots)


def load_bots(path: Path = DIRECTORY / "bots.json") -> Bots:
    """Read the bots file beside the scripts."""
    try:
        return parse_bots(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path} ({error.strerror}): run playbooks/phase2_data_migration.yml, "
            "which writes it from the inventory"
        ) from error


def legacy_tables(bot_type: str) -> dict[str, list[str]]:
    """Table -> columns that the legacy store of a type must have."""
    schema = json.loads((DIRECTORY / "legacy_schema.json").read_text(encoding="utf-8"))
    tables: dict[str, list[str]] = schema[bot_type]["tables"]
    return tables
