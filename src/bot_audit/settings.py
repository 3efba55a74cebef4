"""What a source says about its connections and passwords."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from .finding import CONNECTION, PASSWORD, SESSION, SQLITE, Problem
from .texts import Scope, Text, Texts, bindings, dotted, environment

POOLER_PORT = "6432"
SQLITE_MODULES = {"sqlite3", "aiosqlite", "apsw", "pysqlite2", "sqlite_utils", "sqlean"}
POSTGRES_MODULES = {"psycopg2", "psycopg", "psycopg_pool", "asyncpg", "aiopg", "pg8000", "sqlalchemy"}
CONNECT = re.compile(r"(?:^|\.)(?:connect|create_pool|create_engine|create_async_engine|\w*ConnectionPool)$")
# Servers that are reached past PgBouncer, whatever the port.
SERVERS = {"postgres", "trading_postgres"}
DATABASE = r"(?:^|_)(?:POSTGRES|POSTGRESQL|PG|DB|DATABASE)_?(?:\w*_)?"
PORT_NAME = re.compile(r"(?:^|_)port$", re.I)

ADDRESS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+]*)://(?:(?P<user>[^\s/@:]*)(?::(?P<password>[^\s@/]*))?@)?(?P<host>[^\s/?:]*)(?::(?P<port>[^\s/?]*))?",
    re.I,
)
PAIRS = re.compile(r"\b(host|port|password|dbname|user)\s*=\s*('[^']*'|[^\s']+)")
# An address that a password is put into at run time shows a hole, or a pattern for one.
OPEN = re.compile(r"_hole_\d+_|^%|^\{|^\$|^<|^\*+$|^\.\.\.$")

SECRET_NAME = re.compile(
    r"(?:^|_|\b)(?:passw(?:or)?d|passphrase|pwd|secret|api_?key|private_?key)|(?:^|_)token$|secret(?:_?key)?$", re.I
)
# Such a name says where a secret is, not what it is.
ABOUT_SECRET = re.compile(
    r"(?:env|var|variable|file|path|name|field|header|url|label|prompt|help|regex|pattern|type|length|button|codes?)$",
    re.I,
)
ENVIRONMENT_NAME = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")

USE_POOLER = "os.getenv('POSTGRES_HOST', 'pgbouncer') and os.getenv('POSTGRES_PORT', '6432'); better, trading_db of the bot's folder."
USE_CLIENT = "Keep it in the unified database: the delivered modules and trading_db in the bot's folder do so."
FROM_ENVIRONMENT = (
    "Read it from the bot's .env: os.environ['{}'], without a fallback. Then change it: it stood in a file."
)


def constant(node: ast.AST | None, texts: Texts, scope: Scope) -> str | None:
    """A text or number that an expression holds for certain."""
    match node:
        case ast.Constant(value=str() | int() | bytes() as value) if not isinstance(value, bool):
            return value.decode("latin-1") if isinstance(value, bytes) else str(value)
        case ast.Call(func=ast.Name(id="int" | "str"), args=[inner]):
            return constant(inner, texts, scope)
    text = texts.of(node, scope)
    return text.literal if text is not None else None


# ----- imports


def import_problems(tree: ast.Module) -> Iterator[Problem]:
    for node in ast.walk(tree):
        for module in imported(node):
            if module.split(".")[0] in SQLITE_MODULES:
                yield Problem(
                    SQLITE,
                    getattr(node, "lineno", 1),
                    f"import {module}",
                    f"uses SQLite itself (import {module}): what it writes there never reaches the unified database",
                    USE_CLIENT,
                )


def imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str() as module, level=0):
            return [module]
        case ast.Call(args=[ast.Constant(value=str() as module), *_]) if dotted(node.func).split(".")[-1] in {
            "import_module",
            "__import__",
        }:
            return [module]
    return []


def postgres_names(tree: ast.Module) -> set[str]:
    """What the source calls the PostgreSQL drivers and their parts."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                (alias.asname or alias.name).split(".")[0]
                for alias in node.names
                if alias.name.split(".")[0] in POSTGRES_MODULES
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in POSTGRES_MODULES:
            found |= {alias.asname or alias.name for alias in node.names}
    return found


# ----- texts


def text_problems(text: Text, line: int) -> Iterator[Problem]:
    """Addresses of databases, and the passwords in them."""
    shown, _ = text.rendered()
    for address in ADDRESS.finditer(shown):
        scheme, host, port = address["scheme"].lower(), address["host"] or "", address["port"]
        if scheme.split("+")[0] == "sqlite":
            why = f"opens a SQLite file ({scheme}://): what it writes there never reaches the unified database"
            yield Problem(SQLITE, line, f"{scheme}://", why, USE_CLIENT)
        password = address["password"]
        if password and not OPEN.search(password):
            yield hard_coded(
                line,
                f"password in {scheme}://{readable(host)}",
                f"an address {scheme}://...",
                f"{scheme.split('+')[0].upper()}_PASSWORD",
            )
        if scheme.split("+")[0] in {"postgres", "postgresql"} and (host or port):
            yield from place_problems(line, f"{scheme}://", host, port or "")
    if re.fullmatch(r"[\w.-]+:5432", shown):
        yield from place_problems(line, "address", shown.split(":")[0], "5432")
    pairs = {key.lower(): value.strip("'") for key, value in PAIRS.findall(shown)}
    if len(pairs.keys() & {"host", "dbname", "user", "password"}) >= 2 and "host" in pairs:
        yield from place_problems(line, "connection string", pairs["host"], pairs.get("port", ""))
    if len(pairs) >= 2 and pairs.get("password") and not OPEN.search(pairs["password"]):
        yield hard_coded(line, "password in a connection string", "a connection string", "POSTGRES_PASSWORD")


