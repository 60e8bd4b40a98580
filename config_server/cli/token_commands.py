"""`understudy token …`: what daemons enrol with; `operator …`: what operators call with; `vault show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from config_server.cli.names import checked_name
from config_server.cli.options import COMMON, add_options, find_target
from config_server.cli.output import emit, grid, plain_fields, run
from config_server.cli.pages import collected, limit_option
from shared.errors import UsageError
from shared.host import durable
from shared.vocabulary import ENROLLED

if TYPE_CHECKING:
    from rich.table import Table

    from shared.api import Route
    from shared.api.certificates import TokenView
    from shared.api.keys import VaultView
    from shared.api.operators import OperatorView

_NO_TOKENS: Final = "No enrolment token was made yet. Next, for each host: understudy token create ROLE NAME."
_DAY_S: Final = 86_400
_TO: Final = click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it into a new file, and do not show it.",
)


async def _call(route: Route[Any, Any], body: msgspec.Struct, **path: str) -> Any:
    async with find_target().connect() as client:
        return await client.call_plain(route, msgspec.to_builtins(body), path, 0.0)


@click.group()
@add_options(*COMMON)
def token() -> None:
    """Enrolment tokens for new hosts."""


@token.command("list")
@limit_option
@add_options(*COMMON)
def token_list(limit: int) -> None:
    """Enrolment tokens, newest first: who has enrolled with one, and who may still."""
    found = run(_tokens(limit))
    emit(found, lambda: _tokens_table(found), empty=_NO_TOKENS)


@token.command("end")
@click.argument("id_", metavar="ID")
@add_options(*COMMON)
def token_end(id_: str) -> None:
    """End an enrolment token that was not used: its file went astray, say.

    \b
    Example: understudy token end 0f3a5c7d9e1b2468"""
    from shared import api
    from shared.api.route import Nothing

    ended = run(_call(api.TOKEN_END, Nothing(), id=id_))
    emit(ended, lambda: _tokens_table([ended]))


@token.command("create")
@click.argument("role", type=click.Choice([role.value for role in ENROLLED]))
@click.argument("name", callback=checked_name)
@click.option("--host", "hosts", multiple=True, help="DNS name or address under which a server is reached.")
@click.option(
    "--ttl", "ttl_s", default=3600, show_default=True, type=click.IntRange(1, 2_592_000), metavar="S"
)
@_TO
@add_options(*COMMON)
def token_create(role: str, name: str, hosts: tuple[str, ...], ttl_s: int, to: Path | None) -> None:
    """A one-time token with which ROLE NAME enrols: python -m ROLE setup --token-file FILE …"""
    from shared import api
    from shared.api.certificates import TokenRequest

    if to is not None:
        _check_new(to)
    made = run(_call(api.TOKEN_CREATE, TokenRequest(role=role, name=name, hosts=list(hosts), ttl_s=ttl_s)))
    made = _written(made, to)
    emit(made, lambda: plain_fields(made))


def _check_new(file: Path) -> None:
    """Before a token is made that would be lost. Raises UsageError."""
    if file.exists() or not file.parent.is_dir():
        raise UsageError(
            f"No token was made for {file}",
            cause="it is there already" if file.exists() else f"there is no folder {file.parent}",
            action="Give the name of a file that is not there yet, in a folder that is; or delete the one that was copied to its host.",
        )


def _written(made: Any, to: Path | None) -> Any:
    """As it is shown: without the token where that is in a file."""
    if to is None:
        return made
    with durable.named(f"The token was not written to {to}", action="Make another one: this one is lost."):
        durable.create_file(to, made.token.encode() + b"\n", mode=0o600)
    return msgspec.structs.replace(made, token=f"in {to}")


async def _tokens(limit: int) -> list[TokenView]:
    from shared import api
    from shared.api.route import Page

    async with find_target().connect() as client:
        return await collected(client, api.TOKENS, Page(), limit, lambda page: page.tokens)


def _tokens_table(found: list[TokenView]) -> Table:
    rows = [
        (t.id, f"{t.role}:{t.name}", t.created[:19], t.expires[:19], t.used[:19] if t.used else "")
        for t in found
    ]
    return grid(None, ("=id", "for", "=created", "=expires", "=used"), rows)


@click.group()
@add_options(*COMMON)
def operator() -> None:
    """People and programs that may call, each with a token of his own."""


@operator.command("list")
@add_options(*COMMON)
def operator_list() -> None:
    """Operators and their tokens: since when, until when, when last used."""
    from shared import api
    from shared.api.route import Nothing

    found = run(_call(api.OPERATORS, Nothing())).operators
    emit(found, lambda: _operators_table(found))


@operator.command("add")
@click.argument("name", callback=checked_name)
@click.option("--for", "words", default="", metavar="WORDS", help="What the token is for.")
@click.option(
    "--days", default=90, show_default=True, type=click.IntRange(1, 366), help="After which it expires."
)
@_TO
@add_options(*COMMON)
def operator_add(name: str, words: str, days: int, to: Path | None) -> None:
    """A token for operator NAME, who may be new: he may all that you may.

    \b
    Example: understudy operator add anna --for "her laptop" --to anna.token"""
    from shared import api
    from shared.api.operators import OperatorTokenRequest

    if to is not None:
        _check_new(to)
    body = OperatorTokenRequest(words=words, ttl_s=days * _DAY_S)
    made = _written(run(_call(api.OPERATOR_TOKEN_CREATE, body, operator=name)), to)
    emit(made, lambda: plain_fields(made))


@operator.command("end")
@click.argument("name", callback=checked_name)
@click.argument("id_", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
@add_options(*COMMON)
def operator_end(name: str, id_: str, yes: bool) -> None:
    """End a token of operator NAME at once; one without a token is no operator any more.

    \b
    Example: understudy operator end anna 5d1e0c7a9b34"""
    from shared import api
    from shared.api.route import Nothing

    if not yes and sys.stdin.isatty():
        click.confirm(f"End the token {id_} of operator {name}? Who calls with it is refused.", abort=True)
    ended = run(_call(api.OPERATOR_TOKEN_END, Nothing(), operator=name, id=id_))
    emit(ended, lambda: plain_fields(ended))


def _operators_table(found: list[OperatorView]) -> Table:
    rows = [
        (
            one.name,
            t.id,
            t.words,
            t.created[:19],
            t.expires[:19] if t.expires else "never",
            t.used[:19] if t.used else "",
        )
        for one in found
        for t in one.tokens
    ]
    return grid(None, ("=name", "=id", "for", "=created", "=expires", "=last used"), rows)


@click.group()
@add_options(*COMMON)
def vault() -> None:
    """The keys under which machines' keys are wrapped."""


@vault.command("show")
@add_options(*COMMON)
def vault_show() -> None:
    """Which keys the config server's vault file has, and whether storage knows them. Never the keys."""
    from shared import api
    from shared.api.route import Nothing

    found = run(_call(api.VAULT, Nothing()))
    emit(found, lambda: _vault_page(found))


def _vault_page(found: VaultView) -> Table:
    rows = [
        (
            key.id,
            key.fingerprint,
            "yes" if key.is_current else "",
            "yes" if key.is_recorded else "not yet",
        )
        for key in found.keys
    ]
    rows += [(id_, "", "", "lost: it is not in the file") for id_ in found.missing]
    words = f"{found.file}: {found.problem}" if found.problem else found.file
    return grid(words, ("=key", "fingerprint", "new machines", "in storage"), rows)
