"""How a host gets its certificate: a token, a key, a request. What it does with it later: shared/trust/identity.py.

An enrolment token is one word that an administrator carries to the host:

    usy1.<secret>.<fingerprint>

The secret is 24 random bytes, the fingerprint the first 16 bytes of the SHA-256 of the CA's certificate (DER),
both in URL-safe base64. The secret proves to the config server who asks; the fingerprint proves to the host
that it talks to the right config server before it has any certificate. `python -m shared.control.enrol --server URL
--token-file FILE --dir DIR` does it.

A host that has a certificate already enrols for a new key: its old one may be what was stolen. The new key waits beside the old one
until the answer has come, over however many tries (the config server answers a repeated request of the same key again), so that whatever
fails before leaves the host what it was. Then CA, certificate and key are replaced, each whole. Killed between the last two, the host has a
certificate and a key that do not fit: no daemon starts with them, and says so; enrolling again, with that token or another, mends it.

A folder that holds the certificate of another daemon, or of another installation, is that one's, which runs by it: nothing is written
there unless that was asked for (`--replace`).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import contextlib
import hashlib
import secrets
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from shared import api, naming
from shared.api.certificates import Certificate, EnrolRequest
from shared.api.route import Nothing
from shared.control import rest
from shared.crashpoints import reach
from shared.daemon.log_sink import fill_standard_descriptors
from shared.errors import (
    EnrolmentError,
    IdentityFileError,
    OthersFolderError,
    OthersRoleError,
    TokenMalformedError,
    UnderstudyError,
    UnknownAuthorityError,
    UsageError,
    cause_of,
)
from shared.host import durable
from shared.setup.access import Access
from shared.trust import anchors, identity, tls
from shared.trust.tls import TlsFiles
from shared.vocabulary import Role

NEW_KEY: Final = "new-key.pem"
"""In a daemon's folder: a key that is not certified yet."""
TOKEN_PREFIX: Final = "usy1"
_SECRET_B: Final = 24
_FINGERPRINT_B: Final = 16
_STRANGERS_B: Final = 64 << 10
"""What is read of somebody who is not known yet; a certificate has one kilobyte."""
_NOT_THE_SERVER: Final = (
    "Something answers in the config server's place, or the token is another installation's."
)


class TokenParts(msgspec.Struct, frozen=True):
    secret: bytes
    fingerprint: bytes


def new_token(ca_der: bytes) -> tuple[str, bytes]:
    """A fresh token for the CA with this certificate, and the hash under which the config server keeps it."""
    secret = secrets.token_bytes(_SECRET_B)
    token = ".".join((TOKEN_PREFIX, _b64(secret), _b64(fingerprint(ca_der))))
    return token, token_hash(secret)


def parse_token(token: str) -> TokenParts:
    """Raises TokenMalformedError when `token` is not whole."""
    words = token.strip().split(".")
    try:
        if len(words) != 3 or words[0] != TOKEN_PREFIX:
            raise ValueError("it does not have three parts")
        parts = TokenParts(_unb64(words[1]), _unb64(words[2]))
        if len(parts.secret) != _SECRET_B or len(parts.fingerprint) != _FINGERPRINT_B:
            raise ValueError("its parts are too short or too long")
    except (ValueError, binascii.Error) as exc:
        raise TokenMalformedError("The enrolment token could not be read", cause=str(exc)) from exc
    return parts


def token_hash(secret: bytes) -> bytes:
    """What is stored: the secret has 192 random bits, so a plain hash cannot be searched."""
    return hashlib.sha256(b"understudy token\0" + secret).digest()


def fingerprint(ca_der: bytes) -> bytes:
    return hashlib.sha256(ca_der).digest()[:_FINGERPRINT_B]


