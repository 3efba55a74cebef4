"""How far long work is, on standard error."""

from __future__ import annotations

import sys
import time

INTERVAL = 3.0


def say(text: str) -> None:
    """One line for the operator."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Says rows, rate and remaining time every few seconds."""

    def __init__(self, label: str, total: int) -> None:
        self.label = label
        self.total = total
        self.rows = 0
        self._began = self._said = time.monotonic()

    def add(self, rows: int) -> None:
        """Count rows that are done."""
        self.rows += rows
        now = time.monotonic()
        if self.rows and now - self._said >= INTERVAL:
            self._said = now
            rate = self.rows / (now - self._began)
            share = 100 * self.rows // self.total if self.total else 100
            left = max(self.total - self.rows, 0) / rate
            say(f"{self.label}: {self.rows} of {self.total} rows ({share} %), {rate:.0f} rows/s, {left:.0f} s left")
