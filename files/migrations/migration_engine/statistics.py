"""Counts, exact sums and ranges of one table's rows, to verify the target against."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Context, Decimal

# Sums of any number of rows stay exact.
_EXACT = Context(prec=200)


@dataclass
class Statistics:
    """sums are exact decimals, minima and maxima ISO texts in UTC (or dates), by source column."""

    row_count: int = 0
    sums: dict[str, Decimal] = field(default_factory=dict)
    minima: dict[str, str] = field(default_factory=dict)
    maxima: dict[str, str] = field(default_factory=dict)

    def minus(self, other: Statistics) -> Statistics:
        """Counts and sums without those of `other`; ranges as they are."""
        sums = {name: _EXACT.subtract(total, other.sums.get(name, Decimal(0))) for name, total in self.sums.items()}
        return Statistics(self.row_count - other.row_count, sums, self.minima, self.maxima)
