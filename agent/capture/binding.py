"""Which disk is which: a disk has a stable id; the kernel's name is a label that the next boot may give to another. Pure.

Input: the disks that are protected (`Known`: id, path, identity at protection), every disk that stands on the machine now (`Standing`), and
what capture is pinned to (`Pinned`). Output: one `Verdict` per protected disk.

    CONTINUE  the disk that capture is pinned to: same device number, same diskseq, same size
    ATTACH    the disk is there, and capture is not pinned to it as it stands: first protection, another kernel name or diskseq,
              another size. What was written to it meanwhile is unknown, so a new epoch begins
    MISSING   it stands nowhere
    REFUSED   another disk stands under its path, or what does is protected under another id, or it cannot be told which disk it is

An identity says what a disk *is*, wherever it stands. Kinds, strongest first; the strongest that a disk has is kept when it is protected:

    wwid       SCSI's or NVMe's world-wide name
    serial     serial number (virtio, USB)
    dm, md     uuid of a device-mapper or RAID device
    loop       backing file: "device:inode path". The inode must agree, and of device and path one: the device number of btrfs, overlay
               and tmpfs is another after each mount, and a file may be renamed
    gpt, mbr   the partition table's disk GUID or signature. It is data: a clone bears the same one, and repartitioning changes it
    by-path    the port that the disk is plugged into
    name       nothing at all is known: the kernel's name and the size

The last four are weak: they can change under a disk that is the same, or stay when it is not.

**Within a boot the note tells.** The kernel gives no diskseq twice within a boot, and when a disk is attached its number and diskseq are
noted (`bindings.Seen`; `Known.noted`). So a disk that capture is pinned to and that is noted for an id is that id's disk: by
induction from the attachment, whatever its table says by now, whoever bears the same, and wherever links go. No path is asked, and what
is noted for one is no other's. Two things void a note: a strong identity that contradicts it (a LUN that was mapped anew behind the same
SCSI device keeps its diskseq), since the disk bears another of its kind, or only others while another disk bears it; and a configuration
that says another identity. A disk that capture is not pinned to has no proof by its note: nobody has watched it since.

**Else the identity decides**, strongest first (a copied partition table is no claim to a disk that is another's by its world-wide name).
Where several bear it, or several ids are bound by it, it proves nothing, nor does that all others of them are found: the one that is left
may be a third. A kernel's name is no evidence, nor is a link that is made of what they all bear. Only a path below /dev/disk/by-path says
which is meant; else the disk is refused, and those that it may be are named. A shared identity is therefore left as soon as it is known
which disk it is (`Verdict.identity`), and that it was shared is remembered: no disk is bound by it while the others are away.

**What is new takes only what is nobody's**, wherever its line stands: not what is another id's, nor what may be.

An identity that only the disk tells, or its driver, is not asked while nothing is told: what is captured goes on, by its note, and what
is not is missing until it answers. So it is where another bears the partition table that is asked for, while what stands under the path
does not answer, and is nobody's that capture is pinned to: that other may be a clone of it. Who takes the dead one away, or says the port,
ends that. A drive without a medium is not silent, but empty: it holds no disk's place.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Mapping, Sequence
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
COPIED: Final = frozenset({Kind.GPT, Kind.MBR})
"""What a clone bears, too."""
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
    is_empty: bool = False
    """A drive without a medium: sysfs says that it has no sectors. (Where it says nothing, that is not known.)"""

    def may_hide(self, kind: Kind) -> bool:
        """Whether it may have an identity of this kind which did not come."""
        is_hidden = (not self.is_read and kind in TOLD) or (not self.is_named and kind in NAMED)
        return is_hidden and not self.is_empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A protected disk. Without `identity` it was never seen, and whatever stands under its path is it."""

    id: str
    path: str
    identity: Identity | None = None
    at: int | None = None
    """Device number of what stands under `path` now; None: nothing does."""
    noted: tuple[int, int] | None = None
    """Device number and diskseq under which it was attached in this boot."""
    is_new: bool = False
    """It was never attached, even if its identity is configured."""
    is_configured: bool = False
    """Its identity stands in the configuration: it is bound by that one, whatever it bears."""
    is_lost: bool = False
    """It was attached, and what was noted of it is lost: its path is called so, and may be another disk by now."""
    seen_shared: frozenset[Identity] = frozenset()
    """What protected disks of this machine, this one or others, were ever seen to bear while another disk bore it, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    slot: int
    dev: int
    diskseq: int
    sectors: int
    id: str = ""
    """Of the disk that it was pinned for; empty: an older agent did, or one that was killed at once."""
    note: bytes = b""
    """The line of that disk, which is pinned beside (`bindings.Bound`); empty: an older agent did, or one that was killed at once."""
    is_damaged: bool = False
    """What is pinned beside it is no id, or an id that another has, too."""


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
    owner: str = ""
    """With REFUSED: the id under which this disk is protected already."""
    shared: frozenset[Identity] = frozenset()
    """Identities of the disk that others of this machine bear, too."""

    @property
    def identity(self) -> Identity | None:
        """What the disk is to be bound by from now on. What is kept is kept, unless others bear it, too (some drivers give all their disks
        one serial number), or have: then, and for a new disk, the strongest that it alone bears, as far as that is known. What another disk
        bore may be away now, and would come back as this one."""
        known, standing = self.known.identity, self.standing
        if standing is None or self.known.is_configured:
            return known
        shared = self.shared | self.known.seen_shared
        own = [found for found in standing.identities if found not in shared and found.kind is not Kind.NAME]
        if any(same(known, found) for found in standing.identities):
            is_left = any(same(known, found) for found in shared) or self._is_known_by_name_alone
            return own[0] if own and is_left and self.is_chosen else known
        if known is not None and standing.may_hide(known.kind):
            return known
        return own[0] if own else standing.identities[0]

    @property
    def _is_known_by_name_alone(self) -> bool:
        """Though it is captured, so it is the disk, and has said all: a kernel's name is no evidence after the next boot."""
        known, disk = self.known.identity, self.standing
        is_whole = disk is not None and disk.is_read and disk.is_named
        return is_whole and self.action is Action.CONTINUE and known is not None and known.kind is Kind.NAME

    @property
    def is_chosen(self) -> bool:
        return self.action in (Action.CONTINUE, Action.ATTACH)

    @property
    def is_bound_by_shared(self) -> bool:
        """Whether it will be refused after the next reboot: it is not configured by its port either."""
        is_by_port = self.known.path.startswith(_BY_PORT)
        return not is_by_port and any(same(self.identity, found) for found in self.shared)


