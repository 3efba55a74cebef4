"""What the demo built, in one page: read from the host itself, over SSH."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import testinfra
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

PROJECT = Path(__file__).resolve().parents[2]
FACTS = PROJECT / "inventory" / "demo" / "group_vars" / "trading" / "host.yml"
SSH_CONFIG = PROJECT / ".cache" / "testbed" / "trading_demo_host.ssh"
STEPS = PROJECT / ".cache" / "demo" / "steps.json"

TABLES_PER_SCHEMA = """
SELECT json_agg(s) FROM (
  SELECT n.nspname AS schema,
         count(*) FILTER (WHERE c.relkind = 'r') AS tables,
         count(*) FILTER (WHERE c.relkind IN ('v', 'm')) AS views
  FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid
  WHERE n.nspname IN ('trading', 'analytics', 'config', 'audit')
  GROUP BY 1 ORDER BY 1) s
"""
BOTS = """
SELECT json_agg(b) FROM (
  SELECT bot_id, status, current_equity,
         (SELECT count(*) FROM trading.trades t WHERE t.bot_id = b.bot_id AND exit_time IS NULL
          AND t.status IN ('pending', 'partially_filled', 'filled')) AS open_trades,
         (SELECT count(*) FROM trading.positions p WHERE p.bot_id = b.bot_id AND p.status = 'open') AS open_positions
  FROM trading.bots b ORDER BY bot_id) b
"""
RUNS = """
SELECT json_agg(r) FROM (
  SELECT run_id, bot_id, result ->> 'mode' AS mode, extract(epoch FROM merged_at - started_at) AS seconds,
         sum((t ->> 'source')::bigint) AS source, sum((t ->> 'staged')::bigint) AS staged,
         sum((t ->> 'inserted')::bigint) AS inserted, sum((t ->> 'updated')::bigint) AS updated
  FROM migration.runs CROSS JOIN jsonb_array_elements(result -> 'tables') AS t
  WHERE merged_at IS NOT NULL GROUP BY run_id ORDER BY run_id) r
"""


class Host:
    """The demo host, as its operator sees it."""

    def __init__(self) -> None:
        self._host = testinfra.get_host(f"ssh://trading_demo_host?ssh_config={SSH_CONFIG}")
        self.base = yaml.safe_load(FACTS.read_text())["base_dir"]

    def run(self, command: str) -> str:
        """Standard output of `command`; RuntimeError with its errors when it fails."""
        result = self._host.run(command)
        if result.rc != 0:
            raise RuntimeError(f"`{command}` on the demo host exited {result.rc}: {result.stderr.strip()}")
        return str(result.stdout)

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows of a SELECT that returns one JSON array."""
        command = "docker exec trading_postgres psql -U trading_user -d trading_db -qAtc"
        rows: list[dict[str, Any]] | None = json.loads(self.run(f"{command} {shlex.quote(' '.join(sql.split()))}"))
        return rows or []

    def containers(self) -> list[dict[str, str]]:
        """Every container: Names, Image, Status."""
        return [json.loads(line) for line in self.run("docker ps -a --format '{{json .}}'").splitlines()]

    def report(self) -> dict[str, Any]:
        """The last reconciliation."""
        report: dict[str, Any] = json.loads(self.run(f"cat {self.base}/database/reports/reconciliation.json"))
        return report


def table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table; the columns in `numbers` are set flush right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
    return made


def services(containers: list[dict[str, str]]) -> Table:
    """Unified services and, beside them, the legacy system that keeps running."""
    made = table("Services", "container", "image", "state")
    for container in sorted(containers, key=lambda c: (not c["Names"].startswith("trading_"), c["Names"])):
        healthy = "unhealthy" not in container["Status"] and container["Status"].startswith("Up")
        colour = "green" if healthy else "red"
        made.add_row(container["Names"], container["Image"], f"[{colour}]{container['Status']}[/]")
    return made


def schemas(rows: list[dict[str, Any]]) -> Table:
    """Tables and views per schema of trading_db."""
    made = table("trading_db", "schema", "tables", "views", numbers=("tables", "views"))
    for row in rows:
        made.add_row(row["schema"], str(row["tables"]), str(row["views"]))
    return made


