#!/usr/bin/python
"""Take a proven backup of a live database that must not be written to."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: legacy_database_backup
short_description: Take a proven backup of a live PostgreSQL or SQLite database
description:
  - Backs up a PostgreSQL database that runs in a container, or a SQLite file, while its bot keeps writing.
  - Reads one consistent snapshot of the source and never writes to it.
  - Proves the backup before it gets its name. A dump is restored into a throwaway container of the source's
    own image and every table's rows and content hash are compared with the snapshot's; a SQLite copy is
    integrity-checked and its tables are counted.
  - Takes no backup when the newest one is intact and holds the same content.
  - Never removes or overwrites an earlier backup.
  - In check mode reads the source and says whether a backup would be taken.
options:
  name: {description: Start of the backup's file name., type: str, required: true}
  directory: {description: Folder for the backups., type: path, required: true}
  container: {description: Container of the PostgreSQL server., type: str}
  database: {description: Database to dump., type: str}
  user: {description: Account to dump it as., type: str}
  password: {description: Its password; the container's own environment by default., type: str}
  path: {description: SQLite file; relative to I(volume) where that is given., type: str}
  volume: {description: Docker volume that holds the SQLite file., type: str}
  busy_timeout: {description: Seconds to wait for a locked SQLite file., type: int, default: 10}
  lock_timeout: {description: Seconds to wait for another backup of the source., type: int, default: 300}
"""

EXAMPLES = r"""
- name: Back up a PostgreSQL database
  ansible.legacy.legacy_database_backup:
    name: shortseller
    directory: /srv/database/backups
    container: shortseller_postgres
    database: multiasset_trading
    user: trading_user
"""

RETURN = r"""
backup: {description: Manifest of the newest backup (in check mode of the last one), returned: success, type: dict}
"""

SESSION_SETTINGS = """\
SET statement_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET timezone = 'UTC';
SET datestyle = 'ISO, YMD';
SET intervalstyle = 'postgres';
SET extra_float_digits = 1;
SET bytea_output = 'hex';
"""
LIST_TABLES = """\
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p'
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
ORDER BY 1;
"""
# The content of a table as one number that doesn't depend on the rows' order.
COUNT_TABLE = """\
SELECT count(*), coalesce(sum(hashtextextended((counted_row.*)::text, 0)), 0) FROM {table} AS counted_row;
"""
# Run inside the container: the account's password is in its environment.
WITH_PASSWORD = 'export PGPASSWORD="${PGPASSWORD:-${POSTGRES_PASSWORD:-}}"; exec "$@"'
# Rows and content hash of each table.
Counted = dict[str, tuple[int, str]]

PROOF_LABEL = "trading.purpose=backup-proof"


class BackupError(Exception):
    """What was found, what was expected, and what to do."""


@dataclass(frozen=True)
class Content:
    """What a snapshot holds.

    `tables` maps a table's name to its number of rows, `fingerprint` stands
    for the whole content.
    """

    tables: dict[str, int]
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """A good backup, as recorded beside it."""

    source: str
    file: str
    bytes: int
    sha256: str
    taken_at: str
    server: str
    fingerprint: str
    tables: dict[str, int]
    proof: str


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint_of(tables: Counted, schema: str) -> str:
    """One checksum for all tables' (rows, hash) and the schema's text."""
    return hashlib.sha256(json.dumps([tables, schema], sort_keys=True).encode()).hexdigest()


def schema_without_noise(dump: str) -> str:
    """A schema dump without comments and the random key that newer pg_dumps print."""
    return "\n".join(
        line for line in dump.splitlines() if line and not line.startswith(("--", "\\restrict", "\\unrestrict"))
    )


def differences(expected: Mapping[str, object], found: Mapping[str, object]) -> list[str]:
    """Sentences about tables that the proof counted differently."""
    return [
        f"{table}: source {expected.get(table, 'has no such table')}, backup {found.get(table, 'lacks it')}"
        for table in sorted(expected.keys() | found.keys())
        if expected.get(table) != found.get(table)
    ]


