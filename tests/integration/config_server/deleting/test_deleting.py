"""Machines that are deleted: what is said at once, what is waited for, and what has gone in the end. A real config server, and real
storage.
"""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path

import msgspec
import pytest

from config_server.operations import deletion_sweep
from config_server.operations.control import Control
from config_server.rules.deletion import Stage
from config_server.store import deletions, jobs
from shared import api
from shared.api.events import EventQuery
from shared.api.jobs import JobProgress, WorkerState
from shared.api.protection import Protection
from shared.api.restores import GrantEnd, RestoreRequest
from shared.api.route import Nothing
from shared.control.rest import RestClient
from shared.desired import Verb
from shared.errors import (
    BeingDeletedError,
    CertificateRevokedError,
    RequestError,
    ToBeDeletedError,
    TransientError,
)
from shared.machine import active_side
from shared.machine.storage import REGISTRY, MachineStorage
from shared.status import ProcessServerReport, StreamReport
from shared.trust.tls import TlsFiles
from tests import older_jobs
from tests.config_parts import ConfigServer, daemon, until
from tests.deletions import (
    HARDWARE,
    audit,
    delete,
    deletion_of,
    folder,
    in_storage,
    is_gone,
    is_there,
    is_waiting,
    kept,
    opened,
    pass_delay,
    place_of,
    shown,
    stops,
    waits,
)
from tests.machine_log import ModelMachine
from tests.obedient_agent import ObedientAgent, obedient_agent
from tests.storage_faults import Answer, Cut, FaultProxy

# ---- said, and taken back


async def test_what_is_lost_is_told_and_at_once_only_its_agent_stops(
    operator: RestClient, web1: ObedientAgent, machine: ModelMachine
) -> None:
    lost = await operator.call(api.DELETION, Nothing(), machine="web1")
    assert (lost.container, lost.identity, lost.due) == (machine.store.container, "hw1", None)
    assert any("the agent and its folder" in line for line in lost.stays)
    found = await delete(operator, container=lost.container)
    assert (found.state, found.protected) == ("to-be-deleted", False)
    assert found.deletion is not None
    assert found.deletion.due is not None
    assert found.cause.startswith(f"it is to be deleted on {found.deletion.due[:10]}")
    assert (found.deletion.who, found.deletion.after_s) == ("operator:admin", 3600)
    await web1.report(**HARDWARE)
    assert web1.wish is not None
    assert web1.wish.verb is Verb.STOP
    assert (await audit(operator))[:2] == ["machine.delete", "machine.unprotect"]
    assert machine.store.container in {name async for name, _ in machine.store.list_containers("")}


async def test_it_is_taken_back_and_protected_only_then(operator: RestClient, web1: ObedientAgent) -> None:
    await delete(operator)
    with pytest.raises(ToBeDeletedError, match="machine keep web1"):
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"]), machine="web1")
    kept = await operator.call(api.KEEP, Nothing(), machine="web1")
    assert (kept.taken_back, kept.revoked, kept.machine.state) == (True, False, "unprotected")
    assert not (await operator.call(api.KEEP, Nothing(), machine="web1")).taken_back
    await operator.call(api.PROTECT, Protection(disks=["/dev/sda"]), machine="web1")
    await web1.report(**HARDWARE)
    assert web1.wish is not None
    assert web1.wish.verb is Verb.PROTECT
    assert "machine.keep" in await audit(operator)


async def test_another_container_than_the_one_that_was_shown_is_not_meant(
    operator: RestClient, web1: ObedientAgent
) -> None:
    with pytest.raises(RequestError, match="was meant"):
        await delete(operator, container="understudy-0000000000000000")
    view = await shown(operator)
    assert (view.deletion, view.protected) == (None, True)


async def test_of_storage_that_is_away_nobody_is_told_that_it_is_to_be_deleted(
    operator: RestClient, web1: ObedientAgent, proxy: FaultProxy
) -> None:
    proxy.add(Answer(503, "ServerBusy"), times=None)
    with pytest.raises(TransientError):
        await delete(operator)
    assert (await shown(operator)).protected


