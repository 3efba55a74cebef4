"""Judge what preflight has read: pure functions, facts in, findings out.

A finding is a dict of `severity` (ok, warning, blocker), `fact`, `found`,
`expected` and `remedy`; the remedy of an `ok` is empty or says what the
playbooks will do. Facts come from the module preflight_probe, expectations
from the role's variables.
"""

from __future__ import annotations

import re
import textwrap
import zoneinfo
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

Facts = Mapping[str, Any]
Finding = dict[str, str]

OK, WARNING, BLOCKER = "ok", "warning", "blocker"
WILDCARDS = {"0.0.0.0", "::", ""}
UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
BOT_ID = re.compile(r"(?!.*_trial$)[a-z0-9][a-z0-9_]{0,43}")
# What each type of bot needs to be told about its history.
SOURCES = {"shortseller": "postgres", "momentum": "sqlite", "lxalgo": None}
SOURCE_KEYS = {
    "postgres": ("container", "port", "database", "user"),
    "sqlite": ("path",),
}
NUMBERS = (
    "initial_capital",
    "max_positions",
    "leverage_limit",
    "max_daily_loss_pct",
    "max_weekly_loss_pct",
    "max_drawdown_pct",
)
CLIENT_CONTAINERS = {"psql": "postgres", "redis-cli": "redis", "influx": "influxdb"}
ACKNOWLEDGEMENTS = {
    "catalogue_reviewed": "the architecture catalogue has been reviewed",
    "databases_backed_up": "all existing databases are backed up",
    "staging_rehearsed": "the migration was rehearsed in staging",
    "window_scheduled": "the maintenance window is scheduled",
    "stakeholders_notified": "the stakeholders are notified",
}


def finding(severity: str, fact: str, found: Any, expected: Any, remedy: str = "") -> Finding:
    return {
        "severity": severity,
        "fact": fact,
        "found": str(found),
        "expected": str(expected),
        "remedy": remedy,
    }


def version_of(text: str | None) -> tuple[int, ...]:
    """(20, 10, 24) of "v20.10.24+dfsg1"; empty where there is no number."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", text or "")
    return tuple(map(int, match.group(1).split("."))) if match else ()


def bytes_of(size: Any) -> int:
    """Bytes of a size as Compose writes it: 512m, 1.5g, 1073741824."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([bkmgt]?)i?b?", str(size).strip().lower())
    if not match:
        raise ValueError(f"{size!r} is not a size such as 512m or 1.5g")
    return int(float(match.group(1)) * UNITS[match.group(2)])


def readable(number: float) -> str:
    mib = number / 2**20
    return f"{mib:.1f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"


def names(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))


def clock(seconds: int) -> str:
    sign = "-" if seconds < 0 else "+"
    return f"UTC{sign}{abs(seconds) // 3600:02d}:{abs(seconds) % 3600 // 60:02d}"


def minimum(fact: str, found: str | None, lowest: str, remedy: str) -> Finding:
    good = version_of(found) >= version_of(lowest)
    severity = OK if good else BLOCKER
    return finding(severity, fact, found or "none", f">= {lowest}", "" if good else remedy)


def host_findings(facts: Facts, expected: Facts) -> Iterator[Finding]:
    python = facts["python"]
    yield minimum(
        "Python",
        python["version"],
        expected["python_minimum"],
        f"Install a newer python3 and name it as ansible_python_interpreter: {python['path']} is what Ansible uses.",
    )
    yield finding(
        OK,
        "command python",
        python["command"] or "none",
        "on the PATH: the guide's commands call it so",
        "" if python["command"] else "Phase 1 installs it.",
    )
    yield finding(
        OK if facts["apt"] else BLOCKER,
        "package manager",
        facts["apt"] or "no apt-get",
        "apt-get: phase 1 installs Debian's packages",
        "" if facts["apt"] else "Use a Debian or Ubuntu host.",
    )
    privileged = expected["privileged"]
    yield finding(
        OK if privileged else BLOCKER,
        "privileges",
        f"becomes {facts['user']}" if privileged else f"cannot become root: {expected['refusal']}",
        "the connecting account becomes root through sudo",
        ""
        if privileged
        else "Give the account sudo on the host; where sudo asks for a password, run with"
        " --ask-become-pass. Until then what only root can read is missing below.",
    )
    times = facts["time"]
    services = names(times["services"]) or "no time service runs"
    if times["synchronized"]:
        yield finding(OK, "time synchronisation", f"synchronised ({services})", "synchronised")
    else:
        yield finding(
            WARNING,
            "time synchronisation",
            f"{services}; " + ("unknown: " + times["error"] if times["error"] else "not synchronised"),
            "a synchronised clock: the order of trades is told by their times",
            "apt-get install systemd-timesyncd (or chrony), then timedatectl set-ntp true.",
        )
    containers = expected["containers"]
    for client, path in facts["clients"].items():
        yield finding(
            OK,
            f"client {client}",
            path or "not on the host",
            f"comes with the container {containers[CLIENT_CONTAINERS[client]]}",
        )


