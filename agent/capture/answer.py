"""Does a disk answer? Asked by a process of its own, which can be given up.

A read of a hung disk returns never, not even for a signal: whoever made it hangs with the disk, and a daemon with such a thread cannot
even end. The same holds for opening it, for its ioctls, and for what sysfs says of it: whoever changes an attribute of its queue waits
for the disk, and who reads one waits for him; a serial number is asked of the device when somebody reads it (virtio). So a small program
does all that in our place (`device_program`). One that does not answer in time is left behind; it ends when its disk lets it. Until then
the disk is not asked again, however often somebody looks: one child hangs with a hung disk, not one more every few seconds.

**To start it may hang, too**, when the interpreter lies on a hung disk (the root disk): to execute it, its pages are read. So it is started
in a thread, which is left behind like a child. And by fork, not by vfork, for the whole process: behind vfork the parent stands until the
child has executed its program, and holds the interpreter's lock: every other thread would stand with it. A fork copies the tables of the
agent's memory (a millisecond or two) and none of it; what the disks are read into is shared memory, which a fork leaves alone.

    ask          each disk's first bytes, and the file behind a loop device     at a look
    attributes   what sysfs says of the disks, their queues and their names     at a look
    PageReader   reads into a page of ours                                      while calibrating
    why_unread   a few sectors that were refused                                at a look, of a disk that is left out for that
"""

from __future__ import annotations

import ast
import contextlib
import mmap
import os
import random
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.capture import device_program
from agent.capture.disks import UNKNOWN, Attributes, Disk
from shared.daemon import threads
from shared.errors import DeviceError, NoThreadError, cause_of

PROGRAM = device_program.__file__
DEADLINE_S = 10.0
ATTRIBUTES_DEADLINE_S: Final = 5.0
"""Few drivers ask the device for these: they come at once, or when a hung disk lets go."""
_BLOCK_SECTORS: Final = device_program.BLOCK_B // 512
_EACH_S: Final = 0.1
_AT_ONCE: Final = 8
_STILL: Final = "it did not answer, and still does not"


@dataclass(frozen=True)
class Answer:
    head: bytes = b""
    """The disk's first bytes; none where they cannot be read."""
    cause: str = ""
    """Why nothing of the disk can be read; empty when something can."""
    hangs: bool = False
    file: str = ""
    """Of a loop device: "device:inode" of the file behind it."""


NOTHING: Final = Answer()


class HangsError(Exception):
    """The disk does not answer: whoever asked was left behind."""


_given_up: dict[str, subprocess.Popen[bytes]] = {}
"""By disk, the child that hangs with it."""
_asking = threading.Lock()
_late: set[Future[subprocess.Popen[bytes]]] = set()
"""The start that hangs: while it does, no other is tried."""
_handing_over = threading.Lock()
_NOT_STARTED: Final = "the program that asks it does not start: the interpreter may lie on a disk that hangs"
subprocess._USE_VFORK = False  # type: ignore[misc]


def ask(devices: Iterable[str], deadline_s: float | None = None) -> dict[str, Answer]:
    """The answers of all devices, which are asked at once. Blocks until `deadline_s` at most, behind others who ask just now."""
    deadline_s = DEADLINE_S if deadline_s is None else deadline_s
    with _asking:
        _forget_those_that_ended()
        answers: dict[str, Answer] = {}
        children: dict[str, _Lines] = {}
        for device in dict.fromkeys(devices):
            if _disk(device) in _given_up:
                answers[device] = Answer(cause=_STILL, hangs=True)
                continue
            try:
                children[device] = _Lines(_run("head", device))
            except HangsError as exc:
                answers[device] = Answer(cause=str(exc), hangs=True)
        end = time.monotonic() + deadline_s
        return answers | {device: _hear(device, child, end, deadline_s) for device, child in children.items()}


