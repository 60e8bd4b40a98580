"""Batches and segments for tests of the log: small, chained, and reproducible."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from typing import NamedTuple

from shared import batch as batches
from shared.batch import (
    NO_DIGEST,
    Batch,
    BatchMeta,
    BatchNumber,
    Epoch,
    Mark,
    Op,
    Seq,
    StreamState,
    make_extents,
)
from shared.blob import BlobStore
from shared.errors import WrongKeyError
from shared.keys import sealing
from shared.keys.sealing import MachineKey
from shared.keys.vault import WrappedKey
from shared.log import names, segment
from shared.log.draft import Draft
from shared.log.index import IndexEntry, entry_for
from shared.log.segment import FileHeader
from tests.epoch_ids import eid

KEY = MachineKey("vault-key-1", b"wrapped", bytes(range(32)))
OTHER_KEY = MachineKey("vault-key-2", b"otherwise", bytes(reversed(range(32))))


class KnownKeys:
    """A vault that unwraps these keys."""

    def __init__(self, *keys: MachineKey) -> None:
        self._keys = {key.wrapped: key.key for key in keys}

    async def new_key(self, machine: str) -> MachineKey:
        raise NotImplementedError

    async def unwrap(self, wrapped: WrappedKey, machine: str) -> bytes:
        if wrapped.wrapped not in self._keys:
            raise WrongKeyError("The key cannot be unwrapped", cause=f"it was wrapped by {wrapped.key_id}")
        return self._keys[wrapped.wrapped]


VAULT = KnownKeys(KEY)


class Made(NamedTuple):
    encoded: bytes
    batch: Batch
    digest: bytes


def make_batch(
    number: int,
    predecessor: bytes = NO_DIGEST,
    *,
    epoch: int = 1,
    sectors: int = 2,
    state: StreamState = StreamState.ORDERED,
    marks: Sequence[str] = (),
    cause: str = "",
    seed: int = 0,
    captured_ns: int = 0,
) -> Made:
    """One batch with `sectors` sectors of data; compressible for even numbers, not for odd ones."""
    rng = random.Random(f"{seed}/{number}")
    payload = rng.randbytes(sectors * 512) if number % 2 else bytes([number % 256]) * (sectors * 512)
    batch = Batch(
        epoch=Epoch(epoch),
        number=BatchNumber(number),
        end_seq=Seq(number * 100),
        captured_ns=captured_ns or 1_700_000_000_000_000_000 + number,
        state=state,
        predecessor=predecessor,
        extents=make_extents([(0, number * 8, sectors, Op.WRITE), (0, 5, 3, Op.ZERO)]),
        payload=payload,
        meta=BatchMeta(marks=tuple(Mark(m) for m in marks), cause=cause),
    )
    buffers, digest = batches.encode(batch)
    return Made(b"".join(bytes(b) for b in buffers), batch, digest)


def make_chain(
    count: int,
    *,
    first: int = 1,
    predecessor: bytes = NO_DIGEST,
    epoch: int = 1,
    sectors: int = 2,
    seed: int = 0,
) -> list[Made]:
    """Consecutive batches, each naming the digest of the one before."""
    chain: list[Made] = []
    for number in range(first, first + count):
        chain.append(make_batch(number, predecessor, epoch=epoch, sectors=sectors, seed=seed))
        predecessor = chain[-1].digest
    return chain


def file_header(first: Made, key: MachineKey = KEY, machine: str = "m1", claim: str = "") -> FileHeader:
    return FileHeader(
        machine=machine,
        epoch=first.batch.epoch,
        claim=claim or eid(first.batch.epoch).claim,
        first=first.batch.number,
        predecessor=first.batch.predecessor.hex(),
        key_id=key.key_id,
        wrapped=base64.b64encode(key.wrapped).decode(),
        salt=base64.b64encode(sealing.new_salt()).decode(),
        created_ns=1,
    )


def make_draft(
    made: Sequence[Made], key: MachineKey = KEY, machine: str = "m1", claim: str = ""
) -> tuple[Draft, bytes]:
    """A segment of these batches that is not closed yet: the draft and its bytes."""
    header = file_header(made[0], key, machine, claim)
    draft = Draft(header)
    file_key = key.file_key(header.salt_bytes)
    data = bytearray(draft.head)
    for m in made:
        frame = segment.seal_frame(file_key, machine, header.claim, m.encoded, m.batch, m.digest)
        data += frame.data
        draft.add(frame)
    return draft, bytes(data)


def make_segment(made: Sequence[Made], key: MachineKey = KEY, machine: str = "m1") -> bytes:
    """A whole segment of these batches."""
    draft, data = make_draft(made, key, machine)
    return data + draft.closing()


async def put_segment(
    store: BlobStore,
    made: Sequence[Made],
    *,
    term: int = 1,
    key: MachineKey = KEY,
    machine: str = "m1",
    claim: str = "",
    term_claim: str = "0" * 16,
) -> IndexEntry:
    """Writes a segment of these batches to storage; its entry is not in any index yet."""
    draft, data = make_draft(made, key, machine, claim)
    data += draft.closing()
    name = names.segment(made[0].batch.epoch, term, term_claim, made[0].batch.number)
    await store.create(name, data)
    return entry_for(
        draft.footer,
        blob=name,
        size_b=len(data),
        digest=draft.digest,
        predecessor=made[0].batch.predecessor.hex(),
        term=term,
        written_ns=made[-1].batch.captured_ns,
    )
