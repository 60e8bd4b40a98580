"""Every call of the blob store against storage that fails: nothing wrong is returned, nothing waits for ever, and
the error names what somebody can do."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import gc
import math
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from email.utils import format_datetime
from typing import Any, Final

import msgspec
import pytest
from structlog.testing import capture_logs

from shared.blob import BlobStore, Retry
from shared.blob import store as store_module
from shared.blob.lanes import BULK
from shared.errors import (
    BlobExistsError,
    BlobNotFoundError,
    BlobTooShortError,
    ContainerMissingError,
    LeaseLostError,
    NotStorageError,
    PreconditionError,
    PublicAccessRefusedError,
    StorageClockError,
    StorageError,
    StorageKeyError,
    StorageRefusedError,
    StorageRequestError,
    StorageRightsError,
    StorageRoleError,
    ThrottledError,
    TransientError,
)
from tests.azurite import Azurite
from tests.storage_faults import Answer, Cut, Fault, FaultProxy, Short, Stall, throttled

QUICK: Final = Retry(deadline_s=20, attempt_s=0.7)
ONCE: Final = Retry(deadline_s=0, attempt_s=0.7)
GUARD_S: Final = 30.0
DATA: Final = bytes(range(256)) * 16
LEASE: Final = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(scope="module")
def proxy(azurite: Azurite) -> Iterator[FaultProxy]:
    with FaultProxy(azurite) as proxy:
        yield proxy


@pytest.fixture
def faulty(proxy: FaultProxy) -> FaultProxy:
    proxy.forget()
    return proxy


@pytest.fixture
async def direct(store: BlobStore) -> BlobStore:
    """The container without faults, filled with what the calls work on."""

    async def append() -> None:
        await store.append_create("d/append")
        await store.append("d/append", b"one\n", None, 0)

    async def page() -> None:
        await store.pages.create("d/page", 16384)
        await store.pages.write("d/page", 4096, DATA)

    async def leased() -> None:
        await store.create("d/leased", b"")
        await store.leases.acquire("d/leased", 60, LEASE)

    blocks = store.create("d/block", DATA, {"a": "1"}), store.create("d/f/x", b"x")
    await asyncio.gather(*blocks, append(), page(), leased())
    return store


@pytest.fixture
async def via(faulty: FaultProxy, store: BlobStore) -> AsyncIterator[BlobStore]:
    """The same container through the faults."""
    async with BlobStore.connect(faulty.config(store._core.config.container)) as connected:
        yield connected.with_retry(QUICK)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the store. `result` is what it returns, `says` what it may raise where its effect may have
    happened before (an answer that was lost): callers know these as answers."""

    name: str
    run: Callable[[BlobStore], Awaitable[Any]]
    check: Callable[[BlobStore, Any], Awaitable[object]]
    says: type[StorageError] | None = None


async def nothing(_: BlobStore, result: Any) -> object:
    return result is None


async def lease_of(store: BlobStore, name: str, act: str) -> None:
    lease = await store.leases.acquire(name, 60, LEASE)
    await (lease.renew() if act == "renew" else lease.release())


def equals(expected: object) -> Callable[[BlobStore, Any], Awaitable[object]]:
    async def check(_: BlobStore, result: Any) -> object:
        return result == expected

    return check


def holds(name: str, data: bytes) -> Callable[[BlobStore, Any], Awaitable[object]]:
    async def check(direct: BlobStore, _: Any) -> object:
        return await direct.read(name) == data

    return check


async def names_of(store: BlobStore) -> list[str]:
    return [info.name async for info in store.list("d/")]


async def replace_this_version(store: BlobStore) -> str:
    return await store.replace("d/block", b"2", if_match=(await store.properties("d/block")).etag)


async def is_snapshotted(direct: BlobStore, snapshot: Any) -> object:
    return await direct.read("d/block", snapshot=snapshot) == DATA


async def is_free(direct: BlobStore, _: Any) -> object:
    return not (await direct.properties("d/leased")).leased


async def has_number(direct: BlobStore, _: Any) -> object:
    return (await direct.properties("d/page")).sequence_number == 7


async def has_size(direct: BlobStore, _: Any) -> object:
    return (await direct.properties("d/page")).size_b == 32768