# ----- the folder of backups


def newest_manifest(directory: Path, name: str) -> Manifest | None:
    """The newest backup of `name` whose file is still what its manifest says."""
    paths = sorted(directory.glob(f"{name}_backup_*Z.json"), reverse=True)
    for path in paths[:1]:
        try:
            manifest = Manifest(**json.loads(path.read_text()))
            file = directory / manifest.file
            if file.stat().st_size == manifest.bytes and sha256_of(file) == manifest.sha256:
                return manifest
        except (OSError, ValueError, TypeError):
            return None
    return None


@contextmanager
def exclusive(directory: Path, timeout: int) -> Iterator[None]:
    """Hold the folder for this process; locks nothing that could be left behind."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BackupError(
                        f"Another backup has been writing to {directory} for more than {timeout} s; expected it "
                        "to end. Wait for it (`ps -ef | grep legacy_database_backup`), then run this again."
                    ) from None
                time.sleep(1)
        yield
    finally:
        os.close(descriptor)


def owned(path: Path, directory: Path) -> None:
    """Give a file to the folder's owner, and to nobody else."""
    folder = directory.stat()
    os.chmod(path, 0o600)
    if os.geteuid() == 0:
        os.chown(path, folder.st_uid, folder.st_gid)


def written(path: Path, text: str, directory: Path) -> None:
    """Write a small file so that it is either whole or absent."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    owned(partial, directory)
    partial.rename(path)


def publish(partial: Path, directory: Path, manifest: Manifest) -> None:
    """Give a proven backup its name. The manifest comes last: with it the backup counts."""
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    owned(partial, directory)
    final = directory / manifest.file
    partial.rename(final)
    written(directory / f"{final.name}.sha256", f"{manifest.sha256}  {final.name}\n", directory)
    written(final.with_suffix(".json"), json.dumps(asdict(manifest), indent=2) + "\n", directory)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(directory: Path, name: str) -> None:
    """Remove what a killed run left unproven. Finished backups never match."""
    for path in directory.glob(f".{name}_backup_*.partial*"):
        path.unlink()


def backup_stem(directory: Path, name: str) -> tuple[str, str]:
    """An unused name and the time in it."""
    while True:
        now = datetime.now(timezone.utc)
        stem = f"{name}_backup_{now:%Y%m%dT%H%M%SZ}"
        if not any(directory.glob(f"{stem}.*")):
            return stem, now.isoformat(timespec="seconds")
        time.sleep(0.2)


# ----- PostgreSQL, by the tools in the server's own container


class Docker:
    """The docker client."""

    def __init__(self, binary: str) -> None:
        self.binary = binary

    def run(self, *arguments: str, stdin: IO[bytes] | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self.binary, *arguments], stdin=stdin or subprocess.DEVNULL, capture_output=True, check=False
        )

    def inspect(self, container: str) -> dict[str, Any] | None:
        done = self.run("container", "inspect", container)
        return json.loads(done.stdout)[0] if done.returncode == 0 else None

    def mountpoint(self, volume: str) -> str:
        done = self.run("volume", "inspect", "--format", "{{.Mountpoint}}", volume)
        if done.returncode:
            raise BackupError(
                f"Docker volume {volume} does not exist; expected the volume that holds the bot's SQLite file. "
                "Correct legacy.sqlite.volume in the inventory (`docker volume ls`)."
            )
        return done.stdout.decode().strip()


class Server:
    """A PostgreSQL server in a container, reached by its own client tools."""

    def __init__(self, docker: Docker, container: str, user: str, password: str | None) -> None:
        self.docker = docker
        self.container = container
        self.user = user
        self.environment = dict(os.environ)
        if password:
            self.environment["PGPASSWORD"] = password

    def command(self, tool: str, *arguments: str) -> list[str]:
        passed = ["--env", "PGPASSWORD"] if "PGPASSWORD" in self.environment else []
        inside = ["sh", "-c", WITH_PASSWORD, "sh", tool, "--username", self.user, *arguments]
        return [self.docker.binary, "exec", "--interactive", *passed, self.container, *inside]

    def call(
        self, tool: str, *arguments: str, stdin: IO[bytes] | None = None, stdout: IO[bytes] | int = subprocess.PIPE
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(tool, *arguments),
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=self.environment,
            check=False,
        )

    @contextmanager
    def session(self, database: str) -> Iterator[Session]:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                self.command("psql", "-XAtq", "-F", "|", "-v", "ON_ERROR_STOP=1", "--dbname", database),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self.environment,
                text=True,
            )
            try:
                yield Session(process, errors, f"{database} in container {self.container}")
            finally:
                # Closing its input ends psql, and with it the snapshot.
                with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
                    process.communicate(timeout=30)
                process.kill()
                process.wait()


class Session:
    """One psql process, so that a snapshot lives as long as it does."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[bytes], where: str) -> None:
        self.process = process
        self.errors = errors
        self.where = where
        self.asked = 0

    def rows(self, sql: str) -> list[list[str]]:
        """Run statements; return the lines they print, split at `|`."""
        questions, answers = self.process.stdin, self.process.stdout
        assert questions is not None
        assert answers is not None
        self.asked += 1
        end = f"-- end of answer {self.asked} --"
        with contextlib.suppress(BrokenPipeError):
            questions.write(f"{sql}\n\\echo '{end}'\n")
            questions.flush()
        lines: list[str] = []
        for line in answers:
            if line.rstrip("\n") == end:
                return [answer.split("|") for answer in lines]
            lines.append(line.rstrip("\n"))
        self.process.wait()
        self.errors.seek(0)
        raise BackupError(
            f"Database {self.where} did not answer: {self.errors.read().decode(errors='replace').strip()}. Expected "
            "a running server that accepts the account of the inventory. Check `docker logs` of that container."
        )

    def tables(self) -> Counted:
        counted: Counted = {}
        for (table,) in self.rows(LIST_TABLES):
            ((rows, content),) = self.rows(COUNT_TABLE.format(table=table))
            counted[table] = (int(rows), content)
        return counted


