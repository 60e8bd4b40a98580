"""Whole disks of this host, protected or not: what each is known by, and why it cannot be protected. For people who choose.

Looked at now and then in a thread, by what may hang with a disk and be left behind (`answer`); nobody waits for it. Nothing is written. A
disk is asked once who it is, and again only while it does not answer: one that sleeps is not woken every minute. (Whether its writes can
be seen is found when it is to be protected: that takes programs in the kernel, `preflight`.)

Each is told with its stable id, if it ever was a protected one: whoever names it by the path where it stands today means that disk.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agent.capture import answer, bindings, identify, suitable
from agent.capture.answer import NOTHING, Answer
from agent.capture.bindings import Bound, Which
from agent.capture.disks import SYSFS, UNKNOWN, Attributes, Disk
from agent.capture.layout import kernel_dev
from shared.daemon import logging
from shared.daemon.threads import start
from shared.errors import BindingDamagedError, DeviceError, NoThreadError, StateFileError, UnderstudyError
from shared.status import MAX_TEXT, MAX_WORD, AvailableDisk

_log = logging.get()

LOOK_S: Final = 60.0
_MOST_LINKS: Final = 32
"""So many are told of a disk."""
_SILENT: Final = Answer(cause="what sysfs says of it did not come: that waits for the disk")


class Available:
    def __init__(self, state_dir: Path) -> None:
        self.captured: dict[Which, str] = {}
        """The ids of those that are captured now: less is asked of them (`suitable.check`)."""
        self.found: list[AvailableDisk] = []
        """As of the last look that came to its end."""
        self.trouble: UnderstudyError | None = None
        """Why that was not the last one."""
        self._told: dict[Which, Answer] = {}
        self._next = 0.0
        self._thread: threading.Thread | None = None
        self._state_dir = state_dir
        self._noted: list[Bound] = []

    def are_captured(self, disks: Iterable[Disk]) -> None:
        """These, and no others."""
        self.captured = {_which(disk): disk.id for disk in disks}

    def look_soon(self) -> None:
        """Somebody asks for other disks."""
        self._next = 0.0

    def look_if_due(self) -> None:
        """Begins a look, unless one is under way. Never blocks."""
        now = time.monotonic()
        if now < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = now + LOOK_S
        self._thread = threading.Thread(target=self._try_to_look, name="available-disks", daemon=True)
        try:
            start(self._thread)
        except NoThreadError as exc:
            self._thread = None
            self._fail(exc)

    def _try_to_look(self) -> None:
        try:
            self.found = self.look()
        except Exception as exc:  # noqa: BLE001 - nobody waits for this thread: said here, or never
            self._fail(exc)
        else:
            self.trouble = None

    def _fail(self, exc: Exception) -> None:
        cause = (exc.cause or exc.what) if isinstance(exc, UnderstudyError) else repr(exc)
        if self.trouble is None or self.trouble.cause != cause:
            _log.warning("the disks of this host could not be looked at", cause=cause)
        self.trouble = DeviceError(
            "The disks of this host could not be looked at",
            cause=cause,
            action="Those that are protected are not concerned. It is tried again by itself.",
        )

    def look(self, *, sysfs: Path = SYSFS) -> list[AvailableDisk]:
        """Blocks for seconds: a disk that does not answer is given up after a deadline. Raises UnderstudyError."""
        said = answer.attributes(sorted(folder.name for folder in (sysfs / "block").iterdir()))

        def attributes_of(folder: Path) -> Attributes:
            return said.get(folder.name, UNKNOWN)

        disks = identify.all_disks(sysfs=sysfs, attributes_of=attributes_of)
        silent = {disk.name for disk in disks if attributes_of(Path(disk.name.replace("/", "!"))) is UNKNOWN}
        self._ask([disk for disk in disks if disk.name not in silent])
        told = {_which(disk): self._told.get(_which(disk), NOTHING) for disk in disks}
        told |= {_which(disk): _SILENT for disk in disks if disk.name in silent}
        borne = {_which(disk): identify.identities(disk, told[_which(disk)]) for disk in disks}
        captured = self.captured
        found = bindings.ids([line for line in self._lines() if line.id not in captured.values()], borne)
        ids = found | captured
        links = identify.links()
        return [
            _judged(
                disk,
                told[_which(disk)],
                str(borne[_which(disk)][0]),
                ids.get(_which(disk), ""),
                links.get(disk.device, []),
                is_captured=_which(disk) in captured,
            )
            for disk in disks
        ]

    def _lines(self) -> list[Bound]:
        """What is noted of protected disks; as it was read last where it cannot be read."""
        with contextlib.suppress(BindingDamagedError, StateFileError):  # whoever needs it says so
            self._noted = bindings.read(self._state_dir) or []
        return self._noted

    def _ask(self, disks: list[Disk]) -> None:
        """Those of which it is not known."""
        known = {_which(disk): told for disk in disks if (told := self._told.get(_which(disk)))}
        self._told = {which: told for which, told in known.items() if not told.cause}
        asked = {disk.device: disk for disk in disks if _which(disk) not in self._told}
        for device, told in answer.ask(asked).items():
            self._told[_which(asked[device])] = told


def _which(disk: Disk) -> Which:
    return kernel_dev(disk.major, disk.minor), disk.diskseq


def _judged(
    disk: Disk, told: Answer, identity: str, id_: str, links: list[str], *, is_captured: bool
) -> AvailableDisk:
    why_not = told.cause
    try:
        suitable.check(disk, is_captured=is_captured)
    except UnderstudyError as exc:
        why_not = exc.cause
    return AvailableDisk(
        device=disk.device,
        sectors=disk.sectors,
        # A loop device's holds a path: half of it would be another's.
        identity=identity if len(identity) <= MAX_WORD else "",
        why_not=why_not[:MAX_TEXT],
        id=id_,
        links=[link for link in links if len(link) <= MAX_WORD][:_MOST_LINKS],
    )
