"""Which disk is which: a disk has a stable id; the kernel's name is a label that the next boot may give to another. Pure.

Input: the disks that are protected (`Known`: id, path, identity at protection), every disk that stands on the machine now (`Standing`), and
what capture is pinned to (`Pinned`). Output: one `Verdict` per protected disk.

    CONTINUE  the disk that capture is pinned to: same device number, same diskseq, same size
    ATTACH    the disk is there, and capture is not pinned to it as it stands: first protection, another kernel name or diskseq,
              another size. What was written to it meanwhile is unknown, so a new epoch begins
    MISSING   it stands nowhere
    REFUSED   another disk stands under its path, or it cannot be told which disk it is

An identity says what a disk *is*, wherever it stands. Kinds, strongest first; the strongest that a disk has is kept when it is protected:

    wwid       SCSI's or NVMe's world-wide name
    serial     serial number (virtio, USB)
    dm, md     uuid of a device-mapper or RAID device
    loop       backing file: "device:inode path". The inode must agree, and of device and path one: the device number of btrfs, overlay
               and tmpfs is another after each mount, and a file may be renamed
    gpt, mbr   the partition table's disk GUID or signature. It is data: a clone bears the same one, and repartitioning changes it
    by-path    the port that the disk is plugged into
    name       nothing at all is known: the kernel's name and the size

The last four are weak: they can change under a disk that is the same, or stay when it is not. So as long as capture is pinned to what
stands under the path (the kernel gives no diskseq twice within a boot), a weak identity is not asked; `Verdict.identity` is the new one.
Across a reboot it is all there is. Nor is one asked that only the disk tells, or its driver, while nothing is told: what is captured
goes on with what it was bound by, and what is not is missing until it answers.

**Twins.** Of disks that bear one identity (a clone, attached beside the original) none is chosen by guessing. Evidence is, within a boot,
capture itself: the one that it is pinned to is the disk, whatever stands under the path by now (a link of udev's goes to the twin that was
attached last). Across a reboot a kernel's name is none, nor is a link that is made of what both bear: only a path below /dev/disk/by-path
says which of them is meant. Without evidence the disk is refused.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._!-]{0,127}\Z")
_BY_PORT: Final = "/dev/disk/by-path/"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._!-]")


class Kind(enum.Enum):
    """Strongest first."""

    WWID = "wwid"
    SERIAL = "serial"
    DM = "dm"
    MD = "md"
    LOOP = "loop"
    GPT = "gpt"
    MBR = "mbr"
    BY_PATH = "by-path"
    NAME = "name"


TOLD: Final = frozenset({Kind.LOOP, Kind.GPT, Kind.MBR})
"""What only the disk itself tells."""
NAMED: Final = frozenset({Kind.WWID, Kind.SERIAL, Kind.DM, Kind.MD, Kind.LOOP})
"""What sysfs says, for which the driver may ask the disk."""
WEAK: Final = frozenset({Kind.GPT, Kind.MBR, Kind.BY_PATH, Kind.NAME})


@dataclass(frozen=True, slots=True)
class Identity:
    """Written as "kind:value"."""

    kind: Kind
    value: str

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.value}"

    @staticmethod
    def parse(text: str) -> Identity:
        """ValueError for what is none."""
        kind, colon, value = text.partition(":")
        if not colon or not value:
            raise ValueError(f"{text!r} is not kind:value")
        return Identity(Kind(kind), value)

    @property
    def is_weak(self) -> bool:
        return self.kind in WEAK


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A whole disk as it stands now."""

    path: str
    """A path by which it can be opened."""
    name: str
    dev: int
    """Device number, as the kernel keeps it."""
    diskseq: int
    sectors: int
    identities: tuple[Identity, ...]
    """Every one that it has and that could be read, strongest first."""
    is_read: bool = True
    """Whether it answered when it was asked who it is: else it may have more identities, of the kinds that it tells itself."""
    is_named: bool = True
    """Whether sysfs said its names: else it may have more identities, of the kinds that it says."""

    def may_hide(self, kind: Kind) -> bool:
        """Whether it may have an identity of this kind which did not come."""
        return (not self.is_read and kind in TOLD) or (not self.is_named and kind in NAMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A protected disk. Without `identity` it was never seen, and whatever stands under its path is it."""

    id: str
    path: str
    identity: Identity | None = None
    at: int | None = None
    """Device number of what stands under `path` now; None: nothing does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    slot: int
    dev: int
    diskseq: int
    sectors: int


class Action(enum.Enum):
    CONTINUE = "continue"
    ATTACH = "attach"
    MISSING = "missing"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    known: Known
    action: Action
    standing: Standing | None = None
    """With CONTINUE and ATTACH: the disk; with MISSING: what does not say whether it is."""
    slot: int | None = None
    """With CONTINUE: where capture has it."""
    is_resized: bool = False
    """With ATTACH: capture is pinned to this disk, with another size."""
    reason: str = ""
    shared: frozenset[Identity] = frozenset()
    """Identities of the disk that others of this machine bear, too."""

    @property
    def identity(self) -> Identity | None:
        """What the disk is to be bound by from now on: the strongest that it alone bears, as far as that is known (some drivers give
        all their disks one serial number)."""
        known, standing = self.known.identity, self.standing
        if standing is None or any(same(known, found) for found in standing.identities):
            return known
        if known is not None and standing.may_hide(known.kind):
            return known
        own = [
            found for found in standing.identities if found not in self.shared and found.kind is not Kind.NAME
        ]
        return own[0] if own else standing.identities[0]


def decide(
    known: Sequence[Known], standing: Sequence[Standing], pinned: Sequence[Pinned] = ()
) -> list[Verdict]:
    """One verdict per protected disk, in their order. No disk is given to two of them."""
    slots = {(pin.dev, pin.diskseq): pin for pin in pinned}
    taken: dict[int, str] = {}
    found: dict[str, Verdict] = {}
    pinned_there = {
        disk.at: disk.id
        for disk in known
        for one in standing
        if disk.at == one.dev and (one.dev, one.diskseq) in slots
    }
    # Disks that are bound choose first: one that was never seen takes only what is nobody's.
    for disk in sorted(known, key=lambda disk: disk.identity is None):
        # What capture is pinned to under another's path is that other's.
        free = [one for one in standing if pinned_there.get(one.dev, disk.id) == disk.id]
        is_one_of_twins = any(disk.identity == other.identity and other is not disk for other in known)
        verdict = _decide(disk, standing, free, slots, is_one_of_twins=is_one_of_twins)
        if verdict.standing is not None and verdict.action is not Action.MISSING:
            owner = taken.setdefault(verdict.standing.dev, disk.id)
            if owner != disk.id:
                reason = f"{verdict.standing.path} is the protected disk {owner} already"
                verdict = Verdict(known=disk, action=Action.REFUSED, reason=reason)
        found[disk.id] = replace(verdict, shared=_shared(verdict.standing, standing))
    return [found[disk.id] for disk in known]


def _shared(disk: Standing | None, standing: Sequence[Standing]) -> frozenset[Identity]:
    borne = {identity for one in standing if disk and one.dev != disk.dev for identity in one.identities}
    return frozenset(borne & {*(disk.identities if disk else ())})


def _decide(
    known: Known,
    standing: Sequence[Standing],
    free: Sequence[Standing],
    slots: dict[tuple[int, int], Pinned],
    *,
    is_one_of_twins: bool,
) -> Verdict:
    here = next((disk for disk in standing if disk.dev == known.at), None)
    if known.identity is None:
        if here is None:
            reason = f"nothing stands under {known.path}, and which disk it was is not known"
            return Verdict(known=known, action=Action.MISSING, reason=reason)
        return _take(known, here, slots, "it is protected from now on")
    matching = [disk for disk in free if any(same(known.identity, found) for found in disk.identities)]
    captured = [disk for disk in matching if (disk.dev, disk.diskseq) in slots]
    is_pinned = here is not None and (here.dev, here.diskseq) in slots
    is_silent = here is not None and here.may_hide(known.identity.kind)
    is_here = here in matching and (is_pinned or len(matching) == 1 or known.path.startswith(_BY_PORT))
    if here is not None and is_pinned and (is_here or known.identity.is_weak or is_silent):
        return _take(known, here, slots, "")
    if len(captured) == 1 and not is_one_of_twins:
        return _take(known, captured[0], slots, "")
    if here is not None and is_here:
        return _take(known, here, slots, f"{here.path} was taken away and came back")
    if len(matching) == 1:
        (there,) = matching
        return _take(known, there, slots, f"it stands under {there.path} now, not under {known.path}")
    if matching:
        names = ", ".join(sorted(disk.path for disk in matching))
        reason = (
            f"{names} all bear its identity ({known.identity}): which of them it is cannot be told. Detach the others, or configure it by "
            f"its port ({_BY_PORT}…)"
        )
        return Verdict(known=known, action=Action.REFUSED, reason=reason)
    if here is not None and not here.sectors:
        reason = f"{here.path} is empty, and no disk of this machine bears its identity ({known.identity})"
        return Verdict(known=known, action=Action.MISSING, reason=reason)
    if here is not None and is_silent:
        reason = f"what stands under {known.path} does not say which disk it is"
        return Verdict(known=known, action=Action.MISSING, standing=here, reason=reason)
    if here is not None:
        other = here.identities[0]
        reason = f"another disk stands under {known.path}: it is {other}, not {known.identity}"
        return Verdict(known=known, action=Action.REFUSED, reason=reason)
    return Verdict(
        known=known,
        action=Action.MISSING,
        reason=f"no disk of this machine bears its identity ({known.identity})",
    )


def _take(known: Known, disk: Standing, slots: dict[tuple[int, int], Pinned], why: str) -> Verdict:
    pin = slots.get((disk.dev, disk.diskseq))
    if pin is not None and pin.sectors == disk.sectors:
        return Verdict(known=known, action=Action.CONTINUE, standing=disk, slot=pin.slot)
    if pin is not None:
        why = f"it was resized: {disk.sectors} sectors now, not {pin.sectors}"
    return Verdict(known=known, action=Action.ATTACH, standing=disk, is_resized=pin is not None, reason=why)


def same(kept: Identity | None, found: Identity) -> bool:
    """Whether a disk with the identity `found` is the one that `kept` was taken of."""
    if kept is None or kept.kind is not found.kind:
        return False
    if kept.kind is not Kind.LOOP:
        return kept.value == found.value
    then, now = _loop_file(kept.value), _loop_file(found.value)
    return then[1] == now[1] and (then[0] == now[0] or then[2] == now[2])


def _loop_file(value: str) -> tuple[str, str, str]:
    """(device, inode, path) of a loop identity."""
    number, _, path = value.partition(" ")
    device, _, inode = number.rpartition(":")
    return device, inode, path


def new_id(name: str, taken: Collection[str]) -> str:
    """An id for a disk that is protected under this kernel name: the name, or with a number behind it if a disk ever had that. Safe
    in blob and file names."""
    base = _UNSAFE.sub("-", name.replace("/", "!")).lstrip(".-_!") or "disk"
    base = base[:120]
    number = 1
    made = base
    while made in taken:
        number += 1
        made = f"{base}-{number}"
    return made


def is_id(text: str) -> bool:
    """Whether it can stand in blob and file names."""
    return _ID.match(text) is not None
