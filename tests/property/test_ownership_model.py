"""Two process servers, an agent that moves between them, kills, lost servers, epochs that end, storage that is restored from an older copy
or loses an epoch: what was acknowledged is listed, contradicted, of an epoch that storage does not have, or still there. Nothing of one
epoch is ever listed, deleted or written as another's of the same number. In the end nothing lies about for ever.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Iterator

import pytest

from process_server.spool.ownership import (
    Decision,
    LocalFile,
    Owner,
    Patience,
    Relation,
    View,
    decide,
    meeting_point,
    relate,
)
from shared.log.index import NO_TERM, Term

RUNS = 400
PATIENCE = Patience(silent_s=20.0, over_s=5.0)
Chain = list[str]
"""Digests of batches 1, 2, 3…; each covers the one before."""


def digest(before: str, content: str) -> str:
    return hashlib.sha256(f"{before}/{content}".encode()).hexdigest()[:8]


def at(chain: Chain, number: int) -> str:
    return chain[number - 1] if number else "none"


class ForgotError(Exception):
    """Storage does not have what a file here would continue."""


class Storage:
    def __init__(self) -> None:
        self.claims: dict[int, str] = {}
        """Of each epoch that has a document."""
        self.index: dict[int, Chain] = {}
        self.owners: dict[int, list[tuple[Term, str]]] = {}
        self.held: dict[int, bool] = {}
        self.moved_at: dict[int, int] = {}
        self.newest = 0

    def take(self, epoch: int, name: str, now: int, claim: str) -> Term:
        term = Term(len(self.owners[epoch]) + 1, claim)
        self.owners[epoch].append((term, name))
        self.held[epoch] = True
        self.moved_at[epoch] = now
        return term

    def owner(self, epoch: int) -> tuple[Term, str]:
        return self.owners[epoch][-1] if self.owners[epoch] else (NO_TERM, "")

    def begin(self, now: int, above: int, claim: str) -> int:
        self.newest = above + 1
        self.claims[self.newest] = claim
        self.index[self.newest], self.owners[self.newest], self.held[self.newest] = [], [], False
        self.moved_at[self.newest] = now
        return self.newest

    def lose(self, epoch: int) -> None:
        """Its folder is gone; its number may come back."""
        for known in (self.claims, self.index, self.owners, self.held, self.moved_at):
            known.pop(epoch, None)
        self.newest = max(self.claims, default=0)


class Spooled:
    """One epoch's folder: consecutive files, each a list of digests from `first` on."""

    def __init__(self, claim: str) -> None:
        self.claim = claim
        self.first = 1
        self.predecessor = "none"
        self.files: list[Chain] = []
        self.taken = NO_TERM
        self.open = False

    def local(self) -> tuple[LocalFile, ...]:
        found, first, before = [], self.first, self.predecessor
        for file in self.files:
            found.append(LocalFile(first, first + len(file) - 1, before, file[-1]))
            first, before = first + len(file), file[-1]
        return tuple(found)

    def digest_at(self, number: int) -> str:
        batches = [self.predecessor, *(d for file in self.files for d in file)]
        return batches[number - self.first + 1]

    @property
    def last(self) -> tuple[int, str]:
        return self.first - 1 + sum(map(len, self.files)), self.files[-1][
            -1
        ] if self.files else self.predecessor


def spooled_batches(spooled: Spooled) -> Chain:
    return [d for file in spooled.files for d in file]