def readable(place: str) -> str:
    return re.sub(r"_hole_\d+_", "{...}", place)


def place_problems(line: int, what: str, host: str, port: str) -> Iterator[Problem]:
    """Whether a server's place is PgBouncer's. A port that is a hole is judged where it is set."""
    known = not OPEN.search(port) if port else True
    if host.lower() in SERVERS or (known and port != POOLER_PORT):
        place = f"{readable(host)}:{readable(port)}" if port else f"{readable(host)}, no port: that is 5432"
        yield bypass(line, f"{what} {place}", f"{what} leads to {place}")


def bypass(line: int, key: str, why: str) -> Problem:
    return Problem(CONNECTION, line, key, f"{why}, past PgBouncer (pgbouncer:6432)", f"Use {USE_POOLER}")


def hard_coded(line: int, key: str, where: str, variable: str) -> Problem:
    return Problem(
        PASSWORD, line, key, f"{where} holds a secret in the source (***)", FROM_ENVIRONMENT.format(variable)
    )


# ----- calls


def call_problems(call: ast.Call, texts: Texts, scope: Scope, drivers: set[str]) -> Iterator[Problem]:
    function = dotted(call.func)
    last = function.split(".")[-1]
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    first = constant(call.args[0], texts, scope) if call.args else constant(given.get("database"), texts, scope)
    if last == "connect" and re.search(r"\.(?:db|sqlite3?)(?:\?|$)", first or ""):
        why = "opens a SQLite file: what it writes there never reaches the unified database"
        yield Problem(SQLITE, call.lineno, f"connect {first}", why, USE_CLIENT)
    if last == "cursor":
        name = call.args[0] if call.args else given.get("name")
        if isinstance(name, ast.JoinedStr) or (isinstance(name, ast.Constant) and name.value):
            why = "a named cursor lives in the server's session; behind PgBouncer it is gone with its transaction."
            yield Problem(
                SESSION,
                call.lineno,
                "named cursor",
                why,
                "Read with LIMIT in steps, or within one transaction, and accept it.",
            )
    if CONNECT.search(function) and function.split(".")[0] in drivers:
        yield from driver_problems(call, given, texts, scope)


def driver_problems(call: ast.Call, given: dict[str, ast.expr], texts: Texts, scope: Scope) -> Iterator[Problem]:
    what = f"{dotted(call.func)}()"
    open_ended = any(keyword.arg is None for keyword in call.keywords) or {"dsn", "conninfo"} & given.keys()
    host, port = (constant(given.get(key), texts, scope) for key in ("host", "port"))
    if host in SERVERS or ("port" in given and port not in {None, POOLER_PORT, "5432"}):
        yield bypass(call.lineno, f"{what} {host}:{port}", f"{what} leads to {host or '...'}:{port or '...'}")
    elif "host" in given and "port" not in given and not open_ended:
        yield bypass(call.lineno, f"{what} without port", f"{what} is given a host and no port: that is 5432")
    if re.search(r"(?:^|\s)-c", constant(given.get("options"), texts, scope) or ""):
        why = "session settings in `options`: PgBouncer refuses them."
        yield Problem(SESSION, call.lineno, "options", why, "Use SET LOCAL within the transaction, or ALTER ROLE.")


# ----- values that are given a name


def setting_problems(tree: ast.Module, texts: Texts) -> Iterator[Problem]:
    fallbacks = {id(found[1]) for node in ast.walk(tree) if isinstance(node, ast.Call) and (found := environment(node))}
    for name, node, line in bindings(tree):
        value = constant(node, texts, texts.module)
        if value is None:
            continue
        if re.search(DATABASE + "PORT$", name, re.I) or PORT_NAME.search(name):
            ours = re.search(DATABASE + "PORT$", name, re.I) and id(node) in fallbacks
            if value == "5432" or (ours and value != POOLER_PORT):
                yield bypass(line, f"{name} {value}", f"{name} is {value}{' unless .env sets it' * bool(ours)}")
        elif re.search(DATABASE + "HOST$", name, re.I) and id(node) in fallbacks and value and "pgbouncer" not in value:
            yield bypass(line, f"{name} {value}", f"{name} is {value} unless .env sets it")
        elif is_secret(name, value) and not isinstance(node, ast.Name | ast.Attribute | ast.FormattedValue):
            yield hard_coded(line, f"secret {name}", name, name.upper() if name.isidentifier() else "PASSWORD")
        elif isinstance(node, ast.Name) and is_secret(name, value) and not SECRET_NAME.search(node.id):
            yield hard_coded(line, f"secret {name} {node.id}", f"{name}, by {node.id},", name.upper())


def is_secret(name: str, value: str) -> bool:
    """Whether a value of this name is a secret, and not a name or a place of one."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    if not SECRET_NAME.search(snake) or ABOUT_SECRET.search(snake) or not value.strip() or OPEN.search(value):
        return False
    if re.search(r"token$", snake, re.I):
        return len(value) >= 16 and re.search(r"\s|^https?:", value) is None
    return not ENVIRONMENT_NAME.fullmatch(value)