def bots(rows: list[dict[str, Any]]) -> Table:
    """Registered bots with what they hold."""
    numbers = ("equity", "open trades", "open positions")
    made = table("Bots", "bot", "status", *numbers, numbers=numbers)
    for row in rows:
        made.add_row(
            row["bot_id"],
            row["status"],
            f"{row['current_equity']:,.2f}",
            f"{row['open_trades']:,}",
            f"{row['open_positions']:,}",
        )
    return made


def trial(lines: list[str]) -> Table:
    """What the updated bots wrote under their trial ids, and what was found of it."""
    made = table("Trial run of the updated bots, through PgBouncer", "bot and table", "result")
    for line in lines:
        what, result = line.split(": ", 1)
        made.add_row(what, result)
    return made


def durations(steps: list[dict[str, Any]]) -> Table:
    """How long each step of the demo took."""
    made = table("Durations", "step", "time", numbers=("time",))
    for step in [*steps, {"name": "[bold]total[/]", "seconds": sum(step["seconds"] for step in steps)}]:
        minutes, seconds = divmod(round(step["seconds"]), 60)
        made.add_row(step["name"], f"{minutes}:{seconds:02d}")
    return made


def runs(rows: list[dict[str, Any]]) -> Table:
    """What each migration run read and did: the first ones everything, the later ones what could have changed."""
    numbers = ("at the source", "read", "inserted", "updated", "time")
    made = table("Migration runs", "bot", "mode", *numbers, numbers=numbers)
    for row in rows:
        counts = (f"{row[name]:,}" for name in ("source", "staged", "inserted", "updated"))
        made.add_row(row["bot_id"], row["mode"], *counts, f"{row['seconds']:.1f} s")
    return made


def rows_per_bot(report: dict[str, Any]) -> Table:
    """Rows in the live source, migrated, rejected and changed there since, with the verdict."""
    numbers = ("source", "migrated", "rejected", "pending")
    made = table("Rows", "bot", "from", "to", *numbers, "verdict", numbers=numbers)
    for bot in report["bots"]:
        for row in bot["tables"]:
            made.add_row(
                bot["bot_id"],
                row["source_table"],
                row["target_table"],
                *(f"{row[number]:,}" for number in numbers),
                "[green]equal[/]" if row["ok"] else "[red]DIFFERS[/]",
            )
        if not bot["tables"]:
            made.add_row(bot["bot_id"], "(no history)", "", "", "", "", "", "[green]registered[/]")
    return made


def verdict(report: dict[str, Any]) -> str:
    """The reconciliation in one sentence."""
    if report["ok"]:
        return "[bold green]Reconciled:[/] counts, sums and every row agree; every acknowledged write was found."
    return "[bold red]NOT reconciled:[/] make demo-shell, then read database/reports/reconciliation.json."


NEXT = """[bold]What to try next[/]
  make demo-shell      log in as the account that owns the bots; every command of the guide works there, like
                       [dim]docker exec -it trading_postgres psql -U trading_user -d trading_db[/]
  [dim]. .venv/bin/activate[/], then against the same host:
  [dim]ansible-playbook -i inventory/demo playbooks/site.yml --check --diff[/]            what a run would change
  [dim]ansible-playbook -i inventory/demo playbooks/phase2_data_migration.yml[/]          what the bots traded since
  [dim]ansible-playbook -i inventory/demo playbooks/reconcile.yml[/]                      do both sides agree?
  make demo-clean      remove the host
"""


def main() -> int:
    """Prints the summary; 1 when the host does not answer or is not reconciled."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    try:
        host = Host()
        report = host.report()
        tables = [
            services(host.containers()),
            schemas(host.query(TABLES_PER_SCHEMA)),
            bots(host.query(BOTS)),
            runs(host.query(RUNS)),
            rows_per_bot(report),
            trial(host.run(f"cat {host.base}/database/reports/trial_run.txt").splitlines()),
            durations(json.loads(STEPS.read_text())),
        ]
    except (RuntimeError, OSError) as error:
        print(f"The demo host did not answer: {error}\nRun `make demo` again.", file=sys.stderr)
        return 1
    for made in tables:
        console.print(made)
    console.print(verdict(report))
    console.print()
    console.print(NEXT)
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
