"""What strangers can cause any number of, in the log."""

from __future__ import annotations

from structlog.testing import capture_logs

from shared.serving import refusals
from shared.serving.refusals import Refusals


def test_of_one_address_the_first_is_logged_and_of_thousands_a_few_hundred() -> None:
    noted = Refusals()
    with capture_logs() as lines:
        for _ in range(10):
            noted.note("192.0.2.1", "refused")
        for number in range(5000):
            noted.note(f"stranger {number}", "refused")
    assert len(lines) == len(noted._noted) == refusals._ADDRESSES + 1
