"""The host after phase 2, its sources at rest."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

PHASE2 = "playbooks/phase2_data_migration.yml"
PHASE1 = "playbooks/phase1_infrastructure.yml"

pytestmark = pytest.mark.service("trading_postgres")


def guide(host: Any, facts: dict[str, Any], commands: str) -> str:
    """What commands of the guide print, run as printed by the account that owns the bots."""
    script = f"cd {facts['base_dir']}\n{commands}"
    return str(host.check_output(f"bash -ec {shlex.quote(script)}"))


@pytest.mark.parametrize("playbook", [PHASE1, PHASE2])
def test_dry_run_announces_nothing_and_changes_nothing(playbook: str, play: Any, state: Any) -> None:
    before = state()
    run = play(playbook, "--check", "--diff")
    assert run.code == 0
    assert run.changed == frozenset()
    assert state() == before


def test_each_bot_sees_its_own_history_through_the_pool(host: Any, facts: dict[str, Any], psql: Any) -> None:
    for bot in facts["bots"]:
        seen = guide(
            host,
            facts,
            "source .env.database\n"
            f"PGPASSWORD=$BOT_PASSWORD_{bot['id'].upper()} docker run --rm --network trading_network -e PGPASSWORD"
            f" --entrypoint psql {facts['images']['postgres']} -XAtqw -h pgbouncer -p 6432 -U {bot['id']} -d trading_db"
            " -c 'SELECT count(*) FROM trading.trades' -c 'SELECT count(*) FROM audit.system_events'",
        )
        of_bot = f"WHERE bot_id = '{bot['id']}'"
        expected = psql(
            f"SELECT count(*) FROM trading.trades {of_bot} UNION ALL SELECT count(*) FROM audit.system_events {of_bot}"
        )
        assert seen.split() == expected.split()


def test_no_secret_is_printed(host: Any, facts: dict[str, Any], play: Any) -> None:
    secrets = [
        line.split("=", 1)[1].strip("'\"")
        for line in host.check_output(f"cat {facts['base_dir']}/.env.database").splitlines()
        if "=" in line and any(word in line.split("=")[0] for word in ("PASSWORD", "TOKEN"))
    ]
    legacy = host.check_output("docker exec shortseller_postgres printenv POSTGRES_PASSWORD")
    text = play(PHASE2, "-vvv").text
    assert [secret for secret in [*secrets, legacy] if secret in text] == []


def test_backups_are_private_and_checkable(host: Any, facts: dict[str, Any]) -> None:
    folder = f"{facts['base_dir']}/database/backups"
    assert host.file(folder).mode & 0o007 == 0
    names = host.check_output(f"find {folder} -maxdepth 1 -type f -printf '%f\\n'").splitlines()
    for prefix in ("shortseller_backup_", "momentum_backup_"):
        assert [name for name in names if name.startswith(prefix) and name.endswith(".sha256")], prefix
    assert {host.file(f"{folder}/{name}").mode for name in names} == {0o600}
    host.check_output(f"cd {folder} && sha256sum --check --strict --quiet *.sha256")
    for name in names:
        if name.endswith(".json"):
            manifest = json.loads(host.check_output(f"cat {folder}/{name}"))
            assert sum(manifest["tables"].values()) > 1000, name
            assert "rows" in manifest["proof"], name


def test_a_damaged_backup_is_replaced_and_kept(host: Any, facts: dict[str, Any], play: Any) -> None:
    folder = f"{facts['base_dir']}/database/backups"
    newest = host.check_output(f"ls {folder}/momentum_backup_*.db | tail -n 1")
    host.check_output(f"cp -p {newest} /var/tmp/whole && printf x >> {newest}")
    try:
        run = play(PHASE2, "--tags", "legacy_backup", data_migration_only_bot="momentum_001")
        assert run.changed == {"Back up the legacy SQLite databases"}
        assert host.check_output(f"ls {folder}/momentum_backup_*.db | tail -n 1") != newest
        assert host.file(newest).exists
    finally:
        host.check_output(f"mv /var/tmp/whole {newest}")


def test_tables_per_schema(host: Any, facts: dict[str, Any]) -> None:
    psql = "docker exec trading_postgres psql -U trading_user -d trading_db -c"
    shown = guide(host, facts, f'{psql} "\\dn"\n{psql} "\\dt trading.*"')
    for schema in ("trading", "analytics", "config", "audit"):
        assert schema in shown
    assert "(12 rows)" in shown


def test_grafana_reads_the_unified_tables_and_nothing_else(host: Any) -> None:
    def ask(sql: str) -> Any:
        return host.run("docker exec trading_postgres psql -XAtq -U grafana_reader -d trading_db -c %s", sql)

    assert int(ask("SELECT count(*) FROM trading.trades").stdout) > 0
    assert ask("SELECT count(*) FROM analytics.system_health_dashboard").stdout == "1\n"
    assert "permission denied for table trades" in ask("DELETE FROM trading.trades").stderr
    assert "permission denied for schema" in ask("SELECT count(*) FROM legacy_shortseller.trades").stderr
    assert "permission denied for schema" in ask("SELECT count(*) FROM migration.rejects").stderr


def test_guide_commands_of_the_migrations(host: Any, facts: dict[str, Any], content: Any) -> None:
    before = content()
    printed = """
    docker exec -i trading_postgres psql -U trading_user -d trading_db < \\
        database/migrations/001_unified_schema.sql
    docker exec -i trading_postgres psql -U trading_user -d trading_db < \\
        database/migrations/002_migrate_shortseller_data.sql
    docker exec trading_postgres psql -U trading_user -d trading_db -c \\
        "SELECT COUNT(*) FROM trading.trades WHERE bot_id = 'shortseller_001';"
    source .env.database
    export POSTGRES_HOST=localhost
    export POSTGRES_PORT=5432
    export POSTGRES_DB=trading_db
    export POSTGRES_USER=trading_user
    export POSTGRES_PASSWORD=$POSTGRES_PASSWORD
    python database/migrations/migrate_momentum_sqlite_to_postgres.py
    docker exec trading_postgres psql -U trading_user -d trading_db -c \\
        "SELECT COUNT(*) FROM trading.trades WHERE bot_id = 'momentum_001';"
    docker exec -i trading_postgres psql -U trading_user -d trading_db < \\
        database/migrations/004_register_lxalgo_bot.sql
    docker exec trading_postgres psql -U trading_user -d trading_db -c \\
        "SELECT * FROM trading.bots WHERE bot_id = 'lxalgo_001';"
    """
    shown = guide(host, facts, printed)
    assert "LX Multi-Indicator Strategy" in shown
    assert content() == before


def test_guide_command_of_the_verification(host: Any, facts: dict[str, Any]) -> None:
    printed = """
