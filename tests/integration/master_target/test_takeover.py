"""A whole master target whose machine another one takes: what it tells, and what it leaves alone. Real storage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from master_target import leases
from master_target import machine as machine_module
from master_target.claim import Claim
from master_target.targets.page_blob import PageBlobTarget
from master_target.targets.state import DiskInterval
from master_target.unreadable import RECORD
from shared.batch import SECTOR, Op, StreamState
from shared.blob import BlobStore
from shared.errors import LeaseLostError
from shared.log import names
from shared.recovery.position import Position
from tests.epoch_ids import CLAIM
from tests.machine_log import ModelMachine
from tests.master_parts import running, until, until_applied


async def grow(model: ModelMachine) -> None:
    model.disks.append(bytearray(64 * 1024))
    await model.begin_epoch("a disk more")
    await model.publish()


async def misfit(model: ModelMachine) -> None:
    """What is damage to whoever has the machine."""
    model._add([(0, len(model.disks[0]) // SECTOR, 8, Op.ZERO)], StreamState.ORDERED, (), "")
    await model.publish()


@pytest.mark.parametrize("news", [grow, misfit])
async def test_an_owner_that_has_not_heard_of_a_takeover_takes_no_disk_and_tells_of_the_takeover_alone(
    store: BlobStore, tmp_path: Path, news: Callable[[ModelMachine], Awaitable[None]]
) -> None:
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    await model.publish()
    async with running(model) as machine:
        await until_applied(machine, model.position)
        await store.leases.break_now(names.MASTER)
        claim = await Claim.take(store, model.name, "mt2", first=True)
        disk_b = 64 * 1024
        disk = await PageBlobTarget.open(store, model.name, f"loop{len(model.disks)}", disk_b)
        await news(model)
        await until(machine, lambda: bool(machine.report().errors))
        assert [error.code for error in machine.report().errors] == [LeaseLostError.code]
        await until(machine, lambda: machine.report().state == "claimed by another master target")
        assert machine.report().errors == []
        await disk.begin(DiskInterval(Position.of(2, 0), Position.of(2, 1), disk_b, CLAIM))
        await disk.close()
        await claim.release()


async def forgotten(model: ModelMachine) -> None:
    """What stops no work, and is told beside it."""
    model.fail_to_read((0, 0, 400))
    await model.publish()
    async with running(model) as machine:
        await until_applied(machine, model.position)
    await model.store.delete(RECORD)
    model.write()
    await model.publish()


@pytest.mark.parametrize("news", [misfit, forgotten])
async def test_what_failed_is_told_no_more_once_another_has_the_machine(
    store: BlobStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    news: Callable[[ModelMachine], Awaitable[None]],
) -> None:
    monkeypatch.setattr(machine_module, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(leases, "_RENEW_S", 0.05)
    model = await ModelMachine.create(store, tmp_path)
    await model.begin_epoch()
    await model.publish()
    await news(model)
    async with running(model) as machine:
        await until(machine, lambda: bool(machine.report().errors))
        await store.leases.break_now(names.MASTER)
        claim = await Claim.take(store, model.name, "mt2", first=True)
        await until(machine, lambda: machine.report().state == "claimed by another master target")
        assert machine.report().errors == []
        await claim.release()
