"""A connection to PostgreSQL that does not wait for ever.

A server that stands still (its disk hangs, its host thrashes, it was stopped) keeps its connections, and its host's kernel acknowledges
what is sent to it: no time-out of TCP ends that, and its own time-outs stand still with it. So each wait for an answer ends here, later
than the server's own time-outs would: what it says itself says more.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, Final, TypeVar

import psycopg

_T = TypeVar("_T")

STILL_S: Final = 8.0
"""So long an answer may take. (Longer than a statement may: postgresql.py.)"""


class StillError(psycopg.OperationalError):
    """It did not answer. The connection is closed: what was asked may be carried out yet."""


class Impatient(psycopg.Connection[Any]):
    more_s = 0.0
    """What it is given beyond that: while statements are run that may take longer."""

    def wait(self, gen: Generator[Any, Any, _T], *args: Any, **more: Any) -> _T:
        try:
            return super().wait(_until(gen, STILL_S + self.more_s), *args, **more)
        except StillError:
            self.close()
            raise


def _until(gen: Generator[Any, Any, _T], lasts_s: float) -> Generator[Any, Any, _T]:
    """As `gen`, which is asked every tenth of a second whether there is something, but not for longer."""
    deadline_s = time.monotonic() + lasts_s
    try:
        waits_for = next(gen)
        while True:
            ready = yield waits_for
            if not ready and time.monotonic() > deadline_s:
                gen.close()
                raise StillError(f"it has not answered for {lasts_s:g} s: it stands still, or is not reached")
            waits_for = gen.send(ready)
    except StopIteration as ended:
        found: _T = ended.value
        return found