def attributes(names: Sequence[str]) -> dict[str, Attributes]:
    """What sysfs says of these disks (by the names of their folders there); `UNKNOWN` of those that do not answer.

    One child reads them all. Where it hangs, those that are left are shared among some, so that many hung disks take little more time
    than one, and no more processes."""
    found = dict.fromkeys(names, UNKNOWN)
    with _asking:
        _forget_those_that_ended()
        left = [name for name in names if _attributes(name) not in _given_up]
        at_once = 1
        while left:
            groups = [left[i::at_once] for i in range(min(at_once, len(left)))]
            children: list[tuple[list[str], _Lines]] = []
            with contextlib.suppress(HangsError):  # what is not asked is unknown
                for group in groups:
                    children.append((group, _Lines(_run("attributes", *group))))
            end = time.monotonic() + ATTRIBUTES_DEADLINE_S + _EACH_S * len(groups[0])
            left = [name for group, lines in children for name in _hear_attributes(group, lines, end, found)]
            at_once = _AT_ONCE
    return found


def _hear_attributes(
    group: Sequence[str], lines: _Lines, end: float, found: dict[str, Attributes]
) -> Sequence[str]:
    """Those that the child did not come to, since the one before hangs."""
    for i, name in enumerate(group):
        try:
            line = lines.hear(max(0.0, end - time.monotonic()))
        except HangsError:
            lines.leave_behind(_attributes(name))
            return group[i + 1 :]
        if not line:
            lines.close()
            return group[i + 1 :]
        has_requests = Path("/sys/block", name, "mq").is_dir()
        found[name] = Attributes.of(ast.literal_eval(line), has_requests=has_requests)
    lines.close()
    return []


class PageReader:
    """Reads a disk, and no other that has come to stand in its place, into a page that is shared with the child (`page`: its descriptor).
    For one thread."""

    def __init__(self, disk: Disk, page: int) -> None:
        self._which = [str(part) for part in (disk.major, disk.minor, disk.diskseq, disk.device, disk.path)]
        self._key = _key(os.makedev(disk.major, disk.minor), str(disk.diskseq))
        self._page = page
        self._lines: _Lines | None = None

    def read(self, sector: int) -> None:
        """Raises OSError, and HangsError within `DEADLINE_S`, or at once when the disk hangs already."""
        with _asking:
            _forget_those_that_ended()
            if self._key in _given_up:
                raise HangsError(_STILL)
        if self._lines is None:
            self._lines = _Lines(_run("pages", str(self._page), *self._which, page=self._page))
        self._lines.tell(str(sector))
        try:
            answer = self._lines.hear(DEADLINE_S)
        except HangsError:
            with _asking:
                self._lines.leave_behind(self._key)
            self._lines = None
            raise
        kind, _, cause = answer.partition(" ")
        if kind != "ok":
            self.close()  # the next read begins with a program that has opened it anew
            raise OSError(0, cause or "the program that reads it failed")

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None


