"""Capture outlives the agent, is continued by the next, audits itself, and leaves nothing behind when it is detached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent.capture import audit, layout, libbpf, pins
from agent.capture.audit import Baseline, Outcome, Sample
from agent.capture.disks import find_disk, read_queue
from agent.capture.maps import Capture, detach
from shared.errors import (
    CaptureRemovedError,
    DeviceError,
    DeviceNotFoundError,
    NotADiskError,
    PinnedElsewhereError,
    UsageError,
)
from tests.capture_parts import MIB, Rig, needs_capture, queue_setting, rig, run, until

pytestmark = needs_capture
ATTACH_AND_DIE = """
import os, signal, sys
from pathlib import Path
from agent.capture import pins
from agent.capture.maps import Capture
from agent.capture.disks import find_disk
if sys.argv[3] == "early":
    pins.publish = lambda pin_dir: os.kill(os.getpid(), signal.SIGKILL)
capture = Capture.attach(Path(sys.argv[1]), [find_disk(Path(sys.argv[2]))], 1 << 24)
os.kill(os.getpid(), signal.SIGKILL)
"""


def attach_and_die(r: Rig, when: str) -> None:
    command = [sys.executable, "-c", ATTACH_AND_DIE, str(r.pin_dir), r.device, when]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def test_capture_goes_on_while_no_agent_runs_and_the_next_agent_continues_it() -> None:
    with rig(8 * MIB, attached=False) as r:
        attach_and_die(r, "late")
        content = np.random.default_rng(11).bytes(MIB)
        r.write(0, content)
        capture = r.attach()
        assert not capture.fresh
        assert capture.mode == "ordered"
        assert capture.ring.size_b == 1 << 24  # what is there, not what was asked for
        assert capture.ring.producer_seq == 256
        r.write(MIB, content)
        r.replay()
        assert r.differing() == []
        assert r.counted() == capture.counters(0).seen_sectors
        assert capture.loss_count() == 0
        capture.close()


def test_state_bitmaps_and_positions_survive_the_agent() -> None:
    with rig(8 * MIB) as r:
        r.write(0, bytes(40960))
        r.capture.ring.free_to(4)
        r.capture.state[7] = 77
        r.capture.todo(0)[1] = 5
        r.capture.swap_dirty()
        r.capture.inactive_dirty(0)[0] = 9
        r.capture.close()
        again = r.attach()
        assert (again.ring.consumer_seq, again.ring.producer_seq) == (4, 10)
        assert again.ring.peek(1).first_seq == 4
        assert (again.state[7], again.todo(0)[1], again.inactive_dirty(0)[0]) == (77, 5, 9)


def test_an_agent_killed_while_attaching_leaves_no_second_capture() -> None:
    with rig(8 * MIB, attached=False) as r:
        attach_and_die(r, "early")
        assert not r.pin_dir.exists()
        leftover = pins.staging(r.pin_dir)
        orphaned = set(pins.program_ids(leftover).values())
        assert orphaned
        assert r.attach().fresh
        assert not leftover.exists()
        until(lambda: not orphaned & {info.id for info in libbpf.programs()}, "the old programs stayed")
        r.write(0, b"x" * 8192)
        assert r.replay() == 2
        assert r.differing() == []
        r.capture.close()


def test_a_failed_attachment_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()

    def refuse(pin_dir: Path) -> None:
        seen.update(pins.program_ids(pins.staging(pin_dir)).values())
        raise DeviceError("refused by the test")

    monkeypatch.setattr(pins, "publish", refuse)
    with rig(8 * MIB, attached=False) as r:
        with pytest.raises(DeviceError, match="refused by the test"):
            r.attach()
        assert not r.pin_dir.exists()
        assert not pins.staging(r.pin_dir).exists()
        assert seen
        until(lambda: not seen & {info.id for info in libbpf.programs()}, "programs stayed")


def test_detach_leaves_no_pin_no_link_and_no_program() -> None:
    with rig(8 * MIB) as r:
        ids = pins.program_ids(r.pin_dir)
        assert len(ids) == 6
        detach(r.pin_dir)
        assert not r.pin_dir.exists()
        assert not ids.keys() & {info.id for info in libbpf.links()}
        assert not set(ids.values()) & {info.id for info in libbpf.programs()}
        written = r.capture.ring.producer_seq
        r.write(0, b"x" * 4096)
        assert r.capture.ring.producer_seq == written
        detach(r.pin_dir)  # there is nothing to do, and that is no error


def test_detach_removes_the_empty_folders_above_its_pins() -> None:
    with rig(8 * MIB, attached=False) as r:
        pin_dir = r.pin_dir / "installation" / "capture"
        Capture.attach(pin_dir, r.disks, 1 << 16).close()
        detach(pin_dir)
        assert not r.pin_dir.exists()


def test_pins_that_lost_a_part_are_not_continued_and_can_be_detached() -> None:
    with rig(8 * MIB) as r:
        r.capture.close()
        (r.pin_dir / "open").unlink()
        with pytest.raises(PinnedElsewhereError, match="pins were removed: open"):
            Capture.attach(r.pin_dir, r.disks, 1 << 16)
        detach(r.pin_dir)
        assert r.attach().fresh


def test_detach_says_when_somebody_keeps_capture_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "_GONE_WITHIN_S", 0.05)
    with rig(8 * MIB) as r:
        held = libbpf.get(pins.link_paths(r.pin_dir)[0])
        try:
            with pytest.raises(DeviceError, match="still attached"):
                detach(r.pin_dir)
        finally:
            os.close(held)


def test_pins_of_other_disks_are_not_continued() -> None:
    with rig(8 * MIB, count=2, attached=False) as r:
        Capture.attach(r.pin_dir, r.disks[:1], 1 << 16).close()
        for wanted in (r.disks[1:], r.disks):
            with pytest.raises(PinnedElsewhereError, match="other disks"):
                Capture.attach(r.pin_dir, wanted, 1 << 16)


def test_a_disk_that_grew_is_not_continued() -> None:
    with rig(8 * MIB) as r:
        r.capture.close()
        os.truncate(r.backing[0], 16 * MIB)
        run("losetup", "--set-capacity", r.device)
        with pytest.raises(PinnedElsewhereError, match="has 32768 sectors now, not 16384"):
            Capture.attach(r.pin_dir, [find_disk(r.disks[0].path)], 1 << 16)


def test_the_order_of_disks_is_the_one_of_the_first_attachment() -> None:
    with rig(8 * MIB, count=2) as r:
        r.capture.close()
        again = Capture.attach(r.pin_dir, list(reversed(r.disks)), 1 << 16)
        assert again.disks == tuple(r.disks)


def test_one_disk_named_twice_is_refused() -> None:
    with rig(8 * MIB, attached=False) as r, pytest.raises(UsageError, match="same disk"):
        Capture.attach(r.pin_dir, [r.disks[0], r.disks[0]], 1 << 16)


def sample(r: Rig) -> Sample:
    before = r.capture.sector_counts(0)
    counting = read_queue(Path("/sys/block") / r.disks[0].name).counts
    stat = audit.read_stat(r.disks[0], counting=counting)
    after = r.capture.sector_counts(0)
    return Sample(stat, *after, still=before == after)


def settled(r: Rig) -> Baseline:
    baseline = Baseline.from_words(r.capture.audit_words(0))
    for _ in range(audit.SAME):
        baseline = audit.settle(sample(r), baseline)
    assert baseline.offset_sectors is not None
    return baseline


def test_the_audit_finds_writes_that_went_past_capture() -> None:
    with rig(8 * MIB) as r:
        r.write(0, b"x" * 8192)
        baseline = settled(r)
        assert baseline.offset_sectors == 0
        assert audit.compare(sample(r), baseline).outcome is Outcome.EXACT
        with skipping(r, 3):
            for i in range(5):
                r.write(i * 4096, b"y" * 4096)
        verdict = audit.compare(sample(r), baseline)
        assert (verdict.outcome, verdict.sectors) == (Outcome.SHORTFALL, 24)
        assert r.capture.counters(0).unseen_sectors == 24
        assert r.replay() == 2 + 2


class skipping:
    """Makes capture blind for the next n writes, as the audit's test needs it."""

    def __init__(self, r: Rig, count: int) -> None:
        self._fd = libbpf.get(r.pin_dir / "control")
        self._count = count

    def __enter__(self) -> None:
        raw = libbpf.lookup(self._fd, bytes(4), layout.CONTROL.itemsize)
        assert raw is not None
        control = np.frombuffer(raw, layout.CONTROL).copy()
        control["skip"] = self._count
        libbpf.update(self._fd, bytes(4), control.tobytes())

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def test_the_audit_is_switched_off_and_on_with_the_kernels_counting() -> None:
    with rig(8 * MIB) as r:
        baseline = settled(r)
        with queue_setting(r.disks[0], "iostats", "0"):
            r.write(0, b"x" * 4096)
            verdict = audit.compare(sample(r), baseline)
            assert verdict.outcome is Outcome.UNVERIFIABLE
            assert "iostats" in verdict.cause
            baseline = audit.settle(sample(r), baseline)
            assert baseline.offset_sectors is None
        r.write(0, b"z" * 4096)
        for _ in range(audit.SAME):
            baseline = audit.settle(sample(r), baseline)
        assert audit.compare(sample(r), baseline).outcome is Outcome.EXACT
        r.write(0, b"z" * 4096)
        assert audit.compare(sample(r), baseline).outcome is Outcome.EXACT


