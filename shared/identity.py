"""What a daemon is: a private key, the certificate of it, and the CA of its peers, as three files on this host.

The key is made here and never leaves the host. The certificate is renewed for the same key, so that replacing one file is all.
"""

from __future__ import annotations

import time
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared import durable
from shared.errors import CertificateExpiredError, ConfigError, UnknownAuthorityError
from shared.messages import Certificate
from shared.tls import TlsFiles


def files_in(folder: Path) -> TlsFiles:
    """Where `enrol` puts a daemon's three files."""
    return TlsFiles(cert=folder / "cert.pem", key=folder / "key.pem", ca=folder / "ca.pem")


def new_key_pem() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def request_of(files: TlsFiles) -> str:
    """A certificate request (PEM) for the key in `files`. It names nobody: the config server knows who
    asks."""
    try:
        key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"Private key {files.key} could not be used", cause=str(exc)) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"Private key {files.key} could not be used", cause="it is not an EC key")
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def write_certificate(files: TlsFiles, answer: Certificate) -> None:
    durable.replace_file(files.cert, answer.certificate.encode(), mode=0o644)


def renewal_is_due(cert: Path, now_s: float | None = None) -> bool:
    """Whether less than a third of the certificate's life is left. Raises ConfigError when it cannot be
    read."""
    try:
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"Certificate {cert} could not be read", cause=str(exc)) from exc
    begin = certificate.not_valid_before_utc.timestamp()
    end = certificate.not_valid_after_utc.timestamp()
    return (time.time() if now_s is None else now_s) > end - (end - begin) / 3


def check_certificate(files: TlsFiles, now_s: float | None = None) -> None:
    """Raises CertificateExpiredError or UnknownAuthorityError when our own certificate cannot be accepted by
    anybody, ConfigError when it cannot be read. A server that refuses a certificate may just cut the
    connection."""
    what = f"The certificate {files.cert} cannot be used"
    try:
        certificate = x509.load_pem_x509_certificate(files.cert.read_bytes())
        ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
    except (OSError, ValueError) as exc:
        raise ConfigError(what, cause=str(exc)) from exc
    if certificate.not_valid_after_utc.timestamp() < (time.time() if now_s is None else now_s):
        raise CertificateExpiredError(
            what, cause=f"it expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"
        )
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as exc:
        raise UnknownAuthorityError(what, cause=f"the CA {files.ca} did not sign it") from exc
