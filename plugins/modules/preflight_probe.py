#!/usr/bin/python
"""Read what preflight needs to know about a host, and change nothing."""

# The host's Python may be older than the guide asks for: that has to be
# reported, not to fail here, hence no syntax newer than 3.8.
from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_probe
short_description: Read what preflight needs to know about a host
description:
  - Gathers raw facts in one pass, without judging them. Nothing is written,
    started, pulled or created, so check mode runs all of it.
  - Needs the standard library alone. What it cannot read is returned as an
    error beside the fact, never as a failure of the task.
options:
  base_dir: {type: path, required: true, description: Folder of the bots.}
  base_owner: {type: str, required: true, description: Account that owns it.}
  bots: {type: list, elements: dict, required: true, description: The inventory's bots.}
  legacy_schema: {type: dict, required: true, description: Tables, columns and values of the sources.}
  images: {type: list, elements: str, default: [], description: Images to look for.}
  env_file: {type: path, required: true, description: File of the unified secrets.}
  sqlite_lock_seconds:
    type: float
    default: 2.0
    description: Longest time a read lock may hold up a bot that writes.
attributes:
  check_mode: {support: full}
"""

import datetime
import fcntl
import grp
import json
import os
import pwd
import shutil
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule

if TYPE_CHECKING:
    Facts = dict[str, Any]

COMMAND_SECONDS = 60
STATEMENT_SECONDS = 300
TIME_SERVICES = ("chronyd", "ntpd", "openntpd", "systemd-timesyn")
ZONES = "/usr/share/zoneinfo"
CLIENTS = ("psql", "redis-cli", "influx")
WEEKS_OF_OFFSETS = 104
OBSERVED_ROWS = 50
VALUES_NAMED = 5


def run(
    command: list[str], text: str = "", seconds: int = COMMAND_SECONDS, home: str | None = None
) -> tuple[int, str, str]:
    """Exit code, output and error text of a command; 127 where it is missing."""
    environment = dict(os.environ, LC_ALL="C")
    if home:
        environment["HOME"] = home
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            env=environment,
            cwd="/",
            check=False,
        )
    except OSError as error:
        return 127, "", str(error)
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer within {seconds} s"
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def last_line(text: str) -> str:
    return text.splitlines()[-1] if text else ""


def file_facts(path: str) -> Facts:
    """Kind, owner and mode of a path; `exists` is false where there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return {"path": path, "exists": False}
    except OSError as error:
        return {"path": path, "exists": None, "error": error.strerror or str(error)}
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        owner = str(status.st_uid)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return {
        "path": path,
        "exists": True,
        "directory": stat.S_ISDIR(status.st_mode),
        "owner": owner,
        "group": group,
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "size": status.st_size,
    }


def disk_facts(path: str) -> Facts:
    """Free bytes of the file system that holds, or would hold, a path."""
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    status = os.statvfs(path)
    return {
        "path": path,
        "device": os.stat(path).st_dev,
        "free": status.f_bavail * status.f_frsize,
    }


def env_file_facts(path: str) -> Facts:
    """Which keys an env file sets, and whether to something; never the values."""
    facts = file_facts(path)
    if facts["exists"] and not facts["directory"]:
        keys = {}
        try:
            with open(path, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    key, separator, value = line.strip().partition("=")
                    if separator and not key.startswith("#"):
                        keys[key.strip()] = bool(value.strip().strip("'\""))
            facts["keys"] = keys
        except OSError as error:
            facts["error"] = error.strerror
    return facts


def memory_facts() -> Facts:
    values = {}
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            values[name] = int(rest.split()[0]) * 1024
    return {"total": values["MemTotal"], "available": values.get("MemAvailable", 0)}


def process_names() -> dict[str, str]:
    names = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
                names[pid] = comm.read().strip()
        except OSError:
            continue  # It has ended since.
    return names


def address_of(text: str) -> str:
    """The address that /proc/net/tcp prints in the machine's byte order."""
    words = [text[i : i + 8] for i in range(0, len(text), 8)]
    packed = b"".join(struct.pack("=I", int(word, 16)) for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def listener_facts(names: dict[str, str]) -> list[Facts]:
    """Listening TCP sockets, with the process that holds each."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not os.path.exists(table):
            continue
        with open(table, encoding="ascii") as lines:
            for line in lines.readlines()[1:]:
                fields = line.split()
                if fields[3] != "0A":
                    continue
                address, port = fields[1].split(":")
                found.append((address_of(address), int(port, 16), fields[9]))
    inodes = {inode for _, _, inode in found}
    holders: dict[str, str] = {}
    for pid, name in names.items():
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue  # Another user's, or it has ended since.
        for descriptor in descriptors:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            except OSError:
                continue
            if target.startswith("socket:[") and target[8:-1] in inodes:
                holders.setdefault(target[8:-1], f"{name} (pid {pid})")
    return [{"address": address, "port": port, "holder": holders.get(inode)} for address, port, inode in found]


def time_facts(names: dict[str, str]) -> Facts:
    code, output, error = run(["timedatectl", "show"])
    shown = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
    return {
        "services": sorted(set(names.values()) & set(TIME_SERVICES)),
        "synchronized": shown.get("NTPSynchronized") == "yes" if code == 0 else None,
        "error": "" if code == 0 else last_line(error),
    }


def zones_known(zones: Iterable[str]) -> list[str]:
    """Those of the time zones that the host has data for."""
    return sorted(zone for zone in set(zones) if os.path.isfile(os.path.join(ZONES, zone)))


def docker_facts() -> Facts:
    """Versions of the engine and of Compose under both of its names."""
    facts: Facts = {"path": shutil.which("docker"), "server": None, "error": "", "root_dir": None}
    if facts["path"]:
        code, output, error = run(["docker", "version", "--format", "{{json .Server}}"])
        try:
            server = json.loads(output) if code == 0 else None
        except ValueError:
            server = None
        facts["server"] = (server or {}).get("Version")
        if not facts["server"]:
            facts["error"] = last_line(error) or last_line(output)
        code, output, _ = run(["docker", "compose", "version", "--short"])
        facts["compose"] = output if code == 0 else None
        code, output, _ = run(["docker", "info", "--format", "{{.DockerRootDir}}"])
        facts["root_dir"] = output if code == 0 else None
    facts["docker_compose_path"] = shutil.which("docker-compose")
    if facts["docker_compose_path"]:
        code, output, _ = run(["docker-compose", "version", "--short"])
        facts["docker_compose"] = output if code == 0 else None
    return facts


def container_facts() -> list[Facts]:
    _, ids, _ = run(["docker", "ps", "--all", "--quiet", "--no-trunc"])
    if not ids:
        return []
    # One that is removed meanwhile makes the code non-zero: the rest is printed.
    _, output, _ = run(["docker", "inspect", "--type", "container"] + ids.split())
    containers = []
    for entry in json.loads(output or "[]"):
        labels = entry["Config"].get("Labels") or {}
        state = entry["State"]
        bindings = (entry["HostConfig"].get("PortBindings") or {}).items()
        containers.append(
            {
                "name": entry["Name"].lstrip("/"),
                "state": state["Status"],
                "health": (state.get("Health") or {}).get("Status"),
                "image": entry["Config"]["Image"],
                "project": labels.get("com.docker.compose.project"),
                "restart": entry["HostConfig"].get("RestartPolicy", {}).get("Name") or "no",
                "memory": entry["HostConfig"].get("Memory") or 0,
                "ports": [
                    {
                        "address": binding.get("HostIp") or "0.0.0.0",
                        "port": int(binding["HostPort"]),
                        "inside": inside,
                    }
                    for inside, held in bindings
                    for binding in held or []
                    if binding.get("HostPort")
                ],
            }
        )
    return containers


def volume_names() -> list[str]:
    _, output, _ = run(["docker", "volume", "ls", "--format", "{{.Name}}"])
    return sorted(output.splitlines())


def images_present(images: list[str]) -> list[str]:
    return [name for name in images if run(["docker", "image", "inspect", name])[0] == 0]


def account_facts(name: str) -> Facts:
    """Whether the account exists and may use Docker, tried as that account."""
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        return {"exists": False}
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    if os.geteuid() == 0:
        command = ["runuser", "-u", name, "--"] + command
    elif os.geteuid() != account.pw_uid:
        return {"exists": True, "docker": None, "error": "cannot be tried without sudo"}
    code, _, error = run(command, home=account.pw_dir)
    return {"exists": True, "docker": code == 0, "error": last_line(error)}


def container_offsets(name: str) -> list[Facts]:
    """Seconds ahead of UTC of a container's clock, week by week for two years.

    Asked of the container, because a TZ without time zone data means UTC.
    """
    now = int(time.time())
    instants = [now - week * 7 * 86400 for week in range(WEEKS_OF_OFFSETS)]
    loop = "for t in {}; do date -d @$t +%z; done".format(" ".join(map(str, instants)))
    code, output, _ = run(["docker", "exec", name, "sh", "-c", loop])
    found = output.split()
    if code != 0 or len(found) != len(instants):
        return []
    return [{"at": at, "offset": seconds_of(found[number])} for number, at in enumerate(instants)]


def seconds_of(offset: str) -> int:
    """Seconds ahead of UTC of an offset as date prints it: -0330."""
    return int(offset[0] + "1") * (int(offset[1:3]) * 3600 + int(offset[3:5]) * 60)


def literal(value: str) -> str:
    return "'{}'".format(value.replace("'", "''"))


def unknown_values_sql(relation: str, column: str, allowed: list[str]) -> str:
    """Rows of a column, by value, that are not in the list in any case."""
    return (
        'SELECT CAST("{}" AS TEXT) AS value, count(*) AS number FROM {} '
        'WHERE lower("{}") NOT IN ({}) OR "{}" IS NULL GROUP BY 1 ORDER BY 2 DESC, 1'.format(
            column, relation, column, ", ".join(map(literal, allowed)), column
        )
    )


def checked_columns(schema: Facts, columns: dict[str, list[str]]) -> list[tuple[str, str, list[str]]]:
    return [
        (table, column, allowed)
        for table, constrained in schema.get("values", {}).items()
        for column, allowed in constrained.items()
        if column in columns.get(table, [])
    ]


def unknown_values(table: str, column: str, rows: list[Any]) -> Facts:
    return {
        "table": table,
        "column": column,
        "rows": sum(number for _, number in rows),
        "values": [value for value, _ in rows[:VALUES_NAMED]],
    }


def psql(source: Facts, sql: str) -> tuple[int, str, str]:
    """Output of a read-only session inside the source's own container."""
    settings = f"-c default_transaction_read_only=on -c lock_timeout=5s -c statement_timeout={STATEMENT_SECONDS}s"
    return run(
        ["docker", "exec", "-i", "-e", "PGOPTIONS=" + settings, "-e", "PGAPPNAME=preflight"]
        + [str(source["container"]), "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        + ["-U", str(source["user"]), "-d", str(source["database"]), "-f", "-"],
        text=sql,
        seconds=STATEMENT_SECONDS,
    )


def postgres_facts(source: Facts, schema: Facts) -> Facts:
    """Version, size, columns and unknown values of a PostgreSQL source."""
    missing = [key for key in ("container", "user", "database") if not source.get(key)]
    if missing:
        return {"error": "the inventory does not name its {}".format(" and ".join(missing))}
    code, output, error = psql(
        source,
        """SELECT json_build_object(
             'version', current_setting('server_version'),
             'size', pg_database_size(current_database()),
             'columns', (SELECT json_object_agg(table_name, names) FROM (
                SELECT c.table_name, json_agg(c.column_name ORDER BY c.ordinal_position) AS names
                FROM information_schema.columns c
                JOIN information_schema.tables t USING (table_schema, table_name)
                WHERE c.table_schema = {} AND t.table_type = 'BASE TABLE'
                GROUP BY c.table_name) AS found));""".format(literal(schema["schema"])),
    )
    if code != 0:
        return {"error": last_line(error) or f"psql ended with code {code}"}
    facts: Facts = json.loads(output)
    facts["columns"] = facts["columns"] or {}
    facts["unknown"] = []
    for table, column, allowed in checked_columns(schema, facts["columns"]):
        unknown = unknown_values_sql(f'"{schema["schema"]}"."{table}"', column, allowed)
        code, output, error = psql(
            source,
            f"SELECT coalesce(json_agg(json_build_array(value, number)), '[]') FROM ({unknown}) AS found;",
        )
        if code != 0:
            facts["error"] = f"{table}.{column}: {last_line(error)}"
            break
        rows = json.loads(output)
        if rows:
            facts["unknown"].append(unknown_values(table, column, rows))
    return facts


def sqlite_path(source: Facts, base_dir: str) -> tuple[str | None, str]:
    """Where the file is on the host, or why that cannot be told."""
    if not source.get("path"):
        return None, "the inventory does not name its path"
    if not source.get("volume"):
        return os.path.join(base_dir, str(source["path"])), ""
    code, output, error = run(["docker", "volume", "inspect", "--format", "{{.Mountpoint}}", str(source["volume"])])
    if code != 0:
        return None, "volume {}: {}".format(source["volume"], last_line(error))
    return os.path.join(output, str(source["path"]).lstrip("/")), ""


def open_sqlite(path: str, options: str) -> sqlite3.Connection:
    uri = f"file:{urllib.parse.quote(path)}?mode=ro&{options}"
    return sqlite3.connect(uri, uri=True, timeout=5, isolation_level=None)


def read_sqlite(path: str, schema: Facts, lock_seconds: float) -> Facts:
    """What a SQLite source holds, read without a trace on the disk.

    A database in WAL mode that nobody has open would get -wal and -shm files
    from a plain read-only connection: it is opened as immutable. One whose bot
    has it open is read through the shared memory that is there, read-only too.
    """
    with open(path, "rb") as file:
        header = file.read(20)
    if header and not header.startswith(b"SQLite format 3\x00"):
        return {"state": "corrupt", "error": "file is not a database"}
    wal_mode = header[18:20] == b"\x02\x02"
    wal, shm = path + "-wal", path + "-shm"
    if wal_mode and not (os.path.exists(wal) and os.path.exists(shm)):
        # Without shared memory nobody has it open, or one process all for itself.
        if write_locked(path):
            return {"state": "locked", "error": "a process holds it exclusively"}
        if os.path.exists(wal) and os.path.getsize(wal) > 0:
            return read_sqlite_copy(path, schema)
        connection = open_sqlite(path, "immutable=1")
    else:
        connection = open_sqlite(path, "readonly_shm=1")
    try:
        facts = inspect_sqlite(connection, schema, None if wal_mode else lock_seconds)
    except sqlite3.OperationalError as error:
        if "readonly" not in str(error):
            raise
        return read_sqlite_copy(path, schema)
    finally:
        connection.close()
    facts["journal"] = "wal" if wal_mode else "delete"
    return facts


def write_locked(path: str) -> bool:
    """Whether a process holds SQLite's lock bytes for writing; takes no lock."""
    question = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 2**30, 512, 0)
    with open(path, "rb") as file:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    return bool(struct.unpack("hhqqi4x", answer)[0] == fcntl.F_WRLCK)


def read_sqlite_copy(path: str, schema: Facts) -> Facts:
    """The same for a file whose writer died: recovery happens on a copy."""
    with tempfile.TemporaryDirectory(prefix="preflight-") as folder:
        copy = os.path.join(folder, "copy.db")
        for suffix in ("", "-wal", "-journal"):
            if os.path.exists(path + suffix):
                shutil.copyfile(path + suffix, copy + suffix)
        connection = sqlite3.connect(copy, isolation_level=None)
        try:
            facts = inspect_sqlite(connection, schema, None)
        finally:
            connection.close()
    facts["unfinished"] = True
    return facts


def limit_statement(connection: sqlite3.Connection, seconds: float | None) -> None:
    """Have the next statement broken off after this time.

    With a rollback journal a long read keeps the bot from committing.
    """
    if seconds is None:
        connection.set_progress_handler(None, 0)
        return
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 10000)


def inspect_sqlite(connection: sqlite3.Connection, schema: Facts, lock_seconds: float | None) -> Facts:
    facts: Facts = {"state": "ok", "columns": {}, "unknown": [], "observed": []}
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    )
    for (table,) in names.fetchall():
        columns = connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
        facts["columns"][table] = [name for (name,) in columns]
    try:
        limit_statement(connection, lock_seconds)
        problems = [text for (text,) in connection.execute("PRAGMA integrity_check(3)")]
        if problems != ["ok"]:
            error = " / ".join(" ".join(text.split()) for text in problems)
            return dict(facts, state="corrupt", error=error)
        for table, column, allowed in checked_columns(schema, facts["columns"]):
            limit_statement(connection, lock_seconds)
            rows = connection.execute(unknown_values_sql(f'"{table}"', column, allowed)).fetchall()
            if rows:
                facts["unknown"].append(unknown_values(table, column, rows))
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        facts["state"] = "unchecked"
    limit_statement(connection, None)
    if {"entry_time", "created_at", "id"} <= set(facts["columns"].get("trades", [])):
        facts["observed"] = observed_offsets(
            connection.execute(
                "SELECT entry_time, created_at FROM trades ORDER BY id DESC LIMIT ?",
                (OBSERVED_ROWS,),
            ).fetchall()
        )
    return facts


def observed_offsets(rows: list[Any]) -> list[Facts]:
    """Seconds between a row's naive local time and its own time in UTC.

    Rounded to the quarter hours in which time zones differ. Rows that were not
    written when they happened (imported ones) say nothing and are left out.
    """
    found = []
    for local, utc in rows:
        try:
            written = datetime.datetime.fromisoformat(utc)
            apart = (datetime.datetime.fromisoformat(local) - written).total_seconds()
        except (TypeError, ValueError):
            continue
        offset = round(apart / 900) * 900
        if abs(apart - offset) < 60 and abs(offset) <= 14 * 3600:
            at = written.replace(tzinfo=datetime.timezone.utc).timestamp()
            found.append({"at": int(at), "offset": offset})
    return found


def sqlite_facts(source: Facts, schema: Facts, base_dir: str, lock_seconds: float) -> Facts:
    """State of a SQLite source: ok, unchecked, absent, locked, corrupt, unreadable."""
    path, error = sqlite_path(source, base_dir)
    facts: Facts = {"path": path}
    if path is None:
        return dict(facts, state="absent", error=error)
    try:
        if not os.path.isfile(path):
            os.stat(path)
            return dict(facts, state="unreadable", error="is not a file")
        facts["size"] = sum(os.path.getsize(path + suffix) for suffix in ("", "-wal") if os.path.exists(path + suffix))
        facts.update(read_sqlite(path, schema, lock_seconds))
    except FileNotFoundError:
        facts.update(state="absent", error="no such file")
    except OSError as failure:
        facts.update(state="unreadable", error=failure.strerror or str(failure))
    except sqlite3.DatabaseError as failure:
        busy = "locked" in str(failure)
        known = busy or not isinstance(failure, sqlite3.OperationalError)
        state = "locked" if busy else "corrupt" if known else "unreadable"
        facts.update(state=state, error=str(failure))
    return facts


def mapping(value: Any) -> Facts:
    """The value where it is a mapping: the inventory may be wrong."""
    return value if isinstance(value, dict) else {}


def bot_facts(bot: Facts, parameters: Facts, containers: list[Facts]) -> Facts:
    """What the host knows of one bot of the inventory, however ill described."""
    base_dir, schemas = parameters["base_dir"], parameters["legacy_schema"]
    folder = os.path.join(base_dir, str(bot.get("folder") or bot.get("id") or ""))
    legacy = mapping(bot.get("legacy"))
    facts: Facts = {"folder": file_facts(folder), "env": file_facts(os.path.join(folder, ".env"))}
    states = {container["name"]: container["state"] for container in containers}
    if states.get(str(legacy.get("container"))) == "running":
        facts["offsets"] = container_offsets(legacy["container"])
    source = mapping(legacy.get("postgres"))
    if source:
        state = states.get(str(source.get("container")), "does not exist")
        if state == "running":
            facts["postgres"] = postgres_facts(source, schemas["shortseller"])
        else:
            facts["postgres"] = {"state": state, "error": state}
    source = mapping(legacy.get("sqlite"))
    if source:
        lock_seconds = parameters["sqlite_lock_seconds"]
        facts["sqlite"] = sqlite_facts(source, schemas["momentum"], base_dir, lock_seconds)
    return facts


def probe(parameters: Facts) -> Facts:
    base_dir = parameters["base_dir"]
    names = process_names()
    docker = docker_facts()
    containers = container_facts() if docker["server"] else []
    return {
        "user": pwd.getpwuid(os.geteuid()).pw_name,
        "python": {
            "version": ".".join(map(str, sys.version_info[:3])),
            "path": sys.executable,
            "command": shutil.which("python"),
        },
        "apt": shutil.which("apt-get"),
        "zones": zones_known(str(bot.get("timezone")) for bot in parameters["bots"]),
        "clients": {name: shutil.which(name) for name in CLIENTS},
        "docker": docker,
        "account": account_facts(parameters["base_owner"]),
        "base": file_facts(base_dir),
        "legacy_compose_file": file_facts(os.path.join(base_dir, "docker-compose.yml")),
        "database": file_facts(os.path.join(base_dir, "database")),
        "env_file": env_file_facts(parameters["env_file"]),
        "disk": {
            "base": disk_facts(base_dir),
            "docker": disk_facts(docker["root_dir"] or "/var/lib/docker"),
        },
        "memory": memory_facts(),
        "listeners": listener_facts(names),
        "time": time_facts(names),
        "containers": containers,
        "volumes": volume_names() if docker["server"] else [],
        "images": images_present(parameters["images"]) if docker["server"] else [],
        "bots": [bot_facts(bot, parameters, containers) for bot in parameters["bots"]],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "base_dir": {"type": "path", "required": True},
            "base_owner": {"type": "str", "required": True},
            "bots": {"type": "list", "elements": "dict", "required": True},
            "legacy_schema": {"type": "dict", "required": True},
            "images": {"type": "list", "elements": "str", "default": []},
            "env_file": {"type": "path", "required": True},
            "sqlite_lock_seconds": {"type": "float", "default": 2.0},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, facts=probe(module.params))


if __name__ == "__main__":
    main()
