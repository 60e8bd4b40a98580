"""Calibration: how a BPF program finds the data of a page, learnt from a page of our own, and proved before
it is used.

A program sees `struct page *`, not data. On machines with a direct map and a virtual memory map (x86-64,
arm64)

    address of data = direct_map + pfn × page size,   pfn = (page − vmemmap) ÷ sizeof(struct page)

with two bases that the kernel randomises and often hides. We issue one O_DIRECT READ of the disk into a
page of ours that holds random magic. At submission the device has not touched the page yet, so the program
finds our magic in it. (A read serves as well as a write, and writes nothing to anybody's disk.) We know the
page's pfn from /proc/self/pagemap, so

    vmemmap = bv_page − pfn × sizeof(struct page)

and the program looks for the direct map's base downwards from an address that surely lies in it (its task,
from a slab), in steps of the base's alignment, until the magic reads back. A second read, from another
page, must then read back by the bases alone: 4096 random bytes equal, or the calibration failed. It also
shows that the hooks see this disk at all, so every disk is probed once. The bases are the machine's, not a disk's: they are
found on any disk that works, and one on which nothing can be proved costs only itself.

A failure on all disks is no error: capture then runs in bitmap mode and says why.

The page is shared with a program that reads in our place (`answer.PageReader`): a disk may hang at any read, this one too, and costs
itself and a deadline, whatever it answered a moment ago. Should that read reach the device long after, it finds no probe.
"""

from __future__ import annotations

import mmap
import os
import platform
import secrets
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from agent.capture.answer import HangsError, PageReader
from agent.capture.disks import Disk
from agent.capture.layout import DATA_B, PROBE_WORDS, SECTOR, kernel_dev
from agent.capture.libbpf import BpfObject
from shared.errors import BpfError, cause_of

PAGE_B: Final = mmap.PAGESIZE
_GIB: Final = 1 << 30
_SEARCH_STEP_B: Final = {"x86_64": _GIB, "aarch64": 128 << 20}
"""Alignment of the direct map's base: x86-64 randomises it by whole PUDs; arm64 aligns memstart by 128 MiB
at least."""
_SEARCH_LIMIT_B: Final = 16 << 40
"""More memory than machines have; the search runs with preemption off, some 100 ns a step."""
_PFN_BITS: Final = (1 << 55) - 1
_TRIES: Final = 3
_READS: Final = 4
_PROBE_SECTORS: Final = DATA_B // SECTOR
_PROBE_PROGRAMS: Final = ("us_probe_getrq", "us_probe_queue")


@dataclass(frozen=True, slots=True)
class Calibration:
    """`cause` is empty when the bases were found and proved; then data can be captured."""

    cause: str
    vmemmap: int = 0
    direct_map: int = 0
    tried: int = 0
    """Candidates for the direct map's base that were looked at."""
    unproved: Mapping[str, str] = field(default_factory=dict)
    """With bases: on which disks (by the kernel's name) they could not be proved, and why."""


def calibrate(
    loaded: BpfObject,
    control: npt.NDArray[Any],
    probe: npt.NDArray[Any],
    disks: Sequence[Disk],
    known: Calibration | None = None,
) -> Calibration:
    """Finds the bases with one read of the first disk that allows it, and proves them with one read of each. `known`: bases that this
    boot's capture goes by already; then only what they are worth on these disks is asked, and none of these can take them away.

    `control` and `probe` are the mapped structures of the loaded object (`layout.CONTROL`, `layout.PROBE`).
    Leaves the bases in `control`, or zeroes when it failed. Attaches the probe programs and detaches them
    again; reads 4 KiB of each disk.
    """
    step = _SEARCH_STEP_B.get(platform.machine())
    if step is None:
        return Calibration(f"the memory layout of {platform.machine()} is not known")
    control["page_b"] = PAGE_B
    found = Calibration("")
    try:
        with ExitStack() as links:
            for program in _PROBE_PROGRAMS:
                links.callback(loaded.attach(program).close)
            for _ in range(_TRIES):  # the kernel may move our page just between looking and reading
                found = (
                    _try(control, probe, disks, step)
                    if known is None
                    else _check(control, probe, disks, known)
                )
                if not found.cause and not found.unproved:
                    break
            return found
    except BpfError as exc:
        control["vmemmap"], control["direct_map"] = 0, 0
        return Calibration(str(exc))


def prove(loaded: BpfObject, probe: npt.NDArray[Any], disk: Disk, *, readback: bool) -> str:
    """The cause why the hooks do not see this disk, or (with `readback`) why the bases that are known do not give its data;
    empty when all is well. For a disk that joins a capture whose `control` is shared with `loaded`."""
    with ExitStack() as links:
        for program in _PROBE_PROGRAMS:
            links.callback(loaded.attach(program).close)
        probe["step"] = 0
        cause = ""
        for _ in range(_TRIES):
            with _Page() as page:
                cause = _prove(probe, disk) if readback else _read_through(probe, disk, page)
            if not cause:
                break
        return cause


