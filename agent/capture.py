"""Capture: loads, pins and attaches the BPF programs, or continues what is pinned; then it is the door to
their maps.

Input: disks. Output: the ring, dirty bitmaps, open writes, counters. Blocks only in `attach` and in
`swap_dirty` (an RCU grace period).

A fresh attachment, in this order:
1. the sector counters of the disks are read (the audit's baseline) before anything can be captured;
2. load, calibrate;
3. the disks' bitmaps, then the disks themselves;
4. the programs: completions first, so that no captured write completes unseen;
5. pins, then their folder gets its name.
A kill at any point leaves either everything or a folder that the next attachment removes. Once pinned,
nothing here is needed to keep capturing; an agent that comes back finds the same maps and goes on from the
ring's consumer position.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from agent import audit, disks, layout, libbpf, pins
from agent.calibrate import calibrate
from agent.disks import Disk
from agent.layout import GRANULE_SECTORS
from agent.ring import Ring
from shared.errors import CaptureUnavailableError, PinnedElsewhereError, UsageError

__all__ = ["GRANULE_SECTORS", "Capture", "Counters", "Incidents", "detach"]

_BTF: Final = Path("/sys/kernel/btf/vmlinux")
_OBJECT: Final = Path(__file__).resolve().parent.parent / "build/capture.bpf.o"
_PINNED_MAPS: Final = {
    "control": ".data.control",
    "ring": "ring",
    "tracked": "tracked",
    "open": "open_writes",
    "counters": "counters",
    "dirty": "dirty",
}
_STATE: Final = "state"
_FORGOTTEN: Final = 6
"""Of the counters' words that are user space's: completed sectors that only `forget_open` knows of. The
others are the audit's."""
_ALWAYS: Final = ("us_rq_complete", "us_bio_complete", "us_rq_issue")
_FOR_REQUESTS: Final = ("us_backmerge", "us_frontmerge", "us_getrq")
_FOR_BIOS: Final = ("us_queue",)

