"""Changing an attached capture while it captures: disks join and leave, programs are replaced by those of a newer object.

Nothing here touches what the other disks have: their slots, bitmaps, counters and records stay, and their writes are seen throughout.

**Leave.** 1. The disk's entry goes from `tracked`: programs that begin later do not see it. 2. A grace period: those that had begun have
ended. 3. Its open writes, its bitmap, its pins go. What the ring still holds of it is as if discarded (`ring.numbers`).

**Join.** `prepare`: 1. A read shows that the hooks see the disk. 2. The kernel's sector counters are read, the bitmaps made. 3. The
programs that a disk of this kind needs are attached. All that can fail is done then, and means nothing to those that are captured already.
`enter`: 4. The slot is taken for good (`control.slots`): none that was ever tracked is given twice, or records of a disk that left would be
taken for those of the one that joined. When all are used up: `fitting.bring_about`. 5. The disk enters `tracked`.

`leave` and `enter` follow upon a wanted epoch, so a kill in between leaves nothing that is believed: `tidy` removes what belongs to no
tracked slot.

**Upgrade.** The new programs share the maps. They are attached beside the old ones, then the old are detached, so each hook always has
one. In between both see each write:

- At a hook, the kernel runs programs in the order in which they were attached: the old one first. It puts the bio among the open
  writes and captures or marks it; the new one finds it there, since the handover began, and leaves it alone (`handed_over` in
  capture.bpf.c). A hook at which only the new one is attached (or the old one was skipped) finds nothing, and captures.
- At a completion the first takes the bio out, and counts; the second finds nothing and, during the handover, counts nothing.

So a write is captured exactly once, by either; both write the same records into the same maps (the layout is equal, or there is no
upgrade), and nothing about order depends on which. Programs from before the handover existed work as *old* too: they never look at it.
The old ones run on for a while when their pins are gone (`pins.wait_until_gone`): the handover ends when the last has ended, or that write
would be captured twice, and its completion be taken for one that nobody saw begin. Which are there says the kernel, by the map that they
share: one whose link somebody holds is in no pin any more. (A program that is held without a link runs nowhere.)
A kill leaves each hook with one or two programs; the next attachment does it again, because the object's hash is stored last.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.capture import attach, layout, libbpf, pins
from agent.capture.attach import PINNED_MAPS, key_bytes, mapped
from agent.capture.calibrate import PAGE_B, prove
from agent.capture.disks import Disk
from shared.errors import BpfError, CaptureUnavailableError


def object_hash(object_path: Path) -> npt.NDArray[np.uint64]:
    """As `control` keeps it: four words."""
    return np.frombuffer(hashlib.sha256(object_path.read_bytes()).digest(), np.uint64)


@contextmanager
def _sharing(pin_dir: Path, object_path: Path) -> Iterator[libbpf.BpfObject]:
    """The object, loaded over the pinned maps."""
    with ExitStack() as undo:
        loaded = libbpf.BpfObject(object_path)
        undo.callback(loaded.close)
        for name, map_name in PINNED_MAPS.items():
            fd = libbpf.get(pin_dir / name)
            undo.callback(os.close, fd)
            loaded.reuse(map_name, fd)
        loaded.load()
        yield loaded


@contextmanager
def _map(pin_dir: Path, name: str) -> Iterator[int]:
    fd = libbpf.get(pin_dir / name)
    try:
        yield fd
    finally:
        os.close(fd)


def _control(fd: int) -> npt.NDArray[np.void]:
    return mapped(fd, layout.CONTROL, 1).reshape(())


# -- upgrade -----------------------------------------------------------------------------------------------


def is_current(pin_dir: Path, object_path: Path) -> bool:
    """Whether the attached programs are those of this object, and no upgrade to it was broken off."""
    with _map(pin_dir, "control") as fd:
        control = _control(fd)
        return (
            np.array_equal(control["object_hash"], object_hash(object_path))
            and not int(control["handover"])
            and not pins.next_paths(pin_dir)
        )


def upgrade(pin_dir: Path, object_path: Path) -> None:
    """Replaces the programs of a capture of the same layout, without a gap. See above. Raises BpfError: the handover goes on then."""
    programs = pins.programs(pin_dir)
    with ExitStack() as undo:
        control_fd = undo.enter_context(_map(pin_dir, "control"))
        control = _control(control_fd)
        former = libbpf.programs_using(libbpf.map_info(control_fd).id)
        former_links = {link.id for link in libbpf.links() if link.prog_id in former}
        loaded = undo.enter_context(_sharing(pin_dir, object_path))
        for leftover in pins.next_paths(pin_dir):  # each of its hooks has the one in force as well
            leftover.unlink()
        control["handover"] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for program in sorted(programs, key=lambda name: name not in attach.COMPLETIONS):
            link = loaded.attach(program)
            undo.callback(link.close)
            libbpf.pin(link.fd, pins.next_path(pin_dir, program))
        # Skipped runs of the old ones count until here; from here on the new ones see what the old do not.
        control["misses_before"] += np.uint64(misses(pin_dir, leave_out_next=True))
        for program in programs:
            pins.next_path(pin_dir, program).rename(pins.link_path(pin_dir, program))
        held, _ = pins.wait_until_gone(former_links, former)
        if held:
            raise BpfError("Former programs of capture are still attached", cause=pins.held(held, ()))
        _wait_for_programs(pin_dir)
        control["object_hash"] = object_hash(object_path)
        control["handover"] = 0


def misses(pin_dir: Path, *, leave_out_next: bool = False) -> int:
    """Runs of the attached programs that see submissions which the kernel skipped."""
    left_out = [*attach.COMPLETIONS]
    ids = pins.program_ids(pin_dir, leave_out=left_out, also_next=not leave_out_next)
    return sum(misses_of(program) for program in ids.values())


def misses_of(program_id: int) -> int:
    fd = libbpf.program_fd(program_id)
    try:
        return libbpf.program_info(fd).recursion_misses
    finally:
        os.close(fd)


# -- leave and join ----------------------------------------------------------------------------------------


def leave(pin_dir: Path, slots: Iterable[int]) -> None:
    """The disks in these slots are captured no more."""
    leaving = set(slots)
    with _map(pin_dir, "tracked") as tracked:
        keys, values = libbpf.read_hash(tracked, np.dtype("<u4"), layout.TRACKED)
        for key, value in zip(keys, values, strict=True):
            if int(value["slot"]) in leaving:
                libbpf.delete(tracked, key.tobytes())
    _remove(pin_dir, leaving)  # not `tidy`: others may be prepared


def tidy(pin_dir: Path) -> None:
    """Removes what belongs to no tracked disk: bitmaps, open writes."""
    with _map(pin_dir, "tracked") as tracked:
        _, values = libbpf.read_hash(tracked, np.dtype("<u4"), layout.TRACKED)
    _remove(pin_dir, _slots_with_pins(pin_dir) - {int(slot) for slot in values["slot"]})


def _remove(pin_dir: Path, gone: Collection[int]) -> None:
    """What slots have that are not tracked (any more)."""
    if not gone:
        return
    _wait_for_programs(pin_dir)
    with _map(pin_dir, "open") as fd:
        keys, writes = libbpf.read_hash(fd, np.dtype("<u8"), layout.OPEN_WRITE)
        for i in np.flatnonzero(np.isin(writes["disk"], [*gone])).tolist():
            libbpf.delete(fd, keys[i].tobytes())
    with _map(pin_dir, "dirty") as fd:
        for slot in gone:
            libbpf.delete(fd, key_bytes(slot))
    for slot in gone:
        for name in attach.bitmap_names(slot):
            (pin_dir / name).unlink(missing_ok=True)


def free_slots(pin_dir: Path) -> int:
    """How many disks can still join."""
    with _map(pin_dir, "control") as fd:
        return layout.MAX_DISKS - _slots_given(pin_dir, _control(fd))


def prepare(pin_dir: Path, disk: Disk, object_path: Path) -> int:
    """All that is needed to capture this disk, too, but for `enter`; returns its slot. Raises CaptureUnavailableError, BpfError, and
    OSError when the disk went away: then nothing of it stays."""
    with ExitStack() as undo:
        loaded = undo.enter_context(_sharing(pin_dir, object_path))
        control = _control(undo.enter_context(_map(pin_dir, "control")))
        probe = mapped(loaded.map_fd(".data.probe"), layout.PROBE, 1).reshape(())
        if cause := prove(loaded, probe, disk, readback=bool(int(control["direct_map"]))):
            raise CaptureUnavailableError(
                f"Writes to {disk.path} cannot be captured", cause=cause, action=attach.TRIED_AGAIN
            )
        slot = _slots_given(pin_dir, control)
        try:
            attach.prepare_slot(loaded, pin_dir, slot, disk)
            for program in attach.needed([disk.bio_based]):
                if not pins.link_path(pin_dir, program).exists():
                    link = loaded.attach(program)
                    undo.callback(link.close)
                    libbpf.pin(link.fd, pins.link_path(pin_dir, program))
        except (BpfError, OSError):
            _remove(pin_dir, [slot])
            raise
        return slot


def enter(pin_dir: Path, prepared: Mapping[int, Disk]) -> None:
    """The disks that were prepared, by their slots, are captured from now on."""
    with _map(pin_dir, "control") as control_fd, _map(pin_dir, "tracked") as tracked:
        control = _control(control_fd)
        for slot, disk in prepared.items():
            control["slots"] = max(int(control["slots"]), slot + 1)
            attach.track(tracked, slot, disk)
        if prepared:
            control["attached_ns"] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def calibrate_again(pin_dir: Path, disks: Sequence[Disk], object_path: Path) -> None:
    """A capture that could not be calibrated when it was attached is, if that is possible now; what kept it from that may be over. Raises
    BpfError.

    The bases are proved in an object of their own: programs use `direct_map` from the moment at which it is not 0. Those that see it
    began behind the grace period, and see the other words, too. A write during the change is captured, or marked and counted as
    lost: either is what may happen to any write.
    """
    with _map(pin_dir, "control") as fd:
        control = _control(fd)
        if int(control["direct_map"]) or not disks:
            return
        found = attach.rehearse(disks, object_path=object_path)
        control["cause"] = found.cause.encode()[:255]
        if not found.cause:
            control["page_b"], control["vmemmap"] = PAGE_B, found.vmemmap
            _wait_for_programs(pin_dir)
            control["direct_map"] = found.direct_map


def put_in_order(pin_dir: Path, devs: Sequence[int]) -> None:
    """Numbers the captured disks as the device numbers are listed. Only before an epoch begins: within one, numbers stay."""
    slots = {pin.dev: pin.slot for pin in attach.read_pinned(pin_dir)}
    with _map(pin_dir, "control") as fd:
        numbers = _control(fd)["numbers"]
        for number, dev in enumerate(dev for dev in devs if dev in slots):
            numbers[slots[dev]] = number + 1


def _slots_given(pin_dir: Path, control: npt.NDArray[np.void]) -> int:
    """Captures from before slots were counted have given those that they use."""
    return max([int(control["slots"]), *(slot + 1 for slot in _slots_with_pins(pin_dir))])


def _slots_with_pins(pin_dir: Path) -> set[int]:
    """A kill may leave any of a slot's bitmaps."""
    return {
        int(path.name[-2:]) for kind in ("dirty-a-*", "dirty-b-*", "todo-*") for path in pin_dir.glob(kind)
    }


def _wait_for_programs(pin_dir: Path) -> None:
    """Returns when every run of a program that was going on at the call has ended: an RCU grace period, which any update of `dirty`
    is. (No map value changes: a slot gets the bitmap that it has.)"""
    with _map(pin_dir, "dirty") as fd:
        for path in sorted(pin_dir.glob("dirty-a-*")):
            slot = int(path.name[-2:])
            active = int.from_bytes(libbpf.lookup(fd, key_bytes(slot), 4) or b"", "little")
            for name in attach.bitmap_names(slot)[:2]:
                with _map(pin_dir, name) as bitmap:
                    if libbpf.map_info(bitmap).id == active:
                        libbpf.update(fd, key_bytes(slot), key_bytes(bitmap))
                        return
