"""Trials over the model's disks: given sector by sector, some so late that they are let go. And what they put to do is judged."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agent.stream.unreadable import Runs, Trial
from tests.stream_model.kernel import Kernel


@dataclass(eq=False)
class _UnderWay:
    trial: Trial
    answer: asyncio.Future[Runs]
    left: list[int]
    """Sectors that are not asked for yet."""
    hangs: bool
    refused: bool = False

    @property
    def gave_all(self) -> bool:
        return not (self.left or self.refused)


class Trials:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._under_way: list[_UnderWay] = []
        self._newest: dict[int, _UnderWay] = {}
        """By disk."""
        self._unused: set[tuple[int, int]] = set()
        """What was given, and was not put to do since."""
        self._in_a_row: dict[int, int] = {}
        """By disk: what was put to do by trials that were given all, since one was not."""
        self.problems: list[str] = []
        self.more = 0
        """How often more was put to do than was given."""

    def begin(self, trial: Trial) -> asyncio.Future[Runs]:
        answer: asyncio.Future[Runs] = asyncio.get_running_loop().create_future()
        if any(other.trial.disk == trial.disk for other in self._under_way):
            answer.set_result([])
            return answer
        sectors = [sector for first, count in trial.runs for sector in range(first, first + count)]
        begun = _UnderWay(trial, answer, sectors, hangs=self._kernel.rng.random() < 0.5)
        self._newest[trial.disk] = begun
        self._under_way.append(begun)
        return answer

    def go_on(self) -> None:
        kernel = self._kernel
        for asked in [*self._under_way]:
            if asked.hangs and not kernel.stopped and kernel.rng.random() < 0.8:
                continue
            for _ in range(min(len(asked.left), kernel.rng.randrange(1, 4))):
                sector = asked.left.pop(0)
                asked.trial.behind = sector + 1
                if (asked.trial.disk, sector) in kernel.bad:
                    asked.refused = True
                else:
                    asked.trial.given.append((sector, 1))
                    self._unused.add((asked.trial.disk, sector))
            if not asked.left and kernel.rng.random() < 0.5:
                self._under_way.remove(asked)
                asked.answer.set_result([])

    def put_to_do(self, disk: int, sectors: list[int]) -> None:
        """Nothing is read again that was not given, or that was given once and is put to do twice; but for a disk that gave all that it
        was asked for, as much again as such trials had put to do before."""
        put = {(disk, sector) for sector in sectors}
        more = len(put - self._unused)
        self._unused -= put
        before = self._in_a_row.get(disk, 0)
        gave_all = self._newest[disk].gave_all
        if more > (before if gave_all else 0):
            self.problems.append(f"{more} sectors are put to do that no trial was given, behind {before}")
        self.more += more > 0
        self._in_a_row[disk] = before + len(put) if gave_all else 0
