"""Where emission stands in the ring: what has been emitted, what of the ring is still needed, which open bios are orphans.

Input: the ring. Output: `take`, a batch's worth of whole bios. `drop_orphans_if_due` waits for a grace period in a thread; nothing else
blocks.

A bio that is open holds the ring from its first piece on. Whether it failed shows a grace period (bios.py): a program run that had
reserved anything below Pg, sampled before it, had ended before P0, sampled after it. So in a window that reaches to P0, an open bio with
a piece below Pg is an orphan. In one that ends before, as when records are read again after a broken session, the end of the window may
just have cut the bio off from its last piece.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.capture.ring import Ring, Window
from agent.stream.bios import Assembled, assemble, end_within, to_extents
from shared.batch import Extents
from shared.daemon import logging
from shared.daemon.threads import begun, ended
from shared.errors import NoThreadError

MAX_RECORDS: Final = 1024
"""Ring records in a batch: 4 MiB of data at most."""
MAX_PIECES: Final = 2048
"""Records whose data one batch carries: 8 MiB, more than `MAX_RECORDS` when bios that began in earlier ones become whole. The kernel's
programs capture no bio that has more."""
_log = logging.get()

HOLD_PATIENCE_S: Final = 1.0
"""How long an open bio may hold the ring before it is found out whether it is an orphan."""


@dataclass(frozen=True, slots=True)
class Taken:
    extents: Extents
    stands: npt.NDArray[np.int64]
    """The ring position at which each extent stands."""
    payload: npt.NDArray[np.uint8]
    newest_ns: int
    """Boot-clock time of the newest record; 0 if there is none."""


class Records:
    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.emitted_to = ring.consumer_seq
        """Every bio that stands below is emitted."""
        self.hold_from = ring.consumer_seq
        """Nothing below is needed any more once what was emitted is safe."""
        self._grace = (0, 0)
        """(Pg, P0) of the newest grace period."""
        self._waiting: asyncio.Future[None] | None = None
        """As in `rounds`: not a task."""
        self._held = (0, 0.0)
        """What `hold_from` was, and since when."""
        self.trouble: NoThreadError | None = None
        """Why it is not known whether what is held back can go on."""

    def take(self, end_of: Callable[[Window], int]) -> Taken:
        """Emits the next bios, up to a batch's worth. `end_of` says where the window of records has to end: at its end, or before."""
        self._ring.rewind_to(self.hold_from)
        window = self._ring.peek(self.emitted_to + MAX_RECORDS - self.hold_from)
        end = end_of(window)
        got = self._assemble(window, end)
        if (fitting := end_within(got, MAX_PIECES)) is not None:
            end = fitting
            got = self._assemble(window, end)
        count = end - window.first_seq
        headers = window.headers[:count]
        extents, stands, payload = to_extents(headers, window.data[:count], got)
        times = headers["time_ns"][window.valid[:count]]
        newest_ns = int(times.max()) if len(times) else 0
        self.emitted_to, self.hold_from = end, got.hold_from
        return Taken(extents, stands, payload, newest_ns)

    def go_to(self, emitted_to: int, hold_from: int | None) -> None:
        """Goes on behind `emitted_to`. `hold_from`: what it was when that was emitted, if that is known; else it is found out."""
        self.emitted_to = emitted_to
        if hold_from is None:
            first = self._ring.consumer_seq
            self._ring.rewind_to(first)
            hold_from = self._assemble(self._ring.peek(emitted_to - first), emitted_to).hold_from
        self.hold_from = hold_from

    def note_grace(self, before: int, after: int) -> None:
        """A grace period passed between the producer positions `before` and `after`."""
        self._grace = before, after

    async def drop_orphans_if_due(self, wait_for_programs: Callable[[], None]) -> None:
        """A round has a grace period, but may last for hours: so after some patience there is one of its own. Where there
        is no room for its thread, it is tried again after as much patience (`trouble`)."""
        now = time.monotonic()
        if self.hold_from >= self.emitted_to or self.hold_from != self._held[0]:
            self._held, self.trouble = (self.hold_from, now), None
        elif now - self._held[1] >= HOLD_PATIENCE_S:
            before = self._ring.producer_seq
            if self._waiting is not None:  # for a session that ended meanwhile
                await asyncio.wait([self._waiting])
            self._held = self.hold_from, now
            try:
                self._waiting = begun(wait_for_programs)
            except NoThreadError as exc:
                if self.trouble is None:
                    _log.warning("writes are held back for longer; it is tried again", **exc.as_dict())
                self.trouble = exc
                return
            await asyncio.shield(self._waiting)
            self.note_grace(before, self._ring.producer_seq)
            self._held, self.trouble = (self.hold_from, time.monotonic()), None

    async def close(self) -> None:
        """Waits for the thread that may still wait for a grace period, also when it is cancelled: it works on a descriptor that is closed
        next."""
        if self._waiting is not None:
            await ended(self._waiting)

    def _assemble(self, window: Window, end: int) -> Assembled:
        count = end - window.first_seq
        headers, valid = window.headers[:count], window.valid[:count]
        return assemble(headers, valid, window.first_seq, self.emitted_to, self._dead_before(end))

    def _dead_before(self, end: int) -> int:
        """In a window that ends at `end`: below which position the first piece of an open bio tells that it is an orphan."""
        before, after = self._grace
        return before if end >= after else 0
