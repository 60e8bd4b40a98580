"""A file that hangs and fails when it is told to: a file system in user space (kernel's FUSE protocol, 7.31), with a loop device over it.

It is mounted in a mount namespace of its own: whoever else on this host looks at all mounts (mkfs, df) must not hang with the file. A hang
ends after a limit, with the program: what waits for the file fails then, and a test that hangs with it, too.

    python -m tests.sick_file FILE SIZE LIMIT_S      commands on standard input, one a line; says "at DEVICE", then "now MODE" for each
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
import select
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

_CLONE_NEWNS: Final = 0x20000
_MS_PRIVATE_ALL: Final = (1 << 18) | (1 << 14)
_MNT_DETACH: Final = 2
_MAX_WRITE_B: Final = 1 << 17
_IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
_OUT_HEADER: Final = struct.Struct("<IiQ")
_RANGE: Final = struct.Struct("<QQI")
"""Of READ and WRITE: handle, offset, size."""
_WRITE_IN_B: Final = 40


STRIPE_B: Final = 64 << 10


class Mode(enum.Enum):
    WELL = "well"
    HANG = "hang"
    FAIL = "fail"
    LEG = "leg"
    """Reads and writes of every other stripe fail: those of one of two legs of a striped volume."""


class _Op(enum.IntEnum):
    FORGET = 2
    GETATTR = 3
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    BATCH_FORGET = 42


_UNANSWERED: Final = (_Op.FORGET, _Op.INTERRUPT, _Op.BATCH_FORGET)


def main(file: Path, size_b: int, limit_s: float) -> None:
    file.touch()
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fuse},rootmode={stat.S_IFREG | 0o600:o},user_id=0,group_id=0"
    for result in (
        libc.unshare(_CLONE_NEWNS),
        libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_PRIVATE_ALL), None),
        libc.mount(b"sick", bytes(file), b"fuse", ctypes.c_ulong(0), options.encode()),
    ):
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
    _let_go_of_others(libc)
    threading.Thread(target=_attach, args=(file,), daemon=True).start()
    _Server(fuse, size_b, limit_s).run()


def _let_go_of_others(libc: ctypes.CDLL) -> None:
    """File systems of other tests: while they are mounted here they are not unmounted when those think so, and go on writing."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, target, *_ = line.split(" ")
        if source.startswith("/dev/loop"):
            libc.umount2(target.encode(), _MNT_DETACH)


def _attach(file: Path) -> None:
    command = ["losetup", "--find", "--show", "--direct-io=on", str(file)]
    print(
        "at", subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True
    )


class _Server:
    def __init__(self, fuse: int, size_b: int, limit_s: float) -> None:
        self._fuse = fuse
        self._limit_s = limit_s
        self._hangs_until = float("inf")
        self._content = bytearray(size_b)
        self._mode = Mode.WELL
        self._waiting: list[bytes] = []

    def run(self) -> None:
        while True:
            left_s = self._hangs_until - time.monotonic()
            if left_s < 0:
                raise TimeoutError(f"it was left hanging for {self._limit_s:.0f} s")
            watched = [self._fuse, sys.stdin]
            readable, _, _ = select.select(watched, [], [], min(left_s, self._limit_s))
            if sys.stdin in readable:
                line = sys.stdin.readline()
                if not line:
                    return
                self._turn(Mode(line.strip()))
            if self._fuse in readable:
                # Whoever asked may have been killed meanwhile: then nothing is there any more, nor anybody to answer.
                with contextlib.suppress(BlockingIOError, FileNotFoundError):
                    self._take(os.read(self._fuse, _MAX_WRITE_B + 4096))

    def _turn(self, mode: Mode) -> None:
        self._mode = mode
        self._hangs_until = time.monotonic() + self._limit_s if mode is Mode.HANG else float("inf")
        if mode is not Mode.HANG:
            waiting, self._waiting = self._waiting, []
            for request in waiting:
                with contextlib.suppress(FileNotFoundError):
                    self._take(request)
        print("now", mode.value, flush=True)

    def _take(self, request: bytes) -> None:
        _, op, unique, *_ = _IN_HEADER.unpack_from(request)
        if op in _UNANSWERED:
            return
        if self._mode is Mode.HANG:
            self._waiting.append(request)
            return
        body = memoryview(request)[_IN_HEADER.size :]
        failing = self._mode is Mode.FAIL and op in (_Op.READ, _Op.WRITE, _Op.FSYNC)
        if self._mode is Mode.LEG and op in (_Op.READ, _Op.WRITE):
            _, offset, size = _RANGE.unpack_from(body)
            failing = any(at // STRIPE_B % 2 for at in range(offset, offset + size, 512))
        error, answer = (errno.EIO, b"") if failing else self._answer(op, body)
        os.write(self._fuse, _OUT_HEADER.pack(_OUT_HEADER.size + len(answer), -error, unique) + answer)

    def _answer(self, op: int, body: memoryview) -> tuple[int, bytes]:
        match op:
            case _Op.INIT:
                return 0, struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 9, _MAX_WRITE_B, 1, 0, 0, 0)
            case _Op.GETATTR:
                blocks = len(self._content) // 512
                attributes = struct.pack("<6Q", 1, len(self._content), blocks, 0, 0, 0)
                attributes += struct.pack("<10I", 0, 0, 0, stat.S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0)
                return 0, struct.pack("<QII", 0, 0, 0) + attributes
            case _Op.OPEN:
                return 0, struct.pack("<QII", 0, 0, 0)
            case _Op.READ:
                _, offset, size = _RANGE.unpack_from(body)
                return 0, bytes(self._content[offset : offset + size])
            case _Op.WRITE:
                _, offset, size = _RANGE.unpack_from(body)
                self._content[offset : offset + size] = body[_WRITE_IN_B : _WRITE_IN_B + size]
                return 0, struct.pack("<II", size, 0)
            case _Op.FLUSH | _Op.FSYNC | _Op.RELEASE:
                return 0, b""
        return errno.ENOSYS, b""


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
