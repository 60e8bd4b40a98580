"""Preflight's judgement over machines that this one is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent import preflight
from agent.capture import attach
from agent.capture.answer import Answer
from agent.capture.calibrate import Calibration
from agent.capture.disks import Disk
from agent.preflight import Finding, Mode, as_text, examine, exit_code
from shared.errors import BpfError, CaptureUnavailableError, DeviceNotFoundError
from tests.disk_parts import make_disk


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = make_disk(tmp_path, "sda", {"device/wwid": "naa.1"})
    monkeypatch.setattr("agent.capture.disks.find_disk", lambda path, *, sysfs: made)
    return made


def fine() -> None:
    pass


def answered(devices: Sequence[str]) -> dict[str, Answer]:
    return {device: Answer() for device in devices}


def look(rehearse: preflight.Rehearse, check_machine: object = fine) -> Finding:
    (finding,) = examine(["/dev/sda"], check_machine=check_machine, rehearse=rehearse, ask=answered)  # type: ignore[arg-type]
    return finding


def test_a_calibrated_machine_gets_ordered_mode(disk: Disk) -> None:
    finding = look(lambda _: Calibration("", 1, 2))
    assert (finding.mode, finding.error, finding.cause) == (Mode.ORDERED, None, "")
    assert exit_code([finding]) == 0


@pytest.mark.parametrize(
    ("size_b", "text"),
    [(64 << 20, "64.0 MiB"), (96 << 20, "96.0 MiB"), (1 << 30, "1.0 GiB"), (3 << 39, "1536.0 GiB")],
)
def test_sizes_below_a_gib_are_told_apart(disk: Disk, size_b: int, text: str) -> None:
    finding = Finding("/dev/sda", disk=replace(disk, sectors=size_b // 512), mode=Mode.ORDERED)
    assert f"/dev/sda  {text}" in as_text([finding], "6.1")


def test_a_failed_calibration_gives_bitmap_mode_with_its_cause(disk: Disk) -> None:
    finding = look(lambda _: Calibration("pagemap hides page frame numbers"))
    assert (finding.mode, finding.cause) == (Mode.BITMAP, "pagemap hides page frame numbers")
    assert "pagemap" in as_text([finding], "6.1")
    assert exit_code([finding]) == 0


def test_a_kernel_that_refuses_the_programs_gives_scan_mode_and_the_kernels_words(disk: Disk) -> None:
    def refuse(_: object) -> Calibration:
        raise BpfError("The kernel refused the BPF programs", cause="unknown func bpf_loop#181", number=22)

    finding = look(refuse)
    assert finding.mode is Mode.SCAN
    assert "bpf_loop" in as_text([finding], "5.15")
    assert exit_code([finding]) == 5


@pytest.mark.parametrize(
    ("is_root", "btf", "code", "cause"),
    [
        (False, True, True, "not root"),
        (True, False, True, "no BTF"),
        (True, True, False, "programs are missing.*make wheel"),
        (True, True, True, "locked down"),
    ],
)
def test_a_machine_that_cannot_capture_is_told_what_it_lacks(
    disk: Disk, tmp_path: Path, is_root: bool, btf: bool, code: bool, cause: str
) -> None:
    present = tmp_path / "present"
    present.touch()
    absent = tmp_path / "absent"

    lockdown = tmp_path / "lockdown"
    lockdown.write_text(
        "none integrity [confidentiality]" if "locked" in cause else "[none] integrity confidentiality"
    )

    def check() -> None:
        attach.check_machine(
            present if code else absent, btf=present if btf else absent, lockdown=lockdown, is_root=is_root
        )

    with pytest.raises(CaptureUnavailableError, match=cause):
        check()
    finding = look(lambda _: Calibration(""), check)
    assert finding.mode is Mode.SCAN
    assert exit_code([finding]) == 5


def test_the_first_problem_decides_the_exit_code(disk: Disk) -> None:
    good = look(lambda _: Calibration(""))
    assert (
        exit_code([good, Finding("/dev/x", DeviceNotFoundError("x")), Finding("/dev/y", BpfError("y"))]) == 3
    )


def test_everything_is_in_the_json(disk: Disk) -> None:
    row = json.loads(json.dumps(look(lambda _: Calibration("")).as_dict()))
    assert row["mode"] == "ordered"
    assert row["kernel_memory_bytes"] == preflight.bitmap_memory_b(disk) == 24
    failed = Finding("/dev/x", DeviceNotFoundError("no x", cause="c", action="a")).as_dict()
    assert failed["error"] == {"code": "US220", "what": "no x", "cause": "c", "action": "a"}
    assert failed["protectable"] is False


def test_switched_off_counting_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_disk(tmp_path, "sdb", {"queue/iostats": "0"})
    monkeypatch.setattr("agent.capture.disks.find_disk", lambda path, *, sysfs: made)
    notes = " ".join(look(lambda _: Calibration("")).notes)
    assert "iostats = 0" in notes
    assert "no serial number" in notes


def test_a_disk_that_no_page_blob_holds_is_told_before_it_is_protected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = replace(make_disk(tmp_path, "sda", {"device/wwid": "naa.1"}), sectors=9 << 31)
    monkeypatch.setattr("agent.capture.disks.find_disk", lambda path, *, sysfs: made)
    finding = look(lambda _: Calibration("", 1, 2))
    (note,) = (note for note in finding.notes if "8 TiB" in note)
    assert 'target = "image"' in note