cd /var/tmp
cat > verify_migration.sql <<'EOF'
-- Check all bots registered
SELECT bot_id, bot_name, status, current_equity
FROM trading.bots
ORDER BY bot_id;

-- Check trades per bot
SELECT
    bot_id,
    COUNT(*) as total_trades,
    COUNT(*) FILTER (WHERE exit_time IS NOT NULL) as closed_trades,
    SUM(pnl_usd) FILTER (WHERE exit_time IS NOT NULL) as total_pnl
FROM trading.trades
GROUP BY bot_id;

-- Check system events
SELECT
    event_type,
    event_level,
    COUNT(*) as count
FROM audit.system_events
GROUP BY event_type, event_level
ORDER BY count DESC;
EOF
docker exec -i trading_postgres psql -U trading_user -d trading_db < verify_migration.sql
rm verify_migration.sql
"""
    shown = guide(host, facts, printed)
    for bot in ("shortseller_001", "momentum_001", "lxalgo_001"):
        assert bot in shown


def test_report_accounts_for_every_row(host: Any, facts: dict[str, Any]) -> None:
    path = f"{facts['base_dir']}/database/reports/reconciliation.json"
    assert host.file(path).user == facts["base_owner"]
    assert host.file(f"{facts['base_dir']}/database/reports").mode == 0o750
    report = json.loads(host.check_output(f"cat {path}"))
    assert {bot["bot_id"] for bot in report["bots"]} >= {"shortseller_001", "momentum_001"}
    tables = [table for bot in report["bots"] for table in bot["tables"]]
    assert tables
    for table in tables:
        assert table["source"] == table["migrated"] + table["rejected"], table


def test_nothing_that_a_database_acknowledged_is_missing(check_journals: Any) -> None:
    check_journals()
