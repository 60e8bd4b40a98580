"""Machines that are deleted while a process server has something of them: a real spool, and real storage."""

from __future__ import annotations

import asyncio
import errno
import random
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from process_server.reception.credit import CreditPolicy
from process_server.reception.machine import Machine
from process_server.reception.session import Session
from process_server.spool import machine_folder, watermark
from process_server.spool.aside import Kind, Note
from process_server.spool.epoch_log import EpochLog
from process_server.spool.machine_log import MachineLog
from shared.blob import BlobConfig
from shared.control import remote_vault
from shared.errors import StorageForgotError, UnderstudyError
from shared.host import durable
from shared.keys.vault import Vault
from shared.machine.storage import REGISTRY, MachineStorage
from tests.azurite import Azurite
from tests.deleted_machines import HARDWARE, Parts, parts, remove
from tests.deletions import in_storage
from tests.logs import make_chain
from tests.spools import MACHINE, append_all, hello, hello_again, make_spool, read_log, same_batches
from tests.storage_faults import Answer, FaultProxy


def own(storage: MachineStorage) -> MachineStorage:
    """What a daemon of its own knows of the account."""
    return MachineStorage(storage.vault)


async def until_in_trouble(made: Parts) -> None:
    async with asyncio.timeout(20):
        while not made.report().machines[MACHINE].errors:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.02)


def codes(made: Parts) -> list[str]:
    return [error.code for error in made.report().machines[MACHINE].errors]


def is_coming(made: Parts) -> None:
    """As if a session with the name waited for the machine's log."""
    machine = made.admission.machines[MACHINE] = Machine(MACHINE, CreditPolicy())
    machine.holder = cast(Session, object())


@pytest.mark.parametrize("uploaded", [True, False])
async def test_a_deleted_machine_goes_from_a_server_that_runs(
    machine_storage: MachineStorage, tmp_path: Path, *, uploaded: bool
) -> None:
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        log = await made.begun()
        await append_all(log, make_chain(3))
        if uploaded:
            await log.flush()
        assert {f"{MACHINE}/side.json", f"{MACHINE}/boot.json"} <= set(made.here())
        container = await remove(machine_storage)
        if not uploaded:
            flushing = asyncio.create_task(log.flush())
        await until_in_trouble(made)
        await made.hears(container)
        if not uploaded:
            with pytest.raises(StorageForgotError):
                await flushing
        assert (made.here(), made.report().machines, made.report().errors) == ([], {}, [])
        assert made.admission._boots == {}
    assert await in_storage(machine_storage) == (set(), set())


