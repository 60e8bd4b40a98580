"""What a deletion waits for, or says, where somebody may be reading, the name is used again, or storage is slow, refuses, is another."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from config_server.operations import deletion_sweep, restore_job
from config_server.operations.deleting import Deleting
from config_server.operations.deletion_sweep import DeletionSweep
from config_server.rules import deletion
from config_server.store import jobs
from shared import api
from shared.api.audit import AuditView
from shared.api.deletion import DeletionRequest
from shared.api.events import EventQuery
from shared.api.jobs import JobProgress, JobState
from shared.api.machines import MachineView
from shared.api.protection import Protection
from shared.api.restores import GrantEnd, RestoreRequest
from shared.api.route import Nothing, Page
from shared.blob import BlobConfig
from shared.control.rest import RestClient
from shared.desired import Verb
from shared.errors import AskerGoneError, ConfigError, RequestError
from shared.machine.storage import REGISTRY, MachineStorage
from shared.status import Problem
from shared.vocabulary import Severity
from tests import older_jobs
from tests.azurite import Azurite
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
    waits,
)
from tests.machine_log import ModelMachine
from tests.obedient_agent import ObedientAgent, obedient_agent
from tests.storage_faults import Answer, FaultProxy, Slow, Stall


async def entry(operator: RestClient, action: str) -> AuditView:
    return next(e for e in (await operator.call(api.AUDIT, Page())).entries if e.action == action)


# ---- who may be there


async def test_it_waits_for_a_job_that_was_given_up_since_that_may_go_on(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await delete(operator)
    await stops(web1)
    with opened(folder(server)) as db:
        older_jobs.create(db, "j1", "restore", "web1", "operator:o", {}, 1)
        assert jobs.fail_silent(db, {"j1": (0, 0)}, 10**15, 1)[0].state == "failed"
    pass_delay(folder(server))
    await is_waiting(operator, "US630")
    assert "job j1, of which nothing is heard, may go on" in (await shown(operator)).cause
    monkeypatch.setattr(deletion, "GIVEN_UP_S", 0)
    await until(lambda: is_gone(operator))


async def test_it_waits_for_a_restore_of_which_nothing_is_heard_for_a_day_and_for_one_that_is_heard_until_it_ends(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    looks: Looks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stands still, and needs somebody; its grant is over."""
    monkeypatch.setattr(restore_job, "_LOOK_S", 0.05)
    monkeypatch.setattr(restore_job, "SILENT_S", 0.3)
    await delete(operator)
    await stops(web1)
    granted = await operator.call(api.RESTORE, RestoreRequest(to="/x"), machine="web1")
    await operator.call(api.GRANT_END, GrantEnd(returned=True), machine="web1", id=granted.storage.id)

    async def stands() -> bool:
        return (await operator.call(api.JOB, Nothing(), id=granted.job)).state is JobState.ATTENTION

    await until(stands)
    pass_delay(folder(server))
    await is_waiting(operator, "US630")
    assert f"job {granted.job}, of which nothing is heard, may go on" in (await shown(operator)).cause
    monkeypatch.setattr(restore_job, "SILENT_S", 3600.0)
    await operator.call(api.JOB_UPDATE, JobProgress(), id=granted.job)

    async def runs() -> bool:
        return f"a restore of it runs (job {granted.job})" in (await shown(operator)).cause

    await until(runs)
    monkeypatch.setattr(deletion, "GIVEN_UP_S", 0)
    await looks.more(2)
    assert await runs(), "a day of silence is not over for one that is heard"
    monkeypatch.setattr(restore_job, "SILENT_S", 0.3)
    await until(lambda: is_gone(operator))


@pytest.mark.parametrize("identity", ["hw1", ""])
async def test_an_agent_that_is_enrolled_during_the_delay_is_another_machine_until_it_is_said_again(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, tmp_path: Path, identity: str
) -> None:
    await delete(operator)
    await stops(web1)
    again = await server.enrolled("agent", "web1", tmp_path / "again")
    await is_waiting(operator, "US633")
    pass_delay(folder(server))
    await is_waiting(operator, "US633")
    view = await shown(operator)
    assert view.deletion is not None
    assert (view.deletion.due, view.deletion.stage) == (None, "waiting")
    async with obedient_agent(server, again) as anew:
        anew.captured = ()
        await anew.report(identity="hw1", boot="1")
        await delete(operator)
        await anew.report(identity="hw1", boot="1")
        await anew.report(identity="hw1", boot="1")
        pass_delay(folder(server))
        await until(lambda: is_gone(operator))


