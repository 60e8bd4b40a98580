"""`understudy init`: how an installation begins. The work is `python -m config_server setup`'s."""

from __future__ import annotations

import os
import sys

import click

from config_server.cli.options import value


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Begin an installation: set up the config server on this host.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def init(arguments: tuple[str, ...]) -> None:
    """Begin an installation: set up the config server on this host. `understudy init --help` says how."""
    form = ["--output", "json"] if value("output") == "json" else []
    os.execv(sys.executable, [sys.executable, "-m", "config_server", "setup", *form, *arguments])
