"""Daemons whose output goes nowhere: they work on, and their status line says what is wrong."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.capture_parts import until
from tests.lab import Lab, lab
from tests.loopdisk import loop_disk
from tests.marks import some

DAEMONS = ("config-server", "process-server", "master-target", "agent")


@pytest.fixture(scope="module")
def site() -> Iterator[Lab]:
    folder = Path("/dev/shm") / f"understudy-output-{secrets.token_hex(3)}"
    folder.mkdir()
    try:
        with loop_disk(folder / "disk", 32 << 20) as disk, lab([disk], segment_seconds=1) as made:
            yield made
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def nobody_reads() -> Iterator[int]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    yield writing
    os.close(writing)
    os.close(reading)


@contextlib.contextmanager
def reader_gone() -> Iterator[int]:
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@contextlib.contextmanager
def full() -> Iterator[int]:
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


OUTPUTS = {
    "No space left on device": full,
    "Broken pipe": reader_gone,
    "nobody reads them": nobody_reads,
}


@contextlib.contextmanager
def by_hand(
    site: Lab, daemon: str, output: int | IO[bytes]
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """One daemon of the lab with another stderr; and what it tells the service manager."""
    name = f"understudy-test-{secrets.token_hex(6)}"
    site.stop(daemon)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-m", daemon.replace("-", "_"), "--config", site.folder / f"{daemon}.toml"],
            env={**os.environ, "NOTIFY_SOCKET": f"@{name}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            yield process, manager
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            site.start(daemon)


def wait_told(manager: socket.socket, words: str) -> None:
    while words not in manager.recv(65536).decode():
        pass


EACH_ONCE = tuple(zip(DAEMONS, (*OUTPUTS, "Broken pipe"), strict=True))


@pytest.mark.parametrize(("daemon", "cause"), some(itertools.product(DAEMONS, OUTPUTS), short=EACH_ONCE))
def test_a_daemon_whose_output_cannot_be_written_works_and_says_so_in_its_status(
    site: Lab, daemon: str, cause: str
) -> None:
    with OUTPUTS[cause]() as output, by_hand(site, daemon, output) as (_, manager):
        wait_told(manager, "READY=1")
        wait_told(manager, f"log lines lost ({cause})")
        site.wait_ordered(60)


def test_when_the_log_works_again_one_line_says_what_was_lost(site: Lab) -> None:
    full_disk = site.folder.with_name(site.folder.name + "-log")
    full_disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", full_disk], check=True)
    try:
        filler = full_disk / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(bytes(1 << 20))
        with (full_disk / "log").open("ab") as log, by_hand(site, "process-server", log) as (_, manager):
            wait_told(manager, "log lines lost (No space left on device)")
            filler.unlink()
            site.stop("agent")  # its session ends: a line is written
            site.start("agent")
            site.wait_ordered(60)
        lines = [json.loads(line) for line in (full_disk / "log").read_text().splitlines()]
        told = [line for line in lines if line["event"] == "the log can be written again"]
        assert len(told) == 1
        assert told[0]["lost_lines"] > 0
    finally:
        subprocess.run(["umount", full_disk], check=True)
        full_disk.rmdir()


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler of its own for the signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = (line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("daemon", some(DAEMONS, short=("process-server",)))
def test_a_daemon_with_no_descriptors_at_all_works(site: Lab, daemon: str) -> None:
    """As a careless parent starts it: its files must not get the numbers of standard output and error."""
    site.stop(daemon)
    closed = [
        "/bin/sh",
        "-c",
        f'exec {sys.executable} -m {daemon.replace("-", "_")} --config "$0" <&- >&- 2>&-',
    ]
    process = subprocess.Popen([*closed, site.folder / f"{daemon}.toml"])
    try:
        until(lambda: hears(process.pid, signal.SIGTERM), "it does not begin")
        site.wait_ordered(60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        site.start(daemon)
