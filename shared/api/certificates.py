"""Who is who: enrolment tokens, certificates, their renewal and revocation."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

import msgspec

from shared.api.jobs import JobView
from shared.api.permissions import Permission
from shared.api.route import Access, Nothing, Page, Paged, Route
from shared.errors import (
    KeyRevokedError,
    LaneTakenError,
    NotFoundError,
    RenewalNotDueError,
    TokenExpiredError,
    TokenMalformedError,
    TokenUnknownError,
    TokenUsedError,
)
from shared.vocabulary import Role


class AnchorView(msgspec.Struct, kw_only=True):
    """One of the CA's certificates that are trusted."""

    certificate: str
    """Its SHA-256 (hexadecimal)."""
    subject: str
    begins: str
    ends: str
    signs: bool
    """Whether new certificates are issued by it."""


class CaCertificate(msgspec.Struct):
    """The CA's certificate (PEM) and its SHA-256 fingerprint, which every enrolment token carries."""

    pem: str
    fingerprint: str
    anchors: str = ""
    """What is trusted now (PEM): it, and while the CA is renewed the other one. Empty: it alone. To be believed of a server that was
    proven to have the CA."""
    trusted: list[AnchorView] = []
    """The same, for people."""
    former: str = ""
    """Those that were, and are not any more (PEM): a folder with a certificate of theirs is of this installation."""


class Trust(msgspec.Struct, frozen=True):
    """Whose certificates every part accepts."""

    pem: str
    """Certificates, one after the other."""
    signer: str
    """The SHA-256 (hexadecimal) of that which issues now: who has a certificate of another one renews it."""
    gone: list[str] = []
    """Those (SHA-256, hexadecimal) that are not trusted any more. Of one that is in neither nothing is said: a server that has not heard
    yet of what another one told takes it from nobody."""


class TokenRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Asks for a one-time token with which ROLE:NAME can enrol; `hosts` are the DNS names and addresses that
    a server's certificate will be valid for."""

    role: str
    """A Role; the answer to another says which there are."""
    name: str
    hosts: Annotated[list[str], msgspec.Meta(max_length=100)] = []
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=30 * 86_400)] = 3600


class Token(msgspec.Struct):
    token: str
    role: Role
    name: str
    expires: str


class TokenView(msgspec.Struct, kw_only=True):
    """An enrolment token, not the token itself."""

    id: str
    role: Role
    name: str
    hosts: list[str]
    created: str
    expires: str
    used: str | None = None
    """When it was; null: not yet. One that was not is void once it has expired, and once its daemon was revoked."""


class TokenList(Paged):
    tokens: list[TokenView]


class EnrolRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`csr` is a PEM certificate request; only its public key is used: names come from the token."""

    token: str
    csr: str


class RenewRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    csr: str
    identity: str = ""
    boot: str = ""
    """Of an agent: see AgentReport."""


class Certificate(msgspec.Struct):
    certificate: str
    ca: str
    name: str
    """The common name, ROLE:NAME."""
    not_after: str


class Revocations(msgspec.Struct, frozen=True):
    """Certificates that are refused although the CA signed them: by serial number (hex), and all of a ROLE:NAME."""

    serials: list[str] = []
    names: list[str] = []
    before: dict[str, int] = {}
    """Of a ROLE:NAME that was readmitted: those that begin (notBefore, Unix seconds) before then are refused."""
    since: dict[str, int] = {}
    """Of each ROLE:NAME in `names` and `before`: when that was said of it (Unix nanoseconds), always later than what was said before.
    So a readmission can be told from one before the last revocation, which a config server from a backup still tells."""

    def covers(self, serial: int, name: str, begins_s: int) -> bool:
        return (
            name in self.names or begins_s < self.before.get(name, begins_s) or f"{serial:x}" in self.serials
        )


class CertificateView(msgspec.Struct, kw_only=True):
    serial: str
    """Hexadecimal."""
    name: str
    """ROLE:NAME."""
    issued: str
    expires: str
    revoked: str | None
    """When; None when it is not."""
    reason: str = ""


class CertificateList(Paged):
    certificates: list[CertificateView]


class RefusedList(msgspec.Struct):
    """Those that are refused from now on."""

    certificates: list[CertificateView]
    warning: str = ""
    """What was done, and is not as safe as it should be yet."""


class RevokeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Refuse from now on: a certificate (its serial number) and all others of its key, or whatever ROLE:NAME has and gets until it
    enrols with a new token."""

    certificate: str
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class CaRenewRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    hold_s: Annotated[float, msgspec.Meta(ge=0, le=90 * 86_400)] = 86_400
    """So long the old CA signs at least, also when all daemons trust the new one sooner: operators take that into their profiles
    meanwhile."""


CA = Route("ca", "GET", "/v1/ca", Access.PUBLIC, Nothing, CaCertificate, "The CA's certificate")
CA_RENEW = Route(
    "ca_renew",
    "POST",
    "/v1/ca/renew",
    Access.OPERATOR,
    CaRenewRequest,
    JobView,
    "Have another CA take the place of this one",
    needs=Permission.CA_RENEW,
    keyed=True,
    status=HTTPStatus.ACCEPTED,
    errors=(LaneTakenError,),
)
ENROL = Route(
    "enrol",
    "POST",
    "/v1/enrol",
    Access.PUBLIC,
    EnrolRequest,
    Certificate,
    "Token and CSR for a certificate",
    errors=(TokenMalformedError, TokenUnknownError, TokenUsedError, TokenExpiredError, KeyRevokedError),
)
RENEW = Route(
    "renew",
    "POST",
    "/v1/certificates/renew",
    Access.DAEMON,
    RenewRequest,
    Certificate,
    "A new certificate",
    errors=(RenewalNotDueError,),
)
TOKEN_CREATE = Route(
    "token_create",
    "POST",
    "/v1/tokens",
    Access.OPERATOR,
    TokenRequest,
    Token,
    "Create an enrolment token",
    needs=Permission.DAEMON_ENROL,
    status=HTTPStatus.CREATED,
)
TOKENS = Route(
    "tokens",
    "GET",
    "/v1/tokens",
    Access.OPERATOR,
    Page,
    TokenList,
    "Enrolment tokens, newest first",
    needs=Permission.DAEMON_READ,
    errors=(NotFoundError,),
)
TOKEN_END = Route(
    "token_end",
    "DELETE",
    "/v1/tokens/{id}",
    Access.OPERATOR,
    Nothing,
    TokenView,
    "End an enrolment token that was not used",
    needs=Permission.DAEMON_ENROL,
)
CERTIFICATES = Route(
    "certificates",
    "GET",
    "/v1/certificates",
    Access.OPERATOR,
    Page,
    CertificateList,
    "Certificates, newest first",
    needs=Permission.DAEMON_READ,
    errors=(NotFoundError,),
)
CERTIFICATE_REVOKE = Route(
    "certificate_revoke",
    "POST",
    "/v1/certificates/revoke",
    Access.OPERATOR,
    RevokeRequest,
    RefusedList,
    "Refuse a certificate, or all of a daemon",
    needs=Permission.DAEMON_REVOKE,
)
