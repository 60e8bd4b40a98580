"""The files in which a daemon keeps the keys that it was given."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from shared.errors import KeyCacheError
from shared.keys import sealing
from shared.keys.key_cache import CachedKey, KeyCache
from shared.trust.tls import TlsFiles
from tests.pki import TestCa

WEB1 = CachedKey(machine="web1", key_id="v1", wrapped=b"\0\xff wrapped", key=b"K" * 32)
WEB2 = CachedKey(machine="web2", key_id="v1", wrapped=b"other", key=b"L" * 32)


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return TestCa(tmp_path).issue("process-server:ps1")


@pytest.fixture
def cache(tmp_path: Path, files: TlsFiles) -> KeyCache:
    return KeyCache(tmp_path / "state" / ".keys", files)


def where(cache: KeyCache, key: CachedKey = WEB1) -> Path:
    return cache.path(key.machine, key.key_id, key.wrapped)


def test_what_was_stored_is_loaded_by_whoever_has_the_private_key(cache: KeyCache, files: TlsFiles) -> None:
    assert cache.load() == ([], [])
    assert cache.find("web1", "v1", WEB1.wrapped) is None
    cache.store(WEB1)
    KeyCache(cache.folder, files).store(WEB2)  # another process of the daemon: nothing of this one's is lost
    keys, errors = cache.load()
    assert (sorted(keys, key=lambda key: key.machine), errors) == ([WEB1, WEB2], [])
    assert cache.find("web2", "v1", WEB2.wrapped) == WEB2


def test_what_was_removed_is_there_no_more_and_nothing_else_is_touched(cache: KeyCache) -> None:
    cache.store(WEB1)
    cache.store(WEB2)
    for _ in range(2):
        cache.remove("web1", "v1", WEB1.wrapped)
        assert cache.load() == ([WEB2], [])


def test_it_is_private_and_shows_nothing(cache: KeyCache) -> None:
    cache.store(WEB1)
    path = where(cache)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(secret in path.read_bytes() for secret in (b"KKKK", b"web1", b"S0tLS0tLS0tL"))  # base64
    assert "web1" not in path.name
    assert "KKK" not in repr(WEB1)


def test_equal_keys_are_sealed_differently_each_time(cache: KeyCache) -> None:
    cache.store(WEB1)
    before = where(cache).read_bytes()
    cache.store(WEB1)
    after = where(cache).read_bytes()
    assert before[8:36] != after[8:36]
    assert before[36:] != after[36:]


def test_what_another_private_key_sealed_stays_until_its_own_key_is_stored(
    cache: KeyCache, files: TlsFiles, tmp_path: Path
) -> None:
    cache.store(WEB1)
    cache.store(WEB2)
    earlier = files.key.read_bytes()
    other = TestCa(tmp_path, "other CA").issue("process-server:ps1")
    files.key.write_bytes(other.key.read_bytes())  # enrolled anew
    keys, errors = cache.load()
    assert keys == []
    assert len(errors) == 2
    assert "another private key" in errors[0].cause
    cache.store(WEB1)
    assert cache.load()[0] == [WEB1]
    files.key.write_bytes(earlier)  # and the earlier identity restored
    assert cache.load()[0] == [WEB2]


def test_no_altered_bit_and_no_missing_byte_passes(cache: KeyCache) -> None:
    cache.store(WEB1)
    path = where(cache)
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert cache.load()[0] == []
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        with pytest.raises(KeyCacheError):
            cache.find("web1", "v1", WEB1.wrapped)


def test_a_file_under_another_s_name_gives_no_key(cache: KeyCache) -> None:
    cache.store(WEB1)
    where(cache, WEB2).write_bytes(where(cache).read_bytes())
    with pytest.raises(KeyCacheError, match="cannot be used") as caught:
        cache.find("web2", "v1", WEB2.wrapped)
    assert "of machine web1" in caught.value.cause


def test_what_cannot_be_read_hides_nothing_else_and_what_the_system_refuses_is_named(
    cache: KeyCache, files: TlsFiles
) -> None:
    where(cache).mkdir(parents=True)
    cache.store(WEB2)
    keys, (error,) = cache.load()
    assert keys == [WEB2]
    assert str(where(cache)) in error.what
    with pytest.raises(KeyCacheError, match="cannot be written"):
        cache.store(WEB1)
    files.key.unlink()
    with pytest.raises(KeyCacheError, match="cannot be written") as caught:
        cache.store(WEB2)
    assert str(files.key) in caught.value.cause


def test_keys_of_an_earlier_version_are_taken_over_once(cache: KeyCache, tmp_path: Path) -> None:
    former = tmp_path / "state" / "keys.sealed"
    former.parent.mkdir()
    head = b"UNDKEYS1" + sealing.new_salt()
    plain = msgspec.json.encode({"v": 1, "keys": [WEB1, WEB2]})
    data = bytearray(head) + bytearray(len(plain) + sealing.OVERHEAD_B)
    cache._file_key(head[8:], "").seal_into(plain, head, data, len(head))
    former.write_bytes(data[:-1])
    assert [error.code for error in cache.load()[1]] == [KeyCacheError.code]
    assert former.exists(), "what cannot be read is told, and stays"
    former.write_bytes(data)
    for _ in range(2):
        keys, errors = cache.load()
        assert (sorted(keys, key=lambda key: key.machine), errors) == ([WEB1, WEB2], [])
        assert not former.exists()
