"""A whole lab over storage that fails in every way at every operation: nothing is lost, what only an operator can mend is
shown by name, and all goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from tests.azurite import Azurite
from tests.lab import Lab, lab
from tests.long.story import Result, Story, scratch, two_disks
from tests.storage_faults import Answer, Cut, Fault, FaultProxy, Short, Stall, throttled

PORTAL: Final = Answer(404, body=b"no such page", foreign=True)
ONCE_EACH: Final[tuple[Fault, ...]] = (
    throttled("1"),
    throttled("", status=429),
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
"""What may happen to any request. (A condition that fails though nobody changed anything is no fault that storage has.)"""


def storage_faults() -> Result:
    """Under load: every fault once at every kind of operation, then outages by busy storage, refusals and portals."""
    with (
        scratch() as folder,
        Azurite(folder / "azurite", persistent=True) as server,
        FaultProxy(server, seed=1) as storage,
        two_disks(folder) as devices,
        lab(
            devices,
            point_interval=5,
            segment_seconds=2,
            blob_url=storage.url,
            blob_key_file=storage.key_file,
            blob_ca_file=storage.ca_file,
        ) as site,
        Story(folder, devices, 1) as story,
    ):
        site.wait_ordered(120)
        time.sleep(20)  # so that each daemon has done each of its operations
        before = site.machine()
        kinds = sorted(storage.seen)
        for kind in kinds:
            method, _, comp = kind.partition(" ")
            for fault in ONCE_EACH:
                storage.add(fault, method=method, comp=comp)
        _until("every fault has struck what comes by", lambda: sum(storage.struck.values()) > 80, 240)
        storage.clear()
        site.wait_ordered(120)
        shown = {
            "US494": _outage(site, storage, throttled("2")),
            "US495": _outage(site, storage, Answer(403, "AuthenticationFailed")),
            "US447": _outage(site, storage, PORTAL),
        }
        missing = [code for code, seen in shown.items() if code not in seen]
        if missing:
            raise AssertionError(f"an outage was not shown by its name: {shown}")
        ordered_s = site.wait_ordered(120)
        story.stop()
        after = site.machine()
        if after["epoch"] != before["epoch"]:
            raise AssertionError(
                f"a new epoch began: {before['epoch']} → {after['epoch']}: {after['errors']}"
            )
        # A restore meets them, too, one at a time; but what only an operator can mend ends a command.
        for i, fault in enumerate(fault for fault in ONCE_EACH if fault is not PORTAL):
            for blob in ("*.seg", "disks/*"):
                storage.add(fault, method="GET", blob=blob, nth=1 + 4 * i)
        result = story.check_every_point(site, 5, newest=3)
        story.check_latest(site)
        return {
            "operations": kinds,
            "struck": {" ".join(key): count for key, count in sorted(storage.struck.items())},
            "shown": {code: sorted(seen) for code, seen in shown.items()},
            "ordered_after_s": round(ordered_s, 1),
            **result,
        }


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


def _until(what: str, holds: Callable[[], Any], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.5)
