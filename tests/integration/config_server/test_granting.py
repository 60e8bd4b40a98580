"""Grants of the config server: given, listed, made longer, ended; with real policies in a real container."""

from __future__ import annotations

import asyncio
import datetime as dt
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from azure.storage.blob import AccessPolicy
from azure.storage.blob._generated.models import AccessPolicy as Written
from azure.storage.blob._generated.models import SignedIdentifier

from config_server.cli import access
from config_server.cli.options import Target
from config_server.cli.rescue import is_of_the_user
from config_server.operations.control import Control
from config_server.operations.granting import FIRST_LIFE_S, Granting
from config_server.storage.account import Storage
from config_server.store import audit, grants
from config_server.store.database import Connection, Database
from config_server.store.grants import Grant
from shared import api
from shared.api.protection import Protection
from shared.api.restores import GrantEnd, GrantView, RestoreRequest, StorageGrant
from shared.api.route import Limit, Nothing, Page
from shared.blob import BlobConfig, BlobStore
from shared.blob.policies import Policies
from shared.control.rest import RestClient
from shared.errors import (
    GrantEndedError,
    GrantLimitError,
    IntegrityError,
    MachineNotFoundError,
    NotFoundError,
    RequestError,
    StorageRefusedError,
    TransientError,
    UnderstudyError,
    WrongKeyError,
)
from shared.keys.vault import FileVault, WrappedKey, machine_key
from shared.machine.storage import MachineStorage
from tests.config_parts import ConfigServer, config_for, running, until
from tests.marks import some

REQUEST = RestoreRequest(dry_run=True, host="rescue1")
ID = "0123456789abcdef" * 2
LEFT = [f"understudy-{number:016x}" for number in range(3)]
HOUR_NS = 3600 * 1_000_000_000


@pytest.fixture
async def container(machine_storage: MachineStorage, tmp_path: Path) -> BlobStore:
    store = await machine_storage.find_or_create("web1")
    await machine_key(store, FileVault.create(tmp_path / "vault.json"), "web1", create=True)
    await store.create("a", b"content")
    return store


@pytest.fixture
async def server(
    container: BlobStore, blob_config: BlobConfig, tmp_path: Path
) -> AsyncIterator[ConfigServer]:
    config = config_for(tmp_path, blob=blob_config, vault_file=tmp_path / "vault.json")
    async with running(config) as started:
        yield started


@pytest.fixture
async def operator(server: ConfigServer) -> AsyncIterator[RestClient]:
    async with server.operator() as client:
        await client.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
        yield client


async def given(operator: RestClient) -> StorageGrant:
    return (await operator.call(api.RESTORE, REQUEST, machine="web1")).storage


async def ended(operator: RestClient, grant: StorageGrant, *, returned: bool = False) -> GrantView:
    return await operator.call(api.GRANT_END, GrantEnd(returned=returned), machine="web1", id=grant.id)


async def listed(operator: RestClient) -> list[GrantView]:
    return (await operator.call(api.GRANTS, Limit(), machine="web1")).grants


async def grant_entries(operator: RestClient) -> list[str]:
    """Of the audit log, newest first."""
    entries = (await operator.call(api.AUDIT, Page())).entries
    return [entry.action for entry in entries if entry.action.startswith("grant.")]


def reader(grant: StorageGrant) -> BlobStore:
    return BlobStore.connect(BlobConfig(url=grant.url), sas=grant.sas, ca_pem=grant.ca_pem).in_container(
        grant.container
    )


async def put_by_others(container: BlobStore, *names: str) -> None:
    """As another program does, which does not wait for the next second of storage's clock."""
    found = await container._core.container.get_container_access_policy()
    new = AccessPolicy("rl", dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(hours=1))
    all_ = {one.id: one.access_policy for one in found["signed_identifiers"]} | dict.fromkeys(names, new)
    await container._core.container.set_container_access_policy(all_)


async def policies(container: BlobStore) -> set[str]:
    return {policy.id for policy in await container.policies.list()}


