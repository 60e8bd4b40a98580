"""Gap bridging: scattered small writes joined over the gaps between them, so that fewer requests are
needed. Pure.

A request costs as much as some hundred kilobytes of transfer, so writing a short gap again, with what the
seed disk holds there, beats a second request. It is not free: every page rewritten is paid again in the
next snapshots. So gaps are bridged only while apply is behind, shortest first, and never more bytes than
the *amplification* allows: bytes written, divided by bytes that had to be written.

Why it is correct: a bridged gap is touched by no run of the interval (gaps with a clear in them are left
alone). Its content was final before the interval began and nobody changes it until the interval is
finished; what is read back and written again is that content, in the first try as in any repetition after a
crash.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from shared.batch import SECTOR
from shared.recovery.coalesce import MAX_RUN_SECTORS, DiskRuns, Ints

Bools = npt.NDArray[np.bool_]

_MIN_RUNS: Final = 4
"""A bridge costs two requests, the read and the write: it must save more."""


class BridgeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    gap_b: int = 128 * 1024
    """Longest gap that is bridged; 0 switches bridging off."""
    amplification: float = 3.0
    """At most this many bytes are written for each byte that must be."""
    behind_s: float = 30.0
    """Bridge only while apply is this far behind the log."""


def bridge(runs: DiskRuns, settings: BridgeSettings) -> Ints:
    """Which consecutive writes go out as one request: rows (first of `runs.writes`, how many)."""
    if not len(runs.writes):
        return np.empty((0, 2), np.int64)
    linked = _linked(runs, settings)
    sizes = _groups(linked)[:, 1]
    worth = np.repeat(sizes >= _MIN_RUNS, sizes)  # per write: is its group large enough?
    return _groups(linked & worth[1:])


def _groups(linked: Bools) -> Ints:
    """Rows (first write, number of writes) of each chain; `linked[i]`: i and i + 1 are in one."""
    heads = np.flatnonzero(np.concatenate([[True], ~linked]))
    return np.stack([heads, np.diff(np.append(heads, len(linked) + 1))], axis=1)


def _linked(runs: DiskRuns, settings: BridgeSettings) -> Bools:
    """For each write but the first: is the gap before it bridged?"""
    first, length = runs.writes[:, 0], runs.writes[:, 1]
    ends = first + length
    gap = first[1:] - ends[:-1]
    # Both neighbours in one window of 4 MiB: so no chain of links grows beyond what one write may carry.
    same_window = first[:-1] // MAX_RUN_SECTORS == (ends[1:] - 1) // MAX_RUN_SECTORS
    # No clear begins inside the gap. (Clears are disjoint from writes: none reaches into it from outside.)
    clears = runs.clears[:, 0]
    clear_free = np.searchsorted(clears, ends[:-1]) == np.searchsorted(clears, first[1:])
    may = (gap > 0) & (gap * SECTOR <= settings.gap_b) & same_window & clear_free
    candidates = np.flatnonzero(may)
    shortest_first = candidates[np.argsort(gap[candidates], kind="stable")]
    budget = int(length.sum() * max(settings.amplification - 1, 0))
    linked: Bools = np.zeros(len(gap), np.bool_)
    linked[shortest_first[np.cumsum(gap[shortest_first]) <= budget]] = True
    return linked
