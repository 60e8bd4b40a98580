"""The steps of a host that joins an installation: it asks the config server, enrols, is configured, and started."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shared import naming
from shared.control.enrol import read_token
from shared.errors import UsageError
from shared.setup.checks import Clock, ConfigServer
from shared.setup.command import Answers
from shared.setup.enrolment import Enrolment
from shared.setup.files import Configuration
from shared.setup.host import Host, Unit
from shared.setup.steps import Step
from shared.trust import identity


def add_joining(made: argparse.ArgumentParser) -> None:
    made.add_argument("--config-server", metavar="URL", help="https://HOST[:PORT]")
    made.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the enrolment token (- for standard input); needed until the host is enrolled. Never on the command line, "
        "which every user of the host can read",
    )
    made.add_argument(
        "--enrol-again",
        action="store_true",
        help="with a new token, for a new key, though this host is enrolled: its certificate was revoked, or its key may be stolen",
    )


class Joining:
    """`url` is the config server's. Raises UsageError, TokenMalformedError."""

    def __init__(self, host: Host, options: argparse.Namespace, answers: Answers) -> None:
        url = answers.value(
            options.config_server,
            ("control_url",),
            "--config-server",
            "The config server (https://HOST[:PORT])",
        )
        answers.check()
        if not naming.is_server_url(url):
            raise UsageError(
                f"'{url}' is no config server",
                cause="its URL must look like https://HOST or https://HOST:PORT",
                action="Correct --config-server.",
            )
        token = _token(options.token_file, asks=answers.asks)
        self.url = url.rstrip("/")
        self.host = host
        self.files = identity.files_in(host.folder)
        self.server = ConfigServer(self.url, token, self.files)
        self.enrolment = Enrolment(host.role, host.folder, self.server, token, again=options.enrol_again)

    def checked(self) -> Iterator[Step]:
        yield self.server
        yield Clock(self.server)

    def made(self, type_: type[msgspec.Struct], values: Callable[[str], Mapping[str, Any]]) -> Iterator[Step]:
        """`values`: the configuration, by the daemon's name, which is the token's and stands in its certificate."""
        yield self.enrolment
        config = Configuration(
            self.host.config, type_, values(self.enrolment.name or "NAME"), reader=self.host.user
        )
        yield config
        yield Unit(self.host, lambda: self.enrolment.made or config.made)

    @property
    def tls(self) -> dict[str, str]:
        return {name: str(getattr(self.files, name)) for name in ("cert", "key", "ca")}


def where_it_shows(host: Host) -> Sequence[str]:
    """What is left to do where a server was set up: to see that it came. Raises ConfigError."""
    name = identity.loaded_name(identity.files_in(host.folder)).partition(":")[2]
    return (
        f"Next, on the config server: understudy daemon list shows {host.role} {name} as soon as it reports.",
    )


def _token(file: Path | None, *, asks: bool) -> str:
    """ "": none was given."""
    if file is None:
        return (
            getpass.getpass("Enrolment token (not shown; none, if this host is enrolled): ").strip()
            if asks
            else ""
        )
    return sys.stdin.readline().strip() if str(file) == "-" else read_token(file).strip()
