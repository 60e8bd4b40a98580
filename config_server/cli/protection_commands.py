"""`understudy machine protect|unprotect|disks`: what is wanted of a machine, and what could be."""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import click

from config_server.cli import versions
from config_server.cli.machine_pages import candidates_page, candidates_table, machine_page, minute
from config_server.cli.names import name_argument
from config_server.cli.options import COMMON, add_options, find_target
from config_server.cli.output import Progress, console, emit, going_on, plain, run, say
from shared.errors import (
    FewerDisksError,
    MachineNotFoundError,
    NeverReportedError,
    RequestError,
    SaidSinceError,
    ServerOutdatedError,
    UnderstudyError,
)

if TYPE_CHECKING:
    from shared.api.machines import MachineView
    from shared.api.protection import DiskCandidate, DiskCandidates, Protection
    from shared.control.rest import RestClient

_TAKEN_S: Final = 30.0
"""So long is waited for an agent that reports."""
_SILENT_S: Final = 15.0
"""One that has not reported for so long is not waited for."""
_LOOK_S: Final = 0.5
_COMES_S: Final = 15.0
"""So long is waited for the first report of an agent: who has just set it up names the machine at once."""
_T = TypeVar("_T")

no_wait = click.option("--no-wait", is_flag=True, help="Do not wait until its agent says that it does so.")


@click.command()
@name_argument
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="PATH|ID",
    help="One for each that shall be protected: by the path where it stands now, or by its stable id. Default: those that are wanted;"
    " where protection was ended, those that were until then; else all that its agent offers.",
)
@click.option(
    "--process-server",
    "process_servers",
    multiple=True,
    metavar="HOST:PORT",
    help="One for each, the one to be preferred first. Default: as it is, at first that of the agent's configuration.",
)
@click.option("--policy", default="", metavar="NAME", help="Assign it, too. Default: the policy that it has.")
@click.option("--offline", is_flag=True, help="Record it although the machine's agent has never reported.")
@click.option("--force", is_flag=True, help="Take disks, too, that its agent does not name.")
@click.option(
    "--yes",
    is_flag=True,
    help="Do not ask. Without a terminal it is needed where something would be asked: fewer disks than before, or all that there are.",
)
@no_wait
@add_options(*COMMON)
def protect(
    name: str,
    disks: tuple[str, ...],
    process_servers: tuple[str, ...],
    policy: str,
    *,
    offline: bool,
    force: bool,
    yes: bool,
    no_wait: bool,
) -> None:
    """Have a machine protected, all disks that are named and no others. Its agent is told at once, or when it comes.

    \b
    Example: understudy machine protect web1 --disk /dev/sda --disk /dev/sdb --policy gold
    """
    from shared.api.protection import Protection

    wanted = Protection(
        disks=list(disks),
        process_servers=list(process_servers),
        policy_name=policy,
        offline=offline,
        force=force,
        fewer=yes and bool(disks),  # who names none means to leave out none
    )
    found = run(_protect(name, wanted, yes=yes, wait=not no_wait))
    emit(found, lambda: machine_page(found))


@click.command()
@name_argument
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal it is needed.")
@no_wait
@add_options(*COMMON)
def unprotect(name: str, *, yes: bool, no_wait: bool) -> None:
    """Have a machine's agent stop: nothing of it is captured or sent any more, and it is not missed. Its points stay.

    \b
    Example: understudy machine unprotect web1
    """
    if not yes:
        if not sys.stdin.isatty():
            raise RequestError(
                f"The protection of '{name}' was not ended",
                cause="whether it is to end could not be asked: there is no terminal",
                action="Say it with --yes: its points stay, and there will be no new ones.",
            )
        click.confirm(
            f"Stop replicating '{name}'? Its points stay, and there will be no new ones.",
            abort=True,
            err=True,
        )
    found = run(_unprotect(name, wait=not no_wait))
    emit(found, lambda: machine_page(found))


@click.command("disks")
@name_argument
@add_options(*COMMON)
def disks_(name: str) -> None:
    """A machine's disks: which are protected, which could be, and why others cannot.

    \b
    Example: understudy machine disks web1
    """
    found = run(_disks(name))
    emit(found, lambda: candidates_page(found))


