"""The decision about each disk, before anything is touched: what stands on the machine, what is captured, and why a disk cannot be.

Blocks for seconds: a disk that does not answer is given up after a deadline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.capture import answer, attach, bindings, disks, identify, layout, pins
from agent.capture.answer import Answer
from agent.capture.binding import WEAK, Action, Identity, Kind, Known, Pinned, Standing, Verdict, decide
from agent.capture.bindings import Bound, Wanted
from agent.capture.disks import Disk
from shared.errors import (
    CaptureRemovedError,
    DiskLeftOutError,
    NotADiskError,
    OtherDiskError,
    UnderstudyError,
)

_READ_TABLES_OF: Final = frozenset({Kind.GPT, Kind.MBR})


@dataclass(frozen=True, slots=True)
class LeftOut:
    id: str
    device: str
    error: UnderstudyError
    retry: bool = True
    """It may become well by itself."""


@dataclass(frozen=True, slots=True)
class Look:
    """The machine at one moment."""

    verdicts: list[Verdict]
    found: dict[int, Disk]
    answers: dict[str, Answer]
    wrong: dict[str, UnderstudyError]
    """By configured path: what is no disk at all."""
    remembered: list[Bound]


def read_pins(pin_dir: Path) -> tuple[list[Pinned], CaptureRemovedError | None]:
    """What is captured, and why nothing is although something is pinned."""
    if not pins.exist(pin_dir):
        return [], None
    try:
        return attach.read_pinned(pin_dir), None
    except CaptureRemovedError as exc:
        return [], exc


def look_at(wanted: Sequence[Wanted], remembered: list[Bound], pin_dir: Path) -> Look:
    pinned, _ = read_pins(pin_dir)
    found = {layout.kernel_dev(disk.major, disk.minor): disk for disk in identify.all_disks()}
    at: dict[str, int] = {}
    wrong: dict[str, UnderstudyError] = {}
    for disk in wanted:
        try:
            there = disks.find_disk(Path(disk.device))
        except NotADiskError as exc:
            wrong[disk.device] = exc
            continue
        except UnderstudyError:
            continue
        at[disk.device] = number = layout.kernel_dev(there.major, there.minor)
        found.setdefault(number, there)
    known: list[Known] = []
    taken = [*(bound.id for bound in remembered), *(disk.id for disk in wanted if disk.id)]
    for disk in wanted:
        before = bindings.known(disk, remembered, at.get(disk.device))
        if before is None:
            dev = at.get(disk.device)
            name = found[dev].name if dev is not None else Path(disk.device).name
            before = bindings.fresh(disk, name, taken, dev)
            taken.append(before.id)
        known.append(before)
    # Every disk that is named is asked whether it answers; the others, only if one is looked for by its partition table.
    asked = {str(found[dev].path) for dev in at.values()}
    bare = {dev: identify.identities(disk) for dev, disk in found.items()}
    if any(disk.identity and disk.identity.kind in _READ_TABLES_OF for disk in known):
        asked |= {str(found[dev].path) for dev, those in bare.items() if those[0].kind in WEAK}
    answers = answer.ask(sorted(asked))
    standing = [identify.standing(disk, _with_table(disk, bare[dev], answers)) for dev, disk in found.items()]
    verdicts = decide(known, standing, pinned)
    late = [v.standing.path for v in verdicts if v.standing is not None and v.standing.path not in answers]
    return Look(verdicts, found, answers | answer.ask(late), wrong, remembered)


def _with_table(disk: Disk, bare: tuple[Identity, ...], answers: dict[str, Answer]) -> tuple[Identity, ...]:
    told = answers.get(str(disk.path))
    return identify.identities(disk, told.head) if told is not None and told.head else bare


def why_not(verdict: Verdict, look: Look) -> UnderstudyError | None:
    """Why this disk cannot be captured now; None if it can."""
    known, what = verdict.known, f"Disk {verdict.known.id} ({verdict.known.path}) is not protected"
    if known.path in look.wrong and verdict.standing is None:
        return look.wrong[known.path]
    if verdict.action is Action.REFUSED:
        return OtherDiskError(what, cause=verdict.reason)
    if verdict.standing is None:
        return DiskLeftOutError(what, cause=verdict.reason)
    if verdict.action is Action.CONTINUE:
        return None  # to leave it out, be it for a moment, would cost two epochs
    if cause := look.answers[verdict.standing.path].cause:
        return DiskLeftOutError(
            what, cause=cause, action="Repair or replace it: it is taken in again when it answers."
        )
    try:
        disks.check(look.found[verdict.standing.dev])
    except UnderstudyError as exc:
        return exc
    return None


def standing_now(device: str) -> Standing:
    """One device with all its identities. Raises UnderstudyError."""
    disk = disks.find_disk(Path(device))
    told = answer.ask([device])[device]
    return identify.standing(disk, identify.identities(disk, told.head))
