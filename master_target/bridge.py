"""Gap bridging: scattered small writes joined over the gaps between them, so that fewer requests are needed. Pure.

A request costs as much as reading and writing some hundred kilobytes (`request_b`). So a chain of n small writes goes out faster as
one write, its gaps filled with what the seed disk holds there, if the gaps together are shorter than (n − 2) × `request_b`: the
chain costs two requests, the read and the write. It is not free: every page rewritten is paid again in the next snapshots. So it
is done only while apply is behind, cheapest chains first, and within the *amplification* allowed: bytes written, divided by bytes
that had to be written.

Why it is correct: a bridged gap is touched by no run of the interval (gaps with a clear in them are left alone). Its content was
final before the interval began and nobody changes it until the interval is finished; what is read back and written again is that
content, in the first try as in any repetition after a crash.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from shared.batch import SECTOR
from shared.recovery.coalesce import MAX_RUN_SECTORS, DiskRuns, Ints


class BridgeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    request_b: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 96 * 1024
    """A request is taken to cost as much as reading and writing so many bytes; longer gaps are never filled. 0 switches it off."""
    amplification: Annotated[float, msgspec.Meta(ge=1, le=1e6)] = 8.0
    """At most this many bytes are written for each byte that must be."""
    behind_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 15.0
    """The master target is behind when it has not reached the end of the log for so long."""


def bridge(runs: DiskRuns, settings: BridgeSettings) -> Ints:
    """Which consecutive writes go out as one request: rows (first of `runs.writes`, how many)."""
    if not len(runs.writes):
        return np.empty((0, 2), np.int64)
    first, length = runs.writes[:, 0], runs.writes[:, 1]
    linked = _linked(runs, settings.request_b // SECTOR)
    head, count = _chains(linked).T
    gaps = np.add.reduceat(np.append(np.where(linked, first[1:] - (first + length)[:-1], 0), 0), head)
    saved = count - 2
    # A chain's last entry in `gaps` is that behind its last write, which is not linked: 0.
    worth = np.flatnonzero((saved > 0) & (gaps * SECTOR < saved * settings.request_b))
    cheapest = worth[np.argsort(gaps[worth] / saved[worth], kind="stable")]
    budget = int(length.sum() * max(settings.amplification - 1, 0))
    chosen = np.zeros(len(head), np.bool_)
    chosen[cheapest[np.cumsum(gaps[cheapest]) <= budget]] = True
    return _chains(linked & np.repeat(chosen, count)[1:])


def _chains(linked: npt.NDArray[np.bool_]) -> Ints:
    """Rows (first write, number of writes) of each chain; `linked[i]`: i and i + 1 are in one."""
    heads = np.flatnonzero(np.concatenate([[True], ~linked]))
    return np.stack([heads, np.diff(np.append(heads, len(linked) + 1))], axis=1)


def _linked(runs: DiskRuns, longest: int) -> npt.NDArray[np.bool_]:
    """For each write but the first: may the gap before it be bridged? `longest` in sectors."""
    first = runs.writes[:, 0]
    ends = first + runs.writes[:, 1]
    gap = first[1:] - ends[:-1]
    # Both neighbours in one window of 4 MiB: so no chain grows beyond what one write may carry.
    same_window = first[:-1] // MAX_RUN_SECTORS == (ends[1:] - 1) // MAX_RUN_SECTORS
    # No clear begins inside the gap. (Clears are disjoint from writes: none reaches into it from outside.)
    clears = runs.clears[:, 0]
    clear_free = np.searchsorted(clears, ends[:-1]) == np.searchsorted(clears, first[1:])
    may: npt.NDArray[np.bool_] = (gap > 0) & (gap <= longest) & same_window & clear_free
    return may
