"""One machine's folder in the spool: its epochs, what they hold, and what was set aside. Only local files; knows no storage."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Collection
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, NamedTuple

from process_server.spool import watermark
from process_server.spool.aside import Aside, Kind, Note
from process_server.spool.file import FULL, SUFFIX, SpooledSegment
from process_server.spool.recovery import Damage, KeyWantedError, claim_in, recover_folder
from process_server.spool.sides import container_in
from process_server.spool.watermark import Watermark
from shared.crashpoints import reach
from shared.daemon import logging
from shared.daemon.threads import in_thread
from shared.errors import SpoolError, SpoolFullError, cause_of
from shared.host import durable
from shared.keys.sealing import MachineKey
from shared.keys.vault import Vault, machine_key_of
from shared.log import names
from shared.log.epoch_id import UNKNOWN, EpochId
from shared.log.segment import FileHeader

UNREADABLE_S: Final = 600.0
"""So long a file of an epoch that the disk does not give is waited for: no path that is cut, and no array that fails over, takes longer,
and a new epoch costs a full resync."""
_DROPPED: Final = ".deleted-"
"""Before the name of an epoch's folder that goes; behind it, the container's: whatever is left in it, it can be told of again."""

_log = logging.get()

Runs = list[list[SpooledSegment]]
"""Segments in order; each run's files continue each other."""


class Recovered(NamedTuple):
    """What an epoch's folder holds."""

    runs: Runs
    known: Watermark


class MachineFolder:
    def __init__(self, machine: str, path: Path, vault: Vault, threads: Executor) -> None:
        self.machine: Final = machine
        self.aside: Final = Aside(machine, path)
        self._path = path
        self._vault = vault
        self._threads = threads
        self._distrusted: set[int] = set()
        self._unreadable: dict[Path, float] = {}
        """Files that the disk did not give, and since when (monotonic)."""
        self._containers: dict[int, str] = {}
        """By epoch, as its folder tells it; "" where that is not known."""
        self.beside = ""
        """Of which container the side is that is known here (sides.py), as of the last look; "" where that is not known."""
        self._going: set[str] = set()
        """Of folders that were dropped, and could not be removed yet."""
        self._keys: dict[tuple[str, str, str], MachineKey] = {}
        """Those that a recovery wanted; as a rule one, for ever."""

    def containers(self, live: Collection[int] = ()) -> set[str]:
        """Of which there was something at the last look (`epochs`); "" where that is not known. Of `live` epochs the open log knows it."""
        said = {container for epoch, container in self._containers.items() if epoch not in live}
        return said | self._going | self.aside.containers

    def epoch(self, epoch: int) -> Path:
        return self._path / f"{epoch:08d}"

    async def epochs(self) -> list[int]:
        """The epochs that have a folder here, in order; looks as well at what is aside. Raises SpoolError."""
        return await in_thread(self._epochs, executor=self._threads)

    def distrust(self, epoch: int) -> None:
        """A file of it was not what its footer says: from now on recovery reads all of them whole."""
        self._distrusted.add(epoch)

    async def recover(self, epoch: EpochId) -> Recovered:
        """What lies in an epoch's folder, which no log may use meanwhile; what another epoch with its number left there is aside then.
        Raises SpoolError, WrongKeyError.
        """
        while True:
            try:
                return await in_thread(self._recover, epoch, executor=self._threads)
            except KeyWantedError as exc:
                wanted = exc.header
            self._keys[_wrapping(wanted)] = await machine_key_of(
                self._vault, wanted.machine, wanted.key_id, wanted.wrapped_key
            )

    async def clear(
        self, epoch: EpochId, listed: list[SpooledSegment], unlisted: list[tuple[SpooledSegment, str]]
    ) -> None:
        """Deletes files that are listed, and sets aside, each for its reason, those that can not be; for good: one of
        another history must not come back before those that are written now. Raises SpoolError.
        """
        if listed or unlisted:
            await in_thread(self._clear, epoch, listed, unlisted, executor=self._threads)

    async def remove(self, epoch: int) -> None:
        """The folder of an epoch that is done with. It stays if a spool file is in it: nothing is deleted unseen."""
        await in_thread(self._remove, self.epoch(epoch), executor=self._threads)

    async def drop(self, deleted: Collection[str], live: Collection[int]) -> None:
        """All that is of these containers, whatever it holds: they were deleted with their machine (process_server/deletions.py). Nobody
        may be at it. What does not say of which it is stays, but an empty folder, and so do the folders of `live` epochs: they have an open
        log, of another container than these, whatever else the folder says. Raises SpoolError.
        """
        await in_thread(self._drop, deleted, live, executor=self._threads)

    # ---- in threads ----

    def _epochs(self) -> list[int]:
        try:
            self.aside.look()
            found: dict[int, Path] = {}
            going: set[str] = set()
            for path in self._path.iterdir() if self._path.is_dir() else ():
                if (number := names.epoch_of(path.name)) is not None:
                    found[number] = path
                elif path.name.startswith(_DROPPED):
                    going.add(path.name.removeprefix(_DROPPED).partition("-")[2])
            beside = container_in(self._path)
        except OSError as exc:
            raise SpoolError(f"The spool folder {self._path} could not be read", cause=cause_of(exc)) from exc
        self._containers = {number: _container_in(path) for number, path in found.items()}
        self._going = going
        self.beside = beside
        return sorted(found)

    def _drop(self, deleted: Collection[str], live: Collection[int]) -> None:
        failures = clear_dropped(self._path)
        failures += self.aside.drop(deleted)
        reach("forget.aside-gone")
        for number in self._epochs():
            folder = self.epoch(number)
            container = "" if number in live else _container_in(folder)
            if container not in deleted:
                if number not in live:
                    with durable.collected(failures):
                        _remove_empty(folder)
                continue
            with durable.collected(failures):
                # At once with all that says of which container it is: of what is left after a kill, only the name does.
                dropped = folder.with_name(f"{_DROPPED}{folder.name}-{container}")
                durable.move_folder(folder, dropped)
                reach("forget.epoch-moved")
                shutil.rmtree(dropped)
                reach("forget.epoch-gone")
                _log.warning("spool of a deleted machine dropped", machine=self.machine, epoch=number)
        self._epochs()
        if failures:
            what = f"The spool folder {self._path} could not be tidied"
            raise SpoolError(what, cause=f"{cause_of(failures[0])} ({failures[0].filename})")

    def _recover(self, epoch: EpochId) -> Recovered:
        folder = self.epoch(epoch.number)
        state = watermark.path_in(folder)

        def set_aside(damage: Damage) -> None:
            note = Note(
                epoch=epoch.number,
                first=damage.first,
                last=damage.last,
                cause=damage.cause,
                claim=damage.claim,
                container=_container_of(folder, damage.claim),
            )
            kind = Kind.UNLISTED if damage.foreign else Kind.DAMAGED
            self.aside.put(kind, damage.path, note, keep=not damage.whole)

        try:
            durable.make_folder(folder)
            runs = recover_folder(
                folder,
                epoch,
                self._key_of,
                set_aside,
                # A damaged file may keep a whole footer, and is here as well while its front part waits for upload.
                thorough=epoch.number in self._distrusted or self.aside.holds(epoch),
                give_up=self._give_up,
            )
            self._unreadable = {
                path: since
                for path, since in self._unreadable.items()
                if path.parent != folder or path == state
            }
        except OSError as exc:
            kind = SpoolFullError if exc.errno in FULL else SpoolError
            raise kind(
                f"The spool folder {folder} could not be made or recovered", cause=cause_of(exc)
            ) from exc
        # Given, it is not waited for any more; given up, it stays so until it is written anew, since recovery may come first.
        since = self._unreadable.pop(state, None)
        return Recovered(runs, watermark.read(folder, epoch.claim, lambda path: self._give_up(path, since)))

    def _give_up(self, path: Path, since: float | None = None) -> bool:
        now = time.monotonic()
        return now - self._unreadable.setdefault(path, now if since is None else since) > UNREADABLE_S

    def _key_of(self, header: FileHeader) -> MachineKey:
        key = self._keys.get(_wrapping(header))
        if key is None:
            raise KeyWantedError(header)
        return key

    def _clear(
        self, epoch: EpochId, listed: list[SpooledSegment], unlisted: list[tuple[SpooledSegment, str]]
    ) -> None:
        folder = self.epoch(epoch.number)
        try:
            for spooled, cause in unlisted:
                note = Note(
                    epoch=epoch.number,
                    first=spooled.first.number,
                    last=spooled.last.number,
                    cause=cause,
                    claim=epoch.claim,
                    container=_container_of(folder, epoch.claim),
                )
                self.aside.put(Kind.UNLISTED, spooled.path, note)
            for spooled in listed:
                durable.remove_file(spooled.path)
            durable.sync_folder(folder)
        except OSError as exc:
            raise SpoolError(f"The spool folder {folder} could not be tidied", cause=cause_of(exc)) from exc

    def _remove(self, folder: Path) -> None:
        try:
            if not any(folder.glob(f"*{SUFFIX}")):
                for path in folder.iterdir():
                    durable.remove_file(path)
                folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise SpoolError(f"The spool folder {folder} could not be removed", cause=cause_of(exc)) from exc


