"""One file has one writer at a time, and holds what is newest in the end."""

from __future__ import annotations

import asyncio

from shared.daemon.single_writer import SingleWriter


class Disk:
    """A file that takes as long as the test says, and writers that may be ill-timed."""

    def __init__(self) -> None:
        self.newest = 0
        self.holds = 0
        self.fails = False
        self.writing = 0
        self.began = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.writer = SingleWriter("test", self.write)

    def change(self) -> None:
        self.newest += 1
        self.writer.changed()

    async def write(self) -> bool:
        value, self.writing = self.newest, self.writing + 1
        assert self.writing == 1, "two at a time"
        self.began.set()
        await self.goes_on.wait()
        self.writing -= 1
        if not self.fails:
            self.holds = value
        return not self.fails


async def test_what_is_newest_is_written_last_although_whoever_waited_for_the_first_was_cancelled() -> None:
    disk = Disk()
    disk.goes_on.clear()
    disk.change()
    first = asyncio.create_task(disk.writer.written())
    await disk.began.wait()
    first.cancel()
    await asyncio.wait([first])
    disk.change()
    second = asyncio.create_task(disk.writer.written())
    await asyncio.sleep(0)
    assert not second.done()
    disk.goes_on.set()
    assert await second
    assert disk.holds == 2
    assert not disk.writer.is_due


async def test_what_did_not_change_is_not_written_and_what_failed_is_tried_again() -> None:
    disk = Disk()
    assert await disk.writer.written()
    assert not disk.began.is_set()
    disk.change()
    disk.fails = True
    assert not await disk.writer.written()
    assert disk.writer.is_due
    disk.fails = False
    assert await disk.writer.written()
    assert disk.holds == 1


async def test_what_changes_while_it_is_written_is_due_again() -> None:
    disk = Disk()
    disk.goes_on.clear()
    disk.change()
    writing = asyncio.create_task(disk.writer.written())
    await disk.began.wait()
    disk.change()
    disk.goes_on.set()
    assert await writing
    assert (disk.holds, disk.writer.is_due) == (1, True)
