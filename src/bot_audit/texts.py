"""Work out what text an expression of a source stands for, without running it."""

from __future__ import annotations

import ast
import inspect
import re
import string
import textwrap
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

PERCENT = re.compile(r"%(?:\((\w+)\))?[-#0 +]*[\d*]*(?:\.[\d*]+)?([sdifgrxa%])")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
# Calls that hand back the text they are given, or nearly so.
SAME = {"text", "SQL", "dedent", "cleandoc", "str"}
SAME_METHODS = {"strip", "lstrip", "rstrip", "as_string", "encode", "expandtabs"}


@dataclass(frozen=True)
class Hole:
    """A part of a text that is known at run time only."""

    node: ast.AST | None = None

    @property
    def label(self) -> str:
        """What the source calls it; never what it may hold."""
        names: list[str] = []
        node = self.node
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        return ".".join(reversed([*names, node.id])) if isinstance(node, ast.Name) else "..."


@dataclass(frozen=True)
class Text:
    parts: tuple[str | Hole, ...]

    def __add__(self, other: Text) -> Text:
        parts = self.parts + other.parts
        length = sum(len(part) if isinstance(part, str) else 1 for part in parts)
        return Text(parts) if length <= LONGEST else Text((Hole(),))

    @property
    def literal(self) -> str | None:
        """The text, if no part of it is unknown."""
        return "".join(map(str, self.parts)) if all(isinstance(part, str) for part in self.parts) else None

    @property
    def holes(self) -> list[Hole]:
        return [part for part in self.parts if isinstance(part, Hole)]

    def rendered(self) -> tuple[str, list[str]]:
        """The text with `_hole_N_` for what is unknown, and the names of these."""
        labels: list[str] = []
        pieces = []
        for part in self.parts:
            if isinstance(part, str):
                pieces.append(part)
            else:
                pieces.append(f"_hole_{len(labels)}_")
                labels.append(part.label)
        return "".join(pieces), labels


# Doubling a text a few dozen times would fill the memory. No statement is that long.
LONGEST = 50_000
# Calls that read the environment.
READS = re.compile(r"(?:^|\.)(?:getenv|environ\.get|env|env\.\w+|config)$")
# What may yet be added to a text.
MORE = Text((" ", Hole()))


@dataclass(frozen=True)
class Event:
    """A value that a name is given; `extends` where it is what the name held, and more."""

    value: ast.expr
    block: int
    extends: bool


@dataclass
class Scope:
    """The names of a module, class or function."""

    parent: Scope | None
    kind: str
    events: dict[str, list[Event]] = field(default_factory=dict)
    # Names that are given something we do not follow: parameters, loop variables, imports.
    opaque: set[str] = field(default_factory=set)
    # Lists that grow: their first elements are not all.
    grown: set[str] = field(default_factory=set)

    def holder(self, name: str) -> Scope | None:
        scope: Scope | None = self
        while scope is not None:
            if (scope is self or scope.kind != "class") and (name in scope.events or name in scope.opaque):
                return scope
            scope = scope.parent
        return None


@dataclass(frozen=True)
class Version:
    """What one name may hold: the text that it holds in any case, and the one with all that may be added."""

    node: ast.expr
    least: Text
    most: Text


