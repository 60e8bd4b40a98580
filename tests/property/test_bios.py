"""Assembling ring records into bios, against a plain model."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.capture.layout import FLAG_LAST
from agent.stream.bios import assemble, end_within, to_extents
from shared.batch import Op

HEADER = np.dtype(
    [
        ("time_ns", "<u8"),
        ("bio", "<u8"),
        ("sector", "<u8"),
        ("sectors", "<u4"),
        ("piece", "<u4"),
        ("disk", "<u2"),
        ("op", "u1"),
        ("flags", "u1"),
    ]
)
RNG = np.random.default_rng(1)


def ring_of(rng: random.Random) -> tuple[np.ndarray, np.ndarray, np.ndarray, set[int]]:
    """A ring into which three CPUs reserve pieces, some bios failing half-way; returns headers, data, valid, and the whole bios."""
    queues: list[list[tuple[int, ...]]] = [[], [], []]
    whole: set[int] = set()
    bio = 0
    for queue in queues:
        for _ in range(rng.randrange(1, 6)):
            bio += 1
            if rng.random() < 0.15:
                queue.append((bio, rng.randrange(1000), 5000, 0, 0, Op.ZERO, FLAG_LAST, 1))
                whole.add(bio)
                continue
            pieces = rng.randrange(1, 5)
            fails = rng.random() < 0.2
            sector = rng.randrange(1000)
            for piece in range(pieces):
                final = piece == pieces - 1
                if fails and final:
                    if rng.random() < 0.5:
                        queue.append((bio, sector, 8, piece, 0, Op.WRITE, FLAG_LAST, 0))
                    break
                sectors = rng.randrange(1, 9) if final else 8
                queue.append((bio, sector, sectors, piece, 0, Op.WRITE, FLAG_LAST if final else 0, 1))
                sector += sectors
            else:
                whole.add(bio)
    rows = []
    while any(queues):
        queue = rng.choice([q for q in queues if q])
        rows.append(queue.pop(0))
    headers = np.zeros(len(rows), HEADER)
    valid = np.zeros(len(rows), np.bool_)
    for i, (b, sector, sectors, piece, disk, op, flags, ok) in enumerate(rows):
        # The kernel uses addresses of bios again: three addresses for all, the time tells them apart.
        headers[i] = (b, b % 3, sector, sectors, piece, disk, op, flags)
        valid[i] = bool(ok)
    return headers, RNG.integers(0, 256, (len(rows), 4096), np.uint8), valid, whole


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9))
def test_every_whole_bio_is_emitted_once_in_order_of_its_last_piece_whatever_the_windows(
    seed: int, step: int, most: int
) -> None:
    headers, data, valid, whole = ring_of(random.Random(seed))
    base = 1000
    total = len(headers)
    emitted: list[tuple[int, int, bytes]] = []
    hold, emitted_to = base, base
    while emitted_to < base + total:
        end = min(emitted_to + step, base + total)
        window = slice(hold - base, end - base)
        got = assemble(headers[window], valid[window], hold, emitted_to, 0)
        if (fitting := end_within(got, most)) is not None:
            assert emitted_to < fitting <= end
            end, window = fitting, slice(hold - base, fitting - base)
            got = assemble(headers[window], valid[window], hold, emitted_to, 0)
        assert len(got.pieces) <= most or len(set(got.stands.tolist())) == 1
        extents, stands, payload = to_extents(headers[window], data[window], got)
        at = 0
        for e, stand in zip(extents, stands.tolist(), strict=True):
            size = int(e["sectors"]) * 512 if e["op"] == Op.WRITE else 0
            emitted.append((stand, int(headers["time_ns"][stand - base]), payload[at : at + size].tobytes()))
            at += size
        assert at == len(payload)
        assert got.hold_from <= end
        hold, emitted_to = got.hold_from, end
    assert [stand for stand, _, _ in emitted] == sorted(stand for stand, _, _ in emitted)
    assert {bio for _, bio, _ in emitted} == whole
    assert len(emitted) == len(whole)
    for _, bio, written in emitted:
        mine = [i for i in range(total) if headers["time_ns"][i] == bio and headers["op"][i] == Op.WRITE]
        assert written == b"".join(data[i, : int(headers["sectors"][i]) * 512].tobytes() for i in mine)
    orphans = [i for i in range(total) if int(headers["time_ns"][i]) not in whole and valid[i]]
    assert hold == (base + orphans[0] if orphans else base + total)
    tail = slice(hold - base, total)
    assert assemble(headers[tail], valid[tail], hold, emitted_to, base + total).hold_from == base + total
