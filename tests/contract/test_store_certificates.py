"""Certificates, revocations, and a database that was put back: over both databases. What follows from it all over a life, the property
tests say (tests/property/test_revocations.py), of SQLite; that PostgreSQL says the same is here."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from config_server.rules.certificates import BACKDATED, fingerprint_of
from config_server.rules.clock import SECOND_NS
from config_server.rules.revocations import Record
from config_server.store import (
    audit,
    certificates,
    commands,
    events,
    incarnations,
    inventory,
    restored,
    revocation,
    schema,
    sqlite,
    taking_in,
    tokens,
)
from config_server.store.certificates import Issued
from config_server.store.postgresql import Postgresql
from config_server.store.revocation import EVER, refusing_known
from shared.api.commands import CommandKind
from shared.errors import CertificateRevokedError
from shared.vocabulary import Role

NOW: Final = 1_700_000_000 * SECOND_NS
START_S: Final = 1_700_000_000
NAMES: Final = ("web1", "web2")


def issued(serial: int, key: str = "key-1", at_ns: int = NOW, renews: int = 0, name: str = "web1") -> Issued:
    return Issued(serial, Role.AGENT, name, key, at_ns, at_ns + 10**18, renews, f"PEM {serial}")


def test_of_certificates_it_is_known_which_live_which_was_last_and_whose_they_are(db: Connection) -> None:
    assert (certificates.newest_pem(db), certificates.is_known(db, Role.AGENT, "web1")) == (None, False)
    first, second = issued(0xA), issued(0xB, at_ns=NOW + 5, renews=0xA)
    for one in (first, second):
        certificates.note_certificate(db, one)
    assert certificates.living(db, NOW) == [first, second]
    assert certificates.living(db, second.expires_ns - 1) == [second]
    assert certificates.newest_pem(db) == "PEM 11"
    assert certificates.is_known(db, Role.AGENT, "web1")
    assert [view.serial for view in certificates.newest(db, 10)] == ["b", "a"]
    assert [view.serial for view in certificates.newest(db, 1)] == ["b"]
    revocation.revoke(db, "agent:web1", "", NOW + 10)
    assert not certificates.is_known(db, Role.AGENT, "web1")


def test_only_what_was_enrolled_with_a_token_here_is_an_enrolment(db: Connection) -> None:
    renewed, shown = issued(0xB, renews=0xA), issued(0xC)._replace(pem="")
    for one, times in ((issued(0xA), 1), (renewed, 1), (shown, 1), (issued(0xD, at_ns=NOW - 5), 2)):
        certificates.note_certificate(db, one)
        assert certificates.enrolments(db, Role.AGENT, "web1") == times
    assert certificates.enrolments(db, Role.PROCESS_SERVER, "web1") == 0
    assert certificates.enrolments(db, Role.AGENT, "web2") == 0


def test_a_serial_number_stands_for_its_key_and_whoever_is_refused_is_told_so(db: Connection) -> None:
    for one in (issued(0xA), issued(0xB, renews=0xA), issued(0xC, "key-2")):
        certificates.note_certificate(db, one)
    assert revocation.covered(db, "a")[0] == certificates.same_key(db, "a") == ["a", "b"]
    assert [view.serial for view in certificates.of_key(db, "a")] == ["a", "b"]
    assert [view.serial for view in certificates.of_name(db, "agent", "web1")] == ["a", "b", "c"]
    assert certificates.of_name(db, "agent", "web2") == certificates.of_key(db, "ff") == []
    assert revocation.refuse(db, "a", "stolen", NOW, "operator:admin")
    assert not revocation.refuse(db, "a", "again", NOW + 1, "operator:admin")
    assert {view.serial: view.reason for view in revocation.covered(db, "a")[1]} == {
        "a": "stolen",
        "b": "stolen",
    }
    assert revocation.current(db).serials == ["a", "b"]
    assert (revocation.is_key_revoked(db, "key-1"), revocation.is_key_revoked(db, "key-2")) == (True, False)
    with pytest.raises(CertificateRevokedError):
        revocation.check(db, 0xB, "agent:web1", START_S)
    revocation.check(db, 0xC, "agent:web1", START_S)


def test_a_name_that_is_readmitted_keeps_what_it_had_refused(db: Connection) -> None:
    certificates.note_certificate(db, issued(0xA))
    tokens.add(db, b"t", tokens.Grant(Role.AGENT, "web1", ()), NOW, NOW + SECOND_NS)
    revocation.revoke(db, "agent:web1", "lost", NOW - 5)
    assert not tokens.exists(db, b"t")
    assert revocation.current(db).since == {"agent:web1": NOW + 1}, "later than what it covers"
    assert [view.revoked for view in certificates.newest(db, 1)] != [None]
    new = issued(0xB, "key-2", NOW + 10 * SECOND_NS)
    certificates.note_certificate(db, new)
    revocation.readmit(db, Role.AGENT, "web1", 0xB, START_S + 10, NOW + 10 * SECOND_NS)
    now = revocation.current(db)
    assert (now.names, now.serials, now.before) == ([], ["a"], {"agent:web1": START_S + 10})
    revocation.admit_from(db, Role.AGENT, "web1", START_S + 5)
    assert revocation.current(db).before == {"agent:web1": START_S + 5}
    revocation.admit_from(db, Role.AGENT, "web1", START_S + 7)
    assert revocation.current(db).before == {"agent:web1": START_S + 5}
    assert {record.begins_s for record in revocation.rows(db)} == {None, START_S + 5}


def test_a_name_is_refused_that_has_no_certificate_which_is_not(db: Connection) -> None:
    assert not revocation.is_refused(db, "agent", "web1"), "nobody has said so"
    for one in (issued(0xA), issued(0xB, "key-2", NOW + SECOND_NS)):
        certificates.note_certificate(db, one)
    begins = START_S - int(BACKDATED.total_seconds())
    assert sorted(certificates.begins_of(db, "agent", "web1")) == [(0xA, begins), (0xB, begins + 1)]
    assert certificates.begins_of(db, "agent", "web2") == []
    revocation.revoke(db, "a", "stolen", NOW)
    assert not revocation.is_refused(db, "agent", "web1"), "one may come"
    revocation.revoke(db, "b", "stolen", NOW)
    assert revocation.is_refused(db, "agent", "web1")
    revocation.revoke(db, "agent:web2", "lost", NOW)
    assert revocation.is_refused(db, "agent", "web2"), "with all that are not known here"


def test_of_a_name_that_stands_revoked_what_is_known_is_refused_up_to_a_time(db: Connection) -> None:
    certificates.note_certificate(db, issued(0xA))
    revocation.revoke(db, "agent:web1", "lost", NOW + 5)
    all_ = refusing_known(schema.certificates.c.serial != "none")
    assert not revocation.refuse_known(db, all_, Role.AGENT, "web1", NOW + 5)
    assert revocation.refuse_known(db, all_, Role.AGENT, "web1", EVER)
    assert revocation.current(db).serials == ["a"]


def test_a_certificate_that_is_shown_gets_its_key_noted_once(db: Connection) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    der = made(key, 0x77)
    certificates.note_certificate(db, issued(0x77, ""))
    certificates.note_presented(db, Role.AGENT, "web1", der)
    certificates.note_presented(db, Role.AGENT, "web1", made(key, 0x78))
    assert revocation.covered(db, "77")[0] == ["77", "78"]
    revocation.revoke(db, "78", "", NOW)
    assert revocation.is_key_revoked(db, fingerprint_of(key.public_key()))


def test_one_may_take_part_by_each_certificate_that_has_not_expired_refused_or_not(db: Connection) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for one in (issued(0xB, at_ns=NOW + 5), issued(0xA)):
        certificates.note_certificate(db, one)
    certificates.note_presented(db, Role.AGENT, "web1", made(key, 0x78))
    revocation.revoke(db, "a", "", NOW + 6)
    begins_s = NOW // SECOND_NS - int(BACKDATED.total_seconds())
    first, second, shown = certificates.parties(db, NOW)
    assert first == certificates.Party(Role.AGENT, "web1", 0xA, begins_s, "PEM 10")
    assert (second.serial, second.pem) == (0xB, "PEM 11")
    assert (shown.serial, shown.begins_s, shown.pem) == (0x78, START_S, "")
    assert certificates.parties(db, NOW + 10**18) == [second]


def made(key: ec.EllipticCurvePrivateKey, serial: int) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "agent:web1")])
    begins = dt.datetime.fromtimestamp(START_S, dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(begins)
        .not_valid_after(begins + dt.timedelta(days=9))
    )
    return built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_what_storage_has_is_noted_and_forgotten(db: Connection) -> None:
    revocation.note_recorded(db, [])
    revocation.note_recorded(db, ["a", "b"])
    revocation.note_recorded(db, ["b", "c"])
    revocation.forget_recorded(db, ["a"])
    revocation.forget_recorded(db, [])
    assert revocation.recorded(db) == {"b", "c"}


def test_what_is_void_in_a_database_that_was_put_back(db: Connection) -> None:
    tokens.add(db, b"unused", tokens.Grant(Role.AGENT, "web1", ()), NOW, NOW + SECOND_NS)
    commands.add(db, "c1", "agent:web1", CommandKind.RESYNC, {}, NOW)
    certificates.note_certificate(db, issued(0xA))
    inventory.ensure_machine(db, "web1", NOW)
    was = incarnations.history(db)
    assert (restored.mark(db), revocation.mark_of_restore(db)) == (None, "")
    done = restored.prepare(db, NOW + 7)
    assert (done.tokens, done.commands, done.deletions) == (1, 1, 0)
    assert incarnations.history(db)[:-1] == was
    found = restored.mark(db)
    assert found is not None
    certificates.note_certificate(db, issued(0xB, "key-2"))
    assert [entry.action for entry in audit.newest(db, 9)] == [
        "database.restored",
        "command.withdrawn",
        "token.void",
    ]
    assert len(events.find(db, "", False, 9)) == 1
    assert revocation.mark_of_restore(db) == found.id
    # What is behind the mark was issued here since: a revocation that storage tells of does not mean it.
    [news] = taking_in.take_in(db, [Record(subject="agent:web1", revoked_ns=NOW + 10**9, who="operator:x")])
    assert news.who == "operator:x"
    assert revocation.current(db).serials == ["a"]
    restored.forget(db)
    assert restored.mark(db) is None


# ---- the same on both

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enrol", "renew", "revoke name", "revoke serial", "admit", "restore", "take in"]),
        st.integers(0, 5),
    ),
    max_size=14,
)


class Life:
    def __init__(self, db: Connection) -> None:
        self.db = db
        self.now_s = START_S
        self.issued: list[Issued] = []

    def do(self, what: str, number: int) -> object:
        self.now_s += 1 + number
        db, now_ns, name = self.db, self.now_s * SECOND_NS, NAMES[number % 2]
        old = self.issued[number % len(self.issued)] if self.issued else None
        match what:
            case "enrol":
                new = self._issue(name, f"key-{len(self.issued)}", 0)
                revocation.readmit(db, Role.AGENT, name, new.serial, self.now_s, now_ns)
            case "renew" if old is not None and not revocation.is_key_revoked(db, old.key):
                return self._issue(old.name, old.key, old.serial)
            case "revoke name":
                return revocation.revoke(db, f"agent:{name}", "r", now_ns, "w")
            case "revoke serial" if old is not None:
                return revocation.revoke(db, f"{old.serial:x}", "r", now_ns, "w")
            case "admit":
                revocation.admit_from(db, Role.AGENT, name, self.now_s - 400)
            case "restore":
                return restored.prepare(db, now_ns)
            case "take in":
                return taking_in.take_in(db, self._records(name))
        return None

    def _issue(self, name: str, key: str, renews: int) -> Issued:
        new = issued(0x100 + len(self.issued), key, self.now_s * SECOND_NS, renews, name)
        self.issued.append(new)
        certificates.note_certificate(self.db, new)
        return new

    def _records(self, name: str) -> list[Record]:
        """What another one has said: of the name, before now and a little later; and of a certificate."""
        subject, at_ns = f"agent:{name}", self.now_s * SECOND_NS
        found = [
            Record(subject=subject, revoked_ns=at_ns - 3 * SECOND_NS, who="w"),
            Record(subject=subject, revoked_ns=at_ns, begins_s=self.now_s - 350),
            Record(subject=subject, revoked_ns=at_ns + SECOND_NS, who="w"),
        ]
        if self.issued:
            found.append(Record(subject=f"{self.issued[0].serial:x}", revoked_ns=at_ns))
        return found[self.now_s % 3 :]

    def state(self) -> object:
        said = sorted(revocation.rows(self.db), key=repr)
        records = [(one.subject, one.reason, one.who, one.revoked_ns, one.begins_s) for one in said]
        return revocation.current(self.db), records, certificates.newest(self.db, 99)


@given(steps=STEPS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_life_of_certificates_is_the_same_on_both_databases(
    served: Postgresql, steps: list[tuple[str, int]]
) -> None:
    connections = [sqlite.connect(":memory:"), served.engine.connect()]
    try:
        ours, theirs = map(Life, connections)
        for what, number in steps:
            assert plain(ours.do(what, number)) == plain(theirs.do(what, number)), what
            assert ours.state() == theirs.state(), what
    finally:
        for db in connections:
            db.rollback()
            db.close()


def plain(said: Any) -> object:
    return sorted(re.sub(r"mark='\w+'", "", repr(one)) for one in said) if isinstance(said, list) else said
