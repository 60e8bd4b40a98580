"""What config servers on one database tell each other, and who does what one alone may do."""

from __future__ import annotations

from typing import Final

import msgspec
import pytest
from sqlalchemy import Connection, update

from config_server.rules.clock import SECOND_NS
from config_server.store import inventory, replicas, schema
from config_server.store.inventory import StoredReport
from config_server.store.replicas import News
from shared.vocabulary import Role

NOW: Final = 1_700_000_000 * SECOND_NS


def of_web1(number: int, start: str = "s1", *, age_s: float = 0.0, report: bytes = b"{}") -> StoredReport:
    return StoredReport(
        role=Role.AGENT,
        name="web1",
        received_ns=NOW,
        report=report,
        state="ordered",
        start=start,
        number=number,
        age_ns=int(age_s * SECOND_NS),
        address="192.0.2.1",
    )


@pytest.fixture
def two(db: Connection) -> Connection:
    replicas.join(db, "a", "config1")
    replicas.join(db, "b", "config2")
    return db


def heard(news: News) -> list[tuple[str, str, int]]:
    return [(other.id, one.start, one.number) for other in news.others for one in other.reports]


def stored(db: Connection) -> list[tuple[str, int]]:
    return [(one.start, one.number) for one in inventory.reports(db)]


# ---- batches


def test_behind_a_restore_none_of_them_uses_the_database(db: Connection) -> None:
    replicas.join(db, "a", "config1")
    replicas.write(db, "a", "", [], ["a bell"])
    assert replicas.hold(db, "sweep", "a", 3600 * SECOND_NS)
    assert replicas.batches(db) == {"a": ("config1", 1)}
    replicas.forget_all(db)
    assert replicas.living(db) == []
    replicas.join(db, "b", "config2")
    assert replicas.hold(db, "sweep", "b", 3600 * SECOND_NS)


def test_what_one_has_heard_and_rung_another_reads_once(two: Connection) -> None:
    assert replicas.write(two, "a", "", [of_web1(1)], ["agent:web1"]) == 1
    [other] = replicas.read(two, "b", {}).others
    assert (other.id, other.name, other.batch, other.rung) == ("a", "config1", 1, ("agent:web1",))
    [report] = other.reports
    assert report.age_ns is not None and 0 <= report.age_ns < 60 * SECOND_NS
    assert msgspec.structs.replace(report, age_ns=0) == of_web1(1)
    [again] = replicas.read(two, "b", {"a": 1}).others
    assert (again.reports, again.rung) == ((), ())
    assert heard(replicas.read(two, "a", {})) == [], "nobody reads what he wrote himself"


def test_of_two_starts_of_a_server_it_is_known_which_one_wrote_last(two: Connection) -> None:
    replicas.join(two, "0", "config1")
    replicas.write(two, "a", "", [], [])
    replicas.write(two, "0", "", [], [])
    one, other = (other.beat_ns for other in replicas.read(two, "b", {}).others)
    assert one > other > 0, "in the order of their ids: the later start is first"


def test_of_two_batches_that_were_not_read_both_are(two: Connection) -> None:
    replicas.write(two, "a", "", [of_web1(1)], ["x"])
    replicas.write(two, "a", "", [StoredReport(Role.PROCESS_SERVER, "ps1", NOW, b"{}")], ["y", "x"])
    [other] = replicas.read(two, "b", {}).others
    assert ({one.name for one in other.reports}, set(other.rung)) == ({"web1", "ps1"}, {"x", "y"})


def test_what_a_server_says_of_itself_stands_until_it_says_otherwise(two: Connection) -> None:
    replicas.write(two, "a", "one", [], [])
    assert [other.said for other in replicas.read(two, "b", {"a": 1}).others] == ["one"]
    replicas.write(two, "a", "two", [], [])
    assert [other.said for other in replicas.read(two, "b", {"a": 1}).others] == ["two"]


def test_a_server_that_is_not_known_any_more_writes_nothing(two: Connection) -> None:
    assert replicas.write(two, "c", "", [of_web1(1)], ["x"]) is None
    assert stored(two) == []


