"""Writing a machine's log index: one writer at a time, and none that was replaced (I7).

The index only grows by appends that are conditional on its exact size (`x-ms-blob-condition-appendpos`),
and storage serves the appends to a blob one after the other. So the index is a compare-and-swap log: an
append succeeds only if its writer has seen everything that stands before it. Why a stale writer can never
make `uploaded` advance:

- A new owner takes the next term t (conditional create of `term-t.json`), reads the index to its end, and appends its *claim* at that
  end. Until the append succeeds it owns nothing; when it fails, it reads what was added and tries again.
- Let W be an earlier owner, with term s < t, and A one of its appends. Either A stands before the claim: then the new owner has read it
  before its claim succeeded, and counts it. Or W makes A after the claim stands: then A's expected size is not the blob's size, A fails,
  W reads the rest, sees the claim and stops (FencedError). There is no third case. W reports `uploaded` only after A succeeded.
- Storage that is set back to an older copy breaks the promise behind all this: it forgets our claim, another takes a term of the same
  number, and the index may again be exactly as long as we left it. So a term is its number *and* a random claim (index.py), and our
  append carries our lease, which no blob has that was put back. It is refused; then, and whenever the size is not ours, the term that
  storage has now is compared before anything else: another claim fences us.
- Between that comparison and a new lease storage may be set back as well, and another take our number, claim and list as much as we had:
  the size would tell nothing, and the lease would be ours. So what counts is the term that is read *under* the lease, each time that one is
  taken, before anything is appended (`_take_lease`). If it is ours, number and claim, then up to that reading nobody had another of our
  number in the history that storage has now (a document is created once), nor a higher one, and no claim comes without a term. Whoever
  takes a higher one later breaks our lease before it claims, and storage that is set back later has not got our lease: our append is then
  refused. So when it succeeds, nobody wrote since we read; that lines were lost, the size tells. The comparison *before* the lease is
  a courtesy: a stale writer shall not break its successor's lease to hear that it is one. One that did gives the lease back.
- A lease that is lost under our own term may mean that, too: set back to a moment when the term was ours and the index as long as we left
  it, storage lacks segments that were uploaded since and are not listed yet, those of later appends included. So from then on the log is
  *in doubt*: once the new lease is taken, an append first looks up each segment that it lists (and, the first time, the newest listed
  ones). Storage that is set back after that look has taken the new lease away, too, and the append is refused. While no lease is lost,
  storage was not set back since the log was taken, and every upload of this term is still there. A rotation passes from lease to lease:
  the old one is given back when the next blob is claimed; if it was lost by then, the closed blob must be as long as it was left.
- A doubtful append (no answer) is repeated with the same condition. If it had happened, exactly these bytes, which carry W's term, stand
  at the expected place: `BlobStore.append` recognises them. The claim of another never looks like them.
- The chain: `closed` is an appended line like any other, so it is the last one of its blob for everybody: whoever knows the blob's size
  has read it, and goes on in the next blob, which is made before that line. No two writers can disagree about which blob is the
  current one: a next blob that a kill, or a stale writer, left behind is empty and nothing leads to it, until a `closed` does.
- Readers also ignore lines of a lower term after a higher one (shared/log/index.py). By the above there are none; the rule guards against
  storage that breaks its promise.

The lease. The current index blob is under an endless lease of its writer, broken by the next owner between
term and claim. The argument above does not need it: the lease turns a stale writer away sooner, and keeps
the blob from being deleted by accident. It is on the index itself, because a lease on another blob would
stop nobody. It needs no renewal, hence there is no moment at which it runs out unseen.

Storage that forgot: before each claim, after each failed append, and on `check`, a blob shorter than what
was acknowledged, or a listed segment that is gone, is StorageForgotError, which ends the epoch. So is an index that is damaged when the log
is taken: no line behind the damage would count, for anybody. What stands before it stays listed, and restores.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NoReturn

from shared.blob import FOR_EVER, BlobStore, Lease
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import (
    BlobExistsError,
    BlobNotFoundError,
    FencedError,
    IndexDamagedError,
    IndexMissingError,
    LeaseHeldError,
    LeaseLostError,
    PreconditionError,
    StorageError,
    StorageForgotError,
    TransientError,
)
from shared.log import names
from shared.log.chain import IndexChain
from shared.log.epoch_id import EpochId, new_claim
from shared.log.index import (
    NO_TERM,
    Claim,
    Closed,
    Fold,
    IndexEntry,
    Term,
    decode_lines,
    encode_lines,
)
from shared.log.terms import TermDocument, create, newest_term

MAX_BLOCKS: Final = 40_000
"""Appends to one blob; Azure allows 50,000."""
_TRIES: Final = 20
"""Each try means that another writer did something meanwhile; so many at a time is a fight."""

_log = logging.get()


class IndexWriter:
    """The right to append to one epoch's index. Not for concurrent use: one call at a time.

    `fold` is the index as it is known to be. Every method raises FencedError once a newer owner was seen,
    StorageForgotError when acknowledged data is gone, and other StorageErrors as the store's retry policy
    lets them through.
    """

    def __init__(self, store: BlobStore, machine: str, epoch: EpochId, owner: str, max_blocks: int) -> None:
        self._store = store
        self._chain = IndexChain(store, machine, epoch)
        self._owner = owner
        self._max_blocks = max_blocks
        self._lease: Lease | None = None
        self._in_doubt = False
        """A lease was lost under our own term: what was uploaded may be gone."""
        self._name = f"the log of machine {machine}, epoch {epoch.number}"
        self.machine = machine
        self.id = epoch
        self.epoch = epoch.number
        self.taken = NO_TERM
        """Our term."""

    @property
    def term(self) -> int:
        """Its number."""
        return self.taken.number

    @property
    def fold(self) -> Fold:
        return self._chain.fold

    @classmethod
    async def take(
        cls,
        store: BlobStore,
        machine: str,
        epoch: EpochId,
        owner: str,
        *,
        known_last: int = 0,
        max_blocks: int = MAX_BLOCKS,
    ) -> IndexWriter:
        """Takes the log of an epoch from whoever has it. `owner` (a name for people) knows that batch
        `known_last` was listed once.
        """
        writer = cls(store, machine, epoch, owner, max_blocks)
        await writer._read_from_begin()
        if writer.fold.last < known_last:
            raise writer._chain.forgot(
                f"its index ends at batch {writer.fold.last}, and batch {known_last} was listed"
            )
        writer.taken = await writer._take_term()
        reach("take.after-term")
        await writer._claim()
        reach("take.after-claim")
        await writer._check_segments(writer.fold.entries)
        _log.info(
            "log taken",
            machine=machine,
            epoch=epoch.number,
            term=writer.term,
            owner=owner,
            last=writer.fold.last,
        )
        return writer

    def be_patient(self, report: Callable[[StorageError | None], None]) -> None:
        """From now on requests to storage are retried for ever; `report` hears of it."""
        self._store = self._chain.store = self._store.patient(report)

    async def append(self, entries: Sequence[IndexEntry]) -> None:
        """Lists the segments. When it returns, they count: durably, for every reader."""
        self.fold.expect(entries)
        if self._chain.lines >= self._max_blocks:
            await self._rotate()
        reach("index.before-append")
        if self._in_doubt:
            await self._check_segments(entries)
            reach("doubt.after-look")
        await self._append(encode_lines(entries), entries)
        for entry in entries:
            self.fold.add(entry)
        reach("index.after-append")

    async def check(self) -> None:
        """Raises FencedError or StorageForgotError if the log is not ours any more, or not what it was."""
        await self._raise_unless_ours()
        if await self._size(self._chain.blob) != self._chain.size_b:
            await self._explain_other_size()
        await self._check_segments(self.fold.entries)

    async def release(self) -> None:
        """Gives the lease back, so that the blob can be deleted. The term stays taken."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await _give_back(lease)

    # ---- taking ----

    async def _read_from_begin(self) -> None:
        """An index that is damaged, also when it is read again, takes no more lines: nothing behind the damage would count."""
        try:
            await self._read_to_end()
        except IndexDamagedError as first:
            self._chain = IndexChain(self._store, self.machine, self.id)
            try:
                await self._read_to_end()
            except IndexDamagedError as second:
                if (first.what, first.cause) != (second.what, second.cause):
                    raise  # the reading is in doubt, not what is read
                raise self._chain.forgot(f"{second.what}: {second.cause}") from second

    async def _read_to_end(self) -> None:
        try:
            await self._chain.read_to_end()
        except IndexMissingError as exc:
            raise self._chain.forgot(exc.cause) from exc

    async def _take_term(self) -> Term:
        while True:
            newest = await newest_term(self._store, self.epoch)
            document = TermDocument(
                term=max(newest.number, self.fold.owner.number) + 1,
                owner=self._owner,
                claim=new_claim(),
                after=self.fold.last,
                created_ns=time.time_ns(),
            )
            if (taken := await create(self._store, self.epoch, document)) is not None:
                return taken

    async def _claim(self) -> None:
        for _ in range(_TRIES):
            await self._read_to_end()
            if self.fold.owner.number >= self.term and self.fold.owner != self.taken:
                raise self._fenced(self.fold.owner)
            claim = Claim(
                term=self.term,
                epoch_claim=self.id.claim,
                term_claim=self.taken.claim,
                owner=self._owner,
                after=self.fold.last,
                written_ns=time.time_ns(),
            )
            try:
                self._lease = await self._take_lease()
                await self._append_once(encode_lines([claim]))
            except (PreconditionError, LeaseLostError, LeaseHeldError):
                continue  # somebody wrote or took the lease meanwhile
            self.fold.add(claim)
            return
        raise TransientError(f"Could not take {self._name}", cause="other process servers keep taking it")

    async def _take_lease(self) -> Lease:
        """Of the current blob, if the term is ours once it is taken: the argument is in the module's docstring."""
        try:
            await self._store.append_create(self._chain.blob)
        except (BlobExistsError, LeaseHeldError):
            await self._store.leases.break_now(self._chain.blob)
        lease = await self._store.leases.acquire(self._chain.blob, FOR_EVER)
        try:
            await self._raise_unless_ours()
        except (FencedError, StorageForgotError):
            await _give_back(lease)
            raise
        return lease

    # ---- appending ----

    async def _append(self, data: bytes, entries: Sequence[IndexEntry] = ()) -> None:
        """`entries`: the segments that `data` lists."""
        lost = False
        for _ in range(_TRIES):
            try:
                if lost:
                    self._lease = await self._take_lease()
                    self._in_doubt = True  # from the lease on, and so the proof comes behind it
                    reach("doubt.after-lease")
                    await self._check_segments([*self.fold.entries, *entries])
                    reach("doubt.after-look")
                await self._append_once(data)
            except PreconditionError:
                await self._explain_other_size()
            except BlobNotFoundError as exc:
                raise self._chain.forgot(f"index blob {self._chain.blob} is gone") from exc
            except (LeaseLostError, LeaseHeldError):
                # Broken by somebody who is about to claim with a higher term, or who lost that race against
                # us. Or storage was set back.
                await self._raise_unless_ours()
                lost = True
            else:
                return
        raise TransientError(
            f"Could not write the index of {self._name}", cause="its lease keeps being taken"
        )

    async def _append_once(self, data: bytes) -> None:
        lease_id = None if self._lease is None else self._lease.id
        chain = self._chain
        chain.size_b = await self._store.append(chain.blob, data, lease_id, chain.size_b)
        chain.lines += data.count(b"\n")

    async def _rotate(self) -> None:
        old_blob = self._chain.blob
        closed = Closed(term=self.term, next=self.fold.number + 1)
        # The next blob first: so one that `closed` names and that is not there was lost (chain.py). A leftover of a kill is taken as it is.
        with contextlib.suppress(BlobExistsError):
            await self._store.append_create(names.index(self.epoch, closed.next))
        await self._append(encode_lines([closed]))
        old_lease, old_size_b = self._lease, self._chain.size_b
        self.fold.add(closed)
        self._chain.next_blob()
        reach("index.after-rotation")
        await self._claim()
        if old_lease is not None and not await _give_back(old_lease):
            await self._raise_unless_ours()
            self._in_doubt = True
            await self._check_size(old_blob, old_size_b)
            await self._check_segments(self.fold.entries)

    # ---- what went wrong ----

    async def _size(self, blob: str) -> int:
        try:
            return (await self._store.properties(blob)).size_b
        except BlobNotFoundError as exc:
            raise self._chain.forgot(f"index blob {blob} is gone") from exc

    async def _check_size(self, blob: str, known_b: int) -> int:
        size_b = await self._size(blob)
        if size_b < known_b:
            raise self._chain.forgot(f"{blob} has {size_b} bytes and had {known_b}")
        return size_b

    async def _explain_other_size(self) -> NoReturn:
        """The current blob is not as long as we left it: why."""
        await self._raise_unless_ours()
        blob, known_b = self._chain.blob, self._chain.size_b
        await self._check_size(blob, known_b)
        for line in decode_lines(await self._store.read(blob, known_b), blob):
            if isinstance(line, Claim) and line.term >= self.term:
                raise self._fenced(Term(line.term, line.term_claim))
        raise IndexDamagedError(
            f"Log index {blob} is damaged", cause="it holds lines that no owner of the log wrote"
        )

    async def _raise_unless_ours(self) -> None:
        newest = await newest_term(self._store, self.epoch)
        if newest.number < self.term:
            raise self._chain.forgot(f"the document of term {self.term} is gone")
        if newest != self.taken:
            raise self._fenced(newest)

    async def _check_segments(self, entries: Iterable[IndexEntry]) -> None:
        """That they are there: the newest ones that are listed, which the fold remembers, or those that are about to be."""
        for entry in tuple(entries):
            try:
                size_b = (await self._store.properties(entry.blob)).size_b
            except BlobNotFoundError as exc:
                raise self._chain.forgot(f"segment {entry.blob} was uploaded, and is gone") from exc
            if size_b != entry.bytes:
                raise self._chain.forgot(f"segment {entry.blob} has {size_b} bytes and had {entry.bytes}")

    def _fenced(self, by: Term) -> FencedError:
        return FencedError(
            f"{self._name.capitalize()} is not ours any more",
            cause=self._why_not_ours(by),
        )

    def _why_not_ours(self, by: Term) -> str:
        if by.number != self.term:
            return f"term {by} was taken after our term {self.term}"
        if not by.claim:
            return f"the document of our term {by} cannot be read"
        return f"storage was set back, and gave our term {by} to another"


async def _give_back(lease: Lease) -> bool:
    """Whether it was still ours."""
    try:
        await lease.release()
    except (LeaseLostError, BlobNotFoundError):  # then a newer owner has it, or storage was set back
        return False
    return True
