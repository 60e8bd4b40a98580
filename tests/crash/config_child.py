"""The process that the crash tests kill: a config server, and an operator's one call to it."""

from __future__ import annotations

import asyncio
import enum

import msgspec

from config_server.config import ConfigServerConfig
from config_server.operations import restore_job
from shared import api, crashpoints
from shared.api.certificates import RevokeRequest
from shared.api.jobs import JobState, StepState
from shared.api.protection import Protection
from shared.api.restores import GrantEnd, RestoreRequest
from shared.api.route import Limit, Nothing
from tests.config_parts import running, until

REQUEST = "0123456789abcdef" * 2


class Call(enum.Enum):
    GIVE = "give"
    RENEW = "renew"
    END = "end"
    NOTHING = "nothing"
    """What the server does by itself at its start."""
    REVOKE = "revoke"
    CANCEL = "cancel"
    """A restore, whose command says nothing."""


class Work(msgspec.Struct, frozen=True):
    config: ConfigServerConfig
    call: Call
    crash_at: str = ""
    """Empty: run to the end."""


def run(work: Work) -> None:
    asyncio.run(asyncio.wait_for(_run(work), 60))


async def _run(work: Work) -> None:
    if work.crash_at and work.call is Call.NOTHING:
        crashpoints.arm(work.crash_at)
    async with running(work.config) as server, server.operator() as client:
        body = Protection(disks=["/dev/loop0"], offline=True)
        protected = await client.call(api.PROTECT, body, machine="web1")

        async def waits() -> bool:
            """For an agent that never comes; so it is looked at no more meanwhile."""
            return (await client.call(api.JOB, Nothing(), id=protected.job)).state is JobState.WAITING

        if work.call is Call.CANCEL:
            await until(waits)
        if work.call in (Call.RENEW, Call.END):
            await client.call(api.RESTORE, RestoreRequest(dry_run=True), machine="web1")
        if work.crash_at:
            crashpoints.arm(work.crash_at)
        match work.call:
            case Call.GIVE:
                await client.call(api.RESTORE, RestoreRequest(dry_run=True, request=REQUEST), machine="web1")
            case Call.RENEW | Call.END:
                [grant] = (await client.call(api.GRANTS, Limit(), machine="web1")).grants
                if work.call is Call.RENEW:
                    await client.call(api.GRANT_RENEW, Nothing(), machine="web1", id=grant.id)
                else:
                    await client.call(api.GRANT_END, GrantEnd(), machine="web1", id=grant.id)
            case Call.REVOKE:
                await client.call(api.CERTIFICATE_REVOKE, RevokeRequest(certificate="agent:web1"))
            case Call.CANCEL:
                vars(restore_job)["HEARS_S"] = -1.0  # nobody waits for its command
                begun = await client.call(
                    api.RESTORE, RestoreRequest(to="/x", request=REQUEST), machine="web1"
                )

                async def is_watched() -> bool:
                    steps = (await client.call(api.JOB, Nothing(), id=begun.job)).steps
                    return steps[0].state is StepState.DONE

                await until(is_watched)
                await client.call(api.JOB_CANCEL, Nothing(), id=begun.job)
                await asyncio.Event().wait()
            case Call.NOTHING:
                await asyncio.Event().wait()