async def test_a_grant_reads_the_machine_and_neither_the_registry_nor_another_machine(
    operator: RestClient, container: BlobStore, machine_storage: MachineStorage, blob_config: BlobConfig
) -> None:
    other = await machine_storage.find_or_create("web2")
    await other.create("a", b"another's")
    grant = await given(operator)
    assert blob_config.account_key_file is not None
    assert blob_config.account_key_file.read_text() not in str(grant.sas) + repr(grant)
    assert grant.sas not in repr(grant)
    async with reader(grant) as store:
        assert await store.read("a") == b"content"
        for closed in (other.container, machine_storage.vault.container):
            with pytest.raises(StorageRefusedError):
                await store.in_container(closed).read("a")
            with pytest.raises(StorageRefusedError):
                [blob async for blob in store.in_container(closed).list("")]


async def test_who_has_a_grant_is_on_record_and_nobody_finds_its_token_there(
    operator: RestClient, server: ConfigServer
) -> None:
    grant = await given(operator)
    [view] = await listed(operator)
    assert (view.id, view.who, view.host, view.state) == (grant.id, "operator:admin", "rescue1", "given")
    assert 0 < view.life_s <= 8 * 3600
    await ended(operator, grant, returned=True)
    [view] = await listed(operator)
    assert (view.state, view.ended_by) == ("returned", "operator:admin")
    assert await grant_entries(operator) == ["grant.return", "grant.give"]
    kept = b"".join(path.read_bytes() for path in server.config.data_dir.glob("state.db*"))
    assert grant.sas.split("sig=")[1].split("&")[0].encode() not in kept


async def test_a_revoked_grant_is_refused_by_storage_and_does_not_live_on(
    operator: RestClient, container: BlobStore
) -> None:
    grant, other = await given(operator), await given(operator)
    async with reader(grant) as store, reader(other) as still:
        assert await store.read("a") == b"content"
        assert (await ended(operator, grant)).state == "revoked"
        with pytest.raises(GrantEndedError):
            await store.read("a")
        assert await still.read("a") == b"content"
    with pytest.raises(GrantEndedError, match="operator:admin ended it"):
        await operator.call(api.GRANT_RENEW, Nothing(), machine="web1", id=grant.id)
    again = RestoreRequest(dry_run=True, grant=grant.id)
    with pytest.raises(GrantEndedError):
        await operator.call(api.RESTORE, again, machine="web1")
    view = await ended(operator, grant, returned=True)
    assert (view.state, view.ended_by) == ("revoked", "operator:admin"), "how it ended stays"
    assert await grant_entries(operator) == ["grant.revoke", "grant.give", "grant.give"]
    assert await policies(container) == {f"understudy-{other.id}"}


async def test_a_grant_whose_policy_somebody_removed_from_the_container_is_not_made_again(
    operator: RestClient, container: BlobStore
) -> None:
    grant = await given(operator)
    await container.policies.remove([f"understudy-{grant.id}"])
    with pytest.raises(GrantEndedError, match="was removed from the container"):
        await operator.call(api.GRANT_RENEW, Nothing(), machine="web1", id=grant.id)
    assert await policies(container) == set()


async def test_a_grant_that_is_used_again_or_renewed_is_the_same_and_lasts_from_then_on(
    operator: RestClient, container: BlobStore
) -> None:
    grant = await given(operator)
    assert 0 < grant.life_s <= FIRST_LIFE_S, "one that nobody takes is over soon"
    again = await operator.call(api.RESTORE, RestoreRequest(dry_run=True, grant=grant.id), machine="web1")
    assert (again.storage.id, again.storage.sas) == (grant.id, grant.sas)
    before = (await listed(operator))[0].expires
    renewed = await operator.call(api.GRANT_RENEW, Nothing(), machine="web1", id=grant.id)
    assert renewed.expires > before
    assert renewed.life_s > 7 * 3600
    assert await policies(container) == {f"understudy-{grant.id}"}


