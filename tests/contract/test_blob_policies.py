"""What a token under a stored access policy opens, and what ends it; on a real blob service."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from azure.core.exceptions import ResourceModifiedError, ServiceResponseError
from azure.storage.blob import AccessPolicy
from azure.storage.blob._generated.models import AccessPolicy as Written
from azure.storage.blob._generated.models import SignedIdentifier
from azure.storage.blob.aio import ContainerClient

from shared.blob import BlobConfig, BlobStore, Retry
from shared.blob.config import read_key
from shared.blob.policies import token
from shared.errors import GrantEndedError, GrantLimitError, PreconditionError, StorageRefusedError
from tests.azurite import Azurite
from tests.marks import some
from tests.storage_faults import Answer, FaultProxy

POLICY = "understudy-1"
HOUR = dt.timedelta(hours=1)
_DEADLINE_S = 30.0


def in_an_hour() -> dt.datetime:
    return dt.datetime.now(dt.UTC) + HOUR


async def put_by_others(store: BlobStore, **until: dt.datetime) -> None:
    """As another program does, which does not wait for the next second of storage's clock: these policies and no other."""
    policies: dict[str, AccessPolicy] = {name: AccessPolicy("rl", end) for name, end in until.items()}
    await store._core.container.set_container_access_policy(policies)


def granted(config: BlobConfig, container: str, policy: str = POLICY, url: str = "") -> BlobStore:
    """As somebody who has the token and nothing else."""
    assert config.account_key_file is not None
    assert config.ca_file is not None
    sas = token(config.account, read_key(config.account_key_file), container, policy)
    bare = BlobConfig(url=url or config.url)
    return BlobStore.connect(bare, sas=sas, ca_pem=config.ca_file.read_text()).in_container(container)


async def until_refused(store: BlobStore) -> GrantEndedError:
    async with asyncio.timeout(_DEADLINE_S):
        while True:
            try:
                await store.read("a")
            except GrantEndedError as exc:
                return exc
            await asyncio.sleep(0.1)


async def test_a_token_reads_and_lists_its_container(store: BlobStore, blob_config: BlobConfig) -> None:
    await store.create("a", b"content")
    await store.pages.create("disks/sda.vhd", 1024, {})
    snapshot = await store.snapshot("disks/sda.vhd")
    await store.policies.put(POLICY, in_an_hour())
    async with granted(blob_config, store.container) as reader:
        assert await reader.read("a") == b"content"
        assert [blob.name async for blob in reader.list("")] == ["a", "disks/sda.vhd"]
        assert await reader.list_folders("") == ["disks"]
        assert (await reader.properties("disks/sda.vhd", snapshot)).size_b == 1024
        assert await reader.pages.ranges("disks/sda.vhd", snapshot) == []


WRITES: dict[str, Callable[[BlobStore], Awaitable[object]]] = {
    "create": lambda s: s.create("b", b""),
    "replace": lambda s: s.replace("a", b"other"),
    "delete": lambda s: s.delete("a"),
    "metadata": lambda s: s.set_metadata("a", {"x": "y"}),
    "snapshot": lambda s: s.snapshot("a"),
    "append": lambda s: s.append_create("c"),
    "page blob": lambda s: s.pages.create("d", 512, {}),
    "lease": lambda s: s.leases.acquire("a"),
    "container": lambda s: s.ensure_container(),
    "policies": lambda s: s.policies.put("mine", in_an_hour()),
    "policies read": lambda s: s.policies.list(),
}


async def test_a_token_changes_nothing(store: BlobStore, blob_config: BlobConfig) -> None:
    await store.create("a", b"content")
    await put_by_others(store, **{POLICY: in_an_hour()})
    done: list[str] = []
    async with granted(blob_config, store.container) as reader:
        for what, write in WRITES.items():
            with contextlib.suppress(StorageRefusedError):
                await write(reader)
                done.append(what)
    assert done == []
    assert [(blob.name, blob.snapshot) async for blob in store.list("", snapshots=True)] == [("a", None)]
    assert await store.read("a") == b"content"


async def test_a_token_opens_no_other_container(store: BlobStore, blob_config: BlobConfig) -> None:
    other = store.in_container(f"{store.container}-other")
    await other.ensure_container()
    await other.create("a", b"another's")
    await other.policies.put(POLICY, in_an_hour())
    await store.policies.put(POLICY, in_an_hour())
    async with granted(blob_config, store.container) as reader:
        with pytest.raises(StorageRefusedError):
            await reader.in_container(other.container).read("a")
        with pytest.raises(StorageRefusedError):
            [container async for container in reader.list_containers("")]


async def test_a_token_ends_when_its_policy_does_and_at_once_when_that_goes(
    store: BlobStore, blob_config: BlobConfig
) -> None:
    await store.create("a", b"content")
    soon = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=3)
    await put_by_others(store, short=soon, long=in_an_hour())
    async with (
        granted(blob_config, store.container, "short") as short,
        granted(blob_config, store.container, "long") as long,
    ):
        assert await short.read("a") == await long.read("a") == b"content"
        ended = await until_refused(short)
        assert "Run the same command again" in ended.action
        await store.policies.put("short", in_an_hour())
        assert await short.read("a") == b"content", "longer is a matter of the policy, not of the token"
        await store.policies.remove(["short", "never was"])
        with pytest.raises(GrantEndedError):
            await short.read("a")
        assert await long.read("a") == b"content"


