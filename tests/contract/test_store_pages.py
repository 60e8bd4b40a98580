"""Long lists, page by page: each entry once, newest first, whatever is written meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from sqlalchemy import Connection

from config_server.store import audit, certificates, events, jobs, journal
from config_server.store.certificates import Issued
from shared.api.events import EventKind
from shared.api.jobs import JobQuery
from shared.errors import JobNotFoundError, NotFoundError
from shared.status import Problem
from shared.vocabulary import Role, Severity

NOW: Final = 1_700_000_000 * 1_000_000_000
Write = Callable[[Connection, int], None]
Read = Callable[[Connection, int, str], list[tuple[str, str]]]
"""Of each entry its place, and what it says."""


def write_event(db: Connection, number: int) -> None:
    happened = Problem(code="", what=str(number), severity=Severity.INFO, object=f"web{number % 2}")
    events.note(db, EventKind.STATE, "agent:web1", happened, NOW)


def read_events(db: Connection, limit: int, before: str) -> list[tuple[str, str]]:
    behind = {"before": int(before)} if before else {}
    return [(str(event.id), event.what) for event in events.find(db, "", False, limit, **behind)]


def write_entry(db: Connection, number: int) -> None:
    audit.add(db, "operator:admin", "a", str(number), {}, NOW)


def read_entries(db: Connection, limit: int, before: str) -> list[tuple[str, str]]:
    behind = {"before": int(before)} if before else {}
    return [(str(entry.id), entry.object) for entry in audit.newest(db, limit, **behind)]


def write_job(db: Connection, number: int) -> None:
    args = {"n": str(number)}
    journal.create(
        db, kind="restore", version=1, machine="web1", lane="", who="operator:admin", args=args, now_ns=NOW, id_=f"{9 - number:x}"
    )  # fmt: skip


def read_jobs(db: Connection, limit: int, before: str) -> list[tuple[str, str]]:
    return [(job.id, job.args["n"]) for job in jobs.newest(db, JobQuery(limit=limit, before=before))]


def write_certificate(db: Connection, number: int) -> None:
    """Those of a pair are of the same moment."""
    issued_ns = NOW + number // 2 * 2
    serial = 100 - number
    new = Issued(serial, Role.AGENT, str(number), f"key-{number}", issued_ns, issued_ns + 10**18, 0, "PEM")
    certificates.note_certificate(db, new)


def read_certificates(db: Connection, limit: int, before: str) -> list[tuple[str, str]]:
    found = certificates.newest(db, limit, before)
    return [(view.serial, view.name.partition(":")[2]) for view in found]


LISTS: Final = [
    pytest.param(write_event, read_events, id="events"),
    pytest.param(write_entry, read_entries, id="audit"),
    pytest.param(write_job, read_jobs, id="jobs"),
    pytest.param(write_certificate, read_certificates, id="certificates"),
]


@pytest.mark.parametrize(("write", "read"), LISTS)
@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 9])
def test_the_pages_of_a_list_are_the_list(db: Connection, write: Write, read: Read, size: int) -> None:
    for number in range(6):
        write(db, number)
    found: list[str] = []
    before = ""
    while page := read(db, size, before):
        found += [said for _, said in page]
        before = page[-1][0]
        write(db, 6 + len(found))  # newer ones, which are on no page behind
    assert found == ["5", "4", "3", "2", "1", "0"]


def test_a_page_behind_what_nobody_knows_is_not_the_end(db: Connection) -> None:
    write_job(db, 1)
    write_certificate(db, 1)
    with pytest.raises(JobNotFoundError):
        read_jobs(db, 9, "none")
    with pytest.raises(NotFoundError):
        read_certificates(db, 9, "none")
