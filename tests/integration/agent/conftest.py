"""What several tests of the agent set up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.protected_machine import Machine, machine_with_two_disks


@pytest.fixture
def machine() -> Iterator[Machine]:
    with machine_with_two_disks() as made:
        yield made
