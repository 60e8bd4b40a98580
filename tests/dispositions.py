"""What a child inherits of signals, set by the test that needs it and not by whoever started the tests (nohup, a shell's `&`)."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def inherited(disposition: signal.Handlers, *numbers: signal.Signals) -> Iterator[None]:
    """Children that are started inside have `disposition` for these signals."""
    before = {number: signal.signal(number, disposition) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
