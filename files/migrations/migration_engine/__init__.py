"""Moves the legacy bots' history into trading_db, exactly."""
