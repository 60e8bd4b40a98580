"""A database that is set back to any earlier state, and takes in what storage has, refuses and admits whom it did before; and whoever
was told of it all, refuses no fewer meanwhile."""

from __future__ import annotations

import random
import sqlite3
from typing import Final

from hypothesis import example, given
from hypothesis import strategies as st

from config_server import database, revocation
from config_server.ca import BACKDATED
from config_server.clock import SECOND_NS
from config_server.revocation import Issued
from config_server.revocation_record import Record
from shared.messages import Revocations
from shared.revocation import merged
from shared.vocabulary import Role

START_S: Final = 1_800_000_000
NAMES: Final = ("web1", "web2")

PEM: Final = "of one that was issued here"

Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enrol", "renew", "revoke name", "revoke serial", "the clock is set"]),
        st.integers(0, 5),
    ),
    max_size=14,
)


class Site:
    """One database, with a step each second, and what storage has of it."""

    def __init__(self) -> None:
        self.db = database.connect(":memory:")
        self.now_s = START_S
        self.issued: list[Issued] = []
        self.storage: dict[str, Record] = {}

    def do(self, what: str, number: int) -> None:
        self.now_s += 1
        now_ns, name = self.now_s * SECOND_NS, NAMES[number % 2]
        old = self.issued[number % len(self.issued)] if self.issued else None
        if what == "enrol":
            new = self._issue(name, f"key-{len(self.issued)}", 0)
            revocation.readmit(self.db, Role.AGENT, name, new.serial, begins_s(new), now_ns)
        elif what == "renew" and old is not None and not self.is_refused(old):
            if not revocation.is_key_revoked(self.db, old.key):
                self._issue(old.name, old.key, old.serial)
        elif what == "revoke name":
            revocation.revoke(self.db, f"agent:{name}", "", now_ns)
        elif what == "the clock is set":
            self.now_s += (number - 2) * 1000  # what is revoked later is not earlier for that
        elif what == "revoke serial" and old is not None:
            revocation.revoke(self.db, f"{old.serial:x}", "", now_ns)
        self.storage |= {record.blob: record for record in revocation.rows(self.db)}
        revocation.note_recorded(self.db, self.storage)

    def _issue(self, name: str, key: str, renews: int) -> Issued:
        now_ns = self.now_s * SECOND_NS
        serial, ends_ns = 0x1000 + len(self.issued), now_ns + 10**18
        new = Issued(serial, Role.AGENT, name, key, now_ns, ends_ns, renews, pem=PEM)
        self.issued.append(new)
        revocation.note_certificate(self.db, new)
        revocation.admit_from(self.db, Role.AGENT, name, begins_s(new))
        return new

    def is_refused(self, issued: Issued) -> bool:
        current = revocation.current(self.db)
        return current.covers(issued.serial, f"agent:{issued.name}", begins_s(issued))

    def refused(self) -> list[bool]:
        return [self.is_refused(issued) for issued in self.issued]


def begins_s(issued: Issued) -> int:
    return issued.issued_ns // SECOND_NS - int(BACKDATED.total_seconds())


@example(
    before=[], after=[("enrol", 0), ("revoke name", 0)], later=[("enrol", 0)], order=random.Random(0)
)  # taken in, and then enrolled anew
@given(before=STEPS, after=STEPS, later=STEPS, order=st.randoms(use_true_random=False))
def test_a_restored_database_that_took_in_what_storage_has_refuses_the_same(
    before: list[Step], after: list[Step], later: list[Step], order: random.Random
) -> None:
    site = Site()
    for step in before:
        site.do(*step)
    backup = sqlite3.connect(":memory:")
    site.db.backup(backup)
    for step in after:
        site.do(*step)
    told = merged(Revocations(), revocation.current(site.db))
    expected = site.refused()
    site.db.close()
    site.db, backup.row_factory = backup, sqlite3.Row
    # Storage is away: a process server hears the older list, and refuses at least whom it did.
    meanwhile = merged(told, revocation.current(backup))
    for issued, was_refused in zip(site.issued, expected, strict=True):
        assert meanwhile.covers(issued.serial, f"agent:{issued.name}", begins_s(issued)) >= was_refused
    unknown = [record for blob, record in site.storage.items() if blob not in revocation.recorded(backup)]
    order.shuffle(unknown)
    for record in unknown:
        revocation.take_in(backup, record)
    assert site.refused() == expected
    afterwards = merged(meanwhile, revocation.current(backup))
    for issued, was_refused in zip(site.issued, expected, strict=True):
        assert afterwards.covers(issued.serial, f"agent:{issued.name}", begins_s(issued)) == was_refused
    assert not any([revocation.take_in(backup, record) for record in unknown]), "again it is no news"
    for step in later:
        site.do(*step)
    afterwards = merged(afterwards, revocation.current(backup))
    assert site.refused() == [
        afterwards.covers(issued.serial, f"agent:{issued.name}", begins_s(issued)) for issued in site.issued
    ]
    backup.close()


def test_who_enrols_at_a_restored_server_before_it_heard_of_the_revocation_is_readmitted_by_that() -> None:
    site = Site()
    site.do("enrol", 0)
    backup = sqlite3.connect(":memory:")
    site.db.backup(backup)
    site.do("revoke name", 0)
    told = revocation.current(site.db)
    site.db.close()
    site.db, backup.row_factory = backup, sqlite3.Row
    site.do("enrol", 0)
    for record in list(site.storage.values()):
        revocation.take_in(backup, record)
    site.do("renew", 1)
    told = merged(told, revocation.current(backup))
    assert site.refused() == [True, False, False]
    assert [
        told.covers(one.serial, f"agent:{one.name}", begins_s(one)) for one in site.issued
    ] == site.refused()
    backup.close()
