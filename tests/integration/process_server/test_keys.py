"""Machines' keys on a process server: they wait for nobody else's, and outlive the config server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from master_target.config import MasterTargetConfig
from master_target.service import run as run_master_target
from process_server.spool.spool import LogSettings, SegmentLimits, Spool
from shared.blob import BlobConfig, BlobStore
from shared.errors import KeyUnavailableError, WrongKeyError
from shared.keys.key_cache import FOLDER
from shared.log.epochs import newest_epoch
from shared.log.reader import LogReader
from shared.machine.storage import MachineStorage
from shared.naming import is_name
from shared.recovery import point_store
from shared.trust import tls
from shared.wire.messages import Hello
from tests.azurite import in_one
from tests.config_parts import config_for, running
from tests.epoch_ids import id_in
from tests.gated_vault import GatedVault
from tests.logs import make_chain
from tests.process_server_site import Site, free_port
from tests.spools import DISKS, append_all, hello_again, vault_at
from tests.wire_parts import Agent, Chain, hello

SETTINGS = LogSettings(owner="ps1", limits=SegmentLimits(1 << 20, 3600.0), check_seconds=3600.0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - other tasks' state has no event
            await asyncio.sleep(0.01)


async def left_behind(folder: Path, storage: MachineStorage, machines: list[str]) -> None:
    """Each machine's spool as a kill leaves it: three batches in a file without a footer."""
    spool = Spool(folder, storage, vault_at(folder.parent), SETTINGS)
    await spool.start()
    for name in machines:
        log = await spool.open_machine(Hello(machine=name, epoch=0, reason="test", disks=DISKS))
        await log.begin(Hello(machine=name, epoch=0, reason="test", disks=DISKS))
        await append_all(log, make_chain(3))
    files = sorted(folder.rglob("*.seg"))  # noqa: ASYNC240
    kept = [path.read_bytes() for path in files]  # before the stop, which would close them
    await spool.close()
    for path, data in zip(files, kept, strict=True):
        path.write_bytes(data)


async def listed(storage: MachineStorage, machine: str) -> int:
    store = await storage.find(machine)
    entries = await LogReader(store, machine).entries(await id_in(store, 1))
    return entries[-1].last if entries else 0


async def test_recovery_waits_for_a_key_and_no_other_machine_waits_with_it(
    tmp_path: Path, machine_storage: MachineStorage
) -> None:
    silent, away = {f"s{n}" for n in range(10)}, {"a1"}  # more than there are threads to read with
    await left_behind(tmp_path / "spool", machine_storage, sorted([*silent, *away, "m1"]))
    vault = GatedVault(vault_at(tmp_path))
    vault.silent, vault.away = silent, away
    spool = Spool(tmp_path / "spool", machine_storage, vault, SETTINGS)
    await spool.start()
    try:
        await until(lambda: silent | away <= set(vault.asked))
        log = spool.machines["m1"]
        await log.begin(await hello_again(await machine_storage.find("m1"), 1))
        assert log.position.spooled == 3
        await log.flush()
        assert await listed(machine_storage, "m1") == 3
        await until(lambda: spool.machines["a1"].errors)
        (error,) = spool.machines["a1"].errors
        assert isinstance(error, KeyUnavailableError)
        assert spool.machines["m1"].errors == []
        vault.away = set()
        spool.machines["a1"].resume()
        await until(lambda: not spool.machines["a1"].errors)
        await spool.machines["a1"].flush()
        assert await listed(machine_storage, "a1") == 3
    finally:
        async with asyncio.timeout(20):  # the silent ones' keys are still waited for
            await spool.close()