def test_a_server_that_is_silent_for_long_is_forgotten_and_what_it_heard_is_not(two: Connection) -> None:
    replicas.write(two, "a", "", [of_web1(1)], ["x"])
    assert (replicas.bury(two), replicas.living(two)) == ([], ["config1", "config2"])
    long_ago = replicas.clock(two) - replicas.BURIED_NS - 60 * SECOND_NS
    two.execute(update(schema.replicas).where(schema.replicas.c.id == "a").values(beat_ns=long_ago))
    assert replicas.bury(two, ["a"]) == [], "the clock was set, as who reads it knows"
    assert replicas.bury(two) == ["a"]
    assert (replicas.read(two, "b", {}).others, replicas.living(two)) == ((), ["config2"])
    assert stored(two) == [("s1", 1)]


def test_what_was_rung_long_ago_is_not_kept(two: Connection) -> None:
    two.execute(
        update(schema.replicas).where(schema.replicas.c.id == "a").values(batch=2 * replicas.KEPT - 2)
    )
    replicas.write(two, "a", "", [], ["old"])
    two.execute(
        update(schema.replicas).where(schema.replicas.c.id == "a").values(batch=3 * replicas.KEPT - 1)
    )
    replicas.write(two, "a", "", [], ["new"])
    [other] = replicas.read(two, "b", {}).others
    assert other.rung == ("new",)


# ---- which report is the later


def test_of_one_start_the_higher_number_is_the_later_whoever_writes_first(two: Connection) -> None:
    replicas.write(two, "a", "", [of_web1(6)], [])
    replicas.write(two, "b", "", [of_web1(5)], [])
    assert stored(two) == [("s1", 6)]
    assert heard(replicas.read(two, "a", {})) == []
    replicas.write(two, "b", "", [of_web1(7, age_s=3)], [])
    assert heard(replicas.read(two, "a", {})) == [("b", "s1", 7)]


def test_of_two_starts_the_one_that_was_heard_later_is_whoever_writes_first(two: Connection) -> None:
    replicas.write(two, "a", "", [of_web1(1, "s2")], [])
    replicas.write(two, "b", "", [of_web1(50, "s1", age_s=5)], [])
    assert stored(two) == [("s2", 1)]
    replicas.write(two, "b", "", [of_web1(1, "s3")], [])
    assert stored(two) == [("s3", 1)]


def test_one_that_does_not_count_its_reports_is_told_by_when_it_was_heard(two: Connection) -> None:
    replicas.write(two, "a", "", [of_web1(0, "", report=b"[1]")], [])
    replicas.write(two, "b", "", [of_web1(0, "", report=b"[2]", age_s=5)], [])
    assert [one.report for one in inventory.reports(two)] == [b"[1]"]
    replicas.write(two, "b", "", [of_web1(0, "", report=b"[3]")], [])
    assert [one.report for one in inventory.reports(two)] == [b"[3]"]


def test_one_that_was_put_back_counts_anew_after_a_silence(two: Connection) -> None:
    replicas.write(two, "a", "", [of_web1(50, age_s=30)], [])
    replicas.write(two, "b", "", [of_web1(7)], [])
    assert stored(two) == [("s1", 50)]
    replicas.write(two, "a", "", [of_web1(51, age_s=90)], [])
    replicas.write(two, "b", "", [of_web1(8)], [])
    assert stored(two) == [("s1", 8)]


def test_where_the_clock_of_the_database_was_set_back_what_is_written_counts(two: Connection) -> None:
    replicas.write(two, "a", "", [of_web1(50, age_s=-3600)], [])
    replicas.write(two, "b", "", [of_web1(1, "s2")], [])
    assert stored(two) == [("s2", 1)]


def test_a_report_that_is_saved_by_itself_leaves_what_was_shared_where_it_was(two: Connection) -> None:
    """Who looks has read it, or reads it with the next batch of its writer."""
    replicas.write(two, "a", "", [of_web1(1)], [])
    inventory.save_report(two, of_web1(2))
    assert heard(replicas.read(two, "b", {})) == [("a", "s1", 2)]
    assert heard(replicas.read(two, "b", {"a": 1})) == []


