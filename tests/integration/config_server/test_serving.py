"""Whose a machine is by storage."""

from __future__ import annotations

import contextlib
from itertools import count

import msgspec

from config_server.storage.account import Storage
from config_server.storage.owners import Serving
from shared.blob import BlobConfig
from shared.log import names
from shared.log.terms import TermDocument
from shared.machine.storage import MachineStorage


async def test_it_is_who_took_the_newest_term_of_the_newest_epoch_that_has_one(
    machine_storage: MachineStorage, blob_config: BlobConfig
) -> None:
    """An epoch that is being begun has no term for a moment, and an agent or a server that died in it leaves one without."""
    words = count()

    async def owner() -> str | None:
        said = frozenset({("ps1", next(words), True, "1")})
        return await serving.asked("web1", said)

    async def take(epoch: int, number: int, who: str) -> None:
        term = TermDocument(term=number, owner=who, claim="a" * 16, after=0, created_ns=0)
        await store.create(names.term_document(epoch, number), msgspec.json.encode(term))

    async with contextlib.AsyncExitStack() as stack:
        storage = Storage(blob_config, None)
        stack.push_async_callback(storage.close)
        serving = Serving(storage)
        serving.clock = (1000.0 * turn for turn in count()).__next__
        assert await owner() == "", "storage has nothing of it"
        store = await machine_storage.find_or_create("web1")
        assert await owner() == "", "it is registered"
        await store.create(names.epoch_document(1), b"{}")
        assert await owner() == "", "its first epoch is being begun"
        await take(1, 1, "ps1")
        await take(1, 2, "ps2")
        assert await owner() == "ps2"
        await store.create(names.epoch_document(2), b"{}")
        await store.create(names.epoch_document(3), b"{}")
        assert await owner() == "ps2", "the next epochs are being begun"
        await take(3, 1, "ps3")
        assert await owner() == "ps3"