def running_image(docker: Docker, container: str) -> tuple[str, str]:
    """(id, name) of the image that a running container was made from."""
    found = docker.inspect(container)
    if found is None or not found["State"]["Running"]:
        state = "does not exist" if found is None else f"is {found['State']['Status']}"
        raise BackupError(
            f"Legacy database container {container} {state}; expected it running. "
            f"Start it (`docker start {container}`), or correct legacy.postgres.container in the inventory."
        )
    return found["Image"], found["Config"]["Image"]


def postgres_content(session: Session, server: Server, database: str, snapshot: str) -> tuple[Content, Counted]:
    tables = session.tables()
    if not tables:
        raise BackupError(
            f"Database {database} in container {server.container} has no tables; expected the bot's. "
            "Correct legacy.postgres.database in the inventory."
        )
    schema = server.call("pg_dump", "--dbname", database, "--schema-only", "--snapshot", snapshot)
    if schema.returncode:
        raise BackupError(f"pg_dump cannot read {database}: {schema.stderr.decode(errors='replace').strip()}")
    fingerprint = fingerprint_of(tables, schema_without_noise(schema.stdout.decode()))
    return Content({table: rows for table, (rows, _) in tables.items()}, fingerprint), tables


@contextmanager
def scratch_server(docker: Docker, image: str, name: str, user: str) -> Iterator[Server]:
    """A throwaway server without network, of the source's own image."""
    container = f"{name}_backup_proof"
    leftover = docker.inspect(container)
    key, value = PROOF_LABEL.split("=")
    if leftover and leftover["Config"]["Labels"].get(key) != value:
        raise BackupError(
            f"Container {container} exists and is not ours; expected the name to be free for proving the backup. "
            f"Rename it (`docker rename {container} ...`), then run this again."
        )
    docker.run("rm", "--force", "--volumes", container)
    try:
        started = docker.run(
            *("run", "--detach", "--network", "none", "--name", container, "--label", PROOF_LABEL),
            *("--env", f"POSTGRES_USER={user}", "--env", "POSTGRES_DB=postgres"),
            *("--env", "POSTGRES_HOST_AUTH_METHOD=trust"),
            *(image, "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "autovacuum=off"),
        )
        if started.returncode:
            raise BackupError(
                f"The scratch server for proving the backup did not start: {started.stderr.decode().strip()}"
            )
        server = Server(docker, container, user, None)
        # Over TCP: while the image initialises itself, only its socket answers.
        deadline = time.monotonic() + 120
        while server.call("pg_isready", "--host", "127.0.0.1").returncode:
            state = docker.inspect(container)
            if time.monotonic() > deadline or not state or not state["State"]["Running"]:
                log = docker.run("logs", "--tail", "5", container)
                raise BackupError(
                    "The scratch server for proving the backup did not become ready within 120 s: "
                    + (log.stdout + log.stderr).decode(errors="replace").strip()
                )
            time.sleep(0.3)
        yield server
    finally:
        docker.run("rm", "--force", "--volumes", container)


def prove_dump(docker: Docker, image: str, name: str, user: str, database: str, dump: Path, expected: Counted) -> None:
    """Restore a dump and compare every table's rows and content with the snapshot's."""
    with scratch_server(docker, image, name, user) as scratch:
        with dump.open("rb") as stream:
            restored = scratch.call(
                *("pg_restore", "--dbname", "postgres", "--create", "--exit-on-error", "--no-owner", "--no-acl"),
                stdin=stream,
            )
        if restored.returncode:
            raise BackupError(
                f"The new dump of {database} does not restore: {restored.stderr.decode(errors='replace').strip()}. "
                "Nothing was kept of it; earlier backups are untouched. Check the disk and the server's log."
            )
        with scratch.session(database) as session:
            session.rows(SESSION_SETTINGS)
            found = session.tables()
    if wrong := differences(expected, found):
        raise BackupError(
            f"The new dump of {database} restores to other rows than its snapshot held: {'; '.join(wrong)}. "
            "Nothing was kept of it; earlier backups are untouched. Check the disk and the server's log."
        )


def back_up_postgres(module: AnsibleModule, docker: Docker, directory: Path, last: Manifest | None) -> Manifest | None:
    name, database = module.params["name"], module.params["database"]
    server = Server(docker, module.params["container"], module.params["user"], module.params["password"])
    image, image_name = running_image(docker, server.container)
    with server.session(database) as session:
        session.rows(SESSION_SETTINGS)
        ((snapshot, version),) = session.rows(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n"
            "SELECT pg_export_snapshot(), current_setting('server_version');"
        )
        content, tables = postgres_content(session, server, database, snapshot)
        if last and last.fingerprint == content.fingerprint:
            return None
        stem, taken_at = backup_stem(directory, name)
        partial = directory / f".{stem}.dump.partial"
        if module.check_mode:
            return planned(name, f"{stem}.dump", taken_at, f"PostgreSQL {version}", content)
        remove_partials(directory, name)
        with partial.open("wb") as stream:
            owned(partial, directory)
            dumped = server.call(
                "pg_dump", "--dbname", database, "--format=custom", "--snapshot", snapshot, stdout=stream
            )
        if dumped.returncode:
            partial.unlink()
            raise BackupError(f"pg_dump of {database} failed: {dumped.stderr.decode(errors='replace').strip()}")
    try:
        prove_dump(docker, image, name, server.user, database, partial, tables)
    except BaseException:
        partial.unlink()
        raise
    manifest = Manifest(
        source=name,
        file=f"{stem}.dump",
        bytes=partial.stat().st_size,
        sha256=sha256_of(partial),
        taken_at=taken_at,
        server=f"PostgreSQL {version}",
        fingerprint=content.fingerprint,
        tables=content.tables,
        proof=f"restored into a scratch server of {image_name}; rows and content of every table compared",
    )
    publish(partial, directory, manifest)
    return manifest


# ----- SQLite


def sqlite_error(path: Path, error: sqlite3.Error) -> BackupError:
    text = str(error)
    if "locked" in text or "busy" in text:
        found, remedy = "is locked by another process", "Find who holds it (`fuser -v` on the file) and let it finish"
    elif "readonly" in text:
        found = f"was left in the middle of a transaction ({path}-journal)"
        remedy = "Start its bot once, so that SQLite rolls the transaction back"
    elif "malformed" in text or "not a database" in text:
        found, remedy = f"is corrupt ({text})", "Restore it from a good copy"
    else:
        found, remedy = f"cannot be read ({text})", "Restore it from a good copy, or let its bot repair it"
    return BackupError(f"SQLite database {path} {found}; expected a readable database. {remedy}, then run this again.")


def source_state(path: Path) -> tuple[int, int, bool]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, path.with_name(path.name + "-wal").exists()


def open_source(path: Path, busy_timeout: int, immutable: bool) -> sqlite3.Connection:
    mode = "immutable=1" if immutable else "mode=ro"
    return sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=busy_timeout, isolation_level=None)


