"""`understudy completion SHELL`: prints the script that gives the shell tab completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script for tab completion. For bash: source <(understudy completion bash)"""
    from config_server.cli.main import cli

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"There is no completion for {shell}.")
    click.echo(found(cli, {}, "understudy", "_UNDERSTUDY_COMPLETE").source())