async def test_a_grant_is_never_longer_than_its_row_says(
    operator: RestClient, container: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is stopped in the midst of a renewal, by a full disk or for good, has not made a grant longer that the list calls expired."""
    await given(operator)
    before = await container.policies.list()

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(grants, "extend", full)
    [view] = await listed(operator)
    with pytest.raises(UnderstudyError, match="could not be used"):
        await operator.call(api.GRANT_RENEW, Nothing(), machine="web1", id=view.id)
    assert await container.policies.list() == before
    assert [view.expires for view in await listed(operator)] == [view.expires]


async def test_a_renewal_that_storage_did_not_take_is_made_by_the_next(
    operator: RestClient, container: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = await given(operator)
    before = (await container.policies.list())[0].until
    with monkeypatch.context() as patch:
        patch.setattr(Policies, "put", AsyncMock(side_effect=TransientError("Storage is away")))
        with pytest.raises(UnderstudyError):
            await operator.call(api.GRANT_RENEW, Nothing(), machine="web1", id=grant.id)
    await operator.call(api.GRANT_RENEW, Nothing(), machine="web1", id=grant.id)
    [policy], [view] = await container.policies.list(), await listed(operator)
    assert policy.until is not None
    assert before is not None
    assert policy.until > before
    assert view.expires[:19] == policy.until.isoformat()[:19]


async def test_the_sixth_is_refused_by_names_and_there_is_room_when_one_ends(
    operator: RestClient, container: BlobStore
) -> None:
    """Two are given at once, and neither loses the other's policy, nor those of others."""
    others = {"backup-1", "backup-2", "backup-3"}
    await put_by_others(container, *others)
    grants_ = await asyncio.gather(given(operator), given(operator))
    assert await policies(container) == others | {f"understudy-{grant.id}" for grant in grants_}
    with pytest.raises(GrantLimitError) as refused:
        await given(operator)
    assert all(name in refused.value.cause for name in (*others, *(grant.id for grant in grants_)))
    assert "grant revoke web1" in refused.value.action
    await ended(operator, grants_[0])
    last = await given(operator)
    assert await policies(container) == others | {f"understudy-{grant.id}" for grant in (grants_[1], last)}
    assert len(await listed(operator)) == 3, "the refused one was never given"


async def test_policies_of_ours_that_nobody_has_make_room_and_those_of_others_stay(
    operator: RestClient, container: BlobStore, server: ConfigServer
) -> None:
    kept = await given(operator)
    await put_by_others(container, "backup-tool", "understudy-reports", *LEFT[:2])
    grant = await given(operator)
    assert await policies(container) == {
        "backup-tool",
        "understudy-reports",
        *(f"understudy-{g.id}" for g in (kept, grant)),
    }
    entries = (await operator.call(api.AUDIT, Page())).entries
    assert {entry.detail["grant"] for entry in entries if entry.action == "grant.swept"} == {
        left.removeprefix("understudy-") for left in LEFT[:2]
    }


async def test_what_expired_makes_room(container: BlobStore, blob_config: BlobConfig, tmp_path: Path) -> None:
    config = config_for(
        tmp_path, blob=blob_config, vault_file=tmp_path / "vault.json", grant_hours=0.5 / 3600
    )
    async with running(config) as server, server.operator() as client:
        await client.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
        others = {f"backup-{number}" for number in range(4)}
        await put_by_others(container, *others)
        for _ in range(2):
            grant = await given(client)
            async with asyncio.timeout(20):
                while (await listed(client))[0].state != "expired":  # noqa: ASYNC110 - only the clock ends it
                    await asyncio.sleep(0.05)
        with pytest.raises(GrantEndedError, match="its time is over"):
            await client.call(api.GRANT_RENEW, Nothing(), machine="web1", id=grant.id)
    assert await policies(container) == others | {f"understudy-{grant.id}"}


async def test_a_grant_of_a_machine_whose_container_is_gone_can_still_be_ended(
    operator: RestClient, container: BlobStore
) -> None:
    grant = await given(operator)
    await container._core.container.delete_container()
    assert (await ended(operator, grant)).state == "revoked"


async def test_a_machine_whose_key_document_is_gone_is_no_request_of_the_user_s_that_is_wrong(
    operator: RestClient, container: BlobStore
) -> None:
    """So that the command goes on without the config server: each segment's header has the key, too."""
    grant = await operator.call(api.RESTORE, REQUEST, machine="web1")
    assert grant.key.key not in repr(grant)
    await container.delete("machine.json")
    with pytest.raises(IntegrityError, match="there is no machine") as refused:
        await given(operator)
    assert not is_of_the_user(refused.value)


async def test_grants_of_what_is_not_there_are_not_found(operator: RestClient) -> None:
    with pytest.raises(MachineNotFoundError):
        await operator.call(api.GRANTS, Limit(), machine="web9")
    with pytest.raises(NotFoundError):
        await operator.call(api.GRANT_END, GrantEnd(), machine="web1", id="0123")
    grant = await given(operator)
    with pytest.raises(NotFoundError):
        await operator.call(api.GRANT_END, GrantEnd(), machine="web2", id=grant.id)


async def audited(operator: RestClient, action: str) -> list[str]:
    entries = (await operator.call(api.AUDIT, Page())).entries
    return sorted(entry.detail["grant"] for entry in entries if entry.action == action)


async def test_after_a_restored_database_what_is_on_no_record_ends_by_itself(
    container: BlobStore, blob_config: BlobConfig, tmp_path: Path
) -> None:
    """A grant that was given since the backup, and one that was made longer since; a policy of somebody else stays."""
    config = config_for(tmp_path, blob=blob_config, vault_file=tmp_path / "vault.json")
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web1")
        known = await given(operator)
    shutil.copytree(config.data_dir, tmp_path / "backup")
    short = (await container.policies.list())[0].until
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.GRANT_RENEW, Nothing(), machine="web1", id=known.id)
        lost = await given(operator)
    await put_by_others(container, "understudy-reports")
    shutil.rmtree(config.data_dir)
    (tmp_path / "backup").rename(config.data_dir)
    async with running(config) as server, server.operator() as operator, reader(lost) as store:

        async def over() -> bool:
            until = {policy.id: policy.until for policy in await container.policies.list()}
            names = {f"understudy-{known.id}", "understudy-reports"}
            return until.keys() == names and until[f"understudy-{known.id}"] == short

        await until(over)
        with pytest.raises(GrantEndedError):
            await store.read("a")
        assert await audited(operator, "grant.swept") == [lost.id]
        assert await audited(operator, "grant.shortened") == [known.id]


