"""The long parts. Each takes nothing, returns what it measured, and raises when something did not hold."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from typing import Any, Final

from deploy.lab.vocabulary import Daemon
from tests.lab import lab
from tests.long.ailing import ailing, out_of_room
from tests.long.audit import failed_writes_leave_no_difference, missed_writes_are_found
from tests.long.clocks import clocks
from tests.long.containers import containers
from tests.long.copies import copies
from tests.long.environment import environment
from tests.long.health import health
from tests.long.identity import identity_of, identity_over_md
from tests.long.install import install
from tests.long.jobs import jobs
from tests.long.moved import moved
from tests.long.outage import outage
from tests.long.reboot import reboot
from tests.long.replicas import replicas
from tests.long.site_lost import site_lost
from tests.long.storage_faults import storage_faults
from tests.long.story import Result, Story, scratch, two_disks


def prefix_paced() -> Result:
    """10 MB/s for 60 s from before `lab up` until after; points every 5 s and some on request; every one is a prefix."""
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        Story(folder, devices, 10) as story,
        lab(devices, point_interval=5, segment_seconds=2) as site,
    ):
        ordered_s = site.wait_ordered(120)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            complete = story.writer.completed
            story.expect(site.create_point()["id"], complete)
            time.sleep(10)
        story.stop()
        result = story.check_every_point(site, 8)
        result |= story.check_random_times(site, 20)
        story.check_latest(site)
        return {"ordered_after_s": round(ordered_s, 1), **result}


def prefix_full_speed() -> Result:
    """Full speed for 30 s, which must overflow; ordered within 120 s after the load ends."""
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        Story(folder, devices, 0) as story,
        lab(devices, point_interval=5, segment_seconds=2) as site,
    ):
        states = set()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            states.add(site.machine()["state"])
            time.sleep(1)
        story.stop()
        again_s = site.wait_ordered(120)
        incidents = site.machine()["audit"]["incidents"]
        if not incidents["ring_full"]:
            raise AssertionError(f"the load did not overflow the ring: {states} {incidents}")
        time.sleep(11)
        result = story.check_every_point(site, 2)
        result |= story.check_random_times(site, 20)
        story.check_latest(site)
        return {
            "ordered_again_after_s": round(again_s, 1),
            "states": sorted(states),
            "writes_not_in_the_ring": incidents["ring_full"],
            **result,
        }


def overflow() -> Result:
    """A small ring and a process server that is away for 20 s: bitmap mode with its cause, no point meanwhile, then ordered by itself."""
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        lab(devices, point_interval=5, segment_seconds=2, ring_mib=4) as site,
        ExitStack() as stack,
    ):
        site.wait_ordered(120)
        story = stack.enter_context(Story(folder, devices, 10))
        time.sleep(12)
        site.stop("process-server")
        stopped = time.time()
        machine = site.wait_state({"bitmap", "disconnected"}, 15)
        time.sleep(20 - (time.time() - stopped))
        machine = site.machine()
        causes = " ".join(e["cause"] for e in machine["errors"])
        if "ring was full" not in causes:
            raise AssertionError(f"the cause of bitmap mode is not shown: {machine['errors']}")
        site.start("process-server")
        started = time.time()
        again_s = site.wait_ordered(120)
        story_points = [p for p in site.points() if stopped + 5 < _time(p) < started]
        if story_points:
            raise AssertionError(f"points were made while order was lost: {story_points}")
        time.sleep(11)
        story.stop()
        result = story.check_every_point(site, 3)
        story.check_latest(site)
        return {
            "ordered_again_after_s": round(again_s, 1),
            "state_while_away": machine["state"],
            **result,
        }


def kill() -> Result:
    """30 times a random daemon is killed during load and started again: every point is a prefix, no new epoch begins by agent kills."""
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        lab(devices, point_interval=20, segment_seconds=2) as site,
        ExitStack() as stack,
    ):
        site.wait_ordered(120)
        story = stack.enter_context(Story(folder, devices, 5))
        before = site.machine()
        killed: dict[str, int] = {}
        for _ in range(30):
            daemon = random.choice([*Daemon])
            killed[daemon] = killed.get(daemon, 0) + 1
            time.sleep(random.uniform(0.5, 4))
            site.kill(daemon)
            time.sleep(random.uniform(0, 2))
            site.start(daemon)
        ordered_s = site.wait_ordered(120)
        time.sleep(21)
        story.stop()
        after = site.machine()
        if after["epoch"] != before["epoch"]:
            raise AssertionError(
                f"a new epoch began: {before['epoch']} → {after['epoch']}: {after['errors']}"
            )
        result = story.check_every_point(site, 5)
        story.check_latest(site)
        return {
            "killed": killed,
            "ordered_after_s": round(ordered_s, 1),
            "rounds": after.get("rounds"),
            **result,
        }


def _time(point: Any) -> float:
    return datetime.fromisoformat(point["time"]).timestamp()


def every_case() -> Result:
    """The cases that `make test` leaves out (tests/marks.py)."""
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "long"], check=True)
    return {}


def properties() -> Result:
    """Ten minutes of examples that no run had before, of every property test."""
    seeds = list[int]()
    end = time.monotonic() + 600
    while time.monotonic() < end:
        seeds.append(random.randrange(1 << 32))
        command = "-q -n 2 --dist loadfile -m hypothesis --hypothesis-profile search --hypothesis-seed"
        subprocess.run([sys.executable, "-m", "pytest", *command.split(), str(seeds[-1])], check=True)
    return {"seeds": seeds}


def stream_model() -> Result:
    """Ten minutes of lives of the stream with bad sectors, killed at any line (tests/stream_model): each image lacks what is named."""
    first = random.randrange(1 << 32)
    command = [sys.executable, "-m", "tests.stream_model", "--minutes", "10", "--first", str(first)]
    run = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise AssertionError(f"a seed shows it again (--first SEED --minutes 0): {run.stdout}")
    return {"first": first, "met": run.stdout.splitlines()[-1]}


PARTS: Final[dict[str, Callable[[], Result]]] = {
    "prefix-paced": prefix_paced,
    "prefix-full-speed": prefix_full_speed,
    "overflow": overflow,
    "kill": kill,
    "ailing-disks": ailing,
    "clocks": clocks,
    "containers": containers,
    "install": install,
    "jobs": jobs,
    "copy": copies,
    "environment": environment,
    "every-case": every_case,
    "health": health,
    "replicas": replicas,
    "moved": moved,
    "out-of-room": out_of_room,
    "outage": outage,
    "properties": properties,
    "reboot": reboot,
    "identity-ext4": lambda: identity_of("ext4"),
    "identity-xfs": lambda: identity_of("xfs"),
    "identity-btrfs": lambda: identity_of("btrfs"),
    "identity-md": identity_over_md,
    "site-lost": site_lost,
    "storage-faults": storage_faults,
    "stream-model": stream_model,
    "audit-missed": missed_writes_are_found,
    "audit-errors": failed_writes_leave_no_difference,
}
