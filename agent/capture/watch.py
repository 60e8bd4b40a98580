"""What capture is not fitted to, looked for while the agent runs: disks that are left out (also such as were given up, for they hang or
refuse too much: `refusing`), went away or cannot be read; and a capture without order: could it have it? The captured ones are looked at,
too, seldom: nothing may tell one from others, which is said (`shared`). What could not be noted of them is noted as soon as it can be, and
what was removed or changed of the notes is seen (`bindings.BindingsFile`).

To take a disk in ends the session, and a new epoch begins. So one of which nothing could be proved, or for which the kernel had no memory,
is tried out first, with programs of its own, and rarely: what is captured goes on untouched, however often that fails. One that passes, and
fails when capture is fitted to it, has ended the session in vain: whoever knows says until when it is not to be found again (`not_before`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from agent.capture import answer, attach
from agent.capture.binding import Action, Verdict
from agent.capture.bindings import BindingsFile
from agent.capture.look import LeftOut, Look, Refusing, bound_by_shared, look_at, silence, why_not
from shared.daemon import logging
from shared.daemon.threads import start
from shared.desired import WantedDisk
from shared.errors import (
    BpfError,
    DeviceError,
    NoThreadError,
    SharedIdentityError,
    StateFileError,
    UnderstudyError,
)

_log = logging.get()

RETRY_S: Final = 10.0
"""How often disks that are left out are looked for."""
SHARED_S: Final = 60.0
"""How often captured disks are looked at that cannot be told from others: somebody may have detached these…"""
CLONES_S: Final = 600.0
"""…and how often the others: somebody may have attached clones."""
ORDER: Final = ""
"""Stands for the order of a capture that has none, among ids of disks."""
TRY_S: Final = 60.0
"""How long after the start one is tried out first; the time doubles with each try…"""
TRY_LIMIT_S: Final = 900.0
"""…up to this."""


class Watch:
    """Looks for the disks that are left out (or went away), in a thread, every `RETRY_S`."""

    def __init__(
        self,
        wanted: Sequence[WantedDisk],
        file: BindingsFile,
        pin_dir: Path,
        left_out: Sequence[LeftOut],
        shared: Mapping[str, SharedIdentityError] = MappingProxyType({}),
        *,
        without_order: bool = False,
    ) -> None:
        """`without_order`: capture could not be calibrated on any disk."""
        self._wanted = wanted
        self._pin_dir = pin_dir
        self.file: Final = file
        self.left_out: Final = tuple(left_out)
        self.shared = shared
        """By id, captured disks that others of the machine cannot be told from, as of the last look."""
        self.silent: frozenset[str] | None = None
        """Ids of captured disks that gave no answer at the last look, while somebody looks; None: nobody has looked yet."""
        self.trouble: UnderstudyError | None = None
        """Why the last look could not be taken; None: it was."""
        self._unproved = {left.id for left in left_out if left.needs_trial}
        self._without_order = without_order
        self._next = time.monotonic() + RETRY_S
        self._next_shared = time.monotonic() + (SHARED_S if shared else CLONES_S)
        self._try_s = TRY_S
        self._next_try = time.monotonic() + TRY_S
        self._thread: threading.Thread | None = None
        self._found = False
        self.not_before: Mapping[str, float] = {}
        """By id, or `ORDER`: until when (monotonic) it is not found, however well it is."""
        self.refusing: Mapping[str, Refusing] = {}
        """By id, disks that are left out although they answer, until they give what they refused."""
        self.found: frozenset[str] = frozenset()
        """For whose sake capture is to be fitted anew: ids, or `ORDER`."""

    @property
    def unfit(self) -> frozenset[str]:
        """What capture was not fitted to, although it may be found well: ids, or `ORDER`."""
        return frozenset(self._unproved | ({ORDER} if self._without_order else set()))

    def is_one_back(self, *, looking: bool = False) -> bool:
        """Whether capture can be fitted better than it is. Never blocks: begins a look if one is due, says what the last one found.
        `looking`: there is something to look for, or at, beside what was left out."""
        if self._found or (self._thread is not None and self._thread.is_alive()):
            return self._found
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + RETRY_S
        is_try = now >= self._next_try and any(self._may(name) for name in self.unfit)
        is_due = now >= self._next_shared
        arguments = is_try, bool(self.left_out or looking), is_due
        self._thread = threading.Thread(target=self._search, args=arguments, name="disk-watch", daemon=True)
        try:
            start(self._thread)
        except NoThreadError as exc:
            self._thread = None
            before = self.trouble
            self.trouble = NoThreadError(
                "Disks that are left out, or do not answer, cannot be looked for", cause=exc.cause
            )
            if before is None or before.as_dict() != self.trouble.as_dict():
                _log.warning("there is no room for a thread", **self.trouble.as_dict())
            self.silent = None  # nobody could ask
        else:
            if is_try:
                self._next_try = now + self._try_s
                self._try_s = min(2 * self._try_s, TRY_LIMIT_S)
        return False

    def _search(self, is_try: bool, is_look: bool = True, is_due: bool = False) -> None:
        """Whatever fails, the next look comes in its time. Without a look or a try, only the file is looked at. `is_due`: the captured
        disks are, and whoever may be taken for one."""
        before = self.trouble
        trouble: UnderstudyError | None = None
        try:
            self._make_up()
            if is_try or is_look or is_due:
                self._look(is_try, is_due)
        except UnderstudyError as exc:
            trouble = exc
            if before is None or before.as_dict() != trouble.as_dict():
                _log.warning("disks that are left out could not be looked for", **exc.as_dict())
        except Exception as exc:  # noqa: BLE001 - nobody waits for this thread: said here, or never
            trouble = DeviceError(
                "Disks that are left out, or do not answer, cannot be looked for",
                cause=repr(exc),
                action="It is tried again by itself. Until it succeeds, restart the agent to take a disk in; the log says more.",
            )
            if before is None or before.as_dict() != trouble.as_dict():
                _log.error("disks could not be looked for: this is a bug", exc_info=exc)
        if trouble is not None:
            self.silent = None  # nobody could ask
        self.trouble = trouble

    def _make_up(self) -> None:
        self.file.read()
        if self.file.trouble is None:
            return
        try:
            self.file.write_again()
        except StateFileError as exc:  # said as long as it is owed
            _log.debug("where the disks stand now could not be noted yet", cause=exc.cause)
        else:
            _log.info("where the disks stand now was noted", path=str(self.file.path))

    def _look(self, is_try: bool, is_due: bool) -> None:
        unwritten = self._still_unwritten()
        look = look_at(self._wanted, self.file.read() or [], self._pin_dir, everybody=is_due)
        going_on = [v for v in look.verdicts if v.action is Action.CONTINUE]
        self.silent = frozenset(v.known.id for v in going_on if silence(v, look))
        if is_due:
            self.shared = bound_by_shared(going_on)
            self._next_shared = time.monotonic() + (SHARED_S if self.shared else CLONES_S)
        errors = why_not(look)
        well = [v for v in look.verdicts if v.action is Action.ATTACH and v.known.id not in errors]
        well = [v for v in well if self._may(v.known.id) and v.known.id not in unwritten]
        well = [v for v in well if self._gives_again(look, v)]
        found = {v.known.id for v in well if v.known.id not in self._unproved}
        if is_try and not found:
            found = {
                v.known.id for v in well if v.standing is not None and self._proves(look, v.standing.dev)
            }
            if self._without_order and self._may(ORDER) and self._may_have_order(look):
                found.add(ORDER)
        self.found = frozenset(found)
        self._found = bool(found)

    def _may(self, name: str) -> bool:
        return time.monotonic() >= self.not_before.get(name, 0.0)

    def _still_unwritten(self) -> frozenset[str]:
        """Ids of disks that are left out because it could not be written down which they are, and that still cannot be."""
        unwritten = frozenset(left.id for left in self.left_out if isinstance(left.error, StateFileError))
        if unwritten:
            try:
                self.file.write_again()
            except StateFileError as exc:
                _log.debug("which disk is which cannot be written down yet", cause=exc.cause)
                return unwritten
        return frozenset()

    def _gives_again(self, look: Look, verdict: Verdict) -> bool:
        refused = self.refusing.get(verdict.known.id)
        if refused is None:
            return True
        if not refused.is_due(time.monotonic()):
            return False
        assert verdict.standing is not None
        cause = answer.why_unread(look.found[verdict.standing.dev], refused.sample)
        if cause:
            _log.debug("a disk that is left out refuses what it refused", id=verdict.known.id, cause=cause)
        return not cause

    def _proves(self, look: Look, dev: int) -> bool:
        disk = look.found[dev]
        try:
            cause = attach.try_out(self._pin_dir, disk)
        except BpfError as exc:
            cause = str(exc)
        if cause:
            _log.info("a disk that is left out was tried again", device=str(disk.path), cause=cause)
        return not cause

    def _may_have_order(self, look: Look) -> bool:
        captured = [
            v.standing for v in look.verdicts if v.action is Action.CONTINUE and v.standing is not None
        ]
        well = [look.found[standing.dev] for standing in captured if not look.answers[standing.path].cause]
        try:
            return bool(well) and not attach.rehearse(well).cause
        except BpfError as exc:
            _log.info("calibration was tried again", **exc.as_dict())
            return False
