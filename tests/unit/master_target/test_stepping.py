"""What a step asks, and in which order."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from master_target.apply import DiskTarget, Interval
from master_target.bridge import BridgeSettings
from master_target.follow import Follower
from master_target.points import PointMaker
from master_target.status import Rates
from master_target.stepping import Stepper
from master_target.targets.base import Target
from master_target.targets.state import DiskState
from shared.recovery.position import Position
from tests.epoch_ids import CLAIM, eid


class Disk(msgspec.Struct):
    state: DiskState


class Log:
    """Without anything new."""

    def __init__(self, did: list[str]) -> None:
        self.did = did

    def forget(self, position: Position) -> None:
        self.did.append(f"forgot what is before {position}")

    def is_mark(self, position: Position) -> bool:
        return False

    async def next(self, *args: object) -> Interval | None:
        return None


@pytest.mark.parametrize("looking", [True, False])
async def test_nothing_is_forgotten_while_a_look_asks_of_it(looking: bool) -> None:
    did: list[str] = []

    async def documented() -> None:
        """Not asked: there is no mark."""

    stepper = Stepper(
        cast(Follower, Log(did)),
        cast(PointMaker, None),
        Rates(),
        documented,
        lambda: looking,
        interval_b=1,
        behind_interval_b=1,
        bridge=BridgeSettings(),
    )
    at = Position.of(1, 9)
    state = DiskState(disk_b=512, cursor=at, pending=at, cursor_claim=CLAIM, pending_claim=CLAIM)
    assert not await stepper.step(eid(1), [DiskTarget(0, 512, cast(Target, Disk(state)))])
    assert did == ([] if looking else ["forgot what is before 1-9"])
