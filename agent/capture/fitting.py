"""Makes what is pinned the chosen disks, with as little done to those that go on as can be.

The machine's stream is over the disks that are captured, so whenever those change a new epoch begins: `before_change` is called first, and
makes that durable. A kill behind it leaves a capture that nobody takes for the old one.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.capture import attach, layout, libbpf, members, pins
from agent.capture.binding import Action, Verdict
from agent.capture.disks import Disk
from agent.capture.look import LeftOut, Look
from shared import crashpoints
from shared.daemon import logging
from shared.errors import BpfError, CaptureUnavailableError, DiskLeftOutError

_log = logging.get()


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
    UNFINISHED = "unfinished"
    """An earlier change was begun and not brought to its end: what was wanted then is wanted still."""


BeforeChange = Callable[[npt.NDArray[np.uint64], Change], None]


def bring_about(
    chosen: Sequence[tuple[Verdict, Disk]],
    pinned: Mapping[int, str],
    pin_dir: Path,
    ring_b: int,
    before_change: BeforeChange,
    object_path: Path,
) -> list[LeftOut]:
    """Makes what is pinned the chosen disks: those that go on are not touched. Returns those whose writes the programs do not see.
    `pinned`: by slot, the id of whose disk it is; empty where that is not known.

    When more join than slots are left, everything is attached afresh, which costs those that go on what they have: only for disks that
    were tried out before, and they keep their places whether they answer or not."""
    new = [(verdict, disk) for verdict, disk in chosen if verdict.action is Action.ATTACH]
    staying = {verdict.slot for verdict, _ in chosen if verdict.slot is not None}
    stale = [slot for slot in pinned if slot not in staying]
    gone = [pinned[slot] for slot in stale]
    members.tidy(pin_dir)
    if not new and not stale:
        return []
    # What can fail comes first: a disk that cannot join must not end the epoch of the others, at every start anew.
    unseen: list[LeftOut] = []
    if staying and len(new) > members.free_slots(pin_dir):
        unseen = [left for verdict, disk in new if (left := _tried(verdict, disk, pin_dir, object_path))]
        failed = {left.id for left in unseen}
        new, chosen = (
            [(verdict, disk) for verdict, disk in some if disk.id not in failed] for some in (new, chosen)
        )
    if not staying or len(new) > members.free_slots(pin_dir):
        change = _change([verdict for verdict, _ in new], gone)
        return unseen + attach_all(chosen, pin_dir, ring_b, before_change, change, object_path)
    ready: dict[int, tuple[Verdict, Disk]] = {}
    for verdict, disk in new:
        try:
            ready[members.prepare(pin_dir, disk, object_path)] = verdict, disk
        except (CaptureUnavailableError, BpfError, OSError) as exc:
            unseen.append(_unseen(verdict, exc))
    if not ready and not stale:
        return unseen
    before_change(attach.state_words(pin_dir), _change([verdict for verdict, _ in ready.values()], gone))
    # First those that go: one that was resized, or whose number another got, is one and the other.
    members.leave(pin_dir, stale)
    members.enter(pin_dir, {slot: disk for slot, (_, disk) in ready.items()})
    members.put_in_order(pin_dir, [layout.kernel_dev(disk.major, disk.minor) for _, disk in chosen])
    return unseen


def _tried(verdict: Verdict, disk: Disk, pin_dir: Path, object_path: Path) -> LeftOut | None:
    """None: it could join."""
    try:
        cause = attach.try_out(pin_dir, disk, object_path=object_path)
    except BpfError as exc:
        return _unseen(verdict, exc)
    return _unseen(verdict, _unproved(disk, cause)) if cause else None


def _unproved(disk: Disk, cause: str) -> CaptureUnavailableError:
    return CaptureUnavailableError(
        f"Writes to {disk.path} cannot be captured", cause=cause, action=attach.TRIED_AGAIN
    )


def _unseen(verdict: Verdict, exc: CaptureUnavailableError | BpfError | OSError) -> LeftOut:
    """It is tried out first, from now on: to fit capture to it ends the session each time. (Not one that went away, and is looked for.)"""
    known = verdict.known
    if isinstance(exc, CaptureUnavailableError):
        return LeftOut(known.id, known.path, exc, needs_trial=True)
    cause = f"{exc.what}: {exc.cause}" if isinstance(exc, BpfError) else str(exc)
    action = "Repair that: it is tried again by itself, every hour at least."
    error = DiskLeftOutError(f"Disk {known.id} ({known.path}) is not protected", cause=cause, action=action)
    return LeftOut(known.id, known.path, error, needs_trial=isinstance(exc, BpfError))


def attach_all(
    chosen: Sequence[tuple[Verdict, Disk]],
    pin_dir: Path,
    ring_b: int,
    before_change: BeforeChange,
    change: Change,
    object_path: Path,
) -> list[LeftOut]:
    """Removes what is pinned, if anything is, and attaches capture afresh. Returns those disks on which nothing can be proved.

    Why the next epoch begins, and since when points are suspect, stands in the pinned state, which goes with its folder. Until the new
    folder has its name, with the same in its own state, the former state is kept beside: in the kernel's memory, so that no disk,
    full or ill, can take it away. Wherever this fails or is killed, the next attempt finds one of three: the old folder, with the new
    epoch wanted in it, or with what led to that; no folder, and the former state (`Change.UNFINISHED`); the new folder, beside which
    the former state means nothing any more.
    """
    former = pins.former(pin_dir)
    staying = {disk.name for verdict, disk in chosen if verdict.action is Action.CONTINUE}
    known = attach.pinned_calibration(pin_dir) if staying else None
    if change is Change.UNFINISHED:
        before_change(attach.words_at(former), change)
    else:
        _keep(pin_dir, before_change, change)
    pins.detach(pin_dir, keep_former=True)
    crashpoints.reach("attach.after-detach")
    everything = [disk for _, disk in chosen]
    unproved = attach.attach_fresh(
        pin_dir,
        everything,
        ring_b,
        object_path,
        lambda words: before_change(words, change),
        proved=staying,
        known=known,
    )
    former.unlink(missing_ok=True)
    return [
        _unseen(verdict, _unproved(disk, unproved[disk.name]))
        for verdict, disk in chosen
        if disk.name in unproved
    ]


def _keep(pin_dir: Path, before_change: BeforeChange, change: Change) -> None:
    """Wants the new epoch in the state that is pinned, and pins that once more. Where there is none, somebody removed it, or all: what the
    caller still knows is kept in one that is made for it, and has no name before it is complete."""
    former = pins.former(pin_dir)
    pinned = pin_dir / attach.STATE
    fd = libbpf.get(pinned) if pinned.exists() else attach.create_state()
    try:
        words = attach.words_of(fd)
        before_change(words, change)
        crashpoints.reach("attach.after-want")
        if words.any():  # nothing is wanted at a first start
            former.parent.mkdir(parents=True, exist_ok=True)
            libbpf.pin(fd, former)
            crashpoints.reach("attach.after-keep")
    finally:
        os.close(fd)


def calibrate_again(
    chosen: Sequence[tuple[Verdict, Disk]], look: Look, pin_dir: Path, object_path: Path
) -> None:
    """On disks that answer: the others would hold up the start."""
    well = [
        disk for verdict, disk in chosen if verdict.standing and not look.answers[verdict.standing.path].cause
    ]
    try:
        members.calibrate_again(pin_dir, well, object_path)
    except BpfError as exc:
        _log.warning("capture goes on without order", **exc.as_dict())


def _change(new: Sequence[Verdict], gone: Sequence[str]) -> Change:
    """`gone`: ids of those that are not captured any more as they were. One of them that is new is back; one of which nothing is known may
    be. Others were exchanged for it, and all that was written to them until now was seen."""
    if new and all("resized" in verdict.reason for verdict in new):
        return Change.RESIZED
    if not new:
        return Change.LEFT
    is_back = "" in gone or any(verdict.known.id in gone for verdict in new)
    return Change.RETURNED if is_back else Change.JOINED
