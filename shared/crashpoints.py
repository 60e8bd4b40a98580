"""Named points at which a test can kill the process, as a power cut would.

`UNDERSTUDY_CRASH_AT=name` kills (SIGKILL) at the first `reach(name)`, `name:3` at the third. Otherwise
`reach` does nothing.
"""

from __future__ import annotations

import os
import signal
from typing import Final

_left: dict[str, int] = {}

POINTS: Final = (
    "spool.before-write",
    "spool.before-fdatasync",
    "spool.after-fdatasync",
    "spool.before-footer",
    "spool.after-footer",
    "upload.before-create",
    "upload.after-create",
    "index.before-append",
    "index.after-append",
    "index.after-rotation",
    "doubt.after-lease",
    "doubt.after-look",
    "upload.before-delete",
    "take.after-term",
    "take.after-claim",
    "epoch.after-create",
)
"""The points of the process server's data path, in its order; a crash test visits each."""

ATTACH_POINTS: Final = (
    "attach.after-want",
    "attach.after-keep",
    "attach.in-detach",
    "attach.after-detach",
    "attach.before-publish",
    "attach.after-publish",
)
"""The points of an agent that attaches capture afresh, in its order; a crash test visits each."""

WISH_POINTS: Final = (
    "wish.before-write",
    "wish.after-write",
    "wish.before-detach",
    "attach.in-detach",
    "wish.after-detach",
    "wish.after-forget",
)
"""The points of an agent that does what the config server wants, in its order (the last four: to stop); a crash test visits each."""

CONTROL_POINTS: Final = (
    "grant.in-row",
    "grant.given",
    "grant.longer-in-row",
    "grant.longer",
    "grant.ended-in-storage",
    "grant.strays-noted",
    "grant.strays-removed",
    "revocation.in-row",
    "revocation.in-storage",
)
"""The points of a config server between its database and storage; a crash test visits each."""


FORCE_POINTS: Final = ("generation.before-put", "generation.put", "state.before-put", "state.put")
"""The points of a config server that takes over, and puts its state into storage, in its order; a crash test visits each."""


DELETION_POINTS: Final = (
    "deletion.closing",
    "deletion.revoked",
    "deletion.unnoted",
    "deletion.removing",
    "deletion.container-gone",
    "deletion.gone",
    "deletion.entry-gone",
)
"""The points of a config server that deletes a machine, in its order; a crash test visits each."""


FORGET_POINTS: Final = (
    "forget.logs-closed",
    "forget.aside-file-gone",
    "forget.aside-gone",
    "forget.epoch-moved",
    "forget.epoch-gone",
    "forget.beside-gone",
)
"""The points of a process server that drops what it has of a machine that was deleted, in its order; a crash test visits each."""


CA_POINTS: Final = (
    "ca.in-database",
    "ca.between-key-and-certificates",
    "ca.switched",
    "ca.dropped",
)
"""The points of a config server that renews its CA, in their order (the second: each time that the files change); a crash test visits
each."""


def arm(at: str) -> None:
    """Die at `name` or `name:count`."""
    name, _, count = at.partition(":")
    _left[name] = int(count or "1")


def reach(name: str) -> None:
    if name not in _left:
        return
    _left[name] -= 1
    if _left[name] == 0:
        os.kill(os.getpid(), signal.SIGKILL)


if _at := os.environ.get("UNDERSTUDY_CRASH_AT"):
    arm(_at)
