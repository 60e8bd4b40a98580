"""Labs: what is refused before anything is started, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.lab import UNDERSTUDY, CommandFailedError, Lab
from tests.labstore import storage
from tests.loopdisk import attached, loop_disk

PORT_BASE = 24040


def refused(folder: Path, *arguments: str) -> CommandFailedError:
    """`lab up` with these arguments; it must fail with a clear error, and make nothing."""
    where = folder / "refused"
    with pytest.raises(CommandFailedError) as caught:
        Lab(where, []).run("lab", "up", "--port-base", str(PORT_BASE), *arguments)
    assert "Traceback" not in caught.value.stderr
    assert not where.exists()
    return caught.value


def test_a_missing_device_is_refused(folder: Path) -> None:
    error = refused(folder, "--disk", "/dev/nope")
    assert (error.exit_code, "/dev/nope does not exist" in error.stderr) == (3, True)


def test_what_is_no_disk_is_refused(folder: Path) -> None:
    error = refused(folder, "--disk", "/etc/passwd")
    assert (error.exit_code, "not a block device" in error.stderr) == (2, True)


def test_a_partition_is_refused_and_its_disk_is_named(folder: Path) -> None:
    with loop_disk(folder / "partitioned", 32 << 20) as device:
        subprocess.run(["losetup", "--detach", device], check=True)
        subprocess.run(["losetup", "--partscan", device, str(folder / "partitioned")], check=True)
        subprocess.run(["addpart", device, "1", "2048", "8192"], check=True)
        partition = Path(f"{device}p1")
        made = not partition.exists()  # without udev nobody makes the node
        if made:
            major, minor = Path(f"/sys/class/block/{partition.name}/dev").read_text().split(":")
            os.mknod(partition, 0o60600, os.makedev(int(major), int(minor)))
        try:
            error = refused(folder, "--disk", str(partition))
        finally:
            if made:
                partition.unlink()
            subprocess.run(["delpart", device, "1"], check=True)
        assert f"Protect the whole disk, {device}" in error.stderr


def test_a_read_only_disk_is_refused(folder: Path) -> None:
    with loop_disk(folder / "read-only", 32 << 20) as device:
        subprocess.run(["blockdev", "--setro", device], check=True)
        try:
            error = refused(folder, "--disk", device)
        finally:
            # It would stay on the device for whoever uses it next.
            subprocess.run(["blockdev", "--setrw", device], check=True)
    assert "read-only" in error.stderr


def test_a_disk_that_is_given_twice_is_refused(folder: Path, disk: str) -> None:
    assert "twice" in refused(folder, "--disk", disk, "--disk", disk).stderr


def test_no_disk_at_all_is_refused(folder: Path) -> None:
    assert "no disk was given" in refused(folder).stderr


def test_a_ring_that_is_no_power_of_two_is_refused(folder: Path, disk: str) -> None:
    assert "power of two" in refused(folder, "--disk", disk, "--ring-mib", "5").stderr


def test_a_port_in_use_is_named_with_its_owner(folder: Path, disk: str) -> None:
    with socket.create_server(("127.0.0.1", PORT_BASE + 3)):
        error = refused(folder, "--disk", disk)
    assert error.exit_code == 2
    assert f"Port {PORT_BASE + 3}" in error.stderr
    assert str(os.getpid()) in error.stderr


@pytest.mark.parametrize(
    ("url", "exit_code", "why"),
    [
        ("foo", 2, "is not valid"),
        ("http://nonsense", 2, "without an account key"),
        ("https://127.0.0.1:1/acct", 5, "does not answer"),
        ("https://nosuchaccount1234.invalid", 5, "DNS does not know"),
    ],
)
def test_storage_that_can_never_work_is_refused(
    folder: Path, disk: str, url: str, exit_code: int, why: str
) -> None:
    key = folder / "other.key"
    key.write_text("a2V5")
    with_key = [] if url.startswith("http:") else ["--blob-key-file", str(key)]
    error = refused(folder, "--disk", disk, "--blob-url", url, *with_key)
    assert (error.exit_code, why in error.stderr) == (exit_code, True)


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *arguments, str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def on_the_disk_itself(folder: Path, device: str) -> Iterator[Path]:
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    with mounted(folder / "mount", device) as where:
        yield where


@contextlib.contextmanager
def on_btrfs(folder: Path, device: str) -> Iterator[Path]:
    subprocess.run(["mkfs.btrfs", "-q", device], check=True)
    with mounted(folder / "mount", device) as where:
        yield where


@contextlib.contextmanager
def on_a_file_on_it(folder: Path, device: str) -> Iterator[Path]:
    with on_the_disk_itself(folder, device) as where:
        with (where / "file").open("wb") as file:
            file.truncate(64 << 20)
        with attached(where / "file") as inner:
            subprocess.run(["mkfs.ext4", "-q", inner], check=True)
            with mounted(folder / "inner", inner) as inside:
                yield inside


@contextlib.contextmanager
def on_an_overlay(folder: Path, device: str) -> Iterator[Path]:
    with on_the_disk_itself(folder, device) as where:
        for name in ("lower", "upper", "work"):
            (where / name).mkdir()
        options = f"lowerdir={where}/lower,upperdir={where}/upper,workdir={where}/work"
        with mounted(folder / "overlay", "-t", "overlay", "-o", options, "none") as over:
            yield over


@pytest.mark.parametrize("place", [on_the_disk_itself, on_btrfs, on_a_file_on_it, on_an_overlay])
def test_a_lab_on_the_disk_that_it_would_protect_is_refused_whatever_lies_between(
    folder: Path, place: Callable[[Path, str], contextlib.AbstractContextManager[Path]]
) -> None:
    with loop_disk(folder / "own", 256 << 20) as device, place(folder, device) as where:
        error = refused(where, "--disk", device)
    assert (error.exit_code, "its own writes would never end" in error.stderr) == (2, True)


def test_a_folder_with_other_files_is_refused(folder: Path, disk: str) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "file").write_text("mine")
    with pytest.raises(CommandFailedError, match="holds no lab"):
        Lab(other, [disk]).up()
    assert [path.name for path in other.iterdir()] == ["file"]


@pytest.fixture(scope="module")
def lab(folder: Path, disk: str) -> Iterator[Lab]:
    made = Lab(folder / "lab", [disk])
    made.up(segment_seconds=1)
    yield made
    if made.folder.exists():
        made.run("lab", "down", "--wipe", "--yes")


def pid_of(lab: Lab, daemon: str) -> int:
    pid = lab.status()["daemons"][daemon]["pid"]
    assert isinstance(pid, int)
    return pid


def test_status_names_daemons_ports_places_and_the_config_server(lab: Lab) -> None:
    status = lab.status()
    assert {name: daemon["state"] for name, daemon in status["daemons"].items()} == dict.fromkeys(
        ("config-server", "azurite", "process-server", "master-target", "agent"), "running"
    )
    (port,) = status["daemons"]["config-server"]["ports"]
    assert status["daemons"]["process-server"]["ports"] == [port + 3]
    assert status["config_server"] == f"https://127.0.0.1:{port}"
    assert Path(status["paths"]["spool"]).is_dir()
    assert Path(status["paths"]["blob"]).is_dir()


def test_a_second_up_changes_nothing_that_runs(lab: Lab) -> None:
    before = lab.status()
    lab.up()
    assert lab.status() == before


def test_a_second_lab_on_the_same_disk_is_refused(lab: Lab, folder: Path, disk: str) -> None:
    with pytest.raises(CommandFailedError, match="protects it already"):
        Lab(folder / "second", [disk]).up()
    assert not (folder / "second").exists()


def test_other_disks_or_another_ring_are_refused_by_a_lab_that_exists(lab: Lab) -> None:
    for arguments in (["--disk", "/dev/loop99"], ["--ring-mib", "8"]):
        with pytest.raises(CommandFailedError, match="cannot continue with another"):
            lab.run("lab", "up", *arguments)


def test_nothing_is_restored_to_or_spooled_on_a_disk_that_this_host_protects(lab: Lab, folder: Path) -> None:
    (device,) = lab.devices
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    config = lab.folder / "process-server.toml"
    content = config.read_text()
    with mounted(folder / "protected", device) as where:
        with pytest.raises(CommandFailedError, match="which the agent of machine 'lab' protects") as caught:
            lab.run("restore", "lab", "--to", str(where / "restored"))
        assert caught.value.exit_code == 2
        assert not (where / "restored").exists()
        lab.stop("process-server")
        config.write_text(content.replace(f'spool_dir = "{lab.folder}', f'spool_dir = "{where}'))
        with pytest.raises(CommandFailedError, match="which the agent of machine 'lab' protects"):
            lab.start("process-server")
        assert not (where / "spool").exists()
    config.write_text(content)
    lab.start("process-server")


def test_new_settings_restart_the_daemons_that_they_concern(lab: Lab) -> None:
    before = lab.status()["daemons"]
    lab.up(point_interval=60)
    after = lab.status()["daemons"]
    assert {name for name in after if after[name]["pid"] != before[name]["pid"]} == {"agent"}


def test_stop_and_start_are_idempotent(lab: Lab) -> None:
    lab.stop("master-target")
    lab.stop("master-target")
    stopped = lab.status()["daemons"]["master-target"]
    assert (stopped["pid"], stopped["state"]) == (None, "stopped")
    lab.start("master-target")
    pid = pid_of(lab, "master-target")
    lab.start("master-target")
    assert pid_of(lab, "master-target") == pid


def test_a_daemon_that_died_by_itself_shows_as_stopped_and_starts_again(lab: Lab) -> None:
    pid = pid_of(lab, "process-server")
    os.kill(pid, signal.SIGKILL)
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
    lab.start("process-server")
    assert pid_of(lab, "process-server") != pid


def test_a_daemon_that_cannot_start_says_why_and_where_its_log_is(lab: Lab) -> None:
    lab.stop("process-server")
    config = lab.folder / "process-server.toml"
    content = config.read_text()
    config.write_text(content.replace("segment_seconds", "segment_secs"))
    with pytest.raises(CommandFailedError) as caught:
        lab.start("process-server")
    assert caught.value.exit_code == 5
    assert "process-server did not start" in caught.value.stderr
    assert "segment_secs" in caught.value.stderr
    assert "process-server.log" in caught.value.stderr
    config.write_text(content)
    lab.start("process-server")


def test_killed_storage_has_what_it_acknowledged(lab: Lab) -> None:
    async def write() -> None:
        async with storage(lab) as store:
            await store.create("test/kept", b"acknowledged")

    async def read() -> bytes:
        async with storage(lab) as store:
            return await store.read("test/kept")

    asyncio.run(write())
    lab.kill("azurite")
    rules = subprocess.run(["iptables", "-S", "INPUT"], capture_output=True, text=True, check=True).stdout
    assert f"--dport {lab.status()['daemons']['azurite']['ports'][0]}" not in rules
    lab.start("azurite")
    assert asyncio.run(read()) == b"acknowledged"


def test_secrets_are_on_no_command_line_and_in_no_log(lab: Lab) -> None:
    found = [
        (lab.folder / "secrets/account.key").read_text().strip(),
        (lab.folder / "config-server/operator.token").read_text().strip(),
        msgspec.json.decode((lab.folder / "secrets/vault.json").read_bytes())["keys"][0]["key"],
    ]
    seen = "".join(path.read_text(errors="replace") for path in (lab.folder / "log").iterdir())
    for daemon in lab.status()["daemons"].values():
        seen += Path(f"/proc/{daemon['pid']}/cmdline").read_text()
    for secret in found:
        assert len(secret) > 20
        assert secret not in seen


def test_wipe_leaves_nothing(lab: Lab) -> None:
    settings = msgspec.json.decode((lab.folder / "lab.json").read_bytes())
    pids = [daemon["pid"] for daemon in lab.status()["daemons"].values()]
    lab.run("lab", "down", "--wipe")
    assert not lab.folder.exists()
    assert not Path(f"/sys/fs/bpf/understudy/lab-{settings['id']}").exists()
    assert not Path(f"/run/understudy/labs/{settings['id']}.json").exists()
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or ") Z " in stat.read_text()


def test_a_lab_needs_root(folder: Path, disk: str) -> None:
    # Somebody else, who may read everything: this clone may lie where only root can look.
    somebody = ["setpriv", "--reuid=65534", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    done = subprocess.run(
        [*somebody, UNDERSTUDY, "lab", "up", "--dir", str(folder / "x"), "--disk", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "as root" in done.stderr) == (2, True)
