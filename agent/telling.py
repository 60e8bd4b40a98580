"""The last words of an agent that ends because it must: the machine shows them when nobody is there to be asked any more."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec

from agent.capture.available import Available
from agent.config import AgentConfig
from agent.desired import WishFile
from agent.machine_identity import identity_of
from shared.control.control_client import ControlClient
from shared.daemon import logging
from shared.errors import CopyRefusedError, UnderstudyError
from shared.status import MAX_TEXT, AgentReport, AvailableDisk, BoundDisk, Problem
from shared.trust.pointer import Whereabouts
from shared.vocabulary import Severity

_log = logging.get()

_TELL_S: Final = 10.0
"""Longer than a boot that is gone is taken for the machine (config_server/operations/sides.py)."""
_TELL_AGAIN_S: Final = 1.0
_LOOK_S: Final = 5.0
"""So long is waited for disks that do not say who they are."""


async def tell_why(
    config: AgentConfig,
    error: UnderstudyError,
    boot: str,
    wishes: WishFile,
    available: Available,
    bound: list[BoundDisk] | None,
) -> None:
    """An agent that cannot start is not there to be asked: the machine shall show why all the same. It says who it is, or it is taken
    for a copy; while the one that ended a moment ago is still taken for the machine, it says it again. And it hears what is wanted
    of it: that may be what helps. So it says which disks there are: an operator may name others of them. And it says which it is to
    protect (`bound`): who is told what is wanted by somebody who does not know that would drop some. Where that is not known (None),
    nor perhaps what it went by, it hears nothing."""
    problem = Problem(**error.as_dict(), severity=Severity.CRITICAL)
    last = AgentReport(
        machine=config.machine,
        identity=identity_of(config.identity),
        boot=boot,
        state="failed",
        cause=str(error)[:MAX_TEXT],
        errors=[problem, *wishes.problems],
        wish=wishes.wish,
        bound=bound or [],
        available=await _disks(available),
    )
    try:
        hears = wishes.take if bound is not None else None
        where = Whereabouts(config.control_url, config.tls.cert, config.tls.ca)
        where.load()
        control = ControlClient(config.control_url, config.tls, on_desired=hears, where=where)
        try:
            async with asyncio.timeout(_TELL_S):
                while not await _taken(control, last):  # noqa: ASYNC110 - another process decides
                    await asyncio.sleep(_TELL_AGAIN_S)
                await wishes.written()
        finally:
            await control.close()
    except (UnderstudyError, TimeoutError) as exc:
        _log.warning("the config server could not be told why", cause=str(exc) or "no answer in time")


async def _disks(available: Available) -> list[AvailableDisk]:
    """As of the last look; an agent that has not taken one takes it."""
    available.look_if_due()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LOOK_S):
            while not available.found and available.trouble is None:  # noqa: ASYNC110 - a thread looks
                await asyncio.sleep(_LOOK_S / 50)
    return available.found


async def _taken(control: ControlClient, last: AgentReport) -> bool:
    try:
        await control.report(msgspec.to_builtins(last))
    except CopyRefusedError:
        return False
    return True
