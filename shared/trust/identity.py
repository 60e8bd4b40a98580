"""What a daemon is: a private key, the certificate of it, and the CA of its peers (one certificate, or two: anchors.py), as three files.

The key is made here and never leaves the host. The certificate is renewed for the same key, so that replacing one file is all.
A daemon lives by the certificate it has: another takes its place on the disk only after it was found, in memory, to be of our key, our name
and our CA, and valid now. Whatever fails before that, or while it is written, leaves the old one whole.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.api.certificates import Certificate, Trust
from shared.errors import (
    BadCertificateError,
    CertificateExpiredError,
    ConfigError,
    HostClockError,
    IdentityFileError,
    OthersFolderError,
    PeerError,
    RenewalNotDueError,
    ServerCertificateExpiredError,
    UnknownAuthorityError,
    cause_of,
)
from shared.host import durable
from shared.moments import coarse, shown
from shared.trust import anchors
from shared.trust.tls import TlsFiles

_NO_CERTIFICATE: Final = (ValueError, x509.InvalidVersion)
"""What is raised for bytes that are no certificate."""
_NO_KEY: Final = (ValueError, TypeError, UnsupportedAlgorithm)
_OFF_S: Final = 365 * 86400.0
"""A certificate that ended longer ago speaks of a wrong clock sooner than of a daemon that was off."""


def files_in(folder: Path) -> TlsFiles:
    """Where `enrol` puts a daemon's three files."""
    return TlsFiles(cert=folder / "cert.pem", key=folder / "key.pem", ca=folder / "ca.pem")


def new_key_pem() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def pem_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def only_certificate(pem: str) -> x509.Certificate:
    """The certificate in `pem`. ValueError unless there is exactly one: whoever reads the first, and trusts or writes all, can be given
    a second that nobody looked at."""
    found = x509.load_pem_x509_certificates(pem.encode())
    if len(found) != 1:
        raise ValueError(f"{len(found)} certificates where one is expected")
    return found[0]


def name_of(certificate: x509.Certificate) -> str:
    """ROLE:NAME."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def check_name(files: TlsFiles, name: str) -> None:
    """Raises ConfigError when the certificate is not that of `name` (ROLE:NAME): what this daemon writes under its own name would be
    nobody's to those who know it by its certificate."""
    found = loaded_name(files)
    if found != name:
        raise ConfigError(
            f"The certificate {files.cert} is not this daemon's",
            cause=f"it is for '{found}', and the configuration names '{name}'",
            action="Correct the name in the configuration, or enrol this host under that name.",
        )


def loaded_name(files: TlsFiles) -> str:
    """ROLE:NAME of the certificate that lies there. Raises ConfigError."""
    return name_of(_read(files.cert, f"The certificate {files.cert} cannot be used"))


def check_folder(files: TlsFiles, trusted: Sequence[x509.Certificate], name: str = "") -> None:
    """Raises OthersFolderError when there is a certificate already, and it is not one that one of `trusted` issued, or, where that is
    known, of another name. It alone decides: its daemon runs by what it has read, whatever became of ca.pem and key.pem since. One that is
    gone or damaged names nobody, and enrolling anew is what mends it; where that cannot be told, raises IdentityFileError."""
    what = f"Nothing was written to {files.cert.parent}"
    try:
        mine = x509.load_pem_x509_certificate(files.cert.read_bytes())
        mine_name = name_of(mine)
    except (FileNotFoundError, NotADirectoryError, *_NO_CERTIFICATE):
        return
    except OSError as exc:
        raise IdentityFileError(
            what,
            cause=f"whose folder it is cannot be told, since {files.cert} cannot be read: {cause_of(exc)}",
            action="Enrol as root, or as the user whose daemon runs by it.",
        ) from exc
    if name and mine_name != name:
        raise OthersFolderError(
            what,
            cause=f"it is the folder of '{mine_name}', and the token, which is used up now, was for '{name}'",
            action=f"Make a new token, and give the folder of '{name}' as --dir. Shall this one become {name}'s, add --replace.",
        )
    if anchors.issuer_of(mine, trusted) is None:
        raise OthersFolderError(
            what,
            cause=f"'{mine_name}' is enrolled there with another installation, whose CA is another one",
        )


