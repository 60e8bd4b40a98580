"""The trust anchors of an installation: its CA's certificate, and while the CA is renewed (docs/decisions/0035) that of the other one.

They lie as PEM, one after the other, in the file that a configuration calls `ca`. A peer is accepted when any of them issued its
certificate, so whoever has both takes both ends for what they are, whichever of them was renewed first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.api.certificates import Trust
from shared.errors import ConfigError, TrustNotTakenError

MOST: Final = 4
"""There are two at a time; a renewal that was given up may have left another."""
NO_CERTIFICATE: Final = (ValueError, x509.InvalidVersion, UnsupportedAlgorithm)
Anchors = tuple[x509.Certificate, ...]


def loaded(pem: bytes, most: int = MOST) -> Anchors:
    """At least one. Raises one of NO_CERTIFICATE."""
    found = tuple(dict.fromkeys(x509.load_pem_x509_certificates(pem)))
    if len(found) > most:
        raise ValueError(f"{len(found)} certificates, of which there are at most {most}")
    return found


def of_file(ca: Path) -> Anchors:
    """Raises ConfigError."""
    try:
        return loaded(ca.read_bytes())
    except (OSError, *NO_CERTIFICATE) as exc:
        cause = str(exc) if isinstance(exc, OSError) else f"{ca}: {exc}"
        raise ConfigError(f"The CA's certificate {ca} could not be read", cause=cause) from exc


def pem_of(anchors: Sequence[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in anchors)


def fingerprint(certificate: x509.Certificate) -> str:
    """The whole SHA-256, hexadecimal: how reports name an anchor."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def issuer_of(certificate: x509.Certificate, anchors: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """Which of them issued it."""
    for anchor in anchors:
        try:
            certificate.verify_directly_issued_by(anchor)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return anchor
    return None


def have_signed(anchors: Sequence[x509.Certificate], statement: bytes, signature: bytes) -> bool:
    """Whether any of them has."""
    for anchor in anchors:
        key = anchor.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            continue
        try:
            key.verify(signature, statement, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return True
    return False


def merged(known: Anchors, told: Trust, own: x509.Certificate) -> Anchors:
    """What is trusted after this was told, when whoever goes by it locks himself out of nothing: who issues now is among them, and who
    issued `own`, the certificate that we present. Only what is said to be gone goes. Raises TrustNotTakenError."""
    what = "The anchors that the config server named were not taken"
    try:
        named = loaded(told.pem.encode("ascii"))
    except NO_CERTIFICATE as exc:  # UnicodeEncodeError is a ValueError
        raise TrustNotTakenError(what, cause=str(exc)) from exc
    found = tuple(each for each in dict.fromkeys((*named, *known)) if fingerprint(each) not in told.gone)
    if len(found) > MOST:
        raise TrustNotTakenError(what, cause=f"with those that are trusted already they are {len(found)}")
    if told.signer not in map(fingerprint, found):
        raise TrustNotTakenError(what, cause="who issues certificates now is not among them")
    if issuer_of(own, found) is None:
        raise TrustNotTakenError(what, cause="who issued our own certificate is not among them")
    return found
