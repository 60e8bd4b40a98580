"""Disks that are left out, or went away, looked for while the agent runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.capture import bindings
from agent.capture.binding import Action
from agent.capture.bindings import Wanted
from agent.capture.look import LeftOut, look_at, why_not
from shared import logging
from shared.errors import StateFileError, UnderstudyError

_log = logging.get()

RETRY_S: Final = 10.0
"""How often disks that are left out are looked for."""


class Watch:
    """Looks for the disks that are left out (or went away), in a thread, every `RETRY_S`."""

    def __init__(
        self, wanted: Sequence[Wanted], state_dir: Path, pin_dir: Path, left_out: Sequence[LeftOut]
    ) -> None:
        self._wanted = wanted
        self._where = state_dir, pin_dir
        self.left_out: Final = tuple(left_out)
        self._hopeless = {left.id for left in left_out if not left.retry}
        self._next = time.monotonic() + RETRY_S
        self._thread: threading.Thread | None = None
        self._found = False

    def is_one_back(self, *, looking: bool = False) -> bool:
        """Whether a disk can be captured that is not. Never blocks: begins a look if one is due, says what the last one found.
        `looking`: there is something to look for beside what was left out."""
        if self._thread is not None and self._thread.is_alive():
            return False
        if not self._found and (self.left_out or looking) and time.monotonic() >= self._next:
            self._next = time.monotonic() + RETRY_S
            self._thread = threading.Thread(target=self._search, name="disk-watch", daemon=True)
            self._thread.start()
        return self._found

    def _search(self) -> None:
        state_dir, pin_dir = self._where
        try:
            remembered = bindings.read(state_dir) or []
            if any(isinstance(left.error, StateFileError) for left in self.left_out):
                bindings.write(state_dir, remembered)  # whether it can be written by now
            look = look_at(self._wanted, remembered, pin_dir)
        except UnderstudyError as exc:
            _log.warning("disks that are left out could not be looked for", **exc.as_dict())
            return
        self._found = any(
            verdict.action is Action.ATTACH
            and verdict.known.id not in self._hopeless
            and why_not(verdict, look) is None
            for verdict in look.verdicts
        )
