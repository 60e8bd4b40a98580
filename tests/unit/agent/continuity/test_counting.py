"""Who asks whether the kernel counts: how many threads, and what becomes of what they meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.capture.disks import Queue
from agent.continuity import counting
from agent.continuity.counting import Counting
from tests.capture_parts import until

DISKS = ("sda", "sdb")


class Queues:
    """What sysfs says of two disks: `hangs`: until `answers` is set; `fails`."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(DISKS, True)
        self.hangs, self.fails = set[str](), set[str]()
        self.answers = threading.Event()
        self.asked: list[str] = []
        self._others = {*threading.enumerate()}

    def askers(self) -> list[threading.Thread]:
        threads = {*threading.enumerate()} - self._others
        return [thread for thread in threads if thread.name == "counting"]

    def read(self, folder: Path) -> Queue:
        if threading.current_thread() in self._others:  # of a test before, which nobody waits for
            return Queue(512, counts=True, dax=False, zoned=False)
        self.asked.append(folder.name)
        if folder.name in self.fails:
            raise MemoryError("no room")
        if folder.name in self.hangs:
            self.answers.wait()
        return Queue(512, counts=self.counts[folder.name], dax=False, zoned=False)


@pytest.fixture
def queues(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queues]:
    made = Queues()
    monkeypatch.setattr(counting, "read_queue", made.read)
    monkeypatch.setattr(counting, "still_stands", lambda disk: True)
    monkeypatch.setattr(counting, "_LOCKS", {})
    monkeypatch.setattr(counting, "IDLE_S", 0.01)
    yield made
    made.answers.set()
    until(lambda: not made.askers(), "a thread that nobody tells to ask goes on")


def begin() -> Counting:
    disks = [SimpleNamespace(name=name, id=name, diskseq=7, iostats=True, hidden_by="") for name in DISKS]
    capture: Any = SimpleNamespace(disks=disks)
    return Counting(capture)


def look_until(session: Counting, condition: Callable[[], bool], what: str) -> None:
    def looked() -> bool:
        session.look()
        return condition()

    until(looked, what)


def test_a_disk_that_hangs_holds_one_thread_however_many_sessions_come_and_no_other_disk(
    queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_session_that_asks_about_the_other() -> None:
        session = begin()
        look_until(session, lambda: not session.counts(1), "one that hangs keeps the other from being asked")
        assert session.counts(0), "the last word is not believed"

    queues.hangs = {"sda"}
    monkeypatch.setattr(counting, "HANGS_S", -1.0)
    queues.counts["sdb"] = False
    for _ in range(3):
        a_session_that_asks_about_the_other()
    until(lambda: len(queues.askers()) == 1, "threads pile up")
    assert queues.asked.count("sda") == 1


def test_what_fails_each_second_is_said_once_and_shown_until_it_succeeds(queues: Queues) -> None:
    queues.fails = {"sda"}
    session = begin()
    with capture_logs() as lines:
        look_until(session, lambda: len(queues.asked) >= 8, "it is not asked for again")
    assert session.trouble is not None
    assert "no room" in session.trouble.cause
    assert [line["log_level"] for line in lines] == ["error"]
    queues.fails = set()
    look_until(session, lambda: session.trouble is None, "it is shown for ever")


def test_a_machine_without_room_for_a_thread_is_audited_all_the_same(
    queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    session = begin()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_room)
        session.look()
        assert session.trouble is not None
    look_until(session, lambda: session.trouble is None, "it is shown for ever")


def test_a_multipath_device_that_comes_over_a_disk_is_seen_as_one_that_hides_its_writes(
    queues: Queues, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "SYSFS", tmp_path)
    session = begin()
    look_until(session, lambda: len(queues.asked) >= 2, "nobody asks")
    assert session.hidden_by == ["", ""]
    uuid = tmp_path / "block/sdb/holders/dm-0/dm/uuid"
    uuid.parent.mkdir(parents=True)
    uuid.write_text("mpath-3600a098\n")
    look_until(session, lambda: session.hidden_by == ["", "dm-0"], "another path is not seen")