async def test_a_policy_of_somebody_else_in_whatever_form_hinders_no_grant(
    operator: RestClient, container: BlobStore
) -> None:
    written = SignedIdentifier(
        id="report-tool", access_policy=Written(permission="r", start="2020-01-01", expiry="2030-01-01")
    )
    await container._core.container._client.container.set_access_policy(container_acl=[written])
    grant = await given(operator)
    await operator.call(api.GRANT_RENEW, Nothing(), machine="web1", id=grant.id)
    await ended(operator, grant)
    assert await policies(container) == {"report-tool"}


async def test_what_hinders_the_look_at_one_machine_s_grants_hinders_no_other_and_is_noted_once(
    machine_storage: MachineStorage, blob_config: BlobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [await machine_storage.find_or_create(name) for name in ("web1", "web2")]
    for store in stores:
        await store.policies.put(LEFT[0], dt.datetime(2030, 1, 1, tzinfo=dt.UTC))
    first, second = sorted(stores, key=lambda store: store.container)
    real = Policies.remove

    async def remove(self: Policies, ids: Collection[str]) -> None:
        if self._core.container.container_name == first.container:
            raise ValueError("not thought of")
        await real(self, ids)

    storage, db = Storage(blob_config, None), await Database.open(tmp_path / "state.db")
    granting = Granting(Control(db, None, storage, dt.timedelta(days=90)), 12)  # type: ignore[arg-type]

    async def noted() -> int:
        entries = await db.run(lambda d: audit.newest(d, 100))
        return sum(entry.action == "grant.swept" for entry in entries)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(Policies, "remove", remove)
            for _ in range(2):
                with pytest.raises(ValueError, match="not thought of"):
                    await granting.sweep()
        assert (await policies(first), await policies(second)) == ({LEFT[0]}, set())
        assert await noted() == 2
        await granting.sweep()
        assert (await policies(first), await noted()) == (set(), 2)
    finally:
        await storage.close()
        await db.close()


async def test_the_same_request_gets_the_same_grant_however_often_it_is_made(
    operator: RestClient, container: BlobStore, machine_storage: MachineStorage, tmp_path: Path
) -> None:
    asked = RestoreRequest(dry_run=True, request=ID)
    answers = await asyncio.gather(*(operator.call(api.RESTORE, asked, machine="web1") for _ in range(7)))
    assert len({answer.storage.sas for answer in answers}) == 1
    assert len(await policies(container)) == 1
    await operator.call(api.PROTECT, Protection(disks=["/dev/loop0"], offline=True), machine="web2")
    other = await machine_storage.find_or_create("web2")
    await machine_key(other, FileVault(tmp_path / "vault.json"), "web2", create=True)
    with pytest.raises(RequestError, match="id of the request"):
        await operator.call(api.RESTORE, asked, machine="web2")


async def test_a_request_that_another_server_answers_meanwhile_is_told_to_ask_again(
    operator: RestClient, container: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, others = grants.living, list[Grant]()

    def meanwhile(db: Connection, *args: Any) -> list[Grant]:
        found = real(db, *args)
        if not others:
            now_ns = time.time_ns()
            end_ns = now_ns + HOUR_NS
            others.append(
                Grant(
                    id="0" * 16, machine="web1", container=container.container, who="operator:admin", host="",
                    given_ns=now_ns, expires_ns=end_ns, request=ID,
                )
            )  # fmt: skip
            grants.add(db, others[0])
        return found

    monkeypatch.setattr(grants, "living", meanwhile)
    with pytest.raises(RequestError, match="answered already"):
        await operator.call(api.RESTORE, RestoreRequest(dry_run=True, request=ID), machine="web1")
    assert [view.id for view in await listed(operator)] == ["0" * 16]
    assert await policies(container) == set()


async def test_who_gave_up_waiting_for_slow_storage_takes_no_place(
    operator: RestClient, container: BlobStore, server: ConfigServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, began, go = Policies.put, asyncio.Event(), asyncio.Event()
    puts: list[str] = []

    async def slow(self: Policies, policy: str, *args: Any, **options: Any) -> None:
        puts.append(policy)
        began.set()
        await go.wait()
        await real(self, policy, *args, **options)

    monkeypatch.setattr(Policies, "put", slow)
    waiting = []
    for _ in range(7):
        async with server.operator() as client:
            waiting.append(asyncio.create_task(given(client)))
            await began.wait()
            waiting[-1].cancel()
            await asyncio.gather(waiting[-1], return_exceptions=True)
    go.set()
    grant = await given(operator)
    assert len(puts) == 2, "of those who had gone, nobody was given one but the first, whose turn it was"
    assert await policies(container) == {f"understudy-{grant.id}"}
    assert len(await audited(operator, "grant.untaken")) == 1
    assert [view.id for view in await listed(operator)] == [grant.id]


@pytest.mark.parametrize("hours", some([-10, 10], short=[10]))
async def test_a_config_server_whose_clock_is_off_gives_grants_that_count_and_ends_none_of_them(
    operator: RestClient, container: BlobStore, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """They end by storage's clock."""
    monkeypatch.setattr(Control, "now_ns", lambda _self: time.time_ns() + hours * HOUR_NS)
    grant = await given(operator)
    assert 0 < grant.life_s <= FIRST_LIFE_S
    async with reader(grant) as store:
        assert await store.read("a") == b"content"
        monkeypatch.undo()
        assert [view.state for view in await listed(operator)] != ["revoked"]
        other = await given(operator)
        assert await store.read("a") == b"content"
    assert {view.id: view.state for view in await listed(operator)} == {grant.id: "given", other.id: "given"}


async def test_a_restore_gets_the_keys_of_before_the_machine_s_document_was_made_anew(
    operator: RestClient, container: BlobStore, server: ConfigServer, tmp_path: Path
) -> None:
    """And one that the config server does not have is named."""
    vault = FileVault(tmp_path / "vault.json")
    old = await machine_key(container, vault, "web1")
    await container.delete("machine.json")
    new = await machine_key(container, vault, "web1", create=True)
    lost = await FileVault.create(tmp_path / "lost.json").new_key("web1")
    another = await vault.new_key("web2")
    target = Target(server.url, server.operator_token, server.config.data_dir / "ca.pem", None)
    async with access.opened(target, "web1", REQUEST) as opened:
        for key in (new, old):
            assert await opened.vault.unwrap(WrappedKey(key.key_id, key.wrapped), "web1") == key.key
        for key, why in ((lost, f"wrapped by vault key {lost.key_id}"), (another, "does not open it")):
            with pytest.raises(WrongKeyError, match=why):
                await opened.vault.unwrap(WrappedKey(key.key_id, key.wrapped), "web1")
    entries = (await operator.call(api.AUDIT, Page())).entries
    assert [entry.who for entry in entries if entry.action == "key.grant"] == ["operator:admin"]
