"""Read the bots' own Python sources, and find what the unified database does not bear.

Nothing is run or imported: sources are parsed (`ast`), and so are the SQL
statements in them (`sqlglot`). Pure functions; the role bot_audit fetches the
sources and shows the findings.
"""