_SWAPS_AT_ONCE: Final = 8
_LOSSES: Final = (
    ("ring_full", "the ring was full: the process server did not keep up"),
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
    marked."""
    recursion_misses: int
    """Runs of our programs that the kernel skipped: each may be a write that was not seen."""


def describe_loss(now: Incidents, before: Incidents | None) -> str:
    """What happened between the two, for people; empty if nothing did. Pure."""

    def count(name: str) -> int:
        return int(getattr(now, name)) - (int(getattr(before, name)) if before else 0)

    happened = sorted(((count(name), text) for name, text in _LOSSES), reverse=True)
    return "; ".join(text for times, text in happened if times)


class Capture:
    """An attached capture. Made by `attach`; `close` lets go of it without detaching anything."""

    def __init__(self, folder: Path, disks_in_order: Sequence[Disk], *, fresh: bool) -> None:
        self.fresh: Final = fresh
        """True if this attachment made the capture; False if it was running."""
        self.disks: Final = tuple(disks_in_order)
        """By slot: the `disk` of a ring record is an index into this."""
        self._open_files = ExitStack()
        self._fds = {name: self._open(folder / name) for name in _PINNED_MAPS}
        ring_b = libbpf.map_info(self._fds["ring"]).max_entries
        self.ring: Final = Ring(self._fds["ring"], ring_b)
        self._control = _mapped(self._fds["control"], layout.CONTROL, 1).reshape(())
        self._counters = _mapped(self._fds["counters"], layout.COUNTERS, layout.MAX_DISKS)
        self._dirty: list[tuple[_Bitmap, _Bitmap]] = []
        self._todo: list[_Bitmap] = []
        for slot, disk in enumerate(self.disks):
            words = layout.bitmap_words(disk.sectors)
            first, second, todo = (_Bitmap(self._open(folder / name), words) for name in _bitmap_names(slot))
            self._dirty.append((first, second))
            self._todo.append(todo)
        self.state: Final[Words] = _mapped(self._open(folder / _STATE), np.dtype("<u8"), layout.STATE_WORDS)
        """4096 words that live as long as the capture; agent.state owns their meaning."""
        self._incidents_at_swap: Incidents | None = None
        # Ids, not descriptors: a process that holds a program open would keep it alive after a detach.
        self._programs = tuple(pins.program_ids(folder).values())

    @classmethod
    def attach(
        cls, pin_dir: Path, wanted: Sequence[Disk], ring_b: int, *, object_path: Path = _OBJECT
    ) -> Capture:
        """Attaches capture to `wanted`, or continues what is pinned at `pin_dir` if that is the same disks.

        `ring_b`: a power of two; a continued capture keeps the ring it has. Raises UsageError,
        UnsuitableDiskError for disks that cannot be protected, CaptureUnavailableError or BpfError if this
        machine cannot capture, PinnedElsewhereError if `pin_dir` holds another capture (other disks,
        another size, another layout).
        """
        check_machine(object_path)
        disks.check_set(wanted)
        pins.ensure_bpffs(pin_dir)
        fresh = not pin_dir.is_dir()
        if fresh:
            _attach_fresh(pin_dir, wanted, ring_b, object_path)
        return cls(pin_dir, _by_slot(pin_dir, wanted), fresh=fresh)

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

    def incidents(self) -> Incidents:
        control = self._control
        return Incidents(
            ring_full=int(control["lost_full"]),
            unreadable=int(control["lost_unreadable"]),
            unsupported=int(control["lost_unsupported"]),
            failed=int(control["lost_failed"]),
            open_missed=int(control["open_missed"]),
            passthrough=int(control["passthrough"]),
            unknown_range=int(control["unknown_range"]),
            late=int(control["late"]),
            recursion_misses=self.recursion_misses(),
        )

    def recursion_misses(self) -> int:
        """Runs that the kernel skipped because the program was already running on that CPU; more than
        before means loss."""
        misses = 0
        for program in self._programs:
            fd = libbpf.program_fd(program)
            try:
                misses += libbpf.program_info(fd).recursion_misses
            finally:
                os.close(fd)
        return misses

    # -- bitmaps -------------------------------------------------------------------------------------------

    def swap_dirty(self) -> None:
        """Makes the inactive bitmap of every disk the active one. On return, no program writes to the
        former any more."""
        self._incidents_at_swap = self.incidents()
        with ThreadPoolExecutor(
            _SWAPS_AT_ONCE
        ) as pool:  # each waits for a grace period, which they can share
            list(pool.map(self._swap, range(len(self._dirty))))

    def _swap(self, slot: int) -> None:
        inactive = self._dirty[slot][1 - self._active(slot)]
        libbpf.update(self._fds["dirty"], _key(slot), _key(inactive.fd))

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

    def _active(self, slot: int) -> int:
        found = libbpf.lookup(self._fds["dirty"], _key(slot), 4)
        active = int.from_bytes(found or b"", "little")
        return next(i for i, bitmap in enumerate(self._dirty[slot]) if bitmap.id == active)

    # -- writes in flight, counters ------------------------------------------------------------------------

    def open_writes(self) -> npt.NDArray[np.void]:
        """The writes in flight (`layout.OPEN_WRITE`). May hold some that completed unseen, but misses none
        unless `incidents().open_missed` says so."""
        return libbpf.read_hash(self._fds["open"], np.dtype("<u8"), layout.OPEN_WRITE)[1]

    def forget_open(self, until_ns: int) -> npt.NDArray[np.void]:
        """Drops the open writes from `until_ns` (boot clock) or before, for a caller who knows that they
        have completed.

        Returns them: whether they failed is unknown, so their ranges should be read again in the next round.
        """
        keys, values = libbpf.read_hash(self._fds["open"], np.dtype("<u8"), layout.OPEN_WRITE)
        old = np.flatnonzero(values["since_ns"] <= np.uint64(until_ns))
        # A deletion that finds nothing lost the race against the completion, which then counted the write.
        dropped = [i for i in old if libbpf.delete(self._fds["open"], keys[i].tobytes())]
        for write in values[dropped]:
            self._counters[int(write["disk"])]["base"][_FORGOTTEN] += np.uint64(write["sectors"])
        return values[dropped]

    def counters(self, disk: int) -> Counters:
        row = self._counters[disk]
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
        row = self._counters[disk]
        return int(row["seen"]), int(row["completed"]) + int(row["base"][_FORGOTTEN])

    def audit_words(self, disk: int) -> Words:
        """Six words per disk that live as long as the capture; agent.audit owns their meaning."""
        words: Words = self._counters[disk]["base"][:_FORGOTTEN]
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
        self.words: Words = _mapped(fd, np.dtype("<u8"), words)


def check_machine(object_path: Path = _OBJECT, *, btf: Path = _BTF, is_root: bool | None = None) -> None:
    """Raises CaptureUnavailableError if this machine or process obviously cannot load the programs."""
    what = "Writes cannot be captured on this machine"
    if not (os.geteuid() == 0 if is_root is None else is_root):
        raise CaptureUnavailableError(
            what, cause="this process is not root", action="Run the agent as root: it loads BPF programs."
        )
    if not btf.exists():
        raise CaptureUnavailableError(
            what,
            cause=f"the kernel has no BTF ({btf} is missing)",
            action="Use a kernel from 5.17 on with CONFIG_DEBUG_INFO_BTF, as current distributions have.",
        )
    if not object_path.exists():
        raise CaptureUnavailableError(
            what, cause=f"{object_path} is missing", action="Build it: make build/capture.bpf.o"
        )


def _attach_fresh(pin_dir: Path, wanted: Sequence[Disk], ring_b: int, object_path: Path) -> None:
    if len(wanted) > layout.MAX_DISKS or not wanted:
        raise UsageError(
            f"{len(wanted)} disks cannot be protected",
            cause=f"a machine may have 1 to {layout.MAX_DISKS}",
            action="Choose fewer disks.",
        )
    folder = pins.staging(pin_dir)
    pins.remove(folder)
    baselines = [audit.read_stat(disk).sectors for disk in wanted]
    with ExitStack() as undo:
        undo.callback(pins.remove, folder)
        loaded = libbpf.BpfObject(object_path)
        # Descriptors of a running process keep programs attached; the pins alone shall.
        undo_files = undo.enter_context(ExitStack())
        undo_files.callback(loaded.close)
        loaded.set_max_entries("ring", ring_b)
        loaded.load()
        control = _mapped(loaded.map_fd(".data.control"), layout.CONTROL, 1).reshape(())
        probe = _mapped(loaded.map_fd(".data.probe"), layout.PROBE, 1).reshape(())
        control["cause"] = calibrate(loaded, control, probe, wanted).cause.encode()[:255]
        folder.mkdir()
        for name, map_name in _PINNED_MAPS.items():
            libbpf.pin(loaded.map_fd(map_name), folder / name)
        _make_array(_STATE, layout.STATE_WORDS, libbpf.F_MMAPABLE, folder / _STATE)
        counters = _mapped(loaded.map_fd("counters"), layout.COUNTERS, layout.MAX_DISKS)
        for slot, disk in enumerate(wanted):
            counters[slot]["base"][:3] = audit.Baseline(baselines[slot]).words()
            _add_disk(loaded, folder, slot, disk)
        for program in _needed(wanted):
            link = loaded.attach(program)
            undo_files.callback(link.close)
            libbpf.pin(link.fd, pins.link_path(folder, program))
        control["attached_ns"] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        control["layout"] = layout.LAYOUT
        pins.publish(pin_dir)


def _add_disk(loaded: libbpf.BpfObject, folder: Path, slot: int, disk: Disk) -> None:
    words = layout.bitmap_words(disk.sectors)
    flags = libbpf.F_MMAPABLE | libbpf.F_INNER_MAP
    first, second, todo = (folder / name for name in _bitmap_names(slot))
    _make_array("dirty_words", words, flags, first)
    _make_array("dirty_words", words, flags, second)
    _make_array("todo", words, libbpf.F_MMAPABLE, todo)
    fd = libbpf.get(first)
    try:
        libbpf.update(loaded.map_fd("dirty"), _key(slot), _key(fd))
    finally:
        os.close(fd)
    entry = np.zeros((), layout.TRACKED)
    entry["slot"], entry["diskseq"], entry["sectors"] = slot, disk.diskseq, disk.sectors
    entry["flags"] = layout.DISK_BIO_BASED if disk.bio_based else 0
    libbpf.update(loaded.map_fd("tracked"), _key(layout.kernel_dev(disk.major, disk.minor)), entry.tobytes())


def _needed(wanted: Sequence[Disk]) -> list[str]:
    """The programs that these disks need, completions first."""
    programs = list(_ALWAYS)
    if any(not disk.bio_based for disk in wanted):
        programs += _FOR_REQUESTS
    if any(disk.bio_based for disk in wanted):
        programs += _FOR_BIOS
    return programs


def _by_slot(pin_dir: Path, wanted: Sequence[Disk]) -> list[Disk]:
    """`wanted` in the order of the pinned capture's slots. Raises PinnedElsewhereError unless it captures
    exactly these."""
    what = f"Capture pinned at {pin_dir} cannot be continued"
    with ExitStack() as files:
        fds = {}
        for name in ("control", "tracked"):
            fds[name] = libbpf.get(pin_dir / name)
            files.callback(os.close, fds[name])
        if libbpf.map_info(fds["control"]).value_size != layout.CONTROL.itemsize:
            raise PinnedElsewhereError(what, cause="it was made by another version of the agent")
        control = _mapped(fds["control"], layout.CONTROL, 1).reshape(())
        if int(control["layout"]) != layout.LAYOUT:
            raise PinnedElsewhereError(what, cause="it was made by another version of the agent")
        keys, values = libbpf.read_hash(fds["tracked"], np.dtype("<u4"), layout.TRACKED)
    pinned = {int(key): value for key, value in zip(keys, values, strict=True)}
    by_dev = {layout.kernel_dev(disk.major, disk.minor): disk for disk in wanted}
    if by_dev.keys() != pinned.keys():
        names = ", ".join(f"{key >> 20}:{key & 0xFFFFF}" for key in sorted(pinned))
        raise PinnedElsewhereError(what, cause=f"it captures other disks (devices {names})")
    for key, disk in by_dev.items():
        entry = pinned[key]
        if int(entry["diskseq"]) != disk.diskseq:
            raise PinnedElsewhereError(what, cause=f"{disk.path} is not the disk that was captured any more")
        if int(entry["sectors"]) != disk.sectors:
            raise PinnedElsewhereError(
                what, cause=f"{disk.path} has {disk.sectors} sectors now, not {int(entry['sectors'])}"
            )
    return sorted(wanted, key=lambda disk: int(pinned[layout.kernel_dev(disk.major, disk.minor)]["slot"]))


def _make_array(name: str, words: int, flags: int, path: Path) -> None:
    fd = libbpf.create_array(name, 8, words, flags)
    try:
        libbpf.pin(fd, path)
    finally:
        os.close(fd)


def _bitmap_names(slot: int) -> tuple[str, str, str]:
    return f"dirty-a-{slot:02d}", f"dirty-b-{slot:02d}", f"todo-{slot:02d}"


def _key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _mapped(fd: int, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """An array in the map's own memory; unmapped when the last view of it is gone."""
    size = -(-dtype.itemsize * count // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(memory, dtype, count)
