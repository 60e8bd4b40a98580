"""This server's two files of the CA, brought to where its renewal wants them (rules/ca_renewal.py). Blocks on the disk.

Whoever is killed in between does it again: what a stage wants does not depend on how far the files came. They are read anew each time,
since a person copies them from another server where there are several."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from config_server.identity.ca import CertificateAuthority
from config_server.rules.ca_renewal import Stage


def put_beside(folder: Path, new: CertificateAuthority) -> None:
    """Raises OSError, ValueError, IdentityFileError."""
    CertificateAuthority.read(folder).with_another(new).save(folder)


def brought(folder: Path, stage: Stage, new: x509.Certificate) -> CertificateAuthority:
    """What is there then; as it was, where the key of the new one is not here. Raises OSError, ValueError, IdentityFileError."""
    ca = CertificateAuthority.read(folder)
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
