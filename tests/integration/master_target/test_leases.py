"""A lease that is kept: renewed in time, whatever single renewals meet, and given up before it ends when they do not succeed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from master_target import leases
from master_target.leases import KeptLease
from shared.blob import BlobConfig, BlobStore
from shared.errors import LeaseHeldError
from tests.azurite import Azurite
from tests.storage_faults import Answer, Cut, FaultProxy, Stall

BLOB = "masters/web1"


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[FaultProxy]:
    with FaultProxy(azurite) as proxy:
        yield proxy


@pytest.fixture
async def via(proxy: FaultProxy, blob_config: BlobConfig, store: BlobStore) -> AsyncIterator[BlobStore]:
    """As a master target works: patiently, and through the proxy."""
    await store.create(BLOB, b"")
    async with BlobStore.connect(proxy.config(blob_config.container)) as connected:
        yield connected.patient()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest lease that storage gives, and its parts as of one of a minute."""
    for name, seconds in (("_LEASE_S", 15), ("_RENEW_S", 0.3), ("_ATTEMPT_S", 0.5), ("_AGAIN_S", 0.1)):
        monkeypatch.setattr(leases, name, seconds)


def test_three_attempts_fit_between_a_renewal_that_is_due_and_the_end_of_the_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    three_s = leases._RENEW_S + 3 * leases._ATTEMPT_S + 2 * leases._AGAIN_S
    assert three_s <= leases._LEASE_S - leases._MARGIN_S


@pytest.mark.parametrize(
    "fault", [Stall(), Cut(), Answer(503, "ServerBusy"), Answer(403, "AuthorizationFailure")]
)
async def test_renewals_that_fail_twice_cost_nothing(
    via: BlobStore, proxy: FaultProxy, fault: Stall | Cut | Answer
) -> None:
    lease = await KeptLease.take(via, BLOB)
    struck = proxy.add(fault, comp="lease", times=2)
    renewals = proxy.seen["PUT lease"]
    while proxy.seen["PUT lease"] < renewals + 4:  # noqa: ASYNC110 - the proxy's thread has no event of this loop
        await asyncio.sleep(0.05)
    assert struck.struck == 2
    assert not lease.lost.is_set()
    await lease.release()


async def test_a_lease_whose_renewals_hang_is_given_up_while_it_is_still_held(
    via: BlobStore, proxy: FaultProxy, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_MARGIN_S", 12.5)  # what is shown does not depend on how long before
    lease = await KeptLease.take(via, BLOB)
    proxy.add(Stall(), comp="lease", times=None)
    async with asyncio.timeout(15):
        await lease.lost.wait()
    with pytest.raises(LeaseHeldError):  # nobody else can have it yet
        await store.leases.acquire(BLOB, 15)
    proxy.clear()
    await lease.release()
    await (await store.leases.acquire(BLOB, 15)).release()


async def test_a_process_that_stood_still_gives_up_what_may_be_anothers(
    via: BlobStore, proxy: FaultProxy
) -> None:
    lease = await KeptLease.take(via, BLOB)
    renewals = proxy.seen["PUT lease"]
    lease._held_until_s = lease._loop.time() - 1  # it did not run for so long
    await lease.lost.wait()
    assert proxy.seen["PUT lease"] == renewals
    await lease.release()


async def test_a_lease_that_another_has_is_lost(via: BlobStore, store: BlobStore) -> None:
    lease = await KeptLease.take(via, BLOB)
    await store.leases.break_now(BLOB)
    other = await store.leases.acquire(BLOB, 15)
    await lease.lost.wait()
    await lease.release()
    await other.release()
