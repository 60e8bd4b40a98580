"""Capture's programs are replaced while somebody writes, and its disks come and go: without a gap for those that stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from agent.capture import attach, layout, libbpf, members, pins
from agent.capture.disks import Disk, find_disk
from agent.capture.maps import Capture
from shared.errors import PinnedElsewhereError
from tests.capture_parts import MIB, Rig, needs_capture, rig, run
from tests.loopdisk import attached
from tests.prefix import PrefixChecker, Schedule, Writer

pytestmark = needs_capture
ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "agent/capture/bpf/capture.bpf.c"


def build(folder: Path, name: str, source: str) -> Path:
    """An object of other code, and so of another hash."""
    made = folder / f"{name}.bpf.o"
    (folder / f"{name}.c").write_text(source)
    machine = os.uname().machine
    run("clang", "-O2", "-g", "-Wno-unused-function", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86",
        f"-I/usr/include/{machine}-linux-gnu", "-c", str(folder / f"{name}.c"), "-o", str(made))  # fmt: skip
    return made


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("objects")
    text = SOURCE.read_text()
    knows = "\t\tif (handed_over(key, &open))\n\t\t\treturn 0;\n"
    assert knows in text
    return {
        "next": build(folder, "next", text + '\nint next SEC(".rodata") = 1;\n'),
        "from before the handover existed": build(
            folder, "before", text.replace(knows, "").replace("!seen && control.handover", "false")
        ),
    }


def tags(pin_dir: Path) -> set[int]:
    return set(pins.program_ids(pin_dir).values())


@pytest.mark.parametrize("old", ["next", "from before the handover existed"])
def test_programs_are_replaced_under_writes_and_every_write_is_captured_once(
    old: str, objects: dict[str, Path], tmp_path: Path
) -> None:
    size, seed = 16 * MIB, 5
    with rig(size, count=2, attached=False, ring_b=128 * MIB) as r:
        capture = Capture.attach(r.pin_dir, r.disks, r.ring_b, object_path=objects[old])
        r.capture = capture
        try:
            checker = PrefixChecker(Schedule(seed, (size // 512, size // 512)))
            devices = [str(disk.path) for disk in r.disks]
            with Writer(devices, tmp_path / "progress", seed, rate_mb=10) as writer:
                writer.wait_for(50)
                writes = capture.counters(0).writes
                for object_path in (attach.OBJECT, objects["next"], attach.OBJECT):
                    before = tags(r.pin_dir)
                    Capture.attach(r.pin_dir, r.disks, r.ring_b, object_path=object_path).close()
                    running = {program.id for program in libbpf.programs()}
                    assert not before & running, "the old programs capture on, after the handover"
                    assert not pins.next_paths(r.pin_dir)
                assert capture.counters(0).writes > writes, "nobody wrote meanwhile"
                total = writer.stop()
            r.replay()
            images = [tmp_path / f"image-{i}" for i in range(2)]
            for image, replica in zip(images, r.replica, strict=True):
                replica.tofile(image)
            assert checker.check(images, at_least=total, at_most=total) == total
            assert r.orphans == 0
            for disk in range(2):
                counts = capture.counters(disk)
                assert counts.seen_sectors == counts.captured_sectors == counts.completed_sectors
                assert counts.seen_sectors == r.counted(disk)
                assert counts.unseen_sectors == 0
            last = Capture.attach(r.pin_dir, r.disks, r.ring_b)
            incidents = last.incidents()
            last.close()
            assert (incidents.open_missed, incidents.recursion_misses) == (0, 0)
            # A loop device refuses its first zero-out where its file system cannot do it: a failed write, and no other loss.
            assert capture.loss_count() == incidents.failed <= len(devices)
        finally:
            capture.close()


def test_programs_of_the_same_object_are_left_alone() -> None:
    with rig(8 * MIB) as r:
        before = tags(r.pin_dir)
        r.capture.close()
        r.attach()
        assert tags(r.pin_dir) == before


UPGRADE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from agent.capture import members, pins
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
match sys.argv[3]:
    case "half of the new ones are attached":
        count = 0
        make = pins.next_path
        def next_path(folder, program):
            global count
            count += 1
            return make(folder, program) if count < 4 else die()
        pins.next_path = next_path
    case "half of the old ones are replaced":
        rename, count = Path.rename, 0
        def some(self, target):
            global count
            count += 1
            return rename(self, target) if count < 4 else die()
        Path.rename = some
    case "all are replaced":
        members._wait_for_programs = die
members.upgrade(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize(
    "when", ["half of the new ones are attached", "half of the old ones are replaced", "all are replaced"]
)
def test_an_upgrade_that_was_killed_misses_nothing_and_is_done_again(
    when: str, objects: dict[str, Path]
) -> None:
    with rig(8 * MIB) as r:
        command = [sys.executable, "-c", UPGRADE_AND_DIE, str(r.pin_dir), str(objects["next"]), when]
        assert subprocess.run(command, check=False, cwd=ROOT).returncode == -signal.SIGKILL
        content = np.random.default_rng(3).bytes(MIB)
        r.write(0, content)  # while nobody finishes it
        again = Capture.attach(r.pin_dir, r.disks, r.ring_b, object_path=objects["next"])
        assert members.is_current(r.pin_dir, objects["next"])
        assert len(tags(r.pin_dir)) == len(pins.programs(r.pin_dir)) == 6
        r.write(2 * MIB, content)
        r.replay()
        assert r.differing() == []
        assert r.counted() == again.counters(0).seen_sectors == again.counters(0).completed_sectors
        assert again.loss_count() == 0
        again.close()


@pytest.mark.parametrize("what", ["links", "programs"])
def test_while_somebody_holds_the_former_links_the_handover_goes_on_however_often_it_is_tried(
    what: str, objects: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins, "_GONE_WITHIN_S", 0.5)
    with rig(8 * MIB) as r, ExitStack() as held:
        fds = (
            [libbpf.get(path) for path in pins.link_paths(r.pin_dir)]
            if what == "links"
            else [libbpf.program_fd(program) for program in tags(r.pin_dir)]
        )
        for fd in fds:
            held.callback(os.close, fd)
        for number in range(2):
            Capture.attach(r.pin_dir, r.disks, r.ring_b, object_path=objects["next"]).close()
            assert members.is_current(r.pin_dir, objects["next"]) == (what == "programs")
            r.write(number * MIB, np.random.default_rng(number).bytes(MIB))
        held.close()
        again = Capture.attach(r.pin_dir, r.disks, r.ring_b, object_path=objects["next"])
        assert members.is_current(r.pin_dir, objects["next"])
        r.write(2 * MIB, b"x" * MIB)
        r.replay()
        assert r.differing() == []
        counts = again.counters(0)
        assert r.counted() == counts.seen_sectors == counts.captured_sectors == counts.completed_sectors
        assert counts.unseen_sectors == 0
        again.close()


def test_runs_that_were_skipped_are_not_forgotten_with_the_programs(objects: dict[str, Path]) -> None:
    with rig(8 * MIB) as r:
        fd = libbpf.get(r.pin_dir / "control")
        control = attach.mapped(fd, layout.CONTROL, 1).reshape(())
        os.close(fd)
        control["misses_before"] = 3
        r.capture.close()
        r.capture = Capture.attach(r.pin_dir, r.disks, r.ring_b, object_path=objects["next"])
        assert r.capture.incidents().recursion_misses == 3


def test_an_object_of_another_layout_is_no_upgrade(objects: dict[str, Path]) -> None:
    with rig(8 * MIB) as r:
        fd = libbpf.get(r.pin_dir / "control")
        control = attach.mapped(fd, layout.CONTROL, 1).reshape(())
        os.close(fd)
        control["layout"] = layout.LAYOUT + 1
        before = tags(r.pin_dir)
        with pytest.raises(PinnedElsewhereError, match="another version of the agent"):
            Capture.attach(r.pin_dir, r.disks, r.ring_b, object_path=objects["next"])
        assert tags(r.pin_dir) == before


# -- disks come and go -------------------------------------------------------------------------------------


def join(pin_dir: Path, disks: Sequence[Disk]) -> list[int]:
    slots = []
    for disk in disks:
        slots.append(members.prepare(pin_dir, disk, attach.OBJECT))
        members.enter(pin_dir, {slots[-1]: disk})
    return slots


def leave_and_join(r: Rig, newcomer: str) -> Capture:
    """Disk 0 of two leaves, another joins."""
    members.leave(r.pin_dir, [0])
    join(r.pin_dir, [find_disk(Path(newcomer))])
    return Capture.attach(r.pin_dir, [r.disks[1], find_disk(Path(newcomer))], r.ring_b)


def test_a_disk_joins_and_another_leaves_and_the_third_is_captured_throughout(tmp_path: Path) -> None:
    with rig(8 * MIB, count=2) as r:
        new = r.folder / "new"
        new.write_bytes(bytes(4 * MIB))
        rng = np.random.default_rng(9)
        with attached(new) as device:
            r.write(0, rng.bytes(MIB), disk=0)
            r.write(0, rng.bytes(MIB), disk=1)
            capture = leave_and_join(r, device)
            assert [str(disk.path) for disk in capture.disks] == [str(r.disks[1].path), device]
            assert not capture.fresh
            r.write(MIB, rng.bytes(MIB), disk=0)  # captured no more
            r.write(MIB, rng.bytes(MIB), disk=1)
            run("dd", "if=/dev/urandom", f"of={device}", "bs=4k", "count=100", "oflag=direct")
            window = capture.ring.peek(10_000)
            assert set(window.headers["disk"][window.valid].tolist()) == {0, 1}
            assert np.count_nonzero(~window.valid) == 256, "records of the disk that left"
            assert capture.counters(0).captured_sectors == 2 * MIB // 512
            assert capture.counters(1).captured_sectors == 100 * 8
            assert capture.loss_count() == 0
            assert len(capture.open_writes()) == 0
            capture.swap_dirty()
            assert not capture.inactive_dirty(0).any()
            again = Capture.attach(r.pin_dir, capture.disks, r.ring_b)
            assert again.disks == capture.disks
            again.close()
            capture.close()


def test_a_slot_is_never_given_twice_and_what_a_killed_removal_left_goes() -> None:
    with rig(8 * MIB, count=2) as r:
        r.capture.close()
        members.leave(r.pin_dir, [1])
        assert not list(r.pin_dir.glob("*-01"))
        assert members.free_slots(r.pin_dir) == layout.MAX_DISKS - 2
        assert join(r.pin_dir, r.disks[1:]) == [2]
        fd = libbpf.get(r.pin_dir / "tracked")
        key = attach.key_bytes(layout.kernel_dev(r.disks[1].major, r.disks[1].minor))
        assert libbpf.delete(fd, key)  # and killed
        os.close(fd)
        members.tidy(r.pin_dir)
        assert not list(r.pin_dir.glob("*-02"))
        assert join(r.pin_dir, r.disks[1:]) == [3]
