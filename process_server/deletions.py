"""Machines that were deleted: what is here of them goes, and nothing else.

Input: which containers the config server says were deleted with their machines, of those that the report named. Output: no folder, no file
and no log of them here, and no word of them in the reports.

Why nothing goes that somebody may still want (I5). A spool holds what was acknowledged and is not in storage, perhaps nowhere else. So it
takes two that cannot be wrong together:

- **The config server's word.** It is said of a container, whose name is random and never given twice, and not of a machine: a name may be
  used again. It is written down there when a person's deletion has gone its whole way (decision 0029), and is taken back when the container
  is in storage again. It comes with the answer to each report, over TLS, from whom orders come, too. A server that is older, is away, or
  lost that with its database says nothing, and nothing is what is done.
- **Storage, as this server sees it**: the container is not in the account's list, and the registry does not name it. It is asked at first,
  and again behind all that is waited for (a log that ends), before the first file goes. While storage does not answer, or has it (somebody
  brought it back; or the config server looks at another account), all stays.

Storage alone decides nothing. After a failover of the account it has lost a container, or all of them, and what is here may be all that is
left. A deleted container and one that a failover lost look alike from here: the word tells them apart.

What is of a container. An open log knows it; an epoch's state, and the note of what was set aside, say it, with the epoch's claim, and so
does the side that is known here (spool/watermark.py, spool/aside.py, spool/sides.py): by it alone the machine is told of where nothing else
is, as when somebody waited with the name while the rest went, and was refused. What says none, since it was written by an earlier version
or is damaged, is of none, and stays. So a name that is used again keeps what is of its new container, and its session goes on. Where only a
side is left that says none, and the registry names another container, that one's machine may have been here: side, boot and keys stay, and
count as that one's from then on.

Killed anywhere, it is done by the next start. First the logs end, then files go, and a file's note behind it; then, where nothing else is
left and nobody here bears the name, the data keys and what lies beside the spool, the side at last. The keys are the name's: they go only
where the registry names no machine of it, since one that lives elsewhere may come here, and go on without the config server. An epoch's
folder is first moved to a name that is no epoch's and names the container, since what is left of one that lost its state could not be told
any more. What is still here is named in the next report, so it is told again, and until it goes the machine's report says why it is still
here (I10). That is how it is tried again, too: 2, 4, 8, … 600 s after it failed, or storage had it (half a dozen requests each time, so
some 26,000 a month in the end; with each answer, every 2 s, they would be millions). A server that was off during the deletion names what
it has when it is back. An empty folder is nobody's: an epoch's goes along, a machine's at the next start.

Each machine's drop is a task of its own: a disk that does not answer, or storage that is slow, keeps no other machine's from going.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Set
from typing import Final, NamedTuple

from process_server.reception.admission import Admission
from process_server.reception.boots import BootFiles
from process_server.spool.sides import Sides
from process_server.spool.spool import MachineLog, Spool
from shared.blob import Retry
from shared.control import remote_vault
from shared.crashpoints import reach
from shared.daemon import logging
from shared.errors import SpoolError, UnderstudyError, UndroppedError
from shared.keys.vault import Vault
from shared.machine.storage import MachineStorage

_log = logging.get()
_BRIEFLY: Final = Retry(deadline_s=3.0)
"""It is tried again."""
_FIRST_PAUSE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 600.0
_SLOW_S: Final = 60.0
"""After so long a drop is told to hang. It goes on."""


class _Failed(NamedTuple):
    """What could not be dropped."""

    containers: Set[str]
    pause_s: float
    again_s: float
    """When it may be tried again."""


class Deletions:
    """`tell` what was said; `run` does it."""

    def __init__(
        self,
        storage: MachineStorage,
        spool: Spool,
        admission: Admission,
        sides: Sides,
        boots: BootFiles,
        vault: Vault,
    ) -> None:
        self._storage = storage.with_retry(_BRIEFLY)
        self._spool = spool
        self._admission = admission
        self._sides = sides
        self._boots = boots
        self._vault = vault
        self._told: Set[str] = frozenset()
        self._news = asyncio.Event()
        self.clock: Callable[[], float] = time.monotonic
        self._trying: set[str] = set()
        """Machines."""
        self._failed: dict[str, _Failed] = {}
        """By machine."""

    def tell(self, containers: Collection[str]) -> None:
        """Of those that the last report named, those that were deleted."""
        self._told = frozenset(containers)
        self._news.set()

    async def run(self) -> None:
        """Never returns. One machine's trouble hinders no other's."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._news.wait()
                self._news.clear()
                for machine, log in self._spool.machines.items():
                    if machine in self._trying:
                        continue  # should it fail, the next answer tries again
                    said = log.containers.intersection(self._told)
                    if not said:
                        log.undropped = None
                        self._failed.pop(machine, None)
                    elif self._is_time(machine, said):
                        self._trying.add(machine)
                        tasks.create_task(self._try(machine, log), name=f"drop {machine}")

    async def _try(self, machine: str, log: MachineLog) -> None:
        slow = SpoolError("It takes long", cause="the cache disk, or storage, is slow or does not answer")
        telling = asyncio.get_running_loop().call_later(_SLOW_S, self._note, machine, log, slow)
        error: UnderstudyError | None = None
        told = self._told
        try:
            await self._drop(machine, log)
        except UnderstudyError as exc:
            error = exc
        finally:
            telling.cancel()
            self._trying.discard(machine)
        self._note(machine, log, error)
        self._put_off(machine, log.containers.intersection(told))

    def _is_time(self, machine: str, said: Set[str]) -> bool:
        failed = self._failed.get(machine)
        return failed is None or not failed.containers >= said or self.clock() >= failed.again_s

    def _put_off(self, machine: str, left: Set[str]) -> None:
        """`left`: what was told of, and is here still."""
        before = self._failed.pop(machine, None)
        if left:
            pause_s = _FIRST_PAUSE_S
            if before is not None and before.containers >= left:
                pause_s = min(2 * before.pause_s, _LONGEST_PAUSE_S)
            self._failed[machine] = _Failed(left, pause_s, self.clock() + pause_s)

    def _note(self, machine: str, log: MachineLog, error: UnderstudyError | None) -> None:
        before, log.undropped = log.undropped, None
        if error is not None:
            what = f"What is here of machine {machine}, which was deleted, could not be dropped yet"
            log.undropped = UndroppedError(what, cause=f"{error.what}: {error.cause}")
            if before is None or before.cause != log.undropped.cause:
                _log.warning("deleted machine not dropped yet", machine=machine, **error.as_dict())

    async def _forget_keys(self, machine: str) -> None:
        """They are the name's: where a machine bears it, wherever it lives, they may be that one's."""
        # Behind the wait: somebody may have come, who goes on with what is here.
        if await self._storage.named(machine) is None and self._admission.is_free(machine):
            await remote_vault.forgotten(self._vault, machine)

    async def _gone(self, machine: str, containers: Set[str]) -> set[str]:
        """Those of them that storage has not, nor the registry names, asked now."""
        return {container for container in containers if not await self._storage.has(machine, container)}

    async def _drop(self, machine: str, log: MachineLog) -> None:
        await log.look()
        gone = await self._gone(machine, log.containers.intersection(self._told))
        if not gone:
            return
        for container in gone:
            self._storage.forget(machine, container)
        before = log.containers

        named: str | None = None

        async def still() -> set[str]:
            nonlocal gone, named
            named = await self._storage.named(machine)
            gone = await self._gone(machine, gone - {named})
            return gone

        await log.forget(gone, still)
        if log.containers != before:
            _log.warning("deleted machine dropped", machine=machine, containers=sorted(gone))
        if not gone:
            return
        if named is not None and not log.containers:
            # Whose it is that lies beside the spool, nothing says: it may be the living one's, and goes with that one.
            if self._admission.is_free(machine):
                await self._sides.attribute(machine, named)
                await log.look()
            return
        # The side last: it says of which container it is.
        for remove in (self._forget_keys, self._boots.remove, self._sides.remove):
            # Before each: where somebody has come meanwhile, it may be his.
            if not (log.containers <= gone and self._admission.is_free(machine)):
                break
            await remove(machine)
        else:
            reach("forget.beside-gone")
            await log.look()
        if not log.containers and self._admission.forget(machine):
            await self._spool.leave(machine)