async def test_who_hung_up_is_not_acted_for(
    machine: ModelMachine,
    proxy: FaultProxy,
    blob_config: BlobConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    real = Deleting.delete

    async def recorded(self: Deleting, call: object, body: DeletionRequest) -> MachineView:
        try:
            view = await real(self, call, body)  # type: ignore[arg-type]
        except BaseException as exc:
            ended.set_result(exc)
            raise
        ended.set_result(None)
        return view

    monkeypatch.setattr(Deleting, "delete", recorded)
    config = config_for(tmp_path, blob=proxy.config(blob_config.container), vault_file=machine.vault.path)
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
        struck, loop = asyncio.Event(), asyncio.get_running_loop()
        proxy.add(Slow(1.0), comp="acl", times=1, then=lambda: loop.call_soon_threadsafe(struck.set))
        async with server.operator() as other:
            asked = asyncio.create_task(delete(other))
            await struck.wait()
            asked.cancel()
        assert isinstance(await ended, AskerGoneError)
        view = await shown(operator)
        assert (view.protected, view.deletion) == (True, None)


async def test_the_agent_of_a_machine_that_was_deleted_begins_anew(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, tmp_path: Path
) -> None:
    await delete(operator)
    await stops(web1)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))
    again = await server.enrolled("agent", "web1", tmp_path / "again")
    async with obedient_agent(server, again) as anew:
        anew.wish, anew.captured = web1.wish, ()
        assert web1.wish is not None
        assert web1.wish.verb is Verb.STOP
        await anew.report(**HARDWARE)
        assert anew.wish is not None
        assert (anew.wish.verb, anew.wish.disks) == (Verb.PROTECT, ())
        assert (await shown(operator)).protected
        [event, *_] = (await operator.call(api.EVENTS, EventQuery(object="web1"))).events
        assert "was enrolled again, and protects by its configuration" in event.what
        asked = await operator.call(api.UNPROTECT, Nothing(), machine="web1")
        await anew.report(**HARDWARE)
        await anew.report(**HARDWARE)
        assert anew.wish.verb is Verb.STOP
        assert not asked.protected


async def test_what_its_agent_reported_is_over_with_it(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    sick = Problem(code="US456", what="The disk sda is sick", severity=Severity.CRITICAL, object="sda")
    await delete(operator)
    web1.captured = ()
    for _ in range(2):
        await web1.report(**HARDWARE, errors=[sick])
    opened_ = (await operator.call(api.EVENTS, EventQuery(open=True))).events
    assert "US456" in [event.code for event in opened_]
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))
    opened_ = (await operator.call(api.EVENTS, EventQuery(open=True))).events
    assert [event.source for event in opened_ if event.source == "agent:web1"] == []


# ---- storage


async def test_in_another_account_nothing_was_deleted(
    tmp_path: Path, blob_config: BlobConfig, machine_storage: MachineStorage
) -> None:
    config = config_for(tmp_path, blob=blob_config)
    await machine_storage.find_or_create("web1")
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
        await delete(operator)
    pass_delay(config.data_dir)
    with Azurite(tmp_path / "other") as second:
        moved = config_for(tmp_path, blob=second.config(blob_config.container))
        async with running(moved) as server, server.operator() as operator:
            await is_waiting(operator, "US633")
    async with running(config) as server, server.operator() as operator:
        await until(lambda: is_gone(operator))


async def test_a_container_that_had_gone_by_itself_is_said(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, machine: ModelMachine
) -> None:
    await delete(operator)
    await stops(web1)
    await machine.store._core.container.delete_container()
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))
    [event, *_] = (await operator.call(api.EVENTS, EventQuery(object="web1"))).events
    assert f"its container {machine.store.container} had gone before that" in event.what


async def test_an_older_container_of_the_name_is_named_and_keeps_no_machine_in_the_list(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
) -> None:
    vault = machine_storage.vault
    old = f"{vault.container}-00000000000000aa"
    await vault.in_container(old).ensure_container(
        {"machine": "web1", "vault": vault.container, "created": "1"}
    )
    lost = await operator.call(api.DELETION, Nothing(), machine="web1")
    assert [line for line in lost.stays if old in line]
    await delete(operator)
    await stops(web1)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))
    [event, *_] = (await operator.call(api.EVENTS, EventQuery(object="web1"))).events
    assert "was deleted, as operator:admin asked" in event.what
    assert old in event.action
    assert old in (await in_storage(machine_storage))[0]


@pytest.mark.parametrize("fault", [Answer(403, "AuthorizationFailure"), Answer(503, "ServerBusy")])
async def test_what_storage_said_is_gone_needs_no_list_of_containers(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    proxy: FaultProxy,
    fault: Answer,
) -> None:
    await delete(operator)
    await stops(web1)
    proxy.add(fault, comp="list", blob="test-*", times=None)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))
    containers, entries = await in_storage(machine_storage)
    assert machine.store.container not in containers
    assert f"{REGISTRY}web1.json" not in entries


