"""A workload for the demo and the system tests: writes files whose name is their checksum, and removes old ones, until it is killed.

A file gets its name (a rename into `done/`) only after fsync, so a crash-consistent image holds under `done/` only whole files.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from pathlib import Path

KEPT = 150
RATE_B = 5e6


def main(folders: list[Path]) -> None:
    random_bytes = random.Random(os.getpid())
    for folder in folders:
        (folder / "done").mkdir(exist_ok=True)
        (folder / "work").mkdir(exist_ok=True)
    written: list[Path] = []
    began, total = time.monotonic(), 0
    while True:
        folder = folders[len(written) % len(folders)]
        data = random_bytes.randbytes(random_bytes.choice((700, 4096, 60_000, 400_000)))
        work = folder / "work" / "file"
        with work.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        done = folder / "done" / hashlib.sha256(data).hexdigest()
        work.rename(done)
        written.append(done)
        if len(written) > KEPT:
            written.pop(0).unlink()
            written.pop(0).unlink()
        total += len(data)
        time.sleep(max(0.0, total / RATE_B - (time.monotonic() - began)))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
