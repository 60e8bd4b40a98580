"""A whole lab over storage that fails in every way at every call of every daemon: nothing is lost, what only an operator can mend is
shown by name, and all goes on by itself."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.azurite import Azurite
from tests.lab import Lab, lab
from tests.long.story import Result, Story, scratch, two_disks
from tests.storage_faults import Answer, Cut, Fault, FaultProxy, Place, Rule, Short, Stall, throttled

PORTAL: Final = Answer(404, body=b"no such page", foreign=True)
ONCE_EACH: Final[tuple[Fault, ...]] = (
    throttled("1"),
    throttled("", status=429),
    Answer(409, "SnapshotOperationRateExceeded"),
    Answer(409, "ContainerBeingDeleted"),
    Answer(500, "InternalError", applied=True),
    Answer(502, foreign=True),
    PORTAL,
    Cut(),
    Cut(applied=True),
    Cut(after_b=40),
    Short(1),
    Stall(),
    Stall(applied=True),
)
"""What may happen to any request, in the same epoch."""
CONTRADICTIONS: Final[tuple[Fault, ...]] = (
    Answer(412, "ConditionNotMet", applied=True),
    Answer(412, "AppendPositionConditionNotMet", applied=True),
    Answer(409, "BlobAlreadyExists", applied=True),
    Answer(412, "ConditionNotMet"),
    Answer(412, "LeaseLost"),
    Answer(409, "LeaseIdMismatchWithBlobOperation"),
    Answer(409, "LeaseAlreadyPresent"),
)
"""What a write meets when it, or its condition, came to storage twice, or somebody else was there and is gone again. An epoch may end
by it; nothing may be lost."""
RESTARTED: Final = ("process-server", "master-target", "config-server", "agent")
STRIKING_S: Final = 300.0
STEP_S: Final = 10.0


def storage_faults() -> Result:
    """Under load: every fault once at every kind of call, then outages by busy storage, refusals and portals, then contradictions."""
    with (
        scratch() as folder,
        Azurite(folder / "azurite", persistent=True) as server,
        FaultProxy(server, seed=1) as storage,
        two_disks(folder) as devices,
        lab(
            devices,
            point_interval=30,
            segment_seconds=2,
            blob_url=storage.url,
            blob_key_file=storage.key_file,
            blob_ca_file=storage.ca_file,
        ) as site,
        Story(folder, devices, 1) as story,
    ):
        site.wait_ordered(120)
        for daemon in RESTARTED:  # so that each has done each of its operations
            restart(site, daemon)
        site.wait_ordered(120)
        site.create_point()
        before = site.machine()
        places = sorted(storage.places)
        struck = strike(site, storage, places, ONCE_EACH)
        ordered_s = site.wait_ordered(180)
        shown = {
            "US494": _outage(site, storage, throttled("2")),
            "US495": _outage(site, storage, Answer(403, "AuthenticationFailed")),
            "US447": _outage(site, storage, PORTAL),
        }
        missing = [code for code, seen in shown.items() if code not in seen]
        if missing:
            raise AssertionError(f"an outage was not shown by its name: {shown}")
        ordered_s = max(ordered_s, site.wait_ordered(120))
        after = site.machine()
        if after["epoch"] != before["epoch"]:
            raise AssertionError(
                f"a new epoch began: {before['epoch']} → {after['epoch']}: {after['errors']}"
            )
        writes = [place for place in places if place.method in ("PUT", "DELETE")]
        contradicted = strike(site, storage, writes, CONTRADICTIONS)
        ordered_s = max(ordered_s, site.wait_ordered(180))
        site.create_point()
        _until(
            "the machine is well again",
            lambda: not site.machine()["errors"],
            400,
            lambda: site.machine()["errors"],
        )
        story.stop()
        # A restore meets them, too, one at a time; but what only an operator can mend ends a command.
        for i, fault in enumerate(fault for fault in ONCE_EACH if fault is not PORTAL):
            for blob in ("*.seg", "disks/*"):
                storage.add(fault, method="GET", blob=blob, nth=1 + 4 * i)
        result = story.check_every_point(site, 5)
        story.check_latest(site)
        return {
            "places": [" ".join(place) for place in places],
            "struck": struck,
            "contradicted": contradicted,
            "epochs_ended_by_contradictions": site.machine()["epoch"] - before["epoch"],
            "shown": {code: sorted(seen) for code, seen in shown.items()},
            "ordered_after_s": round(ordered_s, 1),
            **result,
        }


def restart(site: Lab, daemon: str) -> None:
    site.stop(daemon)
    site.start(daemon)


def strike(site: Lab, storage: FaultProxy, places: Sequence[Place], faults: Sequence[Fault]) -> str:
    """Each fault once at each place, while daemons are restarted and points made, so that rare calls come, too; how much has struck.
    Each fault must have struck somewhere, and each place must have been struck: calls that are made once in a machine's life cannot be
    struck by each."""
    rules: dict[Place, list[Rule]] = {}
    for place in places:
        rules[place] = [storage.add(fault, **place._asdict()) for fault in faults]
    end = time.monotonic() + STRIKING_S
    turns = itertools.cycle(RESTARTED)
    while time.monotonic() < end and not all(rule.struck for those in rules.values() for rule in those):
        time.sleep(STEP_S)
        restart(site, next(turns))
    storage.clear()
    counts = [[rule.struck for rule in rules[place]] for place in places]
    for fault, column in zip(faults, zip(*counts, strict=True), strict=True):
        if not any(column):
            raise AssertionError(f"{fault} never struck")
    spared = [" ".join(place) for place, row in zip(places, counts, strict=True) if not any(row)]
    done = sum(sum(row) for row in counts)
    result = f"{done} of {len(places) * len(faults)}; not at {spared}"
    print(f"  struck: {result}", flush=True)
    return result


def _outage(site: Lab, storage: FaultProxy, fault: Fault) -> set[str]:
    """All requests meet `fault` for a while; the codes of the errors that the machine showed meanwhile."""
    storage.add(fault, times=None)
    codes: set[str] = set()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        codes |= {error["code"] for error in site.machine()["errors"]}
        time.sleep(1)
    storage.clear()
    site.wait_ordered(120)
    return codes


def _until(
    what: str, holds: Callable[[], Any], timeout_s: float, shown: Callable[[], Any] = lambda: ""
) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what} {shown()}")
        time.sleep(0.5)
