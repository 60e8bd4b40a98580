"""Where storage is: what a configuration may say."""

from __future__ import annotations

import pytest

from shared.blob import BlobConfig
from shared.errors import ConfigError

URL = "https://acct.blob.core.windows.net"


@pytest.mark.parametrize("name", ["understudy", "abc", "a-b-1", "x" * 46])
def test_a_name_that_leaves_room_for_a_machines_id_is_taken(name: str) -> None:
    config = BlobConfig(url=URL, container=name)
    assert len(f"{config.container}-{'0' * 16}") <= 63


@pytest.mark.parametrize(
    "name", ["", "ab", "x" * 47, "Upper", "a--b", "-a1", "a1-", "a_b", "a/b", "$root", "abc\n"]
)
def test_a_name_that_azure_or_a_machines_container_cannot_have_is_refused_at_once(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used") as refused:
        BlobConfig(url=URL, container=name)
    assert "3 to 46 characters" in refused.value.cause
