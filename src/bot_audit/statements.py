"""Judge SQL statements: does each touch of a bot's table name the bot?"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from .finding import BOT_ID, DYNAMIC, OTHER_BOT, SESSION, TABLE, masked
from .texts import Text

# sqlglot logs the statements that it does not know, and a statement may hold a secret.
logging.getLogger("sqlglot").setLevel(logging.CRITICAL)

# Every table of the unified schema with a bot_id. A unit test holds it against the migrations.
SCHEMA_OF = {
    **dict.fromkeys(
        ("account_balance", "bot_heartbeats", "bots", "fills", "funding_payments", "orders", "positions")
        + ("risk_metrics", "signals", "trades"),
        "trading",
    ),
    "bot_configurations": "config",
    "risk_events": "audit",
    "system_events": "audit",
}
# Tables that bots used to have and that the unified schema lacks.
LEGACY = {"daily_snapshots"}
UNQUALIFIED = {"", "main", "public"}

HOLE = re.compile(r"_hole_\d+_")
VALUE = re.compile(r"_value_(\d+|bot)_")
VERB = re.compile(
    r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(SELECT|INSERT|UPDATE|DELETE|WITH|REPLACE|TRUNCATE|COPY|MERGE|EXPLAIN)\b",
    re.I | re.S,
)
EXPLAIN = re.compile(r"\s*EXPLAIN\b(?:\s+(?:ANALYZE|VERBOSE)\b|\s*\([^)]*\))*", re.I)
TABLES = "|".join(sorted({*SCHEMA_OF, *LEGACY}))
TOUCH = re.compile(
    rf'\b(?:FROM|INTO|UPDATE|JOIN|TRUNCATE|TABLE|COPY|ONLY|,)\s+(?:"?\w+"?\.)?"?(?:{TABLES}|_hole_\d+_)\b', re.I
)
# What makes, changes, drops or locks a table of all bots; a DO hides what it does.
DEFINITION = re.compile(
    r"""(?:\A|;)(?:\s|--[^\n]*\n|/\*.*?\*/)*
    (?P<verb>(?:CREATE(?!\s+(?:LOCAL\s+|GLOBAL\s+)?TEMP)|ALTER|DROP|LOCK)\b(?=(?P<one>[^;]*))|DO\b(?=(?P<all>.*)))""",
    re.I | re.S | re.X,
)
DEFINED = re.compile(
    rf'(?:\b(?:TABLE|EXISTS|ON|ONLY|FROM|INTO|UPDATE|JOIN)\s+|,\s*|\A\s*)(?:"?(\w+)"?\.)?"?({TABLES}|_hole_\d+_)\b',
    re.I,
)
# Without capitals it is a statement where its columns are a list, and not words.
LOWER = re.compile(
    r"[*=(]|%s|\?|_hole_|\s*delete\s+from\s|\s*select\s+(?:distinct\s+)?[\w.]+(?:\s*,\s*[\w.]+)*\s+from\s"
)
# `?` is an operator of JSONB where a value follows it.
PLACEHOLDER = re.compile(
    r"""(?P<skip>'(?:[^']|'')*'|"[^"]*"|--[^\n]*|/\*.*?\*/|%%)
      | (?P<value>%\(\w+\)s|%[sbt]\b|(?<![:\w]):[a-z_]\w*|\?(?![|&])(?!\s*['%$]))""",
    re.X | re.S | re.I,
)
# What a pooled connection loses, or hands to the next client.
STATES = (
    (r"\s*SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)\w", "SET", "SET LOCAL within the transaction"),
    (
        r"\s*(?:UN)?LISTEN\s+\S",
        "LISTEN",
        "polling, or a connection of its own for notifications that the operator agrees to",
    ),
    (r"\s*PREPARE\s+\w+.*\bAS\b", "PREPARE", "the plain statement with parameters"),
    (
        r"\s*CREATE\s+(?:LOCAL\s+|GLOBAL\s+)?TEMP(?:ORARY)?\s(?!.*\bON\s+COMMIT\s+DROP\b)",
        "a temporary table",
        "ON COMMIT DROP",
    ),
    (r"\s*DECLARE\s.*\bWITH\s+HOLD\b", "a cursor WITH HOLD", "a cursor within the transaction"),
    (r".*\bpg_(?:try_)?advisory_lock(?:_shared)?\s*\(", "an advisory lock of the session", "pg_advisory_xact_lock"),
)
BLOCKS = (exp.Select, exp.Update, exp.Delete, exp.Insert, exp.Merge, exp.Copy, exp.TruncateTable)
VERBS = {"select": "reads", "update": "changes", "delete": "deletes from", "truncatetable": "empties"}


@dataclass(frozen=True)
class Judgement:
    kind: str
    key: str
    why: str
    change: str


def judge(text: Text, own: frozenset[str], certain: bool) -> list[Judgement]:
    """What is wrong with a text, if it is SQL; `own` are the ids that its bot may name.

    `certain` says that the text was handed to a database. Any other text has
    to look like SQL more than like a sentence.
    """
    sql, labels = text.rendered()
    key = " ".join(sql.split())
    found = [
        Judgement(
            SESSION,
            key,
            f"{what} belongs to a session; PgBouncer pools transactions, so that the next one may be in another session.",
            f"Use {instead}.",
        )
        for pattern, what, instead in STATES
        if (certain or (what.startswith("an advisory") and sql.lstrip()[:6].isupper()))
        and re.match(pattern, sql, re.I | re.S)
    ]
    defined = definition(sql, certain)
    found += [defined] if defined else []
    # Others may stand before it, such as BEGIN.
    if not (certain or sounds_like_sql(sql)) or not TOUCH.search(sql):
        return found
    statement = Statement(EXPLAIN.sub("", sql, count=1), labels)
    if statement.trees:
        return found + statement.judged(own)
    return found or [statement.undecided("it cannot be parsed")]


def definition(sql: str, certain: bool) -> Judgement | None:
    """What is done to a table itself, where it is one of all bots."""
    for match in DEFINITION.finditer(sql):
        if not certain and not match["verb"].isupper():
            continue
        for schema, name in DEFINED.findall(match["one"] or match["all"] or ""):
            known = schema.lower() in UNQUALIFIED or SCHEMA_OF.get(name.lower()) == schema.lower()
            if HOLE.search(f"{schema}.{name}".lower()) or known:
                shown = "a table that is put in at run time" if HOLE.search(name.lower()) else f"table {name.lower()}"
                return Judgement(
                    TABLE,
                    " ".join(sql.split()),
                    f"{match['verb'].upper()} of {shown}: the tables hold the rows of all bots, and the migrations make them."
                    " PostgreSQL refuses it to a bot with a role of its own, and obeys one that shares trading_user.",
                    "Take it out: phase 2 has made the tables and their indexes.",
                )
    return None


def sounds_like_sql(sql: str) -> bool:
    verb = VERB.match(sql)
    if not verb or verb[1].isupper():
        return bool(verb)
    return verb[1].islower() and LOWER.search(sql) is not None


@dataclass
class Statement:
    """A text of SQL, parsed: its placeholders and holes are columns named `_value_N_` and `_hole_N_`."""

    sql: str
    labels: list[str]
    placeholders: list[str] = field(default_factory=list)
    trees: list[exp.Expr] = field(default_factory=list)
    # Whether a hole had to be left out: it may be all that is missing.
    cut: bool = False

    def __post_init__(self) -> None:
        def value(match: re.Match[str]) -> str:
            if match["skip"]:
                return "%" if match["skip"] == "%%" else match["skip"]
            # The driver of the unified database writes %s where SQLite has ?.
            self.placeholders.append(match["value"].replace("?", "%s"))
            return f" _value_{len(self.placeholders) - 1}_ "

        self.prepared = PLACEHOLDER.sub(value, self.sql)
        holes = sorted(set(HOLE.findall(self.prepared)))
        for left_out in [[], *([hole] for hole in holes), holes] if holes else [[]]:
            prepared = self.prepared
            for hole in left_out:
                prepared = prepared.replace(hole, " ")
            if trees := parsed(prepared):
                self.trees, self.cut = trees, bool(left_out)
                return

    def judged(self, own: frozenset[str]) -> list[Judgement]:
        found: list[Judgement] = []
        missing: list[tuple[exp.Expr, exp.Table]] = []
        unclear: list[str] = []
        for tree in self.trees:
            for block in tree.find_all(*BLOCKS):
                judgement = Block(block, tree, own, self.cut)
                missing += [(block, table) for table in judgement.missing]
                unclear += judgement.unclear
                found += [self.other_bot(literal, own) for literal in sorted(judgement.foreign)]
        if missing:
            touched = " and ".join(dict.fromkeys(f"{verb_of(block)} {shown_table(table)}" for block, table in missing))
            found.append(
                Judgement(BOT_ID, self.key, f"{touched} without bot_id{consequence(missing)}", self.mended(missing))
            )
        elif unclear:
            found.append(self.undecided(unclear[0]))
        return found

    @property
    def whole_rows(self) -> bool:
        """Whether this is the `VALUES %s` of execute_values, that puts rows in there."""
        return re.search(r"\bVALUES\s+_value_\d+_", self.prepared, re.I) is not None

    @property
    def key(self) -> str:
        return " ".join(self.sql.split())

    def undecided(self, reason: str) -> Judgement:
        return Judgement(
            DYNAMIC,
            self.key,
            f"cannot be judged, {reason}: {masked(self.restored(self.sql))}",
            "Write table and `bot_id = %s` into the statement itself, so that only values are put in; or make sure that"
            " it names the bot, and accept it by name.",
        )

    def other_bot(self, literal: str, own: frozenset[str]) -> Judgement:
        return Judgement(
            OTHER_BOT,
            f"{literal} {self.key}",
            f"names bot_id {masked(repr(literal))}; this bot is {min(own)}",
            "Hand the statement the bot's own id as a parameter: bot_id = %s with os.environ['BOT_ID'].",
        )

    def mended(self, missing: Iterable[tuple[exp.Expr, exp.Table]]) -> str:
        """The statements with bot_id in them, or what to do where that is more than a part of them."""
        for block, table in missing:
            if advice := mend(block, table, self.whole_rows):
                return advice
        for table in (table for tree in self.trees for table in tree.find_all(exp.Table)):
            if table.db.lower() in UNQUALIFIED and table.name.lower() in SCHEMA_OF and not shadowed(table):
                table.set("db", exp.to_identifier(SCHEMA_OF[table.name.lower()]))
                table.set("catalog", None)
        whole = "; ".join(tree.sql("postgres", comments=False) for tree in self.trees)
        if self.whole_rows:
            whole = re.sub(r"\bVALUES \((_value_\d+_)\)", r"VALUES \1", whole)
        return masked(self.restored(whole))

    def restored(self, sql: str) -> str:
        """With placeholders and holes as they stand in the source."""

        def value(match: re.Match[str]) -> str:
            return self.placeholder() if match[1] == "bot" else self.placeholders[int(match[1])]

        def hole(match: re.Match[str]) -> str:
            return "{" + self.labels[int(match[0].strip("_").split("_")[1])] + "}"

        return HOLE.sub(hole, VALUE.sub(value, sql))

    def placeholder(self) -> str:
        """A placeholder for the id, of the kind that the statement uses."""
        if any(value.startswith("%(") for value in self.placeholders):
            return "%(bot_id)s"
        numbers = [int(number) for number in re.findall(r"\$(\d+)\b", self.sql)]
        if numbers:
            return f"${max(numbers) + 1}"
        return ":bot_id" if any(value.startswith(":") for value in self.placeholders) else "%s"


def parsed(sql: str) -> list[exp.Expr]:
    """The statements of a text; empty where it is no SQL that we know."""
    for dialect in ("postgres", "sqlite"):
        try:
            trees = [tree for tree in sqlglot.parse(sql, dialect=dialect) if tree]
        except (SqlglotError, RecursionError):
            continue
        except Exception:  # A text that the parser stumbles over must not hide the findings of all others.
            continue
        if trees and not any(isinstance(tree, exp.Command) for tree in trees):
            return trees
    return []


def shown_table(table: exp.Table) -> str:
    name = table.name.lower()
    return name if name in LEGACY else f"{SCHEMA_OF[name]}.{name}"


def verb_of(block: exp.Expr) -> str:
    if isinstance(block, exp.Copy):
        return "writes" if block.args.get("kind") else "reads"
    return VERBS.get(block.key, "writes")


def consequence(missing: Iterable[tuple[exp.Expr, exp.Table]]) -> str:
    tables = {table.name.lower() for _, table in missing}
    if tables & LEGACY:
        return ": the unified database has no such table, the delivered modules keep this in tables with a bot_id."
    verbs = {verb_of(block) for block, _ in missing}
    return ": a row has to say whose it is." if verbs == {"writes"} else ": the rows of all bots stand in that table."


def shadowed(table: exp.Table) -> bool:
    """Whether a WITH of the statement gives this name to something else."""
    name = table.name.lower()
    if table.db:
        return False
    inside: list[exp.Expr] = []
    node = table.parent
    while node is not None:
        if clause := node.args.get("with_"):
            named = [cte for cte in clause.expressions if cte.alias.lower() == name]
            # Its own definition does not see the name, unless it is recursive.
            if any(clause.args.get("recursive") or not any(cte is one for one in inside) for cte in named):
                return True
        inside.append(node)
        node = node.parent
    return False


def mend(block: exp.Expr, table: exp.Table, whole_rows: bool) -> str:
    """Put bot_id into a statement where it lacks it; advice where it takes another statement."""
    value = exp.column("_value_bot_")
    name = shown_table(table)
    if isinstance(block, exp.TruncateTable):
        return f"DELETE FROM {name} WHERE bot_id = %s"
    if isinstance(block, exp.Copy) and not block.args.get("kind"):
        return f"COPY (SELECT ... FROM {name} WHERE bot_id = '...') TO STDOUT, with the bot's own id"
    if isinstance(block, exp.Insert | exp.Copy):
        schema = block.find(exp.Schema)
        if schema is None:
            return f"Name the columns: INSERT INTO {name} (bot_id, ...) VALUES (%s, ...)"
        schema.set("expressions", [exp.to_identifier("bot_id"), *schema.expressions])
        source = block.args.get("expression")
        if isinstance(source, exp.Values) and not whole_rows:
            for row in source.expressions:
                if isinstance(row, exp.Tuple):
                    row.set("expressions", [value.copy(), *row.expressions])
        elif isinstance(source, exp.Select):
            source.set("expressions", [value, *source.expressions])
    else:
        alone = sum(owner(other) is block for other in block.find_all(exp.Table)) == 1
        confine(
            block,
            table,
            exp.EQ(this=exp.column("bot_id", table=None if alone else table.alias_or_name), expression=value),
        )
    return ""


def confine(block: exp.Expr, table: exp.Table, condition: exp.EQ) -> None:
    """Add a condition for a table: of an outer join's other side in ON, lest it loses rows."""
    join = table.find_ancestor(exp.Join, *BLOCKS)
    if isinstance(join, exp.Join) and join.side and join.args.get("on"):
        join.on(condition, copy=False)
        return
    where = block.args.get("where")
    rest = where.this if where else None
    if isinstance(rest, exp.Or):
        rest = exp.paren(rest, copy=False)
    block.set("where", exp.Where(this=exp.And(this=condition, expression=rest) if rest else condition))


def owner(table: exp.Expr) -> exp.Expr | None:
    return table.find_ancestor(*BLOCKS)


class Block:
    """One SELECT, UPDATE, ... of a statement, with the tables that stand in it itself."""

    def __init__(self, block: exp.Expr, tree: exp.Expr, own: frozenset[str], cut: bool) -> None:
        self.block = block
        self.own = own
        self.missing: list[exp.Table] = []
        self.unclear: list[str] = []
        self.foreign: set[str] = set()
        tables = [table for table in block.find_all(exp.Table) if owner(table) is block and not shadowed(table)]
        self.tables = {table.alias_or_name.lower(): table for table in tables if self.concerned(table)}
        if not self.tables:
            return
        if isinstance(block, exp.Select | exp.Update | exp.Delete):
            self.judge_filter(cut)
        else:
            self.judge_rows(cut)

    @staticmethod
    def concerned(table: exp.Table) -> bool:
        """Whether a table has a bot_id, or a name that is put in at run time."""
        name, schema = table.name.lower(), table.db.lower()
        if HOLE.search(name) or (HOLE.search(schema) and name in SCHEMA_OF):
            return True
        if schema in UNQUALIFIED:
            return name in SCHEMA_OF or name in LEGACY
        return SCHEMA_OF.get(name) == schema

    def blame(self, table: exp.Table, unclear: str) -> None:
        if HOLE.search(f"{table.db}.{table.name}".lower()):
            self.unclear.append("its table is put in at run time")
        elif unclear:
            self.unclear.append(unclear)
        else:
            self.missing.append(table)

    def judge_rows(self, cut: bool) -> None:
        """INSERT and COPY: bot_id is one of the columns. Others touch all rows."""
        schema = self.block.find(exp.Schema) if isinstance(self.block, exp.Insert | exp.Copy) else None
        columns = [column.name.lower() for column in schema.expressions] if schema else []
        if "bot_id" in columns:
            self.judge_values(columns.index("bot_id"))
            return
        unclear = "a part of it is put in at run time" if cut or any(map(HOLE.search, columns)) else ""
        if isinstance(self.block, exp.Merge):
            unclear = "a MERGE"
        for table in self.tables.values():
            self.blame(table, unclear)

    def judge_values(self, position: int) -> None:
        source = self.block.args.get("expression")
        rows = (
            source.expressions if isinstance(source, exp.Values) else [source] if isinstance(source, exp.Select) else []
        )
        for row in rows:
            if position < len(row.expressions):
                self.is_value(row.expressions[position])

    def judge_filter(self, cut: bool) -> None:
        anchored: set[str] = set()
        conditions = list(self.conditions())
        while True:
            before = len(anchored)
            for condition, allowed in conditions:
                anchored |= self.anchors(condition, anchored) & allowed
            if len(anchored) == before:
                break
        for change in self.block.expressions if isinstance(self.block, exp.Update) else []:
            if isinstance(change, exp.EQ) and change.left.name.lower() == "bot_id":
                self.is_value(change.right)
        for alias, table in self.tables.items():
            if alias not in anchored:
                self.blame(table, "a part of it is put in at run time" if cut or self.open_to_more() else "")

    def conditions(self) -> Iterator[tuple[exp.Expr, set[str]]]:
        """What the rows have to fulfil, and the tables that it filters: an outer join keeps those of one side."""
        every = set(self.tables)
        for clause in ("where", "having"):
            if condition := self.block.args.get(clause):
                yield condition.this, every
        for join in self.block.find_all(exp.Join):
            if owner(join) is not self.block:
                continue
            joined = {table.alias_or_name.lower() for table in join.find_all(exp.Table) if owner(table) is self.block}
            allowed = {"LEFT": joined, "RIGHT": every - joined, "FULL": set()}.get(join.side, every)
            if condition := join.args.get("on"):
                yield condition, allowed
            if any(column.name.lower() == "bot_id" for column in join.args.get("using") or []):
                for alias in joined & every:
                    for other in every - joined:
                        same = exp.EQ(
                            this=exp.column("bot_id", table=alias), expression=exp.column("bot_id", table=other)
                        )
                        yield same, allowed

    def anchors(self, condition: exp.Expr, anchored: set[str]) -> set[str]:
        """The tables whose rows this condition confines to one bot."""
        condition = condition.unnest()
        if isinstance(condition, exp.And):
            return self.anchors(condition.left, anchored) | self.anchors(condition.right, anchored)
        if isinstance(condition, exp.Or):
            return self.anchors(condition.left, anchored) & self.anchors(condition.right, anchored)
        if isinstance(condition, exp.EQ):
            sides = [self.aliases(side.unnest()) for side in (condition.left, condition.right)]
            if sides[0] and sides[1]:
                return sides[0] | sides[1] if sides[0] <= anchored or sides[1] <= anchored else set()
            for aliases, value in ((sides[0], condition.right), (sides[1], condition.left)):
                if aliases and self.is_value(value):
                    return aliases
        if isinstance(condition, exp.In) and (aliases := self.aliases(condition.this.unnest())):
            values = condition.expressions or [condition.args.get("query") or condition.args.get("field")]
            return aliases if all(self.is_value(value) for value in values) else set()
        return set()

    def aliases(self, side: exp.Expr) -> set[str]:
        """The tables of this block whose bot_id this is; empty for any other expression."""
        if isinstance(side, exp.Cast):
            side = side.this
        if not isinstance(side, exp.Column) or side.name.lower() != "bot_id":
            return set()
        return {side.table.lower()} & set(self.tables) if side.table else set(self.tables)

    def is_value(self, node: exp.Expr | None) -> bool:
        """Whether this can be a bot's own id. A literal that is another's is noted."""
        if node is None:
            return False
        node = node.unnest()
        if isinstance(node, exp.Literal):
            if node.is_string and node.this not in self.own and not re.search(r"_hole_\d+_|^%s$|^%\(", node.this):
                self.foreign.add(node.this)
            return bool(node.is_string)
        if isinstance(node, exp.Column):
            named = VALUE.fullmatch(node.name) or HOLE.fullmatch(node.name)
            # A bot_id of another block or of a derived table is judged there.
            return named is not None or node.name.lower() == "bot_id"
        if isinstance(node, exp.Any | exp.Cast | exp.Alias):
            return self.is_value(node.this)
        if isinstance(node, exp.Array | exp.Tuple):
            return all(self.is_value(value) for value in node.expressions)
        return isinstance(
            node, exp.Placeholder | exp.Parameter | exp.Query | exp.Subquery | exp.CurrentUser | exp.SessionUser
        ) or (isinstance(node, exp.Anonymous) and node.name.lower() == "current_setting")

    def open_to_more(self) -> bool:
        """Whether a condition of this block may be put in at run time."""
        if any(HOLE.fullmatch(alias) for alias in self.tables):
            return True
        parts = [condition.unnest() for condition, _ in self.conditions()]
        while parts:
            part = parts.pop().unnest()
            if isinstance(part, exp.And | exp.Or):
                parts += [part.left, part.right]
            elif isinstance(part, exp.EQ | exp.In):
                parts.append(part.this)
            elif isinstance(part, exp.Column) and HOLE.fullmatch(part.name):
                return True
        return False
