"""`understudy policy …`: replication policies."""

from __future__ import annotations

import click
import msgspec

from config_server.cli.options import COMMON, add_options, find_target
from config_server.cli.output import emit, plain_fields, run


@click.group()
@add_options(*COMMON)
def policy() -> None:
    """The default replication policy."""


@policy.command("show")
@add_options(*COMMON)
def policy_show() -> None:
    """The policy of machines that have none of their own."""
    found = run(_policy_get())
    emit(found, lambda: plain_fields(found))


@policy.command("set")
@click.option("--point-interval", "point_interval_s", type=float, metavar="S", help="Seconds between points.")
@click.option(
    "--rpo-threshold", "rpo_threshold_s", type=float, metavar="S", help="An RPO above this raises an event."
)
@add_options(*COMMON)
def policy_set(**changes: float | None) -> None:
    """Change the default policy; what is not given stays."""
    found = run(_policy_set({name: value for name, value in changes.items() if value is not None}))
    emit(found, lambda: plain_fields(found))


async def _policy_get() -> msgspec.Struct:
    from shared import api
    from shared.messages import Nothing

    async with find_target().connect() as client:
        return await client.call(api.POLICY, Nothing())


async def _policy_set(changes: dict[str, float]) -> msgspec.Struct:
    from shared import api
    from shared.messages import Nothing

    async with find_target().connect() as client:
        before = await client.call(api.POLICY, Nothing())
        return await client.call(api.POLICY_SET, msgspec.structs.replace(before, **changes))
