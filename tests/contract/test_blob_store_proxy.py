"""The blob store beside proxies in the environment."""

from __future__ import annotations

import msgspec
import pytest

from shared.blob import BlobConfig, BlobStore, Retry
from shared.errors import NotStorageError, StorageError, TransientError
from shared.http import proxies
from tests.http_proxy import connect_through, proxy, refuse

ONCE = Retry(deadline_s=0)


@pytest.fixture
def far(blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch) -> BlobConfig:
    """The test's storage, taken for a server far away."""
    monkeypatch.setattr(proxies, "is_near", lambda _: False)
    return blob_config


async def test_storage_nearby_is_never_asked_for_through_a_proxy(
    blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    local = msgspec.structs.replace(blob_config, url=blob_config.url.replace("127.0.0.1", "localhost"))
    for config in (blob_config, local):
        async with BlobStore.connect(config) as store:
            await store.with_retry(ONCE).ensure_container()


async def test_storage_far_away_is_reached_through_the_proxy(
    far: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy(connect_through) as (url, asked):
        monkeypatch.setenv("HTTPS_PROXY", url)
        async with BlobStore.connect(far) as store:
            await store.ensure_container()
            await store.create("x", b"1")
            assert await store.read("x") == b"1"
    assert asked
    assert all(target in far.url for target in asked)


async def fails(config: BlobConfig, url: str, monkeypatch: pytest.MonkeyPatch) -> StorageError:
    monkeypatch.setenv("HTTPS_PROXY", url)
    async with BlobStore.connect(config) as store:
        with pytest.raises(StorageError) as caught:
            await store.with_retry(ONCE).ensure_container()
    assert url.rpartition("@")[2] in caught.value.cause
    assert "HTTPS_PROXY" in caught.value.cause
    assert "secret" not in str(caught.value)
    return caught.value


async def test_a_proxy_that_is_away_is_named(far: BlobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    error = await fails(far, "http://u:secret@127.0.0.1:1", monkeypatch)
    assert isinstance(error, TransientError)


async def test_a_proxy_that_refuses_is_named(far: BlobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxy(refuse) as (url, _):
        error = await fails(far, url, monkeypatch)
    assert type(error) is NotStorageError
    assert "407" in error.cause
    assert "NO_PROXY" in error.action
