"""Which disks of a machine are protected, which could be, and which an operator means: by what its agent says, and what is known of the
machine. Pure.

A disk that its agent ever captured has a stable id. A path is a label, and evidence only when an operator says it: it means the disk that
stands there then, as the agent says; where none is told of, the one that was named so. From then on the disk is meant by its id, or, while
it has none, by that path and what the disk bore there. What was said before its agent ever reported is settled so as soon as it says what
stands where (`Offer.settled`), before anything is judged by it: what is judged, kept and told are the same lines (settling.py).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple, Self

import msgspec

from config_server.rules.clock import rfc3339
from config_server.rules.machine import Machine
from config_server.rules.wishes import named, once, same, with_ids, without, word_of
from shared.api.protection import DiskCandidate
from shared.batch import SECTOR
from shared.daemon.limits import check_page_blob_target
from shared.desired import Verb, WantedDisk
from shared.errors import RequestError
from shared.status import AgentDisk, AgentReport, AvailableDisk, BoundDisk

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._!-]{0,127}\Z")
"""As shared/log/names.py has it: what an agent reports is any word."""
_NAMED: Final = 20
_MOST: Final = 256
"""As many disks as an operator may name: what agents say is anything."""
_LASTING: Final = ("wwid:", "serial:", "dm:", "md:")
"""Kinds of identities that a disk keeps whatever is written to it (agent/capture/binding.py)."""
_LINKS: Final = "/dev/disk/"
"""Below it are paths that lead to the same disk, or port, after each boot."""
_FAILED: Final = "failed"
"""The state of an agent that captures nothing although it is to, or ends because it must."""


class Offer(NamedTuple):
    """By path, in the order in which its agent names them."""

    captured: dict[str, AgentDisk]
    available: dict[str, AvailableDisk]
    bound: tuple[WantedDisk, ...]
    """What it is to capture, as it says."""
    is_whole: bool
    """Whether that is all of it."""
    goes_by: tuple[WantedDisk, ...] | None
    """What it protects, by its wish or its configuration, whether that is there or not. None: it could not say, as one whose state_dir is
    not there, or that is older and ends."""
    links: dict[str, str]
    """Other names of what is available: to which path they lead."""
    is_known: bool
    """Whether it ever said anything."""
    places: dict[str, str]
    """By stable id: where the disk stands."""
    bearing: dict[str, list[str]]
    """By what they bear: which of those that are available."""

    @classmethod
    def of(cls, report: AgentReport | None) -> Self:
        if report is None:
            return cls(
                {}, {}, (), is_whole=False, goes_by=(), links={}, is_known=False, places={}, bearing={}
            )
        captured = {disk.device or f"/dev/{disk.name}": disk for disk in report.disks}
        available = {disk.device: disk for disk in report.available}
        bound = tuple(filter(None, map(_bound, report.bound[:_MOST])))
        if not bound:  # an agent before 2026-11-27
            bound = tuple(
                WantedDisk(device, disk.name if _ID.match(disk.name) else None)
                for device, disk in itertools.islice(captured.items(), _MOST)
                if disk.mode
            )
        links = {link: disk.device for disk in report.available for link in disk.links}
        bearing: dict[str, list[str]] = {}
        for disk in available.values():
            bearing.setdefault(disk.identity, []).append(disk.device)
        made = cls(
            captured,
            available,
            bound,
            is_whole=bool(report.bound),
            goes_by=_goes_by(report, bound),
            links=links,
            is_known=True,
            places={},
            bearing=bearing,
        )
        for device in (*available, *captured):
            if id_ := made._id(device):
                made.places.setdefault(id_, device)
        return made

    def meant(self, what: str, words: Sequence[str], known: Sequence[WantedDisk]) -> tuple[WantedDisk, ...]:
        """The disks that an operator names by these paths and ids. `known`: the disks of the machine, away or not. Raises RequestError for
        two names of one disk, and for an id that is nobody's."""
        labels = {disk.device: disk for disk in known}
        is_said_again = len(words) == len(known) and {*words} == {*labels}
        if is_said_again and not any(self._is_anothers(word, known) for word in words):
            return tuple(known)  # the same words again: whoever has which name today, nothing is to change
        found = [self._meant(what, word, known, labels) for word in words]
        for (word, disk), (again, other) in itertools.combinations(zip(words, found, strict=True), 2):
            if same(disk, other):
                raise RequestError(
                    what, cause=f"it names one disk twice, by two names: {word}, {again}", action=_LOOK
                )
            if disk.device == other.device and disk.id is None and other.id is None:
                cause = f"{disk.device} is what another disk was called, which its agent has not found yet"
                raise RequestError(what, cause=cause, action=f"Leave {word} or {again} out until it has.")
        places = {disk.id or disk.device: place for place, disk in enumerate(known)}
        # In their order, so that who names the same disks changes nothing.
        return tuple(sorted(found, key=lambda disk: places.get(disk.id or disk.device, len(known))))

    def _meant(
        self, what: str, word: str, known: Sequence[WantedDisk], labels: dict[str, WantedDisk]
    ) -> WantedDisk:
        by_id = {disk.id: disk for disk in known if disk.id}
        if not word.startswith("/"):
            borne = [self.available[device] for device in self.bearing.get(word, ())]
            for disk in known:  # one whose id is not known yet
                if disk.id is None and disk.identity == word:
                    return msgspec.structs.replace(disk, device=borne[0].device) if len(borne) == 1 else disk
            word = borne[0].id or word if len(borne) == 1 else word
            if word in by_id:
                return by_id[word]
            if place := self._place(word):
                return WantedDisk(place, word)
            if len(borne) == 1:
                return WantedDisk(borne[0].device, identity=self._proof(borne[0].device))
            cause = f"{word} is the id of none of its disks; one that was never protected is named by its path, /dev/NAME"
            raise RequestError(what, cause=cause, action=_LOOK)
        if id_ := self._id(word):
            before = by_id.get(id_, WantedDisk(word, id_))
            is_kept = self._is_link(before.device) and not self._is_link(word)
            return before if is_kept else msgspec.structs.replace(before, device=word)
        if not self._is_new(word, labels):
            return labels.get(word, WantedDisk(word))
        new, former = WantedDisk(word, identity=self._proof(word)), labels.get(word)
        if former is not None and former.id and new.identity is None:
            raise RequestError(
                what,
                cause=f"disk {former.id} was named {word}, another disk stands there now, and it bears nothing lasting by which its agent"
                " could tell the two apart",
                action=f"To keep {former.id}, name it by that. To take the new one, name it by another path, a link of"
                " /dev/disk/by-path say, with --force (`force` in the API).",
            )
        return new

    def _is_anothers(self, device: str, known: Sequence[WantedDisk]) -> bool:
        """Whether a disk stands there that could be protected, and is none of those that are known."""
        there, id_ = self._there_at(device), self._id(device)
        if not id_ and (there is None or there.why_not):
            return False
        return bool(without([self._as_wanted(device, id_)], known))

    def _is_new(self, device: str, labels: dict[str, WantedDisk]) -> bool:
        """Whether a disk stands there that could be protected, and never was."""
        there = self._there_at(device)
        if there is None or there.why_not or self._id(device):
            return False
        return bool(there.identity) or device not in labels

    def _is_link(self, path: str) -> bool:
        return path.startswith(_LINKS) or path in self.links

    def _there_at(self, path: str) -> AvailableDisk | None:
        return self.available.get(self.links.get(path, path))

    def _proof(self, device: str) -> str | None:
        """What the disk bears, and no other, for as long as it lasts: so it is the one that is meant also where names change before its
        agent hears of it."""
        there = self._there_at(device)
        identity = there.identity if there is not None else ""
        is_alone = len(self.bearing.get(identity, ())) == 1
        return identity if identity.startswith(_LASTING) and is_alone else None

    def settled(self, disks: Sequence[WantedDisk]) -> tuple[WantedDisk, ...]:
        """Each disk once, by its id. Who was named by a path is what stands there; else the disk that the agent has by that path; one that
        never was protected is known by what it bears, if that lasts."""
        said = {disk.id for disk in disks}
        return once(self._settled(disk, said) for disk in disks)

    def _settled(self, disk: WantedDisk, said: Collection[str | None]) -> WantedDisk:
        id_ = ""
        if disk.id is None and disk.identity is not None:
            bearing = self.bearing.get(disk.identity, ())
            id_ = self._id(bearing[0]) if len(bearing) == 1 else ""
        elif disk.id is None:
            id_ = self._id(disk.device)
            if not id_ and self._is_new(disk.device, {}) and (proof := self._proof(disk.device)):
                return msgspec.structs.replace(disk, identity=proof)
        if disk.id is None and not id_ and self.available:
            called = (one.id for one in self.bound if one.id not in said and same(one, disk))
            id_ = next(filter(None, called), "")
        return msgspec.structs.replace(disk, id=id_) if id_ else disk

    def is_unsettled(self, disks: Sequence[WantedDisk]) -> bool:
        """Whether it may be said later which disks some of these are: the agent has not looked yet which there are, and what leads to them.
        To tell it a path meanwhile would be to tell another thing than what was judged."""
        return not self.available and any(disk.id is None for disk in disks)

    def unsaid(
        self, known: Sequence[WantedDisk], dropped: Sequence[WantedDisk]
    ) -> tuple[WantedDisk, ...] | None:
        """What the agent protects beside the disks that are known, and those that shall go; None: it does not say what it protects."""
        if self.goes_by is None:
            return None
        said = self.settled(known), self.settled(dropped)
        return without(self.settled(without(self.goes_by, *said)), *said)

    def shown(self, disk: WantedDisk) -> str:
        """In words, so that nobody takes another for it."""
        place = self._place(disk.id)
        if place not in ("", disk.device):
            return f"disk {disk.id}, which stands at {place} now"
        if disk.id and not place and (self._id(disk.device) or self._is_new(disk.device, {})):
            return f"disk {disk.id}, which was {disk.device} and is away"
        return named(disk)

    def check(self, what: str, disks: Sequence[WantedDisk], known: Sequence[WantedDisk]) -> None:
        """Raises RequestError for disks that the agent neither captures nor offers, and that are not `known`: these are no mistyped paths,
        and may be away just now. One that has never reported names none."""
        if not self.is_known:
            return
        for disk in disks:
            device = self._place(disk.id) or disk.device
            if device in self.captured or any(same(disk, one) for one in known):
                continue
            found = self._there_at(device)
            if found is not None and not found.why_not:
                continue
            if found is not None:
                raise RequestError(
                    what,
                    cause=f"{device} cannot be protected: {found.why_not}",
                    action="Mend that, or leave it out. To say it all the same: --force (`force` in the API).",
                )
            raise RequestError(what, cause=f"{device} is none of its disks, {self._there()}", action=_LOOK)

    def _there(self) -> str:
        names = [*self.captured, *(name for name in self.available if name not in self.captured)]
        if not names:
            return "of which its agent names none"
        shown = ", ".join(names[:_NAMED])
        return f"as its agent names them: {shown}" + (" and others" if len(names) > _NAMED else "")

    def check_sizes(self, disks: Sequence[WantedDisk]) -> None:
        """Raises DiskTooLargeError for a disk that no page blob can hold."""
        for disk in disks:
            device = self._place(disk.id) or disk.device
            found = self.captured.get(device) or self._there_at(device)
            if found is not None:
                check_page_blob_target(device.removeprefix("/dev/"), found.sectors * SECTOR)

    def _id(self, device: str) -> str:
        for found in (self.captured.get(device), self._there_at(device)):
            id_ = "" if found is None else found.name if isinstance(found, AgentDisk) else found.id
            if _ID.match(id_):
                return id_
        return ""

    def _place(self, id_: str | None) -> str:
        """Where the disk stands, as its agent says; empty where it does not."""
        return self.places.get(id_ or "", "")

    def _is_taken(self, device: str) -> bool:
        return device in self.captured and bool(self.captured[device].mode)

    def candidates(self, machine: Machine) -> list[DiskCandidate]:
        """Those that its agent names, and those that are wanted, or were until protection ended, and that it does not."""
        named: dict[str, WantedDisk] = {}
        """By id, or path where it has none."""
        for device in (*self.captured, *self.available):
            id_ = self._id(device)
            named.setdefault(id_ or device, self._as_wanted(device, id_))
        is_wanted, until = not machine.ended, _ended(machine)
        found_as = _Named.of(named)
        places = [(disk, found_as.place(disk)) for disk in (machine.disks if is_wanted or until else ())]
        known = {place: disk for disk, place in places}
        found = [
            self._candidate(disk, known[key], is_wanted=is_wanted, until=until)
            if key in known
            else self._candidate(disk)
            for key, disk in named.items()
        ]
        why_away = "its agent does not name it" if self.is_known else "its agent has never reported"
        return found + [
            DiskCandidate(
                device=disk.device,
                size_b=0,
                identity=disk.identity or "",
                id=disk.id or "",
                captured=False,
                wanted=is_wanted,
                why_not=why_away,
                name=word_of(disk),
                until=until,
            )
            for disk, place in places
            if not place
        ]

    def _as_wanted(self, device: str, id_: str) -> WantedDisk:
        there = self._there_at(device) or self.available.get(self._place(id_))
        return WantedDisk(device, id_ or None, (there.identity or None) if there is not None else None)

    def _candidate(
        self,
        disk: WantedDisk,
        known: WantedDisk | None = None,
        *,
        is_wanted: bool = False,
        until: str = "",
    ) -> DiskCandidate:
        """`known`: which of the machine's disks it is, if it is one."""
        device = disk.device
        captured, is_taken = self.captured.get(device), self._is_taken(device)
        available = self.available.get(device) or self.available.get(self._place(disk.id))
        proof = self._proof(available.device) if available is not None else None
        return DiskCandidate(
            device=device,
            size_b=(captured or available or AvailableDisk(device=device)).sectors * SECTOR,
            identity=disk.identity or "",
            id=disk.id or "",
            captured=is_taken,
            wanted=is_wanted,
            why_not=available.why_not if available is not None and not is_taken else "",
            name=disk.id or (known.id if known is not None else None) or proof or device,
            until=until,
        )


