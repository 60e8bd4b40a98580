"""How hard a spool compresses, by what waits for upload: with a real log in real storage that takes nothing for a while."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from process_server.spool import spool as spools
from process_server.spool.spool import Spool
from shared.batch import Batch, Buffer
from shared.blob import BlobStore
from shared.keys import sealing
from shared.keys.sealing import FileKey
from shared.log import segment
from shared.log.segment import Frame
from tests.azurite import Azurite
from tests.epoch_ids import CLAIM
from tests.logs import make_batch, make_chain
from tests.spools import append_all, hello, make_spool, read_log, same_batches
from tests.storage_faults import FaultProxy, throttled


def level(spool: Spool) -> int:
    return spool._resources.compression.level


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - other tasks' state has no event
            await asyncio.sleep(0.01)


async def test_it_compresses_harder_while_uploads_wait_and_cores_idle_and_every_level_reads_alike(
    tmp_path: Path, azurite: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "_LEVEL_S", 0.01)
    monkeypatch.setattr(spools, "idle_part", lambda _before, _after: 1.0)
    sealed: list[int] = []
    really = segment.seal_frame

    def noted(
        key: FileKey, machine: str, claim: str, encoded: Buffer, batch: Batch, digest: bytes, level: int
    ) -> Frame:
        sealed.append(level)
        return really(key, machine, claim, encoded, batch, digest, level)

    monkeypatch.setattr(segment, "seal_frame", noted)
    made = make_chain(24, sectors=16)
    with FaultProxy(azurite) as proxy:
        async with BlobStore.connect(proxy.config(f"test-{secrets.token_hex(6)}")) as store:
            await store.ensure_container()
            spool = make_spool(tmp_path / "spool", store, size_b=4096)
            await spool.start()
            adapting = asyncio.create_task(spool.adapt_compression())
            try:
                log = await spool.open_machine(hello(0))
                await log.begin(hello(0))
                proxy.add(throttled(), method="PUT", blob="*.seg", times=None)
                await append_all(log, made[:12])
                assert log.waits_for_uplink
                await until(lambda: level(spool) == 5)
                await append_all(log, made[12:])
                assert sealed[12:] == [5] * 12
                proxy.clear()
                async with asyncio.timeout(30):
                    await log.flush()
                assert not log.waits_for_uplink
                await until(lambda: level(spool) == 1)
                assert same_batches(await read_log(store, tmp_path / "spool"), made)
            finally:
                adapting.cancel()
                await spool.close()


def test_a_batch_that_was_compressed_harder_is_smaller_and_opens_alike() -> None:
    rng = random.Random(1)
    words = [rng.randbytes(rng.randrange(2, 8)) for _ in range(500)]
    text = b"".join(rng.choice(words) for _ in range(100_000))
    packed = {level: sealing.compress(text, level) for level in (1, 5, 1)}
    assert len(packed[5]) < len(packed[1])
    assert {sealing.decompress(data, len(text)) for data in packed.values()} == {text}
    made, key = make_batch(2, sectors=64), FileKey(sealing.new_key())
    frames = [
        segment.seal_frame(key, "m1", CLAIM, made.encoded, made.batch, made.digest, level) for level in (1, 5)
    ]
    assert [frame.row.digest for frame in frames] == [made.digest.hex()] * 2