class Texts:
    """The texts of one source."""

    def __init__(self, tree: ast.Module) -> None:
        self.module = Scope(None, "module")
        self.scopes: dict[ast.AST, Scope] = {tree: self.module}
        self.attributes: dict[str, list[ast.expr]] = {}
        # Uses of a name whose text became part of another.
        self.consumed: set[ast.AST] = set()
        self._named: dict[tuple[int, str], Text | None] = {}
        self._collect(tree, self.module, 0)

    # ----- names

    def _collect(self, node: ast.AST, scope: Scope, block: int, known: Collection[str] = ()) -> None:
        """Note what each name is given. `block` tells statements apart that are not run by the same condition."""
        if isinstance(node, Definition):
            if not isinstance(node, ast.Lambda):
                scope.opaque.add(node.name)
            for outside in outer_expressions(node):
                self._collect(outside, scope, block)
            self._enter(node, scope)
            return
        if isinstance(node, ast.stmt):
            known = self._assigned(node, scope, block)
        elif isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load) and node.id not in known:
                scope.opaque.add(node.id)
        elif isinstance(node, ast.alias):
            scope.opaque.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            scope.opaque.add(node.name)
        elif isinstance(node, ast.Attribute) and node.attr in {"append", "extend", "insert"}:
            scope.grown |= {node.value.id} if isinstance(node.value, ast.Name) else set()
        for _, child in ast.iter_fields(node):
            children = child if isinstance(child, list) else [child]
            inner = id(child) if children and isinstance(children[0], ast.stmt) else block
            for one in children:
                if isinstance(one, ast.AST):
                    self._collect(one, scope, inner, known)

    def _assigned(self, statement: ast.stmt, scope: Scope, block: int) -> list[str]:
        targets, value = assignment(statement)
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        for name in names:
            if value is None:
                continue
            extends = any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(value))
            scope.events.setdefault(name, []).append(Event(value, block, extends))
            if scope.kind == "class":
                self.attributes.setdefault(name, []).append(value)
        return names

    def _enter(self, node: Definition, scope: Scope) -> None:
        inner = self.scopes[node] = Scope(scope, "class" if isinstance(node, ast.ClassDef) else "function")
        if not isinstance(node, ast.ClassDef):
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            inner.opaque |= {argument.arg for argument in every if argument}
        body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else [*node.body]
        for one in body:
            self._collect(one, inner, id(node))

    def versions(self, scope: Scope, name: str) -> list[Version]:
        """The texts that a name is given, one for each time it starts anew."""
        found: list[Version] = []
        block = 0
        for event in scope.events.get(name, []):
            if not event.extends:
                text = self.of(event.value, scope)
                block = event.block
                if text is not None:
                    found.append(Version(event.value, text, text))
            elif found:
                last = found[-1]
                least = last.least
                if event.block == block:
                    least = self.of(event.value, scope, {name: last.least}) or last.least
                most = self.of(event.value, scope, {name: last.most}) or last.most
                found[-1] = Version(last.node, least, most)
        return found

    # ----- expressions

    def of(self, node: ast.AST | None, scope: Scope, known: dict[str, Text] | None = None) -> Text | None:
        """The text that an expression stands for; None where it is not seen to be a text."""
        known = known or {}
        match node:
            case ast.Constant(value=str() as value):
                return Text((value,))
            case ast.JoinedStr(values=values):
                return Text(tuple(part for value in values for part in self._part(value, scope, known).parts))
            case ast.FormattedValue(value=value):
                return self.of(value, scope, known)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                first, second = self.of(left, scope, known), self.of(right, scope, known)
                if first is None and second is None:
                    return None
                return self._joined(left, first) + self._joined(right, second)
            case ast.BinOp(left=left, op=ast.Mod(), right=right):
                template = self.of(left, scope, known)
                return self._percent(self._consume(left, template), right, scope, known) if template else None
            case ast.Name(id=name):
                return known[name] if name in known else self._name(name, scope)
            case ast.Attribute(attr=name):
                values = self.attributes.get(name, [])
                constant = values[0] if len(values) == 1 else None
                return self.of(constant, scope, known) if isinstance(constant, ast.Constant) else None
            case ast.Call():
                return self._call(node, scope, known)
        return None

    def _part(self, node: ast.expr, scope: Scope, known: dict[str, Text]) -> Text:
        inner = node.value if isinstance(node, ast.FormattedValue) else node
        return self._joined(inner, self.of(inner, scope, known))

    def _joined(self, node: ast.expr, text: Text | None) -> Text:
        """A text as part of another, or a hole in it."""
        return self._consume(node, text) if text is not None else Text((Hole(node),))

    def _consume(self, node: ast.expr, text: Text) -> Text:
        self.consumed.add(node)
        return text

    def _name(self, name: str, scope: Scope) -> Text | None:
        holder = scope.holder(name)
        if holder is None or name in holder.opaque:
            return None
        place = (id(holder), name)
        if place not in self._named:
            # A name that is made of itself by way of others is unknown.
            self._named[place] = None
            versions = self.versions(holder, name)
            if len(versions) == 1 and sum(not event.extends for event in holder.events[name]) == 1:
                only = versions[0]
                self._named[place] = only.least if only.least == only.most else only.least + MORE
        return self._named[place]

    def _percent(self, template: Text, right: ast.expr, scope: Scope, known: dict[str, Text]) -> Text:
        values = iter(right.elts if isinstance(right, ast.Tuple) else [right])
        named = {}
        if isinstance(right, ast.Dict):
            named = {
                key.value: value
                for key, value in zip(right.keys, right.values, strict=True)
                if isinstance(key, ast.Constant)
            }

        def value_of(match: re.Match[str]) -> Text:
            if match[2] == "%":
                return Text(("%",))
            node = named.get(match[1]) if match[1] else next(values, None)
            return self._part(node, scope, known) if node is not None else Text((Hole(right),))

        return filled(template, PERCENT, value_of)

    def _call(self, node: ast.Call, scope: Scope, known: dict[str, Text]) -> Text | None:
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if isinstance(function, ast.Attribute):
            if name == "join" and len(node.args) == 1:
                separator = self.of(function.value, scope, known)
                return self._list(separator, node.args[0], scope, known) if separator else None
            if name == "format" and (template := self.of(function.value, scope, known)):
                return self._format(self._consume(function.value, template), node, scope, known)
            if name in SAME_METHODS and (text := self.of(function.value, scope, known)):
                return self._consume(function.value, text)
        if name == "Identifier" and node.args:
            names = [self._part(argument, scope, known) for argument in node.args]
            return Text(
                tuple(part for index, one in enumerate(names) for part in ((".",) if index else ()) + one.parts)
            )
        if name == "Placeholder":
            return Text(("%s",))
        if name in SAME and node.args and (text := self.of(node.args[0], scope, known)):
            whole = self._consume(node.args[0], text)
            if name in {"dedent", "cleandoc"} and whole.literal is not None:
                return Text(({"dedent": textwrap.dedent, "cleandoc": inspect.cleandoc}[name](whole.literal),))
            return whole
        return None

    def _format(self, template: Text, call: ast.Call, scope: Scope, known: dict[str, Text]) -> Text:
        named = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        parts: list[str | Hole] = []
        position = 0
        for part in template.parts:
            if isinstance(part, Hole):
                parts.append(part)
                continue
            try:
                fields = list(string.Formatter().parse(part))
            except ValueError:
                parts.append(part)
                continue
            for literal, name, _, _ in fields:
                parts.append(literal)
                if name is None:
                    continue
                index = int(name) if name.isdigit() else position
                position += not name
                node = named.get(name) if name and not name.isdigit() else None
                if node is None and index < len(call.args) and (not name or name.isdigit()):
                    node = call.args[index]
                parts += self._part(node, scope, known).parts if node is not None else (Hole(),)
        return Text(tuple(parts))

    def _list(self, separator: Text, node: ast.expr, scope: Scope, known: dict[str, Text]) -> Text | None:
        """`separator.join(...)` of a list that is written out; one that grows ends in a hole."""
        grown = False
        if isinstance(node, ast.Name):
            holder = scope.holder(node.id)
            events = holder.events.get(node.id, []) if holder and node.id not in holder.opaque else []
            if (
                holder is None
                or not events
                or events[0].extends
                or not isinstance(events[0].value, ast.List | ast.Tuple)
            ):
                return None
            if sum(not event.extends for event in events) > 1:
                return None
            grown = node.id in scope.grown | holder.grown or len(events) > 1
            node = events[0].value
        if not isinstance(node, ast.List | ast.Tuple) or not (node.elts or grown):
            return None
        pieces = [self._part(element, scope, known) for element in node.elts] + [Text((Hole(),))] * grown
        joined = pieces[0]
        for piece in pieces[1:]:
            joined = joined + separator + piece
        return joined


