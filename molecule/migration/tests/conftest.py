"""What the tests of a migrated host share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

# All that says something about a row, none of what only says when it came here:
# for LXAlgo, which has no history, that is everything.
CONTENT = """
SELECT json_object_agg(t, c) FROM (
  SELECT n.nspname || '.' || c.relname AS t,
    (xpath('/row/h/text()', query_to_xml(format(
      $$SELECT count(*) || ' ' || coalesce(sum(hashtextextended((to_jsonb(x)
          - '{id,created_at,updated_at,last_updated,calculated_at,effective_from}'::text[])::text, 0))
          FILTER (WHERE to_jsonb(x) ->> 'bot_id' IS DISTINCT FROM 'lxalgo_001'), 0) AS h
        FROM %I.%I x$$, n.nspname, c.relname), false, true, '')))[1]::text AS c
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind = 'r' AND n.nspname IN ('trading', 'analytics', 'config', 'audit')) tables
"""


@pytest.fixture
def psql(host: Any) -> Callable[[str], str]:
    """Runs SQL as the owner of trading_db; the lines it prints."""

    def run(sql: str) -> str:
        command = "docker exec trading_postgres psql -XAtq -v ON_ERROR_STOP=1 -U trading_user -d trading_db -c %s"
        return str(host.check_output(command, " ".join(sql.split())))

    return run


@pytest.fixture
def content(psql: Callable[[str], str]) -> Callable[[], dict[str, str]]:
    """Rows and a hash of each table's values."""
    return lambda: json.loads(psql(CONTENT))
