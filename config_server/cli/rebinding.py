"""Whom `machine rebind` binds: looked up and shown before anything is asked, then named, so that a repetition means the same one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from config_server.cli.output import console, grid, line, say, seconds
from shared.errors import NotFoundError, RequestError, ServerOutdatedError
from shared.machine.active_side import shown

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from shared.api.copies import CopyList, CopyView
    from shared.control.rest import RestClient


async def fetch(client: RestClient, name: str) -> CopyList:
    from shared import api
    from shared.api.route import Nothing

    try:
        return await client.call(api.COPIES, Nothing(), machine=name)
    except NotFoundError as exc:
        if type(exc) is not NotFoundError:  # no such machine, say
            raise
        raise ServerOutdatedError(
            f"The copies of '{name}' could not be looked up",
            cause="the config server does not know the question",
            action="Upgrade it, or name the machine that it is from now on: `machine rebind` with --identity ID and --yes.",
        ) from exc


def chosen(found: CopyList) -> str:
    """The identity to bind where none was named. Raises RequestError, behind a table of what there is to choose from."""
    if not found.unclear:
        return found.meant
    if found.copies:
        console(stderr=True).print(table(found))
    raise RequestError(found.unclear.what, cause=found.unclear.cause, action=found.unclear.action)


def question(found: CopyList, identity: str) -> str:
    if identity == found.identity:
        return f"'{found.machine}' is {identity} already. Tell process servers and agent so again?"
    where = next((_where(copy) for copy in found.copies if copy.identity == identity), "not heard of lately")
    now = f"{found.identity}, which is it now," if found.identity else "Every other"
    return f"Replicate {identity} ({where}) as '{found.machine}' from now on? {now} will be refused."


def tell_repeated(machine: str, identity: str) -> None:
    say(f"'{machine}' was bound to {identity} before; nothing changed.")


def tell_of_storage(machine: str) -> None:
    say(
        f"The config server has no storage ([blob]): it is in its database alone. Process servers that have something of '{machine}'"
        " go by what their storage says."
    )


def bound(machine: str, identity: str) -> str:
    return f"'{machine}' is bound to {identity}: only the waiting for its process servers ends here."


def tell_of_disks(machine: str) -> None:
    say(
        f"The disks that were named of '{machine}' were those of the other hardware. See `understudy machine disks {machine}`, and name"
        " them anew: understudy machine protect."
    )


def page(found: CopyList) -> RenderableType:
    if found.copies:
        return table(found)
    return line(
        f"Machine '{found.machine}' is {shown(found.identity)}, and no copy of it was refused lately: nothing is to be done."
    )


def table(found: CopyList) -> Table:
    title = f"Machine '{found.machine}' is {shown(found.identity)}. Refused lately:"
    return grid(title, ("=identity", "address", ">last", ">first", "why"), _rows(found.copies))


def _rows(copies: Sequence[CopyView]) -> list[tuple[str, ...]]:
    return [
        (
            copy.identity or "(none)",
            copy.address,
            f"{seconds(copy.refused_s)} ago",
            f"{seconds(copy.since_s)} ago",
            copy.cause,
        )
        for copy in copies
    ]


def _where(copy: CopyView) -> str:
    return f"at {copy.address}, refused {seconds(copy.refused_s)} ago"