def docker_findings(facts: Facts, expected: Facts) -> Iterator[Finding]:
    docker, owner = facts["docker"], expected["base_owner"]
    if not docker["path"]:
        yield finding(
            BLOCKER,
            "Docker Engine",
            "not installed",
            f">= {expected['docker_minimum']}",
            "apt-get install docker.io docker-compose.",
        )
        return
    if not docker["server"]:
        yield finding(
            BLOCKER,
            "Docker Engine",
            f"does not answer: {docker['error']}",
            f">= {expected['docker_minimum']}, running",
            "systemctl enable --now docker; journalctl -u docker tells why it stopped.",
        )
    else:
        yield minimum(
            "Docker Engine",
            docker["server"],
            expected["docker_minimum"],
            "Upgrade the package docker.io or docker-ce.",
        )
    yield minimum(
        "Docker Compose, as docker compose",
        docker["compose"],
        expected["compose_minimum"],
        "apt-get install docker-compose-plugin (Docker's repository) or docker-compose (Debian 13 and later).",
    )
    path = docker["docker_compose_path"]
    fact = "Docker Compose, as docker-compose"
    if path and version_of(docker["docker_compose"]) < version_of(expected["compose_minimum"]):
        yield finding(
            WARNING,
            fact,
            f"{docker['docker_compose'] or 'does not run'} ({path})",
            f">= {expected['compose_minimum']}: the guide's commands call it so",
            f"Remove {path}, or use docker compose where the guide says docker-compose.",
        )
    else:
        yield finding(
            OK,
            fact,
            f"{docker['docker_compose']} ({path})" if path else "none",
            f">= {expected['compose_minimum']}: the guide's commands call it so",
            "" if path else "Phase 1 installs it.",
        )
    account = facts["account"]
    if account["exists"] and docker["server"]:
        allowed = account["docker"]
        yield finding(
            OK if allowed else WARNING,
            f"Docker for {owner}",
            "allowed" if allowed else account["error"] or "refused",
            "may use Docker: the guide's commands are run by this account",
            "" if allowed else f"usermod -aG docker {owner}, then log in anew.",
        )


def base_findings(facts: Facts, expected: Facts) -> Iterator[Finding]:
    base, owner, group = facts["base"], expected["base_owner"], expected["base_group"]
    path = expected["base_dir"]
    if not facts["account"]["exists"]:
        yield finding(
            BLOCKER,
            "owner's account",
            f"no account {owner}",
            "the account that owns the base folder",
            f"Set base_owner in {expected['inventory']}, or create the account.",
        )
    if not base["exists"] or not base["directory"]:
        found = "is a file" if base["exists"] else base.get("error", "does not exist")
        yield finding(
            BLOCKER,
            "base folder",
            f"{path} {found}",
            "the existing folder of the bots",
            f"Set base_dir in {expected['inventory']} to the folder that holds the bots.",
        )
        return
    held = f"{base['owner']}:{base['group']}"
    good = held == f"{owner}:{group}"
    yield finding(
        OK if good else BLOCKER,
        "base folder",
        f"{path}, {held} {base['mode']}",
        f"owned by {owner}:{group}",
        "" if good else f"Set base_owner and base_group in {expected['inventory']}, or chown {owner}:{group} {path}.",
    )
    compose = facts["legacy_compose_file"]
    yield finding(
        OK if compose["exists"] else WARNING,
        "legacy compose file",
        compose["path"] if compose["exists"] else f"no {compose['path']}",
        "docker-compose.yml in the base folder: the way back starts it",
        "" if compose["exists"] else f"Check that base_dir in {expected['inventory']} is right.",
    )