async def is_gone(direct: BlobStore, _: Any) -> object:
    return "d/f/x" not in await names_of(direct)


async def has_metadata(direct: BlobStore, _: Any) -> object:
    return (await direct.properties("d/block")).metadata == {"b": "2"}


async def has_4096_bytes(_: BlobStore, info: Any) -> object:
    return info.size_b == 4096


async def is_leased(_: BlobStore, lease: Any) -> object:
    return lease.id == LEASE


CALLS: Final = [
    Call("ensure_container", lambda s: s.ensure_container(), nothing),
    Call("create", lambda s: s.create("new", DATA), holds("new", DATA), BlobExistsError),
    Call("replace", lambda s: s.replace("d/block", b"2"), holds("d/block", b"2")),
    Call("replace-if", replace_this_version, holds("d/block", b"2"), PreconditionError),
    Call("read", lambda s: s.read("d/block"), equals(DATA)),
    Call("read-range", lambda s: s.read("d/block", 100, 1000), equals(DATA[100:1100])),
    Call("read-end", lambda s: s.read("d/block", 4000, 1000), equals(DATA[4000:])),
    Call("read-behind", lambda s: s.read("d/block", 5000, 10), equals(b"")),
    Call("properties", lambda s: s.properties("d/block"), has_4096_bytes),
    Call("list", names_of, equals(["d/append", "d/block", "d/f/x", "d/leased", "d/page"])),
    Call("list_folders", lambda s: s.list_folders("d/"), equals(["f"])),
    Call("delete", lambda s: s.delete("d/f/x"), is_gone),
    Call("set_metadata", lambda s: s.set_metadata("d/block", {"b": "2"}), has_metadata),
    Call("snapshot", lambda s: s.snapshot("d/block"), is_snapshotted),
    Call("append_create", lambda s: s.append_create("new"), holds("new", b""), BlobExistsError),
    Call("append", lambda s: s.append("d/append", b"two\n", None, 4), holds("d/append", b"one\ntwo\n")),
    Call("acquire", lambda s: s.leases.acquire("d/block", 60, LEASE), is_leased),
    Call("renew", lambda s: lease_of(s, "d/leased", "renew"), nothing),
    Call("release", lambda s: lease_of(s, "d/leased", "release"), is_free, LeaseLostError),
    Call("break_now", lambda s: s.leases.break_now("d/leased"), is_free),
    Call("pages.create", lambda s: s.pages.create("new", 512), holds("new", bytes(512)), BlobExistsError),
    Call(
        "pages.write", lambda s: s.pages.write("d/page", 0, DATA), holds("d/page", DATA + DATA + bytes(8192))
    ),
    Call("pages.read", lambda s: s.pages.read("d/page", 3584, 1024), equals(bytes(512) + DATA[:512])),
    Call("pages.clear", lambda s: s.pages.clear("d/page", 4096, 4096), holds("d/page", bytes(16384))),
    Call("pages.resize", lambda s: s.pages.resize("d/page", 32768), has_size),
    Call("pages.number", lambda s: s.pages.set_sequence_number("d/page", 7), has_number),
    Call("pages.ranges", lambda s: s.pages.ranges("d/page"), equals([(4096, 4096)])),
]

