"""The certificate authority: one EC P-256 key, which signs the certificates of all daemons.

`ca.key` has that key first, and `ca.pem` its certificate among those that are trusted. While the CA is renewed (operations/ca_renewal.py)
each has two, and which of the keys stands first says who signs: so one file, which is replaced as a whole, is all that makes another one
the CA, and whoever copies the two files to another config server, or into a backup, has everything. Programs from before read the first of
each.

A certificate's common name is ROLE:NAME (shared/trust/tls.py). Servers get the hosts as subject alternative names.
Only the public key of a request is used, after its signature proved that the requester holds the private
key; all names come from the enrolment token or, on renewal, from the certificate that is renewed.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from config_server.rules.certificates import BACKDATED
from config_server.store.files import DATABASE_FILE, RESTORE, TOKEN_FILE, WITHOUT_BACKUP
from shared.crashpoints import reach
from shared.errors import ConfigError, RequestError
from shared.naming import is_host
from shared.trust import anchors, identity
from shared.trust.anchors import Anchors
from shared.vocabulary import Role

CERTIFICATE_FILE: Final = "ca.pem"
_COMMON_NAME: Final = 64
"""X.509's limit."""
_BEGINS: Final = b"-----BEGIN "
_CA_LIFE: Final = dt.timedelta(days=3650)


