"""`understudy machine protect|unprotect`: which machines shall be protected, and which of their disks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from config_server.cli.machine_pages import machine_page
from config_server.cli.names import name_argument
from config_server.cli.options import COMMON, add_options, find_target
from config_server.cli.output import emit, run
from shared.errors import RequestError

if TYPE_CHECKING:
    from shared.messages import MachineView


@click.command()
@name_argument
@click.option(
    "--disk",
    "disks",
    multiple=True,
    metavar="PATH",
    help="One for each. Default: those that its agent captures.",
)
@add_options(*COMMON)
def protect(name: str, disks: tuple[str, ...]) -> None:
    """Say that a machine shall be protected: from then on it is missed when it does not replicate."""
    found = run(_protect(name, disks))
    emit(found, lambda: machine_page(found))


@click.command()
@name_argument
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
@add_options(*COMMON)
def unprotect(name: str, yes: bool) -> None:
    """Say that a machine shall not be protected any more: it is not missed. Its points stay. Stop its agent, too."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"End the protection of '{name}'?", abort=True)
    found = run(_unprotect(name))
    emit(found, lambda: machine_page(found))


async def _protect(name: str, disks: Sequence[str]) -> MachineView:
    from shared import api
    from shared.messages import Nothing, Protection

    async with find_target().connect() as client:
        if not disks:
            seen = await client.call(api.MACHINE, Nothing(), machine=name)
            disks = [disk.device for disk in seen.disks]
        if not disks:
            raise RequestError(
                f"'{name}' was not protected",
                cause="its agent names no disks, and none was given",
                action="Start its agent, or name them: --disk /dev/NAME.",
            )
        return await client.call(api.PROTECT, Protection(disks=list(disks)), machine=name)


async def _unprotect(name: str) -> MachineView:
    from shared import api
    from shared.messages import Nothing

    async with find_target().connect() as client:
        return await client.call(api.UNPROTECT, Nothing(), machine=name)