def source_size(bot: Facts) -> int | None:
    """Bytes of a bot's source, None where it has one that was not read."""
    sizes = [source.get("size") for key in ("postgres", "sqlite") if (source := bot.get(key))]
    return None if None in sizes else sum(size for size in sizes if size)


def disk_findings(facts: Facts, expected: Facts) -> Iterator[Finding]:
    sizes = [source_size(bot) for bot in facts["bots"]]
    sources = sum(size for size in sizes if size)
    images = list(expected["images"].values())
    absent = [name for name in images if name not in facts["images"]]
    pulled = bytes_of(expected["images_size"]) * len(absent) // max(len(images), 1)
    reserve = bytes_of(expected["disk_reserve"])
    parts = {
        "docker": [(sources * expected["database_factor"], "databases"), (pulled, "images")],
        "base": [(sources * expected["backup_factor"], "backups")],
    }
    disks = facts["disk"]
    if disks["docker"]["device"] == disks["base"]["device"]:
        parts = {"base": parts["docker"] + parts["base"]}
    unread = "" if None not in sizes else ", not counting sources that could not be read"
    for key, needs in parts.items():
        disk = disks[key]
        needs = [*needs, (reserve, "reserve")]
        need = int(sum(size for size, _ in needs))
        enough = disk["free"] >= need
        what = names(f"{readable(size)} {name}" for size, name in needs)
        yield finding(
            OK if enough else BLOCKER,
            f"disk of {disk['path']}",
            f"{readable(disk['free'])} free",
            f"{readable(need)} ({what}; sources of {readable(sources)}{unread})",
            "" if enough else f"Free or add {readable(need - disk['free'])} on {disk['path']}.",
        )


def memory_findings(facts: Facts, expected: Facts) -> Iterator[Finding]:
    total = facts["memory"]["total"]
    unified = sum(bytes_of(limit) for limit in expected["memory_limits"].values())
    others = sum(
        container["memory"]
        for container in facts["containers"]
        if container["state"] == "running" and container["project"] != expected["compose_project"]
    )
    wanted = f"{readable(unified)} for the unified services"
    if others:
        wanted += f" and {readable(others)} for the containers beside them, by their limits"
    severity = BLOCKER if total < unified else WARNING if total < unified + others else OK
    yield finding(
        severity,
        "memory",
        f"{readable(total)}, {readable(facts['memory']['available'])} of it available",
        wanted,
        "" if severity == OK else f"Add memory, or lower the services' memory limits in {expected['inventory']}.",
    )


def overlap(one: str, other: str) -> bool:
    """Whether sockets on these two addresses exclude each other."""
    one, other = one.removeprefix("::ffff:"), other.removeprefix("::ffff:")
    return one == other or one in WILDCARDS or other in WILDCARDS


def port_findings(facts: Facts, expected: Facts) -> Iterator[Finding]:
    ports, address = expected["ports"], expected["address"]
    for port, count in Counter(ports.values()).items():
        if count > 1:
            yield finding(
                BLOCKER,
                f"port {port}",
                "wanted by " + names(name for name in ports if ports[name] == port),
                "a port for one service only",
                f"Change `ports` in {expected['inventory']}.",
            )
    for service, port in ports.items():
        fact = f"port {port} for {service}"
        publishers = [
            container
            for container in facts["containers"]
            if container["state"] == "running"
            and any(p["port"] == port and overlap(p["address"], address) for p in container["ports"])
        ]
        listeners = [
            listener
            for listener in facts["listeners"]
            if listener["port"] == port and overlap(listener["address"], address)
        ]
        own = [c for c in publishers if c["project"] == expected["compose_project"]]
        wanted = f"free on {address}"
        if own:
            yield finding(OK, fact, f"held by our own {names(c['name'] for c in own)}", wanted)
        elif publishers or listeners:
            holders = [f"container {container['name']}" for container in publishers] or sorted(
                {listener["holder"] or "an unknown process" for listener in listeners}
            )
            yield finding(
                BLOCKER,
                fact,
                f"in use by {names(holders)}",
                wanted,
                f"Stop it, or set another `ports.{service}` in {expected['inventory']}.",
            )
        else:
            yield finding(OK, fact, "free", wanted)


