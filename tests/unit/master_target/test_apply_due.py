"""What is applied next, from the states of a machine's disks: every crash leaves one of these."""

from __future__ import annotations

from master_target.apply import Due, due
from master_target.targets.state import DiskState
from shared.recovery.position import NOWHERE, Position
from tests.epoch_ids import eid


def P(epoch: int, batch: int) -> Position:
    return Position.of(epoch, batch)


def at(cursor: Position, pending: Position | None = None) -> DiskState:
    pending = pending or cursor
    claims = [eid(p.epoch).claim if p.epoch else "" for p in (cursor, pending)]
    return DiskState(
        disk_b=512, cursor=cursor, pending=pending, cursor_claim=claims[0], pending_claim=claims[1]
    )


def test_disks_that_stand_together_go_on_together() -> None:
    assert due([at(P(1, 5)), at(P(1, 5))], eid(1)) == Due(P(1, 5), (0, 1), None, None)


def test_new_disks_and_disks_of_an_earlier_epoch_start_at_the_beginning_of_the_epoch() -> None:
    assert due([at(NOWHERE), at(P(1, 80)), at(P(1, 80), P(1, 90))], eid(2)) == Due(
        P(2, 0), (0, 1, 2), None, None
    )


def test_a_begun_interval_is_applied_wholly_to_all_disks_that_are_not_behind_it() -> None:
    cut = [at(P(1, 5), P(1, 9)), at(P(1, 5), P(1, 9))]
    assert due(cut, eid(1)) == Due(P(1, 5), (0, 1), P(1, 9), None)
    begun_on_one = [at(P(1, 5), P(1, 9)), at(P(1, 5))]
    assert due(begun_on_one, eid(1)) == Due(P(1, 5), (0, 1), P(1, 9), None)
    finished_on_one = [at(P(1, 9)), at(P(1, 5), P(1, 9))]
    assert due(finished_on_one, eid(1)) == Due(P(1, 5), (1,), P(1, 9), P(1, 9))


def test_the_same_in_the_first_interval_of_an_epoch() -> None:
    begun_on_one = [at(P(1, 80), P(2, 4)), at(P(1, 80))]
    assert due(begun_on_one, eid(2)) == Due(P(2, 0), (0, 1), P(2, 4), None)
    finished_on_one = [at(P(2, 4)), at(P(1, 80), P(2, 4))]
    assert due(finished_on_one, eid(2)) == Due(P(2, 0), (1,), P(2, 4), P(2, 4))


def test_a_disk_that_lost_its_state_catches_up_before_the_others_go_on() -> None:
    assert due([at(P(1, 50)), at(NOWHERE)], eid(1)) == Due(P(1, 0), (1,), None, P(1, 50))
    assert due([at(P(1, 50), P(1, 60)), at(P(1, 20))], eid(1)) == Due(P(1, 20), (1,), None, P(1, 50))
