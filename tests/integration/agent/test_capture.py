"""What is written to a disk is in the ring, to the byte, and counted to the sector: real loop disks, real kernel."""

from __future__ import annotations

import fcntl
import itertools
import os
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from agent.capture import layout
from agent.capture.disks import find_disk
from tests.capture_parts import (
    MIB,
    SECTOR,
    Rig,
    aligned,
    frozen,
    mounted,
    needs_capture,
    queue_setting,
    rig,
    run,
    until,
    zram,
)

pytestmark = needs_capture

BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
RWF_NOWAIT = 8


def ioctl_range(r: Rig, request: int, offset: int, size: int) -> None:
    fd = os.open(r.device, os.O_WRONLY)
    try:
        fcntl.ioctl(fd, request, struct.pack("<QQ", offset, size))
    finally:
        os.close(fd)


def assert_whole(r: Rig) -> None:
    """The replica equals the disk; nothing was left out; the kernel counted what capture saw, and nothing is in flight."""
    r.replay()
    incidents = r.capture.incidents()
    assert (incidents.ring_full, incidents.open_missed, incidents.unreadable) == (0, 0, 0)
    assert r.orphans == 0
    for disk in range(len(r.disks)):
        counters = r.capture.counters(disk)
        assert counters.marked_sectors == 0
        assert r.counted(disk) == counters.seen_sectors == counters.captured_sectors
        assert r.differing(disk) == [], f"{r.differences(disk)}; {incidents}, {counters}"