async def authority(url: str, parts: TokenParts) -> x509.Certificate:
    """The CA of the config server at `url`, which the token proves to be the right one: whatever answers there, nothing of it is trusted
    before. Raises UsageError for a URL that cannot be a config server's, UnknownAuthorityError, or another PeerError."""
    if not naming.is_server_url(url):
        raise UsageError(
            f"'{url}' is no config server",
            cause="its URL must look like https://HOST or https://HOST:PORT",
            action="Give the address of the config server as --server.",
        )
    # Not yet verified: this asks only for the CA's certificate, which the fingerprint in the token then
    # proves.
    unverified = ssl.SSLContext(
        ssl.PROTOCOL_TLS_CLIENT
    )  # without the host's own CAs, which take their time to load
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    async with rest.RestClient(url, unverified, max_answer_b=_STRANGERS_B) as client:
        ca = await client.call(api.CA, Nothing())
    return _proved(ca.pem, parts, url)


class Installation(NamedTuple):
    """That of a token."""

    ca: x509.Certificate
    """The token's, which issues now."""
    trusted: anchors.Anchors
    """It, and while it is renewed the other one."""
    known: anchors.Anchors
    """And those that were before them."""


async def installation(url: str, parts: TokenParts) -> Installation:
    """That of the config server at `url`. Of others than the token's CA it is asked once more, over a connection that this one proves.
    Raises as `authority` does."""
    ca = await authority(url, parts)
    async with rest.RestClient(url, trusting([ca])) as client:
        told = await client.call(api.CA, Nothing())
    try:
        trusted = anchors.loaded(told.anchors.encode("ascii")) if told.anchors else (ca,)
        former = anchors.loaded(told.former.encode("ascii"), sys.maxsize) if told.former else ()
    except anchors.NO_CERTIFICATE as exc:
        raise UnknownAuthorityError(
            f"Enrolment with {url} was stopped", cause=f"what it trusts could not be read: {exc}"
        ) from exc
    if ca not in trusted:
        trusted = (ca, *trusted)
    return Installation(ca, trusted, (*trusted, *former))


def trusting(trusted: Sequence[x509.Certificate]) -> ssl.SSLContext:
    """For connecting to the config server of this CA, without a certificate of one's own."""
    context = ssl.create_default_context(cadata=anchors.pem_of(trusted).decode())
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return tls.expecting(context, tls.CONFIG_SERVER)


async def enrol(
    url: str, token: str, folder: Path, *, replace: bool = False, role: Role | None = None
) -> TlsFiles:
    """Make a key, have it certified, and write key, certificate and CA into `folder`. A key for which there is no certificate
    yet is of an earlier try, and is used; bytes that are no key are replaced by one, and so is a key that others can use. `replace`:
    whosever folder that was. `role`: what the certificate must be for.

    The key never leaves the host. Raises UsageError for a URL that cannot be a config server's, TokenMalformedError,
    UnknownAuthorityError when the server's CA is not the token's, the EnrolmentError that the server answered with,
    OthersRoleError, OthersFolderError, BadCertificateError, IdentityFileError, or another PeerError.
    """
    parts = parse_token(token)
    files = identity.files_in(folder)
    found = await installation(url, parts)
    if not replace:
        identity.check_folder(files, found.known)
    key, made = _prepare(folder)
    asking = TlsFiles(cert=files.cert, key=key, ca=files.ca)
    is_beside = key != files.key and made
    try:
        answer = await _certified(url, token, asking, found.trusted)
    except EnrolmentError:
        if is_beside:
            _remove(key)  # nobody has certified it, and that token never will
        raise
    certificate = identity.checked(asking, answer, found.trusted)
    if role is not None and not answer.name.startswith(f"{role}:"):
        if made:
            _remove(key)  # it is another daemon's key, by now
        raise OthersRoleError(
            f"Nothing was written to {folder}",
            cause=f"the token, which is used up now, was for '{answer.name}', and this is the set-up of the {role}",
        )
    if not replace:
        try:
            identity.check_folder(files, found.known, answer.name)
        except OthersFolderError:
            if is_beside:
                _remove(key)  # it is another daemon's key, by now
            raise
    identity.write(files.ca, anchors.pem_of(found.trusted), mode=0o644)
    identity.write(files.cert, certificate, mode=0o644)
    reach("enrol.between-certificate-and-key")
    if key != files.key:
        _take_key(key, files.key)
    return files


