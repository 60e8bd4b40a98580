"""Somebody is away for long: blob storage for ten minutes, or the config server while every daemon is restarted."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Final

from tests.lab import Lab, lab
from tests.long.story import Result, Story, scratch, two_disks

AWAY_S: Final = 600
RATE_MB: Final = 5
GROWTH_MIB: Final = 32
"""What a daemon may need more than before while storage is away: the most of that time over the most of the minute before it."""
CACHE_MIB: Final = 16384
"""The process server's quota for two disks: it must hold what is written meanwhile, twice."""
LISTED_S: Final = 900
"""How long what waited may take to be listed, on a host that does other things, too."""
MARKED: Final = 20
"""Points that were marked meanwhile, one in 30 s."""
SAMPLE_S: Final = 5
USUAL_S: Final = 60
WARM_UP_S: Final = 30
RESTARTED: Final = ("agent", "process-server", "master-target")


def outage() -> Result:
    return {"storage": storage_away(), "config_server": config_server_away()}


def storage_away() -> Result:
    """Ten minutes without blob storage at 5 MB/s: memory stays, nothing is resynchronised, and afterwards every point is a prefix."""
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        lab(devices, point_interval=30, segment_seconds=2, ring_mib=64, cache_mib=CACHE_MIB) as site,
        ExitStack() as stack,
    ):
        site.wait_ordered(120)
        story = stack.enter_context(Story(folder, devices, RATE_MB))
        time.sleep(WARM_UP_S)
        before = site.machine()
        daemons = ("agent", "process-server")
        usual = {daemon: max(seen) for daemon, seen in resident(site, daemons, USUAL_S).items()}
        site.stop("azurite")
        seen = resident(site, daemons, AWAY_S)
        waiting_mib = spooled_mib(site)
        site.start("azurite")
        began = time.monotonic()
        story.stop()
        point = ("point", "create", "lab", "--wait", "--timeout", str(LISTED_S), "--output", "json")
        story.expect(json.loads(site.run(*point, timeout_s=LISTED_S + 60))["id"], story.total)
        site.wait_ordered(60)
        again_s = time.monotonic() - began
        after = site.machine()
        if after["epoch"] != before["epoch"]:
            raise AssertionError(f"a new epoch began: {after['errors']}")
        grown = {daemon: round(max(seen[daemon]) - usual[daemon], 1) for daemon in daemons}
        if any(mib >= GROWTH_MIB for mib in grown.values()):
            raise AssertionError(f"memory grew by {grown} MiB; before, it was {usual}: {seen}")
        result = story.check_every_point(site, MARKED, newest=6)
        if result["newest_prefix"] != story.total:
            raise AssertionError(f"what is restored is not identical: {result}")
        return {
            "away_s": AWAY_S,
            "usual_mib": {daemon: round(mib, 1) for daemon, mib in usual.items()},
            "grown_mib": grown,
            "waiting_mib": round(waiting_mib),
            "rounds": after["rounds"] - before["rounds"],
            "ordered_again_after_s": round(again_s, 1),
            **result,
        }


def config_server_away() -> Result:
    """Every other daemon is restarted while the config server is away: points go on, and it knows of them when it is back."""
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        lab(devices, point_interval=5, segment_seconds=2) as site,
        ExitStack() as stack,
    ):
        site.wait_ordered(120)
        story = stack.enter_context(Story(folder, devices, RATE_MB))
        before = site.machine()
        site.stop("config-server")
        for daemon in RESTARTED:
            site.stop(daemon)
            site.start(daemon)
        restarted = time.time()
        time.sleep(60)
        back = time.time()
        site.start("config-server")
        site.wait_ordered(120)
        story.stop()
        after = site.machine()
        if after["epoch"] != before["epoch"]:
            raise AssertionError(f"a new epoch began: {after['errors']}")
        made = [p for p in site.points() if restarted < datetime.fromisoformat(p["time"]).timestamp() < back]
        if len(made) < 6:
            raise AssertionError(f"only {len(made)} points were made while the config server was away")
        result = story.check_every_point(site, 8, newest=12)
        story.check_latest(site)
        return {"points_meanwhile": len(made), **result}


def resident(site: Lab, daemons: Sequence[str], for_s: float) -> dict[str, list[float]]:
    """Of each daemon, `resident_mib` every few seconds for so long."""
    pids = site.status()["daemons"]
    seen: dict[str, list[float]] = {daemon: [] for daemon in daemons}
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        time.sleep(SAMPLE_S)
        for daemon in daemons:
            seen[daemon].append(resident_mib(pids[daemon]["pid"]))
    return seen


def resident_mib(pid: int) -> float:
    """What a process has in memory that cannot be dropped: private and shared anonymous pages, without the mapped kernel ring."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} does not run")


def spooled_mib(site: Lab) -> float:
    """What waits in the process server's cache."""
    return sum(path.stat().st_size for path in (site.folder / "spool").rglob("*.seg")) / (1 << 20)
