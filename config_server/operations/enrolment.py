"""Handlers of identity: enrolment tokens, certificates, their renewal."""

from __future__ import annotations

import datetime as dt
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from config_server.identity.ca import check_host, check_subject, pem_of
from config_server.operations.call import Call
from config_server.operations.control import Control, check_name
from config_server.operations.pages import page
from config_server.operations.revoking import Revoking
from config_server.operations.sides import Sides
from config_server.rules.certificates import fingerprint_of
from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.rules.facts import SELF
from config_server.rules.renewals import Renewals
from config_server.store import audit, certificates, deletions, events, revocation, tokens
from config_server.store.database import Connection
from shared.api.certificates import (
    AnchorView,
    CaCertificate,
    Certificate,
    CertificateList,
    EnrolRequest,
    RenewRequest,
    Token,
    TokenList,
    TokenRequest,
    TokenView,
)
from shared.api.events import EventKind
from shared.api.route import Nothing, Page
from shared.control import enrol
from shared.daemon import logging
from shared.errors import CertificateRevokedError, EnrolmentError, KeyRevokedError, RequestError
from shared.status import Problem
from shared.trust import anchors, identity
from shared.vocabulary import ENROLLED, Role, Severity

_log = logging.get()
_STORAGE_LIFE: Final = dt.timedelta(days=365)
"""For an emulator of blob storage, which cannot renew its certificate by itself."""
_SERVERS: Final = (Role.PROCESS_SERVER, Role.STORAGE)
"""Roles that others connect to."""
_REFUSALS_NS: Final = 600 * SECOND_NS
"""Refusals of one kind for one name are noted at most this often."""
_REFUSED_ACTION: Final = "If nobody of yours tried this: `understudy audit list` shows who enrolled with the token, if anybody did."