async def was_for_this_key(url: str, token: str, folder: Path) -> bool:
    """Whether a token that is used was used for the key in `folder`: the config server answers its request again, and no other. (One that
    is not used would be, so it is asked of those alone that were refused for it.) Raises what `enrol` does."""
    trusted = await authority(url, parse_token(token))
    try:
        await _certified(url, token, identity.files_in(folder), [trusted])
    except EnrolmentError:
        return False
    return True


async def _certified(
    url: str, token: str, asking: TlsFiles, trusted: Sequence[x509.Certificate]
) -> Certificate:
    request = EnrolRequest(token=token.strip(), csr=identity.request_of(asking))
    async with rest.RestClient(url, trusting(trusted)) as client:
        return await client.call(api.ENROL, request)


def _remove(key: Path) -> None:
    with contextlib.suppress(OSError):
        durable.remove_file(key)


def _proved(pem: str, parts: TokenParts, url: str) -> x509.Certificate:
    """The one certificate in `pem`, when it is the CA of the token. Nothing else of what the stranger sent is used: what is trusted and
    written later is this certificate, encoded anew. Raises UnknownAuthorityError."""
    what = f"Enrolment with {url} was stopped"
    try:
        found = identity.only_certificate(pem)
    except ValueError as exc:
        raise UnknownAuthorityError(
            what,
            cause=f"what the server gave as its CA is not one certificate: {exc}",
            action=_NOT_THE_SERVER,
        ) from exc
    if fingerprint(found.public_bytes(serialization.Encoding.DER)) != parts.fingerprint:
        raise UnknownAuthorityError(
            what, cause="the server's CA is not the one that the token belongs to", action=_NOT_THE_SERVER
        )
    return found


def read_token(path: Path) -> str:
    """What stands in a token file. Raises TokenMalformedError."""
    try:
        return path.read_text("ascii")
    except OSError as exc:
        raise TokenMalformedError(
            f"The token file {path} could not be read",
            cause=cause_of(exc),
            action="Give the file with the token as --token-file.",
        ) from exc
    except UnicodeDecodeError as exc:
        raise TokenMalformedError(f"The token file {path} could not be read") from exc


def _prepare(folder: Path) -> tuple[Path, bool]:
    """Makes the folder; the private key in it to ask with, the one that waits for its certificate, and whether it was made now. Raises
    IdentityFileError."""
    files = identity.files_in(folder)
    try:
        durable.make_folder(folder, 0o700)
        key = folder / NEW_KEY if files.cert.exists() and files.key.exists() else files.key
        # What is in both places was certified: only its removal failed.
        waits = key.exists() and (key == files.key or key.read_bytes() != files.key.read_bytes())
        if waits and identity.is_key(key.read_bytes()) and not Access.in_folder(key).wrong():
            return key, False
    except OSError as exc:
        raise IdentityFileError(f"The folder {folder} cannot be used", cause=cause_of(exc)) from exc
    identity.write(key, identity.new_key_pem(), mode=0o600)
    return key, True


def _take_key(new: Path, key: Path) -> None:
    """Raises IdentityFileError."""
    try:
        identity.write(key, new.read_bytes(), mode=0o600)
        durable.remove_file(new)
    except OSError as exc:
        raise IdentityFileError(
            f"{key} could not be replaced by {new}",
            cause=cause_of(exc),
            action="Enrol again with the same token.",
        ) from exc


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def main(argv: list[str] | None = None) -> int:
    fill_standard_descriptors()
    parser = argparse.ArgumentParser(prog="python -m shared.control.enrol", description="Enrol this host.")
    parser.add_argument("--server", required=True, help="URL of the config server, https://HOST[:PORT]")
    parser.add_argument(
        "--token-file", required=True, type=Path, help="file with the token (never on the command line)"
    )
    parser.add_argument("--dir", required=True, type=Path, help="where key.pem, cert.pem and ca.pem go")
    parser.add_argument(
        "--replace", action="store_true", help="also where DIR is another daemon's, or another installation's"
    )
    args = parser.parse_args(argv)
    try:
        files = asyncio.run(enrol(args.server, read_token(args.token_file), args.dir, replace=args.replace))
    except UnderstudyError as exc:
        sys.stderr.write(f"{exc.code}: {exc}\n")
        return exc.exit_code
    sys.stdout.write(f"enrolled: {files.cert}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