def sqlite_tables(connection: sqlite3.Connection) -> dict[str, int]:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
    return {
        name: connection.execute('SELECT count(*) FROM "{}"'.format(name.replace('"', '""'))).fetchone()[0]
        for (name,) in names
    }


def copy_sqlite(path: Path, copy: Path, busy_timeout: int) -> dict[str, int]:
    """Copy a live SQLite file; return its tables' rows in the same snapshot.

    A file in WAL mode that nobody has open is read as immutable, because
    opening it otherwise would create two files beside it. Should its bot start
    meanwhile, the copy is taken again the ordinary way.
    """
    before = source_state(path)
    with path.open("rb") as stream:
        header = stream.read(20)
    if header[:16] != b"SQLite format 3\x00":
        raise BackupError(
            f"{path} is not a SQLite database (it starts with {header[:16]!r}); expected the bot's database. "
            "Correct legacy.sqlite in the inventory, or restore the file from a good copy."
        )
    immutable = header[18] == 2 and not before[2]
    try:
        with closing(open_source(path, busy_timeout, immutable)) as source:
            source.execute("BEGIN")
            tables = sqlite_tables(source)
            with closing(sqlite3.connect(copy)) as target:
                source.backup(target)
                target.execute("PRAGMA journal_mode = DELETE").fetchone()
            source.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise sqlite_error(path, error) from error
    if immutable and source_state(path) != before:
        copy.unlink()
        return copy_sqlite(path, copy, busy_timeout)
    return tables