class Identity:
    def __init__(self, control: Control, sides: Sides, revoking: Revoking) -> None:
        self._control = control
        self._sides = sides
        self._revoking = revoking
        self._refused: dict[tuple[str, str], tuple[int, int]] = {}
        """Code and ROLE:NAME → when a refusal was noted (monotonic), and how many followed since."""
        self._renewals = Renewals()

    async def recover(self) -> None:
        """What was issued before the last start is renewed no sooner for it."""
        now_ns, mono_ns = self._control.now_ns(), self._control.mono_ns()
        for issued in await self._control.db.run(lambda db: certificates.living(db, now_ns)):
            try:
                certificate = identity.only_certificate(issued.pem)
            except ValueError as exc:
                _log.warning("a stored certificate was left out", serial=f"{issued.serial:x}", cause=str(exc))
                continue
            age_s = (now_ns - issued.issued_ns) / SECOND_NS
            self._renewals.recovered(certificate, issued.renews, age_s, mono_ns)

    async def ca(self, _call: Call, _body: Nothing) -> CaCertificate:
        ca = self._control.ca
        return CaCertificate(
            pem=ca.pem,
            fingerprint=enrol.fingerprint(ca.der).hex(),
            anchors=anchors.pem_of(ca.trusted).decode(),
            trusted=[
                AnchorView(
                    certificate=anchors.fingerprint(each),
                    subject=each.subject.rfc4514_string(),
                    begins=each.not_valid_before_utc.isoformat(),
                    ends=each.not_valid_after_utc.isoformat(),
                    signs=each == ca.certificate,
                )
                for each in ca.trusted
            ],
            former=anchors.pem_of(ca.former).decode(),
        )

    async def create_token(self, call: Call, body: TokenRequest) -> Token:
        if body.role not in ENROLLED:
            raise RequestError(
                f"A token for the role '{body.role}' cannot be made",
                cause=f"the roles are {', '.join(ENROLLED)}",
            )
        if body.role in _SERVERS and not body.hosts:
            raise RequestError(
                f"A token for {body.role} '{body.name}' was not made",
                cause="a server's certificate must say under which names it is reached, or no client takes it",
                action="Give at least one DNS name or address: --host HOST (hosts in the API).",
            )
        name = check_subject(body.role, check_name(body.name, body.role))
        grant = tokens.Grant(Role(body.role), name, tuple(check_host(h) for h in body.hosts))
        token, hash_ = enrol.new_token(self._control.ca.der)
        now_ns = self._control.now_ns()
        expires_ns = now_ns + body.ttl_s * SECOND_NS
        subject = f"{grant.role}:{grant.name}"

        def work(db: Connection) -> None:
            tokens.add(db, hash_, grant, now_ns, expires_ns)
            audit.add(db, call.who, "token.create", subject, {"expires": rfc3339(expires_ns)}, now_ns)

        await self._control.db.run(work)
        return Token(token=token, role=grant.role, name=grant.name, expires=rfc3339(expires_ns))

    async def list_tokens(self, _call: Call, body: Page) -> TokenList:
        found = await self._control.db.run(lambda db: tokens.newest(db, body.limit + 1, body.before))
        shown, next_ = page(found, body, lambda view: view.id)
        return TokenList(tokens=shown, next=next_)

    async def end_token(self, call: Call, _body: Nothing) -> TokenView:
        """Raises NotFoundError, RequestError for one that was used."""
        id_, now_ns = call.path["id"], self._control.now_ns()

        def work(db: Connection) -> TokenView:
            ended = tokens.end(db, id_)
            audit.add(db, call.who, "token.end", f"{ended.role}:{ended.name}", {"id": id_}, now_ns)
            return ended

        return await self._control.db.run(work)

    async def enrol(self, call: Call, body: EnrolRequest) -> Certificate:
        hash_ = b""
        try:
            hash_ = enrol.token_hash(enrol.parse_token(body.token).secret)
            return await self._enrol(hash_, body)
        except EnrolmentError as exc:
            await self._note_refusal(hash_, exc, call.remote)
            raise

    async def _enrol(self, hash_: bytes, body: EnrolRequest) -> Certificate:
        await self._revoking.write_down()
        now_ns = self._control.now_ns()

        def work(db: Connection) -> tuple[tokens.Answered, x509.Certificate | None]:
            # The token first: who has none learns nothing about requests. A bad request rolls its use back.
            if not tokens.exists(db, hash_):
                tokens.redeem(db, hash_, now_ns)
            public_key = self._control.ca.public_key_of(body.csr)
            if revocation.is_key_revoked(db, fingerprint_of(public_key)):
                raise KeyRevokedError("Enrolment was refused")
            if (again := tokens.answered(db, hash_, fingerprint_of(public_key), now_ns)) is not None:
                return again, None
            grant = tokens.redeem(db, hash_, now_ns)
            certificate = self._issue(db, public_key, grant, now_ns)
            begins_s = int(certificate.not_valid_before_utc.timestamp())
            revocation.readmit(db, grant.role, grant.name, certificate.serial_number, begins_s, now_ns)
            if grant.role is Role.AGENT:
                # Its epoch would lie in the container that goes.
                place, what = self._control.storage.place, f"Enrolment of agent '{grant.name}' was refused"
                deletions.check_not_removed(db, grant.name, place, what)
                deletions.note_enrolled(db, grant.name)
            tokens.note_answer(db, hash_, fingerprint_of(public_key), pem_of(certificate))
            subject = f"{grant.role}:{grant.name}"
            audit.add(db, subject, "enrol", subject, {"serial": f"{certificate.serial_number:x}"}, now_ns)
            return tokens.Answered(grant, pem_of(certificate)), certificate

        answered, issued = await self._control.db.run(work)
        await self._revoking.changed()
        self._revoking.look()  # that it was readmitted, and what it had is refused by its numbers
        name = f"{answered.grant.role}:{answered.grant.name}"
        if issued is not None:
            self._renewals.issued(issued, 0, self._control.mono_ns())
        _log.info("enrolled" if issued is not None else "enrolled again with the same key", name=name)
        return self._answer(identity.only_certificate(answered.certificate), answered.grant)

    async def _note_refusal(self, hash_: bytes, exc: EnrolmentError, remote: str) -> None:
        """An audit entry and an event, so that a stolen token does not stay unseen. Of attempts of one kind for one name only the
        first is noted, and later how many followed: whoever reaches the port can make as many as he likes."""
        now_ns, mono_ns = self._control.now_ns(), self._control.mono_ns()
        subject = await self._control.db.run(lambda db: tokens.subject_of(db, hash_))
        noted_ns, attempts = self._refused.get((exc.code, subject), (mono_ns - _REFUSALS_NS, 0))
        attempts += 1
        if mono_ns - noted_ns < _REFUSALS_NS:
            self._refused[exc.code, subject] = noted_ns, attempts
            return
        self._refused[exc.code, subject] = mono_ns, 0
        detail = {"code": exc.code, "cause": exc.cause, "address": remote, "attempts": attempts}
        how_often = f", {attempts} attempts since the last entry" if attempts > 1 else ""
        happened = Problem(
            code=exc.code,
            what=f"An enrolment as {subject} was refused" if subject else exc.what,
            cause=f"{exc.cause} (from {remote}{how_often})",
            action=_REFUSED_ACTION,
            severity=Severity.WARNING,
            object=subject or SELF,
        )

        def work(db: Connection) -> None:
            audit.add(db, "unknown", "enrol.refused", subject, detail, now_ns)
            events.note(db, EventKind.ENROLMENT, SELF, happened, now_ns)

        await self._control.db.run(work)

    async def renew(self, call: Call, body: RenewRequest) -> Certificate:
        """For the same key: whoever has stolen one gets no certificate of his own, and what a serial number revokes can be told by it."""
        if call.role == Role.AGENT:
            await self._sides.admit(call.name, body.identity, None, call.remote)
        public_key = self._control.ca.public_key_of(body.csr)
        presented = x509.load_der_x509_certificate(call.der)
        if public_key != presented.public_key():
            raise RequestError(
                f"The certificate of {call.who} was not renewed",
                cause="the request is for another key than the certificate's",
                action="Enrol this host for a new key.",
            )
        grant = tokens.Grant(Role(call.role), call.name, call.hosts)
        now_ns, mono_ns = self._control.now_ns(), self._control.mono_ns()
        signer = [self._control.ca.certificate]
        again = self._renewals.again(call.serial, _time(now_ns))
        if again is not None and anchors.issuer_of(again, signer) is not None:
            return self._answer(again, grant)
        if anchors.issuer_of(presented, signer) is not None:
            self._renewals.check(call.serial, call.who, _time(now_ns), mono_ns)
        # else it is of a CA that is being renewed: whoever has it shall have another one, once (`again`)
        self._revoking.check_renewal(call.who)
        await self._revoking.write_down()

        def work(db: Connection) -> x509.Certificate:
            revocation.check(db, call.serial, call.who, call.begins_s)
            certificates.note_presented(db, call.role, call.name, call.der)
            if revocation.is_key_revoked(db, fingerprint_of(public_key)):
                raise CertificateRevokedError(
                    f"The certificate of {call.who} was not renewed", cause="its key was revoked"
                )
            certificate = self._issue(db, public_key, grant, now_ns, call.serial)
            detail = {"serial": f"{certificate.serial_number:x}"}
            audit.add(db, call.who, "certificate.renew", call.who, detail, now_ns)
            return certificate

        certificate = await self._control.db.run(work)
        self._renewals.issued(certificate, call.serial, mono_ns)
        await self._revoking.changed()
        return self._answer(certificate, grant)

    async def certificates(self, _call: Call, body: Page) -> CertificateList:
        found = await self._control.db.run(lambda db: certificates.newest(db, body.limit + 1, body.before))
        shown, next_ = page(found, body, lambda view: view.serial)
        return CertificateList(certificates=shown, next=next_)

    def _issue(
        self,
        db: Connection,
        public_key: ec.EllipticCurvePublicKey,
        grant: tokens.Grant,
        now_ns: int,
        renews: int = 0,
    ) -> x509.Certificate:
        now = _time(now_ns)
        life = _STORAGE_LIFE if grant.role == Role.STORAGE else self._control.certificate_life
        certificate = self._control.ca.issue(public_key, grant.role, grant.name, grant.hosts, life, now)
        certificates.note_certificate(
            db,
            certificates.Issued(
                serial=certificate.serial_number,
                role=grant.role,
                name=grant.name,
                key=fingerprint_of(public_key),
                issued_ns=now_ns,
                expires_ns=_ns(certificate.not_valid_after_utc),
                renews=renews,
                pem=pem_of(certificate),
            ),
        )
        begins_s = int(certificate.not_valid_before_utc.timestamp())
        revocation.admit_from(db, grant.role, grant.name, begins_s)
        return certificate

    def _answer(self, certificate: x509.Certificate, grant: tokens.Grant) -> Certificate:
        return Certificate(
            certificate=pem_of(certificate),
            ca=self._control.ca.pem,
            name=f"{grant.role}:{grant.name}",
            not_after=certificate.not_valid_after_utc.isoformat(),
        )


def _time(now_ns: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(now_ns // SECOND_NS, dt.UTC)


def _ns(time: dt.datetime) -> int:
    return int(time.timestamp()) * SECOND_NS
