"""A target in a file per disk, and a pump that drives a stream without a network: for tests of the agent alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from agent.stream.cutter import Stream
from shared.batch import SECTOR, Batch, BatchNumber, StreamState, decode, has_payload
from tests.epoch_ids import eid


class Replica:
    """Applies batches, in order, to sparse files."""

    def __init__(self, folder: Path, sizes: list[int]) -> None:
        self.paths = [folder / f"replica-{i}" for i in range(len(sizes))]
        self._fds = []
        for path, size in zip(self.paths, sizes, strict=True):
            self._fds.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            os.truncate(path, size)

    def apply(self, batch: Batch) -> None:
        payload = memoryview(batch.payload)
        at = 0
        for e, has in zip(batch.extents, has_payload(batch.extents), strict=True):
            size = int(e["sectors"]) * SECTOR
            data = payload[at : at + size] if has else bytes(size)
            os.pwrite(self._fds[int(e["disk"])], data, int(e["sector"]) * SECTOR)
            at += size if has else 0

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


class Pump:
    """Sends what the stream cuts to a replica and acknowledges it at once, as uploaded."""

    def __init__(self, stream: Stream, replica: Replica) -> None:
        self.stream = stream
        self.replica = replica
        self.number = 0
        self.end_seq = 0
        self.digest = bytes(16)
        self.ordered = 0
        self.batches = 0
        self.on_ordered: Callable[[Batch], None] = lambda batch: None

    async def begin(self, epoch: int = 1) -> None:
        await self.stream.rounds.everything_is_to_do("a test begins")
        self.stream.begin_epoch(eid(epoch))
        self.number, self.end_seq, self.digest = 0, 0, bytes(16)
        await self.resume()

    async def resume(self) -> None:
        self.stream.resume(self.number, self.end_seq, self.digest, self.number)

    async def turn(self, *, keep: bool = True) -> Batch | None:
        """One turn: a round begins if one is due, a batch is cut. With `keep` False it is lost on the way."""
        await self.stream.rounds.begin_if_due()
        cut = self.stream.cut()
        if cut is None:
            await asyncio.sleep(0.005)
            return None
        await asyncio.sleep(0)
        if not keep:
            return None
        batch, digest = decode(b"".join(cut.parts))
        assert batch.number == self.number + 1
        assert batch.predecessor == self.digest
        self.replica.apply(batch)
        self.number, self.end_seq, self.digest = batch.number, batch.end_seq, digest
        self.batches += 1
        if batch.state == StreamState.ORDERED:
            self.ordered += 1
            self.on_ordered(batch)
        self.stream.acknowledged(BatchNumber(self.number), BatchNumber(self.number))
        return batch

    async def until_ordered(self, deadline_s: float = 60) -> None:
        async with asyncio.timeout(deadline_s):
            while True:
                batch = await self.turn()
                if batch is not None and batch.state == StreamState.ORDERED:
                    return
