"""What anybody who reaches the port can cause any number of, in the log: the first of each key (who, and for what), and later how many
followed."""

from __future__ import annotations

import time
from typing import Final

from shared.daemon import logging

_log = logging.get()
_QUIET_S: Final = 30.0
"""Refusals under one key are logged at most this often, with how many there were."""


_ADDRESSES: Final = 256
"""At a time; those beyond are counted as one."""


class Refusals:
    """Logs of each key the first of many, then how many there were."""

    def __init__(self) -> None:
        self._noted: dict[str, tuple[float, int]] = {}

    def note(self, key: str, event: str, /, **fields: str) -> None:
        now = time.monotonic()
        if key not in self._noted and len(self._noted) >= _ADDRESSES:
            for other in [other for other, (then, _) in self._noted.items() if now - then >= _QUIET_S]:
                del self._noted[other]
            if len(self._noted) >= _ADDRESSES:
                key = ""
        at, more = self._noted.get(key, (-_QUIET_S, 0))
        if now - at < _QUIET_S:
            self._noted[key] = at, more + 1
            return
        self._noted[key] = now, 0
        _log.warning(event, more_before=more, **fields)
