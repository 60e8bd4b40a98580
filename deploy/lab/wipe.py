"""`lab down` and `lab down --wipe`. A wipe ends the story, whatever state the lab is in: half made, half deleted, on a full disk.

It needs no room and none of the lab's files but its settings; each step finds by itself what is left to do, and the settings go last,
so that an interrupted wipe is run again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from deploy.lab import azurite, files, registry, whereabouts
from deploy.lab.daemons import Show, end_now, environment, stop
from deploy.lab.state import LAST, Lab, is_rest
from deploy.lab.vocabulary import Daemon
from shared.crashpoints import reach
from shared.errors import DaemonError, LabError, UnderstudyError
from shared.host import durable, protected
from shared.host.storage_stack import mounts_below
from shared.host.toml import to_toml


def down(lab: Lab, show: Show) -> None:
    """Stop all daemons. Capture stays attached: the next `up` continues it. Raises LabError where they are another lab's."""
    whereabouts.check(lab)
    errors: list[UnderstudyError] = []
    for daemon in reversed(lab.daemons):
        try:
            stop(lab, daemon, show)
        except DaemonError as exc:
            errors.append(exc)  # one that hangs must not keep the others running
    if errors:
        raise errors[0]


def wipe(lab: Lab, show: Show) -> None:
    """Stop everything, detach the capture, delete the folder. Raises LabError for what is not the lab's and in the way, DaemonError
    when a trace would stay."""
    whereabouts.check(lab)
    _check_mounts(lab.folder)
    for daemon in reversed(lab.daemons):
        try:
            stop(lab, daemon, show)
        except DaemonError:
            end_now(lab, daemon)
        reach("wipe.step")
    azurite.restore_port(lab)
    if lab.pin_dir.exists():
        show("detaching the capture")
        _detach(lab)
    reach("wipe.step")
    protected.forget(lab.pin_dir)
    registry.unregister(lab)
    show("deleting the folder")
    with durable.named(
        f"The lab in {lab.folder} could not be deleted",
        DaemonError,
        action="Put that right and run the command again.",
    ):
        lab.begin_wipe()
        reach("wipe.step")
        _delete(lab.named)


def wipe_rest(folder: Path) -> bool:
    """Delete what a `lab up` left that was cut off before there was a lab; False when the folder is something else."""
    if not is_rest(folder):
        return False
    with durable.named(
        f"{folder} could not be deleted", DaemonError, action="Put that right and run the command again."
    ):
        _delete(folder)
    return True


def _check_mounts(folder: Path) -> None:
    """What is mounted below the lab may be anybody's: it is neither emptied nor unmounted here."""
    mounts = mounts_below(folder)
    if mounts:
        raise LabError(
            f"The lab in {folder} was not deleted",
            cause=f"something is mounted on {', '.join(map(str, mounts))}, and nothing of that may be lost",
            action="Unmount it (umount), empty it if it is the lab's, and run the command again.",
        )


def _detach(lab: Lab) -> None:
    """By a configuration in memory: the lab's own may be gone already, and the disk may have no room for another."""
    config = os.memfd_create("agent.toml")
    try:
        durable.write_all(config, [to_toml(_agent_config(lab)).encode()], 0)
        result = subprocess.run(
            [sys.executable, "-m", "agent", "detach", "--config", f"/proc/self/fd/{config}"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            cwd="/",
            env=environment(lab),
            pass_fds=[config],
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise DaemonError(
            "The capture could not be detached, so the lab was not deleted",
            cause=f"that was not done within {exc.timeout:.0f} s",
            action="Run the command again.",
        ) from exc
    finally:
        os.close(config)
    if result.returncode != 0:
        raise DaemonError(
            "The capture could not be detached, so the lab was not deleted",
            cause=(result.stderr or result.stdout).strip()[-500:] or f"exit code {result.returncode}",
            action="Put that right and run the command again.",
        )


def _agent_config(lab: Lab) -> dict[str, Any]:
    return files.configs(lab)[Daemon.AGENT]


def _delete(folder: Path) -> None:
    """All that is in it, and the folder itself unless it is a mount or a link, which somebody else made."""
    for entry in folder.iterdir():
        if entry.name not in (*LAST, "lost+found"):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            reach("wipe.step")
    for name in LAST:
        (folder / name).unlink(missing_ok=True)
        reach("wipe.step")
    if not folder.is_mount() and not folder.is_symlink():
        folder.rmdir()
