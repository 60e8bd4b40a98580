"""`understudy certificate list|revoke`: who may take part, and who no more."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from config_server.cli.options import COMMON, add_options, find_target
from config_server.cli.output import emit, grid, run, say
from config_server.cli.pages import collected, limit_option
from shared.errors import NotFoundError

if TYPE_CHECKING:
    from rich.table import Table

    from shared.api.certificates import CertificateView

_NONE: Final = "No certificate was issued yet. Next, for each host: understudy token create ROLE NAME, and there python -m ROLE setup."


@click.group()
@add_options(*COMMON)
def certificate() -> None:
    """Certificates of daemons."""


@certificate.command("list")
@limit_option
@add_options(*COMMON)
def certificate_list(limit: int) -> None:
    """Certificates that were issued, newest first."""
    found = run(_list(limit))
    emit(found, lambda: _table(found), empty=_NONE)


@certificate.command("revoke")
@click.argument("certificate_", metavar="ROLE:NAME|SERIAL")
@click.option("--reason", default="", help="Why; it is kept with it and in the audit log.")
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
@add_options(*COMMON)
def certificate_revoke(certificate_: str, reason: str, yes: bool) -> None:
    """Refuse a certificate, or all of a daemon (agent:web1), from now on; open sessions end.

    A daemon that was revoked takes part again when it enrols with a new token. Where no such certificate is known, the exit code is 3.

    \b
    Example: understudy certificate revoke agent:web1 --reason stolen"""
    if not yes and sys.stdin.isatty():
        click.confirm(
            f"Refuse {certificate_} from now on? What it protects is not replicated then.", abort=True
        )
    found, warning = run(_revoke(certificate_, reason))
    if not found:
        raise NotFoundError(
            f"No certificate is known that is one of {certificate_}",
            cause="it is refused from now on all the same, should one come: a database from a backup does not know all; but who is known"
            f" by another name is not refused. {warning}".rstrip(),
            action="See that it is written right: understudy certificate list.",
        )
    if warning:
        say(warning)
    emit(found, lambda: _table(found))


async def _list(limit: int) -> list[CertificateView]:
    from shared import api
    from shared.api.route import Page

    async with find_target().connect() as client:
        return await collected(client, api.CERTIFICATES, Page(), limit, lambda page: page.certificates)


async def _revoke(certificate_: str, reason: str) -> tuple[list[CertificateView], str]:
    """Which are refused, and what is not as it should be."""
    from shared import api
    from shared.api.certificates import RevokeRequest

    body = RevokeRequest(certificate=certificate_, reason=reason)
    async with find_target().connect() as client:
        answer = await client.call(api.CERTIFICATE_REVOKE, body)
    return answer.certificates, answer.warning


def _table(found: list[CertificateView]) -> Table:
    rows = [
        (c.serial, c.name, c.issued[:19], c.expires[:19], c.revoked[:19] if c.revoked else "", c.reason)
        for c in found
    ]
    return grid(None, ("=serial", "name", "=issued", "=expires", "=revoked", "reason"), rows)
