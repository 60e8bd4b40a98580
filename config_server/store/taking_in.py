"""What storage tells of revocations and readmissions, put in order with what this database did.

Where the database was put back (`Mark`, restored.py), what it did since is later than all that the backup lacks, whatever the clocks say:
a certificate for a new token was a readmission, and what was said of a name holds, and gets a time that is later than what storage told.
Only of what this database did not do, the times decide; and of certificates that somebody readmits, when they begin.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Insert, and_, bindparam, case, func, not_, null, or_, select, update

from config_server.rules.certificates import BACKDATED
from config_server.rules.clock import SECOND_NS
from config_server.rules.revocations import Record
from config_server.store.certificates import OF_NAME
from config_server.store.restored import Mark
from config_server.store.restored import mark as mark_of
from config_server.store.revocation import (
    LAST_NS,
    TOKENS,
    mark_of_restore,
    refuse,
    refuse_known,
    refusing_known,
)
from config_server.store.schema import NUMBER, certificates, revocations, tokens
from config_server.store.statements import Into, Put, later
from shared.api.certificates import Revocations
from shared.trust.revocation import merged

_END: Final = 1 << 62
"""Later than any time, and behind any row."""

_BEGINS_S: Final = certificates.c.issued_ns // SECOND_NS - int(BACKDATED.total_seconds())
_ENROLLED: Final = and_(certificates.c.pem != "", certificates.c.renews == "")
"""Of a certificate: issued here for a token. (Without `pem` it was only shown here, with `renews` renewed.)"""
_ENROLLED_SINCE: Final = and_(_ENROLLED, certificates.c.rowid > bindparam("last_row"))
"""Behind that row."""
_IT: Final = revocations.c.subject == bindparam("of_subject")
_FIND: Final = select(revocations).where(_IT)
_SAID_NS: Final = bindparam("said_ns", type_=NUMBER)
_REFUSE_MEANT: Final = refusing_known(
    or_(
        certificates.c.pem != "",
        and_(
            certificates.c.issued_ns <= revocations.c.revoked_ns,
            bindparam("begins_s", type_=NUMBER) > _BEGINS_S,
        ),
    )
)
_HOLDS: Final = (
    update(revocations)
    .where(_IT, LAST_NS <= _SAID_NS)
    .values(
        revoked_ns=case(
            (revocations.c.readmitted_ns.is_(None), _SAID_NS + 1), else_=revocations.c.revoked_ns
        ),
        readmitted_ns=case((revocations.c.readmitted_ns.is_(None), null()), else_=_SAID_NS + 1),
    )
)
_TOKENS_UNTIL: Final = TOKENS.where(tokens.c.created_ns <= _SAID_NS)
_FIRST_ENROLLED: Final = select(
    func.min(certificates.c.issued_ns).label("first_ns"), func.min(_BEGINS_S).label("first_s")
).where(
    *OF_NAME,
    or_(and_(_ENROLLED, certificates.c.issued_ns > bindparam("since_ns")), _ENROLLED_SINCE),
    certificates.c.serial.not_in(select(revocations.c.subject)),
)
_FIRST_S: Final = bindparam("first_s", type_=NUMBER)
_READMIT: Final = (
    update(revocations)
    .where(
        _IT,
        func.coalesce(revocations.c.readmitted_ns, revocations.c.revoked_ns) == _SAID_NS,
        revocations.c.before_s.is_not(None),
        or_(revocations.c.readmitted_ns.is_(None), revocations.c.before_s > _FIRST_S),
    )
    .values(
        readmitted_ns=later(bindparam("first_ns", type_=NUMBER), LAST_NS + 1),
        before_s=_FIRST_S,
        mark=bindparam("as_mark"),
    )
)


def _readmitting(into: Into) -> Insert:
    new = into(revocations)
    return new.on_conflict_do_update(
        index_elements=[revocations.c.subject],
        set_={name: new.excluded[name] for name in ("before_s", "readmitted_ns", "mark")},
        where=new.excluded.readmitted_ns > LAST_NS,
    )


def _revoking(into: Into) -> Insert:
    new = into(revocations)
    stands = revocations.c.before_s.is_(None)
    return new.on_conflict_do_update(
        index_elements=[revocations.c.subject],
        set_={name: new.excluded[name] for name in ("reason", "revoked_ns", "who", "mark")}
        | {
            # The name that stands revoked goes on to.
            "before_s": case((stands, null()), else_=later(revocations.c.before_s, new.excluded.before_s)),
            "readmitted_ns": null(),
        },
        where=new.excluded.revoked_ns > LAST_NS,
    )


def _refusing_until(into: Into) -> Insert:
    meant = (
        select(certificates.c.serial, certificates.c.key)
        .where(
            *OF_NAME,
            certificates.c.issued_ns <= _SAID_NS,
            bindparam("good_from_s", type_=NUMBER) > _BEGINS_S,
            not_(_ENROLLED_SINCE),
        )
        .cte("meant")
    )
    said = [
        bindparam(f"as_{column.name}", type_=column.type)
        for column in (revocations.c.reason, revocations.c.who, revocations.c.mark)
    ]
    refused = select(certificates.c.serial, _SAID_NS, *said).where(
        or_(
            certificates.c.serial.in_(select(meant.c.serial)),
            and_(certificates.c.key != "", certificates.c.key.in_(select(meant.c.key))),
        )
    )
    columns = ["subject", "revoked_ns", "reason", "who", "mark"]
    return into(revocations).from_select(columns, refused).on_conflict_do_nothing()


_PUT_READMISSION: Final = Put(_readmitting)
_PUT_REVOCATION: Final = Put(_revoking)
_REFUSE_UNTIL: Final = Put(_refusing_until)


class Unwritten(NamedTuple):
    record: Record
    ours: bool
    """Revoked here; else it was found in storage."""


def take_in(db: Connection, found: Iterable[Record]) -> list[Record]:
    """Revocations and readmissions that storage has records of, in whatever order; those that changed anything.

    Of a name the later one holds. A revocation means what was issued until then: what is known of that, and whatever begins earlier, but
    not the whole name; for who was readmitted since may have no record of that. Where the name stands revoked here it stays so.
    """
    restored = mark_of(db)
    in_time = sorted(found, key=lambda record: record.revoked_ns)
    news = []
    for number, record in enumerate(in_time):
        if not record.is_name:
            is_new = refuse(db, record.subject, record.reason, record.revoked_ns, record.who)
        else:
            later = [
                r.begins_s for r in in_time[number:] if r.subject == record.subject and r.begins_s is not None
            ]
            is_new = _take_in_name(db, record, min(later, default=_END), restored)
        if is_new:
            news.append(record)
    return news


def _take_in_name(db: Connection, record: Record, good_from_s: int, restored: Mark | None) -> bool:
    """Whether it changed anything. `good_from_s`: when the first certificate begins that was readmitted later. This revocation does not
    mean it, nor any behind it, whatever the clocks said. `restored`: the mark of this database, while it has one."""
    if restored is not None and record.mark == restored.id:
        restored = None  # it was said behind the restore, too: on one host, its clock decides
    it = {"of_subject": record.subject}
    row = db.execute(_FIND, it).first()
    here = restored is not None and row is not None and row.mark == restored.id
    if row is not None and not here and (row.readmitted_ns or 0) > record.revoked_ns:
        good_from_s = min(good_from_s, row.before_s)
    is_new = False
    if record.begins_s is None:
        is_new = _refuse_until(db, record, good_from_s, restored)
    elif not here:
        # Issued here, and the name stands revoked here: that was earlier. Of what was only shown, the times decide.
        role, _, name = record.subject.partition(":")
        begins = {"begins_s": record.begins_s}
        is_new = refuse_known(db, _REFUSE_MEANT, role, name, record.revoked_ns, **begins)
    if here:
        # What was said of the name here since the restore holds; whoever goes by the times is told so.
        return db.execute(_HOLDS, {**it, "said_ns": record.revoked_ns}).rowcount > 0 or is_new
    new: dict[str, Any] = {"subject": record.subject, "mark": record.mark}
    if record.begins_s is not None:
        # Its revocation may be taken in later, and changes nothing then.
        new |= {
            "reason": "",
            "revoked_ns": 0,
            "before_s": record.begins_s,
            "readmitted_ns": record.revoked_ns,
        }
        put = _PUT_READMISSION(db, new)
    else:
        new |= {"reason": record.reason, "who": record.who}
        put = _PUT_REVOCATION(db, {**new, "revoked_ns": record.revoked_ns, "before_s": record.before_s})
    return _readmit_enrolled(db, record, restored) or put.rowcount > 0 or is_new


def _refuse_until(db: Connection, record: Record, good_from_s: int, restored: Mark | None) -> bool:
    """Refuses what the name had when it was revoked, by serial numbers, and each with its key: so what was renewed from it before this
    was known goes with it. Its tokens of that time are made void. Whether there was any."""
    role, _, name = record.subject.partition(":")
    of_name = {"of_role": role, "of_name": name, "said_ns": record.revoked_ns}
    void = 0
    if restored is None:  # else a restore made all void that there were (restored.py)
        void = db.execute(_TOKENS_UNTIL, of_name).rowcount
    said = {"as_reason": record.reason, "as_who": record.who, "as_mark": record.mark}
    until = {"good_from_s": good_from_s, "last_row": _last(restored)}
    return _REFUSE_UNTIL(db, {**of_name, **said, **until}).rowcount + void > 0


def _last(restored: Mark | None) -> int:
    return restored.last if restored is not None else _END


def _readmit_enrolled(db: Connection, record: Record, restored: Mark | None) -> bool:
    """Who enrolled here since, before `record` was known, is readmitted by that. Whether somebody was."""
    role, _, name = record.subject.partition(":")
    since_ns = _END if record.begins_s is not None else record.revoked_ns
    since = {"since_ns": since_ns, "last_row": _last(restored)}
    first = db.execute(_FIRST_ENROLLED, {"of_role": role, "of_name": name, **since}).one()
    if first.first_ns is None:
        return False
    it = {"of_subject": record.subject, "said_ns": record.revoked_ns}
    now = {"first_ns": first.first_ns, "first_s": first.first_s, "as_mark": mark_of_restore(db)}
    return db.execute(_READMIT, {**it, **now}).rowcount > 0


def as_written(known: Revocations, unwritten: Iterable[Unwritten]) -> Revocations:
    """What is in force until the database, which has `known`, has these, too. Their times alone decide; what they are to a database that
    was put back, only `take_in` says."""
    for record, ours in sorted(unwritten, key=lambda kept: kept.record.revoked_ns):
        known = merged(known, _told(known, record, ours=ours))
    return known


def _told(known: Revocations, record: Record, *, ours: bool) -> Revocations:
    name, since = record.subject, {record.subject: record.revoked_ns}
    if not record.is_name:
        return Revocations(serials=[name])
    if record.begins_s is not None:
        return Revocations(before={name: record.begins_s}, since=since)
    if ours or name in known.names:
        return Revocations(names=[name], since=since)
    return Revocations(
        before={name: max(record.before_s, known.before.get(name, record.before_s))}, since=since
    )
