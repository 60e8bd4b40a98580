"""Entry of the `understudy` command: which commands there are, and how errors end it.

Exit codes: 0 ok, 1 bug, 2 usage, 3 not found, 4 timeout, 5 unhealthy, 128 + N ended by signal N. An error is three lines on stderr:
what failed, why, and what to do; a traceback appears for bugs only.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from importlib.metadata import EntryPoints, entry_points
from typing import Any, Final

import click

from config_server.cli.options import COMMON, add_options
from config_server.cli.output import printing, say
from shared.daemon.log_sink import fill_standard_descriptors
from shared.errors import UnderstudyError, UsageError
from shared.version import VERSION

_VERBS: Final = "understudy.verbs"
"""Entry points of this group are commands of other packages, `lab` and `init`: this one knows none of them."""
_COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "machine": ("machine_commands:machine", "Protected machines: state, progress, health."),
    "point": ("point_commands:point", "Recovery points: list, create, verify."),
    "restore": ("restore_command:restore", "Rebuild a machine's disks from a recovery point."),
    "event": ("record_commands:event", "What went wrong, and what happened."),
    "job": ("job_commands:job", "Long operations: restores, resyncs."),
    "daemon": ("record_commands:daemon", "Agents and servers that report."),
    "audit": ("record_commands:audit", "Who changed what."),
    "policy": ("policy_commands:policy", "Replication policies: list, set, assign."),
    "certificate": ("certificate_commands:certificate", "Certificates of daemons: list, revoke."),
    "ca": ("ca_commands:ca", "The CA: show, renew, trust."),
    "grant": ("grant_commands:grant", "Who may read a machine's storage: list, revoke."),
    "storage": (
        "storage_commands:storage",
        "The storage account: is it fit for an installation, and why not.",
    ),
    "token": ("token_commands:token", "Enrolment tokens for new hosts: list, create, end."),
    "operator": ("token_commands:operator", "Who may call, with which tokens: list, add, end."),
    "vault": ("token_commands:vault", "The vault's keys: show."),
    "completion": ("completion_command:completion", "Tab completion for a shell."),
}


class LazyGroup(click.Group):
    """Loads a command's module when it is used; the list of this package's own commands needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*sorted(_verbs().names - _COMMANDS.keys()), *_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found: click.Command
        if cmd_name in _COMMANDS:
            module, _, name = _COMMANDS[cmd_name][0].partition(":")
            found = getattr(importlib.import_module(f"config_server.cli.{module}"), name)
            return found
        for verb in _verbs().select(name=cmd_name):
            found = verb.load()
            return found
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._line(ctx, name)) for name in self.list_commands(ctx)])

    def _line(self, ctx: click.Context, name: str) -> str:
        if name in _COMMANDS:
            return _COMMANDS[name][1]
        command = self.get_command(ctx, name)
        return command.get_short_help_str(limit=80) if command else ""


def _verbs() -> EntryPoints:
    return entry_points(group=_VERBS)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@add_options(*COMMON)
@click.version_option(VERSION)
def cli() -> None:
    """Disaster recovery of Linux machines: continuous, block by block, to blob storage and back."""


def main() -> None:
    """The console script. Never returns."""
    fill_standard_descriptors()
    sys.exit(run())


def run(args: list[str] | None = None) -> int:
    """Run the command line; its exit code."""
    try:
        _check_text(sys.argv[1:] if args is None else args)
        with printing():  # also what click itself prints: help, version
            return _run(args)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except UnderstudyError as exc:
        show_error(exc)
        return exc.exit_code


def _check_text(args: list[str]) -> None:
    """Everything that is given may be shown, stored as JSON, or sent: as UTF-8."""
    for argument in args:
        try:
            argument.encode()
        except UnicodeEncodeError as exc:
            raise UsageError(
                f"The argument {os.fsencode(argument)!r} cannot be used",
                cause="its bytes are not UTF-8",
                action="Use names that are; a folder can be renamed, or reached by a link with another name.",
            ) from exc


def _run(args: list[str] | None) -> int:
    try:
        result: Any = cli.main(args=args, prog_name="understudy", standalone_mode=False)
    except SystemExit as exc:  # so click ends for one reason: the reader of stdout has gone
        raise BrokenPipeError from exc
    except click.ClickException as exc:
        with contextlib.suppress(OSError):  # stderr may be full
            exc.show()
        return exc.exit_code
    except click.Abort as exc:  # click makes it of Ctrl-C, too; at a question nothing was begun
        say("Interrupted." if isinstance(exc.__cause__, KeyboardInterrupt) else "Aborted.")
        return 130
    return result if isinstance(result, int) else 0


def show_error(exc: UnderstudyError) -> None:
    """What, why, what to do; on stderr."""
    say(f" {exc.code}: {exc.what}.", head=click.style("Error", fg="red", bold=True))
    if exc.cause:
        say(f"  Why: {exc.cause}")
    if exc.action:
        say(f"  Do:  {exc.action}")


if __name__ == "__main__":
    main()
