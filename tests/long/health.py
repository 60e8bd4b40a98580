"""What stops is seen: each of fourteen breakages is named within 30 s in an event, in `machine list` and in a log, and nothing of it is
left 30 s after its end. One more, which no daemon says of itself, is named within minutes. Before that, an installation that is well
shows nothing in ten minutes of load."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from config_server.rules.conditions import MISSED_S
from deploy.lab.state import Lab as LabState
from deploy.lab.vocabulary import Daemon
from tests import prefix
from tests.environment_cases import expect, restart, restart_with_a_due_certificate
from tests.host_faults import Fail
from tests.hosted_lab import DAEMONS, HostedLab, hosted_lab
from tests.long.story import Result, Story, scratch, two_disks
from tests.loopdisk import loop_disk
from tests.small_fs import small_fs

WELL_S: Final = 600.0
SEEN_S: Final = 30.0
"""From the breakage to the words, and from its end to none."""
CACHE_B: Final = 512 << 20
PLACE_B: Final = 32 << 20


class Installation:
    """A lab on faulty hosts, whose third disk nobody writes to, and whose cache is a file system of its own."""

    def __init__(self, lab: HostedLab, cache: Path, place: str, file: Path) -> None:
        self.lab = lab
        self._cache = cache
        self._place, self._file = place, file

    # ---- breakages ----

    @contextlib.contextmanager
    def storage_away(self) -> Iterator[None]:
        self.lab.site.stop("azurite")
        try:
            yield
        finally:
            self.lab.site.start("azurite")

    def wrong_key(self, daemon: str) -> AbstractContextManager[None]:
        return self._wrong_key(daemon)

    @contextlib.contextmanager
    def _wrong_key(self, daemon: str) -> Iterator[None]:
        state = LabState.open(self.lab.site.folder)
        config, wrong = state.config_file(Daemon(daemon)), self.lab.site.folder / "wrong.key"
        wrong.write_text(base64.b64encode(bytes(64)).decode())
        right = config.read_text()
        expect(str(state.account_key_file) in right, f"{config} names no key of the account")
        config.write_text(right.replace(str(state.account_key_file), str(wrong)))
        try:
            restart(self.lab, daemon)
            yield
        finally:
            config.write_text(right)
            restart(self.lab, daemon)

    @contextlib.contextmanager
    def not_followed(self) -> Iterator[None]:
        config = LabState.open(self.lab.site.folder).config_file(Daemon.MASTER_TARGET)
        all_machines = config.read_text()
        expect("machines =" not in all_machines, f"{config} names machines")
        config.write_text('machines = ["another"]\n' + all_machines)
        try:
            restart(self.lab, "master-target")
            yield
        finally:
            config.write_text(all_machines)
            restart(self.lab, "master-target")

    def stopped(self, daemon: str) -> AbstractContextManager[None]:
        return self._stopped(daemon)

    @contextlib.contextmanager
    def _stopped(self, daemon: str) -> Iterator[None]:
        self.lab.stop(daemon)
        try:
            yield
        finally:
            self._started(daemon)

    def _started(self, daemon: str) -> None:
        if (code := self.lab.start(daemon)) is not None:
            raise AssertionError(f"{daemon} ended with {code}: {self.lab.said(daemon)[-2:]}")

    @contextlib.contextmanager
    def certificate_not_renewed(self) -> Iterator[None]:
        with self.lab.hosts["process-server"].failing("*/tls/process-server/*", Fail.FULL):
            restart_with_a_due_certificate(self.lab, "process-server")
            yield

    def clock_off(self, daemon: str, seconds: float) -> AbstractContextManager[None]:
        return self._clock_off(daemon, seconds)

    @contextlib.contextmanager
    def _clock_off(self, daemon: str, seconds: float) -> Iterator[None]:
        self.lab.hosts[daemon].shift_clock(seconds)
        try:
            yield
        finally:
            self.lab.hosts[daemon].mend_clock()

    @contextlib.contextmanager
    def disk_gone(self) -> Iterator[None]:
        subprocess.run(["losetup", "--detach", self._place], check=True)
        try:
            yield
        finally:
            subprocess.run(["losetup", self._place, str(self._file)], check=True)

    def cache_filled(self, free: float) -> AbstractContextManager[None]:
        return self._cache_filled(free)

    @contextlib.contextmanager
    def _cache_filled(self, free: float) -> Iterator[None]:
        """Somebody else's file."""
        ballast = self._cache / "ballast"
        room = os.statvfs(self._cache)
        size_b = room.f_bavail * room.f_frsize - int(room.f_blocks * room.f_frsize * free)
        expect(size_b > 0, f"the cache has only {room.f_bavail * room.f_frsize >> 20} MiB of room")
        subprocess.run(["fallocate", "-l", str(size_b), str(ballast)], check=True)
        try:
            yield
        finally:
            ballast.unlink()

    @contextlib.contextmanager
    def cache_disk_failing(self) -> Iterator[None]:
        with self.lab.hosts["process-server"].failing("*/cache/lab/0*/0*.seg", Fail.WRITES):
            yield

    @contextlib.contextmanager
    def database_full(self) -> Iterator[None]:
        with self.lab.hosts["config-server"].failing("*/config-server/state.db*", Fail.FULL):
            yield

    # ---- what is to be seen ----

    def shown(self) -> dict[str, str]:
        """Code → what, of `machine list`."""
        (machine,) = self.lab.site.ask("/v1/machines")["machines"]
        found = {error["code"]: error["what"] for error in machine["errors"]}
        expect(
            bool(found) == (machine["health"] != "normal"), f"health is {machine['health']}, shown is {found}"
        )
        return found

    def open_events(self) -> dict[str, str]:
        return {event["code"]: event["what"] for event in self.lab.site.read("event", "list", "--open")}

    def logged(self) -> set[str]:
        return {line["code"] for daemon in DAEMONS for line in self.lab.said(daemon) if line.get("code")}


