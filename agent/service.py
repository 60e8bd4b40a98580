"""The agent as a daemon: attaches capture, runs its parts until told to stop, and talks to the config server and the service manager.

What it is to protect say its configuration and the config server (`desired`). A wish that changes that ends the session, and the next one
is fitted to it; one that stops protection detaches capture, and the agent waits (`idle`) for the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import Final

from agent import lock
from agent.attachment import Kept, running
from agent.capture import bindings, pins
from agent.capture.attach import check_machine
from agent.capture.available import Available
from agent.capture.bindings import BindingsFile, Bound
from agent.capture.look import as_captured
from agent.capture.watch import RETRY_S
from agent.config import AgentConfig
from agent.desired import Goal, WishFile, applied
from agent.idle import FAILED, NOTHING_NAMED, STOPPED, Idle
from agent.idle import serve as serve_idle
from agent.machine_identity import boot_of, identity_of
from agent.pipeline import Agent
from agent.status import STATE_NAMES, Rates, report, to_protect, with_wish
from agent.telling import tell_why
from shared import crashpoints
from shared.control.control_client import ControlClient
from shared.daemon import logging
from shared.daemon.service import notify, watchdog_interval_s
from shared.daemon.threads import in_thread
from shared.desired import WantedDisk
from shared.errors import (
    BindingDamagedError,
    DetachError,
    DeviceError,
    HostNoteError,
    NoThreadError,
    NoUsableDiskError,
    StateFileError,
    UnderstudyError,
)
from shared.host import durable, mounts, protected
from shared.status import BoundDisk, Problem
from shared.trust import identity
from shared.trust.pointer import Whereabouts
from shared.vocabulary import Role, Severity

_log = logging.get()

NOTE_S: Final = 10.0
"""How often the note for other programs of this host is tried again."""


async def run(config: AgentConfig, stop: asyncio.Event) -> None:
    """The daemon. SIGTERM ends it and leaves capture attached: only `detach` and a wish remove that."""
    check_machine()
    identity.check_name(config.tls, f"{Role.AGENT}:{config.machine}")
    pins.ensure_bpffs(config.pin_dir)
    with lock.held(config.state_dir, "The agent was not started", config.pin_dir):
        wishes = WishFile(config.state_dir, config.machine, identity_of(config.identity))
        kept, available = Kept(), Available(config.state_dir)
        is_read = False
        try:
            note = config.tls.cert.with_name(mounts.NOTE)
            await in_thread(lambda: mounts.check(config.state_dir, note, "The agent was not started"))
            await in_thread(lambda: _load(wishes, config))
            is_read = True
            heard = wishes.wish
            while not stop.is_set():
                if wishes.wish != heard:
                    heard = wishes.wish
                    available.look_soon()
                await _go_by(wishes, config, kept, available, stop)
        except (UnderstudyError, ExceptionGroup) as exc:  # a group: of a part that ran beside others
            bound = await _to_protect(wishes, config, kept) if is_read else None
            for error in _known(exc):
                await tell_why(config, error, boot_of(kept.attached_boot_ns), wishes, available, bound)
            raise
        finally:
            await wishes.close()
            if kept.file is not None:
                kept.file.close()  # before the lock is let go of


@dataclass(frozen=True)
class _Wanted:
    """What is to be brought about just now, and who says when it is something else."""

    goal: Goal
    wishes: WishFile
    config: AgentConfig
    """As it is without a wish."""
    available: Available


async def _go_by(
    wishes: WishFile, config: AgentConfig, kept: Kept, available: Available, stop: asyncio.Event
) -> None:
    """One session, or one time of waiting, by what is wanted now. Returns soon after `stop` is set, when something else is wanted, or when
    capture does not fit the disks any more and has to begin anew."""
    held, goal = wishes.held, wishes.goal(config)
    until_s = None
    if goal.is_stopped:
        trouble = await in_thread(_end_capture, config, kept)
        available.are_captured(())
        idle = Idle(STOPPED, errors=tuple(Problem(**error.as_dict()) for error in trouble))
        # What somebody else holds open has no pins any more: another try would find nothing to do, and nothing to say.
        until_s = RETRY_S if any(not isinstance(error, DetachError) for error in trouble) else None
    elif disks := await in_thread(_disks, goal, config, kept, wishes.damage is not None):
        fitted = applied(config, goal, disks, wishes.point_interval_s(config))
        try:
            async with running(fitted, kept) as agent:
                kept.idle = None
                kept.goes_by(agent.boot)
                available.are_captured(agent.capture.disks)
                await _serve(agent, stop, _Wanted(goal, wishes, config, available), kept.boot_before)
                kept.take(agent)
            return
        except (NoUsableDiskError, ValueError, OSError, RuntimeError) as exc:
            # What a file says is corrected on this machine, and who did that starts the agent; a wish is corrected from afar, and heard.
            if wishes.wish is None:
                raise
            error = exc if isinstance(exc, NoUsableDiskError) else _not_fitted(exc)
            if error is not exc:
                _log.error("capture could not be fitted to what is wanted: this is a bug", exc_info=exc)
            problem = Problem(**error.as_dict(), severity=Severity.CRITICAL)
            bound = await _to_protect(wishes, config, kept)
            idle = Idle(str(error), FAILED, (problem,), tuple(bound or ()))
            until_s = RETRY_S
    else:
        idle = Idle(str(wishes.damage) if wishes.damage else NOTHING_NAMED)
    if idle != kept.idle:
        _log.info("nothing is protected", state=idle.state, cause=idle.cause)
        kept.idle = idle
    kept.goes_by(boot_of(kept.attached_boot_ns))
    boots = kept.boot, kept.boot_before
    await serve_idle(config, boots, idle, wishes, held, available, stop, until_s=until_s)


def _load(wishes: WishFile, config: AgentConfig) -> None:
    wishes.load(goes_on=pins.exist(config.pin_dir))
    if not wishes.is_there:
        wishes.begin(_unnamed(config))


def _unnamed(config: AgentConfig) -> list[str]:
    """Disks that are captured, and not named by the configuration."""
    if not pins.exist(config.pin_dir):
        return []
    lines: list[Bound] = []
    with contextlib.suppress(
        BindingDamagedError, StateFileError
    ):  # who protects says so; what is pinned says enough
        lines = bindings.read(config.state_dir) or []
    ids = {disk.id for disk in config.protected} - {None}
    devices = {os.path.realpath(disk.device) for disk in config.protected}
    return [
        disk.device
        for disk in as_captured(config.pin_dir, lines)
        if disk.id not in ids and os.path.realpath(disk.device) not in devices
    ]


def _disks(goal: Goal, config: AgentConfig, kept: Kept, is_unknown: bool) -> tuple[WantedDisk, ...]:
    """Those that are wanted; where nobody names any, those that are captured; where it `is_unknown` what is wanted, also those of the
    configuration."""
    if goal.disks:
        return goal.disks
    found: tuple[WantedDisk, ...] = ()
    if pins.exist(config.pin_dir):
        file = kept.file or BindingsFile(config.state_dir)
        found = as_captured(config.pin_dir, file.read() or [])
    if is_unknown:
        devices, ids = {disk.device for disk in found}, {disk.id for disk in found} - {None}
        found += tuple(disk for disk in config.protected if disk.device not in devices and disk.id not in ids)
    return found


async def _to_protect(wishes: WishFile, config: AgentConfig, kept: Kept) -> list[BoundDisk] | None:
    """What an agent that captures nothing is to protect; None: that cannot be found out, nor by which ids it knows it, so nothing is said
    of it (a path alone would be taken for another disk than its id)."""
    goal = wishes.goal(config)

    def found() -> list[BoundDisk]:
        if goal.is_stopped:
            return []
        lines = (kept.file or BindingsFile(config.state_dir)).read() or []
        return to_protect(_disks(goal, config, kept, wishes.damage is not None), lines)

    try:
        return await in_thread(found)
    except (UnderstudyError, OSError) as exc:
        _log.warning("which disks are to be protected is not known, and not told", cause=str(exc))
        return None


def _not_fitted(exc: Exception) -> NoUsableDiskError:
    """An operator must be heard whatever happens to what was wanted last."""
    return NoUsableDiskError(
        "Capture could not be fitted to what the config server wants",
        cause=repr(exc),
        action="Name other disks: understudy machine protect. It is tried again by itself; the agent's log says more.",
    )


def _end_capture(config: AgentConfig, kept: Kept) -> list[UnderstudyError]:
    """Leaves nothing in the kernel, whatever was begun before; returns what could not be done. To be called until there is nothing. A later
    wish to protect begins as a first one: what happens meanwhile is not known, and everything is copied."""
    kept.forget()
    failed: list[UnderstudyError] = []
    crashpoints.reach("wish.before-detach")
    try:
        with durable.named(
            "Capture could not be detached", DeviceError, action="It is tried again by itself."
        ):
            pins.detach(config.pin_dir)
        crashpoints.reach("wish.after-detach")
        with durable.named("The note of the protected disks could not be removed", HostNoteError):
            protected.forget(config.pin_dir)
        crashpoints.reach("wish.after-forget")
    except UnderstudyError as exc:
        _log.error("protection could not be ended wholly", **exc.as_dict())
        failed.append(exc)
    return failed


async def _serve(agent: Agent, stop: asyncio.Event, wanted: _Wanted, boot_before: str = "") -> None:
    """Returns soon after `stop` is set, when something else is wanted, or when capture does not fit the disks any more and has to begin
    anew."""
    config = agent.config
    rates = Rates()
    agent.revoked.load()
    where = agent.sender.where = Whereabouts(config.control_url, config.tls.cert, config.tls.ca)
    where.load()
    control = ControlClient(
        config.control_url,
        config.tls,
        on_renewed=agent.present,
        on_revoked=agent.revoked.take,
        on_desired=wanted.wishes.take,
        machine=(agent.identity, agent.boot),
        where=where,
    )
    over = asyncio.Event()
    notify("READY=1")
    try:
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(agent.continuity.run(), name="audit"),
                group.create_task(agent.place_points(), name="points"),
                group.create_task(_watchdog(agent), name="watchdog"),
                group.create_task(_keep_note(agent), name="note"),
                group.create_task(_follow(wanted, agent, over), name="wish"),
                *(
                    group.create_task(_set_with(over, event), name="end")
                    for event in (stop, agent.continuity.resized)
                ),
            ]
            group.create_task(
                control.serve(
                    lambda: with_wish(report(agent, rates, boot_before), wanted.wishes, wanted.available),
                    agent.handle,
                    over,
                ),
                name="control",
            )
            await agent.sender.run(over)
            for task in beside:
                task.cancel()
    finally:
        await control.close()


def _known(exc: Exception) -> list[UnderstudyError]:
    """The first error that a person can do something about."""
    if isinstance(exc, ExceptionGroup):
        return [error for inner in exc.exceptions for error in _known(inner)][:1]
    return [exc] if isinstance(exc, UnderstudyError) else []


async def _follow(wanted: _Wanted, agent: Agent, over: asyncio.Event) -> None:
    """Settings take effect within the session; when another goal holds it is over. (Who has the stream may have it in the next one, too:
    `servers`.)"""

    def is_another() -> bool:
        agent.point_every(wanted.wishes.point_interval_s(wanted.config))
        return wanted.wishes.goal(wanted.config) != wanted.goal

    await wanted.wishes.until(is_another)
    _log.info("something else is wanted: the session ends")
    over.set()


async def _set_with(over: asyncio.Event, cause: asyncio.Event) -> None:
    await cause.wait()
    over.set()


async def _keep_note(agent: Agent) -> None:
    """A thread is asked for only while there is something to write: there may be no room for one."""
    note = agent.note
    while True:
        try:
            if note.is_due:
                await in_thread(note.keep)
        except NoThreadError as exc:
            note.failed(exc.cause)
        await asyncio.sleep(NOTE_S)


async def _watchdog(agent: Agent) -> None:
    """Tells the service manager that the pipeline moves, or rightly waits; what stands still is not told to be alive, and is restarted."""
    interval_s = watchdog_interval_s() or 10.0
    still = ""
    while True:
        now_still = agent.standstill()
        if now_still and not still:
            _log.error("the agent stands still", cause=now_still)
        still = now_still
        state = still or f"{STATE_NAMES[agent.stream.state].replace('-', ' ')}, batch {agent.sender.sent}"
        notify(f"STATUS={state}" if still else f"WATCHDOG=1\nSTATUS={state}")
        await asyncio.sleep(interval_s)
