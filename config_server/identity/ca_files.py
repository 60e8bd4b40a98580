"""This server's two files of the CA, brought to where its renewal wants them (rules/ca_renewal.py). Blocks on the disk.

Whoever is killed in between does it again: what a stage wants does not depend on how far the files came. They are read anew each time,
since a person copies them from another server where there are several.

**Nothing goes that the database does not know.** One that was put back alone, from before another renewal, says "the last one is over", and
by the files a later one signs, by which daemons have certificates: to leave only what the database names would take its key, and lock them
out. So files with a certificate that the database does not know are left as they are."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cryptography import x509

from config_server.identity.ca import CertificateAuthority
from config_server.rules.ca_renewal import Stage
from shared.errors import CaFilesError
from shared.trust import anchors


def put_beside(folder: Path, new: CertificateAuthority) -> None:
    """Raises OSError, ValueError, IdentityFileError."""
    CertificateAuthority.read(folder).with_another(new).save(folder)


def brought(
    folder: Path, stage: Stage, new: x509.Certificate, known: Collection[x509.Certificate]
) -> CertificateAuthority:
    """What is there then; as it was, where the key of the new one is not here. `known`: which were the CA's before, as the database has
    it. Raises CaFilesError, OSError, ValueError, IdentityFileError."""
    ca = CertificateAuthority.read(folder)
    if strange := [each for each in ca.trusted if each != new and each not in known]:
        prints = ", ".join(anchors.fingerprint(each)[:16] for each in strange)
        raise CaFilesError(
            "The CA's files are ahead of the database",
            cause=f"{folder / 'ca.pem'} has what the database does not know ({prints}…): it was put back from before a renewal of the CA",
            action="Nothing was changed in the files, and daemons are served by them. Put the newest state in the database's place, or"
            " renew the CA once more (understudy ca renew): that takes up what is there.",
        )
    wanted = _wanted(ca, stage, new)
    if not wanted.is_as(ca):
        wanted.save(folder)
    return wanted


def _wanted(ca: CertificateAuthority, stage: Stage, new: x509.Certificate) -> CertificateAuthority:
    if stage is Stage.GIVEN_UP:
        return ca if ca.certificate == new else ca.without(new)
    if not ca.has_key_of(new):
        return ca
    match stage:
        case Stage.MADE:
            return ca.trusting(new)
        case Stage.SWITCHED:
            return ca.signing_by(new)
        case Stage.DROPPED:
            return ca.only(new)
