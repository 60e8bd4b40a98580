"""Which deletion stands, by the container's own note; who may read it, and since when it is quiet."""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
import types
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from config_server.operations import deletion_sweep
from config_server.rules import deletion
from config_server.rules.deletion import Stage
from config_server.storage import deletion_note, removal
from config_server.store import deletions
from shared import api
from shared.api.copies import RebindRequest
from shared.api.events import EventQuery
from shared.api.protection import Protection
from shared.control.rest import RestClient
from shared.errors import StorageError
from shared.machine.storage import MachineStorage
from tests.config_parts import ConfigServer, until
from tests.deletions import (
    NOTE,
    Looks,
    Struck,
    delete,
    deletion_of,
    folder,
    is_gone,
    is_there,
    is_waiting,
    kept,
    opened,
    pass_delay,
    shown,
    stops,
    waits,
)
from tests.machine_log import ModelMachine
from tests.marks import some
from tests.obedient_agent import ObedientAgent
from tests.storage_faults import Answer, FaultProxy, Late, Slow

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


@pytest.mark.parametrize("say", [delete, kept])
async def test_what_somebody_is_just_saying_is_no_word_of_which_nobody_knows(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    proxy: FaultProxy,
    looks: Looks,
    say: Callable[[RestClient], Coroutine[Any, Any, object]],
) -> None:
    """The container notes it already, and the database has what was said before: storage is slow in between. There is one that is due, and
    waits, so that each look reads the note."""
    await delete(operator)
    await stops(web1)
    await operator.call(api.REBIND, RebindRequest(identity="hw2"), machine="web1")
    pass_delay(folder(server))
    await is_waiting(operator, "US633")
    struck = Struck()
    proxy.add(Slow(2.0), times=1, then=struck, method="PUT", comp="metadata")
    async with server.operator() as other:
        saying = asyncio.create_task(say(other))
        await struck.wait()
        await looks.more(3)
        assert not saying.done()
        assert await waits(operator) == ["US633"]
        await saying
    await looks.more(2)
    events = (await operator.call(api.EVENTS, EventQuery())).events
    assert "US631" not in [event.code for event in events]


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


@pytest.mark.parametrize("noted", some(["nothing", "none", "another"], short=("nothing",)))
async def test_one_of_a_version_that_noted_nothing_has_to_be_said_again(
    server: ConfigServer,
    operator: RestClient,
    web1: ObedientAgent,
    machine: ModelMachine,
    machine_storage: MachineStorage,
    noted: str,
) -> None:
    """Nothing tells whether it was taken back, or done and the container brought back, since."""
    await delete(operator)
    await stops(web1)
    if noted == "nothing":
        await machine.store.delete("deletion.json")
    else:
        await deletion_note.write(machine.store, deletion_note.NONE if noted == "none" else "another")
    pass_delay(folder(server), place="")

    async def is_said() -> bool:
        return "an earlier version of this server noted none" in (await shown(operator)).cause

    await until(is_said)
    await is_waiting(operator, "US631")
    assert await is_there(machine_storage, machine)
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
