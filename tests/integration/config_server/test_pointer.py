"""The config server is elsewhere, and its daemons follow: whoever has storage finds out there, and keeps it; and nobody is led astray."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from config_server.config import ConfigServerConfig
from config_server.data_folder import backup, restoring
from config_server.identity.ca import CertificateAuthority
from shared import api
from shared.api.route import Nothing
from shared.blob import BlobConfig, BlobStore
from shared.control import control_client
from shared.control.control_client import ControlClient
from shared.keys.vault import FileVault
from shared.machine.storage import MachineStorage
from shared.status import AgentReport, ProcessServerReport, Report
from shared.trust import pointer
from shared.trust.pointer import Pointer, Whereabouts, encoded, opened, statement
from shared.trust.tls import TlsFiles
from tests.config_parts import ConfigServer, config_for, running, until


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture
def config(blob_config: BlobConfig, tmp_path: Path) -> ConfigServerConfig:
    vault = FileVault.create(tmp_path / "vault.json").path
    return config_for(tmp_path, blob=blob_config, vault_file=vault, hosts=["127.0.0.1"], port=free_port())


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("config_server.background.FORCE_S", 0.05)
    monkeypatch.setattr(control_client, "_SILENT_S", 0.3)
    monkeypatch.setattr(control_client, "_SUPERSEDED_S", 0.1)
    monkeypatch.setattr(control_client, "_LOOK_S", 0.2)


def elsewhere(config: ConfigServerConfig, folder: Path) -> ConfigServerConfig:
    """Its backup, put back on another host."""
    backup.backup(config, folder.with_suffix(".tar"))
    other = msgspec.structs.replace(config, data_dir=folder, port=free_port())
    restoring.restore(other, folder.with_suffix(".tar"))
    return other


@contextlib.asynccontextmanager
async def reporting(
    where: Whereabouts,
    files: TlsFiles,
    find: Callable[[], Awaitable[bytes]] | None,
    report: Report | None = None,
) -> AsyncIterator[None]:
    """A process server's line, by its configuration; or that of whoever reports otherwise."""
    client = ControlClient(where.url, files, where=where, find=find)
    stop = asyncio.Event()
    said = report or ProcessServerReport(state="running")
    task = asyncio.create_task(client.serve(lambda: said, _nothing, stop, interval_s=0.05))
    try:
        yield
    finally:
        stop.set()
        await task
        await client.close()


async def _nothing(_command: object) -> dict[str, object]:
    return {}


async def hears(server: ConfigServer, name: str = "ps1") -> bool:
    async with server.operator() as operator:
        daemons = (await operator.call(api.DAEMONS, Nothing())).daemons
    return any(daemon.name == name and daemon.seen_s is not None and daemon.seen_s < 5 for daemon in daemons)


def where_of(config: ConfigServerConfig, files: TlsFiles) -> Whereabouts:
    made = Whereabouts(f"https://127.0.0.1:{config.port}", files.cert, files.ca)
    made.load()
    return made


@pytest.mark.parametrize("old", ["gone", "running"])
async def test_a_daemon_goes_to_the_one_that_is_in_force_by_itself_and_begins_there_the_next_time(
    config: ConfigServerConfig, store: BlobStore, tmp_path: Path, old: str
) -> None:
    storage = MachineStorage(store)
    async with contextlib.AsyncExitStack() as stack:
        async with running(config) as first:
            files = await first.enrolled("process-server", "ps1", tmp_path / "ps1")
            other = elsewhere(config, tmp_path / "second")
        if old == "running":
            await stack.enter_async_context(running(config))
        where = where_of(config, files)
        async with running(other) as second, reporting(where, files, storage.pointer):
            await until(lambda: hears(second))
            assert where.url == f"https://127.0.0.1:{other.port}"
    assert where_of(config, files).url == f"https://127.0.0.1:{other.port}"
    said_since = msgspec.structs.replace(config, port=1)
    assert where_of(said_since, files).url == "https://127.0.0.1:1", "an administrator counts more"


async def test_a_server_whose_names_change_says_so_and_one_that_is_superseded_says_nothing(
    config: ConfigServerConfig, store: BlobStore, tmp_path: Path
) -> None:
    async def urls() -> tuple[int, tuple[str, ...]] | None:
        found = opened(await MachineStorage(store).pointer(), config.data_dir / "ca.pem")
        return None if found is None else (found.generation, found.urls)

    async def are(generation: int, *names: str) -> bool:
        return await urls() == (generation, tuple(f"https://{name}" for name in names))

    config.hosts = []
    async with running(config):
        pass
    assert await urls() is None
    config.hosts = ["127.0.0.1", "config.example.com"]
    async with running(config):
        at = f":{config.port}"
        await until(lambda: are(1, f"127.0.0.1{at}", f"config.example.com{at}"))
        other = elsewhere(config, tmp_path / "second")
    other.hosts = ["::1"]
    async with running(other):
        await until(lambda: are(2, f"[::1]:{other.port}"))
        async with running(config):
            await asyncio.sleep(0)
    assert await are(2, f"[::1]:{other.port}")