@dataclass(frozen=True)
class Breakage:
    name: str
    codes: frozenset[str]
    """Of which one is named."""
    broken: Callable[[Installation], AbstractContextManager[None]]
    has_event: bool = True
    """Not where events themselves cannot be stored."""
    within_s: float = SEEN_S
    """What no daemon says of itself has to last (config_server/rules/conditions.py)."""


def _of(
    name: str, codes: str, broken: Callable[[Installation], AbstractContextManager[None]], **more: Any
) -> Breakage:
    return Breakage(name, frozenset(codes.split()), broken, **more)


BREAKAGES: Final = (
    _of("storage is away", "US431", Installation.storage_away),
    _of("process server: wrong storage key", "US495", lambda it: it.wrong_key("process-server")),
    _of("master target: wrong storage key", "US495", lambda it: it.wrong_key("master-target")),
    _of("config server: wrong storage key", "US495", lambda it: it.wrong_key("config-server")),
    _of("agent: silent", "US471", lambda it: it.stopped("agent")),
    _of("process server: silent", "US471", lambda it: it.stopped("process-server")),
    _of("master target: silent", "US471", lambda it: it.stopped("master-target")),
    _of(
        "master target: not for this machine", "US613", Installation.not_followed, within_s=MISSED_S + SEEN_S
    ),
    _of("certificate cannot be renewed, and ends soon", "US475", Installation.certificate_not_renewed),
    _of("agent: clock off by a minute", "US473", lambda it: it.clock_off("agent", 60)),
    _of("process server: clock off by a minute", "US473", lambda it: it.clock_off("process-server", -60)),
    _of("a disk is gone", "US220", Installation.disk_gone),
    _of("the cache fills", "US607", lambda it: it.cache_filled(0.28)),
    _of("the cache is full", "US486", lambda it: it.cache_filled(0.15)),
    _of("the cache's disk fails", "US439", Installation.cache_disk_failing),
    _of("config server: its disk is full", "US545", Installation.database_full, has_event=False),
)


