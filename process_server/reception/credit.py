"""How much a machine may send: cache quota, free space of the cache, and the window on the wire. Pure
arithmetic.

Credit is what the agent may have on its way, so it must never exceed the room that is left in the cache: then
whatever was allowed fits when it arrives. Room is the smaller of
    quota   quota_per_disk_b × disks − what the machine has spooled and not uploaded
    cache   the free part of the cache above the floor, divided among the connected machines
With no room left the credit is 0, the agent holds back, its ring fills, and capture degrades to the bitmap:
no write is lost. Closing and reopening are apart (hysteresis), so that a machine at its limit works in runs
and not in single batches.

One overshoot is allowed: a batch larger than the credit goes alone (shared/wire/FORMAT.md), so use may exceed
the limit by one batch per machine; the floor is there for more than that.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from shared.errors import CacheLowError, CacheQuotaError, StorageError

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB

_Bytes = Annotated[int, msgspec.Meta(ge=0)]


class CreditPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits; all configurable."""

    window_b: Annotated[int, msgspec.Meta(ge=1)] = 32 * MIB
    """How much one machine may have on its way to this server. More helps where the network is fast and far."""
    quota_per_disk_b: Annotated[int, msgspec.Meta(ge=1)] = 8 * GIB
    """How much of one machine may wait in the cache, for each of its protected disks."""
    free_floor: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.20
    """The part of the cache that is kept free: while less is free, no machine may send more."""


class CacheSpace(msgspec.Struct, frozen=True):
    """The cache as a whole, bytes."""

    total_b: _Bytes
    free_b: _Bytes


class CreditGate:
    """One machine's credit over time. `problem` says why it is 0, and is None while it is not."""

    def __init__(self, policy: CreditPolicy) -> None:
        self._policy = policy
        self.credit_b = 0
        self.problem: StorageError | None = None

    def update(self, machine: str, *, pending_b: int, disks: int, cache: CacheSpace, sharers: int) -> int:
        """The machine's credit in bytes, given what it has in the cache (`pending_b`) and how many share the
        rest."""
        policy = self._policy
        quota_b = policy.quota_per_disk_b * max(disks, 1)
        floor_b = int(cache.total_b * policy.free_floor)
        shared_b = (cache.total_b - floor_b) // max(sharers, 1)
        quota_room_b = quota_b - pending_b
        cache_room_b = (cache.free_b - floor_b) // max(sharers, 1)
        tight = _is_tight(
            quota_room_b, quota_b, policy.window_b, was=isinstance(self.problem, CacheQuotaError)
        )
        low = _is_tight(cache_room_b, shared_b, policy.window_b, was=isinstance(self.problem, CacheLowError))
        if low:
            self.problem = CacheLowError(
                f"Machine {machine} is throttled",
                cause=f"{_gib(cache.free_b)} of {_gib(cache.total_b)} of the cache are free, "
                f"{_gib(floor_b)} are kept free",
            )
        elif tight:
            self.problem = CacheQuotaError(
                f"Machine {machine} is throttled",
                cause=f"{_gib(pending_b)} wait for upload, its quota is {_gib(quota_b)}",
            )
        else:
            self.problem = None
        room_b = min(quota_room_b, cache_room_b)
        self.credit_b = 0 if self.problem is not None else min(policy.window_b, room_b)
        return self.credit_b


def _is_tight(room_b: int, limit_b: int, window_b: int, *, was: bool) -> bool:
    """Whether there is too little room: it ends at a quarter of the limit (or a window), begins at a quarter
    of that."""
    enough_b = min(window_b, limit_b // 4)
    return room_b <= 0 or (room_b < enough_b if was else room_b <= enough_b // 4)


def _gib(size_b: int) -> str:
    return f"{size_b / GIB:.1f} GiB" if size_b >= GIB // 10 else f"{size_b / MIB:.1f} MiB"