def key_of(files: TlsFiles) -> ec.EllipticCurvePrivateKey:
    """Raises ConfigError."""
    try:
        return _key(files.key.read_bytes())
    except (OSError, *_NO_KEY) as exc:
        raise ConfigError(f"Private key {files.key} could not be used", cause=str(exc)) from exc


def is_key(pem: bytes) -> bool:
    """Whether it is a private key that a daemon can use."""
    try:
        _key(pem)
    except _NO_KEY:
        return False
    return True


def request_of(files: TlsFiles) -> str:
    """A certificate request (PEM) for the key in `files`. It names nobody: the config server knows who
    asks. Raises ConfigError."""
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key_of(files), hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM).decode()


def checked(
    files: TlsFiles, answer: Certificate, trusted: Sequence[x509.Certificate], now_s: float | None = None
) -> bytes:
    """The answered certificate (PEM) when one of `trusted` issued it, and it is of the key in `files`, for the name that the answer gives,
    and valid now.

    Raises BadCertificateError when it is not, ConfigError when our key cannot be read."""
    now_s = time.time() if now_s is None else now_s
    what = f"The certificate that the config server issued was not taken for {files.cert}"
    try:
        certificate = only_certificate(answer.certificate)
        key = certificate.public_key()
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (*_NO_CERTIFICATE, UnsupportedAlgorithm) as exc:
        raise BadCertificateError(what, cause=f"it is not a certificate of our CA: {exc}") from exc
    if anchors.issuer_of(certificate, trusted) is None:
        raise BadCertificateError(what, cause="our CA did not sign it")
    if key != key_of(files).public_key():
        raise BadCertificateError(what, cause="it is for another key than ours")
    if not answer.name or name_of(certificate) != answer.name:
        raise BadCertificateError(what, cause=f"it is for '{name_of(certificate)}', not for '{answer.name}'")
    if ends.timestamp() <= now_s:
        raise BadCertificateError(
            what, cause=f"it expired at {ends:%Y-%m-%d %H:%M:%S} UTC by this host's clock"
        )
    if begins.timestamp() > now_s:
        raise BadCertificateError(
            what, cause=f"it is valid from {begins:%Y-%m-%d %H:%M:%S} UTC on by this host's clock"
        )
    return pem_of(certificate)


def renew(files: TlsFiles, answer: Certificate) -> None:
    """Put the certificate in the place of the one that we have, when it is one for the same name. Raises BadCertificateError,
    IdentityFileError, ConfigError."""
    mine, trusted = _own(files)
    if answer.name != name_of(mine):
        raise BadCertificateError(
            f"The certificate that the config server issued was not taken for {files.cert}",
            cause=f"it is for '{answer.name}', and this is '{name_of(mine)}'",
        )
    write(files.cert, checked(files, answer, trusted), mode=0o644)


def trust(files: TlsFiles, told: Trust) -> None:
    """Take what the config server says is to be trusted, and leave what is not any more, if that changes anything. Raises
    TrustNotTakenError, IdentityFileError, ConfigError."""
    mine, before = _own(files)
    found = anchors.merged(before, told, mine)
    if found != before:
        write(files.ca, anchors.pem_of(found), mode=0o644)


def is_of_another(files: TlsFiles, signer: str) -> bool:
    """Whether we could be given a certificate of the anchor with this fingerprint, and ours is of another one. Raises ConfigError."""
    mine, trusted = _own(files)
    theirs = [each for each in trusted if anchors.fingerprint(each) == signer]
    return bool(theirs) and anchors.issuer_of(mine, theirs) is None


def write(path: Path, data: bytes, *, mode: int) -> None:
    """Durably, whole or not at all; a file that is there keeps its owner: root may enrol anew what a daemon's user reads. Raises
    IdentityFileError."""
    try:
        durable.replace_file(path, data, mode=mode, keep_owner=True)
    except OSError as exc:
        raise IdentityFileError(f"{path} could not be written", cause=cause_of(exc)) from exc


def renewal_is_due(cert: Path, now_s: float | None = None) -> bool:
    """Whether less than a third of the certificate's life is left, or it has not begun: then it was issued by a clock that was ahead.
    Raises ConfigError when it cannot be read."""
    return _has_left_less(cert, 1 / 3, now_s)


