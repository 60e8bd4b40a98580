"""A database that is set back to any earlier state, and takes in what storage has, refuses and admits whom it did before; and whoever
was told of it all, refuses no fewer meanwhile."""

from __future__ import annotations

from typing import Final

from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from config_server.rules.certificates import BACKDATED
from config_server.rules.clock import SECOND_NS
from config_server.rules.revocations import Record
from config_server.store import certificates, restored, revocation, schema, sqlite, taking_in
from config_server.store.certificates import Issued
from config_server.store.statements import unless_there
from shared.api.certificates import Revocations
from shared.trust.revocation import merged
from shared.vocabulary import Role
from tests.databases import copied

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


SHOWN = st.lists(st.tuples(st.just("show"), st.integers(0, 5)), max_size=4)


_SHOW: Final = unless_there(schema.certificates)


class Site:
    """One database, with a step each second, and what storage has of it."""

    def __init__(self) -> None:
        self.db = sqlite.connect(":memory:")
        self.now_s = START_S
        self.issued: list[Issued] = []
        self.storage: dict[str, Record] = {}
        self.is_stored = True

    def do(self, what: str, number: int) -> Issued | None:
        """What it issued."""
        self.now_s += 1
        now_ns, name = self.now_s * SECOND_NS, NAMES[number % 2]
        old = self.issued[number % len(self.issued)] if self.issued else None
        new: Issued | None = None
        if what == "enrol":
            new = self._issue(name, f"key-{len(self.issued)}", 0)
            revocation.readmit(self.db, Role.AGENT, name, new.serial, begins_s(new), now_ns)
        elif what == "renew" and old is not None and not self.is_refused(old):
            self.show(old)
            if not revocation.is_key_revoked(self.db, old.key):
                new = self._issue(old.name, old.key, old.serial)
        elif what == "show" and old is not None and not self.is_refused(old):
            self.show(old)
        elif what == "revoke name":
            since_ns = revocation.current(self.db).since.get(f"agent:{name}", 0)
            revocation.revoke(self.db, f"agent:{name}", "", max(now_ns, since_ns + 1))
        elif what == "the clock is set":
            self.now_s += (number - 2) * 1000  # what is revoked later is not earlier for that
        elif what == "revoke serial" and old is not None:
            revocation.revoke(self.db, f"{old.serial:x}", "", now_ns)
        if self.is_stored:
            self.store()
        return new

    def do_all(self, steps: list[Step]) -> None:
        for what, number in steps:
            self.do(what, number)

    def store(self) -> None:
        self.storage |= {record.blob: record for record in revocation.rows(self.db)}
        revocation.note_recorded(self.db, self.storage)

    def show(self, issued: Issued) -> None:
        """Whole seconds stand in a certificate."""
        shown_ns = (issued.issued_ns // SECOND_NS + 1) * SECOND_NS - 1
        row = {"serial": f"{issued.serial:x}", "role": Role.AGENT, "name": issued.name, "key": issued.key}
        _SHOW(self.db, {**row, "issued_ns": shown_ns, "expires_ns": issued.expires_ns})

    def restore(self, backup: Connection, *, is_marked: bool) -> None:
        self.db.close()
        self.db = backup
        if is_marked:
            restored.prepare(backup, self.now_s * SECOND_NS)
        self.is_stored = False

    def take_in(self) -> list[Record]:
        known = revocation.recorded(self.db)
        return taking_in.take_in(self.db, [r for blob, r in self.storage.items() if blob not in known])

    def _issue(self, name: str, key: str, renews: int) -> Issued:
        now_ns = self.now_s * SECOND_NS
        serial, ends_ns = 0x1000 + len(self.issued), now_ns + 10**18
        new = Issued(serial, Role.AGENT, name, key, now_ns, ends_ns, renews, pem=PEM)
        self.issued.append(new)
        certificates.note_certificate(self.db, new)
        revocation.admit_from(self.db, Role.AGENT, name, begins_s(new))
        return new

    def is_refused(self, issued: Issued) -> bool:
        return is_refused(revocation.current(self.db), issued)

    def refused(self) -> list[bool]:
        return [self.is_refused(issued) for issued in self.issued]


def is_refused(by: Revocations, issued: Issued) -> bool:
    return by.covers(issued.serial, f"agent:{issued.name}", begins_s(issued))


def begins_s(issued: Issued) -> int:
    return issued.issued_ns // SECOND_NS - int(BACKDATED.total_seconds())


def backed_up_between(before: list[Step], after: list[Step]) -> tuple[Site, Connection, Revocations]:
    """A site that did both, its database as it was between them, and what a daemon was told at the end."""
    site = Site()
    site.do_all(before)
    backup = copied(site.db)
    site.do_all(after)
    told = merged(Revocations(), revocation.current(site.db))
    return site, backup, told


@example(
    before=[], after=[("enrol", 0), ("revoke name", 0)], shown=[], later=[("enrol", 0)], is_marked=True
)  # taken in, and then enrolled anew
@example(
    before=[("enrol", 0)],
    after=[("the clock is set", 5), ("revoke name", 0), ("the clock is set", 0), ("enrol", 0)],
    shown=[("show", 1)],
    later=[],
    is_marked=True,
)  # the clock was ahead at the revocation
@settings(max_examples=40)
@given(before=STEPS, after=STEPS, shown=SHOWN, later=STEPS, is_marked=st.booleans())
def test_a_restored_database_that_took_in_what_storage_has_refuses_the_same(
    before: list[Step], after: list[Step], shown: list[Step], later: list[Step], *, is_marked: bool
) -> None:
    site, backup, told = backed_up_between(before, after)
    expected, lost = site.refused(), list(site.issued)
    site.restore(backup, is_marked=is_marked)
    # Storage is away: a process server hears the older list, and refuses at least whom it did.
    meanwhile = merged(told, revocation.current(backup))
    for issued, was_refused in zip(lost, expected, strict=True):
        assert is_refused(meanwhile, issued) >= was_refused
    site.do_all(shown)
    site.take_in()
    assert site.refused() == expected
    afterwards = merged(meanwhile, revocation.current(backup))
    for issued, was_refused in zip(lost, expected, strict=True):
        assert is_refused(afterwards, issued) == was_refused
    assert not site.take_in(), "again it is no news"
    restored.forget(backup)
    site.do_all(later)
    afterwards = merged(afterwards, revocation.current(backup))
    assert site.refused() == [is_refused(afterwards, issued) for issued in site.issued]
    backup.close()


@example(
    before=[], after=[("enrol", 0), ("revoke name", 0)], between=[("renew", 0)], is_marked=False
)  # the thief renews
@example(
    before=[("enrol", 0)],
    after=[("revoke name", 0)],
    between=[("the clock is set", 0), ("enrol", 0)],
    is_marked=True,
)  # the new host is behind
@example(
    before=[],
    after=[("revoke name", 0), ("enrol", 0)],
    between=[("the clock is set", 0), ("enrol", 0), ("revoke name", 0)],
    is_marked=True,
)  # revoked here, by a clock by which it was readmitted later
@settings(max_examples=40)
@given(before=STEPS, after=STEPS, between=STEPS, is_marked=st.booleans())
def test_what_is_done_at_a_restored_server_before_storage_answers_is_done_after_all_that_it_did_not_know(
    before: list[Step], after: list[Step], between: list[Step], *, is_marked: bool
) -> None:
    site, backup, told = backed_up_between(before, after)
    lost = dict(zip((issued.serial for issued in site.issued), site.refused(), strict=True))
    site.restore(backup, is_marked=is_marked)
    meant: dict[int, bool] = {}
    renewed: dict[int, int] = {}
    for what, number in between:
        if is_marked and what == "renew":
            continue  # revoking.py refuses
        if not is_marked and what == "the clock is set":
            continue  # which of two rows is of the backup only the clock can tell
        new = site.do(what, number)
        if new is not None and not new.renews:
            meant[new.serial] = False
        elif new is not None:
            renewed[new.serial] = new.renews
        meant |= {serial: True for serial in meant if site.is_refused(site.issued[serial - 0x1000])}
    stand_revoked = {f"agent:{NAMES[number % 2]}" for what, number in between if what == "revoke name"}
    stand_revoked &= set(revocation.current(backup).names)
    site.take_in()
    if is_marked:
        assert stand_revoked <= set(revocation.current(backup).names)
    daemon = merged(told, revocation.current(backup))
    known = {int(serial, 16) for serial in backup.scalars(select(schema.certificates.c.serial))}
    for issued in site.issued:
        serial, refused = issued.serial, site.is_refused(issued)
        by_intent = [
            begins_s(site.issued[n - 0x1000]) for n in meant if site.issued[n - 0x1000].name == issued.name
        ]
        if lost.get(serial) and (
            serial in known or begins_s(issued) < min(by_intent, default=begins_s(issued) + 1)
        ):
            assert refused, "who was revoked in the time that the backup lacks"
        if is_marked and serial in meant:
            assert refused == meant[serial], "who was enrolled here, by intent"
        if serial in renewed and lost.get(renewed[serial]):
            assert refused, "what was renewed from a refused one"
        assert is_refused(daemon, issued) == refused
    backup.close()
