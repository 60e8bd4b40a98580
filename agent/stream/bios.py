"""From ring records to extents: a bio is atomic and stands at its last piece.

The kernel's programs cut a bio into pieces of at most 4096 bytes, one ring record each; two CPUs' pieces interleave. Every piece of a
bio is reserved in one program run, before the block layer gets the bio, so whoever depends on that write stands behind its last
piece. Emitting bios in the order of their last pieces is therefore an order in which the kernel was given the writes.

A bio without a last piece is *open*: either its program run has not finished yet, or it failed (ring full), marked the bio's range
and left orphans. Which of the two shows an RCU grace period: a run that had reserved anything below position Pg, sampled before
the grace period, has finished when the period has. So once everything below a position sampled after it has been parsed, an open bio
with a piece below Pg is an orphan and is dropped; its range is in the dirty bitmap, and the loss count has moved.

Pure functions over numpy arrays; thousands of records at once, no per-record Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from agent.capture.layout import DATA_B, FLAG_LAST
from shared.batch import EXTENT, SECTOR, Extents, Op

PIECE_SECTORS: Final = DATA_B // SECTOR

Headers = npt.NDArray[np.void]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Assembled:
    pieces: Indices
    """Indices into the window, in stream order: bios by last piece, pieces of a bio by number."""
    stands: Indices
    """For each of `pieces`, the ring position of its bio's last piece."""
    hold_from: int
    """First ring position that a bio not emitted yet needs: nothing from here on may be freed."""


def assemble(
    headers: Headers, valid: npt.NDArray[np.bool_], first_seq: int, emitted_to: int, dead_before: int
) -> Assembled:
    """Orders a window of records that begins at `first_seq` and ends at the batch's boundary.

    Bios that stand below `emitted_to` were emitted before. Open bios with a piece below `dead_before` are orphans.
    `valid` is False for records that the kernel discarded.
    """
    count = len(headers)
    end_seq = first_seq + count
    if count == 0:
        return Assembled(_EMPTY, _EMPTY, max(end_seq, emitted_to))
    bio, piece = headers["bio"], headers["piece"]
    last = (headers["flags"] & FLAG_LAST) != 0
    if first_seq >= emitted_to and valid.all() and _is_in_order(bio, piece, last):
        pieces = np.arange(count)
        ends = np.flatnonzero(last)
        stands = np.repeat(ends, np.diff(ends, prepend=-1)) + first_seq
        return Assembled(pieces, stands, end_seq)

    index = np.flatnonzero(valid)
    bio, piece, last = bio[index], piece[index], last[index]
    which, bios = _group(bio, headers["time_ns"][index])
    stand_of = np.full(bios, _OPEN, np.int64)
    stand_of[which[last]] = index[last] + first_seq
    first_of = np.full(bios, _OPEN, np.int64)
    np.minimum.at(first_of, which, index + first_seq)
    pieces_of = np.bincount(which, minlength=bios)
    length_of = np.zeros(bios, np.int64)
    length_of[which[last]] = piece[last].astype(np.int64) + 1
    whole = pieces_of == length_of
    is_open = (stand_of == _OPEN) & (first_of >= dead_before)
    emit = whole & (stand_of >= emitted_to)
    chosen = np.flatnonzero(emit[which])
    stands = stand_of[which[chosen]]
    order = np.lexsort((piece[chosen], stands))
    hold_from = int(first_of[is_open].min(initial=max(end_seq, emitted_to)))
    return Assembled(index[chosen][order], stands[order], hold_from)


def end_within(assembled: Assembled, most: int) -> int | None:
    """Where the window must end so that it gives at most `most` pieces, or one bio if that alone has more; None: it does as it is.

    All bios that were open until now may become whole at once, so the length of a window does not bound what it gives.
    """
    stands = assembled.stands
    if len(stands) <= most:
        return None
    ends = np.flatnonzero(np.diff(stands))  # the last piece of each bio but the last
    fitting = ends[ends < most]
    return int(stands[fitting[-1] if len(fitting) else 0]) + 1


def to_extents(
    headers: Headers, data: npt.NDArray[np.uint8], assembled: Assembled
) -> tuple[Extents, Indices, npt.NDArray[np.uint8]]:
    """Extents (one per bio), the ring position at which each stands, and their payload, contiguous.

    `data`: (n, 4096) bytes, the records' data areas. The payload is the only copy of the data that the agent makes.
    """
    pieces = assembled.pieces
    if not len(pieces):
        return np.zeros(0, EXTENT), _EMPTY, np.zeros(0, np.uint8)
    contiguous = bool(pieces[-1] - pieces[0] == len(pieces) - 1 and (np.diff(pieces) == 1).all())
    pick: Any = slice(int(pieces[0]), int(pieces[-1]) + 1) if contiguous else pieces
    rows = headers[pick]
    starts = np.flatnonzero(np.diff(assembled.stands, prepend=-1))
    extents = np.zeros(len(starts), EXTENT)
    for name in ("sector", "disk", "op"):
        extents[name] = rows[name][starts]
    extents["sectors"] = np.add.reduceat(rows["sectors"], starts)
    written = rows["op"] == Op.WRITE
    sectors = np.where(written, rows["sectors"], 0)
    if (sectors == PIECE_SECTORS).all():
        payload = np.ascontiguousarray(data[pick]).reshape(-1)
    else:
        mask = np.arange(PIECE_SECTORS) < sectors[:, None]
        payload = data[pick].reshape(len(rows), PIECE_SECTORS, SECTOR)[mask].reshape(-1)
    return extents, assembled.stands[starts], payload


def _is_in_order(
    bio: npt.NDArray[np.uint64], piece: npt.NDArray[np.uint32], last: npt.NDArray[np.bool_]
) -> bool:
    """Whether every bio is whole and its pieces stand next to each other: by far the most common window."""
    follows = (bio[1:] == bio[:-1]) & (piece[1:] == piece[:-1] + 1)
    begins = piece[1:] == 0
    return bool(piece[0] == 0 and last[-1] and np.where(last[:-1], begins, follows).all())


def _group(bio: npt.NDArray[np.uint64], time_ns: npt.NDArray[np.uint64]) -> tuple[Indices, int]:
    """Numbers the bios of a window: for each record the number of its bio, and how many there are. The kernel uses a bio's address
    again for a later one, so only address and time of submission together name it."""
    order = np.lexsort((time_ns, bio))
    if not len(order):
        return _EMPTY, 0
    differs = (np.diff(bio[order]) != 0) | (np.diff(time_ns[order]) != 0)
    which = np.empty(len(order), np.int64)
    which[order] = np.concatenate(([0], np.cumsum(differs)))
    return which, int(differs.sum()) + 1


_OPEN: Final = np.iinfo(np.int64).max
_EMPTY: Final = np.zeros(0, np.int64)