async def _protect(name: str, wanted: Protection, *, yes: bool, wait: bool) -> MachineView:
    """What is asked at a terminal is answered for what was shown there: what somebody else says meanwhile is shown, and asked anew."""
    from msgspec.structs import replace

    async with find_target().connect() as client:
        known: str | None = None
        """The act of which whoever is asked knows."""
        gone: list[str] | None = None
        while True:
            seen = await _seen(client, name)
            if known not in (None, _act(seen)):
                _ask_over(name, seen)
                gone = None if gone is None else []
            known, disks = _act(seen), wanted.disks
            if not disks:
                disks = await _chosen(client, name, yes=yes)
                seen = await _seen(client, name)
                if not yes and known != _act(seen) and sys.stdin.isatty():
                    continue
            # An older server is not sent what it does not know: only one that has named what would go.
            asked = replace(
                wanted,
                disks=disks,
                process_servers=wanted.process_servers or _servers(seen),
                gone=gone,
                over=known if gone is not None else None,
            )
            try:
                found = await _once_it_reports(name, functools.partial(_asked, client, name, asked))
                break
            except FewerDisksError as exc:
                if not sys.stdin.isatty():
                    raise
                _ask_whether_they_go(exc)
                if not exc.names:  # an older server
                    found = await _asked(client, name, replace(asked, fewer=True))
                    break
                gone = exc.names
            except SaidSinceError:
                if _act(await _seen(client, name)) == known:
                    raise
        return await _seen_to(client, found, wait=wait)


async def _seen_to(client: RestClient, said: MachineView, *, wait: bool) -> MachineView:
    """As it is when its agent goes by what was `said`, with the job that sees to it."""
    from msgspec.structs import replace

    found = replace(await wait_until_taken(client, said), job=said.job) if wait else said
    if said.job:
        say(job_of(said.job))
    return found


def job_of(id_: str) -> str:
    """In words. (An older server names none, nor does one where there is nothing to be done.)"""
    return f"Job {id_} sees to it: understudy job show {id_}"


def _act(seen: MachineView | None) -> str:
    return seen.wish.mark.act if seen is not None and seen.wish is not None else ""


def _ask_whether_they_go(exc: FewerDisksError) -> None:
    say(f"{exc.cause[:1].upper()}{exc.cause[1:]}.")
    question = "End the protection of these? Their points stay, and there will be no new ones."
    click.confirm(question, abort=True, err=True)


def _ask_over(name: str, seen: MachineView | None) -> None:
    """Of a machine of which somebody else has said something while this was asked."""
    wish = seen.wish if seen is not None else None
    if wish is None:
        now = "nobody's wish is known of it any more"
    elif wish.verb == "stop":
        now = f"it is to stop, since {minute(wish.since)}"
    else:
        by = f", by {', '.join(wish.process_servers)}" if wish.process_servers else ""
        now = f"protect {', '.join(wish.disks) or 'the disks of its configuration'}{by}, since {minute(wish.since)}"
    say(f"Somebody else has said something of '{name}' meanwhile. What holds now: {now}.")
    click.confirm(plain(f"Protect '{name}' as you asked all the same?"), abort=True, err=True)


async def _once_it_reports(name: str, ask: Callable[[], Awaitable[_T]]) -> _T:
    """The answer. Raises what is answered; NeverReportedError after a while."""
    deadline = time.monotonic() + _COMES_S
    with Progress() as progress:
        while True:
            try:
                return await ask()
            except NeverReportedError:
                if time.monotonic() >= deadline:
                    raise
            progress.show(f"{name}: waiting for the first report of its agent")
            await asyncio.sleep(_LOOK_S)


async def _seen(client: RestClient, name: str) -> MachineView | None:
    """The machine as it is now; None where nothing is known of it, which the server tells better."""
    from shared import api
    from shared.api.route import Nothing

    try:
        return await client.call(api.MACHINE, Nothing(), machine=name)
    except MachineNotFoundError:
        return None


def _servers(seen: MachineView | None) -> list[str]:
    """Those that the machine is to use already."""
    return seen.wish.process_servers if seen is not None and seen.wish is not None else []


async def _asked(client: RestClient, name: str, wanted: Protection) -> MachineView:
    from shared import api

    return await versions.answered(client, client.call(api.PROTECT, wanted, machine=name))


