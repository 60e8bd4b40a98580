"""Names that are given to commands: checked, and completed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from config_server.cli.options import find_target
from config_server.cli.output import run
from shared.naming import SAYS, is_name

if TYPE_CHECKING:
    from shared.api.machines import MachineView


def checked_name(ctx: click.Context, _param: click.Parameter, name: str) -> str:
    """As a callback of a parameter that names a machine or a daemon."""
    if not ctx.resilient_parsing and not is_name(name):
        raise click.BadParameter(f"{name!r}: {SAYS}")
    return name


def complete_machine(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of machines for tab completion; nothing when the config server cannot be asked."""
    from shared.errors import UnderstudyError

    try:
        with ctx.scope(cleanup=False):  # nobody has entered it: where the config server is, stands in it
            return [machine.name for machine in run(fetch_all()) if machine.name.startswith(incomplete)]
    except UnderstudyError:
        return []


def _checked_if_given(ctx: click.Context, param: click.Parameter, name: str | None) -> str:
    return "" if name is None else checked_name(ctx, param, name)


name_argument = click.argument("name", callback=checked_name, shell_complete=complete_machine)
optional_name_argument = click.argument(
    "name", required=False, callback=_checked_if_given, shell_complete=complete_machine
)
"""Without it: all machines."""


async def fetch_all() -> list[MachineView]:
    from shared import api
    from shared.api.route import Nothing

    async with find_target().connect() as client:
        return (await client.call(api.MACHINES, Nothing())).machines
