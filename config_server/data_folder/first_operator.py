"""The first operator's token: made by the first start, or by `understudy init` before it."""

from __future__ import annotations

from pathlib import Path

from config_server.data_folder.belonging import OPERATOR, TOKEN_FILE
from config_server.rules.facts import SELF
from config_server.store import audit, force, operators
from config_server.store.database import Connection, Database
from shared.daemon import logging
from shared.trust import identity

_log = logging.get()


async def ensure(db: Database, folder: Path, now_ns: int) -> bool:
    """Makes an operator token where there is none; whether there was none. Raises DatabaseError, IdentityFileError."""
    token_file = folder / TOKEN_FILE
    if token_file.exists():
        return False
    # No file: the first start, or an administrator deleted it to have a new token. The old one ends with it.
    token = operators.new_token()

    def work(db: Connection) -> None:
        if not operators.has_any(db):
            force.take_over(db)  # it is made just now, as somebody wanted
        operators.set_first(db, OPERATOR, token, now_ns)
        audit.add(db, SELF, "operator.token", OPERATOR, {}, now_ns)

    # First the database: a file whose token does not work would never be replaced.
    await db.run(work)
    identity.write(token_file, token.encode() + b"\n", mode=0o600)
    _log.info("operator token written", file=str(token_file))
    return True
