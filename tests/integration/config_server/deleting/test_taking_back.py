"""Who takes a deletion back keeps the machine, whatever is on its way to storage; and is told what is left."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import msgspec
import pytest

from config_server.operations import deletion_sweep
from config_server.rules.deletion import Stage
from config_server.storage import removal
from config_server.store import deletions, inventory, restored
from shared import api
from shared.api.copies import RebindRequest
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.blob import BlobConfig, Retry
from shared.control.rest import RestClient
from shared.errors import BeingDeletedError, CertificateRevokedError
from shared.machine.storage import MachineStorage
from shared.trust.tls import TlsFiles
from tests import older_jobs
from tests.config_parts import ConfigServer, config_for, daemon, running, until
from tests.deletions import (
    HARDWARE,
    delete,
    deletion_of,
    folder,
    in_storage,
    is_gone,
    is_waiting,
    kept,
    opened,
    pass_delay,
    shown,
    stops,
)
from tests.machine_log import ModelMachine
from tests.obedient_agent import ObedientAgent, obedient_agent
from tests.storage_faults import Answer, FaultProxy, Late

HELD_S = 4.0


async def is_closed(operator: RestClient) -> bool:
    view = await shown(operator)
    return view.deletion is not None and view.deletion.stage == Stage.CLOSED


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_request_without_an_answer_that_arrives_later_deletes_nothing_that_was_kept_or_is_read(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_kept: bool,
) -> None:
    monkeypatch.setattr(removal, "_ONCE", Retry(deadline_s=0.0, attempt_s=0.5))

    def begin_a_restore() -> None:
        """By whom it is read, and it is not tried again."""
        with opened(folder(server)) as db:
            older_jobs.create(db, "j1", "restore", "web1", "operator:o", {}, 1)

    await delete(operator)
    await stops(web1)
    rule = proxy.add(Late(HELD_S), method="DELETE", times=1, then=begin_a_restore)
    pass_delay(folder(server))
    await is_waiting(operator, "US631")  # whether it was done nobody knows
    assert rule.struck == 1
    assert await is_closed(operator)
    if is_kept:
        found = await kept(operator)
        assert (found.taken_back, found.revoked, found.gone) == (True, True, False)
    assert proxy.active > 0, "it is on its way still"
    await asyncio.to_thread(proxy.wait_idle)
    assert machine.store.container in (await in_storage(machine_storage))[0]


async def test_a_machine_is_not_bound_to_other_hardware_while_it_is_removed(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    proxy: FaultProxy,
) -> None:
    await delete(operator)
    await stops(web1)
    struck = asyncio.Event()
    loop = asyncio.get_running_loop()
    proxy.add(Late(HELD_S), method="DELETE", times=1, then=lambda: loop.call_soon_threadsafe(struck.set))
    pass_delay(folder(server))
    await struck.wait()
    with pytest.raises(BeingDeletedError):
        await operator.call(api.REBIND, RebindRequest(identity="hw7"), machine="web1")
    with opened(
        folder(server)
    ) as db:  # as if the machine was looked at before it is bound, and removed behind that
        deletions.put(db, "web1", msgspec.structs.replace(deletion_of(db), stage=Stage.WAITING))
    side = await operator.call(api.REBIND, RebindRequest(identity="hw7"), machine="web1")
    assert side.identity == "hw7"
    await asyncio.to_thread(proxy.wait_idle)
    assert machine.store.container in (await in_storage(machine_storage))[0]


async def test_who_says_it_again_and_takes_it_back_is_told_that_its_agent_is_revoked(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    files: TlsFiles,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deletion_sweep, "LOOK_S", 600.0)
    await delete(operator)
    await stops(web1)
    proxy.add(Answer(403, "AuthorizationPermissionMismatch"), method="DELETE", times=None)
    pass_delay(folder(server))
    await is_waiting(operator, "US632")
    await until(lambda: is_closed(operator))
    assert "its agent's certificates are revoked" in (await shown(operator)).cause
    await delete(operator)
    found = await kept(operator)
    assert (found.taken_back, found.revoked) == (True, True)
    async with daemon(server, files) as client:
        with pytest.raises(CertificateRevokedError):
            await client.report({"state": "ordered"})


async def test_what_may_not_be_fenced_is_not_begun_with(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy
) -> None:
    """Its role deletes, and does not write: it could not be taken back any more."""
    await delete(operator)
    await stops(web1)
    proxy.add(Answer(403, "AuthorizationPermissionMismatch"), method="PUT", comp="metadata", times=None)
    pass_delay(folder(server))
    await is_waiting(operator, "US632")
    view = await shown(operator)
    assert view.deletion is not None
    assert view.deletion.stage == Stage.WAITING
    found = await kept(operator)  # (also while storage takes no note of it)
    assert (found.taken_back, found.revoked) == (True, False)


async def test_of_a_machine_that_was_deleted_since_the_backup_it_is_said_that_nothing_is_left(
    tmp_path: Path, blob_config: BlobConfig, machine_storage: MachineStorage
) -> None:
    config = config_for(tmp_path, blob=blob_config)
    await machine_storage.find_or_create("web1")
    async with running(config) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "web1")
        async with obedient_agent(server, files) as agent:
            await agent.report(**HARDWARE)
            await operator.call(api.PROTECT, Protection(disks=["/dev/sda"]), machine="web1")
            await delete(operator)
            await stops(agent)
    shutil.copy(config.data_dir / "state.db", tmp_path / "backup.db")
    pass_delay(config.data_dir)
    async with running(config) as server, server.operator() as operator:
        await until(lambda: is_gone(operator))
    for file in config.data_dir.glob("state.db*"):
        file.unlink()
    shutil.copy(tmp_path / "backup.db", config.data_dir / "state.db")
    with opened(config.data_dir) as db:
        restored.prepare(db, time.time_ns())
    async with running(config) as server, server.operator() as operator:
        await is_waiting(operator, "US631")
        found = await kept(operator)
        assert (found.taken_back, found.revoked, found.gone) == (True, True, True)


async def test_a_deletion_that_was_taken_back_before_the_database_was_set_back_unnoticed_is_none(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
) -> None:
    await delete(operator)
    await stops(web1)
    with opened(folder(server)) as db:
        before = deletion_of(db)
    await kept(operator)
    with opened(folder(server)) as db:
        assert inventory.machine(db, "web1").deletion is None
        deletions.put(db, "web1", before)
    pass_delay(folder(server))
    await is_waiting(operator, "US631")
    assert "does not note it" in (await shown(operator)).cause
    assert machine.store.container in (await in_storage(machine_storage))[0]
    await delete(operator)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))


async def test_one_that_was_asked_of_another_storage_account_waits_in_any_stage(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, machine: ModelMachine
) -> None:
    await delete(operator)
    await stops(web1)
    for stage in (Stage.WAITING, Stage.REMOVING):
        pass_delay(folder(server), stage=stage, place="https://before.example.com/understudy")
        await is_waiting(operator, "US633")
        assert "https://before.example.com/understudy" in (await shown(operator)).cause
    found = await kept(operator)
    assert (found.taken_back, found.gone) == (True, False)
    assert await operator.call(api.DELETION, Nothing(), machine="web1")
