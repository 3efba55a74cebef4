"""003 and 004: registration is data of the inventory, and never resets a bot."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Target

FILES = ["003_register_momentum_bot.sql", "004_register_lxalgo_bot.sql"]


def test_bots_are_registered_with_their_limits(target: Target) -> None:
    for name in FILES:
        assert target.sql(name)["changed"] is True
    rows = target.rows("SELECT * FROM trading.bots ORDER BY bot_id")
    assert [row["bot_id"] for row in rows] == ["lxalgo_001", "momentum_001"]
    for row in rows:
        assert row["status"] == "active"
        assert row["current_equity"] == row["initial_capital"] == 10000
        assert (row["max_daily_loss_pct"], row["max_weekly_loss_pct"], row["max_drawdown_pct"]) == (5, 10, 20)
        assert row["last_heartbeat"] is None


def test_lxalgo_starts_with_one_opening_balance(target: Target) -> None:
    for _ in range(2):
        target.sql("004_register_lxalgo_bot.sql")
    (row,) = target.rows("SELECT * FROM trading.account_balance")
    assert (row["bot_id"], row["equity"], row["snapshot_type"]) == ("lxalgo_001", 10000, "initial")


@pytest.mark.parametrize("name", FILES)
def test_second_run_changes_nothing(target: Target, name: str) -> None:
    target.sql(name)
    before = target.contents()
    result = target.sql(name)
    assert (result["changed"], result["message"]) == (False, "already applied")
    assert target.contents() == before


@pytest.mark.parametrize("name", FILES)
def test_dry_run_leaves_nothing(target: Target, name: str) -> None:
    before = target.contents()
    assert target.sql(name, dry_run=1)["changed"] is True
    assert target.contents() == before


@pytest.mark.parametrize("name", FILES)
def test_edited_file_is_refused(target: Target, fresh_migrations: Path, name: str) -> None:
    target.sql(name)
    before = target.contents()
    path = fresh_migrations / name
    path.write_text(path.read_text() + "\n-- edited\n")
    done = target.psql(name)
    assert done.returncode == 3
    assert f"{name} was applied on" in done.stderr
    assert target.contents() == before


def test_registering_again_keeps_what_is_the_bots_own(target: Target) -> None:
    target.sql("004_register_lxalgo_bot.sql")
    target.execute(
        "UPDATE trading.bots SET current_equity = 12345.67, status = 'paused', last_heartbeat = '2025-01-01'"
    )
    bot = target.bot("lxalgo_001")
    bot.update(max_positions=7, description="Other", configuration={"fast": 12})
    result = target.sql("004_register_lxalgo_bot.sql")
    assert result["changed"] is True
    assert result["registration"] == {"registered": 0, "updated": 1, "configurations": 2, "opening_balances": 0}
    (row,) = target.rows("SELECT * FROM trading.bots")
    assert float(row["current_equity"]) == 12345.67
    assert (row["status"], row["last_heartbeat"].year, row["max_positions"], row["description"]) == (
        "paused",
        2025,
        7,
        "Other",
    )


def test_changed_setting_becomes_a_new_version(target: Target) -> None:
    bot = target.bot("momentum_001")
    for fast in (12, 13):
        bot["configuration"] = {"fast": fast}
        target.sql("003_register_momentum_bot.sql")
    rows = target.rows(
        "SELECT version, config_value, is_active, effective_until IS NULL AS in_force FROM config.bot_configurations"
        " WHERE config_key = 'fast' ORDER BY version"
    )
    assert [tuple(row.values()) for row in rows] == [(1, 12, False, False), (2, 13, True, True)]


def test_fourth_bot_is_an_inventory_change(target: Target) -> None:
    target.sql("003_register_momentum_bot.sql")
    target.bots.append({**target.bot("momentum_001"), "bot_id": "momentum_002"})
    assert target.sql("003_register_momentum_bot.sql")["registration"]["registered"] == 1
    assert target.value("SELECT count(*) FROM trading.bots") == 2


def test_one_bot_can_be_registered_alone(target: Target) -> None:
    target.bots.append({**target.bot("momentum_001"), "bot_id": "momentum_002"})
    target.sql("003_register_momentum_bot.sql", only_bot="momentum_002")
    assert target.value("SELECT bot_id FROM trading.bots") == "momentum_002"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bot_type": "grid"}, "momentum_001 has bot_type grid; expected shortseller, momentum or lxalgo"),
        ({"bot_type": "lxalgo"}, "momentum_001 is registered as momentum, the inventory says lxalgo"),
        ({"initial_capital": None}, "momentum_001 lacks initial_capital"),
    ],
)
def test_unusable_inventory_is_named(target: Target, change: dict[str, object], message: str) -> None:
    target.sql("003_register_momentum_bot.sql")
    before = target.contents()
    target.bot("momentum_001").update(change)
    for name in FILES:
        done = target.psql(name)
        assert done.returncode == 3
        assert message in done.stderr
    assert target.contents() == before
    if change.get("bot_type") == "grid":
        done = target.python("migrate_momentum_sqlite_to_postgres.py")
        assert done.returncode == 2
        assert "unknown bot type: momentum_001 has bot_type grid" in done.stderr


def test_missing_bots_file_is_named(target: Target, fresh_migrations: Path) -> None:
    target.write_bots()
    (fresh_migrations / "bots.json").unlink()
    done = target.server.psql(target.database, fresh_migrations / "003_register_momentum_bot.sql", "trading_user")
    assert done.returncode == 3
    assert "bots.json does not hold a list of bots" in done.stderr
