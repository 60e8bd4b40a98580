"""Chunks that were sent in batches which are not uploaded yet: their to-do bits are still set. Pure.

One row a chunk, in an array: 24 bytes for up to 1 MiB that was sent. Rows are in the order of their batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

ROW: Final = np.dtype([("number", "<u8"), ("mask", "<u8"), ("word", "<u4"), ("disk", "<u4")])
_LEAST: Final = 64


class Pending:
    def __init__(self) -> None:
        self._rows = np.zeros(_LEAST, ROW)
        self._from = self._to = 0

    def __len__(self) -> int:
        return self._to - self._from

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def add(self, number: int, chunks: Iterable[tuple[int, int, int]]) -> None:
        """`chunks`: (disk, word, mask of granules) of each that went out in batch `number`."""
        for disk, word, mask in chunks:
            if self._to == len(self._rows):
                self._make_room()
            self._rows[self._to] = (number, mask, word, disk)
            self._to += 1

    def take_up_to(self, number: int) -> npt.NDArray[np.void]:
        """The rows of the batches up to `number`, which are none any more. Valid until the next `add`."""
        end = self._end_of(number)
        taken = self._rows[self._from : end]
        self._from = end
        return taken

    def drop_behind(self, number: int) -> bool:
        """Forgets the batches behind `number`; whether there were any."""
        end = self._end_of(number)
        dropped, self._to = self._to > end, end
        return dropped

    def unmark(self, disk: int, first_word: int, marked: npt.NDArray[np.uint64]) -> None:
        """Granules that are to do again (words from `first_word` on): what was sent before does not tick them off."""
        rows, found = self._find(disk, first_word, len(marked))
        rows["mask"][found] &= ~marked[rows["word"][found] - first_word]

    def masks(self, disk: int, first_word: int, words: int) -> npt.NDArray[np.uint64]:
        """The granules of so many words that are pending."""
        result = np.zeros(words, np.uint64)
        rows, found = self._find(disk, first_word, words)
        np.bitwise_or.at(result, rows["word"][found] - first_word, rows["mask"][found])
        return result

    def _find(
        self, disk: int, first_word: int, words: int
    ) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
        rows = self._rows[self._from : self._to]
        word = rows["word"]
        mine = (rows["disk"] == disk) & (word >= first_word) & (word < first_word + words)
        return rows, np.flatnonzero(mine)

    def _end_of(self, number: int) -> int:
        rows = self._rows[self._from : self._to]
        return self._from + int(np.searchsorted(rows["number"], np.uint64(number), "right"))

    def _make_room(self) -> None:
        rows = self._rows[self._from : self._to]
        grown = np.zeros(max(_LEAST, 2 * len(rows)), ROW)
        grown[: len(rows)] = rows
        self._rows, self._from, self._to = grown, 0, len(rows)