def filled(template: Text, pattern: re.Pattern[str], value_of: Callable[[re.Match[str]], Text]) -> Text:
    """A template with each match replaced by a text."""
    parts: list[str | Hole] = []
    for part in template.parts:
        if isinstance(part, Hole):
            parts.append(part)
            continue
        end = 0
        for match in pattern.finditer(part):
            parts += [part[end : match.start()], *value_of(match).parts]
            end = match.end()
        parts.append(part[end:])
    return Text(tuple(parts))


def assignment(statement: ast.stmt) -> tuple[list[ast.expr], ast.expr | None]:
    """Targets and value of an assignment. `x += y` is `x = x + y`."""
    if isinstance(statement, ast.Assign):
        return statement.targets, statement.value
    if isinstance(statement, ast.AnnAssign):
        return [statement.target], statement.value
    if (
        isinstance(statement, ast.AugAssign)
        and isinstance(statement.op, ast.Add)
        and isinstance(statement.target, ast.Name)
    ):
        same = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement)
        return [statement.target], ast.copy_location(ast.BinOp(same, ast.Add(), statement.value), statement)
    return [], None


def outer_expressions(node: Definition) -> list[ast.expr]:
    """The expressions of a definition that are evaluated outside of it."""
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    if isinstance(node, ast.ClassDef):
        return [*decorators, *node.bases, *(keyword.value for keyword in node.keywords)]
    return [*decorators, *node.args.defaults, *(default for default in node.args.kw_defaults if default)]


