"""`understudy event|daemon|audit …`: what the config server has on record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from config_server.cli.machine_pages import HEALTH_STYLES
from config_server.cli.names import optional_name_argument
from config_server.cli.options import COMMON, add_options, find_target
from config_server.cli.output import compact, emit, grid, line, run, seconds, told
from config_server.cli.pages import collected, limit_option
from shared.vocabulary import Role, Severity

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shared.api import Route
    from shared.api.audit import AuditView
    from shared.api.events import EventView
    from shared.control.rest import RestClient

_STYLES: Final = {Severity.CRITICAL: "red", Severity.ERROR: "red", Severity.WARNING: "yellow"}
_NO_DAEMONS: Final = "No daemon has reported yet. Next, for each host: understudy token create ROLE NAME, and there python -m ROLE setup."


async def _call(route: Route[Any, Any], body: msgspec.Struct, **path: str) -> Any:
    async with find_target().connect() as client:
        return await client.call_plain(route, msgspec.to_builtins(body), path, 0.0)


@click.group()
@add_options(*COMMON)
def event() -> None:
    """What went wrong, and what happened."""


@event.command("list")
@optional_name_argument
@click.option("--object", "object_", default="", help="Only of this machine, disk (MACHINE/DISK) or daemon.")
@click.option("--open", "only_open", is_flag=True, help="Only what is still wrong.")
@limit_option
@add_options(*COMMON)
def event_list(name: str, object_: str, only_open: bool, limit: int) -> None:
    """Events, newest first: of all, or of the machine NAME and its disks.

    \b
    Example: understudy event list web1 --open
    """
    if name and object_:
        raise click.UsageError("NAME and --object exclude each other.")
    about = name or object_
    found = run(_events(about, only_open=only_open, limit=limit))
    emit(found, lambda: _events_page(found), empty=_no_events(about, only_open=only_open))


async def _events(about: str, *, only_open: bool, limit: int) -> list[EventView]:
    from shared import api
    from shared.api.events import EventQuery

    async with find_target().connect() as client:
        query = EventQuery(object=about, open=only_open)
        found = await collected(client, api.EVENTS, query, limit, lambda page: page.events)
        if about and not found:
            await _check_known(client, about.partition("/")[0])
        return found


async def _check_known(client: RestClient, name: str) -> None:
    """A name that nobody bears has no events either, and is not one that is well. Raises MachineNotFoundError."""
    from shared import api
    from shared.api.route import Nothing

    daemons = (await client.call(api.DAEMONS, Nothing())).daemons
    if name not in {
        Role.CONFIG_SERVER,
        *(seen.name for seen in daemons),
        *(f"{seen.role}:{seen.name}" for seen in daemons),
    }:
        await client.call(api.MACHINE, Nothing(), machine=name)


def _no_events(about: str, *, only_open: bool) -> str:
    kind = "open problem" if only_open else "event"
    if about:
        return f"No {kind} of {about}. Of all: understudy event list"
    return f"No {kind}. How machines do: understudy machine list"


def _events_page(found: list[EventView]) -> RenderableType:
    from rich.console import Group

    from shared.api.events import EventKind

    parts = []
    for event_ in found:
        over = (
            ""
            if event_.kind != EventKind.PROBLEM
            else f", until {event_.resolved[:19]}"
            if event_.resolved
            else ", open"
        )
        kind = f"{event_.severity} {event_.code}".rstrip()
        head = line(
            f"{event_.first[:19]} ",
            (kind, _STYLES.get(event_.severity, "")),
            f" {event_.what} ",
            (f"({event_.object}{over})", "dim"),
        )
        parts.append(told(head, event_.cause, event_.action))
    return Group(*parts)


@click.group()
@add_options(*COMMON)
def daemon() -> None:
    """Agents and servers that report."""


@daemon.command("list")
@add_options(*COMMON)
def daemon_list() -> None:
    """All daemons that ever reported."""
    from shared import api
    from shared.api.route import Nothing

    found = run(_call(api.DAEMONS, Nothing())).daemons
    emit(
        found,
        lambda: grid(
            None,
            ("role", "name", "connected", "state", "health", ">seen", ">clock"),
            [
                (
                    d.role,
                    d.name,
                    "yes" if d.connected else "no",
                    d.state,
                    line((d.health, HEALTH_STYLES.get(d.health, ""))),
                    seconds(d.seen_s),
                    f"{d.skew_s:+.2f} s",
                )
                for d in found
            ],
        ),
        empty=_NO_DAEMONS,
    )


@click.group()
@add_options(*COMMON)
def audit() -> None:
    """Who changed what."""


@audit.command("list")
@limit_option
@add_options(*COMMON)
def audit_list(limit: int) -> None:
    """The audit log, newest first."""
    found = run(_audit(limit))
    emit(found, lambda: _audit_page(found))


async def _audit(limit: int) -> list[AuditView]:
    from shared import api
    from shared.api.route import Page

    async with find_target().connect() as client:
        return await collected(client, api.AUDIT, Page(), limit, lambda page: page.entries)


def _audit_page(found: list[AuditView]) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding

    parts: list[RenderableType] = []
    for entry in found:
        parts.append(f"{entry.time[:19]} {entry.who} {entry.action} {entry.object}".rstrip())
        if entry.detail:
            parts.append(Padding(line((compact(entry.detail), "dim")), (0, 0, 0, 2), expand=False))
    return Group(*parts)
