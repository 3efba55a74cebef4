#!/usr/bin/env python3
"""Test double of the `influx` command of InfluxDB 2.7, not the real client.

Knows ping, version, org list, bucket list, create and update, and write, with
the options the documentation gives them; everything else is refused.

Exit codes: 0 done, 1 refused by the server or not reachable, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).resolve().parent))
from influxdb_double import VERSION, parse_duration


class CommandError(Exception):
    """The server refused or could not be reached."""


def active_config(environment: dict[str, str]) -> dict[str, Any]:
    """The active entry of the configuration file the first setup wrote."""
    path = Path(environment.get("INFLUX_CONFIGS_PATH") or Path.home() / ".influxdbv2" / "configs")
    if not path.exists():
        return {}
    entries = tomllib.loads(path.read_text())
    return next((entry for entry in entries.values() if entry.get("active")), {})


class Client:
    def __init__(self, host: str, token: str) -> None:
        self.host, self.token = host.rstrip("/"), token

    def call(self, method: str, path: str, query: dict[str, str] | None = None, body: bytes | None = None) -> Any:
        """The JSON answer, or None for an empty one; raises CommandError."""
        url = f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")
        request = urllib.request.Request(url, data=body, method=method)
        if self.token:
            request.add_header("Authorization", f"Token {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                content = answer.read()
        except urllib.error.HTTPError as error:
            message = json.loads(error.read() or b"{}").get("message", "")
            raise CommandError(f"{error.code} {error.reason}: {message}") from error
        except OSError as error:
            raise CommandError(f"{method} {url}: {error}") from error
        return json.loads(content) if content else None


def show(
    rows: list[dict[str, Any]], columns: list[str], as_json: bool, one: bool = False, headers: bool = True
) -> None:
    if as_json:
        print(json.dumps(rows[0] if one else rows, indent="\t", sort_keys=True))
        return
    if headers:
        print("\t".join(columns))
    for row in rows:
        print("\t".join(str(row.get(column, "")) for column in columns))


def bucket_rows(buckets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for bucket in buckets:
        seconds = bucket["retentionRules"][0]["everySeconds"] if bucket["retentionRules"] else 0
        retention = f"{seconds // 3600}h0m0s" if seconds else "infinite"
        row = {"ID": bucket["id"], "Name": bucket["name"], "Retention": retention}
        rows.append(row | {"Organization ID": bucket["orgID"]})
    return rows


def parser_with(config: dict[str, Any], environment: dict[str, str]) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--host", default=environment.get("INFLUX_HOST") or config.get("url", "http://localhost:8086"))
    common.add_argument("-t", "--token", default=environment.get("INFLUX_TOKEN") or config.get("token", ""))
    common.add_argument("-o", "--org", default=environment.get("INFLUX_ORG") or config.get("org", ""))
    common.add_argument("--json", action="store_true")
    common.add_argument("--hide-headers", action="store_true")
    common.add_argument("--skip-verify", action="store_true")
    parser = argparse.ArgumentParser(prog="influx", description="Test double of the influx command", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version")
    commands.add_parser("ping", parents=[common])
    organization = commands.add_parser("org").add_subparsers(dest="action", required=True)
    organization.add_parser("list", aliases=["find", "ls"], parents=[common]).add_argument("-n", "--name")
    bucket = commands.add_parser("bucket").add_subparsers(dest="action", required=True)
    bucket.add_parser("list", aliases=["find", "ls"], parents=[common]).add_argument("-n", "--name")
    create = bucket.add_parser("create", parents=[common])
    create.add_argument("-n", "--name", required=True)
    create.add_argument("-d", "--description", default="")
    create.add_argument("-r", "--retention", default="0")
    update = bucket.add_parser("update", parents=[common])
    update.add_argument("-i", "--id", required=True)
    update.add_argument("-n", "--name")
    update.add_argument("-d", "--description")
    update.add_argument("-r", "--retention")
    write = commands.add_parser("write", parents=[common])
    write.add_argument("-b", "--bucket", required=True)
    write.add_argument("-p", "--precision", default="ns", choices=["ns", "us", "ms", "s"])
    write.add_argument("lines", nargs="?", help="line protocol; standard input where absent or -")
    return parser


def run(arguments: argparse.Namespace) -> None:
    if arguments.command == "version":
        print(f"Influx CLI {VERSION} (test double)")
        return
    client = Client(arguments.host, arguments.token)
    columns = ["ID", "Name", "Retention", "Organization ID"]
    match (arguments.command, getattr(arguments, "action", "")):
        case ("ping", _):
            client.call("GET", "/health")
            print("OK")
        case ("org", _):
            query = {"org": arguments.name} if arguments.name else None
            found = client.call("GET", "/api/v2/orgs", query)["orgs"]
            rows = found if arguments.json else [{"ID": org["id"], "Name": org["name"]} for org in found]
            show(rows, ["ID", "Name"], arguments.json, headers=not arguments.hide_headers)
        case ("bucket", "list" | "find" | "ls"):
            query = {"limit": "100"}
            query.update({"org": arguments.org} if arguments.org else {})
            query.update({"name": arguments.name} if arguments.name else {})
            found = client.call("GET", "/api/v2/buckets", query)["buckets"]
            rows = found if arguments.json else bucket_rows(found)
            show(rows, columns, arguments.json, headers=not arguments.hide_headers)
        case ("bucket", "create"):
            if not arguments.org:
                raise CommandError("must specify org ID or org name")
            org_id = client.call("GET", "/api/v2/orgs", {"org": arguments.org})["orgs"][0]["id"]
            body = {"orgID": org_id, "name": arguments.name, "description": arguments.description}
            body["retentionRules"] = rules(arguments)
            made = client.call("POST", "/api/v2/buckets", body=json.dumps(body).encode())
            show([made] if arguments.json else bucket_rows([made]), columns, arguments.json, one=True)
        case ("bucket", "update"):
            given = {"name": arguments.name, "description": arguments.description}
            changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
            if arguments.retention is not None:
                changes["retentionRules"] = rules(arguments)
            made = client.call("PATCH", f"/api/v2/buckets/{arguments.id}", body=json.dumps(changes).encode())
            show([made] if arguments.json else bucket_rows([made]), columns, arguments.json, one=True)
        case ("write", _):
            lines = sys.stdin.read() if arguments.lines in (None, "-") else arguments.lines
            query = {"org": arguments.org, "bucket": arguments.bucket, "precision": arguments.precision}
            client.call("POST", "/api/v2/write", query, lines.encode())


def rules(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    try:
        return [{"type": "expire", "everySeconds": parse_duration(arguments.retention)}]
    except ValueError as error:
        raise CommandError(str(error)) from error


def main(argv: list[str]) -> int:
    environment = dict(os.environ)
    try:
        run(parser_with(active_config(environment), environment).parse_args(argv))
    except CommandError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