PASSING: Final[dict[str, Fault]] = {
    "busy": throttled(""),
    "internal-but-done": Answer(500, "InternalError", applied=True),
    "gateway": Answer(502, foreign=True),
    "reset": Cut(),
    "reset-but-done": Cut(applied=True),
    "reset-in-body": Cut(after_b=20),
    "short": Short(3),
    "stall": Stall(),
    "stall-in-body": Stall(after_b=20),
}
_OLD: Final = {"Date": format_datetime(dt.datetime.now(dt.UTC) - dt.timedelta(hours=2), usegmt=True)}
LASTING: Final[dict[str, tuple[Fault, type[StorageError]]]] = {
    "busy": (throttled("30"), ThrottledError),
    "internal": (Answer(500, "InternalError"), TransientError),
    "reset": (Cut(), TransientError),
    "wrong-key": (Answer(403, "AuthenticationFailed"), StorageKeyError),
    "clock": (Answer(403, "AuthenticationFailed", _OLD), StorageClockError),
    "rights": (Answer(403, "AuthorizationFailure"), StorageRightsError),
    "role": (Answer(403, "AuthorizationPermissionMismatch"), StorageRoleError),
    "unknown-refusal": (Answer(403, "SomethingNew"), StorageRefusedError),
    "container-gone": (Answer(404, "ContainerNotFound"), ContainerMissingError),
    "public": (Answer(409, "PublicAccessNotPermitted"), PublicAccessRefusedError),
    "wrong-request": (Answer(400, "InvalidHeaderValue"), StorageRequestError),
    "unknown-conflict": (Answer(409, "SomethingNew"), StorageRequestError),
    "portal-page": (Answer(200, body=b"<html>Log in</html>", foreign=True), NotStorageError),
    "portal-redirect": (Answer(302, headers={"Location": "/login"}, foreign=True), NotStorageError),
    "portal-not-found": (Answer(404, body=b"no such page", foreign=True), NotStorageError),
    "gateway": (Answer(503, foreign=True), ThrottledError),
}
calls = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)


