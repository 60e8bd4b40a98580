"""What capture cannot copy it marks, and says so before anybody can depend on it."""

from __future__ import annotations

import mmap
import os
import secrets
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from agent.capture import attach, layout, libbpf
from agent.capture.calibrate import Calibration
from agent.capture.disks import find_disk
from agent.capture.maps import Capture, detach
from agent.stream.records import MAX_PIECES
from tests.capture_parts import MIB, SECTOR, aligned, needs_capture, rig, run, until, zram

pytestmark = needs_capture
GRANULE = layout.GRANULE_SECTORS * SECTOR


def bits(bitmap: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(bitmap.view(np.uint8), bitorder="little")).tolist())


def test_when_the_ring_is_full_ring_and_bitmap_together_cover_everything() -> None:
    rng = np.random.default_rng(7)
    with rig(32 * MIB, ring_b=256 * 1024) as r:
        for _ in range(300):
            r.write(int(rng.integers(0, 63)) * 524288 + 4096, rng.bytes(int(rng.integers(1, 40)) * SECTOR))
        capture = r.capture
        assert capture.loss_count() == capture.incidents().ring_full > 0
        assert "ring was full" in capture.loss_cause()
        counters = capture.counters(0)
        assert counters.marked_sectors > 0
        assert counters.seen_sectors == counters.captured_sectors + counters.marked_sectors == r.counted()
        r.replay()
        assert 0 in r.losses
        assert max(r.losses) < capture.loss_count()  # the last to come did not fit
        assert r.orphans == 0
        assert r.differing() != []
        capture.swap_dirty()
        assert r.catch_up(capture.inactive_dirty(0)) > 0
        assert r.differing() == []
        # there is room again: what follows carries the raised count
        r.write(0, rng.bytes(4096))
        r.replay()
        assert max(r.losses) == capture.loss_count()