class CertificateAuthority:
    """Issues certificates. `pem` is its own certificate."""

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        trusted: Anchors = (),
        others: Sequence[ec.EllipticCurvePrivateKey] = (),
    ) -> None:
        """`trusted`: it, and others whose certificates are accepted; `others`: further keys that are here."""
        self.certificate = certificate
        self._key = key
        self.trusted: Anchors = trusted or (certificate,)
        self._others = tuple(others)
        self.former: Anchors = ()
        """Those that were trusted, and are not any more; as the database has them. What they signed in storage is still this
        installation's."""

    def become(self, other: CertificateAuthority) -> None:
        """From now on it is what `other` is: the files are others since."""
        self.certificate, self._key = other.certificate, other._key
        self.trusted, self._others = other.trusted, other._others

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def keys(self) -> tuple[ec.EllipticCurvePrivateKey, ...]:
        """That which signs first."""
        return (self._key, *self._others)

    def with_another(self, new: CertificateAuthority) -> CertificateAuthority:
        """This one signs, and the new one lies beside it."""
        return CertificateAuthority(
            self.certificate, self._key, _joined(self.trusted, new.certificate), (*self._others, new._key)
        )

    def trusting(self, new: x509.Certificate) -> CertificateAuthority:
        return CertificateAuthority(self.certificate, self._key, _joined(self.trusted, new), self._others)

    def signing_by(self, new: x509.Certificate) -> CertificateAuthority:
        """The other one, whose key is here, signs, and this one lies beside it."""
        first = [key for key in self.keys if key.public_key() == new.public_key()]
        rest = [key for key in self.keys if key.public_key() != new.public_key()]
        others = tuple(each for each in self.trusted if each != new)
        return CertificateAuthority(new, first[0], (new, *others), rest)

    def only(self, new: x509.Certificate) -> CertificateAuthority:
        """The other one, and nothing beside it."""
        found = self.signing_by(new)
        return CertificateAuthority(new, found._key)

    def without(self, new: x509.Certificate) -> CertificateAuthority:
        return CertificateAuthority(
            self.certificate,
            self._key,
            tuple(each for each in self.trusted if each != new),
            [key for key in self._others if key.public_key() != new.public_key()],
        )

    def is_as(self, other: CertificateAuthority) -> bool:
        mine, theirs = ([key.public_key() for key in each.keys] for each in (self, other))
        return (self.certificate, self.trusted, mine) == (other.certificate, other.trusted, theirs)

    def has_key_of(self, certificate: x509.Certificate) -> bool:
        return certificate.public_key() in [key.public_key() for key in self.keys]

    def has_issued(self, certificate: x509.Certificate) -> bool:
        """It, or who is trusted beside it, or was before."""
        return anchors.issuer_of(certificate, (*self.trusted, *self.former)) is not None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The CA in `folder` (`ca.pem`, `ca.key`), made for a new installation: one without a database and an operator's token, which are
        made after it. Where there is a database, daemons have certificates of the CA that is gone, and a new one
        would lock them all out without a word. Raises ConfigError, IdentityFileError."""
        key_file, certificate_file = folder / "ca.key", folder / CERTIFICATE_FILE
        if not certificate_file.exists():
            if left := [name for name in (DATABASE_FILE, TOKEN_FILE) if (folder / name).exists()]:
                raise ConfigError(
                    f"The CA's certificate {certificate_file} is gone",
                    cause=f"the installation is not new ({left[0]} is there), so its daemons trust the CA that was here",
                    action=f"Restore a backup: {RESTORE}. {WITHOUT_BACKUP}",
                )
            # The certificate is written last: a key without one is from a start that was interrupted.
            cls.made().save(folder)
        try:
            return cls.loaded(key_file.read_bytes(), certificate_file.read_bytes())
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"The CA in {folder} could not be opened",
                cause=str(exc),
                action=f"Restore a backup, which has ca.key and ca.pem: {RESTORE}. Without them all enrol again.",
            ) from exc

    @classmethod
    def made(cls, after: CertificateAuthority | None = None) -> Self:
        """A new one, which lies nowhere yet. It begins no later than that which it comes `after`: this host's clock may be ahead just now,
        and what it issues would be good for nobody until then."""
        key, certificate = _make_ca(after.certificate.not_valid_before_utc if after else None)
        return cls(certificate, key)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What lies there now. Raises OSError, ValueError."""
        return cls.loaded((folder / "ca.key").read_bytes(), (folder / "ca.pem").read_bytes())

    @classmethod
    def loaded(cls, key_pem: bytes, certificate_pem: bytes) -> Self:
        """Raises ValueError."""
        try:
            keys = [serialization.load_pem_private_key(each, password=None) for each in _keys_in(key_pem)]
            trusted = anchors.loaded(certificate_pem)
        except (TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as exc:
            raise ValueError(str(exc)) from exc
        known = [key for key in keys if isinstance(key, ec.EllipticCurvePrivateKey)]
        if not known or known != keys:
            raise ValueError("ca.key holds a key that is not EC")
        its = [each for each in trusted if each.public_key() == known[0].public_key()]
        if not its:
            raise ValueError("ca.key does not belong to ca.pem")
        return cls(its[0], known[0], trusted, known[1:])

    def save(self, folder: Path) -> None:
        """The key first: one without a certificate is from somebody who was killed in between, and signs nothing unless it is the first;
        and that is one only whose certificate is there already, or (a new installation) where nobody has one yet. Raises
        IdentityFileError."""
        identity.write(folder / "ca.key", b"".join(map(_key_pem, self.keys)), mode=0o600)
        reach("ca.between-key-and-certificates")
        identity.write(folder / "ca.pem", anchors.pem_of(self.trusted), mode=0o644)

    def public_key_of(self, csr_pem: str) -> ec.EllipticCurvePublicKey:
        """The key that a certificate request asks to certify. Raises RequestError."""
        try:
            request = x509.load_pem_x509_csr(csr_pem.encode())
            key = request.public_key()
            valid = request.is_signature_valid
        except (ValueError, InvalidSignature, UnsupportedAlgorithm) as exc:
            raise RequestError("The certificate request could not be read", cause=str(exc)) from exc
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise RequestError("The certificate request was refused", cause="its key is not EC P-256")
        if not valid:
            raise RequestError("The certificate request was refused", cause="its signature is not valid")
        return key

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        role: Role,
        name: str,
        hosts: Sequence[str],
        life: dt.timedelta,
        now: dt.datetime,
        *,
        begins: dt.datetime | None = None,
    ) -> x509.Certificate:
        """A certificate for ROLE:NAME that is valid until now + `life`."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role}:{name}")]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins or min(now, now + life) - BACKDATED)
            .not_valid_after(now + life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_purposes(role)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def sign(self, statement: bytes) -> bytes:
        return self._key.sign(statement, ec.ECDSA(hashes.SHA256()))

    def has_signed(self, statement: bytes, signature: bytes) -> bool:
        """It, or who is trusted beside it, or was before."""
        return anchors.have_signed((*self.trusted, *self.former), statement, signature)


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The DNS names and addresses that a certificate is valid for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    ]


def check_host(host: str) -> str:
    """`host` as a certificate carries it. Raises RequestError when none can."""
    try:
        return str(_general_name(host).value)
    except ValueError as exc:
        raise RequestError(f"The host name '{host}' cannot be in a certificate", cause=str(exc)) from exc


def check_subject(role: str, name: str) -> str:
    """`name`, when a certificate can carry ROLE:NAME. Raises RequestError."""
    if len(f"{role}:{name}") > _COMMON_NAME:
        raise RequestError(
            f"'{name}' cannot be the name of a {role}",
            cause=f"{role}:NAME must fit into {_COMMON_NAME} characters, as certificates have it",
            action=f"Choose a name of at most {_COMMON_NAME - len(role) - 1} characters.",
        )
    return name


def _make_ca(begins: dt.datetime | None) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    # The random part keeps two installations' CAs apart wherever names are compared.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Understudy CA {secrets.token_hex(4)}")])
    now = dt.datetime.now(dt.UTC)
    begins = min(now - BACKDATED, begins or now)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _purposes(role: Role) -> list[x509.ObjectIdentifier]:
    """What a role's certificate is good for: TLS itself refuses an agent that plays a server."""
    if role in (Role.AGENT, Role.MASTER_TARGET):
        return [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role == Role.CONFIG_SERVER:
        return [ExtendedKeyUsageOID.SERVER_AUTH]
    return [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if not (host.isascii() and is_host(host)):
            raise ValueError("it is neither an address nor a DNS name (in ASCII)") from None
        return x509.DNSName(host)
    if "%" in host:
        raise ValueError("an address in a certificate has no interface")
    return x509.IPAddress(address)


def _joined(trusted: Anchors, new: x509.Certificate) -> Anchors:
    return tuple(dict.fromkeys((*trusted, new)))


def _keys_in(pem: bytes) -> list[bytes]:
    """Each for itself."""
    return [_BEGINS + each for each in pem.split(_BEGINS)[1:]] or [pem]


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
