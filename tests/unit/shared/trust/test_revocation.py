"""The list of revoked certificates on a daemon's disk."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import msgspec
import pytest

from config_server.identity.ca import CertificateAuthority
from shared.api.certificates import Revocations
from shared.daemon.threads import Threads
from shared.host import durable
from shared.trust.revocation import RevokedFile, merged
from tests.no_threads import no_room


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

    file = RevokedFile(path, tmp_path / "ca.pem", lambda _revoked: None)
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
    file = RevokedFile(folder / "revoked.json", tmp_path / "ca.pem", lambda _revoked: None)
    revoked = Revocations(names=["agent:x"])
    await file.take(revoked)
    assert file.trouble.error is not None
    folder.mkdir()
    await file.take(revoked)
    assert file.trouble.error is None
    assert msgspec.json.decode((folder / "revoked.json").read_bytes(), type=Revocations) == revoked


async def test_a_list_for_which_there_was_no_thread_is_in_force_and_written_with_the_next_answer(
    tmp_path: Path,
) -> None:
    asyncio.get_running_loop().set_default_executor(Threads())
    seen: list[Revocations] = []
    file = RevokedFile(tmp_path / "revoked.json", tmp_path / "ca.pem", seen.append)
    revoked = Revocations(names=["agent:x"])
    with no_room():
        await file.take(revoked)
    assert file.trouble.error is not None
    assert "new thread" in file.trouble.error.cause
    assert seen == [revoked]
    await file.take(revoked)
    assert file.trouble.error is None
    assert msgspec.json.decode((tmp_path / "revoked.json").read_bytes(), type=Revocations) == revoked


def ca_file(folder: Path) -> Path:
    folder.mkdir()
    CertificateAuthority.open(folder)
    return folder / "ca.pem"


async def test_who_was_told_of_a_revocation_keeps_it_when_a_server_from_a_backup_tells_less_and_over_a_restart(
    tmp_path: Path,
) -> None:
    seen: list[Revocations] = []
    ca = ca_file(tmp_path / "one")
    file = RevokedFile(tmp_path / "revoked.json", ca, seen.append)
    # Readmitted, then the backup; revoked again since.
    backup = Revocations(before={"agent:again": 100}, since={"agent:again": 10})
    await file.take(backup)
    newest = Revocations(["a"], ["agent:again", "agent:x"], since={"agent:again": 20, "agent:x": 21})
    await file.take(newest)
    await file.take(backup)
    await file.take(Revocations())
    assert seen[-1] == newest
    restarted = RevokedFile(tmp_path / "revoked.json", ca, seen.append)
    restarted.load()
    await restarted.take(backup)
    assert seen[-1] == newest
    await restarted.take(Revocations(before={"agent:again": 200}, since={"agent:again": 22}))
    assert seen[-1] == Revocations(
        ["a"], ["agent:x"], {"agent:again": 200}, {"agent:again": 22, "agent:x": 21}
    )
    # A server from before `since`.
    await restarted.take(Revocations(before={"agent:x": 300}))
    assert seen[-1].names == []


async def test_an_installation_keeps_nothing_of_what_another_one_revoked(tmp_path: Path) -> None:
    seen: list[Revocations] = []
    path = tmp_path / "revoked.json"
    ca, other = ca_file(tmp_path / "one"), ca_file(tmp_path / "two")
    enrolled = tmp_path / "ca.pem"
    enrolled.write_bytes(ca.read_bytes())
    file = RevokedFile(path, enrolled, seen.append)
    enrolled.write_bytes(other.read_bytes())  # while it runs: it hears of the first one until it is restarted
    await file.take(Revocations(names=["agent:x"]))
    seen.clear()
    RevokedFile(path, other, seen.append).load()
    assert seen == []
    RevokedFile(path, ca, seen.append).load()
    assert seen == [Revocations(names=["agent:x"])]


async def test_the_list_outlives_the_renewal_of_its_ca_with_or_without_a_restart_between(
    tmp_path: Path,
) -> None:
    seen: list[Revocations] = []
    path, enrolled = tmp_path / "revoked.json", tmp_path / "ca.pem"
    old, new = (ca_file(tmp_path / each).read_bytes() for each in ("one", "two"))
    revoked = Revocations(names=["agent:x"])
    enrolled.write_bytes(old)
    file = RevokedFile(path, enrolled, seen.append)
    await file.take(revoked)
    for trusted in (old + new, new):
        enrolled.write_bytes(trusted)
        file.trusted(trusted)
        await file.take(revoked)  # nothing of it is new
        seen.clear()
        RevokedFile(path, enrolled, seen.append).load()
        assert seen == [revoked]
    # One that was not written while both were trusted, and is loaded then.
    path.unlink()
    enrolled.write_bytes(old)
    await RevokedFile(path, enrolled, seen.append).take(revoked)
    enrolled.write_bytes(old + new)
    restarted = RevokedFile(path, enrolled, seen.append)
    restarted.load()
    await restarted.take(Revocations())
    enrolled.write_bytes(new)
    seen.clear()
    RevokedFile(path, enrolled, seen.append).load()
    assert seen == [revoked]


async def test_a_list_that_could_not_be_read_is_read_before_it_is_replaced(tmp_path: Path) -> None:
    path, ca, seen = tmp_path / "revoked.json", tmp_path / "ca.pem", list[Revocations]()
    path.mkdir()  # EISDIR, like EIO and EMFILE, says nothing of what it holds
    file = RevokedFile(path, ca, seen.append)
    file.load()
    await file.take(Revocations(names=["agent:new"]))
    assert file.trouble.error is not None
    assert seen == [Revocations(names=["agent:new"])]
    path.rmdir()
    path.write_bytes(msgspec.json.encode(Revocations(["a"], ["agent:thief"], since={"agent:thief": 5})))
    await file.take(Revocations())
    everything = Revocations(["a"], ["agent:new", "agent:thief"], since={"agent:thief": 5})
    assert seen[-1] == everything
    assert msgspec.json.decode(path.read_bytes(), type=Revocations) == everything


async def test_a_damaged_list_is_kept_aside_and_said_until_somebody_has_looked(tmp_path: Path) -> None:
    path, aside = tmp_path / "revoked.json", tmp_path / "revoked.json.damaged"
    path.write_bytes(b'{"serials": ["aa"')
    RevokedFile(path, tmp_path / "ca.pem", lambda _revoked: None).load()
    assert aside.read_bytes() == b'{"serials": ["aa"'
    file = RevokedFile(path, tmp_path / "ca.pem", lambda _revoked: None)
    file.load()  # the next start
    await file.take(Revocations(["b"]))
    assert file.trouble.error is not None
    assert str(aside) in file.trouble.error.cause
    assert path.exists()
    aside.unlink()
    await file.take(Revocations(["b", "c"]))
    assert file.trouble.error is None


def test_a_server_that_knows_only_a_part_readmits_nobody_whom_a_later_revocation_meant() -> None:
    """It is from a backup between the first revocation and the first readmission; the second revocation it does not know."""
    name = "agent:x"
    known = merged(
        Revocations(names=[name], since={name: 3}), Revocations(before={name: 500}, since={name: 5})
    )
    refused = merged(known, Revocations(names=[name], since={name: 1}))
    assert refused.names == [name]
    part = merged(refused, Revocations(before={name: 200}, since={name: 2}))
    assert part.names == [name]
    whole = merged(part, Revocations(before={name: 500}, since={name: 5}))
    assert (whole.names, whole.before) == ([], {name: 500})
    assert merged(part, Revocations(before={name: 600}, since={name: 6})).before == {name: 600}
