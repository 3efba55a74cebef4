"""What can be wrong with what phase 2 is given: a clear error each, and nothing changed."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[3]
PHASE2 = "playbooks/phase2_data_migration.yml"
SABOTAGE = "tests/legacy/sabotage.yml"

pytestmark = pytest.mark.service("trading_postgres", "shortseller_postgres")


@pytest.mark.parametrize(
    ("sabotage", "messages"),
    [
        (
            "database_down",
            {
                "legacy_backup": "shortseller_postgres is exited; expected it running",
                "data_migration": "multiasset_trading",
                "reconciliation": "Nothing was compared. Both sides have to be there",
            },
        ),
        ("missing_column", {"data_migration": "fees"}),
        ("unknown_side", {"data_migration": "hedge"}),
        ("sqlite_corrupt", {"legacy_backup": "trading.db is corrupt", "data_migration": "trading.db"}),
        ("sqlite_locked", {"legacy_backup": "trading.db is locked by another process", "data_migration": "trading.db"}),
        ("sqlite_absent", {"legacy_backup": "trading.db does not exist", "data_migration": "trading.db"}),
    ],
)
def test_spoiled_source(sabotage: str, messages: dict[str, str], play: Any, content: Any) -> None:
    before = content()
    assert play(SABOTAGE, sabotage_name=sabotage).code == 0
    try:
        for tag, message in messages.items():
            run = play(PHASE2, "--tags", tag)
            assert run.code != 0
            assert message in run.text
            assert content() == before
    finally:
        assert play(SABOTAGE, sabotage_name=sabotage, sabotage_undo=True).code == 0


def test_rejects_are_kept_and_can_be_accepted(play: Any, psql: Any, content: Any) -> None:
    before = content()
    assert play(SABOTAGE, sabotage_name="unknown_side").code == 0
    try:
        assert play(PHASE2, "--tags", "data_migration_shortseller").code != 0
        assert "hedge" in psql("SELECT reason FROM migration.rejects WHERE bot_id = 'shortseller_001'")
        run = play(PHASE2, "--tags", "data_migration,reconciliation", data_migration_accepted_rejects=1)
        assert run.code == 0
    finally:
        assert play(SABOTAGE, sabotage_name="unknown_side", sabotage_undo=True).code == 0
    assert play(PHASE2, "--tags", "data_migration,reconciliation").code == 0
    assert psql("SELECT count(*) FROM migration.rejects WHERE bot_id = 'shortseller_001'") == "0"
    assert content() == before


def test_edited_migration(play: Any, state: Any, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("ansible.cfg", "files", "inventory", "playbooks", "plugins", "roles", "templates"):
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, project / name, symlinks=True)
        else:
            shutil.copy(source, project / name)
    edited = project / "files/migrations/001_unified_schema.sql"
    edited.write_text(edited.read_text() + "-- one more thing\n")
    before = state()
    run = play(PHASE2, project=project)
    assert run.code != 0
    assert "001_unified_schema.sql: checksum differs" in run.text
    assert run.changed == frozenset()
    assert state() == before


def test_table_that_shows_all_bots_to_each(play: Any, psql: Any, state: Any) -> None:
    before = state()
    psql("ALTER TABLE trading.trades DISABLE ROW LEVEL SECURITY")
    try:
        run = play(PHASE2, "--tags", "schema_migrations")
        assert run.code != 0
        assert "trading.trades in trading_db shows the rows of all bots to each of them" in run.text
        assert run.changed == frozenset()
    finally:
        psql("ALTER TABLE trading.trades ENABLE ROW LEVEL SECURITY")
    assert state() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "arbitrage"}, "has type 'arbitrage'; expected one of shortseller, momentum, lxalgo"),
        ({"id": "momentum_001"}, "Bot ids are not unique"),
        ({"id": "Bad Id"}, "Bot id 'Bad Id' found"),
        (
            {"id": "momentum_trial"},
            "Bot id 'momentum_trial' found; expected up to 44 of a-z, 0-9 and _, with no _trial",
        ),
        ({"legacy": {}}, "has no legacy.postgres"),
    ],
    ids=["type", "duplicate", "id", "trial", "store"],
)
def test_bots_that_cannot_be_migrated(
    change: dict[str, Any], message: str, facts: dict[str, Any], play: Any, state: Any
) -> None:
    bots = copy.deepcopy(facts["bots"])
    bots[0] |= change
    before = state()
    run = play(PHASE2, bots=bots)
    assert run.code != 0
    assert message in run.text
    assert run.changed == frozenset()
    assert state() == before


def test_wrong_legacy_password_is_reported_and_not_printed(facts: dict[str, Any], play: Any, content: Any) -> None:
    bots = copy.deepcopy(facts["bots"])
    bots[0]["legacy"]["postgres"]["password"] = "not-The-Pa55word"
    before = content()
    run = play(PHASE2, "-vvv", bots=bots)
    assert run.code != 0
    assert "password authentication failed" in run.text
    assert "not-The-Pa55word" not in run.text
    assert content() == before


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"data_migration_only_bot": "nobody_001"}, "data_migration_only_bot is 'nobody_001'; expected one of"),
        ({"data_migration_accepted_rejects": -1}, "expected 0 or more"),
    ],
)
def test_limits_that_make_no_sense(variables: dict[str, Any], message: str, play: Any, state: Any) -> None:
    before = state()
    run = play(PHASE2, "--tags", "data_migration", **variables)
    assert run.code != 0
    assert message in run.text
    assert state() == before


def test_a_fourth_bot_is_an_inventory_change(facts: dict[str, Any], play: Any, psql: Any) -> None:
    bots = copy.deepcopy(facts["bots"])
    lxalgo = next(bot for bot in bots if bot["type"] == "lxalgo")
    bots.append(lxalgo | {"id": "lxalgo_002", "folder": "lxalgo2", "name": "Second LX Bot"})
    expected = {"Describe the bots in bots.json", "Register the LXAlgo bots"}
    try:
        assert expected <= play(PHASE2, "--check", bots=bots).changed
        done = play(PHASE2, bots=bots)
        assert done.code == 0
        assert expected <= done.changed
        assert psql("SELECT bot_name FROM trading.bots WHERE bot_id = 'lxalgo_002'") == "Second LX Bot"
    finally:
        for table in ("config.bot_configurations", "trading.account_balance", "trading.bots"):
            psql(f"DELETE FROM {table} WHERE bot_id = 'lxalgo_002'")
    assert play(PHASE2, "--tags", "schema_migrations").code == 0