def bindings(tree: ast.Module) -> Iterator[tuple[str, ast.expr, int]]:
    """Every (name, value, line) where a value is given a name: by assignment, keyword, key, default or fallback."""
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            targets, value = assignment(node)
            for target in targets:
                for one, given in paired(target, value):
                    if name := name_of(one):
                        yield name, given, node.lineno
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg:
                    yield keyword.arg, keyword.value, keyword.value.lineno
            if fallback := environment(node):
                yield fallback[0], fallback[1], node.lineno
            if isinstance(node.func, ast.Attribute) and node.func.attr == "setdefault" and len(node.args) == 2:
                variable = constant_text(node.args[0])
                yield variable, node.args[1], node.lineno
        if isinstance(node, ast.BoolOp):
            # os.getenv("X") or "..." names the variable, too.
            first = node.values[0]
            if isinstance(first, ast.Call) and READS.search(dotted(first.func)) and first.args:
                for value in node.values[1:]:
                    yield constant_text(first.args[0]), value, node.lineno
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield key.value, value, value.lineno
        if isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            defaults = list(zip(positional[len(positional) - len(node.defaults) :], node.defaults, strict=True))
            defaults += [
                (one, default) for one, default in zip(node.kwonlyargs, node.kw_defaults, strict=True) if default
            ]
            for argument, default in defaults:
                yield argument.arg, default, default.lineno


def paired(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Each target with each value that it may be given: a, b = 1, 2 gives two names, and x = y or z one of two values."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for one, given in zip(target.elts, value.elts, strict=True):
            yield from paired(one, given)
    elif isinstance(value, ast.BoolOp):
        for given in value.values:
            yield target, given
    elif value is not None:
        yield target, value


def name_of(target: ast.expr) -> str:
    """What a value is called that is assigned to this: x, self.x and d["x"] are all x."""
    match target:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=str() as name)):
            return name
    return ""


def constant_text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def dotted(node: ast.AST) -> str:
    """`psycopg2.pool.connect` of that expression; "?" stands for what is no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def environment(call: ast.Call) -> tuple[str, ast.expr] | None:
    """(variable, fallback) of os.getenv("X", fallback) and its likes."""
    if not READS.search(dotted(call.func)) or not call.args:
        return None
    variable = call.args[0]
    fallbacks = call.args[1:2] + [keyword.value for keyword in call.keywords if keyword.arg == "default"]
    if isinstance(variable, ast.Constant) and isinstance(variable.value, str) and fallbacks:
        return variable.value, fallbacks[0]
    return None
