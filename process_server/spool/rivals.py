"""Another copy of a machine at another process server: is it at work in the epoch that this Hello would end? (I7)

At one process server the receiver asks the other copy itself: a session of another boot that answers a ping is there. A session at
another process server cannot be asked. What shows is the log: an agent that is there sends at least a heartbeat every few seconds, so soon
there is a batch in it that was captured after this Hello came. Before an epoch that another boot began is ended, and another process
server has its log, that is looked at, Hello after Hello:

- a batch was captured since the first look: somebody is at work in it, and whoever says Hello is the copy: CopyRefusedError, which names
  the other;
- the log stood still for `Patience.copy_s`, or moved for six times as long without such a batch (a server that lists what it still has of
  a machine that is gone): nobody is there any more, and the epoch may end;
- until then TransientError: the agent says Hello again in a moment. A machine that was restarted and moved at once waits so long.

What that guarantees. No two copies are ever in one epoch: WELCOME tells its claim to one boot alone. A copy that comes while the machine's
batches get to storage is refused before anything is touched. What it does not: while the machine's process server cannot reach storage, or
is minutes behind, and the copy's is not, the copy is taken for the machine. Then the machine is told by name, at its next Hello or when its
process server next looks at the log (machine_log.py), and is itself refused as long as the other works. And a live clone of a machine's
memory has the same boot; what keeps two of these apart is the term of the log and the digests of the batches.

Waiting goes by the looker's own monotonic clock. Captured times are the machine's: a clock that is minutes behind ours makes its batches
look old. An unknown boot, of either side, proves nothing and refuses nobody.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from process_server.spool.epoch_log import Resources
from shared.blob import BlobStore
from shared.errors import (
    BlobNotFoundError,
    CopyRefusedError,
    IndexDamagedError,
    TransientError,
)
from shared.log import names
from shared.log.epochs import EpochInfo
from shared.log.index import NO_TERM, IndexEntry, Term, decode_up_to_damage
from shared.log.terms import newest_term, read_term
from shared.wire.messages import Hello, kernel_of

monotonic_s: Final = time.monotonic
_MOVING: Final = 6
_TAIL_B: Final = 16 * 1024
"""Holds the last line of an index."""


@dataclass
class _Watched:
    epoch: EpochInfo
    began_s: float
    after_ns: int
    """A batch that was captured later was captured since the first look."""
    seen: object
    """Term, and how long the index is; since when…"""
    since_s: float


class Rivals:
    """Of one machine, at one process server."""

    def __init__(self, shared: Resources) -> None:
        self._shared = shared
        self._watched: _Watched | None = None

    async def check(self, hello: Hello, epoch: EpochInfo, store: BlobStore) -> None:
        """Whether `hello`, which wants a new one, may end `epoch`, the newest. Raises CopyRefusedError, TransientError."""
        if not hello.boot or not epoch.boot or kernel_of(hello.boot) == kernel_of(epoch.boot):
            return
        term = await newest_term(store, epoch.epoch)
        if term == NO_TERM or await _owner(store, epoch, term) == self._shared.settings.owner:
            return  # the receiver has asked it
        sizes, captured_ns = await _end(store, epoch)
        now, seen = monotonic_s(), (term, sizes)
        watched = self._watched
        if watched is None or watched.epoch != epoch:
            watched = self._watched = _Watched(epoch, now, max(time.time_ns(), captured_ns), seen, now)
        if watched.seen != seen:
            watched.seen, watched.since_s = seen, now
        if captured_ns > watched.after_ns:
            self._watched = None
            raise CopyRefusedError(
                f"A copy of machine {epoch.machine} was refused",
                cause=f"the machine is at work elsewhere: {epoch.begun_by}; this is boot {hello.boot}",
            )
        still_s = self._shared.settings.patience.copy_s
        if now - watched.since_s >= still_s or now - watched.began_s >= _MOVING * still_s:
            self._watched = None
            return
        raise TransientError(
            f"Machine {epoch.machine} cannot be taken yet",
            cause=f"another boot of it may be at work: {epoch.begun_by}",
            action=f"It is taken by itself when nothing new came from that one for {still_s:.0f} s.",
        )


async def _owner(store: BlobStore, epoch: EpochInfo, term: Term) -> str:
    try:
        return (await read_term(store, epoch.epoch, term.number)).owner
    except (BlobNotFoundError, IndexDamagedError):
        return ""


async def _end(store: BlobStore, epoch: EpochInfo) -> tuple[list[tuple[str, int]], int]:
    """How long the blobs of its index are, and when the newest listed batch was captured; 0: not known."""
    prefix = f"{names.epoch_folder(epoch.epoch)}index-"
    sizes = sorted([(info.name, info.size_b) async for info in store.list(prefix)])
    if not sizes:
        return sizes, 0
    name, size_b = sizes[-1]
    at = max(0, size_b - _TAIL_B)
    data = await store.read(name, at, size_b - at)
    lines, _ = decode_up_to_damage(data[data.find(b"\n") + 1 :] if at else data, name)
    return sizes, max((line.last_captured_ns for line in lines if isinstance(line, IndexEntry)), default=0)
