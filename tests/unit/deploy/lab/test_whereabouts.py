"""A lab that is named by another path, copied, or moved: nothing of another folder's is touched, and nothing runs on without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab import azurite, daemons, processes, registry, whereabouts, wipe
from deploy.lab.state import Lab, Settings
from deploy.lab.vocabulary import Daemon
from shared.errors import LabError


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """In the folder `real`, of which `link` is another name."""
    monkeypatch.setattr(registry, "_FOLDER", tmp_path / "run")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    made = Lab(tmp_path / "link", Settings(id=os.urandom(4).hex(), disks=("/dev/loop77",)))
    made.save()
    registry.register(made)
    return made


@pytest.fixture
def daemon(lab: Lab, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Has the command line of the lab's process server."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "process_server.py").write_text("print('up', flush=True); import time; time.sleep(60)")
    arguments = ["-m", "process_server", "--config", str(lab.config_file(Daemon.PROCESS_SERVER))]
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=modules, stdout=subprocess.PIPE, env={}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


def test_a_lab_is_the_same_by_whatever_link_it_is_named(
    lab: Lab, daemon: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("real", "link"):
        assert daemons.pid_of(Lab.open(tmp_path / name), Daemon.PROCESS_SERVER) == daemon.pid
    arguments = ["-m", "process_server", "--config", str(lab.config_file(Daemon.PROCESS_SERVER))]
    assert processes.find(arguments) == daemon.pid
    monkeypatch.setattr(azurite, "restore_port", lambda _lab: None)
    wipe.wipe(Lab.open_to_wipe(tmp_path / "link"), print)
    assert processes.find(arguments) is None
    assert list((tmp_path / "real").iterdir()) == []


def test_a_copy_of_a_lab_is_told_and_costs_the_lab_nothing(lab: Lab, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "real", tmp_path / "copy")
    copy = Lab.open_to_wipe(tmp_path / "copy")
    for act in (wipe.wipe, wipe.down):
        with pytest.raises(LabError, match="it is a copy of the one in") as told:
            act(copy, print)
        assert f"rm -r {tmp_path / 'copy'}" in told.value.action
    assert registry.folder_of(lab) == lab.folder
    whereabouts.check(lab)


def test_a_lab_that_was_moved_is_touched_when_nothing_of_it_runs_at_the_old_place(
    lab: Lab, daemon: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (tmp_path / "real").rename(tmp_path / "moved")
    moved = Lab.open(tmp_path / "moved")
    with pytest.raises(LabError, match="while daemons ran, and they run there still: process-server"):
        whereabouts.check(moved)
    daemon.kill()
    daemon.wait()
    whereabouts.check(moved)