def test_what_cannot_be_protected_is_named() -> None:
    with pytest.raises(DeviceNotFoundError, match="does not exist"):
        find_disk(Path("/dev/no-such-disk"))
    with pytest.raises(NotADiskError, match="not a block device"):
        find_disk(Path("/dev/null"))


def preflight(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", "preflight", *arguments], capture_output=True, text=True, check=False
    )


def test_preflight_tells_the_mode_and_leaves_nothing_behind() -> None:
    with rig(8 * MIB, attached=False) as r:
        before = {info.id for info in libbpf.programs()}
        counted = audit.read_stat(r.disks[0])
        done = preflight(r.device, "--output", "json")
        assert done.returncode == 0, done.stderr
        (device,) = json.loads(done.stdout)["devices"]
        assert (device["mode"], device["protectable"], device["bytes"]) == ("ordered", True, 8 * MIB)
        assert audit.read_stat(r.disks[0]) == counted
        assert not r.pin_dir.exists()
        until(lambda: not _new_captures(before), "preflight left programs behind")


def _new_captures(before: set[int]) -> set[str]:
    """Probe programs are preflight's alone to load without attaching a capture beside them."""
    return {
        info.name.decode()
        for info in libbpf.programs()
        if info.id not in before and info.name.startswith(b"us_probe")
    }


def test_preflight_names_the_first_problem_in_its_exit_code() -> None:
    with rig(8 * MIB, attached=False) as r:
        done = preflight("/dev/no-such-disk", r.device)
        assert done.returncode == 3
        assert "US220" in done.stdout
        assert "ordered" in done.stdout


def test_preflight_refuses_a_read_only_disk(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(MIB))
    device = run("losetup", "--find", "--show", "--read-only", str(file))
    try:
        done = preflight(device)
        assert done.returncode == 5
        assert "it is read-only" in done.stdout
    finally:
        run("losetup", "--detach", device)


def test_a_program_that_somebody_detached_under_the_agent_is_named_and_its_counts_stay() -> None:
    with rig(8 * MIB) as r:
        assert r.capture.removed() == []
        (r.pin_dir / "link-us_rq_issue").unlink()
        assert r.capture.removed() == ["us_rq_issue"]
        programs = set(r.capture._programs)
        until(lambda: not programs <= {info.id for info in libbpf.programs()}, "the program stays")
        assert r.capture.recursion_misses() == 0
        with pytest.raises(CaptureRemovedError, match="pins were removed: link-us_rq_issue"):
            r.attach()
