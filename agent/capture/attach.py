"""Attaching capture afresh, and telling whether what is pinned can be continued.

A fresh attachment, in this order:
1. the sector counters of the disks are read (the audit's baseline) before anything can be captured;
2. load, calibrate;
3. the disks' bitmaps, then the disks themselves;
4. the programs: completions first, so that no captured write completes unseen;
5. the folder in which each of these was pinned gets its name.
A kill at any point leaves either everything or a folder that the next attachment removes.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from agent.capture import audit, layout, libbpf, pins, slot_notes
from agent.capture.binding import Pinned
from agent.capture.calibrate import PAGE_B, Calibration, calibrate, prove
from agent.capture.disks import Disk
from agent.capture.libbpf import Shape
from shared import crashpoints
from shared.daemon import logging
from shared.errors import (
    CaptureRemovedError,
    CaptureUnavailableError,
    DeviceNotFoundError,
    DiskResizedError,
    PinnedElsewhereError,
    PinsDamagedError,
    UsageError,
    cause_of,
)

_log = logging.get()

OBJECT: Final = Path(__file__).parent / "bpf/capture.bpf.o"
PINNED_MAPS: Final = {
    "control": ".data.control",
    "ring": "ring",
    "tracked": "tracked",
    "open": "open_writes",
    "counters": "counters",
    "dirty": "dirty",
}
"""Maps of the object that are pinned: map name by pin name."""
_SHAPES: Final = {
    "control": Shape(libbpf.MAP_ARRAY, 4, layout.CONTROL.itemsize, 1),
    "ring": Shape(libbpf.MAP_RING, 0, 0),
    "tracked": Shape(libbpf.MAP_HASH, 4, layout.TRACKED.itemsize),
    "open": Shape(libbpf.MAP_HASH, 8, layout.OPEN_WRITE.itemsize),
    "counters": Shape(libbpf.MAP_ARRAY, 4, layout.COUNTERS.itemsize, layout.MAX_DISKS),
    "dirty": Shape(libbpf.MAP_ARRAY_OF_MAPS, 4, 4, layout.MAX_DISKS),
    "state": Shape(libbpf.MAP_ARRAY, 4, 8),
}
"""Of these, and of the state."""
STATE: Final = "state"
UNREADABLE: Final = "unreadable"
SERVER: Final = "server"
_BTF: Final = Path("/sys/kernel/btf/vmlinux")
_LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
COMPLETIONS: Final = ("us_rq_complete", "us_bio_complete")
_ALWAYS: Final = (*COMPLETIONS, "us_rq_issue")
_FOR_REQUESTS: Final = ("us_backmerge", "us_frontmerge", "us_getrq")
_FOR_BIOS: Final = ("us_queue",)
_REHEARSAL_RING_B: Final = 1 << 16
TRIED_AGAIN: Final = (
    "`python -m agent preflight` with its path says more. It is tried again by itself, every hour at least."
)


def check_machine(
    object_path: Path = OBJECT,
    *,
    btf: Path = _BTF,
    lockdown: Path = _LOCKDOWN,
    is_root: bool | None = None,
) -> None:
    """Raises CaptureUnavailableError if this machine or process obviously cannot load the programs."""
    locked = lockdown.read_text() if lockdown.exists() else ""
    for lacking, cause, action in (
        (
            not (os.geteuid() == 0 if is_root is None else is_root),
            "this process is not root",
            "Run the agent as root: it loads BPF programs.",
        ),
        (
            not btf.exists(),
            f"the kernel has no BTF ({btf} is missing)",
            "Use a kernel from 5.17 on with CONFIG_DEBUG_INFO_BTF, as current distributions have.",
        ),
        (
            "[confidentiality]" in locked,
            "the kernel is locked down (confidentiality), which forbids BPF to read memory",
            "Boot with lockdown=integrity or without lockdown.",
        ),
        (
            not object_path.exists(),
            f"the capture programs are missing ({object_path})",
            "In a checkout, run `make setup`. Elsewhere install Understudy again, from a wheel that `make wheel` made in a checkout.",
        ),
    ):
        if lacking:
            raise CaptureUnavailableError(
                "Writes cannot be captured on this machine", cause=cause, action=action
            )


def rehearse(wanted: Sequence[Disk], *, object_path: Path = OBJECT) -> Calibration:
    """Loads the programs and calibrates on `wanted`, then unloads them: what `attach` would get. Leaves
    nothing behind."""
    loaded = libbpf.BpfObject(object_path)
    try:
        loaded.set_max_entries("ring", _REHEARSAL_RING_B)
        loaded.load()
        return calibrate(loaded, *_calibration_maps(loaded), wanted)
    finally:
        loaded.close()


def try_out(pin_dir: Path, disk: Disk, *, object_path: Path = OBJECT) -> str:
    """Why this disk could not join the capture that is pinned; empty: it could. Neither that nor the disk is touched: what is proved is
    proved with programs and maps of its own. Raises BpfError."""
    with ExitStack() as undo:
        loaded = libbpf.BpfObject(object_path)
        undo.callback(loaded.close)
        loaded.set_max_entries("ring", _REHEARSAL_RING_B)
        loaded.load()
        control, probe = _calibration_maps(loaded)
        if (theirs := pinned_calibration(pin_dir)) is not None:
            control["page_b"], control["vmemmap"] = PAGE_B, theirs.vmemmap
            control["direct_map"] = theirs.direct_map
        for name in bitmap_names(0):
            words, flags = layout.bitmap_words(disk.sectors), libbpf.F_MMAPABLE
            undo.callback(os.close, libbpf.create_array(name.partition("-")[0], 8, words, flags))
        return prove(loaded, probe, disk, readback=bool(int(control["direct_map"])))


def pinned_calibration(pin_dir: Path) -> Calibration | None:
    """The bases that the pinned capture goes by; None: it has none."""
    fd = libbpf.get(pin_dir / "control")
    try:
        control = mapped(fd, layout.CONTROL, 1).reshape(())
        vmemmap, direct_map = int(control["vmemmap"]), int(control["direct_map"])
    finally:
        os.close(fd)
    return Calibration("", vmemmap, direct_map) if direct_map else None


def _calibration_maps(loaded: libbpf.BpfObject) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    control = mapped(loaded.map_fd(".data.control"), layout.CONTROL, 1).reshape(())
    probe = mapped(loaded.map_fd(".data.probe"), layout.PROBE, 1).reshape(())
    return control, probe


def attach_fresh(
    pin_dir: Path,
    wanted: Sequence[Disk],
    ring_b: int,
    object_path: Path,
    prepare: Callable[[npt.NDArray[np.uint64]], None] = lambda words: None,
    *,
    proved: Collection[str] = (),
    known: Calibration | None = None,
) -> Mapping[str, str]:
    """Leaves a complete `pin_dir`, or nothing. `prepare` is given the state's words before anybody can find them. `proved`: disks (by the
    kernel's name) that the capture before this one had as they stand now. Its hooks saw them, and these are the same hooks, so each
    has its place whether or not it answers at this moment. `known`: the bases of that capture, which are the machine's until it boots.

    Returns the disks (by the kernel's name) that are not captured although others are, and why: nothing could be proved on them."""
    if len(wanted) > layout.MAX_DISKS or not wanted:
        raise UsageError(
            f"{len(wanted)} disks cannot be protected",
            cause=f"a machine may have 1 to {layout.MAX_DISKS}",
            action="Choose fewer disks.",
        )
    folder = pins.staging(pin_dir)
    pins.remove(folder)
    baselines, unproved = _baselines(wanted)
    there = [disk for disk in wanted if disk.name in baselines]
    with ExitStack() as undo:
        undo.callback(pins.remove, folder)
        loaded = libbpf.BpfObject(object_path)
        # Descriptors of a running process keep programs attached; the pins alone shall.
        undo_files = undo.enter_context(ExitStack())
        undo_files.callback(loaded.close)
        loaded.set_max_entries("ring", ring_b)
        loaded.load()
        control, probe = _calibration_maps(loaded)
        # Without bases one of those that are proved may still be what they are found on.
        asked = [disk for disk in there if known is None or disk.name not in proved]
        found = calibrate(loaded, control, probe, asked, known)
        control["cause"] = found.cause.encode()[:255]
        unproved |= {name: cause for name, cause in found.unproved.items() if name not in proved}
        captured = [disk for disk in there if disk.name not in unproved]
        folder.mkdir(parents=True)
        for name, map_name in PINNED_MAPS.items():
            libbpf.pin(loaded.map_fd(map_name), folder / name)
        _make_array(STATE, layout.state_words(ring_b), libbpf.F_MMAPABLE, folder / STATE)
        prepare(state_words(folder))
        complete(folder)
        for slot, disk in enumerate(captured):
            prepare_slot(loaded, folder, slot, disk, baselines[disk.name])
            track(loaded.map_fd("tracked"), slot, disk)
        for program in needed(disk.bio_based for disk in captured):
            link = loaded.attach(program)
            undo_files.callback(link.close)
            libbpf.pin(link.fd, pins.link_path(folder, program))
        control["slots"] = len(captured)
        control["object_hash"] = np.frombuffer(sha256(object_path.read_bytes()).digest(), np.uint64)
        control["attached_ns"] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        control["layout"] = layout.LAYOUT
        crashpoints.reach("attach.before-publish")
        pins.publish(pin_dir)
        crashpoints.reach("attach.after-publish")
        return unproved


def _baselines(wanted: Sequence[Disk]) -> tuple[dict[str, int], dict[str, str]]:
    """What the kernel counted of each disk, and why it cannot be told of the others. Raises DeviceNotFoundError when no disk is left."""
    baselines, gone = {}, {}
    for disk in wanted:
        try:
            baselines[disk.name] = audit.read_stat(disk).sectors
        except OSError as exc:
            gone[disk.name] = f"it went away just now ({cause_of(exc)})"
    if not baselines:
        raise DeviceNotFoundError(
            f"{', '.join(disk.id for disk in wanted)}: no disk is there", cause="they went away just now"
        )
    return baselines, gone


def prepare_slot(
    loaded: libbpf.BpfObject, folder: Path, slot: int, disk: Disk, stat_sectors: int | None = None
) -> None:
    """Gives the slot its baseline (`stat_sectors`, or what the kernel counts now) and its bitmaps."""
    stat = audit.read_stat(disk).sectors if stat_sectors is None else stat_sectors
    counters = mapped(loaded.map_fd("counters"), layout.COUNTERS, layout.MAX_DISKS)
    counters[slot]["base"][: layout.AUDIT_WORDS] = audit.Baseline(stat).words()
    words = layout.bitmap_words(disk.sectors)
    flags = libbpf.F_MMAPABLE | libbpf.F_INNER_MAP
    first, second, todo = (folder / name for name in bitmap_names(slot))
    _make_array("dirty_words", words, flags, first)
    _make_array("dirty_words", words, flags, second)
    _make_array("todo", words, libbpf.F_MMAPABLE, todo)
    fd = libbpf.get(first)
    try:
        libbpf.update(loaded.map_fd("dirty"), key_bytes(slot), key_bytes(fd))
    finally:
        os.close(fd)


def track(tracked: int, slot: int, disk: Disk) -> None:
    """From now on the programs that are attached see the disk's writes. `tracked`: the map's descriptor."""
    entry = np.zeros((), layout.TRACKED)
    entry["slot"], entry["diskseq"], entry["sectors"] = slot, disk.diskseq, disk.sectors
    entry["flags"] = layout.DISK_BIO_BASED if disk.bio_based else 0
    libbpf.update(tracked, key_bytes(layout.kernel_dev(disk.major, disk.minor)), entry.tobytes())


def needed(bio_based: Iterable[bool]) -> list[str]:
    """The programs that disks of these kinds need, completions first."""
    kinds = set(bio_based)
    programs = list(_ALWAYS)
    if False in kinds:
        programs += _FOR_REQUESTS
    if True in kinds:
        programs += _FOR_BIOS
    return programs


def read_pinned(pin_dir: Path) -> list[Pinned]:
    """What is captured there, in the order of the stream. Raises CaptureRemovedError if it is not whole, PinnedElsewhereError if it is of
    another version.

    Whole: the maps, of each tracked disk the bitmaps, and the links of all programs that such disks need. Maps alone look like a capture
    that goes on, with every counter in its place, while nobody sees a write.
    """
    what = f"Capture pinned at {pin_dir} cannot be continued"
    _require(what, pin_dir, (*PINNED_MAPS, STATE))
    with ExitStack() as files:
        fds = {}
        for name, shape in _SHAPES.items():
            fds[name] = libbpf.get(pin_dir / name)
            files.callback(os.close, fds[name])
            if not libbpf.has_shape(fds[name], shape):
                raise PinnedElsewhereError(what, cause=f"{name} was made by another version of the agent")
        control = mapped(fds["control"], layout.CONTROL, 1).reshape(())
        if int(control["layout"]) != layout.LAYOUT:
            raise PinnedElsewhereError(what, cause="it was made by another version of the agent")
        keys, values = libbpf.read_hash(fds["tracked"], np.dtype("<u4"), layout.TRACKED)
    _require(what, pin_dir, (name for slot in values["slot"].tolist() for name in bitmap_names(slot)))
    programs = needed(bool(flags & layout.DISK_BIO_BASED) for flags in values["flags"].tolist())
    _require(what, pin_dir, (pins.link_path(pin_dir, program).name for program in programs))
    notes = slot_notes.read(pin_dir, values["slot"].tolist())
    pinned = [
        Pinned(
            slot=int(v["slot"]),
            dev=int(key),
            diskseq=int(v["diskseq"]),
            sectors=int(v["sectors"]),
            id=note.id,
            note=note.line,
            is_damaged=note.is_damaged,
        )
        for key, v, note in zip(keys, values, notes, strict=True)
    ]
    numbers = control["numbers"]
    return sorted(pinned, key=lambda pin: int(numbers[pin.slot]) or layout.MAX_DISKS + 1 + pin.slot)


def _require(what: str, pin_dir: Path, names: Iterable[str]) -> None:
    if missing := [name for name in names if not (pin_dir / name).exists()]:
        raise CaptureRemovedError(what, cause=f"pins were removed: {', '.join(missing)}")


def by_slot(pin_dir: Path, wanted: Sequence[Disk]) -> dict[int, Disk]:
    """`wanted` by the slot that the pinned capture has them in, in the order of the stream. Raises PinnedElsewhereError unless it captures
    exactly these; DiskResizedError, which is one, if it does but one has another size."""
    what = f"Capture pinned at {pin_dir} cannot be continued"
    pinned = read_pinned(pin_dir)
    by_dev = {layout.kernel_dev(disk.major, disk.minor): disk for disk in wanted}
    if by_dev.keys() != {pin.dev for pin in pinned}:
        names = ", ".join(
            f"{pin.dev >> 20}:{pin.dev & 0xFFFFF}" for pin in sorted(pinned, key=lambda p: p.dev)
        )
        raise PinnedElsewhereError(what, cause=f"it captures other disks (devices {names})")
    for pin in pinned:
        disk = by_dev[pin.dev]
        if pin.diskseq != disk.diskseq:
            raise PinnedElsewhereError(what, cause=f"{disk.path} is not the disk that was captured any more")
        if pin.sectors != disk.sectors:
            raise DiskResizedError(
                what, cause=f"{disk.path} has {disk.sectors} sectors now, not {pin.sectors}"
            )
    return {pin.slot: by_dev[pin.dev] for pin in pinned}


def state_words(folder: Path) -> npt.NDArray[np.uint64]:
    return words_at(folder / STATE)


def words_at(path: Path) -> npt.NDArray[np.uint64]:
    """Those of a state that is pinned under this name."""
    fd = libbpf.get(path)
    try:
        return words_of(fd)
    finally:
        os.close(fd)


def words_of(fd: int) -> npt.NDArray[np.uint64]:
    return mapped(fd, np.dtype("<u8"), libbpf.map_info(fd).max_entries)


def create_state(words: int = layout.LEAST_STATE_WORDS) -> int:
    """The descriptor of a state, empty and not pinned."""
    return libbpf.create_array(STATE, 8, words, libbpf.F_MMAPABLE)


Move = Callable[[npt.NDArray[np.uint64], npt.NDArray[np.uint64]], None]


def enlarge_state(pin_dir: Path, move: Move) -> None:
    """Gives a capture that was pinned by an older agent a state as long as its ring makes it. One step for whoever looks: the new one takes
    the name when everything is in it. Only while no agent has it open. What is not whole, or of another version, is left as it is."""
    pinned, next_ = pin_dir / STATE, pin_dir / f"{STATE}-next"
    next_.unlink(missing_ok=True)
    try:
        read_pinned(pin_dir)
    except PinnedElsewhereError:  # nothing at all, among others
        return
    with ExitStack() as undo:
        ring, old = (libbpf.get(path) for path in (pin_dir / "ring", pinned))
        undo.callback(os.close, ring)
        undo.callback(os.close, old)
        words = layout.state_words(libbpf.map_info(ring).max_entries)
        if libbpf.map_info(old).max_entries >= words:
            return
        new = create_state(words)
        undo.callback(os.close, new)
        move(words_of(old), words_of(new))
        libbpf.pin(new, next_)
        next_.rename(pinned)


def complete(folder: Path) -> None:
    """Makes what an older agent did not pin, or another version pinned with another shape. Whoever reads it sees that it tells of
    nothing."""
    for name, entries, flags, entry_b in (
        (UNREADABLE, layout.UNREADABLE_WORDS, libbpf.F_MMAPABLE, 8),
        (SERVER, layout.SERVER_WORDS, libbpf.F_MMAPABLE, 8),
        *((name, layout.MAX_DISKS, 0, entry_b) for name, entry_b in slot_notes.PINS.items()),
    ):
        pin = folder / name
        if pin.exists() and not _has_shape(pin, Shape(libbpf.MAP_ARRAY, 4, entry_b, entries)):
            damage = PinsDamagedError(f"{pin} is not gone by", cause="another version of the agent made it")
            _log.warning("a pin is made anew", **damage.as_dict())
            pin.unlink()
        if not pin.exists():
            _make_array(name, entries, flags, pin, entry_b)


def _has_shape(path: Path, shape: Shape) -> bool:
    fd = libbpf.get(path)
    try:
        return libbpf.has_shape(fd, shape)
    finally:
        os.close(fd)


def _make_array(name: str, entries: int, flags: int, path: Path, entry_b: int = 8) -> None:
    fd = libbpf.create_array(name, entry_b, entries, flags)
    try:
        libbpf.pin(fd, path)
    finally:
        os.close(fd)


def bitmap_names(slot: int) -> tuple[str, str, str]:
    """Pins of the slot's two dirty bitmaps and its to-do bitmap."""
    return f"dirty-a-{slot:02d}", f"dirty-b-{slot:02d}", f"todo-{slot:02d}"


def key_bytes(number: int) -> bytes:
    """A key, or a descriptor given as a value."""
    return number.to_bytes(4, "little")


def mapped(fd: int, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """An array in the map's own memory; unmapped when the last view of it is gone."""
    size = -(-dtype.itemsize * count // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(memory, dtype, count)
