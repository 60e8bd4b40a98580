"""Marks: bookmarks on their way into the stream, and where the recent ones stand. Pure.

A mark promises that every write that had completed when it was asked for is in the image at its place. Such a write is either in the
ring, below the producer position of that moment, or it was lost, and then the loss count had moved. So a mark is due at the first
ordered boundary that has both: everything below that position is emitted, and the order rests on no older loss count. Without the
second, a boundary just before a loss would do: an ordered one, but without the lost write.

However many are due, a batch has room for so many (`DUE_MAX`): the next one, which is cut at once, stands no earlier in the order.

A batch can be lost with its connection, or with its epoch. Its marks then wait again, under the same two conditions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from shared.batch import Mark
from shared.recovery.position import Position

DUE_MAX: Final = 1000
"""Marks of one batch: of those that wait for hours for an ordered boundary, never more than a peer takes (`batch.META_MAX_B`)."""
_KEPT: Final = 1024
"""Placed marks that are remembered although they are stored: a command that comes again, or waits for that, finds its mark."""


@dataclass(frozen=True, slots=True)
class _Asked:
    mark: Mark
    end_seq: int
    loss: int


class Marks:
    def __init__(self) -> None:
        self._waiting: list[_Asked] = []
        self._placed: dict[str, tuple[_Asked, Position]] = {}

    def ask(self, mark: Mark, end_seq: int, loss: int) -> None:
        """Wants `mark` placed; to ask again is harmless. `end_seq`, `loss`: the ring's producer position and the loss count, as of now."""
        if mark.id not in self._placed and all(asked.mark.id != mark.id for asked in self._waiting):
            self._waiting.append(_Asked(mark, end_seq, loss))

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def due(self, emitted_to: int, loss_at_order: int) -> tuple[Mark, ...]:
        """Those that an ordered boundary at `emitted_to`, whose order rests on `loss_at_order`, fulfils: the first `DUE_MAX` of them."""
        due = (a.mark for a in self._waiting if a.end_seq <= emitted_to and a.loss <= loss_at_order)
        return tuple(itertools.islice(due, DUE_MAX))

    def place(self, marks: tuple[Mark, ...], position: Position) -> None:
        """These went out with the batch at `position`."""
        ids = {mark.id for mark in marks}
        for asked in [asked for asked in self._waiting if asked.mark.id in ids]:
            self._waiting.remove(asked)
            self._placed[asked.mark.id] = asked, position

    def stored(self, position: Position) -> None:
        """Batches up to `position` cannot be lost any more: of their marks only the newest are remembered."""
        if len(self._placed) > _KEPT:
            old = [id_ for id_, (_, placed) in self._placed.items() if placed <= position]
            for id_ in old[: len(self._placed) - _KEPT]:
                del self._placed[id_]

    def where(self, id_: str) -> Position | None:
        """Where the mark stands; None while it waits."""
        return self._placed[id_][1] if id_ in self._placed else None

    def lost_behind(self, stored: Position) -> None:
        """No batch behind `stored` is kept anywhere but here: their marks wait again."""
        for id_, (asked, position) in [*self._placed.items()]:
            if position > stored:
                del self._placed[id_]
                self._waiting.append(asked)
