"""`understudy machine delete|keep`: all that storage has of a machine goes after a delay, in which that can be taken back."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

import click
from msgspec.structs import replace

from config_server.cli import versions
from config_server.cli.machine_pages import lost_page, machine_page, minute
from config_server.cli.names import name_argument
from config_server.cli.options import COMMON, add_options, find_target
from config_server.cli.output import console, emit, plain, run, say
from config_server.cli.protection_commands import job_of, no_wait, wait_until_taken
from shared.errors import RequestError

if TYPE_CHECKING:
    from shared.api.deletion import Kept
    from shared.api.machines import MachineView

_UNITS_S: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LEAST_S: Final = 3600.0
_MOST_S: Final = 10 * 366 * 86_400.0


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([mhdw])", value.strip())
    if found is None:
        raise click.BadParameter(
            f"{value!r} is no duration: a number with m, h, d or w, for example 36h or 14d."
        )
    seconds = float(found[1]) * _UNITS_S[found[2]]
    if not _LEAST_S <= seconds <= _MOST_S:
        raise click.BadParameter(f"{value!r} is not between an hour and ten years.")
    return seconds


@click.command()
@name_argument
@click.option(
    "--after",
    "after_s",
    callback=_seconds,
    default="14d",
    show_default=True,
    metavar="DURATION",
    help="For so long it can be taken back (`machine keep`), and its points be restored: 36h, 14d, 2w. An hour at least.",
)
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal it is needed.")
@no_wait
@add_options(*COMMON)
def delete(name: str, after_s: float, *, yes: bool, no_wait: bool) -> None:
    """Have a machine deleted: its agent stops at once, and after a delay all that storage has of it goes, every point with it.

    \b
    Example: understudy machine delete web1 --after 14d
    """
    found, stays = run(_delete(name, after_s, yes=yes, wait=not no_wait))
    if found.deletion is not None and found.deletion.due is not None:
        say(
            f"'{name}' is deleted on {minute(found.deletion.due)}, not earlier. Until then its points stay. To take it back: understudy"
            f" machine keep {name}."
        )
    if found.job:
        say(job_of(found.job))
    for line in stays:
        say(f"Not deleted with it, {line}.")
    emit(found, lambda: machine_page(found))


@click.command()
@name_argument
@add_options(*COMMON)
def keep(name: str) -> None:
    """Take a machine's deletion back. It stays unprotected until it is protected again.

    \b
    Example: understudy machine keep web1
    """
    kept = run(_keep(name))
    again = f"To protect it again: understudy machine protect {name}."
    if not kept.taken_back:
        say(f"'{name}' was not to be deleted; nothing changed.")
    elif kept.gone:
        say(
            f"'{name}' is not to be deleted any more, but storage has its container no more: nothing of it was left to keep. If the account"
            f" keeps deleted containers (container soft delete), bring it back there. Else delete '{name}' again, which takes it out of the"
            f" list{'; its agent is revoked, and is enrolled anew with a new token' if kept.revoked else ''}."
        )
    elif kept.revoked:
        say(
            f"'{name}' is not deleted, and is not protected. Its agent's certificates were revoked already: enrol it anew (understudy token"
            f" create agent {name}). {again}"
        )
    else:
        say(f"'{name}' is not deleted, and is not protected. {again}")
    emit(kept.machine, lambda: machine_page(kept.machine))


async def _delete(name: str, after_s: float, *, yes: bool, wait: bool) -> tuple[MachineView, list[str]]:
    """The machine, and what is not deleted with it."""
    from shared import api
    from shared.api.deletion import DeletionRequest
    from shared.api.route import Nothing

    async with find_target().connect() as client:
        asked = client.call(api.DELETION, Nothing(), machine=name)
        lost = await versions.answered(client, asked, is_new=True)
        if not yes:
            console(stderr=True).print(lost_page(lost))
            if not sys.stdin.isatty():
                raise RequestError(
                    f"'{name}' is not to be deleted yet",
                    cause="whether it is to be could not be asked: there is no terminal",
                    action="Say it with --yes: after the delay all that is shown above is gone.",
                )
            left = "take it out of the registry" if lost.gone else "delete all of this"
            question = f"Stop replicating '{name}' now, and {left} in {_in_words(after_s)}?"
            click.confirm(plain(question), abort=True, err=True)
        body = DeletionRequest(after_s=after_s, container=lost.container)
        found = await client.call(api.DELETE, body, machine=name)
        if wait:
            found = replace(await wait_until_taken(client, found), job=found.job)
        return found, lost.stays


async def _keep(name: str) -> Kept:
    from shared import api
    from shared.api.route import Nothing

    async with find_target().connect() as client:
        return await versions.answered(client, client.call(api.KEEP, Nothing(), machine=name), is_new=True)


def _in_words(seconds: float) -> str:
    days, left = divmod(int(seconds), 86_400)
    hours, left = divmod(left, 3600)
    parts = [(days, "day"), (hours, "hour"), (left // 60, "minute")]
    return " and ".join(f"{number} {unit}{'s' if number > 1 else ''}" for number, unit in parts if number)
