"""What the agent itself writes onto disks that it captures.

Each such write is replicated like any other. In steady state the agent writes nothing into its state_dir, and to its log what happens: so
this is said and not refused (the root disk of a machine is protected with /var on it). Where a log is written for each batch, it would feed
itself; ours is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.capture.disks import Disk
from shared.host.storage_stack import disks_below

_OUTPUTS = (1, 2)


def on_captured(
    state_dir: Path, disks: Sequence[Disk], *, outputs: Sequence[Path] | None = None
) -> list[str]:
    """What of the agent's own lies on these disks, in any layer; for people."""
    ids = {disk.name: disk.id for disk in disks}
    said = []
    logs = outputs if outputs is not None else _log_files()
    for what, path in (("state_dir", state_dir), *(("log", path) for path in logs)):
        try:
            found = disks_below(path)
        except OSError as exc:
            said.append(f"where the {what} {path} lies cannot be seen: {exc}")
            continue
        said += [f"the {what} {path} lies on disk {ids[name]}" for name in sorted(found & ids.keys())]
    return said


def _log_files() -> list[Path]:
    """Files that standard output and error are written to."""
    targets = {Path(f"/proc/self/fd/{fd}").resolve() for fd in _OUTPUTS}
    return sorted(target for target in targets if target.is_file())
