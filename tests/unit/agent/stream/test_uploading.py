"""Which captured time is in storage, as the agent knows it."""

from __future__ import annotations

import pytest

from agent.stream.uploading import LIMIT, Uploading


def test_the_newest_uploaded_batch_counts() -> None:
    uploading = Uploading()
    for number in range(1, 6):
        uploading.add(number, 100 * number)
    uploading.uploaded(3)
    assert uploading.captured_ns == 300
    uploading.drop_behind(4)
    uploading.uploaded(9)
    assert uploading.captured_ns == 400


@pytest.mark.parametrize("uploaded", [1, 500, 9_999, 50_000])
def test_a_long_outage_costs_no_more_memory_and_claims_no_later_time(uploaded: int) -> None:
    uploading = Uploading()
    for number in range(1, 50_001):
        uploading.add(number, number)
        assert len(uploading) <= LIMIT
    uploading.uploaded(uploaded)
    assert uploaded - 16 <= uploading.captured_ns <= uploaded
    uploading.uploaded(50_000)
    assert uploading.captured_ns == 50_000
