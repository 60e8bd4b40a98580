"""Which certificates are refused.

A revocation names a certificate by its serial number, or a ROLE:NAME. It is entered whether or not this database knows what it
names: it may have been restored from a backup.

A *serial number* stands for the key: whoever has stolen a certificate has its key, and could use every other certificate of that key.
So all of them are refused, earlier ones and those that were renewed from it (a renewal keeps the key, identity.py sees to it), and no
other is issued, neither for a token nor as a renewal.

Of a *name* every certificate is refused, those of which this database knows nothing too, and its tokens are void. Who shall take part
again enrols with a token that was made afterwards: that admits certificates which begin no earlier than the one that he gets, so
older ones stay refused for ever, and of those that are known the serial numbers, too. What was said of a name last, a revocation or a
readmission, holds; so each is given a later time (`revoked_ns`, `readmitted_ns`) than the one before it, whatever the clock did.

What of this is in storage, too, `recorded_revocations` says (revocation_record.py, revoking.py).

How what storage tells of another time is put in order with that, taking_in.py says.

Nothing is ever deleted here because of the time of day: a clock that was ahead for a moment would readmit who was revoked. There are
as many entries as operators made, and as those names and keys had certificates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Insert,
    and_,
    bindparam,
    delete,
    func,
    or_,
    select,
    update,
)

from config_server.rules.revocations import Record
from config_server.store.certificates import OF_NAME, begins_of, of_key, of_name, same_key
from config_server.store.restored import mark as mark_of
from config_server.store.schema import certificates, recorded_revocations, revocations, tokens
from config_server.store.statements import Into, Put, later, unless_there
from shared.api.certificates import CertificateView, Revocations
from shared.errors import CertificateRevokedError, RequestError
from shared.naming import SAYS, is_name
from shared.vocabulary import ENROLLED

LAST_NS: Final = later(revocations.c.revoked_ns, func.coalesce(revocations.c.readmitted_ns, 0))
"""Of a row: when the last thing was said of its name."""
EVER: Final = (1 << 63) - 1
_SERIAL: Final = re.compile(r"[0-9a-f]{1,40}\Z")

_STANDS: Final = revocations.c.before_s.is_(None)
"""Of a name: all of it is refused."""
_IT: Final = revocations.c.subject == bindparam("of_subject")
TOKENS: Final = delete(tokens).where(
    tokens.c.role == bindparam("of_role"), tokens.c.name == bindparam("of_name")
)

_LAST_ISSUED: Final = select(func.max(certificates.c.issued_ns)).where(*OF_NAME)
_REFUSE_SERIAL: Final = unless_there(revocations)
_RECORDS: Final = select(
    revocations.c.subject,
    revocations.c.reason,
    revocations.c.who,
    revocations.c.revoked_ns,
    revocations.c.mark,
).where(revocations.c.revoked_ns > 0)
_READMITTED: Final = select(
    revocations.c.subject,
    revocations.c.readmitted_ns.label("revoked_ns"),
    revocations.c.before_s.label("begins_s"),
    revocations.c.mark,
).where(revocations.c.readmitted_ns.is_not(None), revocations.c.before_s.is_not(None))
_RECORDED: Final = select(recorded_revocations.c.blob)
_NOTE_RECORDED: Final = unless_there(recorded_revocations)
_FORGET_RECORDED: Final = delete(recorded_revocations).where(
    recorded_revocations.c.blob == bindparam("of_blob")
)
_READMIT: Final = (
    update(revocations)
    .where(_IT, revocations.c.readmitted_ns.is_(None))
    .values(
        before_s=bindparam("begins_s"),
        readmitted_ns=later(bindparam("now_ns", type_=revocations.c.revoked_ns.type), LAST_NS + 1),
        mark=bindparam("as_mark"),
    )
)
_ADMIT_FROM: Final = (
    update(revocations)
    .where(_IT, revocations.c.before_s > bindparam("begins_s"))
    .values(before_s=bindparam("begins_s"), readmitted_ns=LAST_NS + 1, mark=bindparam("as_mark"))
)
_CURRENT: Final = select(revocations.c.subject, revocations.c.before_s, LAST_NS.label("last_ns"))
_REFUSED_OF_KEY: Final = (
    select(certificates.c.serial)
    .join(
        revocations,
        or_(
            revocations.c.subject == certificates.c.serial,
            and_(revocations.c.subject == certificates.c.role + ":" + certificates.c.name, _STANDS),
        ),
    )
    .where(certificates.c.key == bindparam("of_key"), certificates.c.key != "")
    .limit(1)
)


def _refusing_name(into: Into) -> Insert:
    new = into(revocations)
    return new.on_conflict_do_update(
        index_elements=[revocations.c.subject],
        set_={
            "reason": new.excluded.reason,
            "revoked_ns": later(new.excluded.revoked_ns, LAST_NS + 1),
            "who": new.excluded.who,
            "before_s": None,
            "readmitted_ns": None,
            "mark": new.excluded.mark,
        },
        where=or_(revocations.c.before_s.is_not(None), revocations.c.mark != new.excluded.mark),
    )


def refusing_known(which: ColumnElement[bool]) -> Put:
    """Of certificates of a name that stands revoked, and was before `until_ns`, those which …: by their serial numbers, too. For
    `refuse_known`."""
    refused = (
        select(certificates.c.serial, revocations.c.reason, revocations.c.revoked_ns, revocations.c.who)
        .select_from(certificates.join(revocations, _IT))
        .where(_STANDS, *OF_NAME, which, revocations.c.revoked_ns < bindparam("until_ns"))
    )
    columns = ["subject", "reason", "revoked_ns", "who"]
    return Put(lambda into: into(revocations).from_select(columns, refused).on_conflict_do_nothing())


_REFUSE_NAME: Final = Put(_refusing_name)
_REFUSE_OTHERS: Final = refusing_known(certificates.c.serial != bindparam("of_serial"))


def revoke(db: Connection, subject: str, reason: str, now_ns: int, who: str = "") -> list[CertificateView]:
    """Refuse the certificate or the ROLE:NAME (see `subject_of`) from now on; what is known of what that covers. Again is harmless."""
    refuse(db, subject, reason, now_ns, who)
    return covered(db, subject)[1]


def refuse(db: Connection, subject: str, reason: str, now_ns: int, who: str) -> bool:
    """As `revoke`; whether it changed anything."""
    role, colon, name = subject.partition(":")
    new = {"reason": reason, "who": who}
    if not colon:
        rows = [{"subject": serial, "revoked_ns": now_ns, **new} for serial in same_key(db, subject)]
        return _REFUSE_SERIAL(db, rows).rowcount > 0
    whose = {"of_role": role, "of_name": name}
    void = db.execute(TOKENS, whose).rowcount
    # Later than what it covers, also where the clock was ahead at that time: so it is read from the database.
    now_ns = max(now_ns, (db.scalar(_LAST_ISSUED, whose) or 0) + 1)
    put = _REFUSE_NAME(db, {"subject": subject, "revoked_ns": now_ns, "mark": mark_of_restore(db), **new})
    return void + put.rowcount > 0


def covered(db: Connection, subject: str) -> tuple[list[str], list[CertificateView]]:
    """The serial numbers that go with this one, itself included (none for a name); and what is known of all that it covers."""
    role, colon, name = subject.partition(":")
    if colon:
        return [], of_name(db, role, name)
    return same_key(db, subject), of_key(db, subject)


def rows(db: Connection) -> list[Record]:
    """All, as storage records them."""
    return [Record(**row._asdict()) for row in (*db.execute(_RECORDS), *db.execute(_READMITTED))]


def recorded(db: Connection) -> set[str]:
    """The blobs of which this database knows that storage has them, and whose content it has."""
    return set(db.scalars(_RECORDED))


def note_recorded(db: Connection, blobs: Iterable[str]) -> None:
    if new := [{"blob": blob} for blob in blobs]:
        _NOTE_RECORDED(db, new)


def forget_recorded(db: Connection, blobs: Iterable[str]) -> None:
    """Storage does not have them any more."""
    if gone := [{"of_blob": blob} for blob in blobs]:
        db.execute(_FORGET_RECORDED, gone)


def readmit(db: Connection, role: str, name: str, serial: int, begins_s: int, now_ns: int) -> None:
    """ROLE:NAME got this certificate for a token that was made after its revocation: only earlier ones stay refused. That is said also
    where the revocation was taken in from storage: whoever was told of it first hand refuses the name until he is told."""
    refuse_known(db, _REFUSE_OTHERS, role, name, of_serial=f"{serial:x}")
    readmitted = {"begins_s": begins_s, "now_ns": now_ns, "as_mark": mark_of_restore(db)}
    db.execute(_READMIT, {"of_subject": f"{role}:{name}", **readmitted})


def refuse_known(
    db: Connection, which: Put, role: str, name: str, until_ns: int = EVER, **values: object
) -> bool:
    """See `refusing_known`; whether there were any. `values`: of the condition."""
    whose = {"of_subject": f"{role}:{name}", "of_role": role, "of_name": name}
    return which(db, {**whose, "until_ns": until_ns, **values}).rowcount > 0


def admit_from(db: Connection, role: str, name: str, begins_s: int) -> None:
    """A certificate was issued to ROLE:NAME that begins then. It is good, also if this host's clock was ahead when the name was
    readmitted and has been set right since: that is readmitting it again."""
    admitted = {"begins_s": begins_s, "as_mark": mark_of_restore(db)}
    db.execute(_ADMIT_FROM, {"of_subject": f"{role}:{name}", **admitted})


def mark_of_restore(db: Connection) -> str:
    restored = mark_of(db)
    return restored.id if restored is not None else ""


def current(db: Connection) -> Revocations:
    rows = sorted(db.execute(_CURRENT), key=lambda row: str(row.subject))
    names = [row for row in rows if ":" in row.subject]
    return Revocations(
        serials=[row.subject for row in rows if ":" not in row.subject],
        names=[row.subject for row in names if row.before_s is None],
        before={row.subject: row.before_s for row in names if row.before_s is not None},
        since={row.subject: row.last_ns for row in names},
    )


def check(db: Connection, serial: int, name: str, begins_s: int) -> None:
    """Raises CertificateRevokedError for who may not have what this transaction gives."""
    if current(db).covers(serial, name, begins_s):
        raise CertificateRevokedError(f"The certificate of {name} was refused")


def is_refused(db: Connection, role: str, name: str) -> bool:
    """Whether ROLE:NAME is by every certificate of it that is known here: it has to be enrolled anew."""
    revoked, subject = current(db), f"{role}:{name}"
    begins = begins_of(db, role, name)
    is_said = subject in revoked.since or bool(begins)
    return is_said and all(revoked.covers(serial, subject, begins_s) for serial, begins_s in begins)


def is_key_revoked(db: Connection, key: str) -> bool:
    """Whether a certificate of this key, as far as it is known here, is refused: then no other of it may be issued."""
    return db.execute(_REFUSED_OF_KEY, {"of_key": key}).first() is not None


def subject_of(certificate: str) -> str:
    """What is revoked by these words. Raises RequestError when they are neither a serial number nor ROLE:NAME."""
    role, colon, name = certificate.partition(":")
    if colon and role in ENROLLED and is_name(name):
        return certificate
    serial = certificate.lower().lstrip("0")
    if not colon and _SERIAL.match(serial):
        return serial
    roles = ", ".join(ENROLLED)
    raise RequestError(
        f"'{certificate}' was not revoked",
        cause=f"it is neither a serial number (hexadecimal) nor ROLE:NAME (the roles are {roles}; {SAYS})",
        action="`understudy certificate list` shows what was issued.",
    )
