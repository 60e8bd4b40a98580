"""Folders of daemons whose file systems come and go. Real mounts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent import service as agent_service
from agent.config import AgentConfig
from master_target import service as master_target_service
from master_target.config import MasterTargetConfig
from process_server import service as process_server_service
from process_server.config import ProcessServerConfig
from shared.blob import BlobConfig
from shared.errors import NotMountedError
from shared.host import mounts
from shared.keys.vault import FileVault
from tests.pki import TestCa


class Mount:
    """A small file system that is mounted and unmounted."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()

    def on(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "understudy-test", self.place], check=True)

    def off(self) -> None:
        subprocess.run(["umount", self.place], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mount]:
    mount = Mount(tmp_path / "disk")
    mount.on()
    yield mount
    with contextlib.suppress(subprocess.CalledProcessError):
        mount.off()


def check(folder: Path, note: Path) -> None:
    mounts.check(folder, note, "It was not started")


@pytest.mark.parametrize("below", ["", "cache", "not/there/yet"])
def test_what_was_mounted_must_be_and_is_as_before_when_it_is_again(
    disk: Mount, tmp_path: Path, below: str
) -> None:
    folder, note = disk.place / below, tmp_path / "note"
    check(folder, note)
    check(folder, note)
    disk.off()
    with pytest.raises(NotMountedError) as refused:
        check(folder, note)
    assert f"mounted at {disk.place} " in refused.value.cause
    assert str(note) in refused.value.action
    assert list(disk.place.iterdir()) == [], "nothing was begun below"
    disk.on()
    check(folder, note)
    disk.off()
    note.unlink()
    check(folder, note)


def test_a_file_system_that_comes_later_is_noted_and_other_folders_stay_so(
    disk: Mount, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    check(disk.place, note)
    check(tmp_path / "plain", note)
    inner = Mount(disk.place / "inner")
    check(inner.place, note)
    inner.on()
    check(inner.place, note)
    inner.off()
    with pytest.raises(NotMountedError):
        check(inner.place, note)
    folders = json.loads(note.read_text())["folders"]
    assert [folders[str(place)][-1:] for place in (disk.place, inner.place)] == [
        [str(disk.place)],
        [str(inner.place)],
    ]


def test_a_folder_that_is_mounted_over_itself_as_units_do_is_no_other_file_system(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    before = mounts.file_systems(folder)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        assert mounts.file_systems(folder) == before
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("note", ["{", '{"v": 1}', None])
def test_a_note_that_says_nothing_is_a_line_in_the_log_and_written_anew(
    disk: Mount, tmp_path: Path, note: str | None
) -> None:
    file = tmp_path / "note"
    if note is None:
        file.mkdir()
    else:
        file.write_text(note)
    with capture_logs() as logs:
        check(disk.place, file)
    assert {log["log_level"] for log in logs} == {"warning"}
    assert file.is_dir() or json.loads(file.read_text())["folders"]


# ---- the daemons


async def begin(daemon: str, ca: TestCa, folder: Path, note_beside: Path, blob: BlobConfig) -> None:
    """Up to where its work begins, or to what it is refused for."""
    stop = asyncio.Event()
    stop.set()
    vault = folder.parent / "vault.json"
    if not vault.exists():
        FileVault.create(vault)
    if daemon == "process-server":
        files = ca.issue("process-server:ps1")
        await process_server_service.run(
            ProcessServerConfig(
                name="ps1",
                tls=files,
                spool_dir=folder,
                blob=blob,
                vault_file=vault,
                listen="127.0.0.1",
                port=0,
            ),
            stop,
        )
    elif daemon == "master-target":
        files = ca.issue("master-target:mt1")
        await master_target_service.run(
            MasterTargetConfig(
                name="mt1", tls=files, blob=blob, vault_file=vault, target="image", image_dir=folder,
                state_dir=note_beside,
            ),
            stop,
        )  # fmt: skip
    else:
        files = ca.issue("agent:m")
        config = AgentConfig(
            machine="m", process_server="127.0.0.1:1", control_url="https://127.0.0.1:1", tls=files,
            state_dir=folder, pin_dir=Path("/sys/fs/bpf/understudy-mounts"),
        )  # fmt: skip
        await agent_service.run(config, stop)


@pytest.mark.parametrize("daemon", ["process-server", "master-target", "agent"])
async def test_no_daemon_begins_anew_below_a_file_system_that_is_not_mounted(
    daemon: str, disk: Mount, tmp_path: Path, blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.telling._TELL_S", 0.1)
    ca, folder = TestCa(tmp_path), disk.place / "state"
    await begin(daemon, ca, folder, tmp_path, blob_config)
    disk.off()
    with pytest.raises(NotMountedError):
        await begin(daemon, ca, folder, tmp_path, blob_config)
    assert not any(folder.glob("*.json"))
    disk.on()
    await begin(daemon, ca, folder, tmp_path, blob_config)
