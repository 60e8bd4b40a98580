"""Options that several commands share, and where they lead: which config server, which form of output.

The common options work at every level (`understudy --lab D machine list` as well as `understudy machine list
--lab D`): each stores its value in the context's `meta`, which all levels share; the innermost one wins.
Environment variables come last, so that an option anywhere beats them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from shared.errors import AccessError, UnknownAuthorityError, UsageError, cause_of

if TYPE_CHECKING:
    from config_server.cli.profile import Profile, Rescue
    from shared.control.rest import RestClient

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

_META: Final = "understudy."
_LAB: Final = "UNDERSTUDY_LAB"
_PROFILE: Final = "UNDERSTUDY_PROFILE"
_SERVER: Final = "UNDERSTUDY_SERVER"
_TOKEN_FILE: Final = "UNDERSTUDY_TOKEN_FILE"
_CA_FILE: Final = "UNDERSTUDY_CA_FILE"
_OUTPUT: Final = "UNDERSTUDY_OUTPUT"


def _kept(name: str, flag: str, **settings: Any) -> Decorator:
    def keep(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value is not None:
            ctx.meta[_META + name] = value

    return click.option(flag, expose_value=False, callback=keep, default=None, **settings)


CONNECTION: Final[tuple[Decorator, ...]] = (
    _kept(
        "profile",
        "--profile",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help=f"Where the config server is, and how to get in. [env: {_PROFILE}]",
    ),
    _kept("lab", "--lab", metavar="DIR", type=click.Path(), help=f"Use the lab in DIR. [env: {_LAB}]"),
    _kept("server", "--server", metavar="URL", help=f"The config server. [env: {_SERVER}]"),
    _kept(
        "token-file",
        "--token-file",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help=f"File with the operator token. [env: {_TOKEN_FILE}]",
    ),
    _kept(
        "ca-file",
        "--ca-file",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help=f"CA certificate of the config server. [env: {_CA_FILE}]",
    ),
)
OUTPUT: Final[Decorator] = _kept(
    "output",
    "--output",
    type=click.Choice(["table", "json"]),
    help=f"Form of the result. Default: table on a terminal, JSON otherwise. [env: {_OUTPUT}]",
)
COMMON: Final[tuple[Decorator, ...]] = (*CONNECTION, OUTPUT)


def add_options(*options: Decorator) -> Callable[[F], F]:
    """Several options as one decorator, in this order in the help."""

    def decorate(function: F) -> F:
        decorated: Any = function
        for option in options[::-1]:
            decorated = option(decorated)
        return cast(F, decorated)

    return decorate


def value(name: str) -> Any:
    """The value of a common option, None when it was not given."""
    return click.get_current_context().meta.get(_META + name)


def wants_json() -> bool:
    chosen = value("output") or os.environ.get(_OUTPUT)
    return chosen == "json" if chosen else not sys.stdout.isatty()


@dataclass(frozen=True)
class Target:
    """The config server that a command talks to, and the way round it, if the profile has one."""

    url: str
    token: str
    ca_file: Path | None
    rescue: Rescue | None

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[RestClient]:
        """A client. A server whose CA is not the one that was given is told in terms of this command's options."""
        import ssl

        from shared.control.rest import RestClient
        from shared.trust import tls

        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.ca_file is not None:  # else a public CA vouches, for something that stands in front of it
                tls.expecting(context, tls.CONFIG_SERVER)
        except (OSError, ssl.SSLError) as exc:
            raise UsageError(
                f"The CA file {self.ca_file} could not be used",
                cause=str(exc),
                action="Give the ca.pem of the config server's data folder.",
            ) from exc
        try:
            async with RestClient(self.url, context, token=self.token) as client:
                yield client
        except UnknownAuthorityError as exc:
            action = f"Give the ca.pem of the config server's data folder: --ca-file FILE or {_CA_FILE}."
            raise UnknownAuthorityError(exc.what, cause=exc.cause, action=action) from exc


def chosen_folder() -> Path | None:
    """The folder of `--lab` or UNDERSTUDY_LAB."""
    chosen = value("lab") or os.environ.get(_LAB)
    return Path(chosen).absolute() if chosen else None


def find_profile() -> Profile | None:
    """Options before the environment, and a file before a folder. Raises ConfigError, LabNotFoundError."""
    from config_server.cli import profile

    for file, folder in (
        (value("profile"), value("lab")),
        (os.environ.get(_PROFILE), os.environ.get(_LAB)),
    ):
        if file:
            return profile.load(Path(file))
        if folder:
            return profile.load_from(Path(folder).absolute())
    return None


def find_target() -> Target:
    """Options and environment, else the profile. Raises UsageError, ConfigError, LabNotFoundError, AccessError."""
    server = value("server") or os.environ.get(_SERVER)
    token_file = value("token-file") or os.environ.get(_TOKEN_FILE)
    ca_file = value("ca-file") or os.environ.get(_CA_FILE)
    is_asked = value("profile") or value("lab")
    profile = find_profile() if is_asked or not server else None
    if profile is not None:
        return Target(
            url=server or profile.server,
            token=_read_token(Path(token_file) if token_file else profile.token_file),
            ca_file=Path(ca_file) if ca_file else profile.ca_file,
            rescue=profile.rescue,
        )
    if not server:
        raise UsageError(
            "No config server is known",
            cause="neither a profile nor a server was given",
            action=f"Give --profile FILE, --lab DIR or --server URL, or set {_PROFILE}, {_LAB} or {_SERVER}. `understudy init` wrote "
            "/etc/understudy/profile.toml on the config server.",
        )
    from shared.naming import is_server_url

    if not is_server_url(server):
        raise UsageError(
            f"'{server}' is no config server",
            cause="its URL must look like https://HOST or https://HOST:PORT",
            action=f"Correct --server or {_SERVER}.",
        )
    if not token_file:
        raise AccessError(
            "The operator token is missing",
            cause="no file was given",
            action=f"Give --token-file FILE or set {_TOKEN_FILE}; the config server writes it to operator.token.",
        )
    return Target(server, _read_token(Path(token_file)), Path(ca_file) if ca_file else None, None)


def _read_token(path: Path) -> str:
    try:
        token = path.read_text("ascii").strip()
    except OSError as exc:
        raise AccessError(
            f"The operator token {path} could not be read",
            cause=cause_of(exc),
            action="Run as the user who owns it (root), or give another file with --token-file.",
        ) from exc
    except UnicodeDecodeError:
        token = ""
    if len(token.split()) != 1:
        raise AccessError(
            f"The file {path} does not hold an operator token",
            cause="it must hold the token and nothing else",
        )
    return token
