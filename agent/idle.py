"""The agent while it protects nothing: it was told to stop, or nobody named a disk, or none of those that were named can be captured.

It reports, hears what is wanted, renews its certificate and keeps the service manager content. There is no capture, no stream, and nothing
that looks at anything but which disks the host has.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from agent.capture.available import Available
from agent.config import AgentConfig
from agent.desired import Held, WishFile
from agent.machine_identity import identity_of
from agent.status import with_wish
from shared.api.commands import Command, CommandKind
from shared.control.control_client import ControlClient
from shared.daemon.service import notify, watchdog_interval_s
from shared.errors import NothingProtectedError
from shared.status import MAX_TEXT, AgentReport, BoundDisk, Problem
from shared.trust.pointer import Whereabouts
from shared.trust.revocation import REVOKED_FILE, RevokedFile
from shared.vocabulary import MachineState

STOPPED: Final = "the config server told the agent to stop: nothing is captured"
NOTHING_NAMED: Final = "neither the config server nor the agent's configuration names a disk"
FAILED: Final = "failed"
STARTING: Final = "starting"


class Idle(msgspec.Struct, frozen=True):
    """Why nothing is protected."""

    cause: str
    state: str = MachineState.UNPROTECTED
    errors: tuple[Problem, ...] = ()
    bound: tuple[BoundDisk, ...] = ()
    """What is to be protected all the same."""


async def serve(
    config: AgentConfig,
    boots: tuple[str, str],
    idle: Idle,
    wishes: WishFile,
    held: Held,
    available: Available,
    stop: asyncio.Event,
    *,
    until_s: float | None = None,
) -> None:
    """Returns soon after `stop` is set, when another wish holds than `held`, or after `until_s`. `boots`: the one that is reported, and
    the one before."""
    over = asyncio.Event()
    revoked = RevokedFile(config.tls.cert.with_name(REVOKED_FILE), config.tls.ca, lambda _: None)
    revoked.load()
    where = Whereabouts(config.control_url, config.tls.cert, config.tls.ca)
    where.load()
    control = ControlClient(
        config.control_url,
        config.tls,
        on_renewed=lambda chain: revoked.trusted(chain.ca),
        on_revoked=revoked.take,
        on_desired=wishes.take,
        machine=(identity_of(config.identity), boots[0]),
        where=where,
    )

    def report() -> AgentReport:
        trouble = revoked.trouble.error
        made = AgentReport(
            machine=config.machine,
            identity=identity_of(config.identity),
            boot=boots[0],
            former=boots[1],
            state=_state(idle, wishes, held),
            cause=idle.cause[:MAX_TEXT],
            connected=False,
            bound=[*idle.bound],
            errors=[*idle.errors, *([Problem(**trouble.as_dict())] if trouble is not None else [])],
        )
        return with_wish(made, wishes, available)

    notify("READY=1")
    try:
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(_beat(idle), name="watchdog"),
                group.create_task(_end(over, stop, wishes, held, until_s), name="end"),
            ]
            await control.serve(report, _refuse, over)
            for task in beside:
                task.cancel()
    finally:
        await control.close()


def _state(idle: Idle, wishes: WishFile, held: Held) -> str:
    """When something else is wanted this is over in a moment, and is no answer to that."""
    return idle.state if wishes.held == held else STARTING


async def _end(
    over: asyncio.Event, stop: asyncio.Event, wishes: WishFile, held: Held, until_s: float | None
) -> None:
    waits = [
        asyncio.create_task(stop.wait(), name="stop"),
        asyncio.create_task(wishes.until(lambda: wishes.held != held), name="news"),
    ]
    try:
        await asyncio.wait(waits, timeout=until_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    over.set()


async def _refuse(command: Command) -> dict[str, Any]:
    if command.kind == CommandKind.CHECK_SIDE:
        return {}
    raise NothingProtectedError(
        f"The agent cannot do '{command.kind}'", cause="it protects no disk: there is no stream"
    )


async def _beat(idle: Idle) -> None:
    """Nothing here can stand still but the loop itself."""
    while True:
        notify(f"WATCHDOG=1\nSTATUS={idle.state}: {idle.cause}")
        await asyncio.sleep(watchdog_interval_s() or 10.0)
