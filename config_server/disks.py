"""Which disks of a machine are protected, and which could be, as its agent says. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from config_server.inventory import Machine
from shared.batch import SECTOR
from shared.desired import WantedDisk, Wish
from shared.errors import RequestError
from shared.limits import check_page_blob_target
from shared.messages import DiskCandidate
from shared.status import AgentDisk, AgentReport, AvailableDisk

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._!-]{0,127}\Z")
"""As shared/log/names.py has it: what an agent reports is any word."""
_NAMED: Final = 20


class Offer(NamedTuple):
    """By path, in the order in which its agent names them."""

    captured: dict[str, AgentDisk]
    available: dict[str, AvailableDisk]
    is_known: bool
    """Whether it ever said anything."""

    @classmethod
    def of(cls, report: AgentReport | None) -> Self:
        if report is None:
            return cls({}, {}, is_known=False)
        captured = {disk.device or f"/dev/{disk.name}": disk for disk in report.disks}
        return cls(captured, {disk.device: disk for disk in report.available}, is_known=True)

    def check(self, what: str, disks: Sequence[str]) -> None:
        """Raises RequestError for disks that the agent neither captures nor offers. One that has never reported names none."""
        if not self.is_known:
            return
        for device in disks:
            if device in self.captured:
                continue
            found = self.available.get(device)
            if found is not None and not found.why_not:
                continue
            if found is not None:
                raise RequestError(
                    what,
                    cause=f"{device} cannot be protected: {found.why_not}",
                    action="Mend that, or leave it out. To say it all the same: --force (`force` in the API).",
                )
            raise RequestError(what, cause=f"{device} is none of its disks, {self._there()}", action=_LOOK)

    def _there(self) -> str:
        names = [*self.captured, *(name for name in self.available if name not in self.captured)]
        if not names:
            return "of which its agent names none"
        shown = ", ".join(names[:_NAMED])
        return f"as its agent names them: {shown}" + (" and others" if len(names) > _NAMED else "")

    def check_sizes(self, disks: Sequence[str]) -> None:
        """Raises DiskTooLargeError for a disk that no page blob can hold."""
        for device in disks:
            found = self.captured.get(device) or self.available.get(device)
            if found is not None:
                check_page_blob_target(device.removeprefix("/dev/"), found.sectors * SECTOR)

    def wanted(self, disks: Sequence[str], before: Wish | None = None) -> tuple[WantedDisk, ...]:
        """As a wish names them. One that is captured keeps its stable id, whatever its path is called elsewhere; another is what the wish
        before meant by its path, unless that is captured elsewhere now."""
        captured = {self._id(device) for device in self.captured}
        kept = {
            disk.device: disk
            for disk in (before.disks if before is not None else ())
            if disk.id is None or disk.id not in captured
        }
        return tuple(
            WantedDisk(device, id_) if (id_ := self._id(device)) else kept.get(device, WantedDisk(device))
            for device in disks
        )

    def _id(self, device: str) -> str:
        disk = self.captured.get(device)
        return disk.name if disk is not None and _ID.match(disk.name) else ""

    def protected(self, machine: Machine | None) -> list[str]:
        """What is captured, or is to be; nothing once protection was ended. Where nobody said what is to be, what was captured at any time:
        a disk may be away just now, and an agent that cannot start names none."""
        if machine is not None and machine.ended:
            return []
        return list(dict.fromkeys([*self.taken(), *(machine.disks if machine is not None else ())]))

    def taken(self) -> list[str]:
        return [name for name in self.captured if self._is_taken(name)]

    def _is_taken(self, device: str) -> bool:
        return bool(self.captured[device].mode)

    def candidates(self, machine: Machine) -> list[DiskCandidate]:
        wanted = set(machine.disks) if machine.protected else set()
        names = dict.fromkeys([*self.captured, *self.available, *sorted(wanted)])
        return [self._candidate(name, is_wanted=name in wanted) for name in names]

    def _candidate(self, device: str, *, is_wanted: bool) -> DiskCandidate:
        captured, available = self.captured.get(device), self.available.get(device)
        why_not = available.why_not if available is not None else ""
        if captured is None and available is None and self.is_known:
            why_not = "its agent does not name it"
        elif not self.is_known:
            why_not = "its agent has never reported"
        return DiskCandidate(
            device=device,
            size_b=(captured or available or AvailableDisk(device=device)).sectors * SECTOR,
            identity=available.identity if available is not None else "",
            id=self._id(device),
            captured=captured is not None and self._is_taken(device),
            wanted=is_wanted,
            why_not="" if captured is not None and self._is_taken(device) else why_not,
        )


_LOOK: Final = (
    "See `understudy machine disks NAME`. A link (/dev/disk/by-id/…) or a disk that is not there yet is taken with --force (`force` in"
    " the API)."
)
