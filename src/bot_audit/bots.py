"""Audit the sources of all bots, and say what was found."""

from __future__ import annotations

import base64
import hashlib
import json
import textwrap
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .finding import KINDS, Finding, findings_of
from .source import problems_of, unread

WIDTH = 116
# By folder: the sources by path, and why others were not read.
Sources = dict[str, dict[str, dict[str, str]]]


@dataclass(frozen=True)
class Audit:
    """What was found. An accepted name without a finding is out of date."""

    findings: list[Finding]
    accepted: list[Finding]
    unknown: list[str]
    # By folder: its bot, the sources that were checked, and those that are ours.
    read: dict[str, tuple[str, int, int]]


def unpacked(payload: str) -> Sources:
    """What the module read_sources packed."""
    sources: Sources = json.loads(zlib.decompress(base64.b64decode(payload)))
    return sources


def delivered(folder: Path) -> frozenset[str]:
    """Checksums of the files that this project itself puts into bots' folders."""
    return frozenset(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.py")))


def audit(
    sources: Sources, bots: Sequence[Mapping[str, Any]], accepted: Collection[str], ours: Collection[str]
) -> Audit:
    """Findings of all bots, in the inventory's order. Files whose checksum is among `ours` are exempt."""
    found: list[Finding] = []
    read = {}
    for bot in bots:
        bot_id, folder = str(bot["id"]), str(bot["folder"])
        own = frozenset({bot_id, f"{bot_id}_trial"})
        held = sources[folder]
        contents = {path: text.encode("latin-1") for path, text in held["files"].items()}
        exempt = {path for path, content in contents.items() if hashlib.sha256(content).hexdigest() in ours}
        read[folder] = (bot_id, len(contents) - len(exempt), len(exempt))
        for path in sorted({*contents, *held["skipped"]} - exempt):
            problems = (
                [unread(1, held["skipped"][path])] if path in held["skipped"] else problems_of(contents[path], own)
            )
            found += findings_of(bot_id, folder, path, problems)
    names = {finding.name for finding in found}
    return Audit(
        findings=[finding for finding in found if finding.name not in accepted],
        accepted=[finding for finding in found if finding.name in accepted],
        unknown=sorted({*accepted} - names),
        read=read,
    )


def report(result: Audit) -> dict[str, Any]:
    """The audit as plain data. It holds no time: a report that says the same is the same."""
    return {
        "findings": [asdict(finding) for finding in result.findings],
        "accepted": [asdict(finding) for finding in result.accepted],
        "accepted_without_finding": result.unknown,
        "sources": {
            folder: {"bot": bot, "checked": checked, "delivered": ours}
            for folder, (bot, checked, ours) in result.read.items()
        },
    }


def listing(result: Audit) -> str:
    """Every finding, by bot: place, why, what to change, and the name that accepts it."""
    return "\n".join(line.rstrip() for line in lines(result))


def lines(result: Audit) -> Iterator[str]:
    for folder, (bot, checked, ours) in result.read.items():
        own = [finding for finding in result.findings if finding.bot == bot]
        accepted = [finding for finding in result.accepted if finding.bot == bot]
        sources = f"{counted(checked, 'source')} checked, {ours} of ours left out"
        yield f"{folder} ({bot}): {counted(len(own), 'finding')}, {len(accepted)} accepted; {sources}"
        for finding in own:
            yield ""
            yield f"  {place(finding)}: {KINDS[finding.kind]}"
            yield from paragraph("why", finding.why)
            yield from paragraph("change", finding.change)
            yield from paragraph("name", finding.name)
        for finding in accepted:
            yield ""
            yield f"  {place(finding)}: {KINDS[finding.kind]}, accepted"
            yield from paragraph("name", finding.name)
        yield ""
    for name in result.unknown:
        yield f"accepted, but not found any more: {name}. Take it out of bot_audit_accepted."


def place(finding: Finding) -> str:
    return f"{finding.file}:{','.join(map(str, finding.lines))}"


def paragraph(label: str, text: str) -> list[str]:
    # A name is copied: it is never broken.
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"    {label:<8}",
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
    )


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def summary(result: Audit) -> str:
    """One sentence for the end of the run."""
    kinds = Counter(finding.kind for finding in result.findings)
    parts = "; ".join(f"{name} {kinds[kind]}" for kind, name in KINDS.items() if kinds[kind])
    bots = len({finding.bot for finding in result.findings})
    if not result.findings:
        return f"No open finding in the code of {counted(len(result.read), 'bot')}, {len(result.accepted)} accepted."
    return f"{counted(len(result.findings), 'finding')} in the code of {counted(bots, 'bot')}: {parts}"
