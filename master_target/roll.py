"""Owning the roll of a machine's points (shared/recovery/points.py): the fence between this master target and any other.

Why a stale owner changes nothing that anybody sees. `take` raises the term by compare-and-swap; every later change is one, too, from
the version that this owner wrote last. So once another has taken the roll, each of our changes fails: also when storage was set back,
and the other took our term's number, since the roll carries a random claim with it. Documents stand outside of the roll, so they are
ordered around it: a document is written before the roll names it, and removed after it was struck out. What a stale owner still does to
documents is then one of these.
- It creates one: the roll does not name it. The next owner makes it its own when it comes to that mark, or had struck it out: then
  retention removes it.
- It adds snapshots to one: a compare-and-swap from the version that it read. When the newer owner has changed the document, it fails.
  When not, the snapshots are those of that position, whoever took them, and they are there: retention leaves alone the snapshots that
  show the position of a document that an earlier owner may still change (master_target/retention.py).
- It removes one that its roll does not name. It had seen it while the roll was its own, and removes that version only: so none that a
  newer owner has written. (After storage was set back within an epoch, marks may come where an older history's points had expired.)
- It sets points aside, when the log that it read contradicts them: that is a change of the roll alone, and fails as each other does. It
  removes no document by it. Should it have been the owner still, and right at that time, and the log be set forward to the old history
  since: the marks of that are found again, and take their documents back as they are (points.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import msgspec

from shared.blob import BlobStore
from shared.daemon import logging
from shared.errors import (
    BlobExistsError,
    BlobNotFoundError,
    IntegrityError,
    LeaseLostError,
    PreconditionError,
)
from shared.log.epoch_id import UNKNOWN, EpochId, new_claim
from shared.log.epochs import read_epoch
from shared.recovery import point_store, points
from shared.recovery.points import PointDoc, Roll
from shared.recovery.position import Position

_log = logging.get()

_TRIES: Final = 20
"""Each try means that another owner took the roll meanwhile; so many at a time is a fight."""


class _Said(NamedTuple):
    """By the document of a point."""

    claim: str
    digest: str
    """Of its batch; empty: not known."""
    listed_ns: int
    """By storage's clock; 0: not known."""

    @classmethod
    def by(cls, doc: PointDoc) -> _Said:
        return cls(doc.claim, doc.digest, doc.listed_ns)


