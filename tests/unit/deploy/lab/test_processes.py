"""Daemons that outlive their command: identity, signals, ports."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab import ports, processes
from shared.errors import ListenError

CODE = "print('up', flush=True); import time; time.sleep(60)"


@pytest.fixture
def arguments() -> list[str]:
    """Nobody else's."""
    return ["-c", CODE, secrets.token_hex(8), "not \udcff utf-8"]


@pytest.fixture
def child(tmp_path: Path, arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = processes.spawn([sys.executable, *arguments], os.environ, tmp_path / "log")
    yield process
    process.kill()
    process.wait()


def test_a_spawned_daemon_has_a_session_of_its_own_and_is_found_by_its_arguments(
    child: subprocess.Popen[bytes], arguments: list[str]
) -> None:
    assert processes.find(arguments) == child.pid
    assert processes.find(arguments[:-1]) is None
    assert processes.find(["-u", *arguments]) is None
    assert os.getsid(child.pid) == child.pid


def test_a_killed_daemon_is_gone_although_nobody_reaped_it(
    child: subprocess.Popen[bytes], arguments: list[str]
) -> None:
    assert processes.send(child.pid, arguments, signal.SIGKILL, 10)
    assert processes.find(arguments) is None
    assert processes.send(child.pid, arguments, signal.SIGKILL, 10), "a second signal finds nothing to do"


def test_a_recycled_pid_is_never_hit(child: subprocess.Popen[bytes], arguments: list[str]) -> None:
    assert processes.send(child.pid, [*arguments, "another"], signal.SIGKILL, 1)
    assert child.poll() is None
    assert processes.find(arguments) == child.pid


def test_a_daemon_that_ignores_the_signal_is_reported() -> None:
    arguments = [
        "-c",
        f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {CODE}",
        secrets.token_hex(8),
    ]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()  # from here on it ignores SIGTERM
        assert not processes.send(process.pid, arguments, signal.SIGTERM, 0.1)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_port_in_use_names_the_process_that_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError) as refused:
            ports.check_free("127.0.0.1", port, "azurite")
    assert str(port) in refused.value.what
    assert f"process {os.getpid()} " in refused.value.cause
    ports.check_free("127.0.0.1", port, "azurite")
