"""Two config servers on one PostgreSQL, in this process."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from config_server.store.config import DatabaseConfig
from shared.control.rest import RestClient
from tests.config_parts import ConfigServer, config_for, running
from tests.replicas import PARTS


class Pair(NamedTuple):
    a: ConfigServer
    b: ConfigServer
    at_a: RestClient
    at_b: RestClient


@contextlib.asynccontextmanager
async def running_pair(folder: Path, database: DatabaseConfig) -> AsyncIterator[Pair]:
    first = config_for(folder / "a", database=database, name="cs-a")
    second = config_for(folder / "b", database=database, name="cs-b")
    async with running(first) as a:
        second.data_dir.mkdir(parents=True)
        for name in PARTS:
            shutil.copy2(first.data_dir / name, second.data_dir / name)
        async with running(second) as b, a.operator() as at_a, b.operator() as at_b:
            yield Pair(a, b, at_a, at_b)
