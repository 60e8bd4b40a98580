"""The decision about each disk, before anything is touched: what stands on the machine, what is captured, and why a disk cannot be.

Blocks for seconds: a disk that does not answer is given up after a deadline.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from agent.capture import (
    answer,
    attach,
    bindings,
    disks,
    identify,
    layout,
    pinned_lines,
    pins,
    put_back,
    suitable,
)
from agent.capture.answer import Answer
from agent.capture.binding import TOLD, WEAK, Action, Known, Pinned, Standing, Verdict, decide, same
from agent.capture.bindings import Bound, PinnedTo
from agent.capture.disks import SYSFS, UNKNOWN, Attributes, Disk
from agent.capture.suitable import MAX_BLOCK_B
from agent.machine_identity import this_boot
from shared.desired import WantedDisk
from shared.errors import (
    CapturedTwiceError,
    CaptureRemovedError,
    DiskLeftOutError,
    NotADiskError,
    OtherDiskError,
    SharedIdentityError,
    UnderstudyError,
)

LIMIT_S: Final = 3600.0
_NAME_IT: Final = (
    "Was the machine built anew, or is that disk gone for good: name all disks that it has now (machine protect NAME --disk PATH). Else"
    " stop the agent, put disks.json of its state_dir back from a backup, and start it; or find out which disk it is (understudy"
    " machine disks NAME), and name it by its path: machine protect NAME --disk. Where it bears nothing that lasts, or is to keep its id,"
    " say which it is in agent.toml, by a [[disk]] of this id with its device, and start the agent again."
)
_EXCHANGED: Final = Answer(cause="it was exchanged for another disk just now")


@dataclass(frozen=True, slots=True)
class LeftOut:
    id: str
    device: str
    error: UnderstudyError
    needs_trial: bool = False
    """That it stands there, well, is not enough: it is tried out before it is taken in."""


@dataclass(slots=True)
class Refusing:
    """Of a disk that was given up although it answers: too much of it cannot be read (agent/continuity/refusing.py)."""

    error: UnderstudyError
    sample: tuple[int, ...]
    """Sectors that it refused: when it gives most of them it is well, but for some that are bad."""
    wait_s: float = 60.0
    """A bad sector may hold up all of a drive for seconds: the time between two questions doubles, up to `LIMIT_S`."""
    next: float = 0.0
    """When it is to be asked (monotonic)."""

    def is_due(self, now: float) -> bool:
        """Whether it is to be asked now, and then not for a while."""
        if now < self.next:
            return False
        self.next = now + self.wait_s
        self.wait_s = min(2 * self.wait_s, LIMIT_S)
        return True


@dataclass(frozen=True, slots=True)
class Look:
    """The machine at one moment."""

    verdicts: list[Verdict]
    found: dict[int, Disk]
    answers: dict[str, Answer]
    wrong: dict[str, UnderstudyError]
    """By configured path: what is no disk at all."""
    remembered: list[Bound]
    silent: frozenset[int]
    """Device numbers of disks of which sysfs said nothing."""
    without_place: frozenset[str]
    """Ids of configured disks beyond as many as a machine may have."""
    boot: str
    otherwise: Sequence[str] = ()
    """Captured ids of which the file says another disk, and is not gone by (`put_back`)."""


def read_pins(pin_dir: Path) -> tuple[list[Pinned], CaptureRemovedError | None]:
    """What is captured, and why nothing is although something is pinned."""
    if not pins.exist(pin_dir):
        return [], None
    try:
        return attach.read_pinned(pin_dir), None
    except CaptureRemovedError as exc:
        return [], exc


def as_captured(pin_dir: Path, remembered: Sequence[Bound]) -> tuple[WantedDisk, ...]:
    """What is captured, in words that ask for just that: by the lines that are noted for it, else by the kernel's names and what the pins
    say."""
    pinned, _ = read_pins(pin_dir)
    boot = this_boot()
    names = {pin.dev: name for pin in pinned if (name := _kernel_name(pin.dev))}
    whose = _pinned_to(pinned, {dev: f"/dev/{name}" for dev, name in names.items()}, boot)
    noted = {
        (bound.seen.dev, bound.seen.diskseq): bound
        for bound in pinned_lines.with_pins(remembered, whose, boot)
        if bound.seen and bound.seen.boot == boot
    }
    found = []
    for pin in pinned:
        bound = noted.get((pin.dev, pin.diskseq))
        if bound is not None:
            found.append(WantedDisk(bound.device, bound.id))
        elif pin.dev in names:
            found.append(WantedDisk(f"/dev/{names[pin.dev]}", pin.id or None))
    return tuple(found)


def _kernel_name(dev: int) -> str:
    """Empty: nothing stands there."""
    folder = SYSFS / f"dev/block/{dev >> 20}:{dev & 0xFFFFF}"
    return folder.resolve().name.replace("!", "/") if folder.exists() else ""


def _pinned_to(pinned: Sequence[Pinned], paths: Mapping[int, str], boot: str) -> dict[str, PinnedTo]:
    """By id, of those that stand where they were pinned. `paths`: where the kernel has them, by their device numbers."""
    return {
        pin.id: PinnedTo((pin.dev, pin.diskseq), paths[pin.dev], pinned_lines.line_pinned(pin, boot))
        for pin in pinned
        if pin.id and pin.dev in paths
    }


def look_at(
    wanted: Sequence[WantedDisk], remembered: list[Bound], pin_dir: Path, *, everybody: bool = False
) -> Look:
    """`everybody`: other disks are asked, too, whether they bear what only a disk tells and a captured one is known by."""
    pinned, _ = read_pins(pin_dir)
    said = answer.attributes(sorted(folder.name for folder in (SYSFS / "block").iterdir()))

    def attributes_of(folder: Path) -> Attributes:
        return said.get(folder.name, UNKNOWN)  # it appeared just now: the next look knows it

    everything = [_as_pinned(disk, pinned, said) for disk in identify.all_disks(attributes_of=attributes_of)]
    found = {layout.kernel_dev(disk.major, disk.minor): disk for disk in everything}
    at: dict[str, int] = {}
    wrong: dict[str, UnderstudyError] = {}
    for disk in wanted:
        try:
            there = _as_pinned(disks.find_disk(Path(disk.device), attributes_of=attributes_of), pinned, said)
        except NotADiskError as exc:
            wrong[disk.device] = exc
            continue
        except UnderstudyError:
            continue
        at[disk.device] = number = layout.kernel_dev(there.major, there.minor)
        found.setdefault(number, there)
    boot = this_boot()
    slots = {(pin.dev, pin.diskseq) for pin in pinned}
    captured = {dev: (dev, disk.diskseq) for dev, disk in found.items() if (dev, disk.diskseq) in slots}
    # Every disk that is named or captured is asked whether it answers, and who it is; of the others those that may be one that is not known
    # by its note, or may share what one is bound by, or is to be bound by: as a rule no disk that sleeps is woken for this.
    answers = _ask(found[dev] for dev in {*at.values(), *captured})
    watched = {found[dev].device: _standing(found[dev], answers, said) for dev in captured}
    remembered = bindings.with_notes(remembered, watched, boot)
    whose = _pinned_to(pinned, {dev: found[dev].device for dev in captured}, boot)
    in_file, said_there = {bound.id: bound for bound in remembered}, bindings.configured(wanted, remembered)
    if put_back.may_say_otherwise(in_file, whose, boot):
        answers |= _ask(disk for disk in found.values() if str(disk.path) not in answers)
    by_dev = {dev: _standing(disk, answers, said) for dev, disk in found.items()}
    by_which = {(one.dev, one.diskseq): one for one in by_dev.values()}
    remembered = pinned_lines.with_pins(remembered, whose, boot, by_which, said_there)
    is_put_back = put_back.is_whole(in_file, whose, boot, by_which, said_there)
    otherwise = [] if is_put_back else put_back.otherwise(in_file, whose, boot, by_which, said_there)
    under = {path: by_dev[dev] for path, dev in at.items()}
    known = bindings.all_known(wanted, remembered, under, boot, slots)
    standing = [*by_dev.values()]
    if any(_needs_others(disk, standing, () if everybody else captured.values()) for disk in known):
        answers |= _ask(
            disk for disk in found.values() if str(disk.path) not in answers and _may_tell(disk, known)
        )
    standing = [_standing(disk, answers, said) for disk in found.values()]
    verdicts = decide(known, standing, pinned)
    standing_there = [found[v.standing.dev] for v in verdicts if v.standing is not None]
    late = [disk for disk in standing_there if str(disk.path) not in answers]
    silent = frozenset(dev for dev, disk in found.items() if _is_silent(disk, said))
    beyond = _without_place(verdicts, remembered)
    told = answers | _ask(late)
    return Look(verdicts, found, told, wrong, remembered, silent, beyond, boot, otherwise)


def _ask(asked: Iterable[Disk]) -> dict[str, Answer]:
    """By path. Whoever answers there is the disk that was found there, unless its name is another's when he has answered."""
    by_path = {str(disk.path): disk for disk in asked}
    answers = answer.ask(sorted(by_path))
    return {path: told if disks.still_stands(by_path[path]) else _EXCHANGED for path, told in answers.items()}


