"""What becomes of other config servers' words here, and of this one's while the database does not take them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from config_server.operations.replicas import Replicas, Said, stored
from config_server.rules.ca_renewal import Has
from config_server.rules.clock import SECOND_NS
from config_server.rules.presence import Presence
from config_server.rules.wishes import Untaken
from config_server.store import replicas
from config_server.store.commands import Bell
from config_server.store.inventory import StoredReport
from config_server.store.replicas import News, Other
from shared.errors import DatabaseError, DataFolderInUseError
from shared.status import Problem
from shared.vocabulary import Role


class Site:
    """A server whose database says what a test gives it."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.set_s = 0.0
        """How much the database's clock was set forward."""
        self.batch = 0
        self.away = False
        self.meanwhile: Callable[[], None] = lambda: None
        """While the database is asked, and is away."""
        self.is_known = True
        self.written: list[tuple[list[StoredReport], list[str]]] = []
        self.revocations = 0
        self.asked_anew: list[str | None] = []
        self.reports: list[StoredReport] = []
        self.rung: list[str] = []
        self.said = Said()
        self.known_as = "other"
        self.name = "cs2"
        self.beat_ns = 0
        self.rows: dict[str, Other] = {}
        """Of those that wrote last, and before; a server that begins has another one."""
        control: Any = SimpleNamespace(
            db=SimpleNamespace(run=self.run),
            presence=Presence(),
            untaken=Untaken(15.0),
            bell=Bell(),
            hindered={},
            storage=SimpleNamespace(forget=lambda _name: None),
            mono_ns=lambda: int(self.now_s * SECOND_NS),
            now_ns=lambda: 0,
            its_problems=list,
            has=Has(),
            others=None,
        )
        sides: Any = SimpleNamespace(
            problems=list, ask_anew=lambda name=None: self.asked_anew.append(name), forget=lambda _name: None
        )
        self.control = control
        self.here = Replicas(control, sides, "cs1", take_revocations=self.take)

    async def take(self) -> None:
        self.revocations += 1

    async def run(self, work: Callable[[Any], Any]) -> Any:
        if self.away:
            self.meanwhile()
            raise DatabaseError("away")
        return work(None)

    def hears(self, number: int, age_s: float = 0.0) -> None:
        """The other server, and writes it down."""
        raw = msgspec.json.encode({"start": "s", "number": number, "state": "ordered"})
        self.reports.append(
            StoredReport(Role.AGENT, "web1", 0, raw, "ordered", "s", number, int(age_s * SECOND_NS))
        )
        self.batch += 1

    async def look(self) -> None:
        clock_ns = int((self.now_s + self.set_s) * SECOND_NS)
        said = msgspec.json.encode(self.said).decode()
        other = Other(
            id=self.known_as,
            name=self.name,
            batch=self.batch,
            said=said,
            reports=tuple(self.reports),
            beat_ns=self.beat_ns,
            rung=tuple(self.rung),
        )
        self.reports, self.rung = [], []
        self.rows[other.id] = other
        self.news = News(clock_ns=clock_ns, others=tuple(self.rows.values()))
        await self.here.look()

    def missing(self) -> set[str]:
        now_ns = self.control.mono_ns()
        return {seen.name for seen in self.control.presence.all() if seen.is_missing(now_ns)}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site()
    monkeypatch.setattr(replicas, "read", lambda *_: made.news)

    def write(_db: None, _id: str, _said: str, reports: list[StoredReport], rung: list[str]) -> int | None:
        made.written.append((reports, rung))
        return len(made.written) if made.is_known else None

    monkeypatch.setattr(replicas, "write", write)
    return made


async def beats(site: Site, seconds: int, *, other: bool = True, hears: bool = False) -> None:
    for _ in range(seconds):
        site.now_s += 1
        site.batch += other
        if other:
            site.beat_ns = int(site.now_s * SECOND_NS)
        if hears:
            site.hears(site.batch + 1)
        await site.look()


async def test_who_reports_to_the_other_server_alone_is_there(site: Site) -> None:
    await beats(site, 60, hears=True)
    assert site.missing() == set()
    [seen] = site.control.presence.all()
    assert (seen.by, seen.is_silent(site.control.mono_ns())) == ("other", False)
    await beats(site, 20)
    assert site.missing() == {"web1"}, "both servers are well, and nobody hears it"


async def test_whom_a_server_heard_that_is_gone_has_time_to_come_here(site: Site) -> None:
    await beats(site, 5, hears=True)
    await beats(site, 60, other=False)
    assert site.missing() == set()
    await beats(site, 15, other=False)
    assert site.missing() == {"web1"}


async def test_when_another_server_is_gone_all_that_it_may_have_rung_is_looked_for_once(site: Site) -> None:
    await beats(site, 5)
    waits = site.control.bell.listen("agent:web1")
    assert (site.revocations, site.asked_anew) == (0, [])
    await beats(site, 30, other=False)
    assert waits.is_set()
    assert (site.revocations, site.asked_anew) == (1, [None])


