"""Does a disk answer? Asked by a process of its own, which can be given up.

A read of a hung disk returns never, not even for a signal: whoever made it hangs with the disk, and a daemon with such a thread cannot
even end. So a small program reads in our place (this file, run by itself, with nothing but the standard library). One that does not
answer in time is left behind; it ends when its disk lets it. Until then the disk is not asked again, however often somebody looks: one
child hangs with a hung disk, not one more every few seconds.
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HEAD_B = 8192
"""Room for a partition table with logical blocks of 512 or 4096 bytes."""
DEADLINE_S = 10.0
_BLOCK_B = 4096
_TRIES = 4


@dataclass(frozen=True)
class Answer:
    head: bytes = b""
    """The disk's first bytes; none where they cannot be read."""
    cause: str = ""
    """Why nothing of the disk can be read; empty when something can."""
    hangs: bool = False


_given_up: dict[str, subprocess.Popen[bytes]] = {}
"""By disk, the child that hangs with it."""
_asking = threading.Lock()


def ask(devices: Iterable[str], deadline_s: float = DEADLINE_S) -> dict[str, Answer]:
    """The answers of all devices, which are asked at once. Blocks until `deadline_s` at most, behind others who ask just now."""
    with _asking:
        for disk in [disk for disk, child in _given_up.items() if child.poll() is not None]:
            del _given_up[disk]
        answers: dict[str, Answer] = {}
        children: dict[str, subprocess.Popen[bytes]] = {}
        for device in dict.fromkeys(devices):
            if _disk(device) in _given_up:
                answers[device] = Answer(cause="it did not answer, and still does not", hangs=True)
                continue
            children[device] = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, device],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        end = time.monotonic() + deadline_s
        return answers | {device: _hear(device, child, end, deadline_s) for device, child in children.items()}


def _disk(device: str) -> str:
    """What stands at this path now. Another disk may come to stand there while a child still hangs with the former."""
    try:
        number = Path(device).stat().st_rdev
        sequence = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/diskseq").read_text().strip()
    except OSError:
        return device
    return f"{number} {sequence}"


def _hear(device: str, child: subprocess.Popen[bytes], end: float, deadline_s: float) -> Answer:
    try:
        said, _ = child.communicate(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()
        assert child.stdout is not None
        child.stdout.close()
        _given_up[_disk(device)] = child
        return Answer(cause=f"it did not answer within {deadline_s:.0f} s", hangs=True)
    kind, _, rest = said.partition(b" ")
    if kind == b"ok":
        return Answer(head=bytes.fromhex(rest.decode()))
    return Answer(cause=rest.decode(errors="replace") or "the program that reads it failed")


def _read(device: str) -> str:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as exc:
        return f"error it cannot be opened: {exc.strerror}"
    blocks = os.lseek(fd, 0, os.SEEK_END) // _BLOCK_B
    room = mmap.mmap(-1, HEAD_B)
    cause = "it is empty"
    try:
        count = os.preadv(fd, [memoryview(room)[: min(HEAD_B, blocks * _BLOCK_B)]], 0)
        if count:
            return f"ok {room[:count].hex()}"
    except OSError as exc:
        cause = exc.strerror or str(exc)
    for _ in range(_TRIES if blocks else 0):  # a bad sector is no bad disk
        try:
            os.preadv(fd, [memoryview(room)[:_BLOCK_B]], random.randrange(blocks) * _BLOCK_B)
        except OSError as exc:
            cause = exc.strerror or str(exc)
        else:
            return "ok "
    return f"error reads of it fail: {cause}"


if __name__ == "__main__":
    sys.stdout.write(_read(sys.argv[1]))
