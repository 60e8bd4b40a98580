"""What lies beside a machine's spool for the next start: the newest, and people are told as long as it is not there. Real, small disks."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from process_server.machine_files import MachineFiles
from process_server.reception.boots import Admitted, BootFiles
from shared.batch import Buffer
from shared.errors import BootFileError, SideFileError
from shared.host import durable
from tests.receiver_site import Site
from tests.small_fs import fill, remount, small_fs
from tests.wire_parts import hello


def files_in(folder: Path) -> MachineFiles:
    return MachineFiles(folder, "side.json", "active sides", SideFileError)


async def test_a_disk_that_takes_no_file_is_told_until_every_machine_has_its_own(tmp_path: Path) -> None:
    with small_fs(tmp_path / "spool") as folder:
        files = files_in(folder)
        await files.keep("m1", b"first")
        remount(folder, "ro")
        await files.keep("m1", b"second")
        await files.keep("m2", b"first")
        trouble = files.trouble.error
        assert trouble is not None
        assert (trouble.code, trouble.cause) == (SideFileError.code, "Read-only file system")
        assert files.path("m1").read_bytes() == b"first"
        remount(folder, "rw")
        await files.keep("m2", b"second")
        assert files.trouble.error is not None, "m1's is not there yet"
        await files.store_again()
        assert files.trouble.error is None
        assert {machine: path.read_bytes() for machine, path in files.all().items()} == {
            "m1": b"second",
            "m2": b"second",
        }


async def test_the_last_that_was_kept_lies_there_although_whoever_kept_the_one_before_was_cancelled_while_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_in(tmp_path)
    began, over, overtaken = threading.Event(), threading.Event(), threading.Event()
    replace = durable.replace_file

    def slow(path: Path, data: Buffer) -> None:
        if bytes(data) == b"second":
            replace(path, data)
            overtaken.set()
            return
        began.set()
        overtaken.wait(0.5)
        replace(path, data)
        over.set()

    monkeypatch.setattr(durable, "replace_file", slow)
    first = asyncio.create_task(files.keep("m1", b"first"))
    await asyncio.to_thread(began.wait)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await files.keep("m1", b"second")
    await asyncio.to_thread(over.wait)
    assert files.path("m1").read_bytes() == b"second"


async def test_a_boot_that_cannot_be_remembered_is_told_and_its_machine_admitted(tmp_path: Path) -> None:
    with small_fs(tmp_path / "spool") as folder:
        site = Site(tmp_path)
        await site.start()
        try:
            ballast = fill(folder)
            async with site.agent() as agent:
                await agent.open(hello(identity="original", boot="11111111/a"))
            trouble = site.boots.files.trouble.error
            assert trouble is not None
            assert (trouble.code, trouble.cause) == (BootFileError.code, "No space left on device")
            ballast.unlink()
            await site.boots.files.store_again()
            assert site.boots.files.trouble.error is None
        finally:
            await site.receiver.stop()
        recalled = BootFiles(folder).recall(0.0)["lab"]
        assert recalled.admitted == Admitted(identity="original", kernel="11111111")
