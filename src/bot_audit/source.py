"""Audit one Python source."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

from . import settings
from .finding import DYNAMIC, UNREAD, Problem
from .statements import LEGACY, SCHEMA_OF, judge
from .texts import MORE, Hole, Scope, Text, Texts, Version, assignment, dotted, name_of

# Calls that hand a text to a database, and where among the arguments it is.
SINKS = {
    **dict.fromkeys(("execute", "executemany", "executescript", "copy_expert", "mogrify", "stream"), 0),
    **dict.fromkeys(("fetch", "fetchrow", "fetchval", "fetch_all", "fetch_one", "read_sql", "read_sql_query"), 0),
    **dict.fromkeys(("execute_values", "execute_batch"), 1),
}
# `execute` is also what trading programs call their orders: of these a text that is not seen says nothing.
PLAIN_SINKS = {"execute", "executemany", "executescript", "copy_expert", "stream"}
# A session may fetch from the web.
FETCHES = {"fetch", "fetchrow", "fetchval", "fetch_all", "fetch_one"}
RECEIVER = re.compile(
    r"(?:^|[_.])(?:c|cur|curs|cursor|con|conn|connection|db|database|session|engine|tx|transaction|pg|pool)\d*(?:\(\))?$"
)
# Calls that give a cursor or a connection, whatever it is called.
GIVE_HANDLES = {"cursor", "connect", "acquire", "begin", "getconn"}
DATABASE_CALLS = {"execute_values", "execute_batch", "read_sql", "read_sql_query"}
# Calls whose texts are for people.
MESSAGES = {"debug", "info", "warning", "warn", "error", "exception", "critical", "log", "print", "fail", "notify"}
MESSAGES |= {"send_message", "send_alert", "add_argument", "ArgumentParser", "input", "echo", "fatal", "write"}
# Calls that make statements of their own for a table, and where its name is.
TABLE_CALLS = {"to_sql": 0, "read_sql_table": 0, "read_sql": 0, "copy_from": 1, "copy_records_to_table": 0, "Table": 0}
# What a class of an ORM calls its table: SQLAlchemy, Django, Peewee.
TABLE_NAMES = {"__tablename__", "db_table", "table_name"}


def problems_of(content: bytes, own: frozenset[str]) -> list[Problem]:
    """Everything that is wrong with a source; one that cannot be read is a problem too.

    `own` are the ids that the bot may name.
    """
    try:
        with warnings.catch_warnings():
            # A warning would quote the source.
            warnings.simplefilter("ignore")
            tree = ast.parse(content)
        return list(Source(tree, own).problems())
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        return [unread(line, f"not Python as this controller reads it ({type(error).__name__})")]
    except (RecursionError, MemoryError):
        return [unread(1, "nested too deeply")]


def unread(line: int, reason: str) -> Problem:
    return Problem(
        UNREAD,
        line,
        re.sub(r"\d+", "", reason),
        f"cannot be read: {reason}; nothing in it was checked",
        "Mend it (a source that is too large: raise bot_audit_max_bytes), take it out of the bot's folder if nothing uses"
        " it, or accept it by name.",
    )


class Source:
    """One walk over a parsed source. Each text is judged once, as a whole."""

    def __init__(self, tree: ast.Module, own: frozenset[str]) -> None:
        self.tree = tree
        self.texts = Texts(tree)
        self.own = own
        self.drivers = settings.postgres_names(tree)
        self.handles = handles_of(tree)
        self.found: list[Problem] = []
        # Names that were handed to a database.
        self.certain: set[tuple[int, str]] = set()
        self.loads: dict[tuple[int, str], list[ast.AST]] = {}
        self.attributes: dict[str, list[ast.AST]] = {}

    def problems(self) -> Iterator[Problem]:
        yield from settings.import_problems(self.tree)
        yield from settings.setting_problems(self.tree, self.texts)
        self.body(self.tree, self.texts.module)
        self.names()
        yield from self.found

    # ----- the walk

    def body(self, node: ast.AST, scope: Scope) -> None:
        for child in ast.iter_child_nodes(node):
            self.node(child, scope, message=False)

    def node(self, node: ast.AST, scope: Scope, message: bool) -> None:
        scope = self.texts.scopes.get(node, scope)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # A docstring.
        if isinstance(node, ast.Name):
            holder = scope.holder(node.id)
            if isinstance(node.ctx, ast.Load) and holder is not None:
                self.loads.setdefault((id(holder), node.id), []).append(node)
            return
        if isinstance(node, ast.Attribute):
            self.attributes.setdefault(node.attr, []).append(node)
        if isinstance(node, ast.Call):
            self.call(node, scope, message)
            return
        if isinstance(node, ast.expr) and (text := self.texts.of(node, scope)) is not None:
            if not message:
                self.text(text, node, certain=False)
            self.inner(node, scope)
            return
        quiet = message or isinstance(node, ast.Raise | ast.Assert | ast.Compare)
        for field, child in ast.iter_fields(node):
            for one in child if isinstance(child, list) else [child]:
                if not isinstance(one, ast.AST):
                    continue
                if isinstance(one, ast.expr) and self.deferred(node, field, one, scope):
                    self.inner(one, scope)
                else:
                    self.node(one, scope, quiet and isinstance(one, ast.expr))

    def deferred(self, node: ast.AST, field: str, value: ast.expr, scope: Scope) -> bool:
        """Whether a text is given to a name: it is judged when it is known what is done with that name."""
        targets: list[ast.expr] = []
        if field == "value" and isinstance(node, ast.Assign):
            targets = node.targets
        elif field == "value" and isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        return any(isinstance(target, ast.Name) for target in targets) and self.texts.of(value, scope) is not None

    def inner(self, node: ast.AST, scope: Scope) -> None:
        """What else stands in an expression that is a text: the values that are put into it."""
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.Name | ast.Attribute)
            if isinstance(child, ast.expr) and not named and self.texts.of(child, scope) is not None:
                self.inner(child, scope)
            elif isinstance(child, ast.Constant):
                continue
            else:
                self.node(child, scope, message=True)

    # ----- calls

    def call(self, call: ast.Call, scope: Scope, message: bool) -> None:
        self.found += settings.call_problems(call, self.texts, scope, self.drivers)
        function = call.func.attr if isinstance(call.func, ast.Attribute) else dotted(call.func)
        if (text := self.texts.of(call, scope)) is not None:
            if not message:
                self.text(text, call, certain=function in {"text", "SQL"})
            self.inner(call, scope)
            return
        statement = self.statement_of(call, function)
        if function in TABLE_CALLS and (function != "Table" or dotted(call.func).split(".")[0] in self.drivers):
            self.table(call, function, scope)
        self.node(call.func, scope, message=True)
        for argument in [*call.args, *call.keywords]:
            value = argument.value if isinstance(argument, ast.keyword) else argument
            if value is statement:
                self.handed_over(value, call, function, scope)
            else:
                said = isinstance(argument, ast.keyword) and argument.arg in {"help", "description", "title", "msg"}
                quiet = function in MESSAGES or function.endswith(("Error", "Exception", "Warning"))
                self.node(value, scope, message=said or quiet)

    def statement_of(self, call: ast.Call, function: str) -> ast.expr | None:
        """The argument of a call that a database is to run."""
        if function not in SINKS:
            return None
        position = SINKS[function]
        if len(call.args) > position:
            return call.args[position]
        named = [
            keyword.value for keyword in call.keywords if keyword.arg in {"sql", "query", "statement", "operation"}
        ]
        return named[0] if named else None

    def handed_over(self, node: ast.expr, call: ast.Call, function: str, scope: Scope) -> None:
        if isinstance(node, ast.Name):
            self.node(node, scope, message=True)
            if (holder := scope.holder(node.id)) is not None:
                self.certain.add((id(holder), node.id))
                if self.texts.versions(holder, node.id) or node.id in holder.opaque:
                    return
                values = [event.value for event in holder.events[node.id]]
                if all(not isinstance(value, ast.Call | ast.BinOp | ast.Subscript) for value in values):
                    return
        elif (text := self.texts.of(node, scope)) is not None:
            self.text(text, node, certain=True)
            self.inner(node, scope)
            return
        else:
            self.node(node, scope, message=False)
            if isinstance(node, ast.Attribute | ast.Subscript | ast.IfExp | ast.Starred):
                return  # What it stands for is judged where it is written.
        receiver = dotted(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if receiver.endswith("?"):
            receiver = "cursor" if isinstance(call.func, ast.Attribute) and is_cursor(call.func.value) else ""
        if function in DATABASE_CALLS or self.is_handle(receiver, function):
            shown = Hole(node.func if isinstance(node, ast.Call) else node).label
            # A name says nothing of what it is given.
            given = []
            if isinstance(node, ast.Name) and (holder := scope.holder(node.id)):
                given = [ast.dump(event.value) for event in holder.events.get(node.id, [])]
            self.found.append(
                Problem(
                    DYNAMIC,
                    call.lineno,
                    " ".join([function, ast.dump(node), *given]),
                    f"cannot be judged, the whole statement is put together at run time: {function}({shown})",
                    "Write the statement itself here, with `bot_id = %s` in it; or make sure that it names the bot, and"
                    " accept it by name.",
                )
            )

    def is_handle(self, receiver: str, function: str) -> bool:
        """Whether this call is one of a cursor or a connection."""
        known = function in PLAIN_SINKS or (function in FETCHES and not receiver.lower().endswith("session"))
        named = RECEIVER.search(receiver.lower()) is not None or receiver.split(".")[-1] in self.handles
        return known and named

    def table(self, call: ast.Call, function: str, scope: Scope) -> None:
        position = TABLE_CALLS[function]
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        node = call.args[position] if len(call.args) > position else named.get("name", named.get("table"))
        name = settings.constant(node, self.texts, scope) or ""
        self.generated(name, call.lineno, f"{function}()")

    def generated(self, name: str, line: int, what: str) -> None:
        if name.split(".")[-1].lower() in {*SCHEMA_OF, *LEGACY}:
            why = f"cannot be judged, {what} makes the statements for table {name} itself"
            change = "Make sure that every one of them filters or writes bot_id, and accept it by name; or write the statements out."
            self.found.append(Problem(DYNAMIC, line, f"{what} {name}", why, change))

    # ----- texts

    def text(self, text: Text, node: ast.expr, certain: bool) -> None:
        self.found += settings.text_problems(text, node.lineno)
        self.found += self.judged(text, node, certain)

    def judged(self, text: Text, node: ast.expr, certain: bool) -> list[Problem]:
        return [
            Problem(found.kind, node.lineno, found.key, found.why, found.change)
            for found in judge(text, self.own, certain)
        ]

    def names(self) -> None:
        """Judge what names were given, unless it only ever is a part of something else."""
        for scope in self.texts.scopes.values():
            for name in scope.events:
                place = (id(scope), name)
                used = self.loads.get(place, []) + (self.attributes.get(name, []) if scope.kind == "class" else [])
                fragment = bool(used) and all(load in self.texts.consumed for load in used)
                for version in self.texts.versions(scope, name):
                    if name in TABLE_NAMES and scope.kind == "class":
                        self.generated(version.least.literal or "", version.node.lineno, "an ORM")
                    self.found += settings.text_problems(version.most, version.node.lineno)
                    if not fragment:
                        self.version(version, certain=place in self.certain)

    def version(self, version: Version, certain: bool) -> None:
        least = self.judged(version.least, version.node, certain)
        if least and version.least != version.most and not self.judged(version.most, version.node, certain):
            # Only what may be added to it names the bot.
            least = self.judged(version.least + MORE, version.node, certain)
        self.found += least


def handles_of(tree: ast.Module) -> set[str]:
    """What the source calls its cursors and connections."""
    found: set[str] = set()
    for node in ast.walk(tree):
        targets, value = assignment(node) if isinstance(node, ast.stmt) else ([], None)
        if isinstance(node, ast.withitem) and node.optional_vars:
            targets, value = [node.optional_vars], node.context_expr
        value = value.value if isinstance(value, ast.Await) else value
        if isinstance(value, ast.Call) and dotted(value.func).split(".")[-1] in GIVE_HANDLES:
            found |= {name_of(target) for target in targets} - {""}
    return found


def is_cursor(node: ast.AST) -> bool:
    """conn.cursor().execute(...)"""
    return isinstance(node, ast.Call) and RECEIVER.search(dotted(node.func).lower()) is not None