class Server:
    def __init__(self, name: str, world: World) -> None:
        self.name = name
        self.world = world
        self.alive = True
        self.spool: dict[int, Spooled] = {}
        self.seen_at: dict[int, int] = {}

    def kill(self) -> None:
        self.seen_at.clear()
        for spooled in self.spool.values():
            spooled.open = False

    def open(self, epoch: int) -> Spooled:
        """Takes the next term and sorts what is here."""
        storage = self.world.storage
        self.recover(epoch)
        spooled = self.spool.setdefault(epoch, Spooled(storage.claims[epoch]))
        if spooled.files and spooled.first > len(storage.index[epoch]) + 1:
            raise ForgotError
        self.world.claimed += 1
        spooled.taken = storage.take(epoch, self.name, self.world.now, f"term {self.world.claimed}")
        spooled.open = True
        index = storage.index[epoch]
        relation, point = self.relation(epoch)
        if relation is Relation.CONTRADICTED:
            self.world.set_aside(epoch, spooled)
        elif relation is Relation.LISTED or point is None:
            self.world.delete(epoch, spooled, len(index))
        else:
            self.world.delete(epoch, spooled, point)
        if not spooled.files:
            spooled.first, spooled.predecessor = len(index) + 1, at(index, len(index))
        return spooled

    def recover(self, epoch: int) -> None:
        """Sets aside what another epoch with this number left (recovery.py)."""
        spooled = self.spool.get(epoch)
        if spooled is not None and self.world.is_foreign(spooled, epoch):
            self.world.foreign += bool(spooled.files)
            del self.spool[epoch]

    def relation(self, epoch: int) -> tuple[Relation, int | None]:
        spooled, index = self.spool[epoch], self.world.storage.index[epoch]
        files = spooled.local()
        point = meeting_point(files, len(index))
        here, there = ("", "") if point is None else (spooled.digest_at(point), at(index, point))
        return relate(files, len(index), here, there), point

    def upload(self, epoch: int) -> None:
        """Lists the first file, if the log is still ours."""
        storage, spooled = self.world.storage, self.spool[epoch]
        if storage.claims.get(epoch) != spooled.claim or not self.world.has_term(spooled, epoch):
            spooled.open = False  # fenced, or the index is not what it was
            return
        if spooled.files and spooled.first > len(storage.index[epoch]) + 1:
            spooled.open = False
            return
        if spooled.files:
            index = storage.index[epoch]
            assert storage.owner(epoch)[0] == spooled.taken, "who does not have the log lists in it"
            assert (len(index) + 1, at(index, len(index))) == (spooled.first, spooled.predecessor)
            index += spooled.files[0]
            storage.moved_at[epoch] = self.world.now
            self.world.delete(epoch, spooled, len(index))
        elif epoch < storage.newest:
            storage.held[epoch] = False
            del self.spool[epoch]

    def look(self, epoch: int) -> None:
        """What a process server does with an epoch of which it has no open log."""
        storage = self.world.storage
        if epoch not in storage.claims:
            return  # its document is gone: the files stay
        self.recover(epoch)
        if epoch not in self.spool:
            return
        spooled = self.spool[epoch]
        index = storage.index[epoch]
        term, owner = storage.owner(epoch)
        _, point = self.relation(epoch)
        seen_at = self.seen_at.setdefault(epoch, self.world.now)
        view = View(
            epoch=epoch,
            newest=storage.newest,
            us=self.name,
            taken=spooled.taken,
            owner=Owner(
                term=term,
                name=owner,
                holds=storage.held[epoch],
                silent_s=float(self.world.now - max(seen_at, storage.moved_at[epoch])),
            ),
            index_last=len(index),
            files=spooled.local(),
            here="" if point is None else spooled.digest_at(point),
            there="" if point is None else at(index, point),
        )
        decision = decide(view, PATIENCE).decision
        assert decision is not Decision.OPEN or owner in ("", self.name), "another's log was taken at once"
        match decision:
            case Decision.OPEN | Decision.RETAKE:
                try:
                    self.open(epoch)
                except ForgotError:
                    if epoch < storage.newest:
                        del self.spool[epoch]  # set aside, all of it
            case Decision.QUARANTINE:
                self.world.set_aside(epoch, spooled)
                del self.spool[epoch]
            case Decision.DELETE:
                self.world.delete(epoch, spooled, len(index))
                assert not spooled.files
                del self.spool[epoch]
            case Decision.WAIT:
                pass


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0
        self.storage = Storage()
        self.servers = [Server("a", self), Server("b", self)]
        self.aside = self.foreign = self.restored = 0
        self.copy: Storage | None = None
        self.lives = self.claimed = 0
        # the agent
        self.at: Server | None = None
        self.epoch = self.seen = 0
        self.claim = ""
        self.welcomed = ""
        """The claim of the epoch in which the open session is."""
        self.acked: Chain = []
        """Batches that it has freed."""
        self.taste = 0

    # ---- what must never happen ----

    def delete(self, epoch: int, spooled: Spooled, up_to: int) -> None:
        """Batches up to that number are deleted: all must be listed, as they are here."""
        assert spooled.claim == self.storage.claims[epoch], "files were compared with another epoch's index"
        index = self.storage.index[epoch]
        while spooled.files and spooled.first <= up_to:
            head = spooled.files[0]
            assert index[spooled.first - 1] == head[0], "an acknowledged batch was deleted that is not listed"
            spooled.predecessor = head.pop(0)
            spooled.first += 1
            if not head:
                spooled.files.pop(0)

    def set_aside(self, epoch: int, spooled: Spooled) -> None:
        """Nothing of it that is not listed may be listable any more."""
        index = self.storage.index[epoch]
        number, last = spooled.last
        common = min(number, len(index))
        if not (self.restored and self.is_behind_a_gap(spooled, epoch)):
            assert common >= spooled.first, "it could be listed"
            assert spooled.digest_at(common) != index[common - 1], "it could be listed"
        assert last
        self.aside += 1
        spooled.files = []

    # ---- what happens ----

    def connect(self, server: Server) -> None:
        newest = self.storage.newest
        if self.epoch and self.epoch == newest and self.is_continued(newest):
            spooled = server.spool.get(newest)
            ours = spooled is not None and spooled.open and spooled.claim == self.claim
            try:
                if spooled is None or not ours or not self.has_term(spooled, newest):
                    spooled = server.open(newest)
            except ForgotError:
                self.begin(server)
                return
            number, last = spooled.last
            if (
                number >= len(self.acked)
                and (number - len(spooled_batches(spooled))) <= len(self.storage.index[newest])
                and (not self.acked or self.known(server, len(self.acked)))
            ):
                self.acked += [""] * (number - len(self.acked))
                self.acked[number - 1 : number] = [last] if number else []
                self.at, self.welcomed = server, spooled.claim
                return
        self.begin(server)

    def begin(self, server: Server) -> None:
        self.lives += 1
        self.claim = f"claim {self.lives}"
        above = max(self.storage.newest, self.seen, *server.spool, 0)
        self.epoch, self.acked = self.storage.begin(self.now, above, self.claim), []
        self.seen = self.epoch
        server.open(self.epoch)
        self.at, self.welcomed = server, self.claim

    def is_continued(self, epoch: int) -> bool:
        """Whether storage's epoch is the agent's (MachineLog)."""
        return self.storage.claims[epoch] == self.claim

    def is_foreign(self, spooled: Spooled, epoch: int) -> bool:
        return spooled.claim != self.storage.claims[epoch]

    def has_term(self, spooled: Spooled, epoch: int) -> bool:
        """Whether the log is still that server's (IndexWriter)."""
        return spooled.taken == self.storage.owner(epoch)[0]

    def known(self, server: Server, number: int) -> bool:
        """Whether what the server has is what this agent sent."""
        spooled, index = server.spool[self.epoch], self.storage.index[self.epoch]
        there = spooled.digest_at(number) if number >= spooled.first else index[number - 1]
        return self.acked[number - 1] in ("", there)

    def is_behind_a_gap(self, spooled: Spooled, epoch: int) -> bool:
        """Storage forgot what they continue: only the agent can help, by a new epoch."""
        return spooled.first > len(self.storage.index[epoch]) + 1

    def send(self) -> None:
        server = self.at
        if server is None or not server.alive:
            return
        spooled = server.spool.get(self.epoch)
        gone = spooled is None or self.epoch not in self.storage.claims or spooled.claim != self.welcomed
        if (
            spooled is None
            or gone
            or not spooled.open
            or (not self.has_term(spooled, self.epoch) and self.rng.random() < 0.5)
        ):
            if spooled is None or gone:
                self.at = None
                return
            spooled.open = False
            self.at = None
            return
        assert self.welcomed == self.claim, "an agent writes in another epoch than its own"
        number, last = spooled.last
        new = digest(last, f"{number + 1}/{self.taste}")
        if spooled.files and self.rng.random() < 0.5:
            spooled.files[-1].append(new)
        else:
            spooled.files.append([new])
        if (
            self.rng.random() < 0.8
        ):  # else the acknowledgement gets lost: the agent may send another batch instead
            self.acked += [""] * (number + 1 - len(self.acked))
            self.acked[number] = new
        else:
            self.at = None

    def step(self) -> None:
        self.now += self.rng.choice([0, 1, 1, 8])
        server = self.rng.choice([s for s in self.servers if s.alive])
        action = self.rng.random()
        if action < 0.35:
            self.send()
        elif action < 0.45:
            self.connect(server)
        elif action < 0.50:
            self.taste += 1  # batches are cut otherwise from now on
            self.at = None
        elif action < 0.53:
            server.kill()
            if self.at is server:
                self.at = None
        elif action < 0.56:
            self.epoch = 0  # continuity is lost
            self.at = None
        elif action < 0.568:
            self.copy = copy.deepcopy(self.storage)
        elif action < 0.576 and self.copy is not None:
            self.storage, self.copy = self.copy, None
            self.restored += 1
        elif action < 0.58 and self.storage.newest:
            self.storage.lose(self.storage.newest)
        elif action < 0.59:
            self.epoch = self.seen = 0  # the machine was restarted: its pins are gone
            self.at = None
        elif action < 0.594 and self.storage.newest:
            # What storage has now of this number is another's: a copy of another time, or another copy of the machine.
            number = self.storage.newest
            self.storage.lose(number)
            self.lives += 1
            self.storage.begin(self.now, number - 1, f"claim {self.lives}")
        elif action < 0.597 and all(s.alive for s in self.servers):
            server.alive = False
            if self.at is server:
                self.at = None
        else:
            self.work(server)

    def work(self, server: Server) -> None:
        for epoch in self.some(list(server.spool)):
            if server.spool[epoch].open:
                server.upload(epoch)
            else:
                server.look(epoch)

    def some(self, epochs: list[int]) -> Iterator[int]:
        return (epoch for epoch in epochs if self.rng.random() < 0.6)

    def settle(self) -> None:
        """The agent is gone; the servers that are left work on."""
        for _ in range(400):
            self.now += 3
            for server in self.servers:
                if server.alive:
                    self.work(server)


