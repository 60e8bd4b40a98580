"""What the agent says of itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from agent import status
from agent.stream.unreadable import Unreadable
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
