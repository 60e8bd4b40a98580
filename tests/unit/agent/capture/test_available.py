"""Which disks a host has, as far as it is told: by whom it is asked, and how often."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.capture import answer, bindings, identify
from agent.capture.answer import Answer
from agent.capture.available import Available
from agent.capture.bindings import Bound
from agent.capture.disks import UNKNOWN, Attributes, Disk, Queue
from shared.errors import DeviceError
from shared.status import AgentReport

QUEUE = Queue(512, counts=True, dax=False, zoned=False)


class Host:
    """`asked`: the devices of each question. `replies`, by device: what a disk answers."""

    def __init__(self, patch: pytest.MonkeyPatch, **about: Any) -> None:
        self.disks = [disk("sda"), disk("sdb", **about)]
        self.replies: dict[str, Answer] = {}
        self.asked: list[list[str]] = []
        self.said = dict.fromkeys(("sda", "sdb"), Attributes(QUEUE, {}))
        patch.setattr(answer, "attributes", lambda names: self.said)
        patch.setattr(answer, "ask", self.ask)
        patch.setattr(identify, "all_disks", lambda **_: self.disks)

    def ask(self, devices: Any) -> dict[str, Answer]:
        self.asked.append(sorted(devices))
        return {device: self.replies.get(device, Answer()) for device in devices}


def disk(name: str, **about: Any) -> Disk:
    values: dict[str, Any] = {
        "path": Path("/dev") / name, "name": name, "major": 8, "minor": ord(name[-1]), "diskseq": ord(name[-1]),
        "sectors": 8192, "serial": "", "bio_based": False, "read_only": False, "iostats": True, "dax": False, "zoned": False,
        "slaves": (), "multipath_holder": "",
    }  # fmt: skip
    return Disk(**values | about)


def why_not(made: Available) -> dict[str, str]:
    return {found.device: found.why_not for found in made.look()}


def test_a_disk_that_answered_is_not_asked_again_and_one_that_did_not_is(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    host, made = Host(monkeypatch), Available(tmp_path)
    host.replies["/dev/sdb"] = Answer(cause="it did not answer", hangs=True)
    assert why_not(made) == {"/dev/sda": "", "/dev/sdb": "it did not answer"}
    del host.replies["/dev/sdb"]
    assert why_not(made) == {"/dev/sda": "", "/dev/sdb": ""}
    why_not(made)
    assert host.asked == [["/dev/sda", "/dev/sdb"], ["/dev/sdb"], []]
    host.disks[0] = disk("sda", diskseq=99)
    why_not(made)
    assert host.asked[-1] == ["/dev/sda"], "another disk under the name"


def test_what_cannot_be_protected_says_why_and_what_is_captured_may_be_read_only(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    host, made = Host(monkeypatch, read_only=True), Available(tmp_path)
    assert why_not(made) == {"/dev/sda": "", "/dev/sdb": "it is read-only"}
    made.are_captured(host.disks)
    assert why_not(made) == {"/dev/sda": "", "/dev/sdb": ""}


def test_a_disk_of_which_sysfs_says_nothing_is_named_and_not_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = Host(monkeypatch)
    host.said["sdb"] = UNKNOWN
    assert "sysfs" in why_not(Available(tmp_path))["/dev/sdb"]
    assert host.asked == [["/dev/sda"]]


def test_a_look_that_hangs_holds_up_nobody_and_no_second_one_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host, made = Host(monkeypatch), Available(tmp_path)
    begun, goes_on = threading.Event(), threading.Event()

    def hang(names: object) -> dict[str, Attributes]:
        begun.set()
        goes_on.wait(20)
        return host.said

    monkeypatch.setattr(answer, "attributes", hang)
    made.look_if_due()
    assert begun.wait(20)
    thread = made._thread
    made.look_soon()
    made.look_if_due()
    assert (made._thread, made.found) == (thread, [])
    goes_on.set()
    assert thread is not None
    thread.join(20)
    assert [found.device for found in made.found] == ["/dev/sda", "/dev/sdb"]


def test_looks_come_once_a_minute_and_when_somebody_asks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host, made = Host(monkeypatch), Available(tmp_path)

    def looks() -> int:
        made.look_if_due()
        assert made._thread is not None
        made._thread.join(20)
        return len(host.asked)

    assert [looks(), looks()] == [1, 1]
    made.look_soon()
    assert looks() == 2


def test_a_look_that_fails_is_said_and_what_was_found_before_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host, made = Host(monkeypatch), Available(tmp_path)
    before = made.found = made.look()
    for failure in (DeviceError("x", cause="no room for processes"), RuntimeError("a bug")):

        def fail(names: object, failure: Exception = failure) -> dict[str, Attributes]:
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(answer, "attributes", fail)
            made._try_to_look()
        assert made.trouble is not None
        assert (made.found, made.trouble.cause) == (before, getattr(failure, "cause", repr(failure)))
    made._try_to_look()
    assert (made.trouble, len(host.asked)) == (None, 2)


def test_words_that_are_too_long_for_a_report_cost_no_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A loop device is known by its file's path."""
    host, made = Host(monkeypatch), Available(tmp_path)
    host.replies["/dev/sda"] = Answer(cause="c" * 20_000)
    monkeypatch.setattr(identify, "identities", lambda disk, told: ["loop:" + "p" * 300])
    found = made.look()
    assert [each.identity for each in found] == ["", ""]
    msgspec.json.decode(msgspec.json.encode(AgentReport(available=found)), type=AgentReport)