def test_writes_of_every_size_and_kind_are_replayed_to_the_byte() -> None:
    rng = np.random.default_rng(20)
    with rig(32 * MIB) as r:
        with r.draining():
            for turn in range(150):
                sectors = int(rng.integers(1, 600))
                at = int(rng.integers(0, 32 * MIB // SECTOR - sectors)) * SECTOR
                if turn % 10 == 0:
                    ioctl_range(r, BLKDISCARD, at, sectors * SECTOR)
                elif turn % 10 == 1:
                    ioctl_range(r, BLKZEROOUT, at, sectors * SECTOR)
                else:
                    r.write(at, rng.bytes(sectors * SECTOR), direct=bool(turn % 2))
        assert_whole(r)
        assert r.capture.counters(0).zeroed_sectors > 0
        # A device that cannot zero out says so by a failure; the kernel then writes the zeroes.
        assert r.capture.loss_count() == r.capture.incidents().failed


def test_each_record_carries_the_place_of_its_piece() -> None:
    content = np.random.default_rng(1).bytes(20 * SECTOR)
    with rig(8 * MIB) as r:
        r.write(5 * SECTOR, content)
        window = r.capture.ring.peek(10)
        headers = window.headers
        assert headers["sector"].tolist() == [5, 13, 21]
        assert headers["sectors"].tolist() == [8, 8, 4]
        assert headers["piece"].tolist() == [0, 1, 2]
        assert headers["flags"].tolist() == [0, 0, layout.FLAG_LAST]
        assert set(headers["bio_sectors"].tolist()) == {20}
        assert len(set(zip(headers["bio"].tolist(), headers["time_ns"].tolist(), strict=True))) == 1
        assert headers["time_ns"][0] > r.capture.attached_boot_ns
        assert window.valid.all()
        assert window.data.tobytes()[: 20 * SECTOR] == content


def test_writes_to_a_partition_are_captured_at_their_place_on_the_whole_disk() -> None:
    start = 2048
    entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", start, 8 * MIB // SECTOR)
    with rig(32 * MIB) as r:
        r.write(0, bytes(446) + entry + bytes(48) + b"\x55\xaa", direct=False)
        run("partx", "--add", r.device)
        try:
            with Path(f"{r.device}p1").open("r+b") as partition:
                partition.seek(7 * SECTOR)
                partition.write(b"partition" * 1000)
                partition.flush()
                os.fsync(partition.fileno())
        finally:
            run("partx", "--delete", r.device)
        assert int(r.capture.ring.peek(100).headers["sector"][-1]) >= start
        assert_whole(r)
        assert r.replica[0][(start + 7) * SECTOR :][:9].tobytes() == b"partition"


@pytest.mark.parametrize("scheduler", ["none", "mq-deadline"])
def test_merged_writes_are_captured(scheduler: str) -> None:
    with rig(64 * MIB) as r:
        if scheduler not in (Path("/sys/block") / r.disks[0].name / "queue/scheduler").read_text():
            pytest.skip(f"this kernel has no scheduler {scheduler}")
        before = _merges(r)
        with queue_setting(r.disks[0], "scheduler", scheduler), r.draining():
            # Buffered 4-KiB pages, written back together: the kernel merges their bios into large requests.
            r.write(0, np.random.default_rng(2).bytes(24 * MIB), direct=False)
        assert _merges(r) > before
        assert_whole(r)


def _merges(r: Rig) -> int:
    return int((Path("/sys/block") / r.disks[0].name / "stat").read_text().split()[5])


@pytest.mark.parametrize(("filesystem", "size_mib"), [("ext4", 48), ("xfs", 320), ("btrfs", 128)])
def test_a_file_system_at_work_is_replayed_to_the_byte(filesystem: str, size_mib: int) -> None:
    library = Path(os.__file__).parent
    force = "-F" if filesystem == "ext4" else "-f"
    with rig(size_mib * MIB, ring_b=128 * MIB) as r:  # mkfs alone fills half of it
        with r.draining():
            run(f"mkfs.{filesystem}", "-q", force, r.device)
            with mounted(r.device, r.folder / "mnt", "-o", "discard") as mnt:
                run("cp", "-r", *(str(library / part) for part in ("asyncio", "email", "json")), str(mnt))
                run("fio", "--name=x", f"--directory={mnt}", "--size=4M", "--rw=randwrite", "--bs=4k", "--direct=1",
                    "--ioengine=io_uring", "--iodepth=16", "--io_size=8M", "--overwrite=1")  # fmt: skip
                run("fio", "--name=y", f"--directory={mnt}", "--size=4M", "--rw=randwrite", "--bs=1k-64k",
                    "--fsync=16")  # fmt: skip
                run("sync", "-f", str(mnt))
                run("rm", "-r", str(mnt / "email"))
        assert_whole(r)


def test_writes_that_the_kernel_refused_with_eagain_leave_no_trace() -> None:
    with rig(32 * MIB) as r:
        refused = itertools.count()

        def hammer(area: int) -> None:
            rng = np.random.default_rng(area)
            fd = os.open(r.device, os.O_WRONLY | os.O_DIRECT)
            page = aligned(rng.bytes(64 * 1024))
            try:
                for _ in range(60):
                    try:
                        # an area of its own: what writes that overlap in flight leave behind is anybody's guess
                        os.pwritev(fd, [page], area * 2 * MIB + int(rng.integers(0, 32)) * 65536, RWF_NOWAIT)
                    except BlockingIOError:
                        next(refused)
            finally:
                os.close(fd)

        with (
            queue_setting(r.disks[0], "scheduler", "mq-deadline"),
            queue_setting(r.disks[0], "nr_requests", "4"),
            r.draining(),
            ThreadPoolExecutor(12) as pool,
        ):
            list(pool.map(hammer, range(12)))
        assert next(refused) > 0
        assert r.capture.incidents().failed == 0
        assert_whole(r)


def test_a_chain_of_writes_over_two_disks_stands_in_its_order() -> None:
    with rig(8 * MIB, count=2) as r:
        fds = [os.open(disk.path, os.O_WRONLY | os.O_DIRECT) for disk in r.disks]
        rng = np.random.default_rng(5)
        try:
            for number in range(1, 2001):
                page = aligned(struct.pack("<Q", number) * 64)
                os.pwrite(fds[int(rng.integers(0, 2))], page, int(rng.integers(0, 1000)) * SECTOR)
        finally:
            for fd in fds:
                os.close(fd)
        window = r.capture.ring.peek(3000)
        assert window.data[:, :8].copy().view(np.uint64)[:, 0].tolist() == list(range(1, 2001))
        assert set(window.headers["disk"].tolist()) == {0, 1}
        assert_whole(r)


def test_a_disk_without_requests_is_captured_where_its_bios_enter() -> None:
    # the rig's loop disk only lends its folder and its file, which becomes a copy of the zram's content
    with zram(8 * MIB) as disk, rig(8 * MIB, attached=False) as r:
        assert disk.bio_based
        r.disks = [disk]
        r.attach()
        try:
            rng = np.random.default_rng(6)
            for _ in range(60):
                r.write(int(rng.integers(0, 1000)) * 4096, rng.bytes(int(rng.integers(1, 30)) * 4096))
            r.replay()
            r.backing[0].write_bytes(disk.path.read_bytes())
            assert r.differing() == []
            counters = r.capture.counters(0)
            assert r.counted() == counters.seen_sectors == counters.completed_sectors
            assert len(r.capture.open_writes()) == 0
            assert r.capture._control["bio_based"] == 1
        finally:
            r.capture.close()


def test_writes_in_flight_are_listed_until_they_complete() -> None:
    with rig(64 * MIB, attached=False) as outer, mounted_ext4(outer) as mnt:
        # A disk whose file lies on a frozen file system: its writes hang.
        inner_file = mnt / "file"
        with inner_file.open("wb") as file:
            file.truncate(8 * MIB)
        device = run("losetup", "--find", "--show", str(inner_file))
        try:
            outer.disks, outer.backing = [find_disk(Path(device))], [inner_file]
            outer.replica = [np.fromfile(inner_file, np.uint8)]
            outer.attach()
            with frozen(mnt):
                writer = subprocess.Popen(
                    ["dd", "if=/dev/urandom", f"of={device}", "bs=8k", "count=1", "seek=3", "oflag=direct"],
                    stderr=subprocess.DEVNULL,
                )
                until(lambda: len(outer.capture.open_writes()) == 1, "the write was not listed")
                (write,) = outer.capture.open_writes()
                assert (int(write["disk"]), int(write["sector"]), int(write["sectors"])) == (0, 48, 16)
                assert int(write["since_ns"]) > outer.capture.attached_boot_ns
                assert outer.capture.ring.producer_seq == 2
            assert writer.wait() == 0
            assert len(outer.capture.open_writes()) == 0
            assert_whole(outer)
        finally:
            outer.capture.close()
            run("losetup", "--detach", device)


def mounted_ext4(r: Rig) -> AbstractContextManager[Path]:
    run("mkfs.ext4", "-q", "-F", r.device)
    return mounted(r.device, r.folder / "mnt")
