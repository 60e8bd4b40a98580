"""What only image files have: their state in a document beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from master_target.targets.image_file import ImageTarget
from shared.errors import SeedDiskError

DISK_B = 1024 * 1024


@pytest.mark.parametrize("data", [b"", b'{"cursor":"\xff"}', b'{"cursor":' + b"[" * 100_000])
async def test_a_state_that_cannot_be_read_is_named(tmp_path: Path, data: bytes) -> None:
    await (await ImageTarget.open(tmp_path, "web1", "sda", DISK_B)).close()
    (tmp_path / "web1" / "sda.state.json").write_bytes(data)
    with pytest.raises(SeedDiskError, match=r"sda\.state\.json"):
        await ImageTarget.open(tmp_path, "web1", "sda", DISK_B)
