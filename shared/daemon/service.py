"""The skeleton of a daemon: signals, exit codes, the service manager, configuration files.

A daemon's `__main__` is `run_daemon`:  configuration → `run_service(name, main)`.  `main` gets an event that the first
SIGTERM or SIGINT sets: its head stage stops, the others drain, and it returns. A second signal cancels it:
the hard stop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import tomllib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from shared import decoding
from shared.configuration.wrong import explain
from shared.daemon import logging
from shared.daemon.log_sink import Sink
from shared.daemon.threads import Threads, no_room
from shared.errors import UNDECODABLE, ConfigError, ListenError, UnderstudyError, UnhealthyError

_log = logging.get()
_T = TypeVar("_T")

READY_NAME: Final = "understudy"
"""A daemon that is ready shows so in the process table (/proc/PID/comm, `ps -e`); until then it has its program's name. Who finds a daemon
that somebody else started, and died before it was ready, can tell so by nothing else."""
_manager_trouble = [""]
"""Why the service manager could not be told the last time: only changes are logged."""


class DaemonConfig(Protocol):
    """What `run_daemon` needs of a daemon's configuration."""

    @property
    def log_level(self) -> logging.Level: ...


_C = TypeVar("_C", bound=DaemonConfig)


def run_daemon(
    argv: Sequence[str],
    name: str,
    config_type: type[_C],
    start: Callable[[_C, asyncio.Event], Awaitable[None]],
    *,
    also: str | None = None,
) -> int:
    """A daemon from its command line (`--config FILE`) to its exit code. `start` may import what is slow to import: it is not called
    for a wrong command line or configuration. `also`: for the help, what else this program can do.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {name.replace('-', '_')}",
        description="Runs the daemon.",
        epilog=also,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help=f"{name}.toml")
    options = parser.parse_args(argv)
    try:
        config = load_config(options.config, config_type)
    except UnderstudyError as exc:
        Sink(sys.stderr).write(f"{name}: {exc}\n")
        return exc.exit_code
    logging.configure(name, level=config.log_level)
    return _run(run_service(name, lambda stop: start(config, stop)))


def _run(service: Coroutine[Any, Any, int]) -> int:
    """Its exit code, also where asyncio, which has its threads ended by one more, has no room for that: the interpreter waits for them."""
    codes: list[int] = []

    async def run() -> None:
        codes.append(await service)

    try:
        asyncio.run(run())
    except Exception as exc:
        if not codes or (error := no_room(exc)) is None:
            raise
        _log.warning("threads are ended by none of their own", **error.as_dict())
    return codes[0]


async def run_service(name: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run `main` until it returns or fails; the process's exit code.

    An UnderstudyError (also inside exception groups) becomes one log line and its exit code; so does what Python says where there is no
    room for a thread, or no memory. Anything else is a bug: it is logged with its traceback, exit code 1.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(Threads(thread_name_prefix="asyncio"))
    task = asyncio.ensure_future(main(stop))

    def on_signal(received: signal.Signals) -> None:
        if stop.is_set():
            _log.warning("stopping hard", signal=received.name)
            task.cancel()
            return
        _log.info("stopping", signal=received.name)
        notify("STOPPING=1")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    _log.info("started", daemon=name, pid=os.getpid())
    try:
        await task
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        return 1
    except Exception as exc:  # noqa: BLE001 - the outermost frame: nothing above could tell
        return _report(exc)
    else:
        _log.info("stopped", daemon=name)
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def notify(state: str) -> None:
    """Tell the service manager (sd_notify): READY=1, STATUS=…, WATCHDOG=1, STOPPING=1. Does nothing without
    one. A status says also when the log cannot be written: there it can still be read. READY=1 is shown in the process table, too."""
    if "READY=1" in state.splitlines():
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text(READY_NAME)
    if (lost := logging.trouble()) and "STATUS=" in state:
        state = "\n".join(
            f"{line}; {lost}" if line.startswith("STATUS=") else line for line in state.splitlines()
        )
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    trouble = ""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            # One that does not read now must not hold up the daemon; it is told again soon.
            sock.send(state.encode(errors="backslashreplace"), socket.MSG_DONTWAIT)
    except OSError as exc:
        trouble = str(exc)
        if trouble != _manager_trouble[0]:
            # Who started us may have listened for READY only, and be gone.
            gone = isinstance(exc, (ConnectionRefusedError, FileNotFoundError))
            (_log.debug if gone else _log.warning)("the service manager could not be told", cause=trouble)
    _manager_trouble[0] = trouble


def watchdog_interval_s() -> float | None:
    """How often the service manager wants WATCHDOG=1 (half of its limit, so that one may be late)."""
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not limit_us.isdecimal() or (pid and pid != str(os.getpid())):
        return None
    return int(limit_us) / 2_000_000


def load_config(path: Path, type_: type[_T]) -> _T:
    """The TOML file at `path` as a `type_` (a msgspec.Struct; Path fields are strings in the file).

    Raises ConfigError, which names the file, the key and the type that is expected there.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"Configuration file {path} could not be read", cause=str(exc)) from exc
    try:
        return decoding.convert(tomllib.loads(text), type_, dec_hook=_decode_extra)
    except UNDECODABLE as exc:
        raise ConfigError(f"Configuration file {path} is not valid", cause=explain(exc, type_)) from exc


def _decode_extra(type_: type[Any], value: object) -> object:
    if issubclass(type_, Path) and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected `str` (a path), got `{type(value).__name__}`")


def _report(exc: BaseException) -> int:
    leaves = _leaves(exc)
    known: list[UnderstudyError] = []
    for leaf in leaves:
        if isinstance(leaf, UnderstudyError):
            known.append(leaf)
            _log.error("failed", **leaf.as_dict())
        elif (error := no_room(leaf)) is not None:
            known.append(error)
            _log.error("failed", **error.as_dict(), exc_info=leaf)  # where, nothing else says
        else:
            _log.error("crashed: this is a bug", exc_info=leaf)
    return _exit_code(known[0]) if len(known) == len(leaves) else 1


def _exit_code(error: UnderstudyError) -> int:
    """2 tells the service manager that only a person can help (RestartPreventExitStatus in deploy/systemd). An address that is in use
    may be free at the next start: a daemon must not stay down for that."""
    return UnhealthyError.exit_code if isinstance(error, ListenError) else error.exit_code


def _leaves(exc: BaseException) -> list[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in _leaves(inner)]
    return [exc]
