"""What several tests of the agent set up."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.catch_up_reads import DISK_B
from tests.loopdisk import loop_disk
from tests.protected_machine import Machine, machine_with_two_disks


@pytest.fixture
def machine() -> Iterator[Machine]:
    with machine_with_two_disks() as made:
        yield made


@pytest.fixture
def content() -> bytes:
    return secrets.token_bytes(DISK_B)


@pytest.fixture
def disk(content: bytes) -> Iterator[str]:
    backing = Path("/dev/shm") / f"understudy-{secrets.token_hex(4)}"
    with loop_disk(backing, DISK_B) as device:
        Path(device).write_bytes(content)
        subprocess.run(["blockdev", "--flushbufs", device], check=True)
        yield device