def _try(control: npt.NDArray[Any], probe: npt.NDArray[Any], disks: Sequence[Disk], step: int) -> Calibration:
    control["vmemmap"], control["direct_map"] = 0, 0
    tries = [_find(control, probe, disks[0], step)]
    for disk in disks[1:]:
        if not tries[-1].cause:
            break
        tries.append(_find(control, probe, disk, step))
    found = tries[-1]
    if found.cause:
        return tries[0]
    control["vmemmap"], control["direct_map"] = found.vmemmap, found.direct_map
    unproved = {disk.name: cause for disk in disks if (cause := _prove(probe, disk))}
    if len(unproved) < len(disks):
        return replace(found, unproved=unproved)
    control["vmemmap"], control["direct_map"] = 0, 0
    return Calibration(unproved[disks[0].name], tried=found.tried)


def _check(
    control: npt.NDArray[Any], probe: npt.NDArray[Any], disks: Sequence[Disk], known: Calibration
) -> Calibration:
    control["vmemmap"], control["direct_map"] = known.vmemmap, known.direct_map
    return replace(known, unproved={disk.name: cause for disk in disks if (cause := _prove(probe, disk))})


def _find(control: npt.NDArray[Any], probe: npt.NDArray[Any], disk: Disk, step: int) -> Calibration:
    with _Page() as page:
        if not page.pfn:
            return Calibration("/proc/self/pagemap hides page frame numbers (CAP_SYS_ADMIN is missing)")
        probe["step"], probe["steps"] = step, _SEARCH_LIMIT_B // step
        cause = _read_through(probe, disk, page)
    if cause:
        return Calibration(cause)
    tried = int(probe["tried"])
    if not int(probe["direct_map"]):
        return Calibration(f"the direct map was not found in {tried} steps of {step >> 20} MiB", tried=tried)
    vmemmap = (int(probe["bv_page"]) - page.pfn * int(probe["page_struct_b"])) % (1 << 64)
    return Calibration("", vmemmap, int(probe["direct_map"]), tried)


def _prove(probe: npt.NDArray[Any], disk: Disk) -> str:
    """The cause why the bases do not give back what the page held; empty when they do."""
    with _Page() as page:
        probe["readback"] = 0
        if cause := _read_through(probe, disk, page):
            return cause
        if not np.array_equal(probe["readback"], page.filled):
            return f"data of a page of our own did not read back on {disk.path}"
    return ""


def _read_through(probe: npt.NDArray[Any], disk: Disk, page: _Page) -> str:
    """Reads into the page with the probe armed. The cause why the programs did not see it; empty when they
    did."""
    cause = ""
    for _ in range(_READS):
        page.fill()  # whatever an earlier read left there is no magic
        sector = (
            secrets.randbelow(disk.sectors // _PROBE_SECTORS) * _PROBE_SECTORS
        )  # read by nobody else just now
        probe["dev"], probe["sector"], probe["pfn"] = kernel_dev(disk.major, disk.minor), sector, page.pfn
        probe["magic"] = page.filled.view(np.uint64)[:PROBE_WORDS]
        for name in ("seen", "bv_page", "direct_map", "tried"):
            probe[name] = 0
        probe["armed"] = 1
        try:
            page.read_into(disk, sector)
            cause = f"a read of {disk.path} did not pass the block layer's hooks"
        except HangsError as exc:
            return f"a read of {disk.path} hangs: {exc}"
        except OSError as exc:  # a bad sector; the next one is elsewhere
            cause = f"a read of {disk.path} failed: {cause_of(exc)}"
        finally:
            probe["armed"] = 0
        if int(probe["seen"]):
            return ""
    return cause


class _Page:
    """One page of memory with a known frame number, and the disks that are read into it."""

    def __init__(self) -> None:
        with ExitStack() as undo:
            self._file = os.memfd_create("understudy-page", os.MFD_CLOEXEC)
            undo.callback(os.close, self._file)
            os.ftruncate(self._file, PAGE_B)
            self._memory = undo.enter_context(mmap.mmap(self._file, PAGE_B))
            self.fill()
            view = np.frombuffer(self._memory, np.uint8)
            address = int(view.ctypes.data)
            del view  # or the memory could not be unmapped
            with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
                pagemap.seek(address // PAGE_B * 8)
                (entry,) = struct.unpack("<Q", pagemap.read(8))
            self.pfn: Final = entry & _PFN_BITS
            self._readers: dict[str, PageReader] = {}
            self._undo = undo.pop_all()

    def __enter__(self) -> _Page:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def fill(self) -> None:
        """New random content; `filled` is its first 4096 bytes."""
        content = secrets.token_bytes(PAGE_B)
        self._memory[:] = content
        self.filled: npt.NDArray[np.uint8] = np.frombuffer(content[:DATA_B], np.uint8)

    def read_into(self, disk: Disk, sector: int) -> None:
        """Raises OSError, HangsError."""
        if disk.name not in self._readers:
            self._readers[disk.name] = PageReader(disk, self._file)
            self._undo.callback(self._readers[disk.name].close)
        self._readers[disk.name].read(sector)
