"""`understudy lab …`: a whole installation on this host."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from config_server.cli.options import COMMON, OUTPUT, add_options, chosen_folder
from config_server.cli.output import Progress, emit, grid, say
from deploy.lab.vocabulary import Daemon
from shared.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from deploy.lab.actions import LabStatus
    from deploy.lab.state import Lab

_daemon_argument = click.argument(
    "daemon",
    type=click.Choice([daemon.value for daemon in Daemon]),
    callback=lambda _ctx, _param, name: Daemon(name),
)
_dir_option = click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The lab's folder. Default: --lab, UNDERSTUDY_LAB.",
)


@click.group(short_help="A whole installation on this host, for trials and tests.")
@add_options(*COMMON)
def lab() -> None:
    """A whole installation on this host, which protects its disks as one machine named "lab"."""


def _power_of_two(_ctx: click.Context, _param: click.Parameter, value: int | None) -> int | None:
    if value is not None and value & (value - 1):
        raise click.BadParameter(f"{value} is not a power of two: 1, 2, 4, … 1024")
    return value


@lab.command()
@_dir_option
@click.option(
    "--disk", "disks", multiple=True, metavar="DEV", help="A whole disk to protect; may be repeated."
)
@click.option(
    "--point-interval",
    "point_interval_s",
    type=click.FloatRange(min=1),
    metavar="S",
    help="Seconds between recovery points. Default: 300.",
)
@click.option(
    "--segment-seconds",
    type=click.FloatRange(min=0.1, max=60),
    metavar="S",
    help="A log segment is uploaded after so long; the floor of the RPO. Default: 5.",
)
@click.option(
    "--ring-mib",
    type=click.IntRange(1, 1024),
    callback=_power_of_two,
    metavar="N",
    help="Kernel ring buffer, a power of two. Default: 64.",
)
@click.option(
    "--cache-mib",
    type=click.IntRange(min=16),
    metavar="N",
    help="Cache of the process server. Default: 2048.",
)
@click.option(
    "--port-base",
    type=click.IntRange(1024, 65000),
    metavar="P",
    help="Config server at P, process server at P+3, Azurite at P+10. Default: 9440.",
)
@click.option("--blob-url", metavar="URL", help="A storage account instead of an own Azurite.")
@click.option("--blob-container", metavar="NAME", help="Container in it. Default: understudy.")
@click.option(
    "--blob-key-file",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    metavar="FILE",
    help="File with its account key. Default: Azure's credential chain.",
)
@click.option(
    "--blob-ca-file",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    metavar="FILE",
    help="CA certificate of its server, when it is no public one.",
)
@OUTPUT
def up(folder: Path | None, disks: tuple[str, ...], **options: Any) -> None:
    """Make or continue a lab; returns when all its daemons are ready."""
    from deploy.lab import actions

    where = folder.absolute() if folder else chosen_folder()
    if where is None:
        raise UsageError("No folder was given for the lab", action="Give --dir DIR.")
    wanted = {name: value for name, value in options.items() if value is not None}
    if disks:
        wanted["disks"] = disks
    with Progress() as progress:
        made = actions.up(where, wanted, lambda text: progress.show(text, force=True))
    _show(made)


@lab.command()
@_dir_option
@OUTPUT
def status(folder: Path | None) -> None:
    """Daemons, ports and places of a lab."""
    _show(_find(folder))


@lab.command()
@_daemon_argument
@_dir_option
@OUTPUT
def start(daemon: Daemon, folder: Path | None) -> None:
    """Start a daemon that was stopped or killed, and wait until it is ready."""
    _change(folder, daemon, "start")


@lab.command()
@_daemon_argument
@_dir_option
@OUTPUT
def stop(daemon: Daemon, folder: Path | None) -> None:
    """Stop a daemon in order (SIGTERM), and wait until it is gone."""
    _change(folder, daemon, "stop")


@lab.command()
@_daemon_argument
@_dir_option
@OUTPUT
def kill(daemon: Daemon, folder: Path | None) -> None:
    """Kill a daemon at once (SIGKILL). Azurite is first cut off and may write what it acknowledged."""
    _change(folder, daemon, "kill")


def _change(folder: Path | None, daemon: Daemon, verb: Literal["start", "stop", "kill"]) -> None:
    from deploy.lab import daemons, whereabouts
    from deploy.lab.state import locked

    found = _find(folder)
    whereabouts.check(found)
    acts = {"start": daemons.start, "stop": daemons.stop, "kill": daemons.kill}
    with locked(found.folder), Progress() as progress:
        ran = acts[verb](found, daemons.require_daemon(found, daemon), progress.show)
    if ran is False:
        say(f"{daemon} was not running.")
    _show(found)


@lab.command()
@_dir_option
@click.option(
    "--wipe", is_flag=True, help="Detach the capture and delete the lab with all its recovery points."
)
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
def down(folder: Path | None, wipe: bool, yes: bool) -> None:
    """Stop all daemons. Capture goes on in the kernel, and the next `lab up` continues."""
    from deploy.lab import wipe as actions
    from deploy.lab.state import Lab, locked

    if not wipe:
        found = _find(folder)
        with locked(found.folder), Progress() as progress:
            actions.down(found, progress.show)
        say("The lab is down; capture goes on.")
        return
    where = _where(folder)
    if not yes and sys.stdin.isatty():
        click.confirm(f"Delete the lab in {where}, with all recovery points in it?", abort=True, err=True)
    if Lab.is_one(where) or not actions.wipe_rest(where):
        found = Lab.open_to_wipe(where)
        with locked(where), Progress() as progress:
            actions.wipe(found, progress.show)
    say("The lab is deleted.")


def _where(folder: Path | None) -> Path:
    where = folder.absolute() if folder else chosen_folder()
    if where is None:
        raise UsageError("No lab was given", action="Give --dir DIR, or set UNDERSTUDY_LAB.")
    return where


def _find(folder: Path | None) -> Lab:
    from deploy.lab.state import Lab

    return Lab.open(_where(folder))


def _show(found: Lab) -> None:
    from deploy.lab.actions import status as status_of

    shown = status_of(found)
    emit(shown, lambda: _table(shown))


def _table(shown: LabStatus) -> Table:
    rows = [
        (name, daemon.state, str(daemon.pid or ""), " ".join(map(str, daemon.ports)), daemon.log)
        for name, daemon in shown.daemons.items()
    ]
    title = f"Lab {shown.dir}: {', '.join(shown.disks)} as machine '{shown.machine}', {shown.config_server}"
    return grid(title, ("daemon", "state", ">pid", "ports", "log"), rows)
