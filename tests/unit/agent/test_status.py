"""What the agent says of itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from agent import status
from agent.capture.bindings import Bound
from agent.stream.unreadable import Unreadable
from shared.desired import WantedDisk
from shared.errors import UnreachableError
from shared.vocabulary import Severity


def test_sectors_that_could_not_be_read_are_said_of_each_disk_that_has_some() -> None:
    disks: list[Any] = [SimpleNamespace(id=f"id-{name}", path=f"/dev/{name}") for name in "abc"]
    unreadable = Unreadable(3)
    assert status.unreadable_sectors(disks, unreadable) == []
    unreadable.declare(0, [(15, 3), (1 << 40, 1)], 0.0)
    unreadable.declare(1, [(5, 1)], 0.0)
    unreadable.declare(2, [(0, 40)], 0.0)
    unreadable.remove(1, [(0, 8)])
    said = [(found.object, found.code, found.what) for found in status.unreadable_sectors(disks, unreadable)]
    assert said == [
        ("id-a", "US409", "4 sectors of protected disk /dev/a could not be read"),
        ("id-c", "US409", "40 sectors of protected disk /dev/c could not be read"),
    ]


def test_a_process_server_that_may_be_restarting_is_a_warning() -> None:
    error = UnreachableError("The process server could not be reached")
    said = [status.without_session(error, may_restart=restarts) for restarts in (True, False)]
    assert [problem.severity for problem in said] == [Severity.WARNING, Severity.ERROR]
    assert {problem.code for problem in said} == {UnreachableError.code}


def test_a_path_that_is_longer_than_a_report_takes_costs_no_report() -> None:
    for path, said in (("/dev/" + "x" * 250, "/dev/" + "x" * 250), ("/dev/" + "x" * 251, "/dev/sdb")):
        disk: Any = SimpleNamespace(path=path, device="/dev/sdb")
        assert status._path(disk) == said


def test_a_disk_that_is_left_out_is_told_by_its_id_too_and_what_it_is_configured_to_bear() -> None:
    lines = [Bound(id_, f"/dev/{id_}", "gpt:1") for id_ in ("sda", "data", "former")]
    lines[1] = Bound("data", "/dev/sda", "gpt:2")  # it was called so once
    wanted = (
        WantedDisk("/dev/sda", identity="wwid:A"),
        WantedDisk("/dev/sdb", "data"),
        WantedDisk("/dev/sdc"),
    )
    agent: Any = SimpleNamespace(
        config=SimpleNamespace(protected=wanted),
        capture=SimpleNamespace(disks=[SimpleNamespace(id="sda")]),
        watch=SimpleNamespace(
            file=SimpleNamespace(written=lines),
            left_out=[
                SimpleNamespace(id="data", device="/dev/sdb"),
                SimpleNamespace(id="never-bound", device="/dev/sdc"),
            ],
        ),
    )
    found = [(disk.id, disk.device, disk.identity) for disk in status._bound(agent)]
    assert found == [("sda", "/dev/sda", "wwid:A"), ("data", "/dev/sda", ""), ("", "/dev/sdc", "")]


def test_an_agent_that_captures_nothing_says_all_the_same_what_it_is_to_protect() -> None:
    lines = [
        Bound("sda", "/dev/sda", "wwid:A"),
        Bound("sda-2", "/dev/sda", "wwid:B"),
        Bound("c", "/dev/sdc", "wwid:C"),
    ]
    wanted = (
        WantedDisk("/dev/sda"),  # the newest line of that path
        WantedDisk("/dev/sdd", "given"),
        WantedDisk("/dev/disk/by-id/c", identity="wwid:C"),
        WantedDisk("/dev/late"),
    )
    found = [(disk.id, disk.device, disk.identity) for disk in status.to_protect(wanted, lines)]
    assert found == [
        ("sda-2", "/dev/sda", ""),
        ("given", "/dev/sdd", ""),
        ("c", "/dev/sdc", "wwid:C"),
        ("", "/dev/late", ""),
    ]
    twice = status.to_protect((WantedDisk("/dev/sda"), WantedDisk("/dev/sdx", "sda-2")), lines)
    assert [(disk.id, disk.device) for disk in twice] == [("", "/dev/sda"), ("sda-2", "/dev/sda")]