def ends_soon(cert: Path, now_s: float | None = None) -> bool:
    """Whether less than a ninth of its life is left: its renewal has failed for most of the time that there is for it. Raises ConfigError
    when it cannot be read."""
    return _has_left_less(cert, 1 / 9, now_s)


def check_certificate(files: TlsFiles, now_s: float | None = None) -> None:
    """Raises CertificateExpiredError, HostClockError or UnknownAuthorityError when our own certificate cannot be accepted by
    anybody, ConfigError when it cannot be read. A server that refuses a certificate may just cut the
    connection."""
    what = f"The certificate {files.cert} cannot be used"
    certificate, trusted = _own(files)
    now_s = time.time() if now_s is None else now_s
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now_s < begins.timestamp():
        # It was valid when it was taken (`checked`), so the clock went back since.
        raise HostClockError(
            "This host's clock is wrong",
            cause=f"it shows {coarse(now_s)}, which is before {files.cert} begins ({shown(begins.timestamp())})",
        )
    if now_s > ends.timestamp() + _OFF_S:
        raise HostClockError(
            "This host's clock is wrong, or this daemon was off for long",
            cause=f"it shows {coarse(now_s)}, and {files.cert} ended at {shown(ends.timestamp())}",
        )
    if now_s > ends.timestamp():
        raise CertificateExpiredError(
            what,
            cause=f"it expired at {shown(ends.timestamp())}, and this host's clock shows {coarse(now_s)}",
        )
    if anchors.issuer_of(certificate, trusted) is None:
        raise UnknownAuthorityError(what, cause=f"the CA {files.ca} did not sign it")


def explained(files: TlsFiles, error: PeerError) -> PeerError:
    """The error of a connection with `files`; where it speaks of a certificate's time, with what this host's clock has to do with it.
    Blocks for a moment."""
    if not isinstance(error, CertificateExpiredError) or isinstance(error, ServerCertificateExpiredError):
        return error
    try:
        check_certificate(files)
        certificate, _ = _own(files)
    except (HostClockError, CertificateExpiredError) as exc:
        return type(exc)(error.what, cause=f"{exc.what}: {exc.cause}", action=exc.action)
    except (ConfigError, UnknownAuthorityError):
        return error
    ours = f"{shown(certificate.not_valid_before_utc.timestamp())} to {shown(certificate.not_valid_after_utc.timestamp())}"
    return CertificateExpiredError(
        error.what,
        cause=f"{error.cause}. By this host's clock, {coarse()}, our own is valid; it lasts from {ours}",
        action="Check the other host's clock first, then this one's. If both are right, the other's certificate has to be renewed.",
    )


def not_due(files: TlsFiles, refused: RenewalNotDueError) -> HostClockError:
    """What a refusal says to whoever finds his own certificate due: the config server, which knows what it issued and when, sees another
    time than this host. Raises ConfigError. Blocks for a moment."""
    certificate, _ = _own(files)
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return HostClockError(
        "This host's clock is wrong, or the config server's is",
        cause=f"this one shows {coarse()}, by which {files.cert} ({shown(begins)} to {shown(ends)}) is due for renewal, and the"
        f" config server refuses: {refused.cause}",
        action="Set it right (NTP: timedatectl, chronyc tracking); then it goes on by itself. The certificate that is there serves"
        " until then.",
    )


def _has_left_less(cert: Path, part: float, now_s: float | None) -> bool:
    certificate = _read(cert, f"Certificate {cert} could not be read")
    begin = certificate.not_valid_before_utc.timestamp()
    end = certificate.not_valid_after_utc.timestamp()
    now_s = time.time() if now_s is None else now_s
    return now_s < begin or now_s > end - (end - begin) * part


def _key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises _NO_KEY."""
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("it is not an EC key")
    return key


def _own(files: TlsFiles) -> tuple[x509.Certificate, anchors.Anchors]:
    """Our certificate, and our CA's."""
    return _read(files.cert, f"The certificate {files.cert} cannot be used"), anchors.of_file(files.ca)


def _read(path: Path, what: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, *_NO_CERTIFICATE) as exc:
        raise ConfigError(what, cause=str(exc) if isinstance(exc, OSError) else f"{path}: {exc}") from exc
