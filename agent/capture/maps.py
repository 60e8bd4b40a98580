"""Capture: the door to the BPF programs' maps. Attaches the programs, or continues what is pinned.

Input: disks. Output: the ring, dirty bitmaps, open writes, counters. Blocks only in `attach` and in
`swap_dirty` (an RCU grace period). Once pinned, nothing here is needed to keep capturing; an agent that
comes back finds the same maps and goes on from the ring's consumer position.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from agent.capture import layout, libbpf, members, pins, slot_notes, suitable
from agent.capture.attach import (
    COMPLETIONS,
    OBJECT,
    PINNED_MAPS,
    SERVER,
    STATE,
    UNREADABLE,
    attach_fresh,
    bitmap_names,
    by_slot,
    check_machine,
    complete,
    key_bytes,
    mapped,
    needed,
    words_of,
)
from agent.capture.disks import Disk
from agent.capture.layout import GRANULE_SECTORS
from agent.capture.ring import GONE, Ring, numbers
from shared.daemon import logging
from shared.daemon.threads import Threads
from shared.errors import BpfError

__all__ = ["GRANULE_SECTORS", "Capture", "Counters", "Incidents", "describe_loss", "detach"]

_log = logging.get()
_SWAPS_AT_ONCE: Final = 8
_LOSSES: Final = (
    ("ring_full", "the ring was full: writes came faster than they were sent"),
    ("failed", "writes failed on the disk"),
    ("unreadable", "the data of writes could not be read"),
    ("unsupported", "writes of a kind that cannot be captured"),
    ("passthrough", "commands past the block layer"),
    ("unknown_range", "a disk was replaced or grew"),
)
"""Fields of `Incidents` that raise the loss count, and what they mean."""

detach = pins.detach
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Counters:
    """What happened to a disk since capture was attached. Sectors, if nothing else is said."""

    seen_sectors: int
    """Of writes that entered the device: captured + marked."""
    captured_sectors: int
    marked_sectors: int
    zeroed_sectors: int
    """Of the captured: discards and write-zeroes."""
    completed_sectors: int
    errored_sectors: int
    """Of the completed: with an error, and marked for that."""
    unseen_sectors: int
    """Completed without having been seen: from before the attachment, or gone past capture."""
    records: int
    writes: int


@dataclass(frozen=True, slots=True)
class Incidents:
    """Counts since the attachment, for the whole machine."""

    ring_full: int
    """Writes marked because the ring had no room."""
    unreadable: int
    unsupported: int
    failed: int
    open_missed: int
    """Writes in flight that `open_writes` does not know."""
    passthrough: int
    """Write commands past the block layer (SG_IO): what they wrote is unknown, the disk must be
    resynchronised."""
    unknown_range: int
    """Something was written and nobody knows where: the machine must be resynchronised."""
    late: int
    """Completions that were missed, and noticed when the bio's memory was used again; their ranges are
    marked. Not among them: those of disks without requests that look as if the bio had been handed on to another disk."""
    recursion_misses: int
    """Runs of the programs that see submissions which the kernel skipped: each may be a write that was not seen. (A completion that
    was not seen shows otherwise: `late`.)"""


def describe_loss(now: Incidents, before: Incidents | None) -> str:
    """What happened between the two, for people; empty if nothing did. Pure."""

    def count(name: str) -> int:
        return int(getattr(now, name)) - (int(getattr(before, name)) if before else 0)

    happened = sorted(((count(name), text) for name, text in _LOSSES), reverse=True)
    return "; ".join(text for times, text in happened if times)


class Capture:
    """An attached capture. Made by `attach`; `close` lets go of it without detaching anything."""

    def __init__(self, folder: Path, disks_by_slot: Mapping[int, Disk], *, fresh: bool) -> None:
        self.fresh: Final = fresh
        """True if this attachment made the capture; False if it was running."""
        self.disks: Final = tuple(disks_by_slot.values())
        """By number: the `disk` of a record in a window of `ring` is an index into this. The programs know slots, which only this
        class and `ring` translate: a disk that left leaves a hole behind."""
        self._slots: Final = tuple(disks_by_slot)
        self._numbers = numbers(self._slots)
        self._open_files = ExitStack()
        self._fds = {name: self._open(folder / name) for name in PINNED_MAPS}
        ring_b = libbpf.map_info(self._fds["ring"]).max_entries
        self.ring: Final = Ring(self._fds["ring"], ring_b, self._slots)
        self._control = mapped(self._fds["control"], layout.CONTROL, 1).reshape(())
        self._counters = mapped(self._fds["counters"], layout.COUNTERS, layout.MAX_DISKS)
        self._dirty: list[tuple[_Bitmap, _Bitmap]] = []
        self._todo: list[_Bitmap] = []
        for slot, disk in disks_by_slot.items():
            words = layout.bitmap_words(disk.sectors)
            first, second, todo = (_Bitmap(self._open(folder / name), words) for name in bitmap_names(slot))
            self._dirty.append((first, second))
            self._todo.append(todo)
        self.state: Final[Words] = words_of(self._open(folder / STATE))
        """Words that live as long as the capture; agent.state owns their meaning."""
        self.unreadable: Final[Words] = words_of(self._open(folder / UNREADABLE))
        """As long, too; agent.stream.unreadable_words owns their meaning."""
        self.server: Final[Words] = words_of(self._open(folder / SERVER))
        """As long, too; agent.stream.state owns their meaning."""
        self._incidents_at_swap: Incidents | None = None
        self._exchange = threading.Lock()
        """From the look which bitmap is active to the update of `dirty` that rests on it. Threads outlive the session that began them: who
        puts the active bitmap in its place again, for a grace period, would undo a swap in between, and marks would not be harvested."""
        # Ids, not descriptors: a process that holds a program open would keep it alive after a detach.
        self._programs = tuple(pins.program_ids(folder, leave_out=COMPLETIONS).values())
        self._misses = dict.fromkeys(self._programs, 0)
        self._folder: Final = folder

    @classmethod
    def attach(
        cls, pin_dir: Path, wanted: Sequence[Disk], ring_b: int, *, object_path: Path = OBJECT
    ) -> Capture:
        """Attaches capture to `wanted`, or continues what is pinned at `pin_dir` if that is the same disks.

        `ring_b`: a power of two; a continued capture keeps the ring it has. Raises UsageError,
        UnsuitableDiskError for disks that cannot be protected, CaptureUnavailableError or BpfError if this
        machine cannot capture, PinnedElsewhereError if `pin_dir` holds another capture (other disks,
        another size, another layout).
        """
        check_machine(object_path)
        fresh = not pins.exist(pin_dir)
        suitable.check_set(wanted, are_captured=not fresh)
        pins.ensure_bpffs(pin_dir)
        if fresh:
            attach_fresh(pin_dir, wanted, ring_b, object_path)
        return cls.attached(pin_dir, wanted, fresh=fresh, object_path=object_path)

    @classmethod
    def attached(
        cls,
        pin_dir: Path,
        wanted: Sequence[Disk],
        *,
        fresh: bool = False,
        object_path: Path = OBJECT,
        lines: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Capture:
        """The capture of exactly these disks that is pinned, with the programs of `object_path`. `lines`: by id, what is noted of them,
        which is pinned, too. Raises PinnedElsewhereError."""
        found = by_slot(pin_dir, wanted)
        complete(pin_dir)
        ids = {slot: disk.id for slot, disk in found.items()}
        slot_notes.write(pin_dir, ids, {slot: lines[id_] for slot, id_ in ids.items() if id_ in lines})
        if not members.is_current(pin_dir, object_path):
            try:
                members.upgrade(pin_dir, object_path)
            except BpfError as exc:
                _log.warning("capture goes on with the programs that it has", **exc.as_dict())
        return cls(pin_dir, found, fresh=fresh)

    def close(self) -> None:
        """Closes descriptors. Capture goes on; views of its memory stay valid until they are dropped."""
        self._open_files.close()

    # -- what capture is -----------------------------------------------------------------------------------

    @property
    def mode(self) -> Literal["ordered", "bitmap"]:
        return "ordered" if int(self._control["direct_map"]) else "bitmap"

    @property
    def mode_cause(self) -> str:
        """Why the mode is bitmap; empty if it is not."""
        cause: bytes = self._control["cause"].item()
        return cause.decode(errors="replace")

    @property
    def attached_boot_ns(self) -> int:
        """CLOCK_BOOTTIME when the last program was attached: every write submitted later is seen."""
        return int(self._control["attached_ns"])

    def removed(self) -> list[str]:
        """The programs that somebody detached under us: they see no write any more."""
        return pins.unlinked(self._folder, needed(disk.bio_based for disk in self.disks))

    # -- loss ----------------------------------------------------------------------------------------------

    def loss_count(self) -> int:
        """How many writes, of all disks together, are not in the ring. Whoever reads a new value finds
        their bits set."""
        return int(self._control["loss"])

    def loss_cause(self) -> str:
        """Why writes were lost since the last swap (or, if none was, since the attachment), most frequent
        first; for people."""
        if self.mode == "bitmap":
            return f"data cannot be captured on this machine: {self.mode_cause}"
        return describe_loss(self.incidents(), self._incidents_at_swap) or describe_loss(
            self.incidents(), None
        )

    def open_missed(self) -> int:
        """How many writes in flight `open_writes` did not know of, since the attachment."""
        return int(self._control["open_missed"])

    def incidents(self) -> Incidents:
        control = self._control
        return Incidents(
            ring_full=int(control["lost_full"]),
            unreadable=int(control["lost_unreadable"]),
            unsupported=int(control["lost_unsupported"]),
            failed=int(control["lost_failed"]),
            open_missed=self.open_missed(),
            passthrough=int(control["passthrough"]),
            unknown_range=int(control["unknown_range"]),
            late=int(control["late"]),
            recursion_misses=self.recursion_misses(),
        )

    def recursion_misses(self) -> int:
        """Runs of submission programs that the kernel skipped because the program was already running on
        that CPU; more than before means loss."""
        for program in self._programs:
            try:
                self._misses[program] = members.misses_of(program)
            except BpfError as exc:
                if exc.number != errno.ENOENT or not self.removed():
                    raise
        return int(self._control["misses_before"]) + sum(self._misses.values())

    # -- bitmaps -------------------------------------------------------------------------------------------

    def swap_dirty(self) -> None:
        """Makes the inactive bitmap of every disk the active one. On return, no program writes to the
        former any more. Raises NoThreadError when there is no room for all threads: some may be swapped then."""
        self._incidents_at_swap = self.incidents()
        # Each waits for a grace period, which they can share.
        with self._exchange, Threads(_SWAPS_AT_ONCE) as pool:
            list(pool.map(self._swap, range(len(self._dirty))))

    def wait_for_programs(self) -> None:
        """Returns when every run of a program that was going on at the call has ended: an RCU grace period, which any update of
        `dirty` is."""
        with self._exchange:
            active = self._dirty[0][self._active(0)]
            libbpf.update(self._fds["dirty"], key_bytes(self._slots[0]), key_bytes(active.fd))

    def _swap(self, disk: int) -> None:
        inactive = self._dirty[disk][1 - self._active(disk)]
        libbpf.update(self._fds["dirty"], key_bytes(self._slots[disk]), key_bytes(inactive.fd))

    def inactive_dirty(self, disk: int) -> Words:
        """The bitmap that no program writes to; bit i of word w is granule 64 w + i. Clear it before the
        next swap."""
        return self._dirty[disk][1 - self._active(disk)].words

    def active_dirty(self, disk: int) -> Words:
        """The bitmap that programs are writing to; only to be looked at."""
        return self._dirty[disk][self._active(disk)].words

    def todo(self, disk: int) -> Words:
        """Catch-up's to-do bitmap, same shape; no program knows it."""
        return self._todo[disk].words

    def _active(self, disk: int) -> int:
        found = libbpf.lookup(self._fds["dirty"], key_bytes(self._slots[disk]), 4)
        active = int.from_bytes(found or b"", "little")
        return next(i for i, bitmap in enumerate(self._dirty[disk]) if bitmap.id == active)

    # -- writes in flight, counters ------------------------------------------------------------------------

    def open_writes(self) -> npt.NDArray[np.void]:
        """The writes in flight (`layout.OPEN_WRITE`). May hold some that completed unseen, but misses none
        unless `incidents().open_missed` says so."""
        return self._by_number(libbpf.read_hash(self._fds["open"], np.dtype("<u8"), layout.OPEN_WRITE)[1])

    def forget_open(self, until_ns: int, disks: Iterable[int]) -> npt.NDArray[np.void]:
        """Drops the open writes of these disks from `until_ns` (boot clock) or before, for a caller who knows that they
        have completed.

        Returns them: whether they failed is unknown, so their ranges should be read again in the next round.
        """
        keys, values = libbpf.read_hash(self._fds["open"], np.dtype("<u8"), layout.OPEN_WRITE)
        theirs = np.isin(values["disk"], [self._slots[disk] for disk in disks])
        old = np.flatnonzero(theirs & (values["since_ns"] <= np.uint64(until_ns)))
        # A deletion that finds nothing lost the race against the completion, which then counted the write.
        dropped = [i for i in old if libbpf.delete(self._fds["open"], keys[i].tobytes())]
        for write in values[dropped]:
            self._counters[int(write["disk"])]["base"][layout.FORGOTTEN_WORD] += np.uint64(write["sectors"])
        return self._by_number(values[dropped])

    def _by_number(self, writes: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Those of our disks, with the disk's number in place of its slot."""
        writes["disk"] = self._numbers[writes["disk"] % layout.MAX_DISKS]
        result: npt.NDArray[np.void] = writes[writes["disk"] != GONE]
        return result

    def counters(self, disk: int) -> Counters:
        row = self._counters[self._slots[disk]]
        return Counters(
            seen_sectors=int(row["seen"]),
            captured_sectors=int(row["captured"]),
            marked_sectors=int(row["marked"]),
            zeroed_sectors=int(row["zeroed"]),
            completed_sectors=self.sector_counts(disk)[1],
            errored_sectors=int(row["errored"]),
            unseen_sectors=int(row["unseen"]),
            records=int(row["records"]),
            writes=int(row["writes"]),
        )

    def sector_counts(self, disk: int) -> tuple[int, int]:
        """Sectors of writes seen, and of writes completed."""
        row = self._counters[self._slots[disk]]
        return int(row["seen"]), int(row["completed"]) + int(row["base"][layout.FORGOTTEN_WORD])

    def audit_words(self, disk: int) -> Words:
        """Six words per disk that live as long as the capture; agent.audit owns their meaning."""
        words: Words = self._counters[self._slots[disk]]["base"][: layout.AUDIT_WORDS]
        return words

    # -- resources -----------------------------------------------------------------------------------------

    def _keep(self, fd: int) -> int:
        self._open_files.callback(os.close, fd)
        return fd

    def _open(self, path: Path) -> int:
        return self._keep(libbpf.get(path))


class _Bitmap:
    def __init__(self, fd: int, words: int) -> None:
        self.fd = fd
        self.id = libbpf.map_info(fd).id
        self.words: Words = mapped(fd, np.dtype("<u8"), words)