async def test_a_server_that_was_off_during_the_deletion_drops_it_when_it_is_told(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        await append_all(await made.begun(), make_chain(3))
    container = await remove(machine_storage)
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        await until_in_trouble(made)
        assert made.report().machines[MACHINE].containers == [container]
        await made.hears(container)
        assert (made.here(), made.report().machines) == ([], {})
    assert await in_storage(machine_storage) == (set(), set())


async def test_storage_that_forgot_a_machine_which_nobody_deleted_costs_nothing_here(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    """As behind a failover of the account."""
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        await append_all(await made.begun(), make_chain(3))
        other = (await machine_storage.find_or_create("web2")).container
        await remove(machine_storage)
        await until_in_trouble(made)
        before = made.here()
        await made.hears(other)
        await made.hears()
        assert made.here() == before
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        await until_in_trouble(made)
        await made.hears(other)
        assert [name for name in made.here() if name.endswith(".seg")]


@pytest.mark.parametrize("is_registered", [True, False])
async def test_what_storage_has_is_not_dropped_whatever_is_told(
    machine_storage: MachineStorage, tmp_path: Path, *, is_registered: bool
) -> None:
    """It was brought back, or the config server looks at another account."""
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        log = await made.begun()
        await append_all(log, make_chain(3))
        container = await machine_storage.named(MACHINE)
        assert container is not None
        if not is_registered:
            await machine_storage.vault.delete(f"{REGISTRY}{MACHINE}.json")
        await made.hears(container)
        await log.flush()
        store = machine_storage.vault.in_container(container)
        assert same_batches(await read_log(store, tmp_path / "spool"), make_chain(3))


async def test_what_the_registry_still_names_is_not_dropped(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        await append_all(await made.begun(), make_chain(3))
        entry = await machine_storage.vault.read(f"{REGISTRY}{MACHINE}.json")
        container = await remove(machine_storage)
        await machine_storage.vault.create(f"{REGISTRY}{MACHINE}.json", entry)
        before = made.here()
        await made.hears(container)
        assert made.here() == before


@pytest.mark.parametrize("how", ["its container is there", "the registry names it"])
async def test_what_is_brought_back_while_its_log_ends_is_not_dropped(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with parts(tmp_path / "spool", own(machine_storage), 3600.0) as made:
        await append_all(await made.begun(), make_chain(3))
        metadata = await (await machine_storage.find(MACHINE)).container_metadata()
        entry = await machine_storage.vault.read(f"{REGISTRY}{MACHINE}.json")
        old = await remove(machine_storage)
        abandon = EpochLog.abandon

        async def slow(log: EpochLog, error: UnderstudyError) -> None:
            await abandon(log, error)
            if how == "the registry names it":
                await machine_storage.vault.create(f"{REGISTRY}{MACHINE}.json", entry)
            else:
                await machine_storage.vault.in_container(old).ensure_container(metadata)

        monkeypatch.setattr(EpochLog, "abandon", slow)
        before = made.here()
        await made.hears(old)
        assert made.here() == before
        assert made.report().machines[MACHINE].containers == [old]


async def test_the_keys_of_a_name_stay_while_a_machine_bears_it_anywhere(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was here, while its side could not be written, and lives at another server now; the word is of the one before."""
    keyless: list[str] = []

    async def forgotten(_vault: Vault, machine: str) -> None:
        keyless.append(machine)

    monkeypatch.setattr(remote_vault, "forgotten", forgotten)
    spool = tmp_path / "spool"
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await append_all(await made.begun(), make_chain(3))
    old = await remove(machine_storage)
    await machine_storage.find_or_create(MACHINE)
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await made.log.look()
        await made.hears(old)
        assert (made.here(), keyless) == ([], [])


async def test_while_storage_does_not_answer_nothing_is_dropped(
    azurite: Azurite,
    blob_config: BlobConfig,
    machine_storage: MachineStorage,
    tmp_path: Path,
) -> None:
    with FaultProxy(azurite) as proxy:
        async with (
            MachineStorage.connect(proxy.config(blob_config.container)) as storage,
            parts(tmp_path / "spool", storage) as made,
        ):
            await append_all(await made.begun(), make_chain(3))
            container = await remove(machine_storage)
            before = made.here()
            for answer in (Answer(503, "ServerBusy"), Answer(403, "AuthorizationFailure")):
                proxy.add(answer, times=None)
                await made.hears(container)
                assert made.here() == before
                proxy.clear()
            await made.hears(container)
            assert made.here() == []


async def test_of_a_name_that_is_used_again_only_what_was_deleted_goes(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    """The new machine goes on meanwhile, and nothing of the old one is said of it afterwards."""
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        log = await made.begun()
        await append_all(log, make_chain(3))
        old = await remove(machine_storage)
        await log.begin(hello(0))
        new = await machine_storage.named(MACHINE)
        assert new not in (None, old)
        assert made.report().machines[MACHINE].containers == sorted({str(new), old})
        await append_all(log, (chain := make_chain(6, epoch=log.position.epoch))[:3])
        await made.hears(old)
        await append_all(log, chain[3:])
        await log.flush()
        assert codes(made) == []
        epoch = log.position.epoch
        assert made.report().machines[MACHINE].containers == [new]
        store = machine_storage.vault.in_container(str(new))
        assert same_batches(await read_log(store, tmp_path / "spool", epoch), chain)


async def test_a_name_that_was_used_again_before_a_server_came_back_keeps_the_new_machine(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        await append_all(await made.begun(), make_chain(3))
    old = await remove(machine_storage)
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        log = await made.begun()
        epoch = log.position.epoch
        await append_all(log, chain := make_chain(3, epoch=epoch))
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        async with asyncio.timeout(20):
            while old not in made.report().machines[MACHINE].containers:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.02)
        await made.hears(old)
        async with asyncio.timeout(20):
            while made.log.pending_b or codes(made):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.02)
        assert f"{MACHINE}/side.json" in made.here()
    store = await machine_storage.find(MACHINE)
    assert same_batches(await read_log(store, tmp_path / "spool", epoch), chain)


async def test_whoever_is_just_coming_with_the_name_is_not_disturbed(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    """Admission waits for the machine's log: what lies beside the spool may be of the one who comes."""
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        await append_all(await made.begun(), make_chain(3))
        old = await remove(machine_storage)
        is_coming(made)
        await made.hears(old)
        assert made.here() == [MACHINE, f"{MACHINE}/boot.json", f"{MACHINE}/side.json"]
        assert codes(made) == []
        log = await made.begun()
        await append_all(log, make_chain(3, epoch=log.position.epoch))
        await log.flush()
        assert made.report().machines[MACHINE].containers == [await machine_storage.named(MACHINE)]


async def test_what_was_set_aside_of_a_deleted_machine_goes_and_of_the_new_one_stays(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        log = await made.begun()
        old = await remove(machine_storage)
        aside = log._folder.aside
        for container in (old, "understudy-other", ""):
            path = tmp_path / f"{container or 'none'}.seg"
            path.write_bytes(b"batches")
            note = Note(epoch=1, first=1, last=2, cause="damaged", container=container)
            aside.put(Kind.DAMAGED, path, note)
        await made.hears(old)
        left = [name for name in made.here() if name.endswith(".seg")]
        assert left == [
            f"{MACHINE}/damaged/00000001-none.seg",
            f"{MACHINE}/damaged/00000001-understudy-other.seg",
        ]
        assert [error.code for error in aside.problems()] == ["US483"]


async def test_an_epoch_that_does_not_say_with_which_container_it_went_stays(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    """An earlier version wrote its state; or that could not be written since another epoch with its number went."""
    async with parts(tmp_path / "spool", own(machine_storage)) as made:
        await append_all(await made.begun(), make_chain(3))
    state = tmp_path / "spool" / MACHINE / "00000001" / "state.json"
    said = state.read_bytes()
    container = await remove(machine_storage)
    for left in ({"container": ""}, {"claim": "f" * 16}):
        mark = watermark.any_in(state.parent)
        assert mark is not None
        state.write_bytes(msgspec.json.encode(msgspec.structs.replace(mark, **left)))
        async with parts(tmp_path / "spool", own(machine_storage)) as made:
            await until_in_trouble(made)
            before = made.here()
            await made.hears(container)
            assert made.here() == before
        state.write_bytes(said)


async def test_a_name_that_is_used_again_at_the_moment_of_the_word_loses_nothing_of_the_new_machine(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    """Life after life: the next one begins and sends while the one before is dropped."""
    async with parts(tmp_path / "spool", own(machine_storage), check_seconds=0.02) as made:
        dice = random.Random(7)
        is_coming(made)

        async def live(batches: int) -> MachineLog:
            await asyncio.sleep(dice.uniform(0.0, 0.1))
            log = await made.begun()
            await append_all(log, make_chain(batches, epoch=log.position.epoch))
            return log

        async def word(deleted: str) -> None:
            await asyncio.sleep(dice.uniform(0.0, 0.1))
            await made.hears(deleted)

        await live(2)
        for _ in range(8):
            old = await remove(machine_storage)
            log, _ = await asyncio.gather(live(3), word(old))
            epoch = log.position.epoch
            await made.hears(old)  # it was not known yet that something of it is here
            await log.flush()
            container = await machine_storage.named(MACHINE)
            assert container not in (None, old)
            store = machine_storage.vault.in_container(str(container))
            assert same_batches(await read_log(store, tmp_path / "spool", epoch), make_chain(3, epoch=epoch))
            await made.log.look()
            assert made.log.containers == {container}
            assert made.log is log


async def test_the_folder_of_an_open_log_stays_whatever_its_state_still_says(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next machine of the name began its epoch 1 elsewhere, and comes to where epoch 1 of the deleted one lies; its state cannot be
    written at that moment."""
    spool = tmp_path / "spool"
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await append_all(await made.begun(), make_chain(3))
    old = await remove(machine_storage)
    with monkeypatch.context() as patch:
        patch.setattr(MachineLog, "resume", lambda _: None)  # the first look failed
        elsewhere = make_spool(tmp_path / "spool2", own(machine_storage), owner="ps2")
        await elsewhere.start()
        log = await elsewhere.open_machine(hello(0))
        await log.begin(hello(0))
        await append_all(log, (chain := make_chain(6))[:3])
        await log.flush()
        await elsewhere.close()
        new, store = await machine_storage.named(MACHINE), await machine_storage.find(MACHINE)
        async with parts(spool, own(machine_storage), 3600.0) as made:
            log = await made.spool.open_machine(again := await hello_again(store, 1))
            with monkeypatch.context() as full:
                replace = durable.replace_file

                def refuse(path: Path, data: bytes, **how: bool) -> None:
                    if path.name == "state.json":
                        raise OSError(errno.ENOSPC, "No space left on device")
                    replace(path, data, **how)

                full.setattr(durable, "replace_file", refuse)
                await log.begin(again)
            await log.look()
            await made.hears(old)
            await append_all(log, chain[3:])
            await made.hears(old)
            assert made.report().machines[MACHINE].containers == [new]
            await log.flush()
            assert same_batches(await read_log(store, spool), chain)


@pytest.mark.parametrize("left", [None, ".state.json.0123456789ab"])
@pytest.mark.parametrize("restarted", [False, True])
async def test_the_empty_folder_of_an_epoch_keeps_no_deleted_machine(
    machine_storage: MachineStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    restarted: bool,
    left: str | None,
) -> None:
    """The cache disk was full when it came, or a kill was faster than its state. No batch was here."""
    spool = tmp_path / "spool"
    replace = durable.replace_file

    def refuse(path: Path, data: bytes, **how: bool) -> None:
        if path.name == "state.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(path, data, **how)

    monkeypatch.setattr(durable, "replace_file", refuse)
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await made.begun()
        folder = spool / MACHINE / "00000001"
        assert list(folder.iterdir()) == []
        if left is not None:
            (folder / left).write_bytes(b"{")
        old = await remove(machine_storage)
        if not restarted:
            await made.hears(old)
            assert (made.report().machines, list(spool.iterdir())) == ({}, [spool / ".lock"])
    if restarted:
        async with parts(spool, own(machine_storage), 3600.0) as made:
            await made.log.look()
            await made.hears(old)
            assert (made.report().machines, list(spool.iterdir())) == ({}, [spool / ".lock"])


async def test_what_could_not_be_removed_is_told_and_tried_again_also_by_the_next_start(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder has got its other name by then, and its state may be gone already."""

    answers = False

    def rmtree(path: Path) -> None:
        (path / "state.json").unlink(missing_ok=True)
        if not answers:
            raise OSError(errno.EIO, "Input/output error", str(path))
        shutil.rmtree(path)

    monkeypatch.setattr(machine_folder, "shutil", SimpleNamespace(rmtree=rmtree))
    spool = tmp_path / "spool"
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await append_all(await made.begun(), make_chain(3))
        container = await remove(machine_storage)
        for _ in range(3):
            await made.hears(container)
            told = made.report().machines[MACHINE]
            assert (told.containers, [error.code for error in told.errors]) == ([container], ["US649"])
            assert "Input/output error" in told.errors[0].cause
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await made.log.look()
        await made.hears(container)
        assert codes(made) == ["US649"]
        answers = True
        await made.hears(container)
        assert (made.report().machines, list(spool.iterdir())) == ({}, [spool / ".lock"])


async def test_what_cannot_be_dropped_is_tried_again_after_ever_longer_pauses_and_not_with_each_word(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, now_s = 0, 0.0

    def rmtree(path: Path) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(machine_folder, "shutil", SimpleNamespace(rmtree=rmtree))
    async with parts(tmp_path / "spool", own(machine_storage), 3600.0) as made:
        made.deletions.clock = lambda: now_s
        await append_all(await made.begun(), make_chain(3))
        old = await remove(machine_storage)
        running = asyncio.create_task(made.deletions.run())

        async def hears(*deleted: str) -> None:
            made.deletions.tell(deleted)
            async with asyncio.timeout(20):
                while made.deletions._news.is_set() or made.deletions._trying:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.005)

        try:
            at_s: list[float] = []
            for second in range(0, 2000, 2):  # as answers come
                now_s, before = float(second), tries
                await hears(old)
                if tries > before:
                    at_s.append(now_s)
            assert at_s == [0, 2, 6, 14, 30, 62, 126, 254, 510, 1022, 1622]
            assert codes(made) == ["US649"]
            await hears()
            await hears(old)
            assert tries > before, "the word is another one"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("file", ["boot.json", "side.json"])
async def test_what_lies_beside_the_spool_and_cannot_be_removed_is_told_and_tried_again_also_by_the_next_start(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    spool, remove_file = tmp_path / "spool", durable.remove_file

    def refuse(path: Path) -> None:
        if path.name == file:
            raise OSError(errno.EIO, "Input/output error", str(path))
        remove_file(path)

    async with parts(spool, own(machine_storage), 3600.0) as made:
        await append_all(await made.begun(), make_chain(3))
        old = await remove(machine_storage)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "remove_file", refuse)
            await made.hears(old)
            await made.log.look()
            told = made.report().machines[MACHINE]
            assert (told.containers, [error.code for error in told.errors]) == ([old], ["US649"])
            assert "Input/output error" in told.errors[0].cause
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await made.log.look()
        await made.hears(old)
        assert (made.report().machines, list(spool.iterdir())) == ({}, [spool / ".lock"])


async def test_a_machine_whose_disk_hangs_keeps_no_other_from_being_dropped_and_is_told(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("process_server.deletions._SLOW_S", 0.1)
    answers = threading.Event()

    def rmtree(path: Path) -> None:
        if path.parent.name == MACHINE:
            answers.wait()
        shutil.rmtree(path)

    monkeypatch.setattr(machine_folder, "shutil", SimpleNamespace(rmtree=rmtree))
    async with parts(tmp_path / "spool", own(machine_storage), 3600.0) as made:
        await append_all(await made.begun(), make_chain(3))
        other = await made.spool.open_machine(wish := msgspec.structs.replace(hello(0), machine="m2"))
        await other.begin(wish)
        deleted = [await remove(machine_storage), await remove(machine_storage, "m2")]
        running = asyncio.create_task(made.deletions.run())
        try:
            async with asyncio.timeout(20):
                while set(made.report().machines) != {MACHINE} or codes(made) != ["US649"]:
                    made.deletions.tell(deleted)  # with each answer
                    await asyncio.sleep(0.02)
                answers.set()
                while made.report().machines:
                    made.deletions.tell(deleted)
                    await asyncio.sleep(0.02)
        finally:
            answers.set()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_who_comes_while_the_keys_of_a_deleted_machine_are_removed_keeps_what_lies_beside_the_spool(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where his session has ended again by then: after a restart his boot is known, so that no copy becomes him."""
    begun, back = asyncio.Event(), asyncio.Event()

    async def forgotten(_vault: Vault, _machine: str) -> None:
        begun.set()
        await back.wait()

    monkeypatch.setattr(remote_vault, "forgotten", forgotten)
    spool = tmp_path / "spool"
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await append_all(await made.begun(), make_chain(3))
        word = asyncio.create_task(made.hears(await remove(machine_storage)))
        await begun.wait()
        log = await made.begun()
        await append_all(log, make_chain(3, epoch=log.position.epoch))
        assert made.admission.is_free(MACHINE)
        back.set()
        await word
        assert {f"{MACHINE}/boot.json", f"{MACHINE}/side.json"} <= set(made.here())
        assert made.report().machines[MACHINE].containers == [await machine_storage.named(MACHINE)]
    async with parts(spool, own(machine_storage), 3600.0) as made:
        assert list(made.admission._boots) == [MACHINE]


async def test_who_comes_while_storage_is_asked_whose_the_keys_are_keeps_them(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He goes on with them while the config server is away."""
    dropped = []

    async def forgotten(_vault: Vault, machine: str) -> None:
        dropped.append(machine)

    monkeypatch.setattr(remote_vault, "forgotten", forgotten)
    async with parts(tmp_path / "spool", own(machine_storage), 3600.0) as made:
        await append_all(await made.begun(), make_chain(3))
        container = await remove(machine_storage)
        storage = made.deletions._storage
        ask = storage.named

        async def named(machine: str) -> str | None:
            found = await ask(machine)
            if not any(
                name.endswith(".seg") for name in made.here()
            ):  # the files have gone: it is for the keys
                is_coming(made)
            return found

        monkeypatch.setattr(storage, "named", named)
        await made.hears(container)
        assert not made.admission.is_free(MACHINE)
        assert dropped == []


async def test_who_comes_with_the_boot_that_is_known_while_its_file_goes_has_it_on_the_disk_again(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same host is enrolled again, without a reboot, while the side is being removed. In memory its boot is no news."""
    begun, back = threading.Event(), threading.Event()
    remove_file = durable.remove_file

    def slow(path: Path) -> None:
        if path.name == "side.json":
            begun.set()
            back.wait(20)
        remove_file(path)

    spool = tmp_path / "spool"
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await append_all(await made.begun(), make_chain(3))
    async with parts(spool, own(machine_storage), 3600.0) as made:
        assert list(made.admission._boots) == [MACHINE]
        old = await remove(machine_storage)
        await made.log.look()
        monkeypatch.setattr(durable, "remove_file", slow)
        word = asyncio.create_task(made.hears(old))
        await asyncio.to_thread(begun.wait, 20)
        assert f"{MACHINE}/boot.json" not in made.here()
        same = msgspec.structs.replace(hello(0), identity=HARDWARE, boot="k1/again")
        coming = asyncio.create_task(made.sides.check(MACHINE, HARDWARE, claim=True))
        log = await made.spool.open_machine(same)
        await log.begin(same)
        await append_all(log, make_chain(3, epoch=log.position.epoch))
        session = cast(Session, SimpleNamespace(machine=MACHINE, waiting=True))
        await made.admission.begun(session, same)
        back.set()
        await asyncio.gather(word, coming)
        assert {f"{MACHINE}/boot.json", f"{MACHINE}/side.json"} <= set(made.here())
    async with parts(spool, own(machine_storage), 3600.0) as made:
        assert list(made.admission._boots) == [MACHINE]


async def test_a_side_that_says_no_container_may_be_the_living_machines_which_is_at_another_server(
    machine_storage: MachineStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version wrote it. Something set aside is of the deleted machine; the living one's epochs here are done with."""
    keyless: list[str] = []

    async def forgotten(_vault: Vault, machine: str) -> None:
        keyless.append(machine)

    monkeypatch.setattr(remote_vault, "forgotten", forgotten)
    spool = tmp_path / "spool"
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await made.begun()
        old = await remove(machine_storage)
        (path := tmp_path / "x.seg").write_bytes(b"batches")
        note = Note(epoch=1, first=1, last=2, cause="damaged", container=old)
        made.log._folder.aside.put(Kind.DAMAGED, path, note)
        await machine_storage.find_or_create(MACHINE)
    shutil.rmtree(spool / MACHINE / "00000001")
    side = spool / MACHINE / "side.json"
    said = msgspec.json.decode(side.read_bytes())
    del said["container"]
    side.write_bytes(msgspec.json.encode(said))
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await made.log.look()
        await made.hears(old)
        assert (made.here(), keyless) == ([MACHINE, f"{MACHINE}/boot.json", f"{MACHINE}/side.json"], [])
        assert list(made.admission._boots) == [MACHINE]
        live = await machine_storage.named(MACHINE)
        assert made.report().machines[MACHINE].containers == [live], "it goes with that one"
    deleted = await remove(machine_storage)
    assert deleted == live
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await made.log.look()
        await made.hears(old, deleted)
        assert (made.here(), keyless, made.report().machines) == ([], [MACHINE], {})


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_lay_beside_the_spool_for_somebody_who_came_and_was_refused_goes_later(
    machine_storage: MachineStorage, tmp_path: Path, *, restarted: bool
) -> None:
    """So does what lies there of a machine that went on at another server, and was deleted behind that."""
    spool = tmp_path / "spool"
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await append_all(await made.begun(), make_chain(3))
        container = await remove(machine_storage)
        is_coming(made)
        await made.hears(container)
        assert made.here() == [MACHINE, f"{MACHINE}/boot.json", f"{MACHINE}/side.json"]
        if not restarted:
            made.admission.machines[MACHINE].holder = None
            await made.hears(container)
            assert (made.report().machines, list(spool.iterdir())) == ({}, [spool / ".lock"])
    if restarted:
        async with parts(spool, own(machine_storage), 3600.0) as made:
            await made.log.look()
            await made.hears(container)
            assert (made.report().machines, list(spool.iterdir())) == ({}, [spool / ".lock"])


async def test_what_a_kill_left_beside_the_spool_keeps_no_deleted_machine_in_the_report(
    machine_storage: MachineStorage, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    async with parts(spool, own(machine_storage), 3600.0) as made:
        await append_all(await made.begun(), make_chain(3))
    container = await remove(machine_storage)
    left = [
        spool / MACHINE / ".side.json.0123456789ab",
        spool / MACHINE / "damaged/.1-2.seg.note.0123456789ab",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{")
    async with parts(spool, own(machine_storage), 3600.0) as made:
        assert not any(path.exists() for path in left)
        await made.log.look()
        await made.hears(container)
        assert (made.report().machines, list(spool.iterdir())) == ({}, [spool / ".lock"])
