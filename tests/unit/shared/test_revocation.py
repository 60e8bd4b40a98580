"""The list of revoked certificates on a daemon's disk."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import msgspec
import pytest

from shared import durable
from shared.messages import Revocations
from shared.revocation import RevokedFile


async def test_the_newest_list_stays_on_the_disk_although_an_older_write_was_slow_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "revoked.json"
    older, newer = Revocations(names=["agent:x"]), Revocations(names=["agent:x", "agent:y"])
    really, began, goes_on = durable.replace_file, threading.Event(), threading.Event()

    def slow(path: Path, data: bytes, *, mode: int) -> None:
        began.set()
        goes_on.wait(10)
        really(path, data, mode=mode)

    file = RevokedFile(path, lambda _revoked: None)
    monkeypatch.setattr(durable, "replace_file", slow)
    first = asyncio.create_task(file.take(older))
    await asyncio.to_thread(began.wait, 10)
    first.cancel()  # a report is, when a command has ended meanwhile
    await asyncio.wait([first])
    monkeypatch.setattr(durable, "replace_file", really)
    second = asyncio.create_task(file.take(newer))
    await asyncio.wait([second], timeout=0.1)  # without the order it would be over
    goes_on.set()
    await second
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        await task
    await asyncio.get_running_loop().shutdown_default_executor()
    assert msgspec.json.decode(path.read_bytes(), type=Revocations) == newer


async def test_a_list_that_could_not_be_written_is_written_with_the_next_answer(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "away"
    file = RevokedFile(folder / "revoked.json", lambda _revoked: None)
    revoked = Revocations(names=["agent:x"])
    await file.take(revoked)
    assert file.trouble.error is not None
    folder.mkdir()
    await file.take(revoked)
    assert file.trouble.error is None
    assert msgspec.json.decode((folder / "revoked.json").read_bytes(), type=Revocations) == revoked