def test_a_disk_that_was_protected_once_is_told_with_its_id_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host, made = Host(monkeypatch), Available(tmp_path)
    host.disks = [disk(name, names={"wwid": f"naa.{name}"}) for name in ("sda", "sdb", "sdc")]
    host.said = dict.fromkeys(("sda", "sdb", "sdc"), Attributes(QUEUE, {}))

    def ids() -> dict[str, str]:
        return {found.device: found.id for found in made.look()}

    assert ids() == {"/dev/sda": "", "/dev/sdb": "", "/dev/sdc": ""}
    lines = [
        Bound("data", "/dev/sda", "wwid:naa.sdb"),
        Bound("logs", "/dev/sdb", "wwid:naa.gone"),
        Bound("one", "/dev/x", "wwid:naa.sdc"),
        Bound("two", "/dev/y", "wwid:naa.sdc"),
    ]
    bindings.write(tmp_path, lines)
    assert ids() == {"/dev/sda": "", "/dev/sdb": "data", "/dev/sdc": ""}, "which of two it is, nobody knows"
    made.are_captured([replace(host.disks[2], id="one")])
    assert ids()["/dev/sdc"] == "one"
    (tmp_path / bindings.NAME).write_bytes(b"{")
    assert ids()["/dev/sdb"] == "data", "as it was known before"
    host.disks[0] = disk("sda", names={"wwid": "naa.sdb"})
    assert ids() == {"/dev/sda": "", "/dev/sdb": "", "/dev/sdc": "one"}, "a clone"


def test_a_disk_is_told_with_the_links_that_lead_to_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Host(monkeypatch)
    for link, leads_to in (
        ("disk/by-id/wwn-A", "/dev/sda"), ("disk/by-id/wwn-A-part1", "/dev/sda1"), ("disk/by-label/DATA", "/dev/sda"),
        ("vg0/data", "/dev/sda"), ("block/8:0", "/dev/sda"), ("oracle", "/dev/sdb"), ("sdb", "/dev/null"),
    ):  # fmt: skip
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(leads_to)
    monkeypatch.setattr(identify, "DEV", tmp_path)
    found = {disk.device: disk.links for disk in Available(tmp_path).look()}
    assert found == {
        "/dev/sda": [str(tmp_path / name) for name in ("disk/by-id/wwn-A", "disk/by-label/DATA", "vg0/data")],
        "/dev/sdb": [str(tmp_path / "oracle")],
    }