def test_a_bio_that_cannot_fit_takes_no_room_and_is_marked_as_a_whole() -> None:
    with rig(8 * MIB, ring_b=64 * 1024) as r:
        r.write(4096, np.random.default_rng(8).bytes(30 * 4096))
        assert r.capture.ring.producer_seq == 0
        assert bits(r.capture.active_dirty(0)) == set(range((31 * 4096 - 1) // GRANULE + 1))
        assert r.capture.counters(0).marked_sectors == 240


def test_a_bio_that_fails_on_the_way_is_marked_as_a_whole() -> None:
    # Forty scattered sectors in one bio make forty records; the ring has room for fifteen.
    content = [aligned(np.random.default_rng(i).bytes(SECTOR)) for i in range(40)]
    with rig(8 * MIB, ring_b=64 * 1024) as r:
        fd = os.open(r.device, os.O_WRONLY | os.O_DIRECT)
        os.pwritev(fd, content, GRANULE * 3)
        os.close(fd)
        headers = r.capture.ring.peek(100).headers
        assert headers["sectors"].tolist() == [1] * 15
        assert not (headers["flags"] & layout.FLAG_LAST).any()
        assert bits(r.capture.active_dirty(0)) == {3, 4}
        assert r.capture.counters(0).marked_sectors == 40
        assert r.replay() == 15
        assert r.orphans == 1
        assert r.replica[0].max() == 0


@pytest.mark.parametrize(
    ("sector", "sectors"),
    [(0, 1), (31, 1), (31, 2), (32, 32), (2047, 2), (1, 4094), (2048 * 3 - 1, 2048 * 2 + 2), (65504, 32)],
)
def test_exactly_the_granules_that_a_lost_write_touches_are_marked(sector: int, sectors: int) -> None:
    with rig(32 * MIB, ring_b=4096) as r:  # a ring that no record fits into
        r.write(sector * SECTOR, bytes(sectors * SECTOR))
        granules = set(range(sector // 32, (sector + sectors - 1) // 32 + 1))
        assert bits(r.capture.active_dirty(0)) == granules
        assert r.capture.ring.producer_seq == 0


def test_no_mark_is_lost_when_bitmaps_are_swapped_under_load() -> None:
    with rig(64 * MIB, ring_b=4096) as r:
        load = subprocess.Popen(
            ["fio", "--name=x", f"--filename={r.device}", "--rw=randwrite", "--bs=512-32k", "--direct=1",
             "--ioengine=libaio", "--iodepth=32", "--time_based", "--runtime=60", "--output=/dev/null"]
        )  # fmt: skip
        swaps = 0  # with marks in them
        while swaps < 40:
            assert load.poll() is None
            r.capture.swap_dirty()
            inactive = r.capture.inactive_dirty(0)
            swaps += bool(inactive.any())
            r.capture.todo(0)[:] |= inactive
            inactive[:] = 0
        load.terminate()
        load.wait()
        r.capture.todo(0)[:] |= r.capture.active_dirty(0)
        assert r.catch_up(r.capture.todo(0)) > 100
        assert r.differing() == []
        assert r.capture.loss_count() == r.capture.counters(0).writes


def test_a_wait_for_programs_never_undoes_a_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait of a session that ended goes on in its thread, while the next session begins a round."""
    looked, go_on = threading.Event(), threading.Event()
    wants: list[int] = []

    class Noted:
        """A lock of which is known who wants it."""

        def __init__(self, lock: threading.Lock) -> None:
            self._lock = lock

        def __enter__(self) -> None:
            wants.append(threading.get_ident())
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    with rig(8 * MIB) as r, ThreadPoolExecutor(2) as threads:
        capture = r.capture
        capture._control["direct_map"] = 0  # every write is marked
        r.write(0, b"m" * 4096)
        real = capture._active

        def slow(disk: int) -> int:
            active = real(disk)
            if not looked.is_set():
                looked.set()
                assert go_on.wait(20)
            return active

        monkeypatch.setattr(capture, "_active", slow)
        monkeypatch.setattr(capture, "_exchange", Noted(capture._exchange))
        waiting = threads.submit(capture.wait_for_programs)
        assert looked.wait(20)
        swapping = threads.submit(capture.swap_dirty)
        # The swap ends at once, or waits for the other: either way it has begun when the wait goes on.
        until(lambda: swapping.done() or len(wants) == 2, "the swap did not begin")
        go_on.set()
        waiting.result(20)
        swapping.result(20)
        assert bits(capture.inactive_dirty(0)) == {0}
        assert bits(capture.active_dirty(0)) == set()


def test_who_sees_the_loss_count_sees_the_marks() -> None:
    with rig(64 * MIB, ring_b=4096) as r:
        fd = os.open(r.device, os.O_WRONLY | os.O_DIRECT)
        page = aligned(bytes(4096))
        with ThreadPoolExecutor(1) as pool:
            # write i marks granule i: so a loss count of n means that granules 0 to n - 1 are marked
            writer = pool.submit(lambda: [os.pwrite(fd, page, i * GRANULE) for i in range(4096)])
            while not writer.done():
                count = r.capture.loss_count()
                marked = np.unpackbits(r.capture.active_dirty(0).view(np.uint8), bitorder="little")
                assert marked[:count].all()
        os.close(fd)
        assert r.capture.loss_count() == 4096


def test_failed_writes_are_marked_and_counted() -> None:
    with rig(8 * MIB, attached=False) as r:
        full = r.folder / "full"
        full.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(full))
        try:
            backing = full / "disk"
            with backing.open("wb") as file:
                file.truncate(16 * MIB)
            device = run("losetup", "--find", "--show", str(backing))
            try:
                r.disks, r.backing = [find_disk(Path(device))], [backing]
                r.replica = [np.fromfile(backing, np.uint8)]
                r.attach()
                content = np.random.default_rng(9).bytes(MIB)
                r.write(0, content)
                assert r.capture.loss_count() == 0
                with pytest.raises(OSError, match=r"Errno (5|28)"):
                    for i in range(1, 5):
                        r.write(i * MIB, content)
                incidents, counters = r.capture.incidents(), r.capture.counters(0)
                assert r.capture.loss_count() == incidents.failed > 0
                assert "failed" in r.capture.loss_cause()
                assert counters.errored_sectors > 0
                # the kernel counts failed writes, so the audit needs no exception for them
                assert r.counted() == counters.seen_sectors == counters.completed_sectors
                r.replay()
                assert r.differing() != []
                r.capture.swap_dirty()
                r.catch_up(r.capture.inactive_dirty(0))
                assert r.differing() == []
            finally:
                r.capture.close()
                run("losetup", "--detach", device)
        finally:
            run("umount", str(full))


def test_without_calibration_every_write_is_marked_and_the_cause_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attach, "calibrate", lambda *_: Calibration("the test says so"))
    with rig(8 * MIB) as r:
        r.write(MIB, np.random.default_rng(10).bytes(100 * 4096))
        assert (r.capture.mode, r.capture.mode_cause) == ("bitmap", "the test says so")
        assert "the test says so" in r.capture.loss_cause()
        assert r.capture.loss_count() == r.capture.counters(0).writes > 0
        assert r.replay() == 0
        r.catch_up(r.capture.active_dirty(0))
        assert r.differing() == []


def test_writes_behind_the_end_of_a_disk_that_has_grown_are_not_captured_and_end_the_order() -> None:
    with rig(8 * MIB) as r:
        os.truncate(r.backing[0], 16 * MIB)
        run("losetup", "--set-capacity", r.device)
        r.write(12 * MIB, bytes(4096))
        r.write(8 * MIB - 4096, bytes(8192))  # in part
        assert r.capture.incidents().unknown_range == r.capture.loss_count() == 2
        assert r.capture.ring.producer_seq == 0


def test_a_bio_that_no_batch_could_carry_is_marked() -> None:
    """zram takes bios as they are made, and huge pages make large ones."""
    size = 32 * MIB
    with zram(2 * size) as disk:
        pin_dir = Path("/sys/fs/bpf/understudy-test") / secrets.token_hex(4)
        capture = Capture.attach(pin_dir, [disk], 64 * MIB)
        try:
            with mmap.mmap(-1, size + 2 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
                memory.madvise(mmap.MADV_HUGEPAGE)
                whole = np.frombuffer(memory, np.uint8)
                start = -whole.ctypes.data % (2 * MIB)
                del whole
                memory[start : start + size] = bytes([7]) * size
                fd = os.open(disk.path, os.O_RDWR | os.O_DIRECT)
                with memoryview(memory) as view, view[start : start + size] as part:
                    os.pwritev(fd, [part], 0)
                os.close(fd)
            counters = capture.counters(0)
            assert counters.seen_sectors == size // 512
            large = counters.marked_sectors
            assert large + counters.captured_sectors == counters.seen_sectors
            pieces = capture.ring.peek(1 << 20).headers["bio_sectors"]
            assert pieces.max(initial=0) <= MAX_PIECES * 8
            if counters.writes < 4:  # the kernel did make them large
                assert large
                assert capture.incidents().unsupported
        finally:
            capture.close()
            detach(pin_dir)


def test_writes_to_another_disk_of_the_same_number_end_the_order() -> None:
    with rig(8 * MIB) as r:
        disk = r.disks[0]
        entry = np.zeros((), layout.TRACKED)
        entry["diskseq"], entry["sectors"] = disk.diskseq - 1, disk.sectors
        fd = libbpf.get(r.pin_dir / "tracked")
        try:
            libbpf.update(
                fd, layout.kernel_dev(disk.major, disk.minor).to_bytes(4, "little"), entry.tobytes()
            )
        finally:
            os.close(fd)
        r.write(0, b"x" * 4096)
        assert r.capture.ring.producer_seq == 0
        assert r.capture.loss_count() > 0
        assert r.capture.incidents().unknown_range > 0
        assert "replaced" in r.capture.loss_cause()


def test_a_missed_completion_is_noticed_when_its_bio_is_used_again() -> None:
    with rig(8 * MIB) as r:
        r.write(0, b"a" * 4096)
        # The kernel gives the same memory to the next bio of a lone writer, most of the time: pretend that it is still in flight.
        stale = np.zeros((), layout.OPEN_WRITE)
        stale["sector"], stale["sectors"] = 4096, 8
        fd = libbpf.get(r.pin_dir / "open")
        try:
            for turn in range(200):
                bio = r.capture.ring.peek(1000).headers["bio"][-1]
                libbpf.update(fd, bio.tobytes(), stale.tobytes())
                r.write(4096 * turn, b"b" * 4096)
                if r.capture.incidents().late:
                    break
        finally:
            os.close(fd)
        assert r.capture.incidents().late == 1
        assert bits(r.capture.active_dirty(0)) == {4096 // 32}
        assert r.capture.loss_count() == 0


@pytest.mark.parametrize("upper_has_requests", [False, True])
def test_a_bio_that_one_disk_hands_on_to_another_is_open_on_both_until_it_completes_but_those_in_requests_are_over(
    upper_has_requests: bool,
) -> None:
    with rig(8 * MIB, count=2) as r:
        r.write(0, b"a" * 4096)
        if not upper_has_requests:
            r.capture._control["bio_based"] |= np.uint64(1 << 1)
        # As a driver does that hands on the bio that it was given (md linear, which this kernel may not have): the write to the upper disk
        # (1) is open under the bio that enters the lower one (0). The memory is the same for a lone writer, most of the time.
        upper = np.zeros((), layout.OPEN_WRITE)
        upper["sector"], upper["sectors"], upper["disk"] = 4096, 8, 1
        fd = libbpf.get(r.pin_dir / "open")
        try:
            for turn in range(1, 200):
                bio = r.capture.ring.peek(1000).headers["bio"][-1]
                libbpf.update(fd, bio.tobytes(), upper.tobytes())
                r.write(4096 * turn, b"b" * 4096)
                if r.capture.counters(1).completed_sectors:
                    break
            # the first turn that met the bio's memory again left nothing open that is not: only what nobody used stays
            left = len(r.capture.open_writes())
        finally:
            os.close(fd)
        assert r.capture.counters(1).completed_sectors == 8
        assert r.capture.counters(0).completed_sectors == 8 * (turn + 1)
        assert left == turn - 1
        told = r.capture.incidents().late, int(r.capture._control["handed_on"])
        assert (told, r.capture.loss_count()) == ((1, 0) if upper_has_requests else (0, 1), 0)
        assert bits(r.capture.active_dirty(1)) == {4096 // 32}


def test_open_writes_that_are_known_to_be_over_can_be_forgotten() -> None:
    with rig(8 * MIB) as r:
        stale = np.zeros((), layout.OPEN_WRITE)
        stale["since_ns"], stale["sector"], stale["sectors"] = 1000, 64, 8
        fd = libbpf.get(r.pin_dir / "open")
        try:
            libbpf.update(fd, (1234).to_bytes(8, "little"), stale.tobytes())
        finally:
            os.close(fd)
        before = r.capture.counters(0).completed_sectors
        assert len(r.capture.forget_open(999, [0])) == len(r.capture.forget_open(1000, [])) == 0
        (forgotten,) = r.capture.forget_open(1000, [0])
        assert int(forgotten["sector"]) == 64
        assert len(r.capture.open_writes()) == 0
        assert r.capture.counters(0).completed_sectors == before + 8