def legacy_container_findings(facts: Facts, expected: Facts) -> Iterator[Finding]:
    if not facts["docker"]["server"]:
        return
    held = {container["name"]: container for container in facts["containers"]}
    for bot in expected["bots"]:
        name = legacy_of(bot).get("container")
        if not name:
            continue
        fact, container = f"legacy container {name}", held.get(name)
        if container is None or container["state"] != "running":
            yield finding(
                WARNING,
                fact,
                container["state"] if container else "does not exist",
                "running",
                "Phase 2 migrates its history all the same. Start it with docker-compose up -d in"
                f" {expected['base_dir']}, or correct legacy.container of {bot.get('id')} in"
                f" {expected['inventory']}.",
            )
            continue
        project, ours = container["project"], expected["compose_project"]
        if project == ours:
            yield finding(
                BLOCKER,
                fact,
                f"belongs to the compose project {project}",
                "a project of its own: `down` of one would stop the other",
                f"Set another compose_project in {expected['inventory']}.",
            )
        elif project != expected["legacy_compose_project"]:
            yield finding(
                WARNING,
                fact,
                f"running, compose project {project or 'none'}",
                f"compose project {expected['legacy_compose_project']}",
                f"Set legacy_compose_project in {expected['inventory']}.",
            )
        else:
            yield finding(OK, fact, f"running, restart policy {container['restart']}", "running")


def legacy_of(bot: Facts, source: str = "") -> Facts:
    """What the inventory says of a bot's legacy, or of one source; empty where it is no mapping."""
    legacy = bot.get("legacy")
    part = legacy.get(source) if source and isinstance(legacy, Mapping) else legacy
    return part if isinstance(part, Mapping) else {}


def zone_known(zone: Any) -> bool:
    try:
        zoneinfo.ZoneInfo(str(zone))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return bool(zone)


def offset_of(zone: str, at: int) -> int:
    """Seconds ahead of UTC of a zone at an instant (seconds since 1970)."""
    offset = datetime.fromtimestamp(at, UTC).astimezone(zoneinfo.ZoneInfo(zone))
    return int(offset.utcoffset().total_seconds())  # type: ignore[union-attr]


def inventory_findings(facts: Facts, expected: Facts) -> Iterator[Finding]:
    bots, inventory = expected["bots"], expected["inventory"]
    if not bots:
        yield finding(BLOCKER, "bots", "none", "at least one bot", f"List the `bots` in {inventory}.")
    zones = zone_known("UTC") and zone_known("Europe/Berlin")
    if not zones:
        yield finding(
            WARNING,
            "time zones of the controller",
            "no time zone database",
            "one, to check the bots' time zones with",
            "Install the package tzdata where ansible-playbook runs.",
        )
    for key in ("id", "folder"):
        for value, count in Counter(str(bot.get(key)) for bot in bots if bot.get(key)).items():
            if count > 1:
                yield finding(
                    BLOCKER,
                    f"bots, {key} {value}",
                    f"given to {count} bots",
                    "one bot each",
                    f"Make each {key} in `bots` of {inventory} unique.",
                )
    for zone in sorted({str(bot.get("timezone", "UTC")) for bot in bots} - {"UTC", *facts["zones"]}):
        if zone_known(zone):
            yield finding(
                BLOCKER,
                f"time zone data for {zone}",
                "none on the host",
                "there: the migration reads naive times on the host",
                "apt-get install tzdata (tzdata-legacy for an old name).",
            )
    for number, bot in enumerate(bots, start=1):
        problems = list(bot_problems(bot, zones))
        name = f"inventory of bot {bot.get('id') or f'number {number}'}"
        for found, wanted in problems:
            yield finding(BLOCKER, name, found, wanted, f"Correct `bots` in {inventory}.")
        if not problems:
            yield finding(OK, name, f"type {bot['type']}, time zone {bot.get('timezone', 'UTC')}", "valid")


