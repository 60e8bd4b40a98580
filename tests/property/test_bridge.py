"""Gap bridging: what may be joined, and how much it may cost."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from master_target.bridge import BridgeSettings, bridge
from shared.batch import SECTOR
from shared.recovery.coalesce import MAX_RUN_SECTORS, DiskRuns, Ints

pieces = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 5), st.booleans()), max_size=40
)  # gap before it, sectors, whether it is a clear


def make_runs(parts: list[tuple[int, int, bool]], start: int = 0) -> DiskRuns:
    writes: list[tuple[int, int]] = []
    clears: list[tuple[int, int]] = []
    at = start
    for gap, sectors, is_clear in parts:
        at += gap
        (clears if is_clear else writes).append((at, sectors))
        at += sectors
    data = np.zeros((sum(n for _, n in writes), SECTOR), np.uint8)
    return DiskRuns(0, _table(writes), _table(clears), data)


def _table(rows: list[tuple[int, int]]) -> Ints:
    return np.array(rows, np.int64).reshape(-1, 2)


@given(pieces, st.integers(0, 5), st.floats(1, 6))
def test_bridges_stay_within_gap_amplification_and_never_touch_a_clear(
    parts: list[tuple[int, int, bool]], request_sectors: int, amplification: float
) -> None:
    # Around a 4 MiB boundary, which no bridge may cross.
    runs = make_runs(parts, MAX_RUN_SECTORS - 20)
    settings = BridgeSettings(request_b=request_sectors * SECTOR, amplification=amplification)
    chains = bridge(runs, settings)
    assert chains[:, 1].sum() == len(runs.writes)
    cleared = {s for first, n in runs.clears.tolist() for s in range(first, first + n)}
    written = 0
    for head, count in chains.tolist():
        members = runs.writes[head : head + count]
        first, end = int(members[0, 0]), int(members[-1].sum())
        written += end - first
        if count > 1:
            assert first // MAX_RUN_SECTORS == (end - 1) // MAX_RUN_SECTORS
            gaps = [int(members[i + 1, 0] - members[i].sum()) for i in range(count - 1)]
            assert all(0 < gap <= request_sectors for gap in gaps)
            assert sum(gaps) < (count - 2) * request_sectors  # it saves more than it costs
            assert not cleared.intersection(range(first, end))
    assert written <= amplification * int(runs.writes[:, 1].sum())


def test_dense_small_writes_become_one_request() -> None:
    runs = make_runs([(8, 8, False)] * 100)
    assert bridge(runs, BridgeSettings(request_b=8192, amplification=2.0)).tolist() == [[0, 100]]


def test_the_cheapest_chain_is_bridged_when_the_amplification_does_not_allow_all() -> None:
    near, far = [(1, 8, False)] * 10, [(20, 8, False)] * 10
    settings = BridgeSettings(request_b=64 * SECTOR, amplification=1.1)
    chains = bridge(make_runs([*near, (1000, 8, False), *far]), settings)
    assert chains[0].tolist() == [0, 10]
    assert len(chains) == 12


def test_gaps_that_cost_more_than_the_requests_saved_are_left_alone() -> None:
    runs = make_runs([(30, 8, False)] * 10)  # nine gaps of 30 sectors for eight requests
    assert len(bridge(runs, BridgeSettings(request_b=33 * SECTOR))) == 10
    assert len(bridge(runs, BridgeSettings(request_b=34 * SECTOR))) == 1


def test_no_gap_is_bridged_when_bridging_is_off() -> None:
    chains = bridge(make_runs([(8, 8, False)] * 10), BridgeSettings(request_b=0))
    assert chains.tolist() == [[i, 1] for i in range(10)]
