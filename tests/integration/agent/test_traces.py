"""The agent's own files on a disk that it captures, through a loop file on a file system."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from agent.capture.disks import find_disk
from agent.traces import on_captured
from tests.capture_parts import MIB, mounted, needs_capture, rig, run
from tests.loopdisk import loop_disk


@needs_capture
def test_own_files_on_a_captured_disk_are_named() -> None:
    with rig(64 * MIB, attached=False) as r:
        run("mkfs.ext4", "-q", r.device)
        disk = replace(r.disks[0], id="data")
        with mounted(r.device, r.folder / "lower") as lower, loop_disk(lower / "file", 32 * MIB) as upper:
            run("mkfs.ext4", "-q", upper)
            with mounted(upper, r.folder / "upper") as top:
                (top / "agent.log").touch()
                said = on_captured(top / "state", [disk], outputs=[top / "agent.log", Path("/dev/shm/log")])
                assert said == [
                    f"the state_dir {top / 'state'} lies on disk data",
                    f"the log {top / 'agent.log'} lies on disk data",
                ]
                assert on_captured(r.folder, [disk, find_disk(Path(upper))], outputs=[]) == []
