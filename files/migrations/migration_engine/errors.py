"""What can go wrong, and the exit code each kind ends with."""

from __future__ import annotations


class MigrationError(Exception):
    """Says fact, value found, value expected and next command; nothing was changed."""

    exit_code = 1


class UsageError(MigrationError):
    """Arguments, environment or bots.json are not usable."""

    exit_code = 2


class RejectsError(MigrationError):
    """More rows cannot be migrated than the operator accepted."""

    exit_code = 3
    sqlstate = "MG003"


class SourceError(MigrationError):
    """The legacy store is absent, locked, damaged or of another shape."""

    exit_code = 4


class TargetError(MigrationError):
    """trading_db cannot be reached, or lacks what must be there first."""

    exit_code = 5
