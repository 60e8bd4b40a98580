"""Which file of the data folder the database is, where it is SQLite, and what people are told who have lost it. Whoever only names it loads
nothing of the database."""

from __future__ import annotations

from typing import Final

DATABASE_FILE: Final = "state.db"
"""In the data folder."""
RESTORE: Final = "python -m config_server restore --config … --from FILE"
WITHOUT_BACKUP: Final = (
    "Without a backup: move the whole data folder away, and the note of its CA, which lies beside the vault file (vault.json.ca); start,"
    " and enrol every daemon anew (with --replace); what is replicated stays in storage."
)
