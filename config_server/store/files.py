"""Which file of the data folder the database is, where it is SQLite, which one is written last, and what people are told who have lost
it. Whoever only names it loads nothing of the database."""

from __future__ import annotations

from typing import Final

DATABASE_FILE: Final = "state.db"
"""In the data folder."""
TOKEN_FILE: Final = "operator.token"
"""Likewise. It is written last: where it is, the installation is not new, wherever its database is."""
RESTORE: Final = "python -m config_server restore --config … --from FILE"
WITHOUT_BACKUP: Final = (
    "Without a backup: move the whole data folder away, and the note of its CA, which lies beside the vault file (vault.json.ca); start,"
    " and enrol every daemon anew (with --replace); what is replicated stays in storage."
)
