"""Keys from a real config server: kept over restarts without it, and every trouble of the cache named and survived."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from pathlib import Path
from typing import Any

import pytest

from config_server.config import ConfigServerConfig
from shared import api
from shared.api.certificates import RevokeRequest
from shared.api.route import Page
from shared.control.remote_vault import RemoteVault, warnings
from shared.daemon.threads import Threads
from shared.errors import KeyCacheError, KeyUnavailableError, WrongKeyError
from shared.keys.key_cache import CachedKey, KeyCache
from shared.keys.vault import FileVault, WrappedKey
from shared.trust.tls import TlsFiles, read_chain
from tests.config_parts import ConfigServer, config_for, running
from tests.no_threads import no_room
from tests.process_server_site import free_port
from tests.small_fs import fill, small_fs


class Daemon:
    """An enrolled process server's files, and a config server that can go and come back."""

    def __init__(self, folder: Path, config: ConfigServerConfig, vault: FileVault, files: TlsFiles) -> None:
        self.folder, self.config, self.vault, self.files = folder, config, vault, files
        self.cache = KeyCache(folder / "state" / ".keys", files)

    def remote(self) -> RemoteVault:
        return RemoteVault(f"https://127.0.0.1:{self.config.port}", self.files, self.cache)

    def path(self, one: WrappedKey, machine: str = "web1") -> Path:
        return self.cache.path(machine, one.key_id, one.wrapped)

    async def wrapped(self, machine: str = "web1") -> tuple[WrappedKey, bytes]:
        made = await self.vault.new_key(machine)
        return WrappedKey(made.key_id, made.wrapped), made.key


@pytest.fixture
async def daemon(tmp_path: Path) -> Daemon:
    vault = FileVault.create(tmp_path / "vault.json")
    config = config_for(tmp_path, vault_file=vault.path, port=free_port())
    async with running(config) as server:
        files = await server.enrolled("process-server", "ps1", tmp_path / "tls")
    return Daemon(tmp_path, config, vault, files)


async def handed_out(server: ConfigServer) -> int:
    async with server.operator() as operator:
        entries = (await operator.call(api.AUDIT, Page())).entries
    return sum(entry.action.startswith("key.") for entry in entries)


async def test_keys_outlive_the_config_server_and_restarts(daemon: Daemon) -> None:
    one, key = await daemon.wrapped()
    async with running(daemon.config), daemon.remote() as vault:
        assert await vault.unwrap(one, "web1") == key
        made = await vault.new_key("web2")
    for _ in range(2):
        async with daemon.remote() as vault:
            assert await vault.unwrap(one, "web1") == key
            assert await vault.unwrap(WrappedKey(made.key_id, made.wrapped), "web2") == made.key
            assert vault.problem is None
    assert await daemon.vault.unwrap(WrappedKey(made.key_id, made.wrapped), "web2") == made.key