def bot_problems(bot: Facts, zones: bool) -> Iterator[tuple[str, str]]:
    """What is wrong with one bot of the inventory, as found and expected."""
    if not BOT_ID.fullmatch(str(bot.get("id") or "")):
        yield f"id {bot.get('id')!r}", "up to 44 of a-z, 0-9 and _, with no _trial at its end"
    for key in ("name", "strategy", "folder"):
        if not bot.get(key):
            yield f"no {key}", f"a {key}"
    kind = bot.get("type")
    if kind not in SOURCES:
        yield f"unknown bot type {kind!r}", f"one of {names(SOURCES)}"
    elif source := SOURCES[kind]:
        given = legacy_of(bot, source)
        for key in SOURCE_KEYS[source]:
            if not given.get(key):
                yield f"no legacy.{source}.{key}", f"where the history of a {kind} is"
    zone = bot.get("timezone", "UTC")
    if zones and not zone_known(zone):
        yield f"unknown time zone {zone!r}", "a name such as UTC or Europe/Berlin"
    for key in NUMBERS:
        try:
            good = float(bot.get(key, 0)) >= 0
        except (TypeError, ValueError):
            good = False
        if not good:
            yield f"{key} {bot.get(key)!r}", "a number that is not negative"


def bot_findings(facts: Facts, expected: Facts) -> Iterator[Finding]:
    for bot, found in zip(expected["bots"], facts["bots"], strict=True):
        bot_id = bot.get("id") or "(no id)"
        yield from folder_findings(bot_id, found, expected)
        if "postgres" in found:
            yield from postgres_findings(bot_id, legacy_of(bot, "postgres"), found, facts, expected)
        if "sqlite" in found:
            yield from sqlite_findings(bot_id, found["sqlite"], expected)
        if bot.get("type") in SOURCES and zone_known(bot.get("timezone", "UTC")):
            yield from zone_findings(bot_id, bot, found, expected)


def folder_findings(bot_id: str, bot: Facts, expected: Facts) -> Iterator[Finding]:
    folder, env = bot["folder"], bot["env"]
    if not folder["exists"] or not folder["directory"]:
        yield finding(
            BLOCKER,
            f"folder of {bot_id}",
            f"no folder {folder['path']}",
            "the bot's folder",
            f"Set `folder` of {bot_id} in {expected['inventory']}.",
        )
        return
    yield finding(OK, f"folder of {bot_id}", folder["path"], "the bot's folder")
    fact = f"env file of {bot_id}"
    if not env["exists"]:
        yield finding(
            WARNING,
            fact,
            f"no {env['path']}",
            "the bot's .env: phase 3 adds the keys of the unified database to it",
            f"Check `folder` of {bot_id} in {expected['inventory']}.",
        )
    elif int(env["mode"], 8) & 0o007:
        yield finding(
            WARNING,
            fact,
            f"{env['path']} has mode {env['mode']}",
            "closed to other users: it holds exchange keys",
            f"chmod o= {env['path']}.",
        )
    else:
        yield finding(OK, fact, f"{env['path']}, mode {env['mode']}", "exists")


def postgres_findings(bot_id: str, source: Facts, bot: Facts, facts: Facts, expected: Facts) -> Iterator[Finding]:
    database, fact = bot["postgres"], f"legacy database of {bot_id}"
    container = source.get("container")
    wanted = f"{source.get('database')} answers {source.get('user')} in container {container}"
    if "version" not in database:
        remedies = {
            None: f"See docker logs {container}.",
            "does not exist": f"Start the legacy system: docker-compose up -d in {expected['base_dir']}.",
        }
        remedy = remedies.get(database.get("state"), f"docker start {container}.")
        remedy += f" Or correct legacy.postgres of {bot_id} in {expected['inventory']}."
        found = f"container {container}: {database['error']}"
        yield finding(BLOCKER, fact, found, wanted, remedy)
        return
    size = readable(database["size"])
    yield finding(OK, fact, f"answers, PostgreSQL {database['version']}, {size}", wanted)
    published = [
        port["port"]
        for held in facts["containers"]
        if held["name"] == container
        for port in held["ports"]
        if port["inside"] == "5432/tcp"
    ]
    good = str(source.get("port")) in map(str, published)
    yield finding(
        OK if good else BLOCKER,
        f"published port of {container}",
        names(published) or "none",
        source.get("port"),
        "" if good else f"Set legacy.postgres.port of {bot_id} in {expected['inventory']}.",
    )
    if "error" in database:
        yield finding(
            BLOCKER,
            f"values of {bot_id}",
            database["error"],
            "readable",
            f"Repair the legacy database: docker logs {container}.",
        )
    schema = expected["schema"]["shortseller"]
    yield from schema_findings(bot_id, database, schema, schema["schema"] + ".", expected)


