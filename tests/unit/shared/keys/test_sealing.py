"""Opening what was compressed and sealed, in memory that a thread uses again and again."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.keys import sealing
from shared.keys.sealing import OVERHEAD_B, FileKey, SealError

SIZES = (0, 1, 4096, 1 << 20, 3, (1 << 20) + 1, 6 << 20, 100)
"""Growing and shrinking; one for which no memory is kept."""


def packed(key: FileKey, plain: bytes, associated: bytes) -> bytes:
    small = sealing.compress(plain)
    out = bytearray(len(small) + OVERHEAD_B)
    key.seal_into(small, associated, out, 0)
    return bytes(out)


def test_what_was_opened_stays_when_the_thread_opens_more() -> None:
    key, rng = FileKey(sealing.new_key()), random.Random(1)
    plains = [rng.randbytes(size) for size in SIZES]
    sealed = [packed(key, plain, b"here") for plain in plains]
    opened = [sealing.unpack(key, s, b"here", len(p)) for s, p in zip(sealed, plains, strict=True)]
    assert opened == plains


def test_threads_do_not_disturb_each_other() -> None:
    key, rng = FileKey(sealing.new_key()), random.Random(2)
    plains = [rng.randbytes(rng.randrange(1, 300_000)) for _ in range(200)]
    sealed = [packed(key, plain, b"here") for plain in plains]
    with ThreadPoolExecutor(8) as threads:
        opened = list(
            threads.map(lambda at: sealing.unpack(key, sealed[at], b"here", len(plains[at])), range(200))
        )
    assert opened == plains


def test_nothing_altered_short_or_of_another_place_is_opened_and_the_next_piece_is() -> None:
    key = FileKey(sealing.new_key())
    plain = bytes(range(256)) * 16
    sealed = packed(key, plain, b"here")
    altered = bytearray(sealed)
    altered[-20] ^= 1
    for bad, place in ((altered, b"here"), (sealed, b"there"), (sealed[:-1], b"here"), (b"", b"here")):
        with pytest.raises(SealError):
            sealing.unpack(key, bad, place, len(plain))
    for size_b in (len(plain) - 1, len(plain) + 1):
        with pytest.raises(SealError):
            sealing.unpack(key, sealed, b"here", size_b)
    assert sealing.unpack(key, sealed, b"here", len(plain)) == plain
