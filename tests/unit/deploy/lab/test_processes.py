"""Daemons that outlive their command: identity, signals, ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from deploy.lab import ports, processes
from deploy.lab.processes import Process
from shared.errors import ListenError

SLEEPER = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = processes.spawn(SLEEPER, os.environ, tmp_path / "log")
    processes.remember(tmp_path / "pid", process.pid)
    yield process
    process.kill()
    process.wait()


def test_a_spawned_daemon_has_a_session_of_its_own_and_is_recalled(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    recalled = processes.recall(tmp_path / "pid")
    assert recalled is not None
    assert recalled.pid == child.pid
    assert os.getsid(child.pid) == child.pid


def test_a_killed_daemon_is_gone_although_nobody_reaped_it(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    recalled = processes.recall(tmp_path / "pid")
    assert recalled is not None
    assert processes.send(recalled, signal.SIGKILL, 10)
    assert processes.recall(tmp_path / "pid") is None
    assert processes.send(recalled, signal.SIGKILL, 10), "a second signal finds nothing to do"


def test_a_recycled_pid_is_never_recalled_and_never_hit(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    known = processes.recall(tmp_path / "pid")
    assert known is not None
    for other in (
        Process(known.pid, known.start_ticks - 1, known.boot),
        Process(known.pid, known.start_ticks, "another boot"),
    ):
        (tmp_path / "pid").write_bytes(msgspec.json.encode(other))
        assert processes.recall(tmp_path / "pid") is None
        assert processes.send(other, signal.SIGKILL, 1)
    assert child.poll() is None


def test_a_daemon_that_ignores_the_signal_is_reported(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()  # from here on it ignores SIGTERM
        processes.remember(tmp_path / "pid", process.pid)
        recalled = processes.recall(tmp_path / "pid")
        assert recalled is not None
        assert not processes.send(recalled, signal.SIGTERM, 0.1)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("content", ["", "{}", "null", '{"pid": 1}'])
def test_a_damaged_pid_file_means_that_nothing_is_known(tmp_path: Path, content: str) -> None:
    (tmp_path / "pid").write_text(content)
    assert processes.recall(tmp_path / "pid") is None
    assert processes.recall(tmp_path / "none") is None


def test_a_port_in_use_names_the_process_that_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError) as refused:
            ports.check_free("127.0.0.1", port, "azurite")
    assert str(port) in refused.value.what
    assert f"process {os.getpid()} " in refused.value.cause
    ports.check_free("127.0.0.1", port, "azurite")
