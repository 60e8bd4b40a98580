"""Acts are seen to by jobs, cancelled, and taken back at any time later, while databases are backed up, put back, set back unnoticed and
lost, and agents are away: as without that (test_wishes_model.py) no agent stops, or drops a disk, for an older act, nor a disk of which
nobody has said that it shall go; in the end all agree. Who cancels says so of what the act had added, and of nothing else."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from sqlalchemy import select, update

from config_server.operations import act_jobs
from config_server.rules import acts
from config_server.rules.clock import SECOND_NS
from config_server.rules.facts import Facts
from config_server.rules.lanes import Lane, Watch
from config_server.store import incarnations, inventory, journal
from config_server.store.schema import jobs
from shared.api.jobs import Direction, JobState
from shared.desired import Verb
from shared.errors import RequestError
from shared.status import AgentReport
from tests.marks import examples
from tests.property.test_wishes_model import ALL, AVAILABLE, DISKS, MACHINES, Site, Step, Violated, steps_of

WITH_JOBS = (*ALL, "cancel", "take back", "take back")


class SiteWithJobs(Site):
    def do(self, what: str, number: int) -> None:
        self.now_ns += SECOND_NS
        if what == "cancel":
            job = journal.in_lane(self.db, MACHINES[number % 2], Lane.LIFE)
            if job is not None:
                journal.cancel(self.db, job.id, "operator:o", self.now_ns)
        elif what == "take back":
            back = (jobs.c.state == JobState.RUNNING, jobs.c.direction == Direction.BACK)
            for id_ in self.db.scalars(select(jobs.c.id).where(*back)).all():
                self.take_back(journal.find(self.db, id_))
        else:
            super().do(what, number)

    def said_last(self, machine: str) -> AgentReport | None:
        known = self.agents.get(machine)
        return None if known is None else AgentReport(wish=known, available=AVAILABLE)

    def act(self, machine: str, disks: tuple[str, ...]) -> None:
        before = inventory.find(self.db, machine)
        super().act(machine, disks)
        at = act_jobs.Moment(
            "operator:o", self.now_ns, self.now_ns, Facts(None, None, None), self.said_last(machine)
        )
        kind = Watch.PROTECT if disks else Watch.UNPROTECT
        assert act_jobs.begin(self.db, kind, before, inventory.machine(self.db, machine), at)

    def take(self, job: journal.Job) -> bool:
        report = self.said_last(job.machine)
        is_heard = report is not None
        return act_jobs.take_back(self.db, job, report, self.now_ns, is_heard=is_heard) is True

    def take_back(self, job: journal.Job) -> None:
        act, machine = act_jobs.act_of(job), job.machine
        assert act is not None
        known = inventory.find(self.db, machine)
        before = known.wish if known is not None else None
        is_of_before = act.incarnation != incarnations.history(self.db)[-1]
        goes_by_it = machine in self.agents and self.agents[machine].mark.act == act.act
        try:
            is_done = self.take(job)
        except RequestError:
            return
        if is_done and is_of_before and goes_by_it:
            raise Violated(f"{act} was taken back, and may have been done before the database was put back")
        if is_done and (before is None or before.mark.act != act.act):
            raise Violated(f"{act} was taken back, though {before} was wanted since")
        if is_done and self.take(job):
            raise Violated(f"{act} was taken back twice")
        self.db.execute(update(jobs).where(jobs.c.id == job.id).values(state=JobState.CANCELLED))
        wish = inventory.machine(self.db, machine).wish
        if not is_done or wish is None:
            return
        self.acts += 1
        self.order.setdefault(wish.mark.act, self.acts)
        gone = {disk.device for disk in act.said.disks}
        if wish.verb is Verb.STOP:
            gone = {f"/dev/{disk}" for disk in DISKS[-1]}
        self.said |= {(machine, disk) for disk in gone}
        self.said -= {(machine, disk.device) for disk in wish.disks if wish.verb is Verb.PROTECT}


def run(steps: list[Step]) -> None:
    site = SiteWithJobs()
    for what, number in steps:
        site.do(what, number)
    site.settle()


ADDED: list[Step] = [
    ("act", 2), ("back up", 0), ("act", 8), ("report", 0), ("restore", 0), ("act", 6), ("report", 0), ("cancel", 0), ("take back", 0),
    ("report", 0),
]  # fmt: skip
"""Of three disks two were known to whoever acted behind the restore."""


LONG_DONE: list[Step] = [
    ("act", 0), ("report", 0), ("act", 2), ("report", 0), ("back up", 0), ("restore", 0), ("cancel", 0), ("take back", 0), ("report", 0),
]  # fmt: skip
"""As the backup has it, it had not ended."""


@settings(max_examples=examples(300), deadline=None)
@given(steps_of(WITH_JOBS))
@example(ADDED)
@example(LONG_DONE)
@example([("act", 2), ("act", 6), ("cancel", 0), ("act", 4), ("take back", 0), ("report", 0)])
def test_no_agent_stops_or_drops_a_disk_of_which_nobody_said_so_whatever_is_cancelled(
    steps: list[Step],
) -> None:
    run(steps)


def test_that_what_was_added_stays_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    run(ADDED)
    monkeypatch.setattr(acts, "without", lambda *_: ())
    with pytest.raises(Violated, match="sdc"):
        run(ADDED)


def test_that_an_act_from_before_is_looked_at_first_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    run(LONG_DONE)
    monkeypatch.setattr(act_jobs, "_is_of_before", lambda *_: False)
    with pytest.raises(Violated, match="may have been done before"):
        run(LONG_DONE)