def sqlite_findings(bot_id: str, file: Facts, expected: Facts) -> Iterator[Finding]:
    fact, state = f"SQLite file of {bot_id}", file["state"]
    wanted = "a readable SQLite database that passes its integrity check"
    where = file["path"] or "(path unknown)"
    remedies = {
        "absent": f"Correct legacy.sqlite of {bot_id} in {expected['inventory']}.",
        "locked": "Find who holds it (fuser -v on the file) and have it finish; a bot that writes"
        " normally does not lock readers out.",
        "corrupt": "Restore it from the bot's last good backup, or rescue it: sqlite3 FILE .recover.",
        "unreadable": "Correct the file's owner, mode or path.",
    }
    if state in remedies:
        found = f"{where} is {state}: {file['error']}"
        yield finding(BLOCKER, fact, found, wanted, remedies[state])
        return
    held = f"{where}, {readable(file['size'])}"
    if state == "unchecked":
        yield finding(
            WARNING,
            fact,
            f"{held}, integrity check broken off so as not to hold up the bot",
            wanted,
            "None needed: phase 2 checks its own copy before it uses it. For an answer now, raise"
            " preflight_sqlite_lock_seconds.",
        )
    elif file.get("unfinished"):
        yield finding(
            WARNING,
            fact,
            f"{held}, intact; its last writer died in the middle of a transaction",
            wanted,
            "Start the bot once: SQLite then recovers the file.",
        )
    else:
        yield finding(OK, fact, f"{held}, intact, journal mode {file['journal']}", wanted)
    yield from schema_findings(bot_id, file, expected["schema"]["momentum"], "", expected)


def schema_findings(bot_id: str, source: Facts, schema: Facts, prefix: str, expected: Facts) -> Iterator[Finding]:
    """Columns that are missing or unexpected, and values that have no place."""
    as_expected = True
    for table, columns in schema["tables"].items():
        fact, held = f"legacy table {prefix}{table} of {bot_id}", source["columns"].get(table)
        missing = [name for name in columns if name not in (held or [])]
        extra = [name for name in held or [] if name not in columns]
        if held is None or missing:
            as_expected = False
            yield finding(
                BLOCKER,
                fact,
                "does not exist" if held is None else f"lacks column {names(missing)}",
                f"columns {names(columns)}",
                "The migration reads these: add what is missing to the source, or check that the"
                f" inventory names the right database for {bot_id}.",
            )
        if extra:
            as_expected = False
            yield finding(
                WARNING,
                fact,
                f"has unexpected column {names(extra)}",
                f"columns {names(columns)}",
                "None needed: its values go into each row's metadata, under legacy. Where the unified"
                " schema has a better place for them, extend files/migrations first.",
            )
    if as_expected:
        number = len(schema["tables"])
        yield finding(OK, f"legacy schema of {bot_id}", f"{number} tables as expected", "same")
    rejected = sum(unknown["rows"] for unknown in source["unknown"])
    accepted = int(expected["accepted_rejects"])
    for unknown in source["unknown"]:
        yield finding(
            BLOCKER if rejected > accepted else WARNING,
            f"values of {prefix}{unknown['table']}.{unknown['column']} of {bot_id}",
            f"{unknown['rows']} rows with unknown {unknown['column']}"
            f" {names(repr(value) if value is not None else 'NULL' for value in unknown['values'])}",
            names(schema["values"][unknown["table"]][unknown["column"]]),
            "Phase 2 rejects these rows: correct them at their source, or accept their loss with"
            f" -e data_migration_accepted_rejects={rejected}.",
        )
    if not source["unknown"]:
        yield finding(OK, f"values of {bot_id}", "all known", "none that would be rejected")


