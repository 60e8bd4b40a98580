"""One machine: claim it, follow its log, apply it, make its points; and begin again after every failure.

Two tasks run side by side. *Follow* polls the index and documents new marks at once, however far behind apply is. *Apply* takes one
step after the other (stepping.py), in the epoch whose turn it is (epochs.py).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from master_target.bridge import BridgeSettings
from master_target.claim import Claim
from master_target.epochs import Epochs
from master_target.follow import Follower
from master_target.points import PointMaker
from master_target.retention import Pruner, RetentionPolicy
from master_target.status import MachineReport, Rates
from master_target.stepping import Stepper
from master_target.targets.base import OpenTarget
from shared.blob import BlobStore
from shared.daemon import logging
from shared.daemon.threads import no_room
from shared.errors import (
    IntegrityError,
    KeyUnavailableError,
    LeaseHeldError,
    SeedDiskError,
    StorageError,
    UnderstudyError,
    WrongKeyError,
)
from shared.keys.vault import Vault
from shared.recovery.parallel import parallel
from shared.status import Problem
from shared.vocabulary import ApplyState, Severity
from shared.waiting import wait_for

_log = logging.get()

_TAKEN_S: Final = 5.0
"""How often to ask for a machine that another master target has."""
_KEY_S: Final = 5.0
"""How often to ask for a key that could not be had."""
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    owner: str
    interval_b: int = 64 << 20
    behind_interval_b: int = 256 << 20
    poll_s: float = 1.0
    bridge: BridgeSettings = BridgeSettings()
    retention: RetentionPolicy = RetentionPolicy()


class Machine:
    """`run` works until it is told to stop. `report` is the status at any time."""

    def __init__(
        self, store: BlobStore, vault: Vault, name: str, settings: Settings, open_target: OpenTarget
    ) -> None:
        self.name = name
        self._vault = vault
        self._settings = settings
        self._open_target = open_target
        self._trouble: StorageError | None = None
        self._failure: UnderstudyError | None = None
        self._state = ApplyState.STARTING
        self._rates = Rates()
        self._work: _Work | None = None
        # A storage outage is waited out, not failed on: seed disks and cursors are safe meanwhile.
        self._store = store.patient(self._note_trouble)
        # But room is not waited for: work that needs no room goes on where nothing may be deleted.
        self._pruner = Pruner(store, name, settings.retention)

    async def run(self, stop: asyncio.Event) -> None:
        first = True
        pause_s = _FIRST_PAUSE_S
        while not stop.is_set():
            began = time.monotonic()
            try:
                try:
                    claim = await Claim.take(self._store, self.name, self._settings.owner, first=first)
                except (
                    LeaseHeldError
                ):  # the machine's; a disk that is held although the machine is ours is a failure
                    self._state = ApplyState.CLAIMED_BY_ANOTHER
                    self._failure = self._work = None  # what is wrong is its owner's to tell
                    await wait_for(stop, _TAKEN_S)
                    continue
                first = False
                try:
                    await self._work_on(claim, stop)
                finally:
                    await claim.release()
            except UnderstudyError as exc:
                self._failure = exc
                self._state = ApplyState.FAILED
                _log.error("machine failed", machine=self.name, **exc.as_dict())
            except Exception as exc:  # noqa: BLE001 - a bug that one machine meets must not end the work on the others
                full = no_room(exc)
                self._failure = full or UnderstudyError(
                    f"The work on machine {self.name} was interrupted",
                    cause=repr(exc),
                    action="This is a bug; it is tried again by itself. Report it, with the master target's log.",
                )
                self._state = ApplyState.FAILED
                if full is not None:
                    _log.error("machine failed", machine=self.name, **full.as_dict(), exc_info=exc)
                else:
                    _log.error("machine failed: this is a bug", machine=self.name, exc_info=exc)
            if time.monotonic() - began > 2 * _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S
            await wait_for(stop, pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def report(self) -> MachineReport:
        report = MachineReport(machine=self.name, state=self._state, rates=self._rates.report())
        if self._work is not None:
            self._work.describe(report)
        for error in (self._failure, self._trouble):
            if error is not None:
                report.errors.append(Problem(**error.as_dict(), object=self.name))
        return report

    async def _work_on(self, claim: Claim, stop: asyncio.Event) -> None:
        work = _Work(
            self._store,
            self._vault,
            self.name,
            self._settings,
            self._open_target,
            self._rates,
            self._pruner,
            claim,
        )
        self._work = work
        self._state = ApplyState.FOLLOWING
        stages = (
            partial(self._end_with, claim, stop, work),
            work.follow,
            partial(work.apply, self._recovered),
        )
        try:
            await parallel(stages, len(stages))
        except Exception:
            # What fails while another works on the log and the disks says nothing of them: it is a takeover.
            await claim.check()
            raise
        finally:
            await work.close()
            self._state = ApplyState.STOPPED

    async def _end_with(self, claim: Claim, stop: asyncio.Event, work: _Work) -> None:
        """Set `work.ending` when the daemon stops; fail when the claim is lost."""
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, claim.lost)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if claim.lost.is_set():
            await claim.check()
        work.ending.set()

    def _note_trouble(self, error: StorageError | None) -> None:
        if error is not None and self._trouble is None:
            _log.warning("storage does not answer; waiting", machine=self.name, **error.as_dict())
        if error is None and self._trouble is not None:
            _log.info("storage answers again", machine=self.name)
        self._trouble = error

    def _recovered(self) -> None:
        """What failed is over when it was done, not when it is tried again."""
        self._failure = None


class _Work:
    """What is known and held while a machine is claimed."""

    def __init__(
        self,
        store: BlobStore,
        vault: Vault,
        name: str,
        settings: Settings,
        open_target: OpenTarget,
        rates: Rates,
        pruner: Pruner,
        claim: Claim,
    ) -> None:
        self.ending = asyncio.Event()
        self._name = name
        self._settings = settings
        self._pruner = pruner
        self._log = Follower(store, vault, name)
        self._points = PointMaker(store, name)
        self._epochs = Epochs(store, name, self._log, open_target, self._look, claim.check)
        self._looking = asyncio.Lock()
        self._stepper = Stepper(
            self._log,
            self._points,
            rates,
            self._documented,
            self._looking.locked,
            interval_b=settings.interval_b,
            behind_interval_b=settings.behind_interval_b,
            bridge=settings.bridge,
        )
        self._unavailable: KeyUnavailableError | WrongKeyError | None = None
        self._news = asyncio.Event()
        self._looked = False
        """Whether what was asked of the log was answered once."""

    async def close(self) -> None:
        try:
            await self._log.close()
        finally:  # whoever is cut off once more while it hangs must not keep the disks locked
            await self._epochs.close_disks()

    def describe(self, report: MachineReport) -> None:
        at = self._epochs.position
        report.epoch, report.applied = at
        report.indexed = self._log.end(at.epoch).batch
        report.applied_captured_ns = self._log.captured_ns(at)
        report.lag_s, report.lag_b = self._log.behind(at)
        report.last_point = self._points.last.id if self._points.last else ""
        beside = [
            error
            for error in (self._unavailable, self._pruner.failure, self._points.unreadable.problem)
            if error is not None
        ]
        report.errors += [
            Problem(**error.as_dict(), object=self._name) for error in (*self._log.damaged, *beside)
        ]
        report.errors += [
            Problem(**error.as_dict(), severity=Severity.WARNING, object=disk.target.name)
            for disk in self._epochs.disks
            if (error := disk.target.problem) is not None
        ]

    # ---- follow ----

    async def follow(self) -> None:
        """Poll the index until ending. Apply has nothing to do before the first look is over, with all that it asks of the log: it may be
        of what lies before the disks, which a step forgets.
        """
        await self._points.take()
        while not self.ending.is_set():
            known = [e for e in (self._epochs.current, self._points.reads_from) if e]
            await self._look(min(known, default=1))
            self._looked = True
            self._news.set()
            await wait_for(self.ending, self._settings.poll_s)
        self._news.set()

    async def _look(self, from_epoch: int) -> None:
        """See what is new in the index, and write the documents of the points in it."""
        async with self._looking:
            found = await self._log.refresh(from_epoch)
            await self._points.document(found, self._log.listed_ns, self._log.digest)

    async def _documented(self) -> None:
        """Whoever made an entry of the index known holds `_looking` until the documents of all its marks are written."""
        async with self._looking:
            pass

    # ---- apply ----

    async def apply(self, worked: Callable[[], None]) -> None:
        """Apply what there is until ending; an interval that has begun is applied wholly. `worked` is called after each step that went
        well, and when there is none to take.

        A key that cannot be had now keeps the apply waiting, and nothing else: documents of points need none, and go on. So does one that
        the vault cannot open: the right vault opens it, and what was left out meanwhile would never be applied.
        """
        while not self.ending.is_set():
            self._news.clear()
            try:
                await self._apply_all(worked)
            except (KeyUnavailableError, WrongKeyError) as exc:
                if self._unavailable is None or self._unavailable.cause != exc.cause:
                    _log.warning("apply waits for a key", machine=self._name, **exc.as_dict())
                self._unavailable = exc
                await wait_for(self.ending, _KEY_S)
                continue
            self._unavailable = None
            await self._news.wait()

    async def _apply_all(self, worked: Callable[[], None]) -> None:
        """All that is known of the log now. KeyUnavailableError and WrongKeyError come while batches are read, before any disk is
        touched for them.
        """
        if self._log.newest_epoch and not self._epochs.current:
            await self._epochs.take_up_first()
        if self._epochs.current:
            await self._prune_if_due()  # before a step, which may fail for want of the room that this makes
        looked = self._looked
        while self._epochs.current and not self.ending.is_set() and await self._step():
            worked()
            await self._prune_if_due()
        if looked:
            worked()

    async def _prune_if_due(self) -> None:
        if self._pruner.due:
            targets = [disk.target for disk in self._epochs.disks]
            await self._pruner.prune(self._points.roll, targets)

    async def _step(self) -> bool:
        """The next interval, or the next epoch; False when there is nothing to do."""
        epochs = self._epochs
        try:
            return await self._stepper.step(epochs.id, epochs.disks) or await epochs.take_up_newest()
        except Exception as exc:
            if not epochs.newer or not _heals(exc):
                raise
            said = exc.as_dict() if isinstance(exc, UnderstudyError) else {"exc_info": exc}
            _log.warning("rest of an epoch left out", machine=self._name, epoch=epochs.current, **said)
        # Opened anew: the failed step may have left them in another state than their owner here remembers.
        await epochs.close_disks()
        return await epochs.take_up_newest()


def _heals(exc: Exception) -> bool:
    """Whether a newer epoch, of which nothing before is needed, heals it: what log or disks hold, and what nobody expected. But what this
    host has no room for, be it in the midst of something, says nothing of either: it is tried again, for the epoch's points."""
    if no_room(exc) is not None:
        return False
    if isinstance(exc, UnderstudyError):
        return isinstance(exc, (IntegrityError, SeedDiskError)) and not isinstance(exc, WrongKeyError)
    return True