async def test_a_policy_is_put_beside_those_of_others_and_what_is_dropped_goes(store: BlobStore) -> None:
    await put_by_others(store, **{f"p{number}": in_an_hour() for number in range(5)})
    await store.policies.put("p5", in_an_hour(), drop=["p1"])
    found = await store.policies.list()
    assert sorted(policy.id for policy in found) == ["p0", "p2", "p3", "p4", "p5"]
    assert all(policy.until is not None for policy in found)


FOREIGN = {
    "date only": ("2020-01-01", "2030-01-01"),
    "minutes": ("2020-01-01T00:00Z", "2030-01-01T00:00Z"),
    "no zone": ("2020-01-01T00:00", "2030-01-01T00:00:00"),
    "fractions": (None, "2030-01-01T00:00:00.1234567Z"),
    "no end": (None, None),
}
"""Start and expiry, as an administrator may have written them. With ours there is room for four of them."""


async def identifiers(store: BlobStore) -> dict[str, tuple[str | None, str | None, str]]:
    found = await store._core.container.get_container_access_policy()
    policies = {one.id: one.access_policy for one in found["signed_identifiers"]}
    return {id_: (policy.start, policy.expiry, policy.permission) for id_, policy in policies.items()}


@pytest.mark.parametrize("left_out", some(["no end", "fractions"], short=["fractions"]))
async def test_policies_of_others_are_written_as_they_were_found(store: BlobStore, left_out: str) -> None:
    written = [
        SignedIdentifier(id=id_, access_policy=Written(permission="r", start=start, expiry=expiry))
        for id_, (start, expiry) in FOREIGN.items()
        if id_ != left_out
    ]
    await store._core.container._client.container.set_access_policy(container_acl=written)
    before = await identifiers(store)
    assert {id_: (start, expiry) for id_, (start, expiry, _) in before.items()} == {
        id_: form for id_, form in FOREIGN.items() if id_ != left_out
    }
    until = in_an_hour().replace(microsecond=0)
    await store.policies.put(POLICY, until)
    look = await store.policies.look()
    assert {id_: form for id_, form in (await identifiers(store)).items() if id_ != POLICY} == before
    assert {policy.id: policy.until for policy in look.policies}[POLICY] == until
    assert all(policy.until is None or policy.until > look.date for policy in look.policies)
    with pytest.raises(GrantLimitError, match="date only"):
        await store.policies.put("sixth", until)
    await store.policies.remove([POLICY])
    assert await identifiers(store) == before


async def test_a_new_grant_that_does_not_count_everywhere_yet_is_waited_for(
    store: BlobStore, blob_config: BlobConfig, azurite: Azurite
) -> None:
    """As Azure's may not for half a minute."""
    await store.create("a", b"content")
    await store.policies.put(POLICY, in_an_hour())
    with FaultProxy(azurite) as proxy:
        refusal = Answer(403, "AuthenticationFailed")
        async with granted(blob_config, store.container, url=proxy.url) as reader:
            proxy.add(refusal, times=1)
            with pytest.raises(GrantEndedError):
                await reader.read("a")
            proxy.add(refusal, times=1)
            settling = reader.with_retry(Retry(counts_at=time.monotonic() + 30))
            assert await settling.read("a") == b"content"


async def test_a_write_that_lands_late_brings_no_removed_policy_back(
    store: BlobStore, blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held up on its way, and sent again meanwhile, as by a proxy that is stuck for a while."""
    await store.create("a", b"content")
    await store.policies.put(POLICY, in_an_hour())
    real = ContainerClient.set_container_access_policy
    held: list[Callable[[], Awaitable[object]]] = []

    async def holding(self: ContainerClient, *args: Any, **options: Any) -> object:
        if held:
            return await real(self, *args, **options)
        held.append(lambda: real(self, *args, **options))
        raise ServiceResponseError("held up")

    monkeypatch.setattr(ContainerClient, "set_container_access_policy", holding)
    await store.policies.put("other", in_an_hour())
    await store.policies.remove([POLICY])
    with pytest.raises(ResourceModifiedError):
        await held[0]()
    assert [policy.id for policy in await store.policies.list()] == ["other"]
    async with granted(blob_config, store.container) as reader:
        with pytest.raises(GrantEndedError):
            await reader.read("a")


async def test_a_write_that_is_late_for_a_policy_that_is_gone_already_is_refused(store: BlobStore) -> None:
    """The put was given up, the policy is not seen, and is removed all the same: so it never comes."""
    read = await store.policies._read()
    await store.policies.remove([POLICY])
    with pytest.raises(PreconditionError):
        await store.policies._write({POLICY: AccessPolicy("rl", in_an_hour())}, read)


async def test_changes_at_once_by_several_who_know_nothing_of_each_other_lose_nothing(
    store: BlobStore,
) -> None:
    await put_by_others(store, old=in_an_hour())
    others = [store.in_container(store.container).policies for _ in range(2)]
    await asyncio.gather(
        *(policies.put(f"p{n}", in_an_hour()) for n, policies in enumerate(others)),
        store.policies.remove(["old"]),
    )
    assert {policy.id for policy in await store.policies.list()} == {"p0", "p1"}


async def test_a_look_says_what_time_it_is_and_not_when_the_container_was_changed(store: BlobStore) -> None:
    """In Azurite's answer about policies the two are the same."""
    await store.policies.put(POLICY, in_an_hour())
    async with asyncio.timeout(_DEADLINE_S):
        while not (read := await store.policies._read()).date > read.changed:  # noqa: ASYNC110 - storage tells nobody when its clock moves on
            await asyncio.sleep(0.1)
    assert (await store.policies.look()).date >= read.date