def prove_copy(copy: Path, expected: dict[str, int], path: Path) -> None:
    try:
        with closing(open_source(copy, 1, immutable=True)) as connection:
            verdict = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
            found = sqlite_tables(connection) if verdict == ["ok"] else {}
    except sqlite3.Error as error:
        verdict, found = [str(error)], {}
    if verdict != ["ok"]:
        raise BackupError(
            f"SQLite database {path} is corrupt ({'; '.join(verdict)}); expected integrity_check to say ok. "
            "No backup was taken and earlier ones are untouched. Restore the file from a good copy."
        )
    if wrong := differences(expected, found):
        raise BackupError(f"The copy of {path} holds other rows than its snapshot: {'; '.join(wrong)}.")


def back_up_sqlite(module: AnsibleModule, docker: Docker, directory: Path, last: Manifest | None) -> Manifest | None:
    name, volume = module.params["name"], module.params["volume"]
    path = Path(docker.mountpoint(volume) if volume else "/") / module.params["path"]
    if not path.is_file():
        raise BackupError(
            f"SQLite database {path} does not exist; expected the bot's database. "
            "Correct legacy.sqlite in the inventory, or put the file back."
        )
    stem, taken_at = backup_stem(directory, name)
    with tempfile.TemporaryDirectory() as scratch:
        if module.check_mode:
            partial = Path(scratch) / stem
        else:
            remove_partials(directory, name)
            partial = directory / f".{stem}.db.partial"
        try:
            tables = copy_sqlite(path, partial, module.params["busy_timeout"])
            if not tables:
                raise BackupError(
                    f"SQLite database {path} has no tables; expected the bot's. Correct legacy.sqlite in the inventory."
                )
            prove_copy(partial, tables, path)
            digest = sha256_of(partial)
            size = partial.stat().st_size
            content = Content(tables, digest)
            server = f"SQLite {sqlite3.sqlite_version}"
            if last and last.fingerprint == digest:
                return None
            if module.check_mode:
                return planned(name, f"{stem}.db", taken_at, server, content)
            manifest = Manifest(
                source=name,
                file=f"{stem}.db",
                bytes=size,
                sha256=digest,
                taken_at=taken_at,
                server=server,
                fingerprint=digest,
                tables=tables,
                proof="opened; integrity_check says ok; rows of every table counted",
            )
            publish(partial, directory, manifest)
            return manifest
        finally:
            partial.unlink(missing_ok=True)