def why_unread(disk: Disk, sectors: Sequence[int]) -> str:
    """Why not more than half of these can be read within `DEADLINE_S` for all; empty when they can. Blocks for twice that at most. They are
    asked in another order each time: one that is bad for good may hold up all of a drive."""
    end, given, cause = time.monotonic() + DEADLINE_S, 0, ""
    try:
        with contextlib.ExitStack() as stack:
            page = os.memfd_create("sample", os.MFD_CLOEXEC)
            stack.callback(os.close, page)
            os.ftruncate(page, mmap.PAGESIZE)
            reader = stack.enter_context(contextlib.closing(PageReader(disk, page)))
            for sector in random.sample(sectors, len(sectors)):
                try:
                    reader.read(sector // _BLOCK_SECTORS * _BLOCK_SECTORS)
                    given += 1
                except OSError as exc:
                    cause = str(exc)
                if 2 * given > len(sectors):
                    return ""
                if time.monotonic() > end:
                    return f"it takes more than {DEADLINE_S:g} s to give what it refused"
    except (OSError, HangsError, DeviceError, NoThreadError) as exc:
        return str(exc)
    return cause


class _Lines:
    """A child that is told and tells a line at a time."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._heard = b""

    def tell(self, line: str) -> None:
        assert self._child.stdin is not None
        try:
            os.write(self._child.stdin.fileno(), f"{line}\n".encode())
        except BrokenPipeError:  # it ended, which `hear` finds
            return

    def hear(self, deadline_s: float) -> str:
        """Empty when the child has ended. Raises HangsError."""
        assert self._child.stdout is not None
        fd = self._child.stdout.fileno()
        end = time.monotonic() + deadline_s
        ready = select.poll()
        ready.register(fd, select.POLLIN)
        while b"\n" not in self._heard:
            if not ready.poll(max(0.0, end - time.monotonic()) * 1000):
                raise HangsError(f"it did not answer within {deadline_s:g} s")
            part = os.read(fd, 65536)
            if not part:
                return ""
            self._heard += part
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode(errors="replace")

    def leave_behind(self, key: str) -> None:
        _leave_behind(key, self._child)

    def close(self) -> None:
        """It waits for a line or has ended, unless somebody was interrupted who waited for it."""
        self._child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(1.0)
        _close_pipes(self._child)


def _run(*arguments: str, page: int | None = None) -> subprocess.Popen[bytes]:
    """Raises HangsError when the program does not start in time, DeviceError and NoThreadError when this host runs no more programs."""
    with _handing_over:
        if _late:
            raise HangsError(_NOT_STARTED)
    start: Future[subprocess.Popen[bytes]] = Future()
    threads.start(
        threading.Thread(target=_start, args=(start, arguments, page), name="child-start", daemon=True)
    )
    with contextlib.suppress(TimeoutError):
        start.exception(DEADLINE_S)
    with _handing_over:
        if not start.done():
            _late.add(start)
            raise HangsError(_NOT_STARTED)
    try:
        return start.result()
    except OSError as exc:
        raise DeviceError(
            "Disks cannot be asked whether they answer",
            cause=f"the program that asks them could not be started: {cause_of(exc)}",
            action="Give this host and the agent's service room for processes, open files and memory. It is tried again.",
        ) from exc


def _start(start: Future[subprocess.Popen[bytes]], arguments: Sequence[str], page: int | None) -> None:
    child: subprocess.Popen[bytes] | None = None
    failed: Exception | None = None
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", PROGRAM, *arguments],
            stdin=subprocess.DEVNULL if page is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=() if page is None else (page,),
        )
    except Exception as exc:  # noqa: BLE001 - whoever waits for the child gets it
        failed = exc
    with _handing_over:
        is_late = start in _late
        _late.discard(start)
        if child is not None and not is_late:
            start.set_result(child)
        elif failed is not None:
            start.set_exception(failed)
    if child is not None and is_late:
        child.kill()
        _close_pipes(child)
        child.wait()


def _forget_those_that_ended() -> None:
    for disk in [disk for disk, child in _given_up.items() if child.poll() is not None]:
        del _given_up[disk]


def _leave_behind(key: str, child: subprocess.Popen[bytes]) -> None:
    child.kill()
    _close_pipes(child)
    _given_up[key] = child


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _disk(device: str) -> str:
    """What stands at this path now. Another disk may come to stand there while a child still hangs with the former."""
    try:
        number = Path(device).stat().st_rdev
        sequence = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/diskseq").read_text().strip()
    except OSError:
        return device
    return _key(number, sequence)


def _key(number: int, sequence: str) -> str:
    return f"{number} {sequence}"


def _attributes(name: str) -> str:
    try:
        return f"attributes {name} {Path('/sys/block', name, 'diskseq').read_text().strip()}"
    except OSError:
        return f"attributes {name}"


def _hear(device: str, child: _Lines, end: float, deadline_s: float) -> Answer:
    """What has come by then counts, also when the time was spent on waiting for another disk."""
    try:
        said = child.hear(max(0.0, end - time.monotonic()))
    except HangsError:
        child.leave_behind(_disk(device))
        return Answer(cause=f"it did not answer within {deadline_s:g} s", hangs=True)
    child.close()
    kind, _, rest = said.partition(" ")
    if kind != "ok":
        return Answer(cause=rest or "the program that reads it failed")
    head, _, file = rest.partition(" ")
    return Answer(head=bytes.fromhex(head), file=file)
