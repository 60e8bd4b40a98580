"""A machine whose log lies in real blob storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.blob import BlobStore
from tests.machine_log import ModelMachine


@pytest.fixture
async def model(store: BlobStore, tmp_path: Path) -> ModelMachine:
    """It has no epoch yet."""
    return await ModelMachine.create(store, tmp_path)