async def test_an_identity_that_may_not_read_policies_deletes_all_the_same(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    proxy: FaultProxy,
) -> None:
    """*Storage Blob Data Contributor* has no getAcl; Azure answers 403."""
    rule = proxy.add(Answer(403, "AuthorizationPermissionMismatch"), comp="acl", times=None)
    await delete(operator)
    await stops(web1)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))
    containers, _ = await in_storage(machine_storage)
    assert machine.store.container not in containers
    assert rule.struck > 0


async def test_what_storage_refuses_is_asked_again_after_ten_minutes_and_not_with_each_look(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deletion_sweep, "LOOK_S", 600.0)
    await delete(operator)
    await stops(web1)
    looks, real = 0, DeletionSweep.sweep

    async def counted(self: DeletionSweep) -> None:
        nonlocal looks
        looks += 1
        await real(self)

    monkeypatch.setattr(DeletionSweep, "sweep", counted)
    rule = proxy.add(Answer(409, "ContainerImmutable"), method="DELETE", times=None)
    pass_delay(folder(server))
    await is_waiting(operator, "US632")
    until_looks, asked = looks + 20, sum(proxy.seen.values())

    async def is_looked() -> bool:
        return looks >= until_looks

    await until(is_looked)
    assert (rule.struck, sum(proxy.seen.values())) == (1, asked)


async def test_others_delays_go_on_while_storage_stalls(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy
) -> None:
    await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web2")
    for name in ("web1", "web2"):
        await delete(operator, name)
    await stops(web1)
    stalled, loop = asyncio.Event(), asyncio.get_running_loop()
    proxy.add(Stall(), times=None, then=lambda: loop.call_soon_threadsafe(stalled.set))
    pass_delay(folder(server))
    await stalled.wait()

    def counted_ns() -> int:
        with opened(folder(server)) as db:
            return deletion_of(db, "web2").passed_ns

    before_ns = counted_ns()

    async def is_counted() -> bool:
        return counted_ns() > before_ns

    await until(is_counted)
    assert proxy.active > 0, "the look that stalled goes on still"


async def test_a_container_that_does_not_say_whose_it_is_is_refused_at_once_with_a_way(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, machine: ModelMachine
) -> None:
    """Tools that copy an account leave the metadata behind."""
    container, vault = machine.store.container, server.config.blob
    assert vault is not None
    await machine.store._core.container.set_container_metadata({})
    way = f"--name {container} --metadata machine=web1 vault={vault.container}"
    with pytest.raises(RequestError) as looked:
        await operator.call(api.DELETION, Nothing(), machine="web1")
    with pytest.raises(RequestError) as asked:
        await delete(operator)
    assert way in looked.value.action
    assert way in asked.value.action
    assert (await shown(operator)).protected
    await machine.store._core.container.set_container_metadata({"machine": "web1", "vault": vault.container})
    await delete(operator)


# ---- words


async def test_of_one_that_is_due_it_is_said_since_when(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    web1.obeys = False
    await delete(operator)
    await web1.report(**HARDWARE)
    pass_delay(folder(server))
    await is_waiting(operator, "US630")
    first = (await shown(operator)).deletion
    assert first is not None
    with opened(folder(server)) as db:
        counted_ns = deletion_of(db).counted_ns
    looks = 0

    async def again() -> bool:
        nonlocal looks
        looks += 1
        return looks > 5

    await until(again)
    with opened(folder(server)) as db:
        assert deletion_of(db).counted_ns == counted_ns
    view = await shown(operator)
    assert view.deletion is not None
    assert (view.deletion.due, view.deletion.is_due) == (first.due, True)
    assert "it is due to be deleted since" in view.cause


async def test_points_that_cannot_be_listed_are_not_said_to_be_none(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, machine: ModelMachine, proxy: FaultProxy
) -> None:
    proxy.add(Answer(403, "AuthorizationFailure"), blob="points/*", times=None)
    view = await delete(operator)
    assert view.deletion is not None
    assert "could not be listed" in view.deletion.unknown
    assert (await entry(operator, "machine.delete")).detail["points"] is None


async def test_a_document_that_is_damaged_is_mended_as_its_own_error_says(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, machine: ModelMachine
) -> None:
    await delete(operator)
    await stops(web1)
    await machine.store.replace("side.json", b"{")
    pass_delay(folder(server))
    await is_waiting(operator, "US632")
    [error] = [error for error in (await shown(operator)).errors if error.code == "US632"]
    assert "understudy machine rebind" in error.action
    assert "understudy machine keep web1" in error.action
    assert await waits(operator) == ["US632"]


async def test_without_storage_it_is_said_that_none_is_configured(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as server, server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
        with pytest.raises(ConfigError, match="no blob storage"):
            await delete(operator)
        found = await kept(operator)
        assert not found.taken_back
