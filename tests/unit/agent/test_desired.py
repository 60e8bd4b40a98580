"""The wish that an agent goes by: what its file says, what it takes, and what follows."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent import desired
from agent.capture.bindings import NotedDisk
from agent.config import AgentConfig, ProtectedDisk
from agent.desired import Goal, WishFile, applied
from shared.daemon.threads import Threads
from shared.desired import Desired, Mark, Settings, Verb, WantedDisk, Wish
from shared.host import durable
from shared.trust.tls import TlsFiles
from tests.no_threads import no_room
from tests.setups import tree

HARDWARE = "smbios:4c4c4544/1"
SDB, SDC = WantedDisk("/dev/sdb"), WantedDisk("/dev/sdc", "data", "wwid:naa.1")


def wish(
    number: int = 1, verb: Verb = Verb.PROTECT, *disks: WantedDisk, servers: tuple[str, ...] = ()
) -> Wish:
    mark = Mark(incarnation="i", number=number, act=f"a{number}")
    return Wish(mark=mark, verb=verb, disks=disks, process_servers=servers)


STOP = wish(2, Verb.STOP)


def config(*disks: str) -> AgentConfig:
    nowhere = Path("/nowhere")
    return AgentConfig(
        machine="m", disks=[*disks], process_server="ps:9443", control_url="https://cs",
        tls=TlsFiles(cert=nowhere, key=nowhere, ca=nowhere), state_dir=nowhere, pin_dir=nowhere,
    )  # fmt: skip


def loaded(folder: Path) -> WishFile:
    """As the next start has it."""
    made = WishFile(folder, "web1", HARDWARE)
    made.load()
    return made


async def told(wishes: WishFile, what: Wish | None = None, settings: Settings | None = None) -> bool:
    """Takes it; whether it is on the disk."""
    await wishes.take(Desired(wish=what, settings=settings))
    return await wishes.written()


def codes(wishes: WishFile) -> list[str]:
    return [problem.code for problem in wishes.problems]


def test_without_a_file_the_configuration_alone_counts(tmp_path: Path) -> None:
    wishes = loaded(tmp_path)
    assert (wishes.wish, wishes.damage, wishes.problems) == (None, None, [])
    assert wishes.goal(config("/dev/sda")) == Goal(disks=(WantedDisk("/dev/sda"),), servers=("ps:9443",))
    assert not (tmp_path / desired.NAME).exists()


async def test_what_a_wish_leaves_open_is_the_configurations(tmp_path: Path) -> None:
    wishes = loaded(tmp_path)
    await told(wishes, wish(1))
    assert wishes.goal(config("/dev/sda")) == Goal(disks=(WantedDisk("/dev/sda"),), servers=("ps:9443",))
    await told(wishes, wish(2, Verb.PROTECT, SDB, SDC, servers=("ps2:9443",)))
    assert wishes.goal(config("/dev/sda")) == Goal(disks=(SDB, SDC), servers=("ps2:9443",))
    await told(wishes, wish(3, Verb.STOP, SDB))
    assert wishes.goal(config("/dev/sda")) == Goal(is_stopped=True)


async def test_a_wish_holds_over_a_restart(tmp_path: Path) -> None:
    said = wish(7, Verb.PROTECT, SDB, SDC, servers=("ps2:9443",))
    assert await told(loaded(tmp_path), said, Settings(point_interval_s=60))
    wishes = loaded(tmp_path)
    assert (wishes.wish, wishes.point_interval_s(config())) == (said, 60.0)


async def test_no_opinion_changes_nothing(tmp_path: Path) -> None:
    wishes = loaded(tmp_path)
    await told(wishes, STOP, Settings(point_interval_s=60))
    before = (tmp_path / desired.NAME).stat()
    await told(wishes)
    assert (wishes.wish, wishes.point_interval_s(config())) == (STOP, 60.0)
    assert (tmp_path / desired.NAME).stat() == before, "it was written again for nothing"
    assert await told(loaded(tmp_path / "other")) is True
    assert not (tmp_path / "other").exists()


async def test_it_is_in_the_file_before_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wishes = loaded(tmp_path)
    held: list[Wish | None] = []
    real = durable.replace_file

    def watched(path: Path, data: bytes) -> None:
        held.append(wishes.wish)
        real(path, data)
        held.append(wishes.wish)

    monkeypatch.setattr(durable, "replace_file", watched)
    await told(wishes, STOP)
    assert (held, wishes.wish) == ([None, None], STOP)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"v": 2, "wish": null}',
        b'{"v": 1}',
        b'{"v": 1, "machine": "web1", "identity": "smbios:4c4c4544/1", "wish": {"mark": {"incarnation": "i", "number": 1, '
        b'"act": "a"}, "verb": "pause"}}',
        b'{"v": 1, "machine": "web1", "identity": "smbios:4c4c4544/1", "wish": {"mark": {"incarnation": "i", "number": 1, '
        b'"act": "a"}, "verb": "protect", "disks": [{"device": "/dev/sdb", "identity": "none"}]}}',
        b"[" * 100_000,
    ],
)
async def test_a_damaged_file_is_neither_nothing_nor_stop_until_a_wish_is_told(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / desired.NAME).write_bytes(content)
    wishes = loaded(tmp_path)
    assert wishes.goal(config("/dev/sda")) == Goal(servers=("ps:9443",)), (
        "the disks are those that are captured"
    )
    assert codes(wishes) == ["US620"]
    await told(wishes, None, Settings(point_interval_s=60))
    assert (tmp_path / desired.NAME).read_bytes() == content, "no opinion was taken for one"
    assert wishes.point_interval_s(config()) == 60.0
    await told(wishes, wish(1))
    assert (wishes.wish, wishes.problems) == (wish(1), [])
    assert loaded(tmp_path).wish == wish(1)


def test_a_file_that_cannot_be_read_is_as_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / desired.NAME).mkdir()
    wishes = loaded(tmp_path)
    assert codes(wishes) == ["US620"]
    assert wishes.goal(config("/dev/sda")).disks == ()


async def test_a_wish_that_cannot_be_written_is_not_taken_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = loaded(tmp_path)
    await told(wishes, wish(1))

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "replace_file", full)
        for _ in range(2):
            assert not await told(wishes, STOP)
        assert (wishes.wish, codes(wishes)) == (wish(1), ["US621"])
    assert await told(wishes, STOP)
    assert (wishes.wish, codes(wishes)) == (STOP, [])


async def test_where_there_is_no_room_for_a_thread_a_wish_is_not_taken_and_is_tried_again(
    tmp_path: Path,
) -> None:
    wishes = loaded(tmp_path)
    asyncio.get_running_loop().set_default_executor(Threads())  # without any that is idle
    with no_room():
        assert not await told(wishes, STOP)
        assert (wishes.wish, codes(wishes)) == (None, ["US621"])
    assert await told(wishes, STOP)
    assert (wishes.wish, codes(wishes)) == (STOP, [])


async def test_what_half_a_write_may_have_left_is_written_over_when_the_wish_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes = loaded(tmp_path)
    await told(wishes, wish(1))

    def half(path: Path, data: bytes) -> None:
        path.write_bytes(data)
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "replace_file", half)
        await told(wishes, STOP)
    assert (wishes.wish, loaded(tmp_path).wish) == (wish(1), STOP)
    await wishes.take(Desired())  # whoever told it has no opinion any more
    await wishes.close()
    assert (wishes.wish, loaded(tmp_path).wish, codes(wishes)) == (wish(1), wish(1), [])


@pytest.mark.parametrize(
    "impossible",
    [
        wish(5, Verb.OTHER, SDB),
        wish(5, Verb.PROTECT, SDB, SDB),
        wish(5, Verb.PROTECT, WantedDisk("/dev/sdb", identity="none")),
        wish(5, Verb.PROTECT, SDB, servers=("ps2",)),
        wish(5, Verb.PROTECT, SDB, servers=("ps2:1", "ps2:1")),
    ],
)
async def test_a_wish_that_no_agent_can_do_is_refused_and_named_until_another_is_told(
    tmp_path: Path, impossible: Wish
) -> None:
    wishes = loaded(tmp_path)
    await told(wishes, wish(1))
    await told(wishes, impossible, Settings(point_interval_s=60))
    assert (wishes.wish, codes(wishes)) == (wish(1), ["US622"])
    assert wishes.point_interval_s(config()) == 60.0
    await told(wishes, replace(impossible, verb=Verb.PROTECT, disks=(SDC,), process_servers=()))
    assert (wishes.wish and wishes.wish.disks, codes(wishes)) == ((SDC,), [])


async def test_a_wish_from_before_the_one_that_holds_is_no_act(tmp_path: Path) -> None:
    wishes = loaded(tmp_path)
    await told(wishes, wish(7, Verb.PROTECT, SDB))
    await told(wishes, wish(6, Verb.STOP))
    assert wishes.wish == wish(7, Verb.PROTECT, SDB)
    of_another = replace(wish(7, Verb.STOP), mark=Mark(incarnation="j", number=7, act="b"))
    await told(wishes, of_another)
    assert wishes.wish == of_another, "of two with one number, the config server knows which came last"


async def test_a_disk_that_hangs_under_the_file_holds_up_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes, goes_on = loaded(tmp_path), asyncio.Event()
    loop, real = asyncio.get_running_loop(), durable.replace_file

    def hang(path: Path, data: bytes) -> None:
        asyncio.run_coroutine_threadsafe(goes_on.wait(), loop).result(20)
        real(path, data)

    monkeypatch.setattr(durable, "replace_file", hang)
    for _ in range(3):
        await wishes.take(Desired(wish=STOP))
        await asyncio.sleep(0)
    assert wishes.wish is None
    waiting = [task for task in asyncio.all_tasks() if task.get_name() == "wish"]
    assert len(waiting) == 2, "the write, and one that waits for it"
    goes_on.set()
    assert await wishes.written()
    assert wishes.wish == STOP
    await wishes.close()


async def test_settings_that_are_taken_back_are_the_configurations_and_none_told_changes_nothing(
    tmp_path: Path,
) -> None:
    wishes = loaded(tmp_path)
    await told(wishes, None, Settings())
    assert not (tmp_path / desired.NAME).exists(), "there is nothing to keep"
    await told(wishes, None, Settings(point_interval_s=60))
    await told(wishes)
    assert wishes.point_interval_s(config()) == 60.0
    await told(wishes, None, Settings())
    assert wishes.point_interval_s(config()) == config().point_interval_s
    again = loaded(tmp_path)
    assert again.point_interval_s(config()) == config().point_interval_s


async def test_whoever_waits_hears_of_another_wish_and_of_settings(tmp_path: Path) -> None:
    wishes = loaded(tmp_path)
    seen: list[tuple[Wish | None, float]] = []

    def look() -> bool:
        seen.append((wishes.wish, wishes.point_interval_s(config())))
        return wishes.wish is not None

    waiting = asyncio.create_task(wishes.until(look))
    await asyncio.sleep(0)
    await told(wishes, None, Settings(point_interval_s=60))
    await told(wishes, STOP)
    async with asyncio.timeout(10):
        await waiting
    assert seen == [(None, 300.0), (None, 60.0), (STOP, 60.0)]


async def test_marks_alone_are_noted_and_change_no_goal(tmp_path: Path) -> None:
    wishes, ours = loaded(tmp_path), config("/dev/sda")
    await told(wishes, wish(1, Verb.PROTECT, WantedDisk("/dev/sda")))
    before = wishes.goal(ours)
    await told(wishes, wish(2))
    assert wishes.goal(ours) == before
    assert loaded(tmp_path).wish == wish(2)


def test_the_configuration_as_a_goal_makes_it() -> None:
    goal = Goal(disks=(SDC,), servers=("ps2:9443", "ps3:9443"))
    made = applied(config("/dev/sda"), goal, goal.disks, 60.0)
    assert made.protected == (SDC,)
    assert made.addresses == (("ps2", 9443), ("ps3", 9443))
    assert made.point_interval_s == 60.0


@pytest.mark.parametrize("other", [("web2", HARDWARE), ("web1", "smbios:4c4c4544/2"), ("web1", "")])
async def test_the_wish_of_another_machine_or_of_other_hardware_is_set_aside_and_never_gone_by(
    tmp_path: Path, other: tuple[str, str]
) -> None:
    """A host that was cloned: enrolled under a name of its own, or not."""
    await told(loaded(tmp_path), STOP, Settings(point_interval_s=60))
    content = (tmp_path / desired.NAME).read_bytes()
    clone = WishFile(tmp_path, *other)
    clone.load()
    assert (clone.wish, clone.settings, clone.damage) == (None, None, None)
    assert clone.goal(config("/dev/sda")).disks == (WantedDisk("/dev/sda"),)
    [problem] = clone.problems
    assert (problem.code, problem.severity) == ("US585", "warning")
    assert f"web1 on {HARDWARE}" in problem.cause
    assert not (tmp_path / desired.NAME).exists()
    assert (tmp_path / "desired.json.foreign").read_bytes() == content
    await told(clone, wish(3, Verb.PROTECT, SDB))
    assert (clone.problems, clone.wish) == ([], wish(3, Verb.PROTECT, SDB))
    again = WishFile(tmp_path, *other)
    again.load()
    assert again.wish == wish(3, Verb.PROTECT, SDB)


async def test_an_identity_that_was_set_since_makes_no_file_another_machines_while_capture_goes_on(
    tmp_path: Path,
) -> None:
    await told(loaded(tmp_path), wish(3, Verb.PROTECT, SDB))
    other = WishFile(tmp_path, "web2", HARDWARE)
    other.load(goes_on=True)
    assert (other.wish, [problem.code for problem in other.problems]) == (None, ["US585"])
    (tmp_path / "desired.json.foreign").rename(tmp_path / desired.NAME)
    named = WishFile(tmp_path, "web1", "ct1")
    named.load(goes_on=True)
    assert (named.wish, named.problems) == (wish(3, Verb.PROTECT, SDB), [])
    behind_a_reboot = WishFile(tmp_path, "web1", "ct1")
    behind_a_reboot.load()
    assert behind_a_reboot.wish == named.wish


async def test_a_file_of_another_that_cannot_be_set_aside_is_not_gone_by_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await told(loaded(tmp_path), STOP)

    def read_only(*_: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(durable, "move_file", read_only)
    clone = WishFile(tmp_path, "web1", "clone")
    clone.load()
    assert clone.goal(config("/dev/sda")) == Goal(disks=(WantedDisk("/dev/sda"),), servers=("ps:9443",))
    assert "Read-only file system" in clone.problems[0].cause


@pytest.mark.parametrize("path", ["/dev/s\0db", "/dev/sdb\n", "/dev/\x1b[2J"])
async def test_a_path_that_no_disk_has_is_refused_and_the_next_wish_is_heard(
    tmp_path: Path, path: str
) -> None:
    wishes = loaded(tmp_path)
    await told(wishes, wish(1, Verb.PROTECT, WantedDisk(path)))
    assert (wishes.wish, codes(wishes)) == (None, ["US622"])
    await told(wishes, wish(2, Verb.PROTECT, SDB))
    assert (wishes.goal(config()).disks, codes(wishes)) == ((SDB,), [])


def test_an_id_that_the_configuration_does_not_say_is_one_that_an_agent_gave() -> None:
    own = replace(config(), disk=[ProtectedDisk("/dev/sda", "root")])
    disks = (WantedDisk("/dev/sda", "root"), WantedDisk("/dev/sdb", "sdb"), WantedDisk("/dev/sdc"))
    made = applied(own, Goal(disks=disks), disks, 60.0)
    assert [isinstance(disk, NotedDisk) for disk in made.protected] == [False, True, False]
    assert [(disk.device, disk.id) for disk in made.protected] == [(d.device, d.id) for d in disks]


@pytest.mark.parametrize("verb", [None, Verb.PROTECT, Verb.STOP])
async def test_others_hear_what_is_wanted_and_change_nothing(tmp_path: Path, verb: Verb | None) -> None:
    assert desired.told(tmp_path, "web1", HARDWARE) is None
    await told(loaded(tmp_path), None if verb is None else wish(1, verb, SDB), Settings(point_interval_s=60))
    before = tree(tmp_path)
    assert desired.told(tmp_path, "web1", HARDWARE) is verb
    assert desired.told(tmp_path, "web2", HARDWARE) is None
    assert desired.told(tmp_path, "web1", "smbios:other") is None
    assert tree(tmp_path) == before
    file = tmp_path / desired.NAME
    file.write_bytes(file.read_bytes()[:-9])
    assert desired.told(tmp_path, "web1", HARDWARE) is None
