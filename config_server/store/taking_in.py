"""What storage tells of revocations and readmissions, put in order with what this database did.

Where the database was put back (`Mark`, restored.py), what it did since is later than all that the backup lacks, whatever the clocks say:
a certificate for a new token was a readmission, and what was said of a name holds, and gets a time that is later than what storage told.
Only of what this database did not do, the times decide; and of certificates that somebody readmits, when they begin.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final, NamedTuple

from config_server.rules.certificates import BACKDATED
from config_server.rules.clock import SECOND_NS
from config_server.rules.revocations import Record
from config_server.store.restored import Mark
from config_server.store.restored import mark as mark_of
from config_server.store.revocation import LAST_NS, mark_of_restore, refuse_known, revoke
from shared.api.certificates import Revocations
from shared.revocation import merged

_BEGINS_S: Final = f"(issued_ns / {SECOND_NS} - {int(BACKDATED.total_seconds())})"
"""Of a certificate's row."""
_END: Final = 1 << 62
"""Later than any time, and behind any row."""


class Unwritten(NamedTuple):
    record: Record
    ours: bool
    """Revoked here; else it was found in storage."""


def take_in(db: sqlite3.Connection, found: Iterable[Record]) -> list[Record]:
    """Revocations and readmissions that storage has records of, in whatever order; those that changed anything.

    Of a name the later one holds. A revocation means what was issued until then: what is known of that, and whatever begins earlier, but
    not the whole name; for who was readmitted since may have no record of that. Where the name stands revoked here it stays so.
    """
    restored = mark_of(db)
    in_time = sorted(found, key=lambda record: record.revoked_ns)
    news = []
    for number, record in enumerate(in_time):
        before = db.total_changes
        if not record.is_name:
            revoke(db, record.subject, record.reason, record.revoked_ns, record.who)
        else:
            later = [
                r.begins_s for r in in_time[number:] if r.subject == record.subject and r.begins_s is not None
            ]
            _take_in_name(db, record, min(later, default=_END), restored)
        if db.total_changes != before:
            news.append(record)
    return news


def _take_in_name(db: sqlite3.Connection, record: Record, good_from_s: int, restored: Mark | None) -> None:
    """`good_from_s`: when the first certificate begins that was readmitted later. This revocation does not mean it, nor any behind it,
    whatever the clocks said. `restored`: the mark of this database, while it has one."""
    if restored is not None and record.mark == restored.id:
        restored = None  # it was said behind the restore, too: on one host, its clock decides
    row = db.execute("SELECT * FROM revocations WHERE subject = ?", (record.subject,)).fetchone()
    here = restored is not None and row is not None and row["mark"] == restored.id
    if row is not None and not here and (row["readmitted_ns"] or 0) > record.revoked_ns:
        good_from_s = min(good_from_s, row["before_s"])
    if record.begins_s is None:
        _refuse_until(db, record, good_from_s, restored)
    elif not here:
        # Issued here, and the name stands revoked here: that was earlier. Of what was only shown, the times decide.
        role, _, name = record.subject.partition(":")
        meant = f"(c.pem != '' OR c.issued_ns <= r.revoked_ns AND {_BEGINS_S} < {record.begins_s:d})"
        refuse_known(db, role, name, meant, record.revoked_ns)
    if here:
        # What was said of the name here since the restore holds; whoever goes by the times is told so.
        db.execute(
            "UPDATE revocations SET revoked_ns = iif(readmitted_ns IS NULL, ? + 1, revoked_ns),"
            " readmitted_ns = iif(readmitted_ns IS NULL, NULL, ? + 1)"
            f" WHERE subject = ? AND {LAST_NS} <= ?",
            (record.revoked_ns, record.revoked_ns, record.subject, record.revoked_ns),
        )
        return
    if record.begins_s is not None:
        # Its revocation may be taken in later, and changes nothing then.
        db.execute(
            "INSERT INTO revocations (subject, reason, revoked_ns, before_s, readmitted_ns, mark) VALUES (?, '', 0, ?, ?, ?)"
            " ON CONFLICT (subject) DO UPDATE SET before_s = excluded.before_s, readmitted_ns = excluded.readmitted_ns,"
            f" mark = excluded.mark WHERE {LAST_NS} < excluded.readmitted_ns",
            (record.subject, record.begins_s, record.revoked_ns, record.mark),
        )
    else:
        db.execute(
            "INSERT INTO revocations (subject, reason, revoked_ns, who, before_s, mark) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (subject) DO UPDATE SET reason = excluded.reason, revoked_ns = excluded.revoked_ns, who = excluded.who,"
            # NULL, the name stands revoked, stays NULL.
            " before_s = max(before_s, excluded.before_s), readmitted_ns = NULL, mark = excluded.mark"
            f" WHERE {LAST_NS} < excluded.revoked_ns",
            (record.subject, record.reason, record.revoked_ns, record.who, record.before_s, record.mark),
        )
    _readmit_enrolled(db, record, restored)


def _refuse_until(db: sqlite3.Connection, record: Record, good_from_s: int, restored: Mark | None) -> None:
    """Refuses what the name had when it was revoked, by serial numbers, and each with its key: so what was renewed from it before this
    was known goes with it. Its tokens of that time are made void."""
    role, _, name = record.subject.partition(":")
    if restored is None:  # else a restore made all void that there were (restored.py)
        db.execute(
            "DELETE FROM tokens WHERE role = ? AND name = ? AND created_ns <= ?",
            (role, name, record.revoked_ns),
        )
    db.execute(
        "WITH meant AS (SELECT serial, key FROM certificates WHERE role = ? AND name = ? AND issued_ns <= ?"
        f" AND {_BEGINS_S} < ? AND NOT {_ENROLLED_SINCE})"
        " INSERT OR IGNORE INTO revocations (subject, reason, revoked_ns, who, mark) SELECT serial, ?, ?, ?, ? FROM certificates"
        " WHERE serial IN (SELECT serial FROM meant) OR (key != '' AND key IN (SELECT key FROM meant))",
        (
            *(role, name, record.revoked_ns, good_from_s, _last(restored)),
            *(record.reason, record.revoked_ns, record.who, record.mark),
        ),
    )


_ENROLLED_SINCE: Final = "(pem != '' AND renews = '' AND rowid > ?)"
"""Of a certificate: issued here for a token, behind that row. (Without `pem` it was only shown here, with `renews` renewed.)"""


def _last(restored: Mark | None) -> int:
    return restored.last if restored is not None else _END


def _readmit_enrolled(db: sqlite3.Connection, record: Record, restored: Mark | None) -> None:
    """Who enrolled here since, before `record` was known, is readmitted by that."""
    role, _, name = record.subject.partition(":")
    db.execute(
        f"UPDATE revocations SET readmitted_ns = max(first_ns, {LAST_NS} + 1), before_s = first_s, mark = ? FROM"
        f" (SELECT min(issued_ns) AS first_ns, min({_BEGINS_S}) AS first_s FROM certificates WHERE role = ? AND name = ?"
        f" AND (pem != '' AND renews = '' AND issued_ns > ? OR {_ENROLLED_SINCE})"
        " AND serial NOT IN (SELECT subject FROM revocations)) AS issued"
        " WHERE subject = ? AND coalesce(readmitted_ns, revoked_ns) = ? AND before_s IS NOT NULL AND first_ns IS NOT NULL"
        " AND (readmitted_ns IS NULL OR first_s < before_s)",
        (
            *(
                mark_of_restore(db),
                role,
                name,
                _END if record.begins_s is not None else record.revoked_ns,
                _last(restored),
            ),
            *(record.subject, record.revoked_ns),
        ),
    )


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
