"""What tests of the jobs that see to operators' acts share."""

from __future__ import annotations

from typing import Any

import pytest

from config_server import background
from config_server.operations import act_jobs, protection_jobs, rebind_job
from shared import api
from shared.api.jobs import JobQuery, JobState, JobView, StepState
from shared.api.machines import MachineView
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.control.rest import RestClient
from tests.config_parts import until

ENDED = (JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.ABANDONED)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_BEAT_S", 0.05)
    look_each(monkeypatch, 0.05)


def look_each(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for module in (act_jobs, protection_jobs, rebind_job):
        for name in ("LOOK_S", "RARELY_S"):
            monkeypatch.setattr(module, name, seconds)


async def protect(operator: RestClient, *disks: str, machine: str = "web1", **more: Any) -> MachineView:
    body = Protection(disks=[f"/dev/{disk}" for disk in disks], **more)
    return await operator.call(api.PROTECT, body, machine=machine)


async def unprotect(operator: RestClient, machine: str = "web1") -> MachineView:
    return await operator.call(api.UNPROTECT, Nothing(), machine=machine)


async def shown(operator: RestClient, machine: str = "web1") -> MachineView:
    return await operator.call(api.MACHINE, Nothing(), machine=machine)


async def get(operator: RestClient, id_: str) -> JobView:
    return await operator.call(api.JOB, Nothing(), id=id_)


async def cancel(operator: RestClient, id_: str) -> JobView:
    return await operator.call(api.JOB_CANCEL, Nothing(), id=id_)


async def all_jobs(operator: RestClient, *, active: bool = False) -> list[JobView]:
    """The oldest first."""
    found = await operator.call(api.JOBS, JobQuery(machine="web1", active=active))
    return list(reversed(found.jobs))


async def becomes(operator: RestClient, id_: str, *states: JobState) -> JobView:
    async def is_so() -> bool:
        return (await get(operator, id_)).state in states

    await until(is_so)
    return await get(operator, id_)


async def waits_for(operator: RestClient, id_: str, words: str) -> JobView:
    async def is_so() -> bool:
        return words in (await get(operator, id_)).waits

    await until(is_so)
    return await get(operator, id_)


async def ended(operator: RestClient, id_: str) -> JobView:
    return await becomes(operator, id_, *ENDED)


def states(job: JobView) -> dict[str, StepState]:
    return {step.name: step.state for step in job.steps}