def lived(seed: int) -> World:
    world = World(seed)
    for _ in range(150):
        world.step()
    world.settle()
    for server in world.servers:
        left = {
            epoch: s.files
            for epoch, s in server.spool.items()
            if s.files and epoch in world.storage.claims and not world.is_behind_a_gap(s, epoch)
        }
        assert not server.alive or not left, f"seed {seed}: stranded at {server.name}: {left}"
    return world


@pytest.mark.parametrize("part", range(4))
def test_nothing_acknowledged_is_deleted_unlisted_and_nothing_is_stranded(part: int) -> None:
    worlds = [lived(seed) for seed in range(part * RUNS, (part + 1) * RUNS)]
    assert sum(world.aside for world in worlds), "the model never came to a contradiction"
    assert sum(world.restored for world in worlds), "storage was never restored"
    assert sum(world.foreign for world in worlds), "no number ever came back while files of it were here"


def never(*_: object) -> bool:
    return False


def always(*_: object) -> bool:
    return True


def ours_by_number(view: View) -> bool:
    return view.owner.term.number <= view.taken.number or view.owner.name == view.us


def by_number(world: World, spooled: Spooled, epoch: int) -> bool:
    return spooled.taken.number == world.storage.owner(epoch)[0].number


@pytest.mark.parametrize(
    ("of", "name", "mutant"),
    [
        (World, "is_foreign", never),
        (World, "is_continued", always),
        (World, "has_term", by_number),
        (View, "is_ours", property(ours_by_number)),
    ],
)
def test_a_comparison_of_claims_that_is_left_out_is_noticed(
    of: type, name: str, mutant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of, name, mutant)
    for seed in range(4 * RUNS):
        try:
            lived(seed)
        except AssertionError:
            return
    pytest.fail(f"{name} was not noticed: the model does not exercise that rule")