def decide(
    known: Sequence[Known], standing: Sequence[Standing], pinned: Sequence[Pinned] = ()
) -> list[Verdict]:
    """One verdict per protected disk, in their order. No disk is given to two of them."""
    slots = {(pin.dev, pin.diskseq): pin for pin in pinned}
    found = {
        disk.id: _take(disk, proved, slots, "")
        for disk in known
        if (proved := _noted(disk, known, standing, slots))
    }
    owner = {verdict.standing.dev: id_ for id_, verdict in found.items() if verdict.standing}
    for disk in sorted((disk for disk in known if disk.id not in found), key=_rank):
        verdict = _by_identity(disk, known, standing, owner, slots)
        if disk.is_new and verdict.is_chosen:
            verdict = _unless_claimed(verdict, known, found)
        if verdict.is_chosen and verdict.standing is not None:
            owner[verdict.standing.dev] = disk.id
        found[disk.id] = verdict
    return [replace(found[disk.id], shared=_shared(found[disk.id].standing, standing)) for disk in known]


def _rank(known: Known) -> tuple[bool, int]:
    """Those that were attached before choose first, and of them those whose identity is strongest."""
    return known.is_new, len(Kind) if known.identity is None else [*Kind].index(known.identity.kind)


def _noted(
    disk: Known,
    known: Sequence[Known],
    standing: Sequence[Standing],
    slots: Collection[tuple[int, int]],
) -> Standing | None:
    """What the note proves to be the disk."""
    if disk.noted not in slots or any(other.noted == disk.noted for other in known if other is not disk):
        return None
    there = next((one for one in standing if (one.dev, one.diskseq) == disk.noted), None)
    return None if there is None or _contradicts(there, disk.identity, standing) else there


def _contradicts(disk: Standing, kept: Identity | None, standing: Sequence[Standing]) -> bool:
    """Whether what cannot change says that a disk is not the one that `kept` was taken of: another is, or it is another. That a name is
    gone from it says nothing if it is nowhere, or the disk has no such name at all: a driver may cease to tell them."""
    if kept is None or not is_ruled_out(disk, kept):
        return False
    told = [found for found in disk.identities if not found.is_weak]
    is_elsewhere = any(bears(one, kept) for one in standing if one is not disk)
    return (bool(told) and is_elsewhere) or any(found.kind is kept.kind for found in told)


def is_ruled_out(disk: Standing, kept: Identity | None) -> bool:
    """Whether `kept`, which cannot change, is not of this disk. One of that kind that it lost within the boot is not thought of: hence only
    for who asks which of several a disk is, not whether it is the one."""
    return kept is not None and not kept.is_weak and not disk.may_hide(kept.kind) and not bears(disk, kept)


