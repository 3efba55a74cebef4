"""What the audit reports, and how it is named."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

BOT_ID, OTHER_BOT, TABLE, DYNAMIC = "bot_id", "other_bot", "table", "dynamic"
SQLITE, CONNECTION, SESSION = "sqlite", "connection", "session"
PASSWORD, UNREAD = "password", "unread"
KINDS = {
    BOT_ID: "statement without bot_id",
    OTHER_BOT: "another bot's id",
    TABLE: "change of a table itself",
    DYNAMIC: "statement that cannot be judged",
    SQLITE: "direct SQLite use",
    CONNECTION: "connection that bypasses PgBouncer",
    SESSION: "session state",
    PASSWORD: "hard-coded password",
    UNREAD: "source that cannot be read",
}
LONGEST_SNIPPET = 2000
# A literal that may be shown: a word, or a bot's id. All else may be a secret.
HARMLESS = re.compile(r"[A-Za-z][A-Za-z ]{0,20}(_[A-Za-z]+)*(_\d{1,4})?(_trial)?")
SECRETIVE = re.compile(r"passw|pwd|secret|token|api_?key|credential|passphrase", re.I)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one place of a source.

    `key` is what makes the finding's name: the statement or the setting
    concerned, nothing that moves with the lines. A statement may hold a secret:
    a key is hashed, and not shown.
    """

    kind: str
    line: int
    key: str = field(repr=False)
    why: str
    change: str


@dataclass(frozen=True)
class Finding:
    """A problem with a name that an operator can accept, and every line it stands in."""

    name: str
    kind: str
    bot: str
    file: str
    lines: tuple[int, ...]
    why: str
    change: str


def named(folder: str, file: str, problem: Problem) -> str:
    """momentum:database/trade_database.py:sqlite:3f2a91"""
    digest = hashlib.sha256(" ".join(problem.key.split()).encode(errors="backslashreplace")).hexdigest()
    return f"{folder}:{file}:{problem.kind}:{digest[:6]}"


def findings_of(bot: str, folder: str, file: str, problems: list[Problem]) -> list[Finding]:
    """One finding a name: the same statement twice in a file is one finding with two lines."""
    found: dict[str, Finding] = {}
    for problem in sorted(problems, key=lambda problem: (problem.line, problem.kind, problem.key)):
        name = named(folder, file, problem)
        lines = {*found[name].lines, problem.line} if name in found else {problem.line}
        found[name] = Finding(name, problem.kind, bot, file, tuple(sorted(lines)), problem.why, problem.change)
    return list(found.values())


def masked(sql: str) -> str:
    """A statement fit to be shown: literals that might be secrets are blanked, and it has an end."""
    secretive = SECRETIVE.search(sql)

    def literal(match: re.Match[str]) -> str:
        return match[0] if HARMLESS.fullmatch(match[0][1:-1]) and not secretive else "'***'"

    shown = " ".join(re.sub(r"'(?:[^']|'')*'", literal, sql).split())
    return shown if len(shown) <= LONGEST_SNIPPET else f"{shown[:LONGEST_SNIPPET]} ..."
