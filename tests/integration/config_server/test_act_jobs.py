"""The jobs that see whether it comes true that a machine is protected, or is not: over the API, with an agent that obeys or does not."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from config_server.operations import protection_jobs, reporting
from config_server.store import incarnations, journal
from config_server.store.schema import jobs as rows
from shared import api
from shared.api.commands import CommandState
from shared.api.jobs import Direction, JobAct, JobState, StepState
from shared.api.machines import MachineView
from shared.api.route import Nothing, Page
from shared.control.rest import RestClient
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.errors import WishRefusedError
from shared.status import AgentDisk, BoundDisk, Problem
from shared.trust.tls import TlsFiles
from tests.act_jobs import (
    all_jobs,
    becomes,
    cancel,
    ended,
    get,
    hurry,
    look_each,
    protect,
    shown,
    states,
    unprotect,
    waits_for,
)
from tests.config_parts import ConfigServer, config_for, running
from tests.databases import opened
from tests.obedient_agent import SECTORS, ObedientAgent, obedient_agent

DONE, UNDONE = StepState.DONE, StepState.UNDONE
COPIES = [
    AgentDisk(name="sda", device="/dev/sda", sectors=SECTORS, mode="ordered"),
    AgentDisk(
        name="sdb", device="/dev/sdb", sectors=SECTORS, mode="ordered", state="initial-replication", progress=0.25
    ),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
async def web1(server: ConfigServer, files: TlsFiles) -> AsyncIterator[ObedientAgent]:
    """It has reported, and protects one disk by its configuration."""
    async with obedient_agent(server, files) as agent:
        await agent.report()
        yield agent


async def takes(agent: ObedientAgent, **fields: Any) -> None:
    """It hears what is wanted, and says that it goes by that."""
    await agent.report()
    await agent.report(**fields)


async def wish(operator: RestClient) -> Wish | None:
    seen = (await shown(operator)).wish
    return None if seen is None else Wish(
        mark=seen.mark, verb=seen.verb, disks=tuple(map(WantedDisk, seen.disks)), process_servers=tuple(seen.process_servers)
    )  # fmt: skip


# ---- what is waited for


async def test_it_is_done_when_its_agent_goes_by_the_act_and_all_disks_are_in_order(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.obeys = False
    said = await protect(operator, "sda", "sdb")
    waits = await waits_for(
        operator, said.job, "the agent of web1 to do so: it goes by its configuration alone"
    )
    assert (waits.kind, waits.machine, waits.who) == ("protect", "web1", "operator:admin")
    assert (waits.args["wants"], waits.args["instead_of"]) == (
        "protect /dev/sda, /dev/sdb",
        "its configuration alone",
    )
    assert states(waits) == {"set": DONE, "follow": StepState.BEGUN}, "the act itself is done"
    assert waits.allowed == [JobAct.CANCEL, JobAct.RETRY]
    web1.obeys = True
    await takes(web1)
    await waits_for(operator, said.job, "its agent to capture /dev/sdb")
    await web1.report(state="initial-replication", cause="it is copied", disks=COPIES)
    copies = await waits_for(operator, said.job, "web1 is initial-replication (it is copied)")
    assert copies.progress == 0.25
    await web1.report(disks=COPIES)
    await waits_for(operator, said.job, "web1 is not in order yet: /dev/sdb")
    web1.captured = ("sda", "sdb")
    await web1.report(epoch=3)
    done = await ended(operator, said.job)
    assert (done.state, done.result) == (JobState.DONE, {"epoch": 3, "point": None})
    assert states(done) == {"set": DONE, "follow": DONE, "copy": DONE}
    assert (await shown(operator)).job == "", "only who asked for it is answered so"


async def test_of_an_agent_that_is_not_heard_it_is_said_since_when_and_the_job_is_nobodys(
    tmp_path: Path, operator: RestClient, server: ConfigServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_each(monkeypatch, 3600.0)
    said = await protect(operator, "sda", offline=True)
    waits = await waits_for(operator, said.job, "the agent of web1, which has never reported")
    assert waits.state is JobState.WAITING
    with opened(server.config.data_dir / "state.db") as db:
        assert db.execute(select(rows.c.owner, rows.c.lease_ns)).one() == ("", 0)


async def test_an_agent_that_does_something_else_or_comes_back_wakes_the_job_that_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_each(monkeypatch, 3600.0)
    async with running(config_for(tmp_path)) as first, first.operator() as operator:
        files = await first.enrolled("agent", "web1", tmp_path / "agent")
        said = await protect(operator, "sda", offline=True)
        await waits_for(operator, said.job, "never reported")
        async with obedient_agent(first, files) as agent:
            agent.obeys = False
            await agent.report()
            await waits_for(operator, said.job, "to do so")
            agent.obeys = True
            await takes(agent, state="catching-up")
            await waits_for(operator, said.job, "web1 is catching-up")
    async with running(config_for(tmp_path)) as second, second.operator() as operator:
        await waits_for(operator, said.job, "the agent of web1, not heard since 20")
        async with obedient_agent(second, files) as again:
            again.wish = agent.wish
            await again.report(state="catching-up")
            await waits_for(operator, said.job, "web1 is catching-up")
            await again.report()
            assert (await ended(operator, said.job)).state is JobState.DONE


async def test_what_it_waits_for_goes_on_with_another_server(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as first, first.operator() as operator:
        files = await first.enrolled("agent", "web1", tmp_path / "agent")
        async with obedient_agent(first, files) as agent:
            await agent.report()
            agent.obeys = False
            said = await protect(operator, "sda")
            await waits_for(operator, said.job, "to do so")
    async with running(config_for(tmp_path)) as second, second.operator() as operator:
        await waits_for(operator, said.job, "the agent of web1, not heard since 20")
        async with obedient_agent(second, files) as agent:
            await takes(agent)
            assert (await ended(operator, said.job)).state is JobState.DONE


async def test_what_its_agent_refuses_is_said(operator: RestClient, web1: ObedientAgent) -> None:
    web1.obeys = False
    said = await protect(operator, "sda")
    why = WishRefusedError("What is wanted is not possible", cause="two disks have one id").as_dict()
    await web1.report(errors=[Problem(**why)])
    await waits_for(operator, said.job, "the agent of web1, which refuses it: two disks have one id")


async def test_it_ends_when_its_agent_has_stopped(operator: RestClient, web1: ObedientAgent) -> None:
    await protect(operator, "sda")
    await takes(web1)
    web1.obeys = False
    said = await unprotect(operator)
    waits = await waits_for(operator, said.job, "the agent of web1 to do so: it goes by protect /dev/sda")
    assert (waits.kind, waits.args["wants"]) == ("unprotect", "stop")
    web1.obeys = True
    await takes(web1)
    await waits_for(operator, said.job, "its agent, which captures /dev/sda")
    web1.captured = ()
    await web1.report(state="stopped")
    assert states(await ended(operator, said.job)) == {"set": DONE, "follow": DONE}


# ---- the same again, and something else


async def test_who_says_the_same_again_has_the_same_job_which_sees_to_the_later_act(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.obeys = False
    first = await protect(operator, "sda")
    await waits_for(operator, first.job, "to do so")
    again = await protect(operator, "sda")
    assert again.job == first.job
    assert first.wish is not None
    assert again.wish is not None
    assert first.wish.mark.number + 1 == again.wish.mark.number, "it is another act all the same"
    assert (await get(operator, first.job)).args["act"] == again.wish.mark.act
    web1.obeys = True
    await takes(web1)
    assert (await ended(operator, first.job)).state is JobState.DONE
    assert (await protect(operator, "sda")).job == "", "it is so already"
    assert len(await all_jobs(operator)) == 1


async def test_what_is_so_already_needs_no_job_and_what_is_not_in_order_does(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await ended(operator, (await taken(operator, web1, "sda")))
    await web1.report(state="bitmap")
    copies = await protect(operator, "sda")
    assert copies.job
    await takes(web1)
    await ended(operator, copies.job)
    moved = await protect(operator, "sda", process_servers=["ps2:9443"])
    assert moved.job not in ("", copies.job)
    stops = await unprotect(operator)
    web1.captured = ()
    await takes(web1, state="stopped")
    await ended(operator, stops.job)
    assert (await unprotect(operator)).job == ""


async def taken(operator: RestClient, agent: ObedientAgent, *disks: str) -> str:
    """The job of an act that its agent goes by."""
    job = (await protect(operator, *disks)).job
    await takes(agent)
    return job


async def test_something_else_takes_its_place_and_is_not_taken_back_with_it(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.obeys = False
    ids = [(await protect(operator, "sda")).job, (await protect(operator, "sda", "sdb")).job]
    ids += [(await unprotect(operator)).job, (await protect(operator, "sda")).job]
    last = (await shown(operator)).wish
    for gone, next_ in itertools.pairwise(ids):
        job = await ended(operator, gone)
        assert (job.state, job.cancelled_by, job.superseded_by) == (
            JobState.CANCELLED,
            "operator:admin",
            next_,
        )
        assert states(job)["set"] is UNDONE
    assert len({*ids}) == 4
    assert (await shown(operator)).wish == last
    web1.obeys = True
    await takes(web1)
    assert (await ended(operator, ids[-1])).state is JobState.DONE
    audited = [entry.action for entry in (await operator.call(api.AUDIT, Page())).entries]
    assert audited.count("machine.protect") + audited.count("machine.unprotect") == 4


async def test_to_end_protection_takes_the_place_of_a_resync_too(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.epoch = 1
    await ended(operator, await taken(operator, web1, "sda"))
    asked = await operator.call(api.RESYNC, Nothing(), machine="web1")
    said = await unprotect(operator)
    resync = await ended(operator, asked.id)
    assert (resync.state, resync.superseded_by) == (JobState.CANCELLED, said.job)
    command = await operator.call(api.COMMAND, Nothing(), id=asked.id)
    assert command.state is CommandState.WITHDRAWN


async def test_a_resync_that_copies_ends_with_the_protection_and_asks_nobody(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.epoch = 1
    await ended(operator, await taken(operator, web1, "sda"))
    asked = await operator.call(api.RESYNC, Nothing(), machine="web1")
    await web1.report(state="resync", epoch=2, results={asked.id: {}})
    await waits_for(operator, asked.id, "web1 is resync")
    await unprotect(operator)
    assert (await ended(operator, asked.id)).state is JobState.CANCELLED


# ---- cancelled


async def test_cancelled_what_was_wanted_before_is_said_again_as_another_act(
    operator: RestClient, web1: ObedientAgent
) -> None:
    first = await protect(operator, "sda", process_servers=["ps1:9443"])
    await takes(web1)
    await ended(operator, first.job)
    said = await protect(operator, "sda", "sdb", process_servers=["ps2:9443"])
    await takes(web1)
    await waits_for(operator, said.job, "to capture /dev/sdb")
    await cancel(operator, said.job)
    job = await ended(operator, said.job)
    assert (job.state, job.superseded_by) == (JobState.CANCELLED, "")
    assert states(job) == {"set": UNDONE, "follow": UNDONE, "copy": UNDONE}
    holds = await shown(operator)
    assert holds.wish is not None
    assert (holds.wish.disks, holds.wish.process_servers) == (["/dev/sda"], ["ps1:9443"])
    assert holds.wish.mark.number == 3
    await web1.report()
    assert web1.wish is not None
    assert ([disk.device for disk in web1.wish.disks], web1.wish.process_servers) == (
        ["/dev/sda"],
        ("ps1:9443",),
    )
    [entry] = (await operator.call(api.AUDIT, Page(limit=1))).entries
    assert (entry.who, entry.action, entry.detail["cancelled"]) == (
        "operator:admin",
        "machine.protect",
        said.job,
    )
    assert entry.detail["before"]["disks"] == ["/dev/sda", "/dev/sdb"]
    assert entry.detail["after"]["disks"] == ["/dev/sda"]


async def test_cancelled_an_end_of_protection_is_taken_back(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await ended(operator, await taken(operator, web1, "sda"))
    said = await unprotect(operator)
    await takes(web1)
    await waits_for(operator, said.job, "which captures /dev/sda")
    await cancel(operator, said.job)
    assert (await ended(operator, said.job)).state is JobState.CANCELLED
    await web1.report()
    assert web1.wish is not None
    assert (web1.wish.verb, [disk.device for disk in web1.wish.disks]) == (Verb.PROTECT, ["/dev/sda"])
    assert (await shown(operator)).protected


async def test_cancelled_a_machine_that_was_stopped_is_to_stop_again_and_its_disks_are_those_of_then(
    operator: RestClient, web1: ObedientAgent
) -> None:
    await taken(operator, web1, "sda")
    await unprotect(operator)
    await takes(web1)
    said = await protect(operator, "sda", "sdb")
    await cancel(operator, said.job)
    await ended(operator, said.job)
    holds = await wish(operator)
    assert holds is not None
    assert holds.verb is Verb.STOP
    found = await operator.call(api.DISKS, Nothing(), machine="web1")
    assert [disk.device for disk in found.disks if disk.until] == ["/dev/sda"]


@pytest.mark.parametrize("captured", [("sda",), ()])
async def test_cancelled_where_nothing_was_said_before_its_agent_does_what_it_did_by_itself(
    operator: RestClient, web1: ObedientAgent, captured: tuple[str, ...]
) -> None:
    web1.captured = captured
    await web1.report()
    said = await protect(operator, "sda", "sdb")
    await takes(web1)
    await cancel(operator, said.job)
    await ended(operator, said.job)
    await web1.report()
    holds = web1.wish
    assert holds is not None
    assert (holds.verb, holds.disks) == (Verb.PROTECT if captured else Verb.STOP, ())
    assert (await shown(operator)).protected == bool(captured)


async def test_cancelled_before_its_agent_ever_came_nothing_is_wanted_of_it(
    server: ConfigServer, operator: RestClient, files: TlsFiles
) -> None:
    said = await protect(operator, "sdb", offline=True)
    await cancel(operator, said.job)
    await ended(operator, said.job)
    async with obedient_agent(server, files) as agent:
        await agent.report()
        holds = await shown(operator)
        assert (holds.wish, holds.protected, agent.wish) == (None, False, None)
        found = await operator.call(api.DISKS, Nothing(), machine="web1")
        assert [disk.device for disk in found.disks if disk.wanted] == ["/dev/sda"]


async def test_cancelled_when_its_agent_came_behind_the_act_a_person_says_what_is_wanted_and_nothing_is_dropped(
    server: ConfigServer, operator: RestClient, files: TlsFiles
) -> None:
    said = await protect(operator, "sdb", offline=True)
    async with obedient_agent(server, files) as agent:
        await takes(agent, bound=[BoundDisk(id="sda", device="/dev/sda")])
        before = agent.wish
        await cancel(operator, said.job)
        stands = await becomes(operator, said.job, JobState.ATTENTION)
        assert "nobody knows what it did by itself" in (stands.error.cause if stands.error else "")
        await agent.report()
        assert agent.wish == before
        stops = await unprotect(operator)
        job = await ended(operator, said.job)
        assert (job.state, stops.job != said.job) == (JobState.CANCELLED, True)


async def test_cancelled_behind_a_backup_a_machine_that_is_protected_by_then_stays_so(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    await ended(operator, await taken(operator, web1, "sda"))
    said = await protect(operator, "sda", "sdb")
    await waits_for(operator, said.job, "to do so")
    with opened(server.config.data_dir / "state.db") as db:
        assert journal.hold_unended(db, "it was put back") == [said.job]
        incarnations.begin(db)
    web1.captured = ("sda", "sdb")
    await takes(web1)
    before = web1.wish
    await becomes(operator, said.job, JobState.ATTENTION)
    await cancel(operator, said.job)
    stands = await becomes(operator, said.job, JobState.ATTENTION)
    assert stands.error is not None
    assert "before the database was put back nobody knows" in stands.error.cause
    await web1.report()
    assert before is not None
    assert web1.wish is not None
    assert (web1.wish.mark.act, web1.wish.disks) == (before.mark.act, before.disks)
    assert (await shown(operator)).protected


def later_act(said: MachineView) -> Wish:
    """That this database does not know: it was set back."""
    assert said.wish is not None
    return Wish(mark=Mark(said.wish.mark.incarnation, 9, "2099-01-01T00:00:00.000000000Z-x"), verb=Verb.STOP)


async def test_cancelled_after_something_else_came_to_hold_nothing_is_said(
    operator: RestClient, web1: ObedientAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "_is_awaited", lambda *_: False)
    look_each(monkeypatch, 3600.0)
    web1.obeys = False
    said = await protect(operator, "sda")
    await waits_for(operator, said.job, "to do so")
    web1.wish = later_act(said)
    await web1.report()
    later = (await shown(operator)).wish
    assert later is not None
    assert later.verb is Verb.STOP
    await cancel(operator, said.job)
    await ended(operator, said.job)
    assert (await shown(operator)).wish == later


async def test_where_something_else_came_to_hold_it_fails_and_says_what(
    operator: RestClient, web1: ObedientAgent
) -> None:
    web1.obeys = False
    said = await protect(operator, "sda")
    await waits_for(operator, said.job, "to do so")
    web1.wish = later_act(said)
    await web1.report()
    failed = await ended(operator, said.job)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.error.cause) == ("US133", "what holds now is stop")
    holds = await wish(operator)
    assert holds is not None
    assert holds.mark.act == web1.wish.mark.act


async def test_said_again_before_a_cancel_is_undone_it_is_as_it_was_before_the_first(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    await ended(operator, await taken(operator, web1, "sda"))
    web1.obeys = False
    first = await protect(operator, "sda", "sdb")
    await waits_for(operator, first.job, "to do so")
    said = await cancelled_and_said(server, operator, first.job)
    assert said != first.job
    job = await ended(operator, first.job)
    assert (job.state, job.superseded_by) == (JobState.CANCELLED, "")
    holds = await wish(operator)
    assert holds is not None
    assert len(holds.disks) == 2, "what was said last"
    await cancel(operator, said)
    await ended(operator, said)
    holds = await wish(operator)
    assert holds is not None
    assert [disk.device for disk in holds.disks] == ["/dev/sda"]


async def cancelled_and_said(server: ConfigServer, operator: RestClient, id_: str) -> str:
    """A cancel that nobody undoes until the same was said again."""
    turned = {"direction": Direction.BACK, "cancelled_by": "operator:admin", "lease_ns": 1 << 62}
    with opened(server.config.data_dir / "state.db") as db:
        db.execute(rows.update().where(rows.c.id == id_).values(turned))
    said = await protect(operator, "sda", "sdb")
    with opened(server.config.data_dir / "state.db") as db:
        db.execute(rows.update().where(rows.c.id == id_).values(lease_ns=0))
    return said.job


# ---- a database that was put back, and deletion


@pytest.mark.parametrize("word", ["retry", "cancel", "said again"])
async def test_of_a_database_that_was_put_back_a_person_says_how_it_goes_on(
    tmp_path: Path, word: str
) -> None:
    async with running(config_for(tmp_path)) as first, first.operator() as operator:
        await protect(operator, "sda", offline=True)
        said = await protect(operator, "sda", "sdb", offline=True)
        await waits_for(operator, said.job, "never")
    with opened(tmp_path / "config-server" / "state.db") as db:
        assert said.job in journal.hold_unended(db, "the database was put back")
    async with running(config_for(tmp_path)) as second, second.operator() as operator:
        held = await becomes(operator, said.job, JobState.ATTENTION)
        assert held.waits == "the database was put back"
        if word == "retry":
            await operator.call(api.JOB_RETRY, Nothing(), id=said.job)
            goes_on = await waits_for(operator, said.job, "never reported")
            assert states(goes_on)["set"] is DONE, "it is looked at again, and not said again"
            holds = await wish(operator)
            assert holds is not None
            assert holds.mark.number == 2
        elif word == "cancel":
            await cancel(operator, said.job)
            await ended(operator, said.job)
            holds = await wish(operator)
            assert holds is not None
            assert [disk.device for disk in holds.disks] == ["/dev/sda"]
        else:
            again = await protect(operator, "sda", "sdb", offline=True)
            assert again.job not in ("", said.job), "one that stands still sees to nothing"
            job = await ended(operator, said.job)
            assert (job.state, job.superseded_by) == (JobState.CANCELLED, again.job)


def test_the_steps_are_those_of_its_version() -> None:
    kinds = protection_jobs.kinds(None, None)  # type: ignore[arg-type]
    found = {(kind.name, kind.version): kind.names for kind in kinds}
    assert found == {("protect", 1): ["set", "follow", "copy"], ("unprotect", 1): ["set", "follow"]}
