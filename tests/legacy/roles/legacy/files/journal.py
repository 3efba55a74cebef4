"""A bot's own record of the writes its database acknowledged.

Kept outside every database, one JSON object a line, synced to disk before the
bot goes on: {"seq", "at", "table", "id", "op", "row"}. `at` is UTC and taken
after the commit, so a row that a later snapshot misses is a lost row.
"""

import json
import os
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path


def exact(value):
    """The value as JSON that loses nothing: a Decimal and a time become text,
    a float stays a number in its shortest repr."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    return value


class Journal:
    def __init__(self, path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._cut_torn_line()
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._seq = 0

    def append(self, table, row, op):
        """Record `row`, as it is stored now. Returns after it reached the disk."""
        self._seq += 1
        entry = {
            "seq": self._seq,
            "at": datetime.now(timezone.utc).isoformat(),
            "table": table,
            "id": row["id"],
            "op": op,
            "row": {name: exact(value) for name, value in row.items()},
        }
        os.write(self._file, json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        os.fsync(self._file)

    def recent(self, limit=500):
        """The latest entry of each row among the last `limit` lines."""
        lines = self.path.read_bytes().splitlines()[-limit:]
        entries = [json.loads(line) for line in lines]
        return {(entry["table"], entry["id"]): entry for entry in entries}

    def recover(self, read_back):
        """Record rows whose last commit was acknowledged, but not journaled
        any more because the bot was killed in between.

        `read_back(table, journaled_row)` returns the row as it is stored now,
        or None where it is gone.
        """
        latest = self.recent()
        for (table, _), entry in list(latest.items()):
            row = read_back(table, entry["row"])
            if row is None or row.keys() != entry["row"].keys():
                continue
            # A replaced row may have been noted under its new id already.
            stored = {name: exact(value) for name, value in row.items()}
            known = latest.get((table, row["id"]))
            if known is None or known["row"] != stored:
                self.append(table, row, "recover")
                latest[table, row["id"]] = {"row": stored}

    def close(self):
        os.close(self._file)

    def _cut_torn_line(self):
        """Drop what a kill in the middle of a write left behind."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with open(self.path, "r+b") as journal:
                journal.truncate(whole)