def zone_findings(bot_id: str, bot: Facts, found: Facts, expected: Facts) -> Iterator[Finding]:
    """The bot's clock against the time zone the inventory claims for it.

    Witnesses are the clock of its container and, for naive times, how far they
    are from the UTC times written beside them.
    """
    zone, fact = str(bot.get("timezone", "UTC")), f"time zone of {bot_id}"
    naive = "sqlite" in found
    wanted = f"{zone}, as `timezone` of {bot_id} says"
    severity = BLOCKER if naive else WARNING
    remedy = f"Set `timezone` of {bot_id} in {expected['inventory']} to the one it runs in."
    if naive:
        remedy += " Its naive local times would be read wrongly."
    container = legacy_of(bot).get("container")
    # The most recent disagreement is named.
    offsets = sorted(found.get("offsets") or [], key=lambda item: -item["at"])
    apart = [item for item in offsets if item["offset"] != offset_of(zone, item["at"])]
    if apart:
        day = datetime.fromtimestamp(apart[0]["at"], UTC).date()
        right = clock(offset_of(zone, apart[0]["at"]))
        clocks = f"container {container} was at {clock(apart[0]['offset'])} on {day}"
        yield finding(severity, fact, clocks, f"{wanted} ({right} then)", remedy)
    observed = (found.get("sqlite") or {}).get("observed") or []
    wrong = [item for item in observed if item["offset"] != offset_of(zone, item["at"])]
    contradicted = len(wrong) * 2 > len(observed)
    if contradicted:
        offset = Counter(item["offset"] for item in wrong).most_common(1)[0][0]
        yield finding(
            severity,
            fact,
            f"{len(wrong)} of the last {len(observed)} trades were written at {clock(offset)}",
            wanted,
            remedy,
        )
    if apart or contradicted:
        return
    witnesses = [f"the clock of {container}"] * bool(offsets)
    witnesses += [f"the last {len(observed)} trades"] * bool(observed)
    if witnesses:
        yield finding(OK, fact, f"agrees with {' and '.join(witnesses)}", wanted)
    elif naive:
        yield finding(
            WARNING,
            fact,
            f"cannot be told: container {container} does not run",
            wanted,
            f"Start {container} and run preflight again, or make sure yourself.",
        )


def leftover_findings(facts: Facts, expected: Facts) -> Iterator[Finding]:
    project = expected["compose_project"]
    own = [c for c in facts["containers"] if c["project"] == project]
    volumes = [name for name in facts["volumes"] if name.startswith(f"{project}_")]
    env, database = facts["env_file"], facts["database"]
    for container in facts["containers"]:
        if container["name"] in expected["containers"].values() and container not in own:
            yield finding(
                BLOCKER,
                f"container name {container['name']}",
                f"taken by a container of project {container['project'] or 'none'}",
                "free, or ours",
                f"docker rename {container['name']} to something else, or remove it.",
            )
    if own:
        states = names(f"{c['name']} {c['health'] or c['state']}" for c in own)
        remedy = "Phase 1 keeps them, and replaces one only where its definition changed."
        yield finding(OK, "containers of an earlier run", states, "none, or ours", remedy)
    else:
        yield finding(OK, "containers of an earlier run", "none", "none, or ours")
    yield finding(
        OK,
        "volumes of an earlier run",
        names(volumes) or "none",
        "none, or ours",
        "Phase 1 keeps the data in them." if volumes else "",
    )
    yield finding(
        OK,
        "database folder of an earlier run",
        database["path"] if database["exists"] else "none",
        "none, or ours",
        "Phase 1 keeps backups and updates configuration." if database["exists"] else "",
    )
    fact = "secrets of an earlier run"
    if not env["exists"]:
        lost = f"{project}_postgres_data" in volumes
        yield finding(
            BLOCKER if lost else OK,
            fact,
            f"no {env['path']}" + (f", but volume {project}_postgres_data" if lost else ""),
            "the file wherever there is data" if lost else "none, or ours",
            f"Put {env['path']} back from your backup: its passwords are those of the data. If the"
            f" data may go, docker volume rm {project}_postgres_data."
            if lost
            else "Phase 1 generates them.",
        )
        return
    empty = [key for key in expected["env_keys"] if not env.get("keys", {}).get(key)]
    if env.get("error"):
        problem = env["error"]
    elif empty:
        problem = f"lacks {names(empty)}"
    elif env["mode"] != "0600":
        problem = f"has mode {env['mode']}"
    else:
        yield finding(OK, fact, env["path"], "none, or ours", "Phase 1 reads them back.")
        return
    readable_problem = env.get("error") or empty
    yield finding(
        BLOCKER if readable_problem and expected["privileged"] else WARNING,
        fact,
        f"{env['path']} {problem}",
        "each key with a value, mode 0600",
        f"Put the values back into {env['path']} from your backup." if empty else "Phase 1 corrects its mode.",
    )


