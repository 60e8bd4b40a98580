"""The daemon skeleton: exit codes, signals, the service manager, configuration."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from structlog.testing import capture_logs

from shared.daemon import logging, service
from shared.errors import (
    ConfigError,
    DeviceError,
    DeviceNotFoundError,
    ListenError,
    NotFoundError,
    UnderstudyError,
    UsageError,
)
from tests.no_threads import SAID


async def test_a_daemon_that_returns_exits_with_0() -> None:
    async def main(_stop: asyncio.Event) -> None:
        return

    assert await service.run_service("x", main) == 0


async def test_a_named_error_is_one_clear_line_and_its_exit_code() -> None:
    async def main(_stop: asyncio.Event) -> None:
        raise NotFoundError("No disk", cause="it was pulled", action="Push it back.")

    with capture_logs() as logs:
        assert await service.run_service("x", main) == 3
    errors = [line for line in logs if line["log_level"] == "error"]
    assert [(e["event"], e["code"], e["what"], e["cause"], e["action"]) for e in errors] == [
        ("failed", "US200", "No disk", "it was pulled", "Push it back.")
    ]


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [(ConfigError("x"), 2), (UsageError("x"), 2), (ListenError("x"), 5), (DeviceNotFoundError("x"), 3)],
)
async def test_only_what_a_person_must_put_right_ends_with_2(error: UnderstudyError, exit_code: int) -> None:
    """The units (deploy/systemd) do not start a daemon again after 2."""

    async def main(_stop: asyncio.Event) -> None:
        raise error

    with capture_logs():
        assert await service.run_service("x", main) == exit_code


async def test_named_errors_are_found_inside_task_groups() -> None:
    async def fail() -> None:
        raise DeviceError("gone")

    async def main(_stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(asyncio.Event().wait())

    assert await service.run_service("x", main) == 5


async def test_anything_else_is_a_bug_with_a_traceback() -> None:
    async def main(_stop: asyncio.Event) -> None:
        raise ZeroDivisionError

    with capture_logs() as logs:
        assert await service.run_service("x", main) == 1
    assert [line for line in logs if line.get("exc_info")]


@pytest.mark.parametrize("said", SAID, ids=repr)
async def test_a_host_without_room_is_no_bug_and_the_daemon_is_started_again(said: Exception) -> None:
    async def main(_stop: asyncio.Event) -> None:
        raise ExceptionGroup("of a part", [said])

    with capture_logs() as logs:
        assert await service.run_service("x", main) == 5
    [line] = [line for line in logs if line["log_level"] == "error"]
    assert (line["event"], line["code"], line["cause"]) == ("failed", "US604", repr(said))
    assert line["exc_info"] is said, "nobody knows where it was"


_FULL = """
import asyncio, resource, sys
from shared.daemon import logging, service

async def main(stop):
    used_b = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_b + (6 << 20),) * 2)  # a thread's stack is 8 MiB
    if sys.argv[1] == "ends":
        return
    works = {"work": lambda: asyncio.to_thread(print), "name": lambda: asyncio.open_connection("no.such.invalid", 1)}
    await works[sys.argv[1]]()

logging.configure("x")
sys.exit(service._run(service.run_service("x", main)))
"""


@pytest.mark.parametrize(("does", "exit_code"), [("work", 5), ("name", 5), ("ends", 0)])
def test_a_process_that_can_have_no_thread_says_so_and_ends_as_it_should(does: str, exit_code: int) -> None:
    command = ["prlimit", f"--stack={8 << 20}", sys.executable, "-c", _FULL, does]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert done.returncode == exit_code, done.stderr
    assert ('"code": "US604"' in done.stderr) == (exit_code == 5) or does == "ends"
    assert "this is a bug" not in done.stderr


async def test_sigterm_sets_the_stop_event_and_the_daemon_drains() -> None:
    drained = []

    async def main(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        drained.append(True)

    assert await service.run_service("x", main) == 0
    assert drained


async def test_a_second_signal_stops_hard() -> None:
    async def main(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    assert await service.run_service("x", main) == 1


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"\0understudy-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        service.notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_without_a_service_manager_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with capture_logs() as logs:
        service.notify("READY=1")
        service.notify("WATCHDOG=1")
    assert [line["log_level"] for line in logs] == ["debug"]


def test_a_service_manager_that_comes_back_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    service.notify("WATCHDOG=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        service.notify("WATCHDOG=1")
        assert manager.recv(100) == b"WATCHDOG=1"


def test_a_service_manager_that_does_not_read_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, capture_logs() as logs:
        manager.bind(str(tmp_path / "notify"))
        for _ in range(10_000):  # a blocking send would never return from here
            service.notify("WATCHDOG=1")
    assert [line["cause"] for line in logs] == ["[Errno 11] Resource temporarily unavailable"]


def test_a_status_says_that_the_log_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(logging, "trouble", lambda: "3 log lines lost (why)")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        service.notify("WATCHDOG=1\nSTATUS=well")
        assert manager.recv(100) == b"WATCHDOG=1\nSTATUS=well; 3 log lines lost (why)"


def test_the_watchdog_interval_is_half_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert service.watchdog_interval_s() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert service.watchdog_interval_s() is None
    monkeypatch.delenv("WATCHDOG_USEC")
    assert service.watchdog_interval_s() is None


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    size_b: int = 1
    mode: Literal["x", "y"] | None = None


class Example(msgspec.Struct, forbid_unknown_fields=True):
    folder: Path
    log_level: logging.Level = logging.Level.INFO
    kind: Literal["a", "b"] = "a"
    inner: Inner = msgspec.field(default_factory=Inner)
    optional: Path | None = None


def test_a_configuration_file_becomes_a_struct(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('folder = "/a"\noptional = "/b"\n[inner]\nsize_b = 5\n')
    assert service.load_config(file, Example) == Example(
        folder=Path("/a"), inner=Inner(5), optional=Path("/b")
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("folder = 1", ["folder", "str"]),
        ('folder = "/a"\n[inner]\nsize_b = "much"', ["inner.size_b", "int"]),
        ('folder = "/a"\nsurprise = 1', ["surprise"]),
        ('folder = "/a"\n[inner]\nsurprise = 1', ["surprise", "inner"]),
        ('folder = "/a"\nlog_level = "verbose"', ["log_level", "may be debug, info, warning, error"]),
        ('folder = "/a"\nkind = "c"', ["kind", "may be a, b"]),
        ('folder = "/a"\n[inner]\nmode = "c"', ["inner.mode", "may be x, y"]),
        ("", ["folder"]),
        ("folder = = 1", ["line 1"]),
        (f"folder = {'[' * 5000}", ["recursion"]),
        (f"folder = {'9' * 5000}", ["4300 digits"]),
    ],
)
def test_a_bad_configuration_names_file_key_and_type(tmp_path: Path, text: str, says: list[str]) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        service.load_config(file, Example)
    for word in [str(file), *says]:
        assert word in str(caught.value)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        service.load_config(tmp_path / "none.toml", Example)
    assert "none.toml" in str(caught.value)
    assert caught.value.exit_code == 2
