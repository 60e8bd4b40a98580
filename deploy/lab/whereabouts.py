"""Whether a folder is the lab that it says it is.

A lab has things outside of its folder: daemons, which are found by the folder's path, and pins and an entry of the registry, which
are found by its id. A copy of the folder has the same id; a folder that was moved, or is mounted elsewhere, has another path.
Commands that change something would touch another lab's things, or leave the lab's own behind.
"""

from __future__ import annotations

from pathlib import Path

from deploy.lab import registry
from deploy.lab.daemons import pid_of
from deploy.lab.state import Lab
from shared.errors import LabError, UnderstudyError


def check(lab: Lab) -> None:
    """Raises LabError where this folder is not the one that the lab of this id was made in, and that one is there still or has daemons."""
    folder = registry.folder_of(lab)
    if folder is None or folder.resolve() == lab.folder:
        return
    what = f"The lab in {lab.folder} was not touched"
    if _is_there(lab, folder):
        if folder.samefile(lab.folder):
            raise LabError(what, cause=f"it was made as {folder}", action=f"Use that path: --dir {folder}.")
        raise LabError(
            what,
            cause=f"it is a copy of the one in {folder}, whose capture and daemons are not this folder's",
            action=f"Use that one (--dir {folder}). The copy is nothing but files: rm -r {lab.folder}.",
        )
    before = Lab(folder, lab.settings)
    running = [daemon for daemon in before.daemons if pid_of(before, daemon) is not None]
    if running:
        raise LabError(
            what,
            cause=f"it was moved here from {folder} while daemons ran, and they run there still: {', '.join(running)}",
            action=f"Move it back to {folder}, stop it (understudy lab down), and then move it.",
        )


def _is_there(lab: Lab, folder: Path) -> bool:
    try:
        return Lab.open_to_wipe(folder).settings.id == lab.settings.id
    except UnderstudyError:  # none, or one that nobody can use
        return False
