"""`understudy init`: a verb of the command line (entry point in pyproject.toml), whose own package knows nothing of the server."""

from __future__ import annotations

import click

from config_server.cli.options import value


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Begin an installation: set up the config server on this host.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def init(arguments: tuple[str, ...]) -> int:
    """Begin an installation: set up the config server on this host. Its options are `python -m config_server setup`'s."""
    from config_server.setup.command import main

    form = ["--output", "json"] if value("output") == "json" else []
    try:
        return main([*form, *arguments])
    except SystemExit as exc:  # so argparse ends: with its help, or for what it does not understand
        raise click.exceptions.Exit(exc.code if isinstance(exc.code, int) else 1) from exc