async def test_who_cannot_read_for_long_calls_nobody_silent_and_looks_for_all_that_was_rung(
    site: Site,
) -> None:
    await beats(site, 5, hears=True)
    waits = site.control.bell.listen("agent:web1")
    site.now_s += 40
    site.batch += 40
    site.hears(site.batch, age_s=30)
    await site.look()
    assert site.missing() == set()
    assert waits.is_set() and site.revocations == 1
    await beats(site, 16)
    assert site.missing() == {"web1"}


@pytest.mark.parametrize("set_s", [3600.0, -3600.0])
async def test_that_the_clock_of_the_database_was_set_is_nobody_s_silence(site: Site, set_s: float) -> None:
    await beats(site, 5, hears=True)
    site.set_s = set_s
    site.now_s += 1
    site.hears(50, age_s=max(0.0, 1 + set_s))  # written before it was set
    await site.look()
    [seen] = site.control.presence.all()
    assert seen.age_s(site.control.mono_ns()) <= 1
    assert site.missing() == set()


async def test_who_was_revoked_is_known_before_held_answers_go_out(site: Site) -> None:
    order = []
    await site.look()
    site.here._take_revocations = lambda: site.take()
    site.control.bell.ring_here = lambda name: order.append((name, site.revocations))
    site.rung = ["agent:web1", "revocations", "side:web2"]
    await beats(site, 1)
    assert ("agent:web1", 1) in order
    assert site.asked_anew == ["web2"]


async def test_what_the_database_did_not_take_is_written_the_next_time_and_the_later_of_it(
    site: Site,
) -> None:
    raw = msgspec.json.encode({"start": "s", "number": 1})
    presence = site.control.presence
    site.here.tell(presence.learn(Role.AGENT, "web1", raw, 0, site.control.mono_ns()))
    site.here.ring("x")
    later = msgspec.json.encode({"start": "s", "number": 2})
    site.meanwhile = lambda: site.here.tell(
        presence.learn(Role.AGENT, "web1", later, 0, site.control.mono_ns())
    )
    site.away = True
    with pytest.raises(DatabaseError):
        await site.here.write()
    site.away = False
    await site.here.write()
    await site.here.write()
    assert [([one.number for one in reports], rung) for reports, rung in site.written] == [
        ([2], ["x"]),
        ([], []),
    ]


async def test_a_server_that_is_not_known_any_more_ends(site: Site) -> None:
    site.is_known = False
    with pytest.raises(DataFolderInUseError, match="gives up"):
        await site.here.write()


async def test_what_is_wrong_with_another_server_counts_while_it_lives(site: Site) -> None:
    problem = Problem(code="US545", what="its disk is full", object="config-server")
    site.said = Said(own=(problem,))
    await beats(site, 1)
    assert site.here.problems() == [problem]
    await beats(site, 20, other=False)
    [gone] = site.here.problems()
    assert (gone.code, gone.what) == ("US660", "Config server cs2 does nothing any more")


async def test_who_stood_still_itself_calls_no_other_server_gone(site: Site) -> None:
    """Both did, maybe: their hosts were suspended, or the database was away."""
    await beats(site, 3)
    site.now_s += 40
    assert site.here.problems() == [], "it has not looked yet"
    await site.look()
    assert site.here.problems() == [], "nor could the other one write"
    await beats(site, 10, other=False)
    assert site.here.problems() == []
    await beats(site, 10, other=False)
    assert [problem.code for problem in site.here.problems()] == ["US660"]


async def test_a_server_that_was_killed_and_begins_again_within_seconds_is_never_gone(site: Site) -> None:
    await beats(site, 3)
    for _ in range(10):
        await beats(site, 1, other=False)
        assert site.here.problems() == []
    site.known_as = "anew"
    for _ in range(30):
        await beats(site, 1)
        assert site.here.problems() == []


async def test_a_server_that_said_that_it_ends_is_no_problem_and_nothing_is_looked_for(site: Site) -> None:
    await beats(site, 3, hears=True)
    site.said = Said(left=True)
    await beats(site, 1)
    await beats(site, 30, other=False)
    assert (site.here.problems(), site.revocations, site.missing()) == ([], 0, set())


async def test_another_server_of_the_same_name_is_said_and_a_former_start_of_this_one_is_none(
    site: Site,
) -> None:
    site.name = "cs1"
    await beats(site, 1)
    await beats(site, 20, other=False)
    assert site.here.problems() == [], "it was killed before this one began"
    site.known_as = "another"
    await beats(site, 2)
    [problem] = site.here.problems()
    assert (problem.code, problem.key) == ("US661", "cs1")
    site.said = Said(left=True)
    await beats(site, 1)
    assert site.here.problems() == []


