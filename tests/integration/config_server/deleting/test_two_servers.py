"""A deletion, and its job, of two config servers on one PostgreSQL: what is said at one the other carries out, or takes back; once."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection

from config_server.config import ConfigServerConfig
from config_server.store import deletions
from config_server.store.config import DatabaseConfig
from config_server.store.postgresql import Postgresql
from shared import api
from shared.api.jobs import JobState
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.blob import BlobConfig
from shared.control.rest import RestClient
from shared.machine.storage import MachineStorage
from tests.act_jobs import becomes, cancel
from tests.config_parts import ConfigServer, config_for, running
from tests.deletions import audit, delete, deletion_of, in_storage, is_gone, shown
from tests.replicas import PARTS

Configs = tuple[ConfigServerConfig, ConfigServerConfig]


@pytest.fixture
def engine(database_config: DatabaseConfig) -> Iterator[Postgresql]:
    opened = Postgresql(database_config).open()
    yield opened
    opened.close()


@pytest.fixture
def configs(tmp_path: Path, database_config: DatabaseConfig, blob_config: BlobConfig) -> Configs:
    first, second = (
        config_for(tmp_path / name, database=database_config, blob=blob_config, name=name)
        for name in ("cs-a", "cs-b")
    )
    return first, second


async def begin(server: ConfigServer, second: ConfigServerConfig) -> None:
    """The other one's folder, and a machine whose agent never comes."""
    second.data_dir.mkdir(parents=True)
    for name in PARTS:
        shutil.copy2(server.config.data_dir / name, second.data_dir / name)
    async with server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")


@pytest.fixture
async def two(
    configs: Configs, machine_storage: MachineStorage
) -> AsyncIterator[tuple[RestClient, RestClient]]:
    """An operator at each."""
    await machine_storage.find_or_create("web1")
    async with running(configs[0]) as a:
        await begin(a, configs[1])
        async with running(configs[1]) as b, a.operator() as at_a, b.operator() as at_b:
            yield at_a, at_b


def passes(engine: Postgresql) -> None:
    """The delay."""

    def work(db: Connection) -> None:
        found = deletion_of(db)
        deletions.put(db, "web1", replace(found, passed_ns=found.after_ns))

    engine.transact(work, vital=False)


async def test_whoever_carries_it_out_it_is_done_once_and_both_say_so(
    two: tuple[RestClient, RestClient], engine: Postgresql, machine_storage: MachineStorage
) -> None:
    said = await delete(two[0])
    assert (await delete(two[1])).job == said.job, "it sees to the later one"
    await becomes(two[1], said.job, JobState.WAITING)
    passes(engine)
    for operator in two:
        await becomes(operator, said.job, JobState.DONE)
        assert await is_gone(operator)
    assert await in_storage(machine_storage) == (set(), set())
    assert (await audit(two[1])).count("machine.deleted") == 1


@pytest.mark.parametrize("by", ["job", "machine"])
async def test_said_at_one_it_is_taken_back_at_the_other_by_either_word(
    two: tuple[RestClient, RestClient], machine_storage: MachineStorage, by: str
) -> None:
    said = await delete(two[0])
    if by == "job":
        await cancel(two[1], said.job)
    else:
        assert (await two[1].call(api.KEEP, Nothing(), machine="web1")).taken_back
    for operator in two:
        await becomes(operator, said.job, JobState.CANCELLED)
        assert (await shown(operator)).deletion is None
    assert len((await in_storage(machine_storage))[0]) == 1


async def test_when_the_one_that_was_asked_has_ended_the_other_carries_it_out(
    configs: Configs, engine: Postgresql, machine_storage: MachineStorage
) -> None:
    await machine_storage.find_or_create("web1")
    async with running(configs[0]) as a, a.operator() as operator:
        await begin(a, configs[1])
        said = await delete(operator)
    async with running(configs[1]) as b, b.operator() as operator:
        passes(engine)
        await becomes(operator, said.job, JobState.DONE)
    assert await in_storage(machine_storage) == (set(), set())