def bears(disk: Standing, kept: Identity | None) -> bool:
    """Whether it is the disk that `kept` was taken of, by that."""
    return any(same(kept, found) for found in disk.identities)


def _shared(disk: Standing | None, standing: Sequence[Standing]) -> frozenset[Identity]:
    borne = {identity for one in standing if disk and one.dev != disk.dev for identity in one.identities}
    return frozenset(borne & {*(disk.identities if disk else ())})


def _unless_claimed(verdict: Verdict, known: Sequence[Known], found: Mapping[str, Verdict]) -> Verdict:
    """A new disk is not given what may be that of another, of which it cannot be told."""
    there = verdict.standing
    for other in known:
        if there and other.id in found and not found[other.id].is_chosen and bears(there, other.identity):
            return _refused(verdict.known, f"{there.path} may be the protected disk {other.id}")
    return verdict


def _refused(known: Known, reason: str) -> Verdict:
    return Verdict(known=known, action=Action.REFUSED, reason=reason)


def _missing(known: Known, reason: str, silent: Standing | None = None) -> Verdict:
    return Verdict(known=known, action=Action.MISSING, reason=reason, standing=silent)


def _by_identity(
    known: Known,
    all_known: Sequence[Known],
    standing: Sequence[Standing],
    owner: Mapping[int, str],
    slots: Mapping[tuple[int, int], Pinned],
) -> Verdict:
    here = next((disk for disk in standing if disk.dev == known.at), None)
    if here is not None and here.dev in owner and (known.identity is None or bears(here, known.identity)):
        id_ = owner[here.dev]
        return replace(_refused(known, f"{here.path} is the protected disk {id_} already"), owner=id_)
    if known.identity is None:
        if here is None:
            return _missing(known, f"nothing stands under {known.path}, and which disk it was is not known")
        if known.is_lost:
            why = f"it was protected before, and what was noted of it is lost: whether {here.path} is that disk cannot be told"
            return _refused(known, why)
        return _take(known, here, slots, "it is protected from now on")
    bearing = [disk for disk in standing if bears(disk, known.identity)]
    free = [disk for disk in bearing if disk.dev not in owner]
    rivals = [other.id for other in all_known if _is_rival(other, known)]
    is_shared = len(bearing) > 1 or bool(rivals)
    is_silent = here is not None and here.dev not in owner and here.may_hide(known.identity.kind)
    if is_silent and known.identity.kind in COPIED and here not in bearing:
        return _missing(known, f"what stands under {known.path} does not say which disk it is", here)
    if here in free and (not is_shared or known.path.startswith(_BY_PORT)):
        return _take(known, here, slots, f"{here.path} was taken away and came back")
    if free and not is_shared:
        return _take(known, free[0], slots, f"it stands under {free[0].path} now, not under {known.path}")
    if free:
        return _refused(known, _untold(known.identity, bearing, [known.id, *rivals]))
    if here is not None and here.is_empty:
        return _missing(
            known, f"{here.path} is empty, and no disk of this machine bears its identity ({known.identity})"
        )
    if is_silent:
        return _missing(known, f"what stands under {known.path} does not say which disk it is", here)
    if here is not None:
        return _refused(
            known,
            f"another disk stands under {known.path}: it is {here.identities[0]}, not {known.identity}",
        )
    if bearing:
        owned = sorted(f"{disk.path} (the protected disk {owner[disk.dev]})" for disk in bearing)
        bear = "bears" if len(owned) == 1 else "bear"
        return _missing(known, f"only {', '.join(owned)} {bear} its identity ({known.identity})")
    return _missing(known, f"no disk of this machine bears its identity ({known.identity})")


def _is_rival(other: Known, known: Known) -> bool:
    """Whether another protected disk is bound by the same. A line that never had a disk takes none from those that had."""
    if other is known or other.identity is None or (other.is_new and not known.is_new):
        return False
    return same(known.identity, other.identity)


def _untold(identity: Identity, bearing: Sequence[Standing], ids: Sequence[str]) -> str:
    paths = ", ".join(sorted(disk.path for disk in bearing))
    who = (
        f"{paths} all bear its identity ({identity})"
        if len(bearing) > 1
        else f"{paths} bears its identity ({identity})"
    )
    too = f", by which the protected disks {', '.join(sorted(ids))} are bound" if len(ids) > 1 else ""
    return f"{who}{too}: which of them it is cannot be told. Detach the others, or configure it by its port ({_BY_PORT}…)"


def _take(known: Known, disk: Standing, slots: Mapping[tuple[int, int], Pinned], why: str) -> Verdict:
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