class OwnedRoll:
    """Make it with `take`. Methods raise LeaseLostError once another owner has taken the roll."""

    def __init__(self, store: BlobStore, roll: Roll, etag: str, docs: Sequence[PointDoc] = ()) -> None:
        """`docs`: those that are there."""
        self._store = store
        self._etag = etag
        self._name = points.ROLL
        self._roll = roll
        self._positions = set(roll.positions)
        self._aside = set(roll.set_aside)
        self._claims = dict(roll.claims)
        self._documents = {doc.position: _Said.by(doc) for doc in docs}
        self._changing = asyncio.Lock()
        """New points are added while others expire: one change at a time, or the later would take the earlier for another owner's."""
        self.writing = asyncio.Lock()
        """Held from before a document is written until the roll names it, and while one that it does not name is removed."""

    @property
    def newest(self) -> Position:
        """All marks up to it have been documented, but for those of a history that came after it (points.py beside this file)."""
        return self._roll.newest

    @property
    def newest_listed_ns(self) -> int:
        """When the segment of the newest point came into storage; 0: not known."""
        said = self._documents.get(self.newest)
        return 0 if said is None else said.listed_ns

    @property
    def term(self) -> int:
        return self._roll.term

    def wrote(self, doc: PointDoc) -> bool:
        """Whether this owner wrote it last."""
        return (doc.term, doc.term_claim) == (self._roll.term, self._roll.term_claim)

    def sign(self, doc: PointDoc) -> PointDoc:
        """The document as this owner writes it."""
        return msgspec.structs.replace(doc, term=self._roll.term, term_claim=self._roll.term_claim)

    def __contains__(self, position: Position) -> bool:
        return position in self._positions

    def is_aside(self, position: Position) -> bool:
        return position in self._aside

    def follows(self, point: PointDoc) -> bool:
        """Whether the point is behind all that were documented; or of an epoch under whose number another epoch's points are here."""
        return point.position > self.newest or self.is_of_another(point.epoch_id)

    def digest(self, position: Position) -> str:
        """Of the batch at that point, as its document says; empty: not known, or it is no point."""
        said = self._documents.get(position)
        return "" if said is None or position not in self else said.digest

    @property
    def unjudged(self) -> bool:
        """Whether any of the points may be of another history of the log than storage has: see Roll."""
        return self._roll.unjudged

    def newest_first(self) -> list[Position]:
        return sorted(self._positions, reverse=True)

    def _may_be_of(self, position: Position, claim: str) -> bool:
        """Whether the point there may be of the epoch with that claim: so its document says, or, where none can be read, the roll."""
        said = self._documents.get(position)
        if said is not None:
            return said.claim == claim
        return self._claims.get(position.epoch, UNKNOWN) in (claim, UNKNOWN)

    def is_of_another(self, epoch: EpochId) -> bool:
        """Whether the points here with this epoch's number are another epoch's."""
        return self._claims.get(epoch.number, epoch.claim) != epoch.claim

    @classmethod
    async def take(cls, store: BlobStore, machine: str) -> OwnedRoll:
        """Only the holder of the machine's claim calls this. Where there is no roll yet, it is made from the documents. Raises
        IntegrityError.

        What documents alone say is not judged yet, and the roll says so until it is: whoever made it may be killed before. That is so of
        all points where there is no roll, and where the roll is older than a document, since what it was told later is lost with that: by a
        later owner, or of a point behind its newest. (Where neither shows it, a roll that was set back names what the same owner set
        aside later.)
        """
        name = points.ROLL
        for _ in range(_TRIES):
            found = await store.read_versioned(name)
            docs, unreadable, *_ = await point_store.survey(store, machine)
            # A roll that was set back is older than the documents.
            term = max((doc.term for doc in docs), default=0)
            if found is None:
                claims = await _present_claims(store, docs)
                named = [doc for doc in docs if claims[doc.epoch] in (doc.claim, UNKNOWN)]
                roll = Roll(
                    machine=machine,
                    term=term + 1,
                    term_claim=new_claim(),
                    points=tuple(str(p) for p in sorted({doc.position for doc in named} | unreadable)),
                    claims=claims,
                    unjudged=bool(named),
                )
                try:
                    return cls(store, roll, await store.create(name, msgspec.json.encode(roll)), docs)
                except BlobExistsError:
                    continue
            old = points.decode_roll(found[0], name)
            named = [doc for doc in docs if points.counts(doc, old)]
            positions = {*old.positions, *(doc.position for doc in named)} - {*old.set_aside}
            roll = msgspec.structs.replace(
                old,
                term=max(old.term, term) + 1,
                term_claim=new_claim(),
                points=tuple(str(p) for p in sorted(positions)),
                claims=_claims(named) | old.claims,
                unjudged=old.unjudged or any(_is_later(doc, old) for doc in docs),
            )
            try:
                return cls(store, roll, await store.replace(name, msgspec.json.encode(roll), found[1]), docs)
            except (PreconditionError, BlobNotFoundError):
                continue
        raise LeaseLostError(f"{name} could not be taken", cause="other master targets keep taking it")

    async def add(self, point: PointDoc) -> None:
        """Its document must be there, and the roll lack it. Points of another epoch with its number are none from then on: their log is
        gone. Where the documents contradict each other (the roll was lost), each of them says whose its point is."""
        async with self._changing:
            kept, aside = self._positions, self._aside - {point.position}
            if self.is_of_another(point.epoch_id):
                kept, aside = (
                    {p for p in those if p.epoch != point.epoch or self._may_be_of(p, point.claim)}
                    for those in (kept, aside)
                )
            self._claims[point.epoch] = point.claim
            await self._swap({*kept, point.position}, aside)
            self._documents[point.position] = _Said.by(point)

    async def strike(self, positions: Collection[Position]) -> None:
        async with self._changing:
            await self._swap(self._positions - set(positions), self._aside - set(positions))

    async def set_aside(self, positions: Collection[Position]) -> None:
        """Points of another history of the log than storage has: none from now on, but kept."""
        async with self._changing:
            await self._swap(self._positions - set(positions), self._aside | set(positions))

    async def judge(self, others: Collection[Position]) -> None:
        """The log was asked of all points: these are of another history. None is unjudged from now on."""
        async with self._changing:
            judged = msgspec.structs.replace(self._roll, unjudged=False)
            await self._swap(self._positions - set(others), self._aside | set(others), judged)

    async def check(self) -> None:
        """Raises LeaseLostError unless the roll is still ours."""
        async with self._changing:
            found = await self._store.read_versioned(self._name)
            if found is None or points.decode_roll(found[0], self._name) != self._roll:
                raise await self._lost()
            self._etag = found[1]

    async def _swap(
        self, positions: Collection[Position], aside: Collection[Position], base: Roll | None = None
    ) -> None:
        """`base`: what the roll says beside; by default what it said."""
        numbers = {position.epoch for position in (*positions, *aside)}
        roll = msgspec.structs.replace(
            base or self._roll,
            points=tuple(str(p) for p in sorted(positions)),
            aside=tuple(str(p) for p in sorted(aside)),
            claims={number: claim for number, claim in sorted(self._claims.items()) if number in numbers},
        )
        data = msgspec.json.encode(roll)
        try:
            self._etag = await self._store.replace(self._name, data, self._etag)
        except (PreconditionError, BlobNotFoundError) as exc:
            found = await self._store.read_versioned(self._name)
            if found is None or found[0] != data:  # else our own try, of which the answer was lost
                raise await self._lost() from exc
            self._etag = found[1]
        self._roll, self._claims = roll, dict(roll.claims)
        self._positions, self._aside = set(positions), set(aside)

    async def _lost(self) -> LeaseLostError:
        other = await point_store.read_roll(self._store)
        cause = f"somebody deleted {self._name}"
        if other is not None and other.term > self.term:
            cause = f"another master target took them: their roll has term {other.term}, ours is {self.term}"
        elif other is not None:
            cause = f"storage was set back: their roll has term {other.term} of another owner, or an older state of ours"
        return LeaseLostError(f"The points of machine {self._roll.machine} were not changed", cause=cause)


def _is_later(doc: PointDoc, roll: Roll) -> bool:
    """Whether the document says what this roll was never told: then it is an older one, or its owner was killed behind the document."""
    by_another = doc.term == roll.term and doc.term_claim != roll.term_claim
    return doc.term > roll.term or by_another or doc.position > roll.newest


async def _present_claims(store: BlobStore, docs: Sequence[PointDoc]) -> dict[int, str]:
    """As `_claims`; which of the epochs of a number is the present one, its document says."""
    claims = _claims(docs)
    for number in [number for number, claim in claims.items() if claim == UNKNOWN]:
        try:
            claims[number] = (await read_epoch(store, number)).claim
        except IntegrityError as exc:
            _log.warning("points of several epochs with one number", epoch=number, **exc.as_dict())
    return claims


def _claims(docs: Sequence[PointDoc]) -> dict[int, str]:
    """By epoch number; not known where the documents contradict each other."""
    claims: dict[int, str] = {}
    for doc in docs:
        claims[doc.epoch] = doc.claim if claims.get(doc.epoch, doc.claim) == doc.claim else UNKNOWN
    return claims