async def _chosen(client: RestClient, name: str, *, yes: bool) -> list[str]:
    """The disks that are meant where none is named. Raises RequestError, MachineNotFoundError."""
    from shared import api
    from shared.api.route import Nothing

    try:
        found = await _once_it_reports(name, lambda: _disks_of(client, name))
    except NeverReportedError as exc:
        raise NeverReportedError(
            f"'{name}' was not protected",
            action="Start its agent, or record it before its agent ever comes: --disk PATH … --offline.",
        ) from exc
    except MachineNotFoundError as exc:
        raise MachineNotFoundError(
            f"'{name}' was not protected",
            cause=exc.cause,
            action=f"Enrol its agent first (understudy token create agent {name}), or record it before that: --disk PATH … --offline.",
        ) from exc
    except ServerOutdatedError:
        seen = await client.call(api.MACHINE, Nothing(), machine=name)
        protected, before, offered = [disk.device for disk in seen.disks], [], []
    else:
        # Not by path: that may lead to another since. What is captured yet, and was said to go, is not meant.
        protected = [disk.name for disk in found.disks if disk.wanted]
        before = [disk for disk in found.disks if disk.until]
        offered = [disk.device for disk in found.disks if not disk.why_not]
    if protected:
        return protected
    if before:
        say(_as_before(before))
        return [disk.name for disk in before]
    if not offered:
        raise RequestError(
            f"'{name}' was not protected",
            cause="its agent names no disk that could be, and none was given",
            action=f"See `understudy machine disks {name}`, or name them: --disk /dev/NAME.",
        )
    if not yes:
        console(stderr=True).print(candidates_table(found))
        if not sys.stdin.isatty():
            raise RequestError(
                f"'{name}' was not protected",
                cause=f"none of its disks is protected yet, and none was named: it would be all, {', '.join(offered)}",
                action="Name those that shall be (--disk PATH for each), or take all with --yes.",
            )
        click.confirm(plain(f"Protect {', '.join(offered)} of '{name}'?"), abort=True, err=True)
    return offered


def _as_before(disks: Sequence[DiskCandidate]) -> str:
    """Which are taken since nobody names any: also what is away, which is missed then, and never left out without a word."""
    named = ", ".join(f"{disk.device} ({disk.why_not})" if disk.why_not else disk.device for disk in disks)
    return f"No disk was named: taken are those that were protected until {minute(disks[0].until)}: {named}."


async def _unprotect(name: str, *, wait: bool) -> MachineView:
    from shared import api
    from shared.api.route import Nothing

    async with find_target().connect() as client:
        found = await client.call(api.UNPROTECT, Nothing(), machine=name)
        return await _seen_to(client, found, wait=wait)


async def _disks(name: str) -> DiskCandidates:

    async with find_target().connect() as client:
        return await _disks_of(client, name)


async def _disks_of(client: RestClient, name: str) -> DiskCandidates:
    from shared import api
    from shared.api.route import Nothing

    asked = client.call(api.DISKS, Nothing(), machine=name)
    return await versions.answered(client, asked, is_new=True)


async def wait_until_taken(client: RestClient, said: MachineView) -> MachineView:
    recorded = f"It is recorded, and the agent of {said.name} is told with each of its reports: only the waiting for it ends here."
    if said.job:
        recorded = f"{recorded} {job_of(said.job)}"
    with going_on(recorded), Progress() as progress:
        return await taken(client, said, progress.show)


async def taken(client: RestClient, said: MachineView, show: Callable[[str], None]) -> MachineView:
    """The machine when its agent says that it does what was `said`. What takes longer goes on without us: it is recorded, and told with
    each answer."""
    from shared import api
    from shared.api.route import Nothing

    found, deadline = said, time.monotonic() + _TAKEN_S
    while _is_pending(said, found):
        if found.last_seen_s is None or found.last_seen_s > _SILENT_S:
            say(f"The agent of {said.name} does not report; it is told when it does.")
            return found
        if time.monotonic() >= deadline:
            say(
                f"The agent of {said.name} has not done so yet; it is told with each of its reports."
                f" See `understudy machine show {said.name}`."
            )
            return found
        show(f"{said.name}: waiting for its agent to do so")
        await asyncio.sleep(_LOOK_S)
        try:
            found = await client.call(api.MACHINE, Nothing(), machine=said.name)
        except UnderstudyError as exc:
            say(f"It is recorded, and not known whether the agent of {said.name} does so: {exc}")
            return found
    return found


def _is_pending(said: MachineView, found: MachineView) -> bool:
    """Not where somebody else has said something since: then that is what is waited for by him. An older server shows no wishes."""
    if said.wish is None or found.wish is None or found.wish.mark.act != said.wish.mark.act:
        return False
    return found.wish.pending is not None
