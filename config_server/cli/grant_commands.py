"""`understudy grant list|revoke`: who may read a machine's storage just now, and who no more."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from config_server.cli.names import name_argument
from config_server.cli.options import COMMON, add_options, find_target
from config_server.cli.output import emit, grid, run

if TYPE_CHECKING:
    from rich.table import Table

    from shared.api.restores import GrantView


@click.group()
@add_options(*COMMON)
def grant() -> None:
    """Grants to read a machine's storage, which restores get."""


@grant.command("list")
@name_argument
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000))
@add_options(*COMMON)
def grant_list(name: str, limit: int) -> None:
    """Grants to read a machine, newest first: who has one, until when, and how others ended."""
    found = run(_list(name, limit))
    emit(
        found,
        lambda: _table(found),
        empty=f"Nobody has a grant to read {name}, or had one: a restore gets it (understudy restore {name} --to FOLDER).",
    )


@grant.command("revoke")
@name_argument
@click.argument("id_", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
@add_options(*COMMON)
def grant_revoke(name: str, id_: str, yes: bool) -> None:
    """End a grant at once: storage refuses it from then on. A restore that has it fails, and can be continued with a new one."""
    if not yes and sys.stdin.isatty():
        click.confirm(f"End grant {id_} of '{name}' now? A restore that uses it fails.", abort=True)
    ended = run(_revoke(name, id_))
    emit(ended, lambda: _table([ended]))


async def _list(name: str, limit: int) -> list[GrantView]:
    from shared import api
    from shared.api.route import Limit

    async with find_target().connect() as client:
        return (await client.call(api.GRANTS, Limit(limit=limit), machine=name)).grants


async def _revoke(name: str, id_: str) -> GrantView:
    from shared import api
    from shared.api.restores import GrantEnd

    async with find_target().connect() as client:
        return await client.call(api.GRANT_END, GrantEnd(), machine=name, id=id_)


def _table(found: list[GrantView]) -> Table:
    rows = [(g.id, g.who, g.host, g.state, g.given[:19], g.expires[:19], (g.ended or "")[:19]) for g in found]
    return grid(None, ("=grant", "who", "on", "state", "=given", "=expires", "=ended"), rows)
