"""What a lane keeps in mind of a disk that refuses more than there is room to name."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from agent.stream.catchup import Chunk
from agent.stream.lane import KEPT_RUNS, Lack, Lane, ReadChunk
from agent.stream.refusals import AT_ONCE, WORD_SECTORS
from agent.stream.spans import TooMuchRefused
from agent.stream.unreadable import Runs
from shared.errors import TooMuchUnreadableError

NO_ROOM = TooMuchUnreadableError("there is no room")


def lane() -> Lane:
    disk: Any = SimpleNamespace(path=Path("/dev/sda"))
    made = Lane(0, disk, 1000 * WORD_SECTORS)
    made.begin_round()
    return made


def chunk(word: int) -> Chunk:
    return Chunk(0, word, (1 << 64) - 1, word * WORD_SECTORS, WORD_SECTORS)


def read(word: int, unreadable: Runs) -> ReadChunk:
    return ReadChunk(chunk(word), np.zeros(0, np.uint8), unreadable, True, mmap.mmap(-1, 4096))


def test_all_that_is_known_of_what_a_round_had_no_room_for_is_kept() -> None:
    disk = lane()
    disk.take_back(read(3, [(3 * WORD_SECTORS, 1)]), NO_ROOM)
    assert disk.lack.seen == [(3 * WORD_SECTORS, 1)]
    assert not disk.declares(read(5, [(5 * WORD_SECTORS + 7, 2)]))
    disk.leave_refused(TooMuchRefused(chunk(8), 8 * WORD_SECTORS + 100))
    assert disk.lack.seen == [
        (3 * WORD_SECTORS, 1),
        (5 * WORD_SECTORS + 7, 2),
        (8 * WORD_SECTORS + 100, 1),
    ]
    for _ in range(KEPT_RUNS - 3):
        disk.leave_refused(TooMuchRefused(chunk(9), 9 * WORD_SECTORS))
    assert disk.lack.seen is not None
    disk.leave_refused(TooMuchRefused(chunk(9), 9 * WORD_SECTORS))
    assert disk.lack.seen is None


def test_each_round_that_lacks_room_tells_of_itself_alone() -> None:
    disk = lane()
    for first in (10, 20):
        disk.begin_round()
        disk.take_back(read(0, [(first, 1)]), NO_ROOM)
        assert disk.lack.seen == [(first, 1)]
        disk.end_round()
        assert disk.lack.seen == [(first, 1)], "until another one lacks it, too"


def test_what_is_left_to_later_while_there_is_room_has_nothing_to_do_with_it() -> None:
    disk = lane()
    assert not disk.declares(read(2, [(2 * WORD_SECTORS, AT_ONCE + 1)]))
    disk.leave_refused(TooMuchRefused(chunk(4), 4 * WORD_SECTORS))
    assert disk.lack == Lack()
    assert disk.refused is not None
