"""What was brought back, enrolled, bound or said elsewhere while a machine is deleted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from config_server import background
from config_server.operations import deletion_sweep
from config_server.rules import deletion
from config_server.rules.deletion import Stage
from config_server.storage import removal
from shared import api
from shared.api.copies import RebindRequest
from shared.api.protection import Protection
from shared.api.route import Nothing, Page
from shared.blob import BlobConfig
from shared.control import enrol
from shared.control.rest import RestClient
from shared.errors import BeingDeletedError, RequestError, StorageError, ToBeDeletedError
from shared.machine.storage import MachineStorage
from tests.config_parts import ConfigServer, config_for, running, until
from tests.deletions import (
    HARDWARE,
    NOTE,
    Looks,
    Struck,
    delete,
    folder,
    is_gone,
    is_there,
    is_waiting,
    kept,
    pass_delay,
    shown,
    stops,
)
from tests.machine_log import ModelMachine
from tests.obedient_agent import ObedientAgent, obedient_agent
from tests.storage_faults import Answer, Cut, Fault, FaultProxy, Late, Slow

# ---- what was brought back


async def content(machine: ModelMachine) -> dict[str, bytes]:
    return {
        blob.name: await machine.store.read(blob.name, 0, blob.size_b) if blob.size_b else b""
        async for blob in machine.store.list("")
    }


async def bring_back(machine: ModelMachine, metadata: dict[str, str], blobs: dict[str, bytes]) -> None:
    """As storage that keeps deleted containers does (Azurite has no such thing)."""
    await machine.store.ensure_container(metadata)
    for name, data in blobs.items():
        await machine.store.create(name, data)


async def test_what_was_brought_back_while_nobody_knew_whether_it_had_gone_is_not_deleted_again(
    machine: ModelMachine,
    machine_storage: MachineStorage,
    blob_config: BlobConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server ends between the request and what is written down of its answer."""
    struck = asyncio.Event()
    before: dict[str, bytes] = {}
    metadata: dict[str, str] = {}
    real_remove = removal.remove_container

    async def remove(*args: Any) -> None:
        before.update(await content(machine))
        metadata.update(await machine.store.container_metadata())
        await real_remove(*args)

    def reach(point: str) -> None:
        if point == "deletion.container-gone":
            struck.set()
            raise asyncio.CancelledError

    monkeypatch.setattr(removal, "remove_container", remove)
    monkeypatch.setattr(removal, "reach", reach)
    monkeypatch.setattr(background, "PASS_S", 0.5)
    config = config_for(tmp_path, blob=blob_config, vault_file=machine.vault.path)
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
        await delete(operator)
        pass_delay(config.data_dir)
        await struck.wait()
    monkeypatch.undo()
    monkeypatch.setattr(background, "PASS_S", 0.05)
    monkeypatch.setattr(deletion_sweep, "LOOK_S", 0.0)
    monkeypatch.setattr(deletion, "QUIET_S", 0.0)
    assert not await is_there(machine_storage, machine)
    await bring_back(machine, metadata, before)
    async with running(config) as server, server.operator() as operator:
        await is_waiting(operator, "US631")
        assert await is_there(machine_storage, machine)
        await delete(operator)
        pass_delay(config.data_dir)
        await until(lambda: is_gone(operator))


@pytest.mark.parametrize(
    "fault",
    [Cut(), *(Answer(status, foreign=True) for status in (200, 403, 404, 502))],
    ids=lambda fault: f"somebody else's {fault.status}" if isinstance(fault, Answer) else "none",
)
async def test_what_is_there_still_though_storage_did_not_say_that_it_stays_waits_for_a_person(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    proxy: FaultProxy,
    fault: Fault,
) -> None:
    """It may have been brought back meanwhile."""
    await delete(operator)
    await stops(web1)
    rule = proxy.add(fault, method="DELETE", times=1)
    pass_delay(folder(server))
    await is_waiting(operator, "US631")
    assert rule.struck == 1
    assert await is_there(machine_storage, machine)
    assert (await kept(operator)).taken_back


@pytest.mark.parametrize("fault", [Answer(503, "ServerBusy"), Answer(429, "TooManyRequests")])
async def test_busy_storage_that_turned_the_request_away_is_asked_again_without_a_person(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy, fault: Answer
) -> None:
    await delete(operator)
    await stops(web1)
    rule = proxy.add(fault, method="DELETE", times=2)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))
    assert rule.struck == 2


@pytest.mark.parametrize(
    "fault", [Answer(500, "OperationTimedOut"), Answer(503, "OperationTimedOut"), Answer(503)]
)
async def test_trouble_of_storage_behind_its_door_says_nothing_of_what_was_done(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy, fault: Answer
) -> None:
    await delete(operator)
    await stops(web1)
    rule = proxy.add(fault, method="DELETE", times=1)
    pass_delay(folder(server))
    await is_waiting(operator, "US631")
    assert rule.struck == 1


async def test_while_only_the_entry_is_left_no_way_back_is_advised(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deletion_sweep, "LOOK_S", 600.0)
    await delete(operator)
    await stops(web1)
    proxy.add(Answer(403, "AuthorizationPermissionMismatch"), method="DELETE", blob="machines/*", times=None)
    pass_delay(folder(server))
    await is_waiting(operator, "US632")
    view = await shown(operator)
    [error] = [error for error in view.errors if error.code == "US632"]
    assert view.deletion is not None
    assert view.deletion.stage == Stage.GONE
    assert "its container has gone, and its entry in the registry waits" in error.what
    assert "keep" not in error.action
    with pytest.raises(BeingDeletedError) as caught:
        await kept(operator)
    assert "its container has gone" in caught.value.cause
    assert "machine show" in caught.value.action


