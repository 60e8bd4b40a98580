"""Which boot of a machine was admitted last, and how long another one is kept waiting for it (I7).

A copy with the machine's own identity differs from it in one thing that it cannot have: the boot of its kernel. Machines lose
their sessions all the time (a network that breaks, an agent or a process server that is restarted), and come back within
seconds. Would a copy be taken whenever no session is open, one such moment would be enough to end the machine's epoch. So whoever
has another boot waits for KEEP_S after the last session of the known one has ended, and after this server's own start, when it
cannot know who is on their way back; the boot is kept on disk for that. A machine that was really rebooted waits as well, once:
it has lost its continuity anyway, and its writes are captured meanwhile.

Only the kernel's boot id counts: the other half of `boot` names an attachment of capture, which the same machine may make anew
at any time (a disk resized, added, gone). A machine that this server has never had waits for nobody. Time is monotonic time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from process_server.machine_files import MachineFiles
from shared import decoding
from shared.daemon import logging
from shared.errors import UNDECODABLE, BootFileError, MachineAwaitedError
from shared.wire.messages import Hello, kernel_of

KEEP_S: Final = 20.0
"""An agent comes back in less: it connects within 10 s, and pauses for 10 s at most (agent/stream/sender.py)."""
SILENT_RETRY_S: Final = 5.0
"""When whoever finds a session open that does not answer may ask again: it ends by itself, or answers again."""
_FILE: Final = "boot.json"

_log = logging.get()


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    v: int = 1
    identity: str
    kernel: str
    """The kernel's boot id."""


class LastBoot:
    """Of one machine. Pure; `gone_s` is when it was last known to be there."""

    def __init__(self, admitted: Admitted | None, *, unreadable: bool, gone_s: float) -> None:
        self.admitted = admitted
        self._unreadable = unreadable
        self._gone_s = gone_s

    @classmethod
    def unknown(cls, started_s: float) -> LastBoot:
        """Of a machine that this server never had."""
        return cls(None, unreadable=False, gone_s=started_s)

    def check(self, hello: Hello, *, is_side: bool, now_s: float) -> None:
        """Raises MachineAwaitedError for another boot than the last, too early. `is_side`: this identity is known to be the active
        side's, so that whoever has another one is not waited for.
        """
        left_s = self._gone_s + KEEP_S - now_s
        if left_s > 0 and self._is_kept_for_another(hello, is_side):
            raise awaited(hello.machine, "its session ended, or this server started, a moment ago", left_s)

    def is_of(self, boot: str) -> bool:
        return self.admitted is not None and self.admitted.kernel == kernel_of(boot)

    def ended(self, boot: str, now_s: float) -> None:
        """A session of this boot is over."""
        if self.is_of(boot):
            self._gone_s = now_s

    def admit(self, hello: Hello) -> Admitted:
        """From now on this boot is the machine."""
        self.admitted = Admitted(identity=hello.identity, kernel=kernel_of(hello.boot))
        self._unreadable = False
        return self.admitted

    def withdraw(self, boot: str) -> bool:
        """This boot was admitted, and then its log said that it is a copy's: the name is not kept for it. Whether that is news."""
        if not self.is_of(boot):
            return False
        self.admitted = None
        return True

    def _is_kept_for_another(self, hello: Hello, is_side: bool) -> bool:
        if self.admitted is None:
            return self._unreadable and hello.epoch == 0  # only the machine itself has an epoch to go on with
        if is_side and self.admitted.identity != hello.identity:
            return False
        return not self.is_of(hello.boot)


def awaited(machine: str, why: str, retry_after_s: float) -> MachineAwaitedError:
    return MachineAwaitedError(
        f"Machine {machine} is waited for",
        cause=f"{why}, and this is another boot with its identity",
        retry_after_s=retry_after_s,
    )


class BootFiles:
    """Beside the machines' spools."""

    def __init__(self, spool_dir: Path) -> None:
        self.files: Final = MachineFiles(spool_dir, _FILE, "last boots", BootFileError)
        """At worst one is not on the disk: then the one before is recalled, or none, after a restart."""

    def recall(self, started_s: float) -> dict[str, LastBoot]:
        """By machine, what this server, started at that time, knows from earlier. Blocking."""
        found: dict[str, LastBoot] = {}
        for machine, path in self.files.all().items():
            try:
                admitted = decoding.decode(path.read_bytes(), type=Admitted)
            except (OSError, *UNDECODABLE) as exc:
                _log.warning("last boot not recalled", machine=machine, file=str(path), cause=str(exc))
                found[machine] = LastBoot(None, unreadable=True, gone_s=started_s)
            else:
                found[machine] = LastBoot(admitted, unreadable=False, gone_s=started_s)
        return found

    async def remember(self, machine: str, admitted: Admitted) -> None:
        """Nothing is written that is on the disk already."""
        await self.files.keep(machine, msgspec.json.encode(admitted))

    async def forget(self, machine: str) -> None:
        await self.files.keep(machine, None)

    async def remove(self, machine: str) -> None:
        """Raises SpoolError."""
        await self.files.remove(machine)
