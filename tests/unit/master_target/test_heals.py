"""What a newer epoch heals, and what it does not."""

from __future__ import annotations

import pytest

from master_target.machine import _heals
from shared.errors import NoThreadError, SegmentAlteredError, WrongKeyError
from tests.no_threads import SAID


@pytest.mark.parametrize("exc", [*SAID, NoThreadError("no room"), WrongKeyError("no key")], ids=repr)
def test_what_says_nothing_of_log_and_disks_leaves_no_rest_of_an_epoch_out(exc: Exception) -> None:
    assert not _heals(exc)


@pytest.mark.parametrize("exc", [SegmentAlteredError("altered"), ZeroDivisionError()], ids=repr)
def test_what_log_or_disks_hold_and_what_nobody_expected_does(exc: Exception) -> None:
    assert _heals(exc)
