"""The wall clock of each daemon, alone, jumps weeks and years ahead and years back, stands, and goes back in steps, under load: every
answer is right or refused, what is wrong is said to be the clock, and when it is right again all goes on by itself, in the same epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tests.environment_cases import expect, restart, shown, until
from tests.host_faults import Host
from tests.hosted_lab import DAEMONS, HostedLab, hosted_lab
from tests.lab import CommandFailedError
from tests.long.story import Result, Story, scratch, two_disks

YEARS_S: Final = 3 * 365 * 86400.0
WEEKS_S: Final = 25 * 86400.0
"""Certificates of 30 days are still valid then, and due."""
WRONG_S: Final = 15.0
"""How long each clock is wrong: several points, and reports, and looks."""
RECOVERED_S: Final = 600.0
"""An RPO is known again when what was captured since then is in storage, which on a busy host is minutes behind."""
_LATE_S: Final = 60.0
"""No RPO of a machine that replicates well is so far above what it was before: on a busy host that may be minutes."""
CLOCK_CODES: Final = {"US473", "US548", "US547", "US463", "US487"}
"""What may say that a clock is wrong."""


def _steps_back(host: Host) -> None:
    for step in range(1, 5):
        host.shift_clock(-600.0 * step)
        time.sleep(WRONG_S / 5)


WAYS: Final[dict[str, Callable[[Host], None]]] = {
    "weeks ahead": lambda host: host.shift_clock(WEEKS_S),
    "years ahead": lambda host: host.shift_clock(YEARS_S),
    "years back": lambda host: host.shift_clock(-YEARS_S),
    "stands": lambda host: host.stop_clock(),
    "back in steps": _steps_back,
}


def clocks() -> Result:
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        hosted_lab(devices, folder, point_interval=5, segment_seconds=2) as lab,
        Story(folder, devices, 1) as story,
    ):
        site = lab.site
        site.wait_ordered(120)
        time.sleep(15)  # so that points from before exist
        before, first_points = site.machine(), {point["id"] for point in site.points()}
        seen: dict[str, Any] = {}
        failed: list[str] = []
        for daemon in DAEMONS:
            for way, spoil in WAYS.items():
                name = f"{daemon}: {way}"
                try:
                    seen[name] = _wrong(lab, daemon, name, spoil)
                    print(f"  {name}: {seen[name]}", flush=True)
                except AssertionError as exc:
                    failed.append(str(exc))
                    print(f"  FAILED {exc}", flush=True)
        site.wait_ordered(120)
        story.stop()
        after = site.machine()
        if after["epoch"] != before["epoch"]:
            failed.append(f"a new epoch began: {before['epoch']} → {after['epoch']}: {after['errors']}")
        if gone := first_points - {point["id"] for point in site.points()}:
            failed.append(f"points expired by a wrong clock: {sorted(gone)}")
        result = story.check_every_point(site, 20, newest=4)
        result |= _check_times(site, story, failed)
        story.check_latest(site)
        if failed:
            raise AssertionError("\n".join(failed))
        return {"cases": seen, **result}


def _wrong(lab: HostedLab, daemon: str, name: str, spoil: Callable[[Host], None]) -> dict[str, Any]:
    codes: set[str] = set()
    rpos: list[float | None] = []
    host = lab.hosts[daemon]
    machine = lab.machine()
    applied, usual_s = machine["last_point"], machine["rpo_s"] or 0.0
    try:
        spoil(host)
        end = time.monotonic() + WRONG_S
        while time.monotonic() < end:
            try:
                machine = lab.machine()
                codes |= shown(lab).keys()
            except OSError as exc:
                # Slow on a busy host; but its certificate, seen by a clock that is right, must not become a wrong one.
                expect("certificate" not in str(exc), f"{name}: the config server is not trusted: {exc}")
                continue
            rpos.append(machine["rpo_s"])
            time.sleep(0.5)
        expect(lab.runs(daemon), f"{name}: the daemon ended: {lab.said(daemon)[-3:]}")
        expect(bool(rpos), f"{name}: the config server never answered")
        known = [rpo for rpo in rpos if rpo is not None]
        expect(
            all(0 <= rpo < usual_s + _LATE_S for rpo in known),
            f"{name}: a wrong RPO was shown: {rpos}, before {usual_s}",
        )
        expect(bool(codes & CLOCK_CODES), f"{name}: nobody said that a clock is wrong, only {codes}")
        # And across a restart, where everything is looked at with the wrong clock for the first time.
        code = lab.restart(daemon)
        said = [line for line in lab.said(daemon) if line.get("level") in ("warning", "error")]
    finally:
        host.mend_clock()
    if code is not None:
        expect(code == 5, f"{name}: it ended with {code}: {said[-1:]}")
        expect("clock" in str(said[-1]), f"{name}: it did not say that it is the clock: {said[-1:]}")
        restart(lab, daemon)
    began = time.monotonic()
    until(
        lambda: not shown(lab).keys() & CLOCK_CODES and lab.machine()["state"] == "ordered",
        f"{name}: it does not recover",
        lab,
        RECOVERED_S,
    )
    point = lab.site.create_point()
    expect(point != applied, f"{name}: no point is made")
    return {"codes": sorted(codes), "recovered_s": round(time.monotonic() - began, 1), "restart": code}


def _check_times(site: Any, story: Story, failed: list[str]) -> Result:
    """Points by time: each is a state of that time, or refused with its neighbours. (A wrong one would be no prefix of what was there,
    which cannot be seen from outside; so what is answered must lie between the points around it.)"""
    points = site.points()
    answered = refused = 0
    for moment in (
        datetime.now(UTC) + timedelta(seconds=YEARS_S),
        datetime.now(UTC) - timedelta(seconds=YEARS_S),
        datetime.now(UTC) - timedelta(seconds=1200),
        *(datetime.fromisoformat(point["time"]) for point in points[:: max(1, len(points) // 8)]),
    ):
        try:
            story.check_restored(site, moment.isoformat(timespec="milliseconds"), story.folder / "at-time")
            answered += 1
        except CommandFailedError as exc:
            refused += 1
            if exc.exit_code != 3 or "nearest earlier point" not in exc.stderr:
                failed.append(f"the time {moment} was refused without its neighbours: {exc.stderr[-300:]}")
    return {"times_answered": answered, "times_refused": refused}
