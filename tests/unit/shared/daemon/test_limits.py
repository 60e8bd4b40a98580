"""What fits into storage."""

from __future__ import annotations

import pytest

from shared.daemon.limits import PAGE_BLOB_MAX_B, SEED_DISK_MAX_B, check_page_blob_target
from shared.errors import DiskTooLargeError


def test_the_largest_disk_of_a_page_blob_leaves_room_for_the_footer() -> None:
    check_page_blob_target("sda", SEED_DISK_MAX_B)
    check_page_blob_target("sda", 512)
    for disk_b in (SEED_DISK_MAX_B + 512, PAGE_BLOB_MAX_B, 9 << 40):
        with pytest.raises(DiskTooLargeError, match="sda") as caught:
            check_page_blob_target("sda", disk_b)
        assert "8 TiB" in caught.value.cause
        assert "image" in caught.value.action
