"""Which disks a host has, as far as it is told: by whom it is asked, and how often."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.capture import answer, identify
from agent.capture.answer import Answer
from agent.capture.available import Available
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
) -> None:
    host, made = Host(monkeypatch), Available()
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
) -> None:
    host, made = Host(monkeypatch, read_only=True), Available()
    assert why_not(made) == {"/dev/sda": "", "/dev/sdb": "it is read-only"}
    made.are_captured(host.disks)
    assert why_not(made) == {"/dev/sda": "", "/dev/sdb": ""}


def test_a_disk_of_which_sysfs_says_nothing_is_named_and_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    host.said["sdb"] = UNKNOWN
    assert "sysfs" in why_not(Available())["/dev/sdb"]
    assert host.asked == [["/dev/sda"]]


def test_a_look_that_hangs_holds_up_nobody_and_no_second_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    host, made = Host(monkeypatch), Available()
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


def test_looks_come_once_a_minute_and_when_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    host, made = Host(monkeypatch), Available()

    def looks() -> int:
        made.look_if_due()
        assert made._thread is not None
        made._thread.join(20)
        return len(host.asked)

    assert [looks(), looks()] == [1, 1]
    made.look_soon()
    assert looks() == 2


def test_a_look_that_fails_is_said_and_what_was_found_before_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    host, made = Host(monkeypatch), Available()
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


def test_words_that_are_too_long_for_a_report_cost_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop device is known by its file's path."""
    host, made = Host(monkeypatch), Available()
    host.replies["/dev/sda"] = Answer(cause="c" * 20_000)
    monkeypatch.setattr(identify, "identities", lambda disk, told: ["loop:" + "p" * 300])
    found = made.look()
    assert [each.identity for each in found] == ["", ""]
    msgspec.json.decode(msgspec.json.encode(AgentReport(available=found)), type=AgentReport)