async def test_what_was_brought_back_when_it_was_known_to_have_gone_stays(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    proxy: FaultProxy,
) -> None:
    """Its entry cannot be removed for a while."""
    await delete(operator)
    await stops(web1)
    before, metadata = await content(machine), await machine.store.container_metadata()
    proxy.add(Answer(403, "AuthorizationFailure"), method="DELETE", blob="machines/*", times=None)
    pass_delay(folder(server))

    async def has_gone() -> bool:
        view = await shown(operator)
        return view.deletion is not None and view.deletion.stage == Stage.GONE

    await until(has_gone)
    with pytest.raises(BeingDeletedError):
        await kept(operator)
    await bring_back(machine, metadata, before)
    proxy.clear()
    await until(lambda: is_gone(operator))
    assert await is_there(machine_storage, machine)


# ---- who is enrolled meanwhile


async def test_nobody_is_enrolled_while_the_container_is_removed(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy, tmp_path: Path
) -> None:
    await delete(operator)
    await stops(web1)
    struck = Struck()
    proxy.add(Late(2.5), method="DELETE", times=1, then=struck)
    pass_delay(folder(server))
    await struck.wait()
    token = (await server.token("agent", "web1")).token
    with pytest.raises(BeingDeletedError):
        await enrol.enrol(server.url, token, tmp_path / "again")
    await until(lambda: is_gone(operator))
    await enrol.enrol(server.url, token, tmp_path / "again")  # the token was not used


async def test_who_is_enrolled_behind_keep_is_not_refused_by_a_look_that_was_slow(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy, tmp_path: Path
) -> None:
    """One that goes on where another server was killed."""
    await delete(operator)
    await stops(web1)
    struck = Struck()
    proxy.add(Slow(1.5), comp="acl", times=1, then=struck)
    pass_delay(folder(server), stage=Stage.CLOSING)
    await struck.wait()
    assert (await kept(operator)).taken_back
    again = await server.enrolled("agent", "web1", tmp_path / "again")
    await asyncio.to_thread(proxy.wait_idle)
    async with obedient_agent(server, again) as anew:
        await anew.report(**HARDWARE)
    actions = [entry.action for entry in (await operator.call(api.AUDIT, Page())).entries]
    assert "certificate.revoke" not in actions


async def test_an_agent_that_is_enrolled_while_the_deletion_is_asked_for_is_not_meant(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy, tmp_path: Path
) -> None:
    struck = Struck()
    proxy.add(Slow(1.5), times=1, then=struck, **NOTE)
    asking = asyncio.create_task(delete(operator))
    await struck.wait()
    await server.enrolled("agent", "web1", tmp_path / "again")
    with pytest.raises(RequestError, match="enrolled under its name meanwhile"):
        await asking
    async with server.operator() as other:
        assert (await shown(other)).deletion is None


# ---- no way out, and other servers


async def test_it_can_be_taken_back_where_storage_refuses_to_say_whether_the_container_is_there(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, machine: ModelMachine, proxy: FaultProxy
) -> None:
    await delete(operator)
    await stops(web1)
    info = await machine.store.container_info()
    await machine.store.delete_container(info.changed)
    proxy.add(Answer(403, "AuthorizationFailure"), comp="list", times=None)
    with pytest.raises(ToBeDeletedError):
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"]), machine="web1")
    found = await kept(operator)
    assert (found.taken_back, found.gone) == (True, False)


async def test_bound_to_other_hardware_by_a_server_that_knows_of_no_deletion_it_stays(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    blob_config: BlobConfig,
    proxy: FaultProxy,
    tmp_path: Path,
) -> None:
    await delete(operator)
    await stops(web1)
    struck = Struck()
    async with running(config_for(tmp_path / "other", blob=blob_config)) as second:
        proxy.add(Late(2.5), method="DELETE", times=1, then=struck)
        pass_delay(folder(server))
        await struck.wait()
        async with second.operator() as other:
            side = await other.call(api.REBIND, RebindRequest(identity="hw7"), machine="web1")
        assert side.identity == "hw7"
        await asyncio.to_thread(proxy.wait_idle)
        await is_waiting(operator, "US633")
        assert await is_there(machine_storage, machine)


async def test_storage_that_is_busy_is_told_once_and_asked_again_later(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    proxy: FaultProxy,
    looks: Looks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deletion_sweep, "LOOK_S", 600.0)
    await delete(operator)
    await stops(web1)
    rule = proxy.add(Answer(503, "ServerBusy"), method="DELETE", times=None)
    pass_delay(folder(server))
    await is_waiting(operator, "US632")
    for _ in range(5):
        await looks.more(1)
        assert (await shown(operator)).deletion is not None
        await is_waiting(operator, "US632")
    assert rule.struck == 1


async def test_a_storage_account_that_is_not_configured_any_more_hinders_nobody_to_take_it_back(
    machine: ModelMachine, blob_config: BlobConfig, tmp_path: Path
) -> None:
    config = config_for(tmp_path, blob=blob_config, vault_file=machine.vault.path)
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
        await delete(operator)
    async with running(config_for(tmp_path)) as server, server.operator() as operator:
        found = await operator.call(api.KEEP, Nothing(), machine="web1")
        assert (found.taken_back, found.gone) == (True, False)


async def test_what_storage_does_not_take_is_not_said(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy
) -> None:
    proxy.add(Answer(403, "AuthorizationFailure"), times=None, **NOTE)
    with pytest.raises(StorageError):
        await delete(operator)
    assert (await shown(operator)).deletion is None
    await web1.report(**HARDWARE)
    assert (await shown(operator)).protected