def _without_place(verdicts: Sequence[Verdict], remembered: Sequence[Bound]) -> frozenset[str]:
    """Captured disks keep their places, those that were captured at any time come next, then the others as they are configured: a disk
    that is away for a moment finds its place again."""
    bound = {disk.id for disk in remembered}
    ranked = sorted(verdicts, key=lambda v: (v.action is not Action.CONTINUE, v.known.id not in bound))
    return frozenset(verdict.known.id for verdict in ranked[layout.MAX_DISKS :])


def _is_silent(disk: Disk, said: Mapping[str, Attributes]) -> bool:
    about = said.get(disk.name.replace("/", "!"), UNKNOWN)
    return about is UNKNOWN or about.diskseq != disk.diskseq


def _as_pinned(disk: Disk, pinned: Sequence[Pinned], said: Mapping[str, Attributes]) -> Disk:
    """A disk whose logical blocks are not known, for it does not answer, has the size that it is captured with if that can be so."""
    if not _is_silent(disk, said):
        return disk
    for pin in pinned:
        rest = disk.sectors - pin.sectors
        if (pin.dev, pin.diskseq) == (
            layout.kernel_dev(disk.major, disk.minor),
            disk.diskseq,
        ) and 0 < rest < MAX_BLOCK_B // layout.SECTOR:
            return replace(disk, sectors=pin.sectors, block_b=MAX_BLOCK_B)
    return disk


