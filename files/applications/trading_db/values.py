"""Exact conversion of single values. Pure functions, no I/O."""

from __future__ import annotations

from decimal import Decimal

# What a bot may pass for an amount; text is the exchange's decimal text.
Amount = Decimal | int | float | str