@calls
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
async def test_one_fault_does_not_change_what_a_call_does(
    fault: Fault, call: Call, direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    rule = faulty.add(fault)
    async with asyncio.timeout(GUARD_S):
        try:
            result = await call.run(via)
        except StorageError as exc:
            assert call.says is not None, f"{exc}"
            assert type(exc) is call.says, f"{exc}"
        else:
            assert await call.check(direct, result)
    assert rule.struck == 1


@calls
async def test_a_fault_that_lasts_has_a_name_and_a_way_out(
    call: Call, direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    once = via.with_retry(ONCE)
    for name, (fault, kind) in LASTING.items():
        faulty.clear()
        rule = faulty.add(fault, times=None)
        async with asyncio.timeout(GUARD_S):
            with pytest.raises(kind) as caught:
                await call.run(once)
        assert type(caught.value) is kind, name
        is_storages = not fault.foreign if isinstance(fault, Answer) else False
        assert caught.value.is_refusal is (
            is_storages and (name == "busy" or not issubclass(kind, TransientError))
        ), name
        assert caught.value.action, name
        assert rule.struck == 1, f"{name}: what cannot succeed is not repeated"


@calls
async def test_a_call_that_nobody_answers_ends(
    call: Call, direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    faulty.add(Stall(), times=None)
    async with asyncio.timeout(GUARD_S):
        with pytest.raises(TransientError, match="no answer within"):
            await call.run(via.with_retry(ONCE))


@pytest.mark.parametrize(
    "name", ["read", "read-range", "read-end", "pages.read", "list", "list_folders", "pages.ranges"]
)
async def test_an_answer_that_stays_short_is_never_returned(
    name: str, direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    faulty.add(Short(1), times=None)
    call = next(call for call in CALLS if call.name == name)
    with pytest.raises(TransientError, match="not whole"):
        await call.run(via.with_retry(ONCE))


_DOCUMENTS: Final[dict[str, Fault]] = {
    "empty": Short(1 << 30),
    "other-root": Answer(200, headers={"x-ms-blob-content-length": "16384"}, body=b"<html></html>"),
    "no-size": Answer(200, body=b"<PageList></PageList>"),
}


@pytest.mark.parametrize(
    ("name", "document"),
    [
        (name, document)
        for name in ("list", "list_folders", "pages.ranges")
        for document in _DOCUMENTS
        if document != "no-size" or name == "pages.ranges"
    ],
)
async def test_a_listing_in_another_shape_is_asked_for_again_and_never_taken_for_an_empty_one(
    name: str, document: str, direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    call = next(call for call in CALLS if call.name == name)
    faulty.add(_DOCUMENTS[document])
    assert await call.check(direct, await call.run(via))
    faulty.add(_DOCUMENTS[document], times=None)
    with pytest.raises(TransientError, match="not whole"):
        await call.run(via.with_retry(ONCE))


@pytest.mark.parametrize("name", ["read", "read-range", "pages.read"])
@pytest.mark.parametrize(("status", "code"), [(409, "BlobModifiedWhileReading"), (412, "ConditionNotMet")])
async def test_only_a_range_behind_its_end_makes_a_blob_read_as_nothing(
    name: str, status: int, code: str, direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    call = next(call for call in CALLS if call.name == name)
    faulty.add(Answer(status, code), times=None)
    with pytest.raises(StorageError) as caught:
        await call.run(via.with_retry(ONCE))
    assert not isinstance(caught.value, BlobTooShortError)
    faulty.clear()
    assert await direct.read("d/block", len(DATA)) == b""


def test_the_default_deadline_holds_more_than_one_attempt_that_stalls() -> None:
    assert Retry().deadline_s > 2 * Retry().attempt_s


@pytest.mark.parametrize("size_b", [16, 4 << 20], ids=["small", "large"])
async def test_a_store_that_tries_once_tries_once_whatever_the_size(
    direct: BlobStore, via: BlobStore, faulty: FaultProxy, size_b: int
) -> None:
    busy = faulty.add(Answer(503, "ServerBusy"), times=None)
    with pytest.raises(TransientError):
        await via.with_retry(Retry(deadline_s=0)).create("d/new", bytes(size_b))
    assert busy.struck == 1


async def test_storage_that_is_busy_for_longer_than_we_may_wait_says_how_long(
    direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    faulty.add(throttled("3600"), times=None)
    with pytest.raises(ThrottledError, match="asks for 60 s"):
        await via.read("d/block")


async def test_throttling_narrows_the_client_and_success_widens_it_again(
    direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    patient = via.with_retry(Retry())  # an attempt that is given up on a busy host has no answer
    width = via._core._connection.lane(1 << 20).width
    faulty.add(throttled("0"), method="PUT", comp="page", times=BULK)
    page = bytes(128 * 1024)
    await direct.pages.resize("d/page", len(page))
    await asyncio.gather(*(patient.pages.write("d/page", 0, page) for _ in range(BULK)))
    narrow = width.allowed
    assert narrow < BULK
    for _ in range(3 * narrow):
        await patient.pages.write("d/page", 0, page)
    assert narrow < width.allowed < BULK


async def test_slow_transfers_leave_room_for_small_requests(
    direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    patient = via.with_retry(Retry(deadline_s=math.inf))
    faulty.add(Stall(), blob="slow/*", times=None)
    async with asyncio.timeout(GUARD_S):
        slow = [asyncio.create_task(patient.create(f"slow/{i}", bytes(1 << 20))) for i in range(2 * BULK)]
        await asyncio.to_thread(faulty.wait_active, BULK)  # as many as ever get a turn
        assert await via.append("d/append", b"two\n", None, 4) == 8
        assert (await via.leases.acquire("d/block", 60, LEASE)).id == LEASE
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert faulty.most_active <= BULK + 1


async def test_each_page_of_a_listing_is_its_own_attempt(
    direct: BlobStore, via: BlobStore, faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_PER_PAGE", 1)
    for folder in "abc":
        await direct.create(f"many/{folder}/x", b"")
    for nth in (1, 2, 3):
        faulty.add(Cut(), comp="list", blob="many/*", nth=nth)
    # Each attempt takes one page: the deadline of the call is never that of the whole listing.
    assert [info.name async for info in via.list("many/")] == ["many/a/x", "many/b/x", "many/c/x"]
    assert faulty.seen["GET list"] == 3 + 3
    faulty.clear()
    assert await via.list_folders("many/") == ["a", "b", "c"]


async def test_page_ranges_go_on_where_the_answer_before_ended(
    direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    def page(start: int, marker: str) -> Answer:
        body = f"<PageRange><Start>{start}</Start><End>{start + 511}</End></PageRange>"
        document = f"<PageList>{body}<NextMarker>{marker}</NextMarker></PageList>"
        return Answer(200, headers={"x-ms-blob-content-length": "16384"}, body=document.encode())

    faulty.add(page(0, "m1"), comp="pagelist")
    faulty.add(Cut(), comp="pagelist")
    faulty.add(page(1024, ""), comp="pagelist")
    assert await via.pages.ranges("d/page") == [(0, 512), (1024, 512)]
    assert faulty.seen["GET pagelist"] == 3


@pytest.mark.parametrize("answer", [Answer(412, "LeaseIdMissing"), Answer(409, "BlobAlreadyExists")])
@pytest.mark.parametrize("name", ["create", "append_create", "pages.create"])
async def test_a_blob_that_exists_and_is_leased_exists(
    name: str, answer: Answer, direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    faulty.add(answer)
    call = next(call for call in CALLS if call.name == name)
    with pytest.raises(BlobExistsError):
        await call.run(via)


async def test_pages_that_the_blob_does_not_hold_are_not_read(direct: BlobStore) -> None:
    with pytest.raises(BlobTooShortError):
        await direct.pages.read("d/page", 16384 - 512, 1024)
    with pytest.raises(BlobTooShortError):
        await direct.pages.read("d/page", 16384, 512)


async def test_a_page_blob_in_a_container_that_is_gone_is_not_a_missing_blob(
    azurite: Azurite,
) -> None:
    async with BlobStore.connect(azurite.config("never-made")) as store:
        with pytest.raises(ContainerMissingError):
            await store.pages.read("d/page", 0, 512)


async def test_a_patient_store_reports_a_refusal_at_once_and_goes_on_when_it_is_mended(
    direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    heard: list[StorageError | None] = []
    refused = asyncio.Event()

    def report(error: StorageError | None) -> None:
        heard.append(error)
        refused.set()

    faulty.add(Answer(403, "AuthenticationFailed"), times=None)
    async with asyncio.timeout(GUARD_S):
        reading = asyncio.create_task(via.patient(report).read("d/block"))
        await refused.wait()
        assert isinstance(heard[0], StorageKeyError)
        faulty.clear()
        assert await reading == DATA
    assert heard[-1] is None


@pytest.mark.parametrize("answer", [Answer(400, "InvalidHeaderValue"), Answer(409, "BlockCountExceedsLimit")])
async def test_even_a_patient_store_does_not_repeat_a_wrong_request(
    answer: Answer, direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    rule = faulty.add(answer, times=None)
    async with asyncio.timeout(GUARD_S):
        with pytest.raises(StorageRequestError):
            await via.patient().append("d/append", b"two\n", None, 4)
    assert rule.struck == 1


async def test_a_blob_that_storage_says_is_gone_is_gone(
    direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    faulty.add(Answer(404, "BlobNotFound"))
    with pytest.raises(BlobNotFoundError):
        await via.read("d/block")


async def test_a_refusal_that_nobody_wants_to_hear_of_is_logged_once_and_its_end_too(
    direct: BlobStore, via: BlobStore, faulty: FaultProxy
) -> None:
    faulty.add(Answer(403, "AuthenticationFailed"), times=2)
    with capture_logs() as lines:
        assert await via.patient().read("d/block") == DATA
    assert [line.get("code") for line in lines] == ["US495", None]


LET_GO: Final[dict[str, Fault | None]] = {
    "nobody-listens": None,
    "busy": throttled("1"),
    "reset": Cut(),
    "reset-but-done": Cut(applied=True),
}


@pytest.mark.parametrize("fault", LET_GO.values(), ids=LET_GO)
async def test_what_was_to_be_written_is_let_go_of_when_the_attempt_has_failed(
    faulty: FaultProxy, store: BlobStore, fault: Fault | None
) -> None:
    config = faulty.config(store._core.config.container)
    if fault is None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            config = msgspec.structs.replace(
                config, url=f"https://127.0.0.1:{closed.getsockname()[1]}/account"
            )
    else:
        faulty.add(fault, times=None)
    data = bytes(1 << 16)
    writes: list[Callable[[BlobStore], Awaitable[object]]] = [
        lambda to: to.create("new", data),
        lambda to: to.append("d/append", data, None, 0),
        lambda to: to.pages.write("d/page", 0, data),
    ]
    async with BlobStore.connect(config) as connected:
        gc.disable()  # what only a collection lets go of may stay for minutes
        try:
            for write in writes:
                before = sys.getrefcount(data)
                with pytest.raises(TransientError):
                    await write(connected.with_retry(ONCE))
                async with asyncio.timeout(5):
                    while sys.getrefcount(data) > before:  # noqa: ASYNC110 - a connection that is cut closes a moment later
                        await asyncio.sleep(0.01)
        finally:
            gc.enable()