async def test_a_stop_that_is_said_again_changes_nothing_of_it(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    asked = (await delete(operator)).deletion
    again = await operator.call(api.UNPROTECT, Nothing(), machine="web1")
    assert again.deletion is not None
    assert asked is not None
    assert (again.state, again.deletion.asked) == ("to-be-deleted", asked.asked)
    await stops(web1)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))


# ---- done


async def test_when_it_is_due_all_of_it_goes_and_nothing_else(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    files: TlsFiles,
    machine_storage: MachineStorage,
    machine: ModelMachine,
    tmp_path: Path,
) -> None:
    other = (await machine_storage.find("web2")).container
    await delete(operator)
    await stops(web1)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))
    assert await in_storage(machine_storage) == ({other}, {f"{REGISTRY}web2.json"})
    assert {"machine.deleted", "certificate.revoke"} <= {*await audit(operator)}
    async with daemon(server, files) as client:
        with pytest.raises(CertificateRevokedError):
            await client.report({"state": "ordered"})
    events = (await operator.call(api.EVENTS, EventQuery(object="web1"))).events
    assert "was deleted, as operator:admin asked" in events[0].what
    assert "the agent and its folder" in events[0].action
    again = await server.enrolled("agent", "web1", tmp_path / "again")
    await machine_storage.find_or_create("web1")
    async with obedient_agent(server, again) as anew:
        await anew.report(identity="hw2", boot="1")
        view = await shown(operator)
        assert (view.state, view.wish, view.deletion) == ("unprotected", None, None)


async def test_a_machine_of_which_storage_holds_nothing_goes_too(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, machine_storage: MachineStorage
) -> None:
    await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web9")
    found = await delete(operator, "web9")
    assert found.deletion is not None
    assert found.deletion.container == ""
    await stops(web1)
    before = await in_storage(machine_storage)
    pass_delay(folder(server), "web9")
    await until(lambda: is_gone(operator, "web9"))
    assert await in_storage(machine_storage) == before
    assert (await shown(operator)).deletion is None


@pytest.mark.parametrize("before", ["nothing was said", "it was to be deleted", "the database was put back"])
async def test_of_one_whose_container_is_gone_already_the_entry_goes(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    before: str,
) -> None:
    """By hand, or behind a restore of the database."""
    if before != "nothing was said":
        await delete(operator)
    await stops(web1)
    await machine.store.delete_container((await machine.store.container_info()).changed)
    if before == "the database was put back":
        pass_delay(folder(server), incarnation="f" * 16)
        await is_waiting(operator, "US631")
    lost = await operator.call(api.DELETION, Nothing(), machine="web1")
    assert (lost.container, lost.gone, lost.points, lost.unknown) == (machine.store.container, True, 0, "")
    await delete(operator, container=lost.container)
    assert (await kept(operator)).gone
    await delete(operator)
    await stops(web1)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))
    assert (await in_storage(machine_storage))[1] == {f"{REGISTRY}web2.json"}


async def test_one_whose_container_was_gone_and_is_brought_back_since_waits_for_a_person(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
) -> None:
    await stops(web1)
    metadata = await machine.store.container_metadata()
    await machine.store.delete_container((await machine.store.container_info()).changed)
    await delete(operator)
    await stops(web1)
    await machine.store.ensure_container(metadata)
    await active_side.find_or_begin(machine.store, "web1", "hw1")
    pass_delay(folder(server))
    await is_waiting(operator, "US631")
    assert await is_there(machine_storage, machine)