def acknowledgement_findings(facts: Facts, expected: Facts) -> Iterator[Finding]:
    words = expected["acknowledgements"] or {}
    missing = [key for key in ACKNOWLEDGEMENTS if not acknowledged(words.get(key))]
    given = [key for key in ACKNOWLEDGEMENTS if key not in missing]
    required = expected["require_acknowledgements"]
    found = [f"missing {names(missing)}"] * bool(missing) + [f"given {names(given)}"] * bool(given)
    yield finding(
        OK if not missing else BLOCKER if required else WARNING,
        "acknowledgements",
        "; ".join(found),
        f"your word that {names(ACKNOWLEDGEMENTS[key] for key in missing or given)}",
        ""
        if not missing
        else "When it is so, set preflight_acknowledgements: "
        + "{"
        + names(f"{key}: true" for key in missing)
        + "}"
        + f" in {expected['inventory']}."
        + ("" if required else " The go-live refuses to start without them."),
    )


def acknowledged(value: Any) -> bool:
    return str(value).strip().lower() in {"true", "yes", "1"}


def preflight_findings(facts: Facts, expected: Facts) -> list[Finding]:
    """Every finding about a host, in the order in which an operator reads them."""
    topics = (
        host_findings,
        docker_findings,
        base_findings,
        disk_findings,
        memory_findings,
        port_findings,
        inventory_findings,
        legacy_container_findings,
        bot_findings,
        leftover_findings,
        acknowledgement_findings,
    )
    return [found for topic in topics for found in topic(facts, expected)]


def preflight_report(findings: list[Finding], width: int = 110) -> str:
    """The screen's text: a line for what is well, a paragraph for what is not."""
    lines = []
    for one in findings:
        if one["severity"] == OK:
            text = f"{one['fact']}: {one['found']} (expected: {one['expected']}). {one['remedy']}"
            lines += paragraph(OK, text, width)
        else:
            lines += paragraph(one["severity"].upper(), one["fact"], width)
            for key in ("found", "expected", "remedy"):
                lines += paragraph("", f"{key:<9} {one[key]}", width, hanging=20)
    return "\n".join(lines)


def paragraph(label: str, text: str, width: int, hanging: int = 12) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=f"{label:<10}",
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def preflight_summary(findings: list[Finding]) -> str:
    count = Counter(one["severity"] for one in findings)
    return f"{len(findings)} findings: {count[OK]} ok, {count[WARNING]} to mind, {count[BLOCKER]} to mend first"


def preflight_refusal(findings: list[Finding]) -> str:
    """What has to be mended, in the words of the findings."""
    blockers = [one for one in findings if one["severity"] == BLOCKER]
    lines = [f"{one['fact']}: found {one['found']}; expected {one['expected']}. {one['remedy']}" for one in blockers]
    start = f"Not ready ({preflight_summary(findings)})."
    return "\n".join([start, *lines, "Then run playbooks/preflight.yml again."])


class FilterModule:
    """The filters that playbooks see."""

    def filters(self) -> dict[str, Any]:
        return {
            "preflight_findings": preflight_findings,
            "preflight_report": preflight_report,
            "preflight_refusal": preflight_refusal,
            "preflight_summary": preflight_summary,
        }
