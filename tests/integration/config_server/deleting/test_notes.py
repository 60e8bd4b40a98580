"""Which deletion stands, by the container's own note; and what was brought back, or enrolled, meanwhile."""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
import types
from pathlib import Path
from typing import Any, Final

import pytest

from config_server import service
from config_server.operations import deletion_sweep
from config_server.rules import deletion
from config_server.rules.deletion import Stage
from config_server.storage import deletion_note, removal
from config_server.store import deletions
from shared import api, enrol
from shared.api.copies import RebindRequest
from shared.api.protection import Protection
from shared.api.route import Limit, Nothing
from shared.blob import BlobConfig
from shared.errors import BeingDeletedError, RequestError, StorageError, ToBeDeletedError
from shared.machine_storage import MachineStorage
from shared.rest import RestClient
from tests.config_parts import ConfigServer, config_for, running, until
from tests.deletions import (
    HARDWARE,
    Looks,
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
from tests.storage_faults import Answer, Cut, FaultProxy, Late, Slow

NOTE: Final[dict[str, Any]] = {"method": "PUT", "blob": "deletion.json"}


class Struck:
    """That a rule struck, for the test's event loop."""

    def __init__(self) -> None:
        self._event, self._loop = asyncio.Event(), asyncio.get_running_loop()

    def __call__(self) -> None:
        self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


async def is_there(storage: MachineStorage, machine: ModelMachine) -> bool:
    return machine.store.container in (await in_storage(storage))[0]


# ---- the note


async def test_a_write_of_the_note_that_is_late_changes_nothing(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    proxy: FaultProxy,
) -> None:
    """The first attempt of `delete` arrives behind `keep`; then the host is set back, and nobody notices."""
    proxy.add(Late(8.0), times=1, **NOTE)
    await delete(operator)
    await stops(web1)
    with opened(folder(server)) as db:
        before = deletion_of(db)
    assert (await kept(operator)).taken_back
    assert proxy.active > 0, "it is on its way still"
    await asyncio.to_thread(proxy.wait_idle)
    assert await deletion_note.read(machine.store) == deletion_note.NONE
    with opened(folder(server)) as db:
        deletions.put(db, "web1", before)
    pass_delay(folder(server))
    await is_waiting(operator, "US631")
    assert await is_there(machine_storage, machine)


async def test_of_one_that_was_not_said_after_all_the_container_notes_nothing(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, machine: ModelMachine, proxy: FaultProxy
) -> None:
    """Who says it again hangs up while storage is slow: the first one stands, in the database and there."""
    await delete(operator)
    await stops(web1)
    first = await deletion_note.read(machine.store)
    struck = Struck()
    rule = proxy.add(Slow(1.0), times=1, then=struck, **NOTE)
    async with server.operator() as other:
        hung_up = asyncio.create_task(delete(other))
        await struck.wait()
        hung_up.cancel()
    await asyncio.to_thread(proxy.wait_idle)
    assert rule.struck == 1

    async def is_first() -> bool:
        return await deletion_note.read(machine.store) == first

    await until(is_first)
    with opened(folder(server)) as db:
        assert deletion_of(db).id == first
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))


@pytest.mark.parametrize("how", ["storage refuses", "hung up"])
async def test_one_that_is_dead_does_not_live_again_since_another_was_not_said(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    proxy: FaultProxy,
    how: str,
    looks: Looks,
) -> None:
    """It was taken back before the database was set back; who follows the advice to say it again does not succeed."""
    await delete(operator)
    await stops(web1)
    await deletion_note.write(machine.store, deletion_note.NONE)
    pass_delay(folder(server))
    await is_waiting(operator, "US631")
    if how == "hung up":
        struck = Struck()
        proxy.add(Slow(1.0), times=1, then=struck, **NOTE)
        async with server.operator() as other:
            hung_up = asyncio.create_task(delete(other))
            await struck.wait()
            hung_up.cancel()
        await asyncio.to_thread(proxy.wait_idle)
    else:
        proxy.add(Answer(403, "AuthorizationFailure"), times=1, method="PUT", comp="metadata")
        with pytest.raises(StorageError):
            await delete(operator)
    await looks.more(5)
    await is_waiting(operator, "US631")
    assert await is_there(machine_storage, machine)


async def test_one_of_a_machine_without_a_container_notes_nothing_and_is_done(
    server: ConfigServer, operator: RestClient, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion_sweep, "NOTE_S", 0.0)
    await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web9")
    await delete(operator, "web9")
    await looks.more(5)
    assert not (await shown(operator, "web9")).errors
    pass_delay(folder(server), "web9")
    await until(lambda: is_gone(operator, "web9"))


