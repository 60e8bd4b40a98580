"""The file in which a daemon keeps the keys that it was given."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from shared.errors import KeyCacheError
from shared.key_cache import CachedKey, KeyCache
from shared.tls import TlsFiles
from tests.pki import TestCa

KEYS = [
    CachedKey(machine="web1", key_id="v1", wrapped=b"\0\xff wrapped", key=b"K" * 32),
    CachedKey(machine="web2", key_id="v1", wrapped=b"other", key=b"L" * 32),
]


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return TestCa(tmp_path).issue("process-server:ps1")


@pytest.fixture
def cache(tmp_path: Path, files: TlsFiles) -> KeyCache:
    return KeyCache(tmp_path / "state" / "keys.sealed", files)


def test_what_was_stored_is_loaded_by_whoever_has_the_private_key(cache: KeyCache, files: TlsFiles) -> None:
    assert cache.load() == []
    cache.store(KEYS)
    assert KeyCache(cache.path, files).load() == KEYS
    cache.store(KEYS[:1])
    assert cache.load() == KEYS[:1]


def test_it_is_private_and_shows_nothing(cache: KeyCache) -> None:
    cache.store(KEYS)
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o600
    data = cache.path.read_bytes()
    assert not any(secret in data for secret in (b"KKKK", b"web1", b"S0tLS0tLS0tL"))  # the last: base64
    assert "KKK" not in repr(KEYS)


def test_equal_keys_are_sealed_differently_each_time(cache: KeyCache) -> None:
    cache.store(KEYS)
    before = cache.path.read_bytes()
    cache.store(KEYS)
    after = cache.path.read_bytes()
    assert before[8:36] != after[8:36]
    assert before[36:] != after[36:]


def test_another_private_key_does_not_open_it(cache: KeyCache, files: TlsFiles, tmp_path: Path) -> None:
    cache.store(KEYS)
    other = TestCa(tmp_path, "other CA").issue("process-server:ps1")
    with pytest.raises(KeyCacheError, match="cannot be used") as caught:
        KeyCache(cache.path, other).load()
    assert "another private key" in caught.value.cause
    files.key.write_bytes(other.key.read_bytes())  # enrolled anew: what is stored from now on opens with it
    cache.store(KEYS)
    assert KeyCache(cache.path, other).load() == KEYS


def test_no_altered_bit_and_no_missing_byte_passes(cache: KeyCache) -> None:
    cache.store(KEYS)
    good = cache.path.read_bytes()
    for at in range(len(good)):
        cache.path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(KeyCacheError):
            cache.load()
    for length in range(0, len(good), 7):
        cache.path.write_bytes(good[:length])
        with pytest.raises(KeyCacheError):
            cache.load()


def test_what_the_system_refuses_is_named(cache: KeyCache, files: TlsFiles) -> None:
    cache.path.mkdir(parents=True)
    with pytest.raises(KeyCacheError, match="cannot be used"):
        cache.load()
    with pytest.raises(KeyCacheError, match="cannot be written"):
        cache.store(KEYS)
    files.key.unlink()
    with pytest.raises(KeyCacheError, match="cannot be written") as caught:
        cache.store(KEYS)
    assert str(files.key) in caught.value.cause