async def test_the_keys_of_a_deleted_machine_go_and_are_got_anew_if_they_are_asked_for(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.control.remote_vault._RETRY_S", 0.05)
    one, key = await daemon.wrapped()
    other, _ = await daemon.wrapped("web2")
    async with running(daemon.config) as server, daemon.remote() as vault:
        await vault.unwrap(one, "web1")
        await vault.unwrap(other, "web2")
        await vault.forgotten("web1")
        assert list(daemon.cache.folder.iterdir()) == [daemon.path(other, "web2")]
        assert await vault.unwrap(one, "web1") == key
        assert daemon.path(one).exists()
        assert await handed_out(server) == 3
        with monkeypatch.context() as patch:
            patch.setattr("shared.host.durable.remove_file", _failing)
            with pytest.raises(KeyCacheError, match="cannot be removed") as caught:
                await vault.forgotten("web1")
            assert caught.value.cause.startswith("Input/output error")
            assert vault.problem is not None
        async with asyncio.timeout(10):
            while vault.problem is not None:  # noqa: ASYNC110 - a thread decides
                await asyncio.sleep(0.01)
        assert list(daemon.cache.folder.iterdir()) == [daemon.path(other, "web2")]


async def test_a_key_that_is_found_on_the_disk_while_it_is_removed_there_is_stored_again(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, key = await daemon.wrapped()
    is_read, has_gone = threading.Event(), threading.Event()
    real_find, real_remove = KeyCache.find, KeyCache.remove

    def find(cache: KeyCache, *id_: Any) -> CachedKey | None:
        found = real_find(cache, *id_)
        is_read.set()
        has_gone.wait(20)
        return found

    def remove(cache: KeyCache, *id_: Any) -> None:
        is_read.wait(20)
        real_remove(cache, *id_)

    async with running(daemon.config), daemon.remote() as vault:
        await vault.unwrap(one, "web1")
        monkeypatch.setattr(KeyCache, "find", find)
        monkeypatch.setattr(KeyCache, "remove", remove)
        going = asyncio.create_task(vault.forgotten("web1"))
        await asyncio.sleep(0)
        wanted = asyncio.create_task(vault.unwrap(one, "web1"))
        await going
        assert not daemon.path(one).exists()
        has_gone.set()
        assert await wanted == key
        assert await vault._writer.written()
        assert daemon.path(one).exists()


def _failing(path: Path) -> None:
    raise OSError(errno.EIO, "Input/output error", str(path))


async def test_keys_that_no_thread_could_be_had_to_read_are_read_when_there_is_one(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.control.remote_vault._RETRY_S", 0.05)
    one, key = await daemon.wrapped()
    async with running(daemon.config), daemon.remote() as vault:
        await vault.unwrap(one, "web1")
    asyncio.get_running_loop().set_default_executor(Threads())  # without any that is idle
    async with contextlib.AsyncExitStack() as stack:
        with no_room():
            vault = await stack.enter_async_context(daemon.remote())
            assert vault.problem is not None
            assert "new thread" in vault.problem.cause
        async with asyncio.timeout(10):
            while vault.problem is not None:  # noqa: ASYNC110 - a thread decides
                await asyncio.sleep(0.01)
        assert await vault.unwrap(one, "web1") == key


async def test_a_key_is_asked_for_once_by_however_many_want_it(daemon: Daemon) -> None:
    one, key = await daemon.wrapped()
    async with running(daemon.config) as server, daemon.remote() as vault:
        assert await asyncio.gather(*(vault.unwrap(one, "web1") for _ in range(20))) == [key] * 20
        assert await handed_out(server) == 1


async def test_who_waited_for_a_key_and_was_cancelled_keeps_it_from_nobody(daemon: Daemon) -> None:
    keys = [await daemon.wrapped(f"web{n}") for n in range(8)]
    async with running(daemon.config), daemon.remote() as vault:
        waiting = [asyncio.create_task(vault.unwrap(k, f"web{n}")) for n, (k, _) in enumerate(keys)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting[::2]:
            task.cancel()
        await asyncio.wait(waiting)
        for n, (wrapped, key) in enumerate(keys):
            assert await vault.unwrap(wrapped, f"web{n}") == key
    async with daemon.remote() as vault:
        for n, (wrapped, key) in enumerate(keys):
            assert await vault.unwrap(wrapped, f"web{n}") == key


async def test_without_config_server_an_unknown_key_is_told_and_had_when_it_is_back(daemon: Daemon) -> None:
    one, key = await daemon.wrapped()
    async with daemon.remote() as vault:
        with pytest.raises(KeyUnavailableError, match="web1") as caught:
            await vault.unwrap(one, "web1")
        assert "connection refused" in caught.value.cause
        assert "goes on by itself" in caught.value.action
        with pytest.raises(KeyUnavailableError):
            await vault.new_key("web1")
        async with running(daemon.config):
            assert await vault.unwrap(one, "web1") == key


async def test_a_key_of_another_vault_is_no_matter_of_waiting(daemon: Daemon) -> None:
    made = await FileVault.create(daemon.folder / "other.json").new_key("web1")
    async with running(daemon.config), daemon.remote() as vault:
        with pytest.raises(WrongKeyError, match="web1"):
            await vault.unwrap(WrappedKey(made.key_id, made.wrapped), "web1")


async def test_a_revoked_daemon_keeps_what_it_had_and_gets_nothing_more(daemon: Daemon) -> None:
    one, key = await daemon.wrapped("web1")
    two, _ = await daemon.wrapped("web2")
    async with running(daemon.config) as server, daemon.remote() as vault:
        await vault.unwrap(one, "web1")
        async with server.operator() as operator:
            await operator.call(api.CERTIFICATE_REVOKE, RevokeRequest(certificate="process-server:ps1"))
        with pytest.raises(KeyUnavailableError, match="web2") as caught:
            await vault.unwrap(two, "web2")
        assert "revoked" in caught.value.cause
        assert "enrol it anew" in caught.value.action
        assert await vault.unwrap(one, "web1") == key


@pytest.mark.parametrize("damage", ["bytes", "cut", "folder"])
async def test_a_cache_that_cannot_be_read_is_told_and_fetched_again(daemon: Daemon, damage: str) -> None:
    one, key = await daemon.wrapped()
    async with running(daemon.config), daemon.remote() as vault:
        await vault.unwrap(one, "web1")
    path = daemon.path(one)
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:50] + b"\0\0\0\0" + data[54:])
    async with daemon.remote() as vault:
        (warning,) = warnings(vault)
        assert (warning.code, warning.severity) == (KeyCacheError.code, "warning")
        assert str(path) in warning.what
        with pytest.raises(KeyUnavailableError):
            await vault.unwrap(one, "web1")
        if damage == "folder":
            path.rmdir()
        async with running(daemon.config):
            assert await vault.unwrap(one, "web1") == key
        assert warnings(vault) == []
    async with daemon.remote() as vault:
        assert await vault.unwrap(one, "web1") == key


@pytest.mark.parametrize("how", ["one file", "all"])
async def test_what_could_not_be_read_is_neither_lost_to_new_keys_nor_forgotten(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("shared.control.remote_vault._RETRY_S", 0.05)
    one, key = await daemon.wrapped("web1")
    two, _ = await daemon.wrapped("web2")
    async with running(daemon.config), daemon.remote() as vault:
        await vault.unwrap(one, "web1")
    path = daemon.path(one) if how == "one file" else daemon.cache.folder
    away = daemon.folder / "away"
    path.rename(away)
    path.symlink_to(path)  # as unreadable as EIO makes it, for root, too
    async with daemon.remote() as vault:
        (warning,) = warnings(vault)
        assert warning.code == KeyCacheError.code
        async with running(daemon.config):
            await vault.unwrap(two, "web2")
        assert len(warnings(vault)) == 1
        path.unlink()
        away.rename(path)
        async with asyncio.timeout(10):
            while vault.problem is not None:  # noqa: ASYNC110 - it is looked at again by itself
                await asyncio.sleep(0.01)
        assert await vault.unwrap(one, "web1") == key
    async with daemon.remote() as vault:
        assert vault.problem is None
        assert await vault.unwrap(one, "web1") == key
        await vault.unwrap(two, "web2")


async def test_what_another_process_of_the_daemon_was_given_is_kept_and_found(daemon: Daemon) -> None:
    one, key = await daemon.wrapped("web1")
    two, other = await daemon.wrapped("web2")
    async with daemon.remote() as old, daemon.remote() as new:
        async with running(daemon.config):
            await new.unwrap(one, "web1")
            await old.unwrap(two, "web2")
        assert await old.unwrap(one, "web1") == key
        assert await new.unwrap(two, "web2") == other


async def test_a_full_disk_keeps_nobody_from_a_key(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.control.remote_vault._RETRY_S", 0.05)
    one, key = await daemon.wrapped()
    with small_fs(daemon.folder / "state") as state:
        ballast = fill(state)
        async with running(daemon.config), daemon.remote() as vault:
            assert await vault.unwrap(one, "web1") == key
            assert vault.problem is not None
            assert "No space left" in vault.problem.cause
            ballast.unlink()
            async with asyncio.timeout(10):
                while vault.problem is not None:  # noqa: ASYNC110 - it is tried again by itself
                    await asyncio.sleep(0.01)
        async with daemon.remote() as vault:
            assert await vault.unwrap(one, "web1") == key


async def test_a_key_whose_file_cannot_be_written_keeps_no_other_from_being_stored(daemon: Daemon) -> None:
    bad, _ = await daemon.wrapped()
    daemon.path(bad).mkdir(parents=True)
    made = [await daemon.wrapped() for _ in range(8)]
    async with running(daemon.config), daemon.remote() as vault:
        for one in (bad, *(one for one, _ in made)):
            await vault.unwrap(one, "web1")
        assert vault.problem is not None
        assert str(daemon.path(bad)) in vault.problem.what
    async with daemon.remote() as vault:
        assert [await vault.unwrap(one, "web1") for one, _ in made] == [key for _, key in made]


async def test_a_host_that_is_enrolled_anew_has_its_cache_sealed_anew(daemon: Daemon) -> None:
    one, key = await daemon.wrapped()
    async with running(daemon.config) as server, daemon.remote() as vault:
        await vault.unwrap(one, "web1")
        before = daemon.path(one).read_bytes()
        anew = await server.enrolled("process-server", "ps1", daemon.folder / "anew")
        for old, new in ((daemon.files.key, anew.key), (daemon.files.cert, anew.cert)):
            old.write_bytes(new.read_bytes())
        vault.renewed(read_chain(daemon.files))
        async with asyncio.timeout(10):
            while daemon.path(one).read_bytes() == before:  # noqa: ASYNC110 - another task's work
                await asyncio.sleep(0.01)
    async with daemon.remote() as vault:
        assert vault.problem is None
        assert await vault.unwrap(one, "web1") == key


async def test_killed_between_a_new_identity_and_its_sealing_costs_one_more_question(daemon: Daemon) -> None:
    one, key = await daemon.wrapped()
    async with running(daemon.config) as server:
        async with daemon.remote() as vault:
            await vault.unwrap(one, "web1")
        anew = await server.enrolled("process-server", "ps1", daemon.folder / "anew")
        for old, new in ((daemon.files.key, anew.key), (daemon.files.cert, anew.cert)):
            old.write_bytes(new.read_bytes())
        async with daemon.remote() as vault:
            assert vault.problem is not None
            assert "another private key" in vault.problem.cause
            assert await vault.unwrap(one, "web1") == key
            assert vault.problem is None
