"""Times asked of a log whose machine has any clock: an answer is the state of that time, or there is none."""

from __future__ import annotations

import random
from typing import cast

import pytest

from shared.batch import StreamState
from shared.errors import PointNotFoundError
from shared.log.epochs import EpochDisk, EpochInfo
from shared.log.index import IndexEntry
from shared.log.reader import LogReader
from shared.log.segment import BatchRow
from shared.recovery.catalog import Catalog
from shared.recovery.position import Position, format_ns
from shared.recovery.references import resolve

S = 1_000_000_000
T0 = 1_700_000_000 * S
YEAR = 365 * 86400 * S


class Footers:
    def __init__(self, rows: dict[int, list[BatchRow]]) -> None:
        self._rows = rows

    async def footer(self, entry: IndexEntry) -> list[BatchRow]:
        return self._rows[entry.first]


class Log:
    """Batches at true times, with what the machine's clock showed; `clamp`: as older agents did. Those are listed
    at once: what they held is told apart from a silence only by the time of listing.
    """

    def __init__(self, moments: list[tuple[int, int]], rng: random.Random, *, clamp: bool = False) -> None:
        self.true = [true_ns for true_ns, _ in moments]
        self.shown = [shown_ns for _, shown_ns in moments]
        captured = list(self.shown)
        if clamp:
            captured = [max(captured[: i + 1]) for i in range(len(captured))]
        history, rows, at = [], {}, 0
        while at < len(moments):
            end = min(len(moments), at + rng.choice([1, 1, 2, 4]))
            group = [
                BatchRow(n + 1, 0, 0, 0, captured[n], n, StreamState.ORDERED, "") for n in range(at, end)
            ]
            rows[at + 1] = group
            entry = IndexEntry(
                term=1, blob="", bytes=1, digest="", plain_b=1, first=at + 1, last=end,
                first_captured_ns=captured[at], last_captured_ns=captured[end - 1], end_seq=end, predecessor="",
                last_digest="", ordered=((at + 1, end),), written_ns=self.true[end - 1] + rng.choice([0, 1] if clamp else [0, 1, 600]) * S,
            )  # fmt: skip
            history.append((1, entry))
            at = end
        epoch = EpochInfo(
            machine="web1", epoch=1, disks=(EpochDisk(0, "sda", "", 8),), reason="", created_ns=0, claim=""
        )
        now_ns = self.true[-1] + 100 * YEAR
        self.catalog = Catalog(cast("LogReader", Footers(rows)), "web1", [epoch], history, [], {}, now_ns)

    def state_at(self, true_ns: int) -> int:
        return sum(t <= true_ns for t in self.true)


def moments(rng: random.Random) -> list[tuple[int, int]]:
    """Some minutes of work; now and then the clock is set, stands, or is set right again."""
    found, true_ns, offset, standing = [], T0, 0, 0
    for _ in range(rng.randrange(3, 60)):
        true_ns += rng.randrange(S, 6 * S)
        dice = rng.random()
        if dice < 0.06:
            offset, standing = rng.choice([-YEAR, -7200 * S, -60 * S, 60 * S, 7200 * S, 40 * YEAR]), 0
        elif dice < 0.08:
            standing = true_ns + offset
        elif dice < 0.2:
            offset = standing = 0
        found.append((true_ns, standing or true_ns + offset))
    return found


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("seed", range(60))
async def test_an_answer_is_the_state_of_that_time_whatever_the_clock_did(seed: int, clamp: bool) -> None:
    rng = random.Random(seed)
    log = Log(moments(rng), rng, clamp=clamp)
    right = [shown == true for true, shown in zip(log.true, log.shown, strict=True)]
    for _ in range(80):
        true_ns = rng.randrange(log.true[0], log.true[-1])
        try:
            found = await resolve(log.catalog, format_ns(true_ns))
        except PointNotFoundError as exc:
            assert "nearest earlier point" in exc.cause
            assert "nearest later point" in exc.cause
            continue
        state = log.state_at(true_ns)
        # Asked in a period in which the clock was right before and after: exactly the state of then.
        if right[state - 1] and (state == len(right) or right[state]):
            assert found == Position.of(1, state), f"asked {true_ns - T0}"


@pytest.mark.parametrize("seed", range(20))
async def test_with_a_clock_that_is_right_every_time_is_answered(seed: int) -> None:
    rng = random.Random(seed)
    log = Log([(T0 + i * 3 * S, T0 + i * 3 * S) for i in range(30)], rng)
    for _ in range(50):
        true_ns = rng.randrange(log.true[0], log.true[-1] + 9 * S)
        assert await resolve(log.catalog, format_ns(true_ns)) == Position.of(1, log.state_at(true_ns))


def jump(clamp: bool) -> Log:
    """A second is a batch; from 100 to 119 the clock is two hours ahead."""
    return Log(
        [(T0 + i * S, T0 + i * S + (7200 * S if 100 <= i < 120 else 0)) for i in range(200)],
        random.Random(1),
        clamp=clamp,
    )


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("second", [101, 110, 118])
async def test_a_time_within_a_jump_is_refused_and_names_the_points_around_it(
    clamp: bool, second: int
) -> None:
    with pytest.raises(PointNotFoundError, match="clock") as caught:
        await resolve(jump(clamp).catalog, format_ns(T0 + second * S))
    assert "nearest earlier point: 1-" in caught.value.cause


async def test_after_the_clock_came_back_times_are_answered_again() -> None:
    log = jump(False)
    for second in (50, 130, 199):
        assert await resolve(log.catalog, format_ns(T0 + second * S)) == Position.of(1, second + 1)


async def test_a_time_that_an_older_agent_held_is_refused() -> None:
    with pytest.raises(PointNotFoundError, match="clock"):
        await resolve(jump(True).catalog, format_ns(T0 + 150 * S))


async def test_a_time_for_which_an_older_agent_stood_still_is_refused() -> None:
    """The clock was two hours back from second 100 to 159: all these batches have the time of the 99th."""
    seconds = [(T0 + i * S, T0 + i * S - (7200 * S if 100 <= i < 160 else 0)) for i in range(200)]
    log = Log(seconds, random.Random(1), clamp=True)
    for second in (100, 130, 159):
        with pytest.raises(PointNotFoundError, match="stood"):
            await resolve(log.catalog, format_ns(T0 + second * S))
    assert await resolve(log.catalog, format_ns(T0 + 170 * S)) == Position.of(1, 171)