async def test_points_go_on_for_weeks_without_the_config_server_over_every_restart(
    tmp_path: Path, blob_config: BlobConfig
) -> None:
    site = Site(tmp_path, blob_config)
    config = config_for(tmp_path, vault_file=site.vault_file, port=free_port())
    async with running(config) as control:
        site.write_config(
            tls=await control.enrolled("process-server", "ps1", tmp_path / "ps"), control_url=control.url
        )
        master = MasterTargetConfig(
            name="mt1",
            tls=await control.enrolled("master-target", "mt1", tmp_path / "mt"),
            control_url=control.url,
            state_dir=tmp_path / "mt-state",
            blob=blob_config,
            poll_s=0.05,
        )
        agents = {
            name: tls.client_context(await control.enrolled("agent", name, tmp_path / name))
            for name in ("lab", "new")
        }
        async with site.daemon(signal.SIGKILL), Agent.connect(site.port, agents["lab"]) as agent:
            claim = (welcome := await agent.open(hello())).claim
            chain = Chain.after(welcome)
            await agent.send(chain.next(marks=["p1"]))
            await agent.acked(1, uploaded=1)
            await agent.close()
        await pointed(master, blob_config, 1)

    # From here on the config server is gone.
    site.write_config(segment_seconds=60.0)
    async with site.daemon(signal.SIGKILL), Agent.connect(site.port, agents["lab"]) as agent:
        assert (await agent.open(hello(epoch=1, claim=claim, last_sent=1))).spooled == 1
        await agent.send(chain.next(marks=["p2"]))
        await agent.acked(2)
        await agent.close()
    site.write_config(segment_seconds=0.3)
    async with site.daemon(signal.SIGKILL):
        async with Agent.connect(site.port, agents["lab"]) as agent:
            assert (await agent.open(hello(epoch=1, claim=claim, last_sent=2))).spooled == 2
            async with Agent.connect(site.port, agents["new"]) as other:
                other.write(other.wire.send_hello(hello("new")))
                fault = await other.fault()
                assert fault.code == KeyUnavailableError.code
                assert not fault.new_epoch
                assert "config server" in fault.cause
                await other.close()
            await agent.send(chain.next(marks=["p3"]))
            await agent.acked(3, uploaded=3)
            await agent.close()
        await pointed(master, blob_config, 3)

        # It is back: who waited for a key goes on.
        async with running(config), Agent.connect(site.port, agents["new"]) as other:
            new = Chain.after(await other.open(hello("new")))
            await other.send(new.next())
            await other.acked(1, uploaded=1)
            await other.close()
    # Whatever else a daemon keeps where machines have their folders: no machine can have its name.
    for folder, machines in ((site.folder / "spool", {"lab", "new"}), (tmp_path / "mt-state", set())):
        there = {path.name for path in folder.iterdir()}
        assert FOLDER in there
        assert {name for name in there if is_name(name)} == machines


async def pointed(config: MasterTargetConfig, blob: BlobConfig, count: int) -> None:
    """A master target runs until the machine has so many points with snapshots, and is ended."""
    stop = asyncio.Event()
    running_ = asyncio.create_task(run_master_target(config, stop))
    try:
        async with MachineStorage.connect(blob) as storage, asyncio.timeout(30):
            store = await storage.find("lab")
            while True:
                docs = await point_store.list_docs(store, "lab")
                if [doc.state for doc in docs] == ["snapshotted"] * count:
                    break
                assert not running_.done()
                await asyncio.sleep(0.02)
    finally:
        stop.set()
        await running_


async def test_whoever_cannot_seal_a_machine_s_log_does_not_end_its_epoch(
    tmp_path: Path, store: BlobStore
) -> None:
    """As when two names lead to one container."""
    spool = Spool(tmp_path / "spool", in_one(store), vault_at(tmp_path), SETTINGS)
    await spool.start()
    web1, web2 = (Hello(machine=name, epoch=0, reason="test", disks=DISKS) for name in ("web1", "web2"))
    log = await spool.open_machine(web1)
    await log.begin(web1)
    with pytest.raises(WrongKeyError):
        await (await spool.open_machine(web2)).begin(web2)
    assert await newest_epoch(store) == 1
    await append_all(log, make_chain(3))
    await log.flush()
    await spool.close()
