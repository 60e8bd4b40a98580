"""`understudy machine …`: the state of protected machines."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from config_server.cli import deletion_commands, protection_commands, rebinding, rescue
from config_server.cli.machine_pages import list_page, machine_page, one_line, stored_table
from config_server.cli.names import fetch_all, name_argument
from config_server.cli.options import COMMON, CONNECTION, OUTPUT, add_options, find_target, wants_json
from config_server.cli.output import (
    Progress,
    console,
    emit,
    going_on,
    grid,
    line,
    plain,
    printing,
    run,
    say,
    seconds,
    to_json,
)
from shared.errors import DeadlineError, PeerError, UnderstudyError
from shared.vocabulary import MachineState

if TYPE_CHECKING:
    from shared.api.commands import CommandView
    from shared.api.copies import CopyList, SideView
    from shared.api.machines import MachineView
    from shared.control.rest import RestClient

STATES: Final = (
    MachineState.ORDERED,
    MachineState.INITIAL_REPLICATION,
    MachineState.BITMAP,
    MachineState.CATCHING_UP,
    MachineState.RESYNC,
    MachineState.DISCONNECTED,
)
"""What can be waited for."""
_NONE: Final = "No machine is known yet. Next, for each: understudy token create agent NAME, and there python -m agent setup."
_NONE_STORED: Final = (
    "Storage has no machine. See that --blob-url and --blob-container are those of the installation."
)
_POLL_S: Final = 0.5
_LOOKED_S: Final = 30.0


@click.group()
@add_options(*COMMON)
def machine() -> None:
    """Protected machines: state, progress, health."""


machine.add_command(protection_commands.protect)
machine.add_command(protection_commands.unprotect)
machine.add_command(protection_commands.disks_)
machine.add_command(deletion_commands.delete)
machine.add_command(deletion_commands.keep)


@machine.command("list")
@add_options(*rescue.OPTIONS)
@add_options(*COMMON)
def list_(**storage: Any) -> None:
    """All machines; with --blob-url those that storage knows, whatever has become of the servers."""
    config = rescue.storage_of(**storage)
    if config is not None:
        stored = run(rescue.machines(config))
        emit(stored, lambda: stored_table(stored), empty=_NONE_STORED)
        return
    found = run(fetch_all())
    emit(found, lambda: list_page(found), empty=_NONE)


@machine.command()
@name_argument
@add_options(*COMMON)
def show(name: str) -> None:
    """One machine: disks, RPO, ring, rates, last point, errors."""
    found = run(_get(name))
    emit(found, lambda: machine_page(found))


@machine.command()
@name_argument
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(min=0.1), metavar="S")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N looks. Default: never.")
@add_options(*COMMON)
def watch(name: str, interval: float, count: int | None) -> None:
    """A live view, hop by hop; as JSON one object per line. Ctrl-C ends it."""
    with contextlib.suppress(KeyboardInterrupt):  # the normal way to end it
        run(_watch(name, interval, count))


@machine.command()
@name_argument
@click.option(
    "--for",
    "state",
    type=click.Choice([state.value for state in STATES]),
    default=MachineState.ORDERED.value,
    show_default=True,
    help="The state that is waited for; ordered: the first copy is made, and every write since is sent in order.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    metavar="S",
    help="So many seconds this command waits. What the machine does goes on without it.",
)
@add_options(*CONNECTION, OUTPUT)
def wait(name: str, state: str, timeout_s: float) -> None:
    """Wait until a machine is in a state; exit code 4 when it is not in time."""
    found = run(_wait(name, state, timeout_s))
    emit(found, lambda: machine_page(found))


@machine.command()
@name_argument
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
@add_options(*COMMON)
def resync(name: str, yes: bool) -> None:
    """Replicate a machine anew: a new epoch begins, all its disks are read again. Earlier points stay. It is a job: see `job watch`."""
    if not yes and sys.stdin.isatty():
        click.confirm(
            f"Read all disks of '{name}' again? Until that is done there are no new points.", abort=True
        )
    asked = run(_resync(name))
    emit(asked, lambda: grid(None, ("=job", "state"), [(asked.id, asked.state)]))


@machine.command()
@name_argument
@click.option(
    "--identity",
    default="",
    metavar="ID",
    help="What the machine calls itself. Default: the one copy that was refused lately; see `machine copies`.",
)
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
@add_options(*COMMON)
def rebind(name: str, identity: str, yes: bool) -> None:
    """Say that a machine stands on other hardware now: who was it until now is refused as a copy from then on."""
    side = run(_rebind(name, identity, ask=not yes and sys.stdin.isatty()))
    if side.repeated:
        rebinding.tell_repeated(side.machine, side.identity)
    else:
        rebinding.tell_of_disks(side.machine)
        if not side.generation:
            rebinding.tell_of_storage(side.machine)
    emit(
        side,
        lambda: grid(
            None,
            ("machine", "identity", ">generation"),
            [(side.machine, side.identity, str(side.generation))],
        ),
    )


@machine.command()
@name_argument
@add_options(*COMMON)
def copies(name: str) -> None:
    """Who was refused as a copy of a machine lately: its identity, its address, when."""
    found = run(_copies(name))
    emit(found, lambda: rebinding.page(found))


async def _copies(name: str) -> CopyList:
    async with find_target().connect() as client:
        return await rebinding.fetch(client, name)


async def _rebind(name: str, identity: str, *, ask: bool) -> SideView:
    from shared import api
    from shared.api.copies import RebindRequest

    async with find_target().connect() as client:
        if ask or not identity:
            found = await rebinding.fetch(client, name)
            identity = identity or rebinding.chosen(found)
            if ask:
                click.confirm(plain(rebinding.question(found, identity)), abort=True, err=True)
        side = await client.call(api.REBIND, RebindRequest(identity=identity), machine=name)
        with going_on(rebinding.bound(side.machine, side.identity)), Progress() as progress:
            await looked(client, side, progress.show)
        if side.job:
            say(protection_commands.job_of(side.job))
        return side


async def looked(client: RestClient, side: SideView, show: Callable[[str], None]) -> None:
    """Until each process server that has the machine has ended sessions with others than `side`, and that one's agent tries again. What
    takes longer goes on without us: the machine is bound already.
    """
    from shared import api
    from shared.api.commands import CommandState
    from shared.api.route import Nothing

    waiting = list(side.asked)
    deadline = time.monotonic() + _LOOKED_S

    async def wait_for(holder: str, id_: str) -> None:
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                command = await client.call(api.COMMAND, Nothing(), wait_s=min(left_s, 10.0), id=id_)
            except UnderstudyError as exc:
                say(f"It is not known whether {holder} acted on it; it does within a minute: {exc}")
                return
            if command.state is not CommandState.PENDING:
                waiting.remove(holder)
                if error := command.result.get("error"):
                    say(f"{holder} could not act on it, and tries again within a minute: {error['cause']}")
                elif waiting:
                    show(_waits(side.machine, waiting))
                return
        say(f"{holder} has not acted on it yet; it does within a minute, if it runs.")

    for holder in side.silent:
        say(f"{holder} does not report; if it runs, it acts on it within a minute.")
    if waiting:
        show(_waits(side.machine, waiting))
    await asyncio.gather(*(wait_for(holder, id_) for holder, id_ in side.asked.items()))


def _waits(machine: str, holders: Sequence[str]) -> str:
    return f"{machine}: waiting for {', '.join(holders)} to act on it"


async def _resync(name: str) -> CommandView:
    from shared import api
    from shared.api.route import Nothing

    async with find_target().connect() as client:
        return await client.call(api.RESYNC, Nothing(), machine=name)


async def _get(name: str) -> MachineView:
    async with find_target().connect() as client:
        return await fetch(client, name)


async def fetch(client: RestClient, name: str) -> MachineView:
    from shared import api
    from shared.api.route import Nothing

    return await client.call(api.MACHINE, Nothing(), machine=name)


async def _wait(name: str, state: str, timeout_s: float) -> MachineView:
    began = answered = time.monotonic()
    deadline = began + timeout_s
    last: MachineView | None = None
    async with find_target().connect() as client:
        with Progress() as progress:
            while True:
                trouble: PeerError | None = None
                try:
                    last, answered = await fetch(client, name), time.monotonic()
                except PeerError as exc:
                    trouble = exc  # it may be restarting: waiting is what this command is for
                    progress.show(f"{name}: {_unanswered(trouble, time.monotonic() - answered)}")
                else:
                    if last.state == state and _is_news(last, answered - began):
                        return last
                    progress.show(one_line(last))
                if (now := time.monotonic()) >= deadline:
                    if last is None:
                        assert trouble is not None
                        raise trouble
                    silence = _unanswered(trouble, now - answered) if trouble is not None else ""
                    raise _too_late(name, state, timeout_s, last, silence)
                await asyncio.sleep(min(_POLL_S, max(0.0, deadline - time.monotonic())))


def _is_news(found: MachineView, waited_s: float) -> bool:
    """Whether the state was reported after the waiting began: what was so before may have ended with its agent."""
    return found.state == MachineState.DISCONNECTED or (
        found.last_seen_s is not None and found.last_seen_s <= waited_s
    )


def _unanswered(trouble: PeerError, silent_s: float) -> str:
    return f"the config server has not answered for {seconds(silent_s)} ({trouble.cause or trouble.what})"


def _too_late(name: str, state: str, timeout_s: float, last: MachineView, silence: str) -> DeadlineError:
    """`silence`: in words, since when nobody says what became of the machine; else empty."""
    old = ", as its agent said before the waiting began" if last.state == state else ""
    why = f" ({last.cause})" if last.cause else ""
    parts = [silence] if silence else []
    parts.append(f"it {'was' if silence else 'is'} {last.state}{why}{old}")
    parts += [f"{error.code} {error.what}" for error in last.errors]
    return DeadlineError(
        f"Machine '{name}' was not {state} within {timeout_s:g} s",
        cause="; ".join(parts),
        action=f"It goes on without this command. See `understudy machine show {name}`, and wait again, or longer with --timeout.",
    )


async def _watch(name: str, interval_s: float, count: int | None) -> None:
    looks = 0
    async with find_target().connect() as client:
        found = await fetch(client, name)
        if wants_json():
            while True:
                with printing():
                    click.echo(to_json(found).replace("\n", " "))
                looks += 1
                if count is not None and looks >= count:
                    return
                await asyncio.sleep(interval_s)
                found = await fetch(client, name)
        from rich.live import Live

        with Live(machine_page(found), console=console(), auto_refresh=False) as live:
            while count is None or looks < count:
                live.update(machine_page(found), refresh=True)
                looks += 1
                await asyncio.sleep(interval_s)
                try:
                    found = await fetch(client, name)
                except PeerError as exc:
                    live.console.print(line((f"{exc.what}: {exc.cause}", "red")))