def _standing(disk: Disk, answers: dict[str, Answer], said: Mapping[str, Attributes]) -> Standing:
    told = answers.get(str(disk.path), answer.NOTHING)
    names = identify.identities(disk, told)
    return identify.standing(disk, names, is_read=not told.cause, is_named=not _is_silent(disk, said))


def _needs_others(known: Known, standing: Sequence[Standing], proved: Collection[tuple[int, int]]) -> bool:
    """Whether it matters what disks say that are neither named nor captured. `proved`: notes that say enough."""
    if known.identity is None:
        return False
    bearing = [disk for disk in standing if any(same(known.identity, one) for one in disk.identities)]
    return len(bearing) > 1 or (known.identity.kind in TOLD and known.noted not in proved)


def _may_tell(disk: Disk, known: Sequence[Known]) -> bool:
    """Whether a disk that was not asked may have an identity that only it tells and that matters: it has none that is stronger, or a
    protected one is bound by the same."""
    strongest, *_ = identify.identities(disk)
    return strongest.kind in WEAK or any(same(one.identity, strongest) for one in known)


def silence(verdict: Verdict, look: Look) -> str:
    """Why nothing of the disk, which is there, can be read; empty when something can."""
    assert verdict.standing is not None
    cause = look.answers[verdict.standing.path].cause
    if not cause and verdict.standing.dev in look.silent:
        cause = "what sysfs says of it did not come: that waits for the disk"
    return cause


def why_not(
    look: Look, given_up: Collection[str] = (), refusing: Mapping[str, Refusing] = MappingProxyType({})
) -> dict[str, UnderstudyError]:
    """By id, why disks cannot be captured now. `given_up`: ids of captured disks that are left out unless they answer now; `refusing`:
    of such as are left out although they do."""
    found = {id_: refused.error for id_, refused in refusing.items()}
    found |= {v.known.id: error for v in look.verdicts if (error := _why_not_by_itself(v, look, given_up))}
    return found | _why_not_together([v for v in look.verdicts if v.known.id not in found], look)


def _why_not_together(verdicts: Sequence[Verdict], look: Look) -> dict[str, UnderstudyError]:
    """Of two disks one of which lies on the other, as may come to be at any time (a volume is extended onto a protected disk), one that is
    new is left out, and says what of it is in no stream then; of two that are new the upper one, since the lower holds it and more. Who
    was captured at any time, before a reboot or a resize, stays: nobody was told that it would fall out, and what of it lies elsewhere
    would be in no stream any more. Two of those go on both (`captured_twice`)."""
    there = {v.standing.dev: v for v in verdicts if v.standing is not None}
    known = {bound.id for bound in look.remembered}
    found: dict[str, UnderstudyError] = {}
    for upper, lower in disks.lying_on([look.found[dev] for dev in there]):
        pair = [there[layout.kernel_dev(disk.major, disk.minor)] for disk in (upper, lower)]
        out = next((v for v in pair if _is_new(v, known)), None)
        if out is None or any(v.known.id in found for v in pair):
            continue
        protected = {
            look.found[dev].name for dev, v in there.items() if v is not out and v.known.id not in found
        }
        found[out.known.id] = DiskLeftOutError(
            f"Disk {out.known.id} ({out.known.path}) is not protected",
            cause=f"{upper.name} lies on {lower.name}, which is protected, too: its writes would be captured twice",
            action=_missing(upper, lower, protected)
            or "Nothing, if the other one holds all that matters; else take one of them out of the agent's configuration.",
        )
    return found