def _ended(machine: Machine) -> str:
    """When its protection ended; empty where it has not, or nobody knows."""
    is_stopped = machine.ended and machine.wish is not None
    return rfc3339(machine.wish_ns) if is_stopped else ""


class _Named(NamedTuple):
    """Those that an agent names, however many: found as `wishes.same` has it, the first one first."""

    order: dict[str, int]
    by_device: dict[str, str]
    bare: dict[str, str]
    """Of these, those that have nothing else."""
    by_identity: dict[str, str]
    without_id: dict[str, str]
    """Of these, those of which no id is known."""

    @classmethod
    def of(cls, named: Mapping[str, WantedDisk]) -> Self:
        made = cls({key: place for place, key in enumerate(named)}, {}, {}, {}, {})
        for key, disk in named.items():
            made.by_device.setdefault(disk.device, key)
            if disk.id is None and disk.identity is None:
                made.bare.setdefault(disk.device, key)
            if disk.identity is not None:
                made.by_identity.setdefault(disk.identity, key)
                if disk.id is None:
                    made.without_id.setdefault(disk.identity, key)
        return made

    def place(self, disk: WantedDisk) -> str:
        """Which of them the disk is; one that has its path alone only if no other has its id. Empty: none."""
        if disk.id is not None and disk.id in self.order:
            return disk.id
        is_bare = disk.id is None and disk.identity is None
        found = [(self.by_device if is_bare else self.bare).get(disk.device)]
        if disk.identity is not None:
            found.append((self.by_identity if disk.id is None else self.without_id).get(disk.identity))
        return min((key for key in found if key is not None), key=self.order.__getitem__, default="")


def _bound(disk: BoundDisk) -> WantedDisk | None:
    """None for what is none: an agent says anything. One that was never there has no id yet."""
    if (disk.id and not _ID.match(disk.id)) or not disk.device or not disk.device.isprintable():
        return None
    return WantedDisk(disk.device, disk.id or None, disk.identity or None)


def _goes_by(report: AgentReport, bound: tuple[WantedDisk, ...]) -> tuple[WantedDisk, ...] | None:
    wish = report.wish
    if wish is not None and wish.verb is Verb.STOP:
        return ()
    if wish is not None and wish.verb is Verb.PROTECT and wish.disks:
        return with_ids(wish.disks, bound)
    return None if report.state == _FAILED and not bound else bound


_LOOK: Final = (
    "See `understudy machine disks NAME`. A path that its agent does not name, or a disk that is not there yet, is taken with --force"
    " (`force` in the API)."
)