def test_one_that_takes_part_no_more_is_told_and_is_not_among_the_reports(two: Connection) -> None:
    replicas.write(two, "a", "", [of_web1(7)], [])
    inventory.forget(two, "web1")
    replicas.write(two, "b", "", [StoredReport(Role.AGENT, "web1", NOW, b"")], [])
    replicas.write(two, "a", "", [of_web1(7, age_s=5)], [])  # what it had not written yet
    [other] = replicas.read(two, "a", {}).others
    assert [one.report for one in other.reports] == [b""]
    assert inventory.reports(two) == []
    replicas.write(two, "a", "", [of_web1(1, "s2")], [])
    assert stored(two) == [("s2", 1)]


# ---- leases


def test_what_a_server_has_leased_that_writes_nothing_is_anybody_s(two: Connection) -> None:
    """As it was killed, or is in a database that was put back. Of one that writes it stays."""
    replicas.write(two, "a", "", [], [])
    assert replicas.hold(two, "sweep", "killed", 3600 * SECOND_NS)
    assert replicas.hold(two, "grants", "a", 3600 * SECOND_NS)
    replicas.bury(two)
    assert replicas.hold(two, "sweep", "b", 3600 * SECOND_NS)
    assert not replicas.hold(two, "grants", "b", 3600 * SECOND_NS)


def held_by(db: Connection) -> list[tuple[str, int]]:
    return [(row.owner, row.term) for row in db.execute(schema.leases.select())]


def test_a_lease_is_of_one_at_a_time_who_renews_it(two: Connection) -> None:
    assert replicas.hold(two, "sweep", "a", 60 * SECOND_NS)
    assert not replicas.hold(two, "sweep", "b", 60 * SECOND_NS)
    assert replicas.hold(two, "sweep", "a", 60 * SECOND_NS)
    assert held_by(two) == [("a", 1)]
    assert replicas.hold(two, "janitor", "b", 60 * SECOND_NS), "another one"


def test_who_looks_whether_another_one_has_a_lease_takes_none(two: Connection) -> None:
    def is_held(by_other_than: str, name: str = "sweep") -> bool:
        return replicas.is_held(two, name, by_other_than, 15 * SECOND_NS)

    assert not is_held("b")
    replicas.hold(two, "sweep", "a", 15 * SECOND_NS)
    assert (is_held("b"), is_held("a"), is_held("b", "janitor")) == (True, False, False)
    two.execute(update(schema.leases).values(until_ns=schema.leases.c.until_ns + 600 * SECOND_NS))
    assert not is_held("b"), "the database's clock was set back"
    replicas.hold(two, "sweep", "a", -1)
    assert not is_held("b"), "it is over"
    assert len(held_by(two)) == 1


def test_who_comes_back_when_his_lease_is_over_and_taken_has_it_no_more(two: Connection) -> None:
    assert replicas.hold(two, "sweep", "a", -1)
    assert replicas.hold(two, "sweep", "b", 60 * SECOND_NS)
    assert not replicas.hold(two, "sweep", "a", 60 * SECOND_NS)
    assert held_by(two) == [("b", 2)]


def test_who_ends_lets_go_what_he_has_and_nothing_else(two: Connection) -> None:
    replicas.hold(two, "sweep", "a", 60 * SECOND_NS)
    replicas.hold(two, "janitor", "b", 60 * SECOND_NS)
    replicas.release(two, "janitor", "a")  # is not its own
    replicas.let_go(two, "a")
    assert replicas.hold(two, "sweep", "b", 60 * SECOND_NS)
    assert not replicas.hold(two, "janitor", "a", 60 * SECOND_NS)


def test_a_lease_of_before_the_database_s_clock_was_set_back_holds_nobody_up(two: Connection) -> None:
    assert replicas.hold(two, "sweep", "killed", 15 * SECOND_NS)
    two.execute(update(schema.leases).values(until_ns=schema.leases.c.until_ns + 600 * SECOND_NS))
    assert replicas.hold(two, "sweep", "b", 15 * SECOND_NS)
    assert held_by(two) == [("b", 2)]