def health() -> Result:
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        loop_disk(folder / "place", PLACE_B) as place,
        small_fs(folder / "cache", CACHE_B) as cache,
        hosted_lab([*devices, place], folder, point_interval=30, segment_seconds=2) as lab,
    ):
        for device in devices:
            _zero(device)
        it = Installation(lab, cache, place, folder / "place")
        _use_cache(lab, cache)
        lab.site.wait_ordered(120)
        _until(lambda: not it.shown() and not it.open_events(), "it is never well", it)
        with Story(folder, devices, 1):
            seen = _well(it)
            failed: list[str] = []
            times: dict[str, Any] = {}
            for breakage in BREAKAGES:
                try:
                    times[breakage.name] = _check(breakage, it)
                    print(f"  {breakage.name}: {times[breakage.name]}", flush=True)
                except AssertionError as exc:
                    failed.append(f"{breakage.name}: {exc}")
                    print(f"  FAILED {failed[-1]}", flush=True)
                lab.site.wait_ordered(300)
                _until(lambda: cache_used(cache) < CACHE_B // 50, "the cache is not emptied", it, 300)
        if failed:
            raise AssertionError("\n".join(failed))
        return {"well": seen, "breakages": times}


def _zero(device: str) -> None:
    """The first time that a loop device is asked to write zeroes over a file of a tmpfs, that write fails (the kernel asks for none behind
    it): which is told, as it should be, and is no part of what is broken here."""
    with Path(device).open("r+b") as opened:
        fcntl.ioctl(opened, prefix.BLKZEROOUT, struct.pack("<QQ", 0, 512))


def _use_cache(lab: HostedLab, cache: Path) -> None:
    config = lab.site.folder / "process-server.toml"
    text = config.read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("spool_dir", "cache_b"))]
    expect(len(lines) == len(text.splitlines()) - 2, f"{config} is not as expected")
    config.write_text(f'spool_dir = "{cache}"\n' + "\n".join(lines) + "\n")
    restart(lab, "process-server")


def _well(it: Installation) -> Result:
    """Nothing is said of it under load."""
    end = time.monotonic() + WELL_S
    looks = 0
    while time.monotonic() < end:
        expect(not it.shown(), f"it is well, and shows {it.shown()}")
        looks += 1
        time.sleep(5)
    expect(not it.open_events(), f"it is well, and has events {it.open_events()}")
    return {"looks": looks}


def _check(breakage: Breakage, it: Installation) -> dict[str, float]:
    before = it.logged()
    with breakage.broken(it):
        began = time.monotonic()

        def named() -> bool:
            hits = breakage.codes & it.shown().keys()
            logged = breakage.codes & it.logged()
            return bool(
                hits and logged and (not breakage.has_event or breakage.codes & it.open_events().keys())
            )

        _until(
            named,
            f"it is not named; in a log before: {sorted(before)}, now: {sorted(it.logged())}",
            it,
            breakage.within_s,
        )
        named_s = time.monotonic() - began
    began = time.monotonic()
    _until(lambda: not it.shown() and not it.open_events(), "it is not over", it)
    return {"named_s": round(named_s, 1), "over_s": round(time.monotonic() - began, 1)}


def cache_used(cache: Path) -> int:
    room = os.statvfs(cache)
    return (room.f_blocks - room.f_bfree) * room.f_frsize


def _until(holds: Callable[[], bool], what: str, it: Installation, within_s: float = SEEN_S) -> None:
    deadline = time.monotonic() + within_s
    last: object = None
    while True:
        try:
            if holds():
                return
            last = it.shown()
        except OSError as exc:  # the config server is being restarted
            last = exc
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}; shown is {last}")
        time.sleep(0.5)
