"""What storage holds of revocations, since a database that is restored from a backup does not know those that were made after it.

    <vault container>/revoked/<serial>.json                          a serial number
    <vault container>/revoked/<role>/<name>/<at_ns>.json             a ROLE:NAME, each time that it was revoked
    <vault container>/revoked/<role>/<name>/<at_ns>-readmitted.json  ... and each time that it got a certificate again

A record is created once and stays. Of one name their times rise (revocation.py), whatever the clock did, so the last one says what holds.
A backup from before a revocation would not need the readmission: what refuses is then the certificates that begin before the revocation
(`before_s`), which those of a readmission do not. One from between the two has the name as revoked, with all its certificates, and
without that record would refuse for ever who was readmitted.

The CA signs each record. Process servers and master targets have the account's key, too, and none of them shall be able to have others
refused. What they can do is delete; then the config server writes again what its database has.
"""

from __future__ import annotations

import contextlib
from typing import Final

import msgspec

from config_server.identity.ca import CertificateAuthority
from config_server.rules.revocations import FOLDER, Record
from shared import decoding
from shared.blob import BlobStore
from shared.errors import (
    UNDECODABLE,
    BlobExistsError,
    ContainerMissingError,
    PreconditionError,
)

MOST_B: Final = 1 << 16
"""Far more than a record has. Whoever has the account's key may put anything there."""
_SIGNED: Final = b"understudy revocation\0"


class _Signed(msgspec.Struct, frozen=True):
    record: str
    signature: bytes


def encode(record: Record, ca: CertificateAuthority) -> bytes:
    said = msgspec.json.encode(record)
    return msgspec.json.encode(_Signed(said.decode(), ca.sign(_SIGNED + said)))


def decode(blob: str, data: bytes, ca: CertificateAuthority) -> Record | None:
    """None for what this CA did not write under that name."""
    try:
        signed = decoding.decode(data, type=_Signed)
        record = decoding.decode(signed.record, type=Record)
    except UNDECODABLE:
        return None
    genuine = record.blob == blob and ca.has_signed(_SIGNED + signed.record.encode(), signed.signature)
    return record if genuine else None


async def record_blobs(vault: BlobStore) -> set[str]:
    try:
        return {info.name async for info in vault.list(FOLDER)}
    except ContainerMissingError:
        return set()


async def put(vault: BlobStore, record: Record, ca: CertificateAuthority) -> None:
    """Until a record that says so is there: what somebody else put under the name gives way."""
    blob, data = record.blob, encode(record, ca)
    while True:
        try:
            await vault.create(blob, data)
        except ContainerMissingError:
            await vault.ensure_container()
        except BlobExistsError:
            found = await vault.read_versioned(blob, MOST_B)
            if found is not None and decode(blob, found[0], ca) is not None:
                return
            if found is not None:
                with contextlib.suppress(PreconditionError):  # once more
                    await vault.replace(blob, data, if_match=found[1])
                    return
        else:
            return
