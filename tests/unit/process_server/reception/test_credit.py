"""The credit gate: quota, free space, window, hysteresis."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from process_server.reception.credit import MIB, CacheSpace, CreditGate, CreditPolicy
from shared.errors import CacheLowError, CacheQuotaError

POLICY = CreditPolicy(window_b=32 * MIB, quota_per_disk_b=1024 * MIB, free_floor=0.2)
ROOMY = CacheSpace(total_b=10_000 * MIB, free_b=10_000 * MIB)


def credit(
    gate: CreditGate, pending_mib: int, cache: CacheSpace = ROOMY, disks: int = 1, sharers: int = 1
) -> int:
    return gate.update("lab", pending_b=pending_mib * MIB, disks=disks, cache=cache, sharers=sharers)


def test_an_idle_machine_has_the_whole_window() -> None:
    gate = CreditGate(POLICY)
    assert credit(gate, 0) == 32 * MIB
    assert gate.problem is None


def test_credit_shrinks_with_the_room_that_is_left() -> None:
    assert credit(CreditGate(POLICY), 1004) == 20 * MIB


def test_a_used_up_quota_closes_and_says_why() -> None:
    gate = CreditGate(POLICY)
    assert credit(gate, 1020) == 0
    assert isinstance(gate.problem, CacheQuotaError)
    assert "1.0 GiB" in gate.problem.cause


def test_quota_counts_per_disk() -> None:
    assert credit(CreditGate(POLICY), 1024, disks=2) == 32 * MIB


def test_credit_reopens_only_when_there_is_room_for_a_run() -> None:
    gate = CreditGate(POLICY)
    assert credit(gate, 1020) == 0
    assert credit(gate, 1000) == 0
    assert credit(gate, 992) == 32 * MIB
    assert gate.problem is None
    assert credit(gate, 1000) == 24 * MIB


def test_a_cache_below_its_floor_stops_everybody() -> None:
    gate = CreditGate(POLICY)
    low = CacheSpace(total_b=10_000 * MIB, free_b=1_999 * MIB)
    assert credit(gate, 0, low) == 0
    assert isinstance(gate.problem, CacheLowError)
    assert gate.problem.action


def test_room_above_the_floor_is_shared() -> None:
    near = CacheSpace(total_b=10_000 * MIB, free_b=2_000 * MIB + 60 * MIB)
    assert credit(CreditGate(POLICY), 0, near, sharers=3) == 20 * MIB


def test_a_small_cache_works_too() -> None:
    gate = CreditGate(POLICY)
    small = CacheSpace(total_b=16 * MIB, free_b=16 * MIB)
    assert 0 < credit(gate, 0, small) < 13 * MIB


@given(
    st.integers(1, 1 << 40),
    st.integers(1, 1 << 44),
    st.floats(0, 0.99),
    st.lists(
        st.tuples(
            st.integers(0, 1 << 45),
            st.integers(0, 64),
            st.integers(0, 1 << 44),
            st.integers(0, 1 << 44),
            st.integers(0, 200),
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_credit_never_exceeds_window_or_room_and_0_has_a_reason(
    window_b: int, quota_b: int, floor: float, steps: list[tuple[int, int, int, int, int]]
) -> None:
    policy = CreditPolicy(window_b=window_b, quota_per_disk_b=quota_b, free_floor=floor)
    gate = CreditGate(policy)
    for pending_b, disks, total_b, free_b, sharers in steps:
        cache = CacheSpace(total_b=total_b, free_b=min(free_b, total_b))
        credit_b = gate.update("m", pending_b=pending_b, disks=disks, cache=cache, sharers=sharers)
        assert 0 <= credit_b <= window_b
        assert credit_b + pending_b <= quota_b * max(disks, 1) or credit_b == 0
        assert credit_b <= max(0, cache.free_b - int(total_b * floor))
        assert (credit_b == 0) == (gate.problem is not None)