async def test_a_former_start_of_a_server_has_nothing_of_the_ca_that_would_be_waited_for(site: Site) -> None:
    """Its row is there for ten minutes; who begins meanwhile cannot tell by its number whether it lives."""

    async def have() -> list[str]:
        return [server.id for server in await site.here.have()]

    site.known_as = "killed"
    await beats(site, 1)
    site.known_as, site.name = "former", "cs1"
    await beats(site, 1)
    assert await have() == ["killed"], "nobody of its name is known yet"
    site.known_as, site.name = "anew", "cs2"
    await beats(site, 1)
    assert await have() == ["anew"]
    await beats(site, 20, other=False)
    assert await have() == []


async def test_those_that_write_are_there_whatever_the_databases_clock_says(site: Site) -> None:
    assert site.here.there() == [site.here.id]
    await beats(site, 2)
    site.set_s = 3600.0
    await beats(site, 1)
    assert site.here.there() == [site.here.id, "other"]
    await beats(site, 20, other=False)
    assert site.here.there() == [site.here.id]


async def test_a_server_that_was_killed_and_has_begun_anew_is_no_problem(site: Site) -> None:
    await beats(site, 3)
    await beats(site, 20, other=False)
    assert len(site.here.problems()) == 1
    site.known_as = "anew"
    await beats(site, 1)
    assert site.here.problems() == []


@pytest.mark.parametrize("ids", [("a", "b", "c"), ("c", "b", "a")])
async def test_of_several_starts_of_a_server_the_last_one_counts(site: Site, ids: tuple[str, ...]) -> None:
    """Rows of those that were killed stay for ten minutes."""
    site.known_as, *later = ids
    await beats(site, 3)  # then it is killed
    site.known_as = later[0]
    await beats(site, 20)
    site.said = Said(left=True)
    await beats(site, 1)
    await beats(site, 30, other=False)
    assert site.here.problems() == [], "it ended as it should, for an upgrade"
    site.known_as, site.said = later[1], Said()
    await beats(site, 3)
    assert site.here.problems() == []
    await beats(site, 20, other=False)
    assert [problem.code for problem in site.here.problems()] == ["US660"]
    anew = Replicas(site.control, site.here._sides, "cs1", take_revocations=site.take)
    await anew.look()
    site.now_s += 1
    for _ in range(20):
        site.now_s += 1
        await anew.look()
    assert [problem.code for problem in anew.problems()] == ["US660"], "also for who begins behind that"


async def test_a_daemon_that_takes_part_no_more_is_forgotten_here_too(site: Site) -> None:
    await beats(site, 2, hears=True)
    site.reports = [StoredReport(Role.AGENT, "web1", 0, b"")]
    await beats(site, 1)
    assert site.control.presence.all() == []


async def test_one_that_has_come_since_another_of_its_name_was_deleted_stays(site: Site) -> None:
    await beats(site, 2, hears=True)
    site.reports = [StoredReport(Role.AGENT, "web1", 0, b"", age_ns=60 * SECOND_NS)]
    await beats(site, 1)
    assert len(site.control.presence.all()) == 1


async def test_a_report_is_judged_by_what_was_read_lately(site: Site) -> None:
    await beats(site, 1)
    site.hears(7)
    site.news = News(clock_ns=0, others=())
    site.now_s += 2
    await site.here.fresh()
    assert site.here._looked_ns == 1001 * SECOND_NS, "a look every second is fresh enough"
    site.now_s += 30
    await site.here.fresh()
    assert site.here._looked_ns == 1033 * SECOND_NS
    site.away = True
    site.now_s += 30
    await site.here.fresh()


def test_what_is_stored_of_a_report_is_all_but_results_of_commands() -> None:
    presence = Presence()
    raw = msgspec.json.encode(
        {"start": "s", "number": 3, "state": "ordered", "results": {"c1": {"batch": 1}}}
    )
    seen = presence.learn(Role.AGENT, "web1", raw, 5, 10 * SECOND_NS, address="192.0.2.1")
    found = stored(seen, 12 * SECOND_NS)
    assert (found.state, found.start, found.number, found.age_ns) == ("ordered", "s", 3, 2 * SECOND_NS)
    assert (found.address, found.told) == ("192.0.2.1", "")
    assert "c1" not in found.report.decode()


async def test_while_it_cannot_be_read_what_others_have_heard_nobody_is_called_silent(site: Site) -> None:
    """A table is locked for a minute, say: whom the other one hears all the while is not gone."""
    await beats(site, 3, hears=True)
    site.away = True
    for _ in range(60):
        site.now_s += 1
        with pytest.raises(DatabaseError):
            await site.here.look()
        assert site.missing() == set()
    site.away = False
    await beats(site, 3, hears=True)
    assert site.missing() == set()
