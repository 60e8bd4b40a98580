"""What is declared unreadable, in the few words of `state` that survive a kill: ranges that cover all of it. Pure.

word 0     claim of the epoch of which the others tell; under another claim they tell nothing
word 1-5   a range each: 40 bits of its first sector, on all disks laid end to end, each in 2^34 sectors; 24 bits of length. 0: none
length     below 2^23 sectors exactly; else 2^23, and in units of 2^18 sectors, rounded up

Where there are more runs than words, those that lie nearest to each other share one, with what is between them: what is named too much is
asked for and given, and read once more, while what is named too little would never be read again.

A kill may fall between any two stores. So while the others change, the last word covers all that was named before and is now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

WORDS: Final = 6
_SECTOR_BITS, _COUNT_BITS = 34, 24
_LONG: Final = 1 << _COUNT_BITS - 1
_UNIT_BITS: Final = 18

Span = tuple[int, int]
"""First sector and end, on all disks laid end to end."""


def load(
    words: npt.NDArray[np.uint64], claim: int, disk_sectors: Sequence[int]
) -> list[tuple[int, int, int]]:
    """(disk, first sector, end) of ranges that cover what was kept under this claim, disjoint; what is of no disk is ignored."""
    if int(words[0]) != claim:
        return []
    found: list[tuple[int, int, int]] = []
    for disk, sectors in enumerate(disk_sectors):
        base = disk << _SECTOR_BITS
        for start, end in _merged(_spans(words)):
            first, stop = max(start - base, 0), min(end - base, sectors)
            if first < stop:
                found.append((disk, first, stop))
    return found


def keep(words: npt.NDArray[np.uint64], claim: int, runs: Sequence[tuple[int, int, int]]) -> None:
    """`runs`: (disk, first sector, end), disjoint and sorted."""
    if int(words[0]) != claim:
        words[1:] = 0
        words[0] = claim
    spans = _covering(
        [(disk << _SECTOR_BITS | first, (disk << _SECTOR_BITS) + end) for disk, first, end in runs]
    )
    if any(everything := [*_spans(words), *spans]):
        words[-1] = _packed((min(everything)[0], max(end for _, end in everything)))
    packed = [_packed(span) for span in spans] + [0] * (WORDS - 1 - len(spans))
    for at, word in enumerate(packed, 1):
        words[at] = word


def _spans(words: npt.NDArray[np.uint64]) -> list[Span]:
    return [_unpacked(word) for word in words[1:].tolist() if word]


def _covering(spans: list[Span]) -> list[Span]:
    """As many as there are words for: only the widest gaps are left out."""
    room = WORDS - 1
    if len(spans) <= room:
        return spans
    bounds = np.array(spans, np.int64)
    widest = np.sort(np.argpartition(bounds[1:, 0] - bounds[:-1, 1], -(room - 1))[-(room - 1) :])
    firsts = bounds[np.concatenate(([0], widest + 1)), 0].tolist()
    return list(zip(firsts, bounds[np.concatenate((widest, [-1])), 1].tolist(), strict=True))


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for first, end in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((first, end))
    return merged


def _packed(span: Span) -> int:
    first, end = span
    count = end - first
    if count >= _LONG:
        count = _LONG | -(-count >> _UNIT_BITS)
    return first << _COUNT_BITS | count


def _unpacked(word: int) -> Span:
    first, count = word >> _COUNT_BITS, word % (1 << _COUNT_BITS)
    return first, first + (count if count < _LONG else (count - _LONG) << _UNIT_BITS)
