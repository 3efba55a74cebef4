"""Preflight foretells the rejects of the migration: both know the same values."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

MIGRATIONS = Path(__file__).parents[2] / "files/migrations"
SCHEMA = json.loads((MIGRATIONS / "legacy_schema.json").read_text())

sys.path.insert(0, str(MIGRATIONS))
from migration_engine import momentum_mapping  # noqa: E402


def test_momentum() -> None:
    values = SCHEMA["momentum"]["values"]
    assert set(values["trades"]["side"]) == set(momentum_mapping.SIDES)
    assert set(values["system_events"]["event_level"]) == set(momentum_mapping.LEVELS)


def test_shortseller() -> None:
    sql = (MIGRATIONS / "lib/classify_shortseller.sql").read_text()
    known: dict[str, dict[str, set[str]]] = {}
    refused = r"^CREATE TEMP TABLE refused(.*?);\nUPDATE legacy_shortseller\.(\w+)"
    for body, table in re.findall(refused, sql, re.DOTALL | re.MULTILINE):
        for column, values in re.findall(r'lower\(s\.(\w+) COLLATE "C"\) NOT IN \(([^)]*)\)', body):
            known.setdefault(table, {})[column] = set(re.findall(r"'(\w+)'", values))
    expected = SCHEMA["shortseller"]["values"]
    assert known == {
        table: {name: set(values) for name, values in columns.items()} for table, columns in expected.items()
    }
