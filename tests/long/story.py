"""What the long parts share: scratch disks, and a writer whose every state can be recognised."""

from __future__ import annotations

import contextlib
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol, Self

from tests.lab import CommandFailedError
from tests.loopdisk import loop_disk
from tests.prefix import PrefixChecker, Schedule, Writer

DISK_B: Final = 96 << 20
Result = dict[str, Any]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    folder = Path("/dev/shm") / f"understudy-long-{secrets.token_hex(3)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def two_disks(folder: Path, size_b: int = DISK_B) -> Iterator[list[str]]:
    with loop_disk(folder / "disk-a", size_b) as a, loop_disk(folder / "disk-b", size_b) as b:
        yield [a, b]


class Restoring(Protocol):
    """An installation with one machine: a lab, or hosts."""

    def points(self) -> list[Any]: ...
    def create_point(self) -> Any: ...
    def restore(self, point: str, to: Path) -> list[Path]: ...


class Story:
    """A writer of chained writes over two disks, and what was complete when."""

    def __init__(self, folder: Path, devices: list[str], rate_mb: float, disk_b: int = DISK_B) -> None:
        self.folder = folder
        self._sectors = (disk_b // 512,) * len(devices)
        self._at_least: dict[str, int] = {}
        self.seed = secrets.randbits(32)
        self._rate_mb = rate_mb
        self.writer = Writer(devices, folder / "progress", self.seed, rate_mb=rate_mb)
        self.total = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.writer.__exit__(*exc)

    def stop(self) -> None:
        self.total = self.writer.stop()

    def go_on(self, devices: list[str]) -> None:
        """After `stop`: the same disks, which may stand under other names by now, in the same order."""
        self.writer = Writer(
            devices, self.folder / "progress", self.seed, rate_mb=self._rate_mb, after=self.total
        )

    def checker(self) -> PrefixChecker:
        return PrefixChecker(Schedule(self.seed, self._sectors))

    def expect(self, point: str, complete: int) -> None:
        """`complete` writes had completed before this point was asked for: it must hold them."""
        self._at_least[point] = complete

    def check_every_point(
        self, lab: Restoring, minimum: int, newest: int = 0, epochs: set[int] | None = None
    ) -> Result:
        """Restores and checks every point (or the `newest` and those that something is expected of; or those of some epochs), oldest
        first."""
        points = [p for p in lab.points() if epochs is None or p["epoch"] in epochs]
        if len(points) < minimum:
            raise AssertionError(f"only {len(points)} points were made, at least {minimum} were due")
        checker = self.checker()
        chosen = [
            p
            for i, p in enumerate(points)
            if i >= len(points) - newest or not newest or p["id"] in self._at_least
        ]
        prefixes = [self._check(lab, checker, p["id"], self._at_least.get(p["id"], 0)) for p in chosen]
        if prefixes != sorted(prefixes):
            raise AssertionError(f"later points hold fewer writes: {prefixes}")
        return {"points": len(points), "writes": self.total, "newest_prefix": prefixes[-1] if prefixes else 0}

    def check_random_times(self, lab: Restoring, count: int) -> Result:
        """Restores at `count` random times between the first and the last point; those in unordered periods must be refused."""
        points = lab.points()
        first, last = (datetime.fromisoformat(points[i]["time"]).timestamp() for i in (0, -1))
        checker = self.checker()
        done = refused = 0
        while done < count:
            moment = datetime.fromtimestamp(random.uniform(first, last)).astimezone()
            try:
                self._check(lab, checker, moment.isoformat(timespec="milliseconds"), 0)
                done += 1
            except CommandFailedError as exc:
                if exc.exit_code != 3 or "earlier" not in exc.stderr or refused > 5 * count:
                    raise
                refused += 1
        return {"times": done, "refused_in_unordered_periods": refused}

    def check_latest(self, lab: Restoring) -> None:
        """Identity at the end: the writer has ended, a new point holds all its writes."""
        point = lab.create_point()
        self._check(lab, self.checker(), point["id"], self.total)

    def _check(self, lab: Restoring, checker: PrefixChecker, point: str, at_least: int) -> int:
        return self.check_restored(lab, point, self.folder / "restored", checker, at_least)

    def check_restored(
        self,
        lab: Restoring,
        point: str,
        target: Path,
        checker: PrefixChecker | None = None,
        at_least: int = 0,
    ) -> int:
        """Restores into `target`, where another try may have stopped; which prefix it is. The folder is gone afterwards."""
        images = lab.restore(point, target)
        checker = checker or self.checker()
        try:
            return checker.check(images, at_least=at_least, at_most=self.total)
        except AssertionError as exc:
            raise AssertionError(f"point {point} (seed {self.seed}): {exc}") from exc
        finally:
            shutil.rmtree(target)


def wait_until(
    condition: Callable[[], bool], otherwise: str, seconds: float, shown: Callable[[], Any] = lambda: ""
) -> None:
    """`shown` says what is there instead."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{otherwise} {shown()}")
        time.sleep(0.5)
