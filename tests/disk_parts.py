"""Disks that exist only as files below a made-up sysfs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.capture.disks import Disk, describe


def make_disk(
    sysfs: Path, name: str, attributes: Mapping[str, str] | None = None, *, major: int = 8, mq: bool = True
) -> Disk:
    """The folder of a whole disk below `sysfs`, and what `agent.capture.disks` reads from it. `attributes` replace the
    defaults, by path."""
    folder = sysfs / "block" / name.replace("/", "!")
    folder.mkdir(parents=True)
    if mq:
        (folder / "mq").mkdir()
    files = {
        "size": "2048",
        "ro": "0",
        "diskseq": "7",
        "queue/iostats": "1",
        "queue/dax": "0",
        "queue/zoned": "none",
    }
    for attribute, value in (files | dict(attributes or {})).items():
        (folder / attribute).parent.mkdir(parents=True, exist_ok=True)
        (folder / attribute).write_text(value + "\n")
    return describe(Path("/dev") / name, folder, major, 0, sysfs=sysfs)