def _is_new(verdict: Verdict, known: Collection[str]) -> bool:
    return verdict.action is Action.ATTACH and not verdict.is_resized and verdict.known.id not in known


def _missing(upper: Disk, lower: Disk, protected: Collection[str]) -> str:
    """What to do where the disk that is left out has parts that are in no stream; empty where it has none, or none is known."""
    if lower.name not in protected:
        return f"{upper.name} may be a part of {lower.name} only: to protect all of it, take {upper.name} out of the agent's configuration."
    if bare := sorted(disks.bare_below(upper.name, protected)):
        names = ", ".join(bare)
        return (
            f"Parts of {upper.name} lie on {names}, not protected: protect {names} in place of {upper.name}."
        )
    return ""


def bound_by_shared(captured: Iterable[Verdict]) -> dict[str, SharedIdentityError]:
    """By id: disks that go on while they are captured, and that nothing would tell from others after a reboot."""
    return {
        verdict.known.id: SharedIdentityError(
            "A captured disk would be refused after the machine's next reboot",
            cause=f"it is known by {verdict.identity}, which other disks of the machine bear, too",
        )
        for verdict in captured
        if verdict.is_bound_by_shared
    }


def captured_twice(captured: Sequence[Disk]) -> dict[str, CapturedTwiceError]:
    """By id, disks that lie on others which are captured, too. Their writes are in the stream twice, and each disk is right by itself:

    Order. The write to the upper disk and the one to the lower are two writes to capture, each with its place in the stream (also where
    the driver hands on the very bio that it was given: `also_open` in capture.bpf.c). The lower one is submitted before the upper one
    completes. So whatever depends on the upper write stands behind both, and each prefix of the stream holds, on either disk, all
    that what it holds depends on. Of a write in flight a prefix may have one of the two: each disk alone is then as a crash could have
    left it.

    Catch-up reads each disk by itself, with that disk's open writes and bitmap; the audit compares each with its own counts.

    What is not right is both together: the same file system twice, of two moments. Whoever starts the machine in the cloud has two that
    say that they are the same. Hence the warning."""
    found = {}
    for upper, lower in disks.lying_on(captured):
        found[upper.id] = CapturedTwiceError(
            f"What is written to disk {upper.id} is replicated twice",
            cause=f"{upper.name} lies on {lower.name}, which is protected as disk {lower.id}",
            action=_missing(upper, lower, {disk.name for disk in captured if disk is not upper})
            or f"Take {upper.id} out of the agent's configuration: {lower.id} holds it.",
        )
    return found


def _why_not_by_itself(verdict: Verdict, look: Look, given_up: Collection[str]) -> UnderstudyError | None:
    known, what = verdict.known, f"Disk {verdict.known.id} ({verdict.known.path}) is not protected"
    if known.id in look.without_place:
        return DiskLeftOutError(
            what,
            cause=f"a machine may have {layout.MAX_DISKS} disks, and others have these places",
            action="Take a disk that needs no protection out of the agent's configuration, and start it again.",
        )
    if known.path in look.wrong and verdict.standing is None:
        return look.wrong[known.path]
    if verdict.action is Action.REFUSED:
        twice = (
            "Take one of the two out of the agent's configuration, and start it again."
            if verdict.owner
            else ""
        )
        return OtherDiskError(what, cause=verdict.reason, action=_NAME_IT if known.is_lost else twice)
    if verdict.standing is None or verdict.action is Action.MISSING:
        told = look.answers[verdict.standing.path].cause if verdict.standing is not None else ""
        return DiskLeftOutError(what, cause=told or verdict.reason)
    is_captured = verdict.action is Action.CONTINUE
    # To leave a captured disk out for a moment, since it does not answer just now, would cost two epochs.
    if (not is_captured or known.id in given_up) and (cause := silence(verdict, look)):
        return DiskLeftOutError(
            what, cause=cause, action="Repair or replace it: it is taken in again when it answers."
        )
    # What can be written past capture is no protected disk, whoever captured it: an older agent, which did not know, or this one,
    # before it became the path of a multipath device.
    try:
        suitable.check(look.found[verdict.standing.dev], is_captured=is_captured)
    except UnderstudyError as exc:
        return exc
    return None


def standing_now(device: str) -> Standing:
    """One device with all its identities. Raises UnderstudyError."""
    disk = disks.find_disk(Path(device))
    told = answer.ask([device])[device]
    return identify.standing(disk, identify.identities(disk, told), is_read=not told.cause)
