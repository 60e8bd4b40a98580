"""Every file of every daemon fails, one after the other, under load: each failure is named, each daemon recovers, and no acknowledged
write is lost. The table is tests/environment_cases.py."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Final

from tests.environment_cases import CASES, Case, check
from tests.host_faults import Fail, Host
from tests.hosted_lab import HostedLab, hosted_lab
from tests.lab import UNDERSTUDY
from tests.long.story import Result, Story, scratch, two_disks

_RESTORES: Final = (Fail.FULL, Fail.READ_ONLY, Fail.WRITES, Fail.SYNCS)
_FILES_OF_A_RESTORE: Final = ("*.raw", "*.understudy-restore.json*", "*manifest.json*")


def environment() -> Result:
    return run(CASES)


def run(cases: tuple[Case, ...]) -> Result:
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        hosted_lab(devices, folder, point_interval=5, segment_seconds=2) as lab,
        Story(folder, devices, 1) as story,
    ):
        site = lab.site
        use_images(lab)
        site.wait_ordered(120)
        before = site.machine()
        seen: dict[str, Any] = {}
        failed: list[str] = []
        for case in cases:
            try:
                seen[case.name] = check(case, lab)
                print(f"  {case.name}: {seen[case.name]}", flush=True)
            except AssertionError as exc:
                failed.append(str(exc))
                print(f"  FAILED {exc}", flush=True)
        site.wait_ordered(120)
        story.stop()
        if (after := site.machine())["epoch"] != before["epoch"]:
            failed.append(f"a new epoch began: {before['epoch']} → {after['epoch']}: {after['errors']}")
        restores = failing_restores(lab, story, folder, failed)
        result = story.check_every_point(site, 10, newest=6)
        story.check_latest(site)
        if failed:
            raise AssertionError("\n".join(failed))
        return {"cases": seen, "restores": restores, **result}


def use_images(lab: HostedLab) -> None:
    """The master target keeps its disks in files, which can fail."""
    config = lab.site.folder / "master-target.toml"
    images = lab.site.folder / "images"
    images.mkdir()
    config.write_text(f'target = "image"\nimage_dir = "{images}"\n{config.read_text()}')
    if (code := lab.restart("master-target")) is not None:
        raise AssertionError(f"the master target ended with {code}")


def failing_restores(lab: HostedLab, story: Story, folder: Path, failed: list[str]) -> dict[str, str]:
    """Each file of a restore fails: the command says what, and the same command goes on to a right image."""
    said: dict[str, str] = {}
    host = Host(folder)
    point = lab.site.create_point()["id"]
    for file in _FILES_OF_A_RESTORE:
        for how in _RESTORES:
            target = folder / "restore"
            name = f"restore: {file}: {how.name}"
            with host.failing(f"{target}/{file}", how) as struck:
                done = subprocess.run(
                    [
                        UNDERSTUDY,
                        "--lab",
                        lab.site.folder,
                        "restore",
                        "lab",
                        "--point",
                        point,
                        "--to",
                        target,
                    ],
                    env=lab.environment(host),
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=300,
                )
            said[name] = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
            if done.returncode not in (2, 5) or how.words not in done.stderr or "Traceback" in done.stderr:
                failed.append(
                    f"{name}: exit code {done.returncode}, {struck.count} struck: {done.stderr[-300:]}"
                )
            try:
                story.check_restored(lab.site, point, target)
            except AssertionError as exc:
                failed.append(f"{name}: {exc}")
    return said
