"""Two disks of a machine that protects them, for tests of which disk is which and of what is captured."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from agent.capture import answer, identify
from agent.capture.answer import Answer
from agent.capture.binding import Identity, Kind
from agent.capture.bindings import BindingsFile
from agent.capture.disks import Disk, find_disk
from agent.capture.fitting import Change
from agent.capture.look import LeftOut, standing_now
from agent.capture.maps import Capture, detach
from agent.capture.protection import protect
from agent.capture.watch import Watch
from agent.config import AgentConfig
from shared.desired import WantedDisk
from shared.errors import SharedIdentityError
from shared.trust.tls import TlsFiles
from tests.capture_parts import MIB, Rig, rig, run, until
from tests.loopdisk import own_device


class Machine:
    """Two files under two loop devices, protected by path alone."""

    def __init__(self, r: Rig, undo: ExitStack) -> None:
        self.rig = r
        self.undo = undo
        self.state_dir = r.folder / "state"
        self.state_dir.mkdir()
        self.wanted = [WantedDisk(str(disk.path)) for disk in r.disks]
        self.changes: list[Change] = []
        self.shared: dict[str, SharedIdentityError] = {}
        self._file: BindingsFile | None = None

    @property
    def file(self) -> BindingsFile:
        """As one process of the agent has it."""
        if self._file is None or self._file.path.parent != self.state_dir:
            self._file = BindingsFile(self.state_dir)
        return self._file

    def restart(self) -> None:
        """The next process knows what the file says."""
        self._file = None

    def protect(self) -> tuple[Capture, list[LeftOut]]:
        capture, left_out, self.shared = protect(
            self.wanted, self.file, self.rig.pin_dir, 1 << 22, self._changed
        )
        self.undo.callback(capture.close)
        return capture, left_out

    def _changed(self, words: npt.NDArray[np.uint64], change: Change) -> None:
        if change is Change.FRESH:
            return
        words[1] = 0  # the epoch
        self.changes.append(change)

    def ids(self, capture: Capture) -> dict[str, str]:
        return {disk.id: disk.name for disk in capture.disks}

    def watch(self, left_out: list[LeftOut], *, without_order: bool = False) -> Watch:
        made = Watch(
            self.wanted, self.file, self.rig.pin_dir, left_out, self.shared, without_order=without_order
        )
        made._next = made._next_shared = 0.0
        return made


@contextmanager
def machine_with_two_disks() -> Iterator[Machine]:
    with rig(4 * MIB, count=0, attached=False) as r, ExitStack() as undo:
        for number in range(2):
            file = r.folder / f"disk-{number}"
            file.write_bytes(bytes(4 * MIB))
            device = undo.enter_context(own_device())
            run("losetup", device, str(file))
            r.backing = [*r.backing, file]
            r.disks = [*r.disks, find_disk(Path(device))]
        undo.callback(lambda: detach(r.pin_dir))
        yield Machine(r, undo)


def agent_config(machine: Machine) -> AgentConfig:
    files = TlsFiles(cert=Path("c"), key=Path("k"), ca=Path("a"))
    return AgentConfig(
        machine="m", disks=[disk.device for disk in machine.wanted], process_server="ps:9443", control_url="https://cs",
        tls=files, state_dir=machine.state_dir, pin_dir=machine.rig.pin_dir, ring_mib=1,
    )  # fmt: skip


def reattach(device: str, file: Path, *options: str) -> None:
    """Another file, or the same one again, under this very device."""
    subprocess.run(["losetup", "--detach", device], check=False, stderr=subprocess.DEVNULL)
    until(lambda: not Path(f"/sys/block/{Path(device).name}/loop").exists(), f"{device} stays in use")
    run("losetup", *options, device, str(file))


def identified_by_its_table(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a disk that is no loop device, and has a partition table."""
    table = "label: gpt\n"
    subprocess.run(["sfdisk", "-q", device], input=table, text=True, check=True, stderr=subprocess.DEVNULL)
    bare = identify.identities

    def without_loop(disk: Disk, told: Answer = answer.NOTHING) -> tuple[Identity, ...]:
        return tuple(found for found in bare(disk, told) if found.kind is not Kind.LOOP)

    monkeypatch.setattr(identify, "identities", without_loop)


def table_of(device: str) -> str:
    return next(str(found) for found in standing_now(device).identities if found.kind is Kind.GPT)


@contextmanager
def silent(device: str) -> Iterator[None]:
    """It does not answer."""
    ask, sick = answer.ask, Answer(cause="it did not answer within 10 s", hangs=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            answer, "ask", lambda paths: ask(paths) | {path: sick for path in paths if path == device}
        )
        yield


def slots_with_pins(r: Rig) -> set[int]:
    return {int(path.name[-2:]) for path in r.pin_dir.iterdir() if path.name[-2:].isdigit()}


def finds(watch: Watch, *, trying: bool = False) -> bool:
    """Whether one look finds that capture can be fitted better."""
    watch._next, watch._next_try = 0.0, 0.0 if trying else float("inf")
    watch.is_one_back()
    assert watch._thread is not None
    watch._thread.join()
    return watch.is_one_back()
