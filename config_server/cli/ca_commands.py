"""`understudy ca show|renew|trust`: the CA whose certificates all parts of the installation have."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from config_server.cli.options import COMMON, add_options, find_target
from config_server.cli.output import emit, fields, grid, run
from shared.errors import UsageError
from shared.host import durable

if TYPE_CHECKING:
    from rich.table import Table

    from shared.api.certificates import AnchorView, CaCertificate
    from shared.api.jobs import JobView

_HOUR_S = 3600


@click.group()
@add_options(*COMMON)
def ca() -> None:
    """The installation's CA."""


@ca.command("show")
@add_options(*COMMON)
def ca_show() -> None:
    """Which certificates of the CA are trusted, which of them issues, and until when they last."""
    found = run(_get()).trusted
    emit(found, lambda: _table(found))


@ca.command("renew")
@click.option(
    "--hold-hours",
    default=24.0,
    show_default=True,
    type=click.FloatRange(0, 2160),
    help="So long the old one signs at least, so that operators elsewhere can run `understudy ca trust`.",
)
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
@add_options(*COMMON)
def ca_renew(hold_hours: float, yes: bool) -> None:
    """Have another CA take the place of this one: a job, which waits until all daemons trust the new one before that signs.

    Nothing stops for it, and nobody enrols anew. Whoever is away holds it, for days if need be: `understudy job show` names them. Who is
    gone for good is taken out with `understudy certificate revoke`. Enrolment tokens that are not used are void when the new CA signs.

    \b
    Example: understudy ca renew --hold-hours 72"""
    if not yes and sys.stdin.isatty():
        click.confirm("Renew the CA? Until its switch it can be cancelled.", abort=True, err=True)
    begun = run(_renew(hold_hours * _HOUR_S))
    emit(begun, lambda: fields(None, [("job", begun.id), ("next", f"understudy job watch {begun.id}")]))


@ca.command("trust")
@add_options(*COMMON)
def ca_trust() -> None:
    """Take what is trusted now into the CA file of this profile, over a connection that the file of before proves.

    Where commands are run on other hosts than the config server's: between `ca renew` and its switch, and once more when it is done."""
    target = find_target()
    if target.ca_file is None:
        raise UsageError(
            "There is no CA file to be written",
            cause="a public CA vouches for the server, by this profile",
            action="Nothing has to be done here.",
        )
    told = run(_get())
    found = told.trusted
    pem = (told.anchors or told.pem).encode()
    with durable.named(f"The CA file {target.ca_file} could not be written"):
        if target.ca_file.read_bytes() != pem:
            durable.replace_file(target.ca_file, pem, mode=0o644, keep_owner=True)
    emit(found, lambda: _table(found))


async def _get() -> CaCertificate:
    from shared import api
    from shared.api.route import Nothing

    async with find_target().connect() as client:
        return await client.call(api.CA, Nothing())


async def _renew(hold_s: float) -> JobView:
    from shared import api
    from shared.api.certificates import CaRenewRequest

    async with find_target().connect() as client:
        return await client.call(api.CA_RENEW, CaRenewRequest(hold_s=hold_s))


def _table(found: list[AnchorView]) -> Table:
    rows = [
        (c.certificate[:16], c.subject, c.begins[:10], c.ends[:10], "signs" if c.signs else "is trusted")
        for c in found
    ]
    return grid(None, ("=certificate", "subject", "=begins", "=ends", "what it does"), rows)