# ----- module


def planned(name: str, file: str, taken_at: str, server: str, content: Content) -> Manifest:
    return Manifest(name, file, 0, "", taken_at, server, content.fingerprint, content.tables, "dry run: not taken")


def diff_of(last: Manifest | None, new: Manifest | None) -> dict[str, str]:
    """Rows per table of the last and of the new backup; no content, no times."""

    def text(manifest: Manifest | None) -> str:
        if manifest is None:
            return ""
        return "".join(f"{table}: {rows} rows\n" for table, rows in sorted(manifest.tables.items()))

    return {
        "before_header": f"newest backup ({last.file if last else 'none'})",
        "after_header": "new backup",
        "before": text(last),
        "after": text(new or last),
    }


def terminate(signum: int, frame: object) -> None:
    raise SystemExit(f"ended by signal {signum}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "container": {"type": "str"},
            "database": {"type": "str"},
            "user": {"type": "str"},
            "password": {"type": "str", "no_log": True},
            "path": {"type": "str"},
            "volume": {"type": "str"},
            "busy_timeout": {"type": "int", "default": 10},
            "lock_timeout": {"type": "int", "default": 300},
        },
        required_one_of=[("container", "path")],
        mutually_exclusive=[("container", "path")],
        required_by={"container": ["database", "user"]},
        supports_check_mode=True,
    )
    signal.signal(signal.SIGTERM, terminate)
    name = module.params["name"]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        module.fail_json(msg=f"Backup name {name!r} cannot start a file name; expected letters, digits, _ . and -")
    directory = Path(module.params["directory"])
    docker = Docker(module.get_bin_path("docker", required=True))
    take = back_up_postgres if module.params["container"] else back_up_sqlite
    try:
        if directory.is_dir():
            with exclusive(directory, module.params["lock_timeout"]):
                last = newest_manifest(directory, name)
                new = take(module, docker, directory, last)
        elif module.check_mode:
            last = None
            new = take(module, docker, directory, last)
        else:
            raise BackupError(
                f"Folder {directory} does not exist; expected the one that phase 1 creates. "
                "Run playbooks/phase1_infrastructure.yml."
            )
    except BackupError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"Backup of {name} failed: {error}. Earlier backups are untouched.")
    manifest = new or last
    assert manifest is not None
    module.exit_json(changed=new is not None, backup=asdict(manifest), diff=diff_of(last, new))


if __name__ == "__main__":
    main()