class Site:
    """A CA, and a daemon's files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.ca = CertificateAuthority.open(folder)

    def signed(self, generation: int, *urls: str, made_ns: int = 1) -> bytes:
        said = Pointer(generation=generation, urls=urls, made_ns=made_ns)
        return encoded(said, self.ca.sign(statement(said)))

    def where(self, configured: str = "https://old.example.com") -> Whereabouts:
        made = Whereabouts(configured, self.folder / "cert.pem", self.folder / "ca.pem")
        made.load()
        return made


async def test_only_what_the_ca_signed_counts_and_only_what_is_later(tmp_path: Path) -> None:
    site, other = Site(tmp_path / "site"), Site(tmp_path / "other")
    news: list[bytes] = []
    folder = tmp_path / "site"
    where = Whereabouts("https://old.example.com/", folder / "cert.pem", folder / "ca.pem", news.append)
    assert await where.take(site.signed(1, "https://old.example.com"))
    assert news == [], "it is where it was"
    good = site.signed(3, "https://new.example.com", "https://192.0.2.1")
    altered = good.replace(b"new", b"bad")
    no_url = site.signed(4, "http://plain.example.com")
    for bad in (b"", b"{}", altered, other.signed(3, "https://bad.example.com"), no_url, b"x" * 10_000):
        assert not await where.take(bad)
    assert where.url == "https://old.example.com"
    assert await where.take(good)
    assert (where.url, where.signed) == ("https://new.example.com", good)
    assert not await where.take(site.signed(2, "https://bad.example.com", made_ns=time.time_ns()))
    assert not await where.take(good)
    assert await where.take(site.signed(3, "https://newer.example.com", made_ns=2))
    tried = []
    for _ in range(3):
        where.next()
        tried.append(where.url)
    old, newer = "https://old.example.com", "https://newer.example.com"
    assert tried == [old, newer, old], "also what the configuration names"
    assert len(news) == 2


async def test_a_late_one_leads_nobody_away_from_a_server_that_is_in_force_with_a_higher_number(
    tmp_path: Path,
) -> None:
    """From a process server that has not heard of the newer one, say."""
    site = Site(tmp_path / "site")
    where = site.where("https://new.example.com")
    where.hear(2)
    where.hear(0)  # it does not know just now
    assert not await where.take(site.signed(1, "https://gone.example.com", made_ns=9))
    assert where.url == "https://new.example.com"
    assert await where.take(site.signed(2, "https://also.example.com"))
    again = site.where("https://new.example.com")
    assert not await again.take(site.signed(1, "https://gone.example.com", made_ns=9)), "nor behind a restart"


async def test_what_an_administrator_has_said_since_is_not_undone_by_what_was_known_before(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path / "site")
    wrong = site.signed(3, "https://wrong.example.com", made_ns=5)
    assert await site.where().take(wrong)
    mended = site.where("https://right.example.com")
    for known in (wrong, site.signed(3, "https://wrong.example.com", made_ns=4)):
        assert not await mended.take(known)
    assert mended.url == "https://right.example.com"
    once_more = site.where("https://right.example.com")
    assert not await once_more.take(wrong), "also behind a second start"
    assert await once_more.take(site.signed(3, "https://right.example.com", made_ns=6))


async def test_a_daemon_goes_to_the_one_that_is_in_force_though_its_own_answers_and_does_not_know(
    config: ConfigServerConfig, store: BlobStore, tmp_path: Path
) -> None:
    storage = MachineStorage(store)
    async with running(config) as first:
        files = await first.enrolled("process-server", "ps1", tmp_path / "ps1")
        other = elsewhere(config, tmp_path / "second")
    cut_off = msgspec.structs.replace(config, blob=None)  # it reaches no storage, so it goes on
    async with running(other) as second, running(cut_off):
        where = where_of(config, files)
        async with reporting(where, files, storage.pointer):
            await until(lambda: hears(second))
        assert where.signed, "and it has something to tell agents"


async def test_an_agent_without_a_session_is_told_by_the_server_that_was_superseded_itself(
    config: ConfigServerConfig, tmp_path: Path
) -> None:
    """It protects nothing, or its process server is away; and it does not reach storage."""
    async with running(config) as first:
        files = await first.enrolled("agent", "web1", tmp_path / "web1")
        other = elsewhere(config, tmp_path / "second")
    where = where_of(config, files)
    said = AgentReport(machine="web1", state="unprotected")
    async with running(other) as second, running(config), reporting(where, files, None, said):
        await until(lambda: hears(second, "web1"))
    assert where_of(config, files).url == f"https://127.0.0.1:{other.port}", "and it has kept that"


async def test_what_was_kept_is_of_one_ca_and_a_file_that_is_none_is_as_if_it_were_not_there(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path / "site")
    signed = site.signed(3, "https://new.example.com", "https://192.0.2.1")
    assert await site.where().take(signed)
    kept = site.where()
    assert kept.url == "https://new.example.com"
    kept.next()
    assert kept.url == "https://192.0.2.1"
    file = tmp_path / "site" / pointer.FILE
    before = file.read_bytes()
    file.write_bytes(b"{")
    assert site.where().url == "https://old.example.com"
    file.write_bytes(before)
    (tmp_path / "site/ca.pem").write_text(Site(tmp_path / "other").ca.pem)
    assert site.where().url == "https://old.example.com"
