"""Puts capture on the disks that the configuration names, as far as they are there and well. One bad disk never costs the others.

Input: the configuration, the bindings (`bindings`), what stands on the machine (`identify`), what is pinned (`attach.read_pinned`).
Each disk is judged by itself (`binding.decide`, `disks.check`, `answer`); those that cannot be captured now are *left out*, with cause and
action, and looked for again. Blocks for seconds: a disk that does not answer is given up after a deadline.

The machine's stream is over the disks that are captured, so whenever those change a new epoch begins: `before_change` is called first, and
makes that durable. A kill behind it leaves a capture that nobody takes for the old one. What is pinned and not whole is no capture: it is
removed, and everything is attached afresh.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.capture import answer, attach, bindings, disks, identify, layout, members, pins
from agent.capture.answer import Answer
from agent.capture.binding import WEAK, Action, Identity, Kind, Known, Pinned, Standing, Verdict, decide
from agent.capture.bindings import Bound, Wanted
from agent.capture.disks import Disk
from agent.capture.maps import Capture
from shared import logging
from shared.errors import (
    BpfError,
    CaptureRemovedError,
    CaptureUnavailableError,
    DiskLeftOutError,
    NotADiskError,
    NoUsableDiskError,
    OtherDiskError,
    StateFileError,
    UnderstudyError,
    UsageError,
)

_log = logging.get()

RETRY_S: Final = 10.0
"""How often disks that are left out are looked for."""
_TRIED_AT_START: Final = (
    "`python -m agent preflight` with its path says more. It is tried again when the agent starts."
)
_READ_TABLES_OF: Final = frozenset({Kind.GPT, Kind.MBR})


class Change(enum.Enum):
    """What became of the set of captured disks."""

    NONE = "none"
    RESIZED = "resized"
    LEFT = "left"
    JOINED = "joined"
    RETURNED = "returned"
    """A disk that was captured was taken away and came back: what was written to it meanwhile is unknown."""
    FRESH = "fresh"
    """Nothing was captured before."""
    REMOVED = "removed"
    """Somebody removed a part of what captured: what was written since then is unknown."""


BeforeChange = Callable[[npt.NDArray[np.uint64], Change], None]


@dataclass(frozen=True, slots=True)
class LeftOut:
    id: str
    device: str
    error: UnderstudyError
    retry: bool = True
    """It may become well by itself."""


@dataclass(frozen=True, slots=True)
class _Look:
    """The machine at one moment."""

    verdicts: list[Verdict]
    found: dict[int, Disk]
    answers: dict[str, Answer]
    wrong: dict[str, UnderstudyError]
    """By configured path: what is no disk at all."""
    remembered: list[Bound]


def protect(
    wanted: Sequence[Wanted],
    state_dir: Path,
    pin_dir: Path,
    ring_b: int,
    before_change: BeforeChange,
    *,
    object_path: Path = attach.OBJECT,
) -> tuple[Capture, list[LeftOut]]:
    """The capture of all disks that can be captured now, and those that cannot. Raises UnderstudyError when none can."""
    if len(wanted) > layout.MAX_DISKS:  # before anything of those that are captured is touched
        raise UsageError(
            f"{len(wanted)} disks cannot be protected",
            cause=f"a machine may have {layout.MAX_DISKS}",
            action="Choose fewer disks.",
        )
    attach.check_machine(object_path)
    pins.ensure_bpffs(pin_dir)
    pinned, removed = _pinned(pin_dir)
    if removed is not None:
        _log.error("capture is not whole: it is attached afresh", **removed.as_dict())
    remembered = bindings.read(state_dir)
    if remembered is None and pinned:
        _log.warning(
            "which disk is which is not known any more: they are bound to what stands under their paths",
            path=str(state_dir / bindings.NAME),
        )
    look = _look(wanted, remembered or [], pin_dir)
    chosen: list[tuple[Verdict, Disk]] = []
    left_out: list[LeftOut] = []
    for verdict in look.verdicts:
        error = _why_not(verdict, look)
        if error is not None:
            left_out.append(LeftOut(verdict.known.id, verdict.known.path, error))
            continue
        assert verdict.standing is not None
        if cause := look.answers[verdict.standing.path].cause:
            # Capture needs nothing of it to go on, and its writes are seen. What catch-up cannot read shows there.
            _log.warning(
                "a captured disk cannot be read; it stays captured", id=verdict.known.id, cause=cause
            )
        disk = replace(look.found[verdict.standing.dev], id=verdict.known.id)
        if Path(verdict.known.path).resolve() == disk.path.resolve():
            disk = replace(disk, path=Path(verdict.known.path))
        chosen.append((verdict, disk))
    if not chosen:
        raise NoUsableDiskError(
            "None of the protected disks can be captured",
            cause="; ".join(f"{left.id}: {left.error.cause or left.error.what}" for left in left_out),
        )
    disks.check_set([disk for _, disk in chosen], examine=False)
    unbound = _remember(state_dir, look, remembered, [verdict for verdict, _ in chosen])
    left_out += unbound
    chosen = [(v, disk) for v, disk in chosen if v.known.id not in {left.id for left in unbound}]
    if pinned:
        slots = [pin.slot for pin in pinned]
        unseen = _bring_about(chosen, slots, pin_dir, ring_b, before_change, object_path)
        _calibrate_again(chosen, look, pin_dir, object_path)
    else:
        change = Change.REMOVED if removed else Change.FRESH
        unseen = _attach_all(chosen, pin_dir, ring_b, before_change, change, object_path)
    left_out += unseen
    captured = [disk for _, disk in chosen if disk.id not in {left.id for left in unseen}]
    is_fresh = not pinned and removed is None
    return Capture.attached(pin_dir, captured, fresh=is_fresh, object_path=object_path), left_out


def _bring_about(
    chosen: Sequence[tuple[Verdict, Disk]],
    pinned: Sequence[int],
    pin_dir: Path,
    ring_b: int,
    before_change: BeforeChange,
    object_path: Path,
) -> list[LeftOut]:
    """Makes what is pinned the chosen disks: those that go on are not touched. Returns those whose writes the programs do not see."""
    new = [(verdict, disk) for verdict, disk in chosen if verdict.action is Action.ATTACH]
    staying = {verdict.slot for verdict, _ in chosen if verdict.slot is not None}
    stale = [slot for slot in pinned if slot not in staying]
    members.tidy(pin_dir)
    if not new and not stale:
        return []
    if not staying or len(new) > members.free_slots(pin_dir):
        change = _change([verdict for verdict, _ in new], stale)
        return _attach_all(chosen, pin_dir, ring_b, before_change, change, object_path)
    # What can fail comes first: a disk that cannot join must not end the epoch of the others, at every start anew.
    ready: dict[int, tuple[Verdict, Disk]] = {}
    unseen = []
    for verdict, disk in new:
        try:
            ready[members.prepare(pin_dir, disk, object_path)] = verdict, disk
        except (CaptureUnavailableError, BpfError, OSError) as exc:
            unseen.append(_unseen(verdict, exc))
    if not ready and not stale:
        return unseen
    before_change(attach.state_words(pin_dir), _change([verdict for verdict, _ in ready.values()], stale))
    # First those that go: one that was resized, or whose number another got, is one and the other.
    members.leave(pin_dir, stale)
    members.enter(pin_dir, {slot: disk for slot, (_, disk) in ready.items()})
    members.put_in_order(pin_dir, [layout.kernel_dev(disk.major, disk.minor) for _, disk in chosen])
    return unseen


def _unseen(verdict: Verdict, exc: CaptureUnavailableError | BpfError | OSError) -> LeftOut:
    """Only a disk that went away is looked for again: trying the others every few seconds would end the session each time."""
    known = verdict.known
    if isinstance(exc, CaptureUnavailableError):
        return LeftOut(known.id, known.path, exc, retry=False)
    cause = f"{exc.what}: {exc.cause}" if isinstance(exc, BpfError) else str(exc)
    action = "Repair that, then restart the agent: until then it is not tried again."
    error = DiskLeftOutError(f"Disk {known.id} ({known.path}) is not protected", cause=cause, action=action)
    return LeftOut(known.id, known.path, error, retry=isinstance(exc, OSError))


def _attach_all(
    chosen: Sequence[tuple[Verdict, Disk]],
    pin_dir: Path,
    ring_b: int,
    before_change: BeforeChange,
    change: Change,
    object_path: Path,
) -> list[LeftOut]:
    """Removes what is pinned, if anything is, and attaches capture afresh. Returns those disks on which nothing can be proved."""
    if (pin_dir / attach.STATE).exists():
        before_change(attach.state_words(pin_dir), change)
    pins.detach(pin_dir)
    everything = [disk for _, disk in chosen]
    unproved = attach.attach_fresh(
        pin_dir, everything, ring_b, object_path, lambda words: before_change(words, change)
    )
    return [
        _unseen(
            verdict,
            CaptureUnavailableError(
                f"Writes to {disk.path} cannot be captured", cause=unproved[disk.name], action=_TRIED_AT_START
            ),
        )
        for verdict, disk in chosen
        if disk.name in unproved
    ]


def _calibrate_again(
    chosen: Sequence[tuple[Verdict, Disk]], look: _Look, pin_dir: Path, object_path: Path
) -> None:
    """On disks that answer: the others would hold up the start."""
    well = [
        disk for verdict, disk in chosen if verdict.standing and not look.answers[verdict.standing.path].cause
    ]
    try:
        members.calibrate_again(pin_dir, well, object_path)
    except BpfError as exc:
        _log.warning("capture goes on without order", **exc.as_dict())


def _change(new: Sequence[Verdict], stale: Sequence[int]) -> Change:
    if new and all("resized" in verdict.reason for verdict in new):
        return Change.RESIZED
    if new:
        return Change.RETURNED if stale else Change.JOINED
    return Change.LEFT


def _pinned(pin_dir: Path) -> tuple[list[Pinned], CaptureRemovedError | None]:
    """What is captured, and why nothing is although something is pinned."""
    if not pins.exist(pin_dir):
        return [], None
    try:
        return attach.read_pinned(pin_dir), None
    except CaptureRemovedError as exc:
        return [], exc


def _look(wanted: Sequence[Wanted], remembered: list[Bound], pin_dir: Path) -> _Look:
    pinned, _ = _pinned(pin_dir)
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
    return _Look(verdicts, found, answers | answer.ask(late), wrong, remembered)


def _with_table(disk: Disk, bare: tuple[Identity, ...], answers: dict[str, Answer]) -> tuple[Identity, ...]:
    told = answers.get(str(disk.path))
    return identify.identities(disk, told.head) if told is not None and told.head else bare


def _why_not(verdict: Verdict, look: _Look) -> UnderstudyError | None:
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


def _remember(
    state_dir: Path, look: _Look, stored: list[Bound] | None, chosen: Sequence[Verdict]
) -> list[LeftOut]:
    """Keeps what the chosen disks are bound by. A partition table that could not be read is not one that is gone. Where that fails, those
    of which it was known before go on; returns the others: a disk is written down before it is captured for the first time, or it could
    be taken for another later. Raises StateFileError when none is left."""
    after = {bound.id: bound for bound in look.remembered}
    for verdict in chosen:
        assert verdict.standing is not None
        is_read = bool(look.answers[verdict.standing.path].head)
        kept = verdict.identity if is_read else verdict.known.identity
        identity = kept or verdict.standing.identities[0]
        bound = Bound(verdict.known.id, verdict.known.path, str(identity), verdict.standing.path)
        if after.get(bound.id) != bound:
            _log.info("disk bound", id=bound.id, device=bound.last, identity=bound.identity)
        after[bound.id] = bound
    if list(after.values()) == stored:
        return []
    try:
        bindings.write(state_dir, list(after.values()))
    except StateFileError as exc:
        known = {(bound.id, bound.identity) for bound in stored or []}
        unbound = [
            LeftOut(verdict.known.id, verdict.known.path, exc)
            for verdict in chosen
            if (verdict.known.id, after[verdict.known.id].identity) not in known
        ]
        if len(unbound) == len(chosen):
            raise
        _log.warning("where the disks stand now could not be noted", **exc.as_dict())
        return unbound
    return []


class Watch:
    """Looks for the disks that are left out (or went away), in a thread, every `RETRY_S`."""

    def __init__(
        self, wanted: Sequence[Wanted], state_dir: Path, pin_dir: Path, left_out: Sequence[LeftOut]
    ) -> None:
        self._wanted = wanted
        self._where = state_dir, pin_dir
        self.left_out: Final = tuple(left_out)
        self._hopeless = {left.id for left in left_out if not left.retry}
        self._next = time.monotonic() + RETRY_S
        self._thread: threading.Thread | None = None
        self._found = False

    def is_one_back(self, *, looking: bool = False) -> bool:
        """Whether a disk can be captured that is not. Never blocks: begins a look if one is due, says what the last one found.
        `looking`: there is something to look for beside what was left out."""
        if self._thread is not None and self._thread.is_alive():
            return False
        if not self._found and (self.left_out or looking) and time.monotonic() >= self._next:
            self._next = time.monotonic() + RETRY_S
            self._thread = threading.Thread(target=self._search, name="disk-watch", daemon=True)
            self._thread.start()
        return self._found

    def _search(self) -> None:
        state_dir, pin_dir = self._where
        try:
            remembered = bindings.read(state_dir) or []
            if any(isinstance(left.error, StateFileError) for left in self.left_out):
                bindings.write(state_dir, remembered)  # whether it can be written by now
            look = _look(self._wanted, remembered, pin_dir)
        except UnderstudyError as exc:
            _log.warning("disks that are left out could not be looked for", **exc.as_dict())
            return
        self._found = any(
            verdict.action is Action.ATTACH
            and verdict.known.id not in self._hopeless
            and _why_not(verdict, look) is None
            for verdict in look.verdicts
        )


def standing_now(device: str) -> Standing:
    """One device with all its identities. Raises UnderstudyError."""
    disk = disks.find_disk(Path(device))
    told = answer.ask([device])[device]
    return identify.standing(disk, identify.identities(disk, told.head))
