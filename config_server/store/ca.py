"""The last renewal of the CA, under way or over, and which certificates were the CA's before. What daemons are told follows from it, and
what the files of each config server are to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from cryptography import x509
from sqlalchemy import Connection

from config_server.rules.ca_renewal import Renewal
from config_server.store import settings
from shared import decoding
from shared.trust import anchors

_RENEWAL: Final = "ca-renewal"
_FORMER: Final = "ca-former"


def renewal(db: Connection) -> Renewal | None:
    found = settings.get(db, _RENEWAL)
    return None if found is None else decoding.decode(found, type=Renewal)


def put(db: Connection, renewal: Renewal) -> None:
    settings.put(db, _RENEWAL, msgspec.json.encode(renewal).decode())


def former(db: Connection) -> tuple[x509.Certificate, ...]:
    """All that ever were, the last one first."""
    found = settings.get(db, _FORMER)
    return () if not found else tuple(x509.load_pem_x509_certificates(found.encode()))


def add_former(db: Connection, gone: Sequence[x509.Certificate]) -> None:
    known = dict.fromkeys((*gone, *former(db)))
    settings.put(db, _FORMER, anchors.pem_of(tuple(known)).decode())
