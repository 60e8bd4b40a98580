"""The main job over a whole installation, through the command line: in the order of this file, on one lab."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from shared.recovery.seed import seed_blob
from tests.lab import CommandFailedError
from tests.labstore import machine_store
from tests.system.conftest import DISK_B, Site

_SO_RCVBUFFORCE = 33
"""Linux; Python does not name it."""


def test_initial_replication_under_load_ends_ordered(site: Site) -> None:
    site.lab.wait_ordered(60)
    machine = site.lab.machine()
    assert [disk["mode"] for disk in machine["disks"]] == ["ordered", "ordered"]
    assert machine["errors"] == []


def test_a_requested_point_holds_what_was_complete_when_it_was_asked_for(site: Site) -> None:
    complete = site.story.writer.completed
    point = site.lab.create_point()
    site.story.expect(point["id"], complete)


@pytest.mark.parametrize("daemon", ["agent", "process-server", "master-target", "config-server"])
def test_a_killed_daemon_goes_on_after_its_restart_in_the_same_epoch(site: Site, daemon: str) -> None:
    epoch = site.lab.machine()["epoch"]
    site.lab.kill(daemon)
    site.lab.start(daemon)
    site.lab.wait_ordered(60)
    complete = site.story.writer.completed
    point = site.lab.create_point()
    site.story.expect(point["id"], complete)
    assert point["epoch"] == epoch


def test_a_second_installation_on_the_same_disk_is_refused(site: Site) -> None:
    with pytest.raises(CommandFailedError) as refused:
        site.lab.run("lab", "up", "--disk", site.lab.devices[0], folder=site.folder / "second-lab")
    assert "Do:" in refused.value.stderr or "Traceback" not in refused.value.stderr


def test_every_point_is_a_prefix_and_the_last_holds_everything(site: Site) -> None:
    site.story.stop()
    result = site.story.check_every_point(site.lab, minimum=5, newest=4)
    site.story.check_latest(site.lab)
    assert result["points"] >= 5


def test_a_point_can_be_restored_when_every_server_is_dead(site: Site) -> None:
    point = site.lab.points()[-1]["id"]
    for daemon in ("agent", "process-server", "master-target", "config-server"):
        site.lab.kill(daemon)
    images = site.lab.restore(point, site.folder / "offline")
    for device, image in zip(site.lab.devices, images, strict=True):
        subprocess.run(["cmp", device, str(image)], check=True)
    shutil.rmtree(site.folder / "offline")
    for daemon in ("config-server", "process-server", "master-target", "agent"):
        site.lab.start(daemon)
    site.lab.wait_ordered(60)


def test_a_known_plaintext_is_nowhere_in_spool_log_or_on_the_wire(site: Site) -> None:
    secret = secrets.token_bytes(256)
    with sniffed(port_of(site, "process-server")) as heard:
        with Path(site.lab.devices[0]).open("r+b", buffering=0) as disk:
            disk.seek(5 << 20)
            disk.write(secret * 16)
            subprocess.run(["sync", site.lab.devices[0]], check=True)
        point = site.lab.create_point()
    log = asyncio.run(log_blobs(site))
    assert len(b"".join(heard)) > len(secret) * 16, "nothing was heard on the wire: the check would be empty"
    assert any(name.endswith(".seg") for name in log), "there is no log: the check would be empty"
    spool = b"".join(path.read_bytes() for path in (site.lab.folder / "spool").rglob("*") if path.is_file())
    for where, data in {"wire": b"".join(heard), "spool": spool, "log": b"".join(log.values())}.items():
        assert secret[:32] not in data, f"plaintext found in the {where}"
    images = site.lab.restore(point["id"], site.folder / "plain")
    assert secret * 16 in images[0].read_bytes()
    shutil.rmtree(site.folder / "plain")


def test_a_client_without_a_certificate_of_the_ca_gets_nowhere(site: Site) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port_of(site, "process-server"))) as raw,
        context.wrap_socket(raw) as stranger,
    ):
        # In TLS 1.3 the client hears of the refusal only with its first read: an alert, or nothing at all.
        try:
            heard = stranger.recv(1)
        except (ssl.SSLError, ConnectionError) as refusal:
            heard = b""
            assert "CERTIFICATE_REQUIRED" in str(refusal) or isinstance(refusal, ConnectionError)
        assert heard == b""


def test_the_seed_disk_is_a_valid_fixed_vhd_with_the_disks_data(site: Site) -> None:
    point = site.lab.create_point()
    wait_snapshotted(site, point["id"])
    for number, device in enumerate(site.lab.devices):
        vhd = site.folder / f"{number}.vhd"
        vhd.write_bytes(asyncio.run(seed_disk(site, Path(device).name)))
        info = subprocess.run(
            ["qemu-img", "info", "-f", "vpc", "--output=json", str(vhd)], check=True, capture_output=True
        )
        assert msgspec.json.decode(info.stdout)["virtual-size"] == DISK_B
        assert vhd.stat().st_size == DISK_B + 512
        subprocess.run(["cmp", "-n", str(DISK_B), device, str(vhd)], check=True)


def test_lab_down_keeps_capture_and_the_next_lab_up_continues(site: Site) -> None:
    epoch = site.lab.machine()["epoch"]
    site.lab.run("lab", "down")
    with Path(site.lab.devices[1]).open("r+b", buffering=0) as disk:
        disk.write(b"written while nobody was there" * 100)
        subprocess.run(["sync", site.lab.devices[1]], check=True)
    site.lab.up()
    site.lab.wait_ordered(60)
    point = site.lab.create_point()
    assert point["epoch"] == epoch
    images = site.lab.restore(point["id"], site.folder / "continued")
    for device, image in zip(site.lab.devices, images, strict=True):
        subprocess.run(["cmp", device, str(image)], check=True)


def test_storage_that_lost_acknowledged_log_begins_a_new_epoch_by_itself(site: Site) -> None:
    epoch = site.lab.machine()["epoch"]

    async def lose_the_index() -> None:
        async with machine_store(site.lab) as store:
            index = f"logs/{epoch:08d}/index-000001"
            await store.leases.break_now(index)
            await store.delete(index)

    asyncio.run(lose_the_index())
    deadline = time.monotonic() + 90
    while (machine := site.lab.machine())["epoch"] == epoch or machine["state"] != "ordered":
        assert time.monotonic() < deadline, machine
        time.sleep(0.5)
    assert "US407" in {event["code"] for event in site.lab.read("event", "list")}
    point = site.lab.create_point()
    images = site.lab.restore(point["id"], site.folder / "after-loss")
    for device, image in zip(site.lab.devices, images, strict=True):
        subprocess.run(["cmp", device, str(image)], check=True)


def test_a_disk_that_grows_is_replicated_anew_with_its_new_size(site: Site) -> None:
    epoch = site.lab.machine()["epoch"]
    grown = DISK_B + (8 << 20)
    backing = site.folder / "disk-a"
    with backing.open("r+b") as file:
        file.truncate(grown)
    subprocess.run(["losetup", "--set-capacity", site.lab.devices[0]], check=True)
    with Path(site.lab.devices[0]).open("r+b", buffering=0) as disk:
        disk.seek(DISK_B)
        disk.write(b"behind the former end" * 1000)
        subprocess.run(["sync", site.lab.devices[0]], check=True)
    deadline = time.monotonic() + 60
    while (machine := site.lab.machine())["epoch"] == epoch or machine["state"] != "ordered":
        assert time.monotonic() < deadline, machine
        time.sleep(0.5)
    assert machine["disks"][0]["size_b"] == grown
    point = site.lab.create_point()
    images = site.lab.restore(point["id"], site.folder / "grown")
    assert images[0].stat().st_size == grown
    for device, image in zip(site.lab.devices, images, strict=True):
        subprocess.run(["cmp", device, str(image)], check=True)


def wait_snapshotted(site: Site, point: str) -> None:
    deadline = time.monotonic() + 60
    while not any(p["id"] == point and p["state"] == "snapshotted" for p in site.lab.points()):
        assert time.monotonic() < deadline, f"point {point} got no snapshots"
        time.sleep(0.5)


def port_of(site: Site, daemon: str) -> int:
    return int(site.lab.status()["daemons"][daemon]["ports"][0])


@contextmanager
def sniffed(port: int) -> Iterator[list[bytes]]:
    """Every packet on the loopback interface to or from the port."""
    packets: list[bytes] = []
    done = threading.Event()
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as sniffer:
        sniffer.setsockopt(
            socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20
        )  # a busy machine does not listen all the time
        sniffer.bind(("lo", 0))
        sniffer.settimeout(0.1)
        wanted = port.to_bytes(2, "big")

        def listen() -> None:
            while not done.is_set():
                try:
                    packet = sniffer.recv(1 << 17)
                except TimeoutError:
                    continue
                header = (packet[0] & 15) * 4
                if wanted in (packet[header : header + 2], packet[header + 2 : header + 4]):
                    packets.append(packet)

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield packets
        finally:
            done.set()
            thread.join()


async def log_blobs(site: Site) -> dict[str, bytes]:
    async with machine_store(site.lab) as store:
        return {info.name: await store.read(info.name) async for info in store.list("logs/")}


async def seed_disk(site: Site, disk: str) -> bytes:
    async with machine_store(site.lab) as store:
        return await store.read(seed_blob(disk))
