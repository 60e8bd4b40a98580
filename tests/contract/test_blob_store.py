"""What the project relies on in blob storage, against a real blob service."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import secrets
import uuid
from pathlib import Path

import pytest

from shared.blob import BlobConfig, BlobStore, Retry
from shared.errors import (
    BlobExistsError,
    BlobNotFoundError,
    ContainerMissingError,
    LeaseHeldError,
    LeaseLostError,
    PreconditionError,
    StorageCertificateError,
    StorageError,
    StorageKeyError,
    TransientError,
    UsageError,
)
from tests.azurite import Azurite


async def test_a_created_blob_reads_back_whole_and_in_ranges(store: BlobStore) -> None:
    data = secrets.token_bytes(3_000_000)
    await store.create("a/b.seg", data, {"digest": "00ff"})
    assert await store.read("a/b.seg") == data
    assert await store.read("a/b.seg", 1000, 2000) == data[1000:3000]
    assert await store.read("a/b.seg", 2_999_990, 2000) == data[-10:]
    assert await store.read("a/b.seg", 3_000_000, 10) == b""
    assert await store.read("a/b.seg", 4_000_000) == b""
    info = await store.properties("a/b.seg")
    assert (info.size_b, info.metadata, info.leased) == (3_000_000, {"digest": "00ff"}, False)


async def test_an_empty_blob_is_a_blob(store: BlobStore) -> None:
    await store.create("empty", b"")
    assert await store.read("empty") == b""
    assert (await store.properties("empty")).size_b == 0


async def test_creating_over_a_blob_is_refused(store: BlobStore) -> None:
    await store.create("x", b"1")
    with pytest.raises(BlobExistsError):
        await store.create("x", b"2")
    assert await store.read("x") == b"1"


async def test_replace_is_conditional(store: BlobStore) -> None:
    first = await store.create("x", b"1")
    second = await store.replace("x", b"2", if_match=first)
    assert second != first
    with pytest.raises(PreconditionError):
        await store.replace("x", b"3", if_match=first)
    await store.replace("x", b"4")
    assert await store.read("x") == b"4"


async def test_what_is_not_there_is_not_found(store: BlobStore) -> None:
    with pytest.raises(BlobNotFoundError):
        await store.read("nothing")
    with pytest.raises(BlobNotFoundError):
        await store.properties("nothing")
    assert not await store.delete("nothing")


async def test_list_gives_the_prefix_in_order_with_metadata_and_folders(store: BlobStore) -> None:
    for name in ["logs/m/2/x", "logs/m/1/y", "logs/m/1/x", "logs/n/1/x", "logs/m/z"]:
        await store.create(name, b"abc", {"n": name.replace("/", "-")})
    found = [b async for b in store.list("logs/m/")]
    assert [b.name for b in found] == ["logs/m/1/x", "logs/m/1/y", "logs/m/2/x", "logs/m/z"]
    assert found[0].metadata == {"n": "logs-m-1-x"}
    assert await store.list_folders("logs/m/") == ["1", "2"]
    assert [b async for b in store.list("other/")] == []


async def test_append_happens_only_at_the_expected_size(store: BlobStore) -> None:
    await store.append_create("index")
    with pytest.raises(BlobExistsError):
        await store.append_create("index")
    assert await store.append("index", b"one\n", None, 0) == 4
    assert await store.append("index", b"two\n", None, 4) == 8
    with pytest.raises(PreconditionError):
        await store.append("index", b"other", None, 4)
    with pytest.raises(PreconditionError):
        await store.append("index", b"behind", None, 800)
    assert await store.read("index") == b"one\ntwo\n"


async def test_an_append_whose_answer_was_lost_can_be_repeated(store: BlobStore) -> None:
    await store.append_create("index")
    await store.append("index", b"one\n", None, 0)
    assert await store.append("index", b"one\n", None, 0) == 4
    await store.append("index", b"two\n", None, 4)
    assert await store.append("index", b"one\n", None, 0) == 4
    assert await store.read("index") == b"one\ntwo\n"


async def test_a_lease_keeps_others_out_until_it_is_broken(store: BlobStore) -> None:
    await store.append_create("index")
    lease = await store.leases.acquire("index", -1)
    with pytest.raises(LeaseHeldError):
        await store.leases.acquire("index", 15)
    with pytest.raises(LeaseHeldError):
        await store.append("index", b"x", None, 0)
    assert await store.append("index", b"mine", lease.id, 0) == 4
    await lease.renew()
    await store.leases.break_now("index")
    with pytest.raises(LeaseLostError):
        await store.append("index", b"more", lease.id, 4)
    other = await store.leases.acquire("index", -1)
    with pytest.raises(LeaseLostError):
        await store.append("index", b"more", lease.id, 4)
    with pytest.raises(LeaseLostError):
        await lease.renew()
    assert await store.append("index", b"more", other.id, 4) == 8
    await other.release()
    await store.leases.break_now("index")
    assert (await store.properties("index")).size_b == 8


async def test_page_blobs_write_clear_and_list_ranges(store: BlobStore) -> None:
    await store.pages.create("disk", 1 << 20, {"cursor": "0"})
    with pytest.raises(BlobExistsError):
        await store.pages.create("disk", 1 << 20)
    page = secrets.token_bytes(4096)
    await store.pages.write("disk", 8192, page)
    await store.pages.write("disk", 65536, page)
    await store.pages.clear("disk", 65536, 2048)
    assert await store.pages.ranges("disk") == [(8192, 4096), (67584, 2048)]
    assert await store.read("disk", 8192, 4096) == page
    assert await store.read("disk", 0, 512) == bytes(512)
    snapshot = await store.snapshot("disk")
    await store.pages.write("disk", 8192, bytes(4096))
    assert await store.pages.read("disk", 4096, 12288) == bytes(12288)
    assert await store.pages.read("disk", 4096, 12288, snapshot) == bytes(4096) + page + bytes(4096)
    with pytest.raises(BlobNotFoundError):
        await store.pages.read("disk", 0, 512, "2020-01-01T00:00:00.0000000Z")


async def test_a_late_page_write_of_an_earlier_try_cannot_land(store: BlobStore) -> None:
    await store.pages.create("disk", 1 << 20)
    lease = await store.leases.acquire("disk", 60)
    await store.pages.set_sequence_number("disk", 7, lease.id)
    await store.pages.write("disk", 0, bytes(512), lease.id, sequence_number=7)
    await store.pages.set_sequence_number("disk", 8, lease.id)
    with pytest.raises(PreconditionError):
        await store.pages.write("disk", 0, b"\xff" * 512, lease.id, sequence_number=7)
    with pytest.raises(PreconditionError):
        await store.pages.clear("disk", 0, 512, lease.id, sequence_number=7)
    with pytest.raises(LeaseHeldError):
        await store.pages.write("disk", 0, b"\xff" * 512)
    assert (await store.properties("disk")).sequence_number == 8
    await store.pages.set_sequence_number("disk", 7, lease.id)  # a delayed one never lowers it
    assert (await store.properties("disk")).sequence_number == 8


async def test_a_snapshot_keeps_content_and_metadata(store: BlobStore) -> None:
    await store.pages.create("disk", 4096)
    await store.pages.write("disk", 0, b"1" * 512)
    etag = await store.set_metadata("disk", {"position": "1-5"})
    snapshot = await store.snapshot("disk", if_match=etag)
    await store.pages.write("disk", 0, b"2" * 512)
    with pytest.raises(PreconditionError):
        await store.snapshot("disk", if_match=etag)
    assert await store.read("disk", 0, 512, snapshot=snapshot) == b"1" * 512
    assert await store.pages.ranges("disk", snapshot) == [(0, 512)]
    assert (await store.properties("disk", snapshot)).metadata == {"position": "1-5"}
    assert [b.snapshot async for b in store.list("disk", snapshots=True)] == [snapshot, None]
    assert await store.delete("disk", snapshot)
    assert await store.delete("disk")
    assert [b async for b in store.list("")] == []


async def test_a_wrong_key_is_refused_and_the_key_is_not_in_the_message(
    blob_config: BlobConfig, tmp_path: Path
) -> None:
    wrong = base64.b64encode(secrets.token_bytes(32)).decode()
    key_file = tmp_path / "key"
    key_file.write_text(wrong)
    config = BlobConfig(
        url=blob_config.url, container="test", account_key_file=key_file, ca_file=blob_config.ca_file
    )
    async with BlobStore.connect(config) as store:
        with pytest.raises(StorageKeyError):
            await store.read("x")
        with pytest.raises(StorageKeyError) as caught:
            await store.ensure_container()
    assert wrong not in str(caught.value)
    assert "HTTP 403" in caught.value.cause


async def test_an_unknown_certificate_is_refused_by_name(blob_config: BlobConfig) -> None:
    config = BlobConfig(
        url=blob_config.url, container="test", account_key_file=blob_config.account_key_file, ca_file=None
    )
    async with BlobStore.connect(config) as store:
        with pytest.raises(StorageCertificateError, match=r"certificate of .* is not trusted"):
            await store.read("x")


async def test_a_missing_container_is_not_a_missing_blob(blob_config: BlobConfig) -> None:
    async with BlobStore.connect(blob_config) as store:
        with pytest.raises(ContainerMissingError, match="container does not exist"):
            await store.read("x")


@pytest.mark.parametrize("content", ["", "not base64!", None])
async def test_a_bad_key_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "account.key"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=r"account\.key"):
        BlobStore.connect(BlobConfig(url="https://127.0.0.1:1/acct", account_key_file=path))


async def test_storage_that_is_down_is_reported_until_it_is_back(tmp_path: Path) -> None:
    heard: list[StorageError | None] = []
    down = asyncio.Event()

    def report(error: StorageError | None) -> None:
        heard.append(error)
        down.set()

    with Azurite(tmp_path, persistent=True) as server:
        store = BlobStore.connect(server.config("test"))
        await store.ensure_container()
        await store.create("x", b"1")
        server.stop()
        with pytest.raises(TransientError, match="does not answer"):
            await store.with_retry(Retry(deadline_s=0.0)).read("x")
        reading = asyncio.create_task(store.patient(report).read("x"))
        await down.wait()
        server.start()
        assert await reading == b"1"
        await store.close()
    assert heard[-1] is None
    assert all(isinstance(error, TransientError) for error in heard[:-1])


async def test_trouble_is_over_when_a_repeated_request_is_refused_for_good(store: BlobStore) -> None:
    heard: list[StorageError | None] = []

    async def create_whose_first_answer_is_lost() -> None:
        await store._core.blob("x").upload_blob(b"1", overwrite=False)
        raise ConnectionResetError("the answer was lost")

    with pytest.raises(BlobExistsError):
        await store.patient(heard.append)._core.call("write x", create_whose_first_answer_is_lost)
    assert [type(error) for error in heard] == [TransientError, type(None)]


async def test_trouble_is_over_when_nobody_waits_for_the_answer_any_more(store: BlobStore) -> None:
    heard: list[StorageError | None] = []
    troubled = asyncio.Event()

    def report(error: StorageError | None) -> None:
        heard.append(error)
        troubled.set()

    async def unreachable() -> None:
        raise ConnectionRefusedError("nobody listens")

    waiting = asyncio.create_task(store.patient(report)._core.call("read x", unreachable))
    await troubled.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert [type(error) for error in heard] == [TransientError, type(None)]


def test_account_name_comes_from_either_form_of_url() -> None:
    assert BlobConfig(url="https://acct.blob.core.windows.net").account == "acct"
    assert BlobConfig(url="https://127.0.0.1:10000/devstore/").account == "devstore"


@pytest.mark.parametrize(
    "url", ["foo", "ftp://x", "https://", "https://[::1/acct", "https://host:port/acct", "http://host/acct"]
)
def test_a_url_that_cannot_work_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(UsageError, match="URL"):
        BlobStore.connect(BlobConfig(url=url))


async def test_a_request_needs_no_clock_that_goes_on(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's time-based ids wait until the wall clock moves, and the whole process with them."""

    def stands() -> uuid.UUID:
        raise AssertionError("an id was made of the time")

    monkeypatch.setattr(uuid, "uuid1", stands)
    await store.create("x", b"1")
    assert await store.read("x") == b"1"
    assert [found.name async for found in store.list("")] == ["x"]


async def test_a_delete_of_one_version_leaves_another(store: BlobStore) -> None:
    old = await store.create("x", b"1")
    new = await store.replace("x", b"2", old)
    with pytest.raises(PreconditionError):
        await store.delete("x", if_match=old)
    assert await store.read("x") == b"2"
    assert await store.delete("x", if_match=new)
    assert [found.name async for found in store.list("")] == []


async def test_what_was_sent_before_a_container_was_changed_does_nothing_whenever_it_arrives(
    store: BlobStore,
) -> None:
    seen = await store.container_info()
    await store.change_container({"a": "1"})
    await store.change_container({"b": "2"})  # (in one second, if it can)
    now = await store.container_info()
    assert now.metadata == {**seen.metadata, "a": "1", "b": "2"}
    for earlier in (seen.changed, now.changed - dt.timedelta(seconds=1)):
        with pytest.raises(PreconditionError):
            await store.delete_container(earlier)
    await store.delete_container(now.changed)
    with pytest.raises((ContainerMissingError, TransientError)):
        await store.with_retry(Retry(deadline_s=0.0)).change_container({})