async def test_a_clock_that_is_set_ahead_by_years_hastens_nothing(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = Control.now_ns
    await delete(operator)
    await stops(web1)
    monkeypatch.setattr(Control, "now_ns", lambda self: now_ns(self) + 10 * 366 * 86_400 * 10**9)

    async def is_counted() -> bool:
        with opened(folder(server)) as db:
            return deletion_of(db).counted_ns > time.time_ns() + 10**9

    await until(is_counted)
    view = await shown(operator)
    assert (view.state, await waits(operator)) == ("to-be-deleted", [])
    assert view.deletion is not None
    assert view.deletion.stage == "waiting"


# ---- waits


async def test_it_waits_for_an_agent_that_has_not_heard_of_it_or_replicates_and_goes_on_then(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    web1.obeys = False
    await delete(operator)
    pass_delay(folder(server))
    await web1.report(**HARDWARE)
    await is_waiting(operator, "US630")
    web1.captured = ()
    await web1.report(**HARDWARE)

    async def is_unheard() -> bool:
        return "has not heard" in (await shown(operator)).cause

    await until(is_unheard)
    web1.obeys = True
    await web1.report(**HARDWARE)
    await web1.report(**HARDWARE)
    await until(lambda: is_gone(operator))


async def test_it_waits_for_a_session_that_a_process_server_has(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, tmp_path: Path
) -> None:
    files = await server.enrolled("process-server", "ps1", tmp_path / "ps1")
    async with daemon(server, files) as ps1:
        await ps1.report(ProcessServerReport(machines={"web1": StreamReport(epoch=1, connected=True)}))
        await delete(operator)
        await stops(web1)
        pass_delay(folder(server))
        await is_waiting(operator, "US630")
        assert "process-server:ps1 has a session" in (await shown(operator)).cause
        await ps1.report(ProcessServerReport(machines={"web1": StreamReport(epoch=1)}))
        lost = await operator.call(api.DELETION, Nothing(), machine="web1")
        assert (
            "on process-server:ps1: the machine's folder in its spool, until it hears of this" in lost.stays
        )
        await until(lambda: is_gone(operator))


async def test_it_waits_for_whoever_reads_it(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    await delete(operator)
    await stops(web1)
    grant = await operator.call(api.RESTORE, RestoreRequest(dry_run=True), machine="web1")
    pass_delay(folder(server))
    await is_waiting(operator, "US630")
    assert "by a grant" in (await shown(operator)).cause
    await operator.call(api.GRANT_END, GrantEnd(), machine="web1", id=grant.storage.id)
    await until(lambda: is_gone(operator))


async def test_it_waits_for_a_job_and_for_a_grant_that_only_storage_knows(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, machine: ModelMachine
) -> None:
    await delete(operator)
    await stops(web1)
    with opened(folder(server)) as db:
        older_jobs.create(db, "j1", "restore", "web1", "operator:o", {}, 1)
    pass_delay(folder(server))
    await is_waiting(operator, "US630")
    assert "job j1" in (await shown(operator)).cause
    await machine.store.policies.put(
        "understudy-00000000000000aa", dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    )
    with opened(folder(server)) as db:
        jobs.update(db, "j1", JobProgress(state=WorkerState.DONE), 2)

    async def by_storage() -> bool:
        return "understudy-00000000000000aa" in (await shown(operator)).cause

    await until(by_storage)
    await machine.store.policies.remove(["understudy-00000000000000aa"])
    await until(lambda: is_gone(operator))


async def test_it_waits_while_somebody_writes_its_log_of_whom_nobody_reports(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config_server.rules.deletion.QUIET_S", 900.0)
    await delete(operator)
    await stops(web1)
    pass_delay(folder(server))
    await is_waiting(operator, "US630")
    assert "written into its log" in (await shown(operator)).cause
    monkeypatch.setattr("config_server.rules.deletion.QUIET_S", 0.0)
    await until(lambda: is_gone(operator))


async def test_it_waits_for_storage_that_is_away(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy
) -> None:
    await delete(operator)
    await stops(web1)
    proxy.add(Answer(403, "AuthorizationFailure"), times=None)
    pass_delay(folder(server))
    await is_waiting(operator, "US632")
    proxy.clear()
    await until(lambda: is_gone(operator))


@pytest.mark.parametrize("what", ["another container", "other hardware", "metadata of nobody"])
async def test_what_is_another_machine_by_now_waits_until_it_is_said_again(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    what: str,
) -> None:
    await delete(operator)
    await stops(web1)
    store, vault = machine.store, machine_storage.vault
    if what == "another container":
        old = await vault.read(f"{REGISTRY}web1.json")
        entry = msgspec.json.decode(old)
        entry["id"] = "00000000000000aa"
        await vault.replace(f"{REGISTRY}web1.json", msgspec.json.encode(entry))
    elif what == "other hardware":
        await active_side.change(store, "web1", "hw2")
    else:
        await store._core.container.set_container_metadata({"vault": vault.container})
    pass_delay(folder(server))
    await is_waiting(operator, "US633")
    assert store.container in (await in_storage(machine_storage))[0]
    if what == "other hardware":
        await delete(operator)
        assert await waits(operator) == []
        pass_delay(folder(server))
        await until(lambda: is_gone(operator))


async def test_whose_agent_was_enrolled_anew_behind_its_revocation_is_another_machine(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine_storage: MachineStorage,
    machine: ModelMachine,
    tmp_path: Path,
) -> None:
    await delete(operator)
    await stops(web1)
    await server.revoke("agent:web1")
    await server.enrolled("agent", "web1", tmp_path / "again")
    pass_delay(folder(server), stage=Stage.CLOSED)
    await is_waiting(operator, "US633")
    assert machine.store.container in (await in_storage(machine_storage))[0]
    kept = await operator.call(api.KEEP, Nothing(), machine="web1")
    assert not kept.revoked, "it has new ones"


async def test_what_its_agent_knows_of_a_later_act_is_not_deleted(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent
) -> None:
    """An older database came back, say; what its agent goes by is adopted, and is later than the deletion."""
    await delete(operator)
    await web1.report(**HARDWARE)
    assert web1.wish is not None
    later = msgspec.structs.replace(
        web1.wish.mark, incarnation="another", number=web1.wish.mark.number + 1, act="2030-01-01T00:00:00Z-0"
    )
    web1.wish = msgspec.structs.replace(web1.wish, mark=later, verb=Verb.PROTECT)
    await web1.report(**HARDWARE)
    pass_delay(folder(server))
    await is_waiting(operator, "US631")
    assert (await shown(operator)).deletion is not None


# ---- in the midst of it


async def test_a_request_that_storage_refuses_can_be_taken_back_and_one_without_an_answer_is_found_out(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    proxy: FaultProxy,
    machine: ModelMachine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deletion_sweep, "LOOK_S", 600.0)
    await delete(operator)
    await stops(web1)
    proxy.add(Answer(409, "ContainerImmutable"), method="DELETE", times=None)
    pass_delay(folder(server))
    await is_waiting(operator, "US632")
    view = await shown(operator)
    assert view.deletion is not None
    kept = await operator.call(api.KEEP, Nothing(), machine="web1")
    assert (kept.taken_back, kept.revoked) == (True, True)
    proxy.clear()
    proxy.add(Cut(applied=True), method="DELETE", times=1)
    await delete(operator)
    pass_delay(folder(server))
    await until(lambda: is_gone(operator))


async def test_what_storage_was_asked_to_delete_is_past_recall_and_given_to_nobody(
    server: ConfigServer, operator: RestClient, web1: ObedientAgent, proxy: FaultProxy
) -> None:
    await delete(operator)
    await stops(web1)
    await server.revoke("agent:web1")
    proxy.add(Answer(403, "AuthorizationFailure"), times=None)  # nobody can find out
    pass_delay(folder(server), stage=Stage.REMOVING)
    await is_waiting(operator, "US632")
    assert (await shown(operator)).cause.startswith("it is being deleted")
    with pytest.raises(BeingDeletedError):
        await operator.call(api.KEEP, Nothing(), machine="web1")
    with pytest.raises(BeingDeletedError):
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"]), machine="web1")
    with opened(folder(server)) as db, pytest.raises(BeingDeletedError):
        deletions.check_readable(db, "web1", place_of(server))
    proxy.clear()
    await until(lambda: is_gone(operator))
