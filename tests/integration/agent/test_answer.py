"""Does a disk answer? Asked by a program that can be left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.capture import answer
from agent.capture.answer import PageReader, ask
from agent.capture.disks import UNKNOWN, Disk, find_disk
from agent.capture.identify import all_disks, identities
from shared.errors import DeviceError
from tests.capture_parts import mounted, run, until
from tests.disk_parts import make_disk
from tests.loopdisk import loop_disk
from tests.sick_disk import sick_disk


def test_a_disk_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = tmp_path / "never.py"
    never.write_text("import signal; signal.pause()")
    monkeypatch.setattr(answer, "PROGRAM", str(never))
    monkeypatch.setattr(answer, "_given_up", {})
    told = ask(["/dev/null"], deadline_s=0.2)["/dev/null"]
    assert told.hangs
    assert "did not answer within" in told.cause
    (child,) = answer._given_up.values()
    until(lambda: child.poll() is not None, "the child stays though its disk lets it go")


def test_a_disk_that_hangs_is_asked_by_one_child_and_asked_again_when_that_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "_given_up", {})
    begun = tmp_path / "begun"
    never = tmp_path / "never.py"
    never.write_text(f"import signal; open({str(begun)!r}, 'a').write('x'); signal.pause()")
    real = answer.PROGRAM
    monkeypatch.setattr(answer, "PROGRAM", str(never))
    kill = subprocess.Popen.kill
    monkeypatch.setattr(subprocess.Popen, "kill", lambda child: None)  # as of one that hangs in the kernel
    for _ in range(3):
        told = ask(["/dev/null"], deadline_s=0.1)["/dev/null"]
        assert told.hangs
        until(begun.exists, "nobody asks")
    assert begun.read_text() == "x"
    (child,) = answer._given_up.values()
    kill(child)
    child.wait()
    monkeypatch.setattr(answer, "PROGRAM", real)
    assert not ask(["/dev/null"])["/dev/null"].hangs


def test_a_device_that_cannot_be_read_says_why() -> None:
    told = ask(["/dev/no-such-disk"])["/dev/no-such-disk"]
    assert (told.hangs, told.head) == (False, b"")
    assert "No such file or directory" in told.cause


def test_a_host_that_starts_no_more_programs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    for call in (lambda: ask(["/dev/null"]), lambda: answer.attributes(["loop0"])):
        with pytest.raises(DeviceError, match="could not be started: No such file") as caught:
            call()
        assert caught.value.action


def test_disks_whose_serial_number_does_not_come_hold_up_neither_a_look_nor_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung, well = ["vda", "vdb"], ["sda", "vdc"]
    folders = tmp_path / "block"
    for name in (*hung, *well):
        make_disk(tmp_path, name, {"serial": f"of {name}"})
        (folders / name / "dev").write_text("8:0")
    for name in hung:
        (folders / name / "serial").unlink()
        os.mkfifo(folders / name / "serial")  # whoever opens it waits for somebody who writes
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
        f"from pathlib import Path; from agent.capture import device_program\n"
        f"device_program.attributes(sys.argv[2:], Path({str(tmp_path)!r}))\n"
    )
    monkeypatch.setattr(answer, "PROGRAM", str(program))
    monkeypatch.setattr(answer, "ATTRIBUTES_DEADLINE_S", 1.0)
    monkeypatch.setattr(answer, "_given_up", {})
    said = answer.attributes(sorted([*hung, *well]))
    assert [name for name, found in said.items() if found is UNKNOWN] == hung
    for child in answer._given_up.values():
        child.wait()
    found: list[Disk] = []

    def look() -> None:
        found.extend(all_disks(sysfs=tmp_path, attributes_of=lambda folder: said[folder.name]))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(10)
    assert {disk.name: str(identities(disk)[0]) for disk in found if disk.names} == {
        name: f"serial:of {name}" for name in well
    }
    assert {disk.name: disk.serial for disk in found} == {
        **dict.fromkeys(hung, ""), **{name: f"of {name}" for name in well},
    }  # fmt: skip


def test_an_interpreter_on_a_disk_that_hangs_stops_nobody_but_who_starts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sick_disk(tmp_path / "sick", 4 << 20, limit_s=20) as sick:
        run("mkfs.ext2", "-q", sick.device)
        with mounted(sick.device, tmp_path / "mnt") as mnt:
            shutil.copy("/bin/true", mnt / "python")
        with mounted(sick.device, tmp_path / "mnt", "-o", "ro") as mnt, monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(mnt / "python"))
            patch.setattr(answer, "DEADLINE_S", 0.3)
            sick.hang()
            for _ in range(3):
                told = ask(["/dev/null", "/dev/zero"])
                assert [answer.hangs for answer in told.values()] == [True, True]
                assert answer.attributes(["loop0"]) == {"loop0": UNKNOWN}
            starting = [thread for thread in threading.enumerate() if thread.name == "child-start"]
            assert len(starting) == 1
            sick.well()
            starting[0].join(20)
    assert not ask(["/dev/null"], deadline_s=20)["/dev/null"].hangs


def test_what_is_read_to_calibrate_is_the_disk_that_is_meant_or_nothing(tmp_path: Path) -> None:
    with loop_disk(tmp_path / "disk", 1 << 20) as device, open_page() as page:
        disk = find_disk(Path(device))
        with contextlib.closing(PageReader(disk, page)) as reader:
            reader.read(0)
        other = PageReader(replace(disk, diskseq=1), page)
        with contextlib.closing(other), pytest.raises(OSError, match="another disk stands there"):
            other.read(0)


@contextlib.contextmanager
def open_page() -> Iterator[int]:
    page = os.memfd_create("page")
    try:
        os.ftruncate(page, 4096)
        yield page
    finally:
        os.close(page)
