"""`understudy init` and `understudy server …`: verbs of the command line (entry points in pyproject.toml), whose own package knows nothing
of the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

    return _run(main, arguments)


@click.group(short_help="The config server on this host.")
def server() -> None:
    """The config server on this host."""


@server.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    short_help="Take the place of one that is gone, from storage and the recovery key.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def recover(arguments: tuple[str, ...]) -> int:
    """Take the place of a config server that is gone. The options are `python -m config_server recover`'s."""
    from config_server.setup.recover_command import main

    return _run(main, arguments)


def _run(main: Callable[[Sequence[str]], int], arguments: tuple[str, ...]) -> int:
    form = ["--output", "json"] if value("output") == "json" else []
    try:
        return main([*form, *arguments])
    except SystemExit as exc:  # so argparse ends: with its help, or for what it does not understand
        raise click.exceptions.Exit(exc.code if isinstance(exc.code, int) else 1) from exc
