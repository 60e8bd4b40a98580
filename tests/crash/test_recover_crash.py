"""`understudy server recover` that is killed: the same command again ends with what one undisturbed run makes."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import re
import shutil
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from config_server.config import ConfigServerConfig
from config_server.recovery import generation
from config_server.setup.recovering import find
from config_server.store.files import DATABASE_FILE
from shared import api
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.blob import BlobConfig, BlobStore
from shared.daemon.service import load_config
from shared.errors import ControlStateMissingError
from shared.keys.vault import FileVault
from tests.config_parts import config_for, running, until
from tests.crash.recover_child import run
from tests.marks import some
from tests.setups import places, storage, tree

_POINTS: Final = ("restore.part", "setup.step")
"""Of the data folder, and of all else that is made on the host; each is reached several times."""
_EACH: Final = [*(f"restore.part:{n}" for n in range(1, 11)), *(f"setup.step:{n}" for n in range(1, 21))]
"""In a run on a host that has nothing yet."""
_MOST: Final = 60
_LEFT: Final = re.compile(r"config-server/(replaced|since)-")
"""What was there before: of a run that was killed, here. Nobody reads it, and `recover` says where it is."""
_OF_A_RUN: Final = re.compile(r"\b(?:[0-9]{19}|[0-9a-f]{16}|[0-9a-f]{32})\b")
"""In the database: when it was, and what was drawn."""
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.crash.recover_child", "azure.storage.blob.aio", "aiohttp"])


class Host:
    """One that shall become the config server; `name` tells it from others."""

    def __init__(self, folder: Path, name: str, blob: BlobConfig, key: Path) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as found:
            self._port = int(found.getsockname()[1])
        self._words = ["--yes", "--recovery-key", str(key), "--listen", "127.0.0.1", *storage(blob)]
        self._words += ["--port", str(self._port), *places(self.folder)]

    async def recover(self, crash_at: str = "") -> bool:
        """Whether it was killed; else it is done."""
        told = self.folder / "told"
        process = _processes.Process(target=run, args=(self._words, crash_at, told))
        process.start()
        await asyncio.to_thread(process.join, 90)
        exit_code = process.exitcode
        process.close()
        assert exit_code in (0, -signal.SIGKILL), told.read_text()
        return exit_code != 0

    @property
    def config(self) -> ConfigServerConfig:
        return load_config(self.folder / "etc/config-server.toml", ConfigServerConfig)

    def has(self) -> dict[str, tuple[str, str]]:
        """All that a run makes: modes, and content but for what each run says of itself."""
        found = {}
        for path, (mode, data) in tree(self.folder / "etc", self.folder / "state").items():
            if not _LEFT.search(path):
                text = self._database(path) if path.endswith(DATABASE_FILE) else data.decode()
                text = text.replace(str(self.folder), "HERE").replace(str(self._port), "PORT")
                found[path.removeprefix(str(self.folder))] = mode, text
        return found

    @staticmethod
    def _database(path: str) -> str:
        with closing(sqlite3.connect(path)) as db:
            return _OF_A_RUN.sub("…", "\n".join(db.iterdump()))


@pytest.fixture
async def key(blob_config: BlobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recovery key of a config server that is gone: all that is left, beside what it kept in storage."""
    monkeypatch.setattr("config_server.background.KEEP_S", 0.1)
    monkeypatch.setattr("config_server.recovery.keeping.PAUSE_S", 0.1)
    site = tmp_path / "gone"
    site.mkdir()
    vault = FileVault.create(site / "vault.json")
    key = tmp_path / "recovery.key"
    shutil.copy(vault.path, key)

    async def is_kept() -> bool:
        try:
            return (await find(blob_config, FileVault(key), None)).content.machines == ["web1"]
        except ControlStateMissingError:
            return False

    config = config_for(site, blob=blob_config, vault_file=vault.path, hosts=["127.0.0.1"])
    async with running(config) as server, server.operator() as operator:
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
        await until(is_kept)
    shutil.rmtree(site)
    return key


@pytest.fixture
def hosts(tmp_path: Path, blob_config: BlobConfig, key: Path) -> Iterator[Host]:
    return (Host(tmp_path, f"host{n}", blob_config, key) for n in itertools.count(1))


@pytest.mark.parametrize("crash_at", some(_EACH, short=["restore.part:9"]))
async def test_killed_once_the_next_run_makes_what_an_undisturbed_one_does(
    hosts: Iterator[Host], crash_at: str
) -> None:
    whole, cut = next(hosts), next(hosts)
    assert not await whole.recover()
    assert await cut.recover(crash_at)
    assert not await cut.recover()
    assert cut.has() == whole.has()


@pytest.mark.parametrize("point", _POINTS)
async def test_killed_at_each_step_in_turn_it_begins_as_the_config_server_that_was(
    hosts: Iterator[Host], store: BlobStore, point: str
) -> None:
    """Each run goes one step further than the one before, over what that left."""
    whole, cut = next(hosts), next(hosts)
    assert not await whole.recover()
    steps = 0
    while await cut.recover(f"{point}:{steps + 1}"):
        steps += 1
        assert steps < _MOST
    assert steps >= 10, "points were named on the way"
    assert cut.has() == whole.has()
    async with running(cut.config) as server, server.operator() as operator:
        machines = (await operator.call(api.MACHINES, Nothing())).machines
        assert [machine.name for machine in machines] == ["web1"]
        found = await generation.read(store)
        assert found is not None
        assert found[0].generation == 2, "it took over once, when it began"