async def test_a_note_that_may_not_be_written_hinders_before_anything_is_closed(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy
) -> None:
    """A legal hold."""
    await delete(operator)
    await stops(web1)
    proxy.add(Answer(409, "BlobImmutableDueToLegalHold"), times=None, **NOTE)
    pass_delay(folder(server))
    await is_waiting(operator, "US632")
    view = await shown(operator)
    assert view.deletion is not None
    assert view.deletion.stage == Stage.WAITING
    assert (await kept(operator)).taken_back


async def test_a_note_that_is_another_at_each_attempt_is_given_up(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy
) -> None:
    rule = proxy.add(Answer(412, "ConditionNotMet"), times=None, **NOTE)
    with pytest.raises(StorageError):
        await delete(operator)
    assert rule.struck < 20
    assert (await shown(operator)).deletion is None


async def test_what_another_server_says_while_the_request_is_refused_is_not_undone(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It keeps the machine between the look and the request."""
    await delete(operator)
    await stops(web1)
    real = removal.remove_container

    async def remove(storage: MachineStorage, container: str, changed: dt.datetime) -> None:
        await deletion_note.write(machine.store, deletion_note.NONE)
        await machine.store.change_container()
        await real(storage, container, changed)

    monkeypatch.setattr(removal, "remove_container", remove)
    pass_delay(folder(server))
    await is_waiting(operator, "US631")
    assert await is_there(machine_storage, machine)


async def test_another_note_is_told_before_the_deletion_is_due(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deletion_sweep, "NOTE_S", 0.0)
    await delete(operator)
    await stops(web1)
    await deletion_note.write(machine.store, "another")
    await is_waiting(operator, "US631")
    view = await shown(operator)
    assert view.deletion is not None
    assert not view.deletion.is_due


async def test_a_note_that_cannot_be_read_notes_nothing(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, machine: ModelMachine
) -> None:
    await delete(operator)
    await stops(web1)
    await machine.store.replace("deletion.json", b"[]")
    pass_delay(folder(server))
    await is_waiting(operator, "US631")
    await delete(operator)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))


# ---- who may read it, and since when it is quiet


@pytest.mark.parametrize(
    "fault",
    [
        Answer(403, "AuthorizationFailure"),
        Answer(403, "AuthenticationFailed"),
        Answer(403, foreign=True),
        Answer(407, foreign=True),
    ],
    ids=lambda fault: f"{fault.status} {fault.code}",
)
async def test_a_refusal_that_says_nothing_of_grants_hinders(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    proxy: FaultProxy,
    fault: Answer,
) -> None:
    """A grant is there, of another config server."""
    await delete(operator)
    await stops(web1)
    until_when = dt.datetime.now(dt.UTC) + dt.timedelta(hours=5)
    await machine.store.policies.put(f"understudy-{secrets.token_hex(8)}", until_when)
    proxy.add(fault, comp="acl", times=None)
    pass_delay(folder(server))
    await is_waiting(operator, "US632")
    proxy.clear()
    await is_waiting(operator, "US630")
    assert await is_there(machine_storage, machine)


async def test_without_a_word_of_grants_it_is_storages_clock_that_says_since_when_it_is_quiet(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Ahead(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return dt.datetime.now(tz) + dt.timedelta(minutes=20)

    ahead = types.SimpleNamespace(datetime=Ahead, UTC=dt.UTC, timedelta=dt.timedelta)
    monkeypatch.setattr(removal, "dt", ahead)
    monkeypatch.setattr(deletion, "QUIET_S", 900.0)
    proxy.add(Answer(403, "AuthorizationPermissionMismatch"), comp="acl", times=None)
    await delete(operator)
    await stops(web1)
    pass_delay(folder(server))
    machine.write()
    await machine.publish(segments=1)
    await is_waiting(operator, "US630")


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
    monkeypatch.setattr(service, "PASS_S", 0.5)
    config = config_for(tmp_path, blob=blob_config, vault_file=machine.vault.path)
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
        await delete(operator)
        pass_delay(config.data_dir)
        await struck.wait()
    monkeypatch.undo()
    monkeypatch.setattr(service, "PASS_S", 0.05)
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


async def test_what_is_there_still_though_nobody_was_told_that_it_stays_waits_for_a_person(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    proxy: FaultProxy,
) -> None:
    """It may have been brought back meanwhile."""
    await delete(operator)
    await stops(web1)
    proxy.add(Cut(), method="DELETE", times=None)
    pass_delay(folder(server))
    await is_waiting(operator, "US631")
    assert await is_there(machine_storage, machine)
    assert (await kept(operator)).taken_back


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
    actions = [entry.action for entry in (await operator.call(api.AUDIT, Limit())).entries]
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