def clear_dropped(path: Path) -> list[OSError]:
    """Removes what is left in a machine's folder of what was dropped. Why some of it stays."""
    failures: list[OSError] = []
    for dropped in sorted(path.glob(f"{_DROPPED}*")):
        with durable.collected(failures):
            shutil.rmtree(dropped)
    return failures


def clear_killed(path: Path) -> list[OSError]:
    """Removes what a kill left in a machine's folder that is of no use to anybody, when nobody is at it. Why some of it stays."""
    failures = clear_dropped(path)
    for folder in (path, *(path / kind for kind in Kind)):
        with durable.collected(failures):
            for left in durable.all_leftovers(folder):
                durable.remove_file(left)
    for kind in Kind:
        with contextlib.suppress(OSError):  # it is not there, or not empty
            (path / kind).rmdir()
    return failures


def _remove_empty(folder: Path) -> None:
    """The folder of an epoch, when it is nobody's: no state could be written, or a kill was faster, and no batch has come. Whatever else
    is in it keeps it."""
    left = durable.all_leftovers(folder)
    if left == sorted(folder.iterdir()):
        for path in left:
            durable.remove_file(path)
        folder.rmdir()


def _container_in(folder: Path) -> str:
    """With which container the epoch went; empty where that is not certain. Its state says so; but where that could not be written since,
    as of a full disk, the files are those of a later epoch with its number, and say that."""
    mark = watermark.any_in(folder)
    if mark is None or not mark.container:
        return ""
    try:
        claims = (claim_in(path) for path in folder.glob(f"*{SUFFIX}"))
        said = next(
            (claim for claim in claims if claim != UNKNOWN), mark.claim
        )  # all are of one (recovery.py)
    except OSError:
        return ""
    return mark.container if said == mark.claim else ""


def _container_of(folder: Path, claim: str) -> str:
    """Of the epoch with this claim, whose folder that is or was; empty where it does not tell."""
    mark = watermark.any_in(folder)
    return mark.container if mark is not None and mark.claim == claim else ""


def _wrapping(header: FileHeader) -> tuple[str, str, str]:
    """What tells one key from another."""
    return header.machine, header.key_id, header.wrapped
