"""A lab's daemons: start until ready, stop, kill.

A daemon is ready when it says READY=1 (the service manager's protocol); Azurite when its port answers. One
that does not become ready is ended again. A command that was killed in between leaves one of which it is not known: what runs and does
not show that it is ready (shared/daemon/service.py) is ended and started anew. So behind `start` it is ready, whatever was before.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from deploy.lab import azurite, ports, processes
from deploy.lab.state import HOST, Lab
from deploy.lab.vocabulary import Daemon
from shared.crashpoints import reach
from shared.daemon.log_sink import LIMIT
from shared.daemon.service import READY_NAME
from shared.errors import DaemonError, LabError
from shared.setup.host import last_words

READY_S: Final = 90.0
STOP_S: Final = 40.0
KILL_S: Final = 15.0
_MODULES: Final = {
    Daemon.CONFIG_SERVER: "config_server",
    Daemon.PROCESS_SERVER: "process_server",
    Daemon.MASTER_TARGET: "master_target",
    Daemon.AGENT: "agent",
}
_ROOT: Final = Path(__file__).resolve().parents[2]
Show = Callable[[str], None]


def command(lab: Lab, daemon: Daemon) -> list[str]:
    """Its command line, which no other lab's daemon has. Raises LabError when Azurite or Node is not installed."""
    if daemon is Daemon.AZURITE:
        return azurite.command(lab)
    return [sys.executable, *_own_arguments(lab, daemon)]


def pid_of(lab: Lab, daemon: Daemon) -> int | None:
    """None when it does not run."""
    return processes.find(_arguments(lab, daemon))


def _arguments(lab: Lab, daemon: Daemon) -> list[str]:
    return azurite.arguments(lab) if daemon is Daemon.AZURITE else _own_arguments(lab, daemon)


def _own_arguments(lab: Lab, daemon: Daemon) -> list[str]:
    return ["-m", _MODULES[daemon], "--config", str(lab.config_file(daemon))]


def start(lab: Lab, daemon: Daemon, show: Show) -> None:
    """Start the daemon unless it runs, and wait until it is ready. Raises ListenError, DaemonError."""
    if daemon is Daemon.AZURITE:
        azurite.restore_port(
            lab
        )  # before the look: a `kill` that was cut off leaves it running behind a port that is cut
    pid = pid_of(lab, daemon)
    if pid is not None:
        if _is_ready(lab, daemon, pid):
            return
        show(f"{daemon} was left half-started")
        _end(lab, daemon, signal.SIGKILL, KILL_S)
    for port in lab.ports(daemon):
        ports.check_free(HOST, port, daemon)
    show(f"starting {daemon}")
    log = lab.log_file(daemon)
    log_begin = log.stat().st_size if log.exists() else 0
    try:
        ready, ended = _run_until_ready(lab, daemon, show)
    except BaseException:
        # Ctrl-C, say: what is not known to be ready must not be found running by the next command.
        _end(lab, daemon, signal.SIGKILL, KILL_S)
        raise
    if ready:
        return
    if not ended:
        # Not left half-started: the next start would find it running and take it for ready.
        _end(lab, daemon, signal.SIGKILL, KILL_S)
    raise _start_failure(daemon, log, log_begin, ended)


def _is_ready(lab: Lab, daemon: Daemon, pid: int) -> bool:
    """Whether a daemon that runs got so far. Azurite has acknowledged nothing as long as nobody listens."""
    if daemon is Daemon.AZURITE:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((HOST, lab.ports(daemon)[0]), timeout=5.0),
        ):
            return True
        return False
    return processes.name_of(pid) == READY_NAME


def _run_until_ready(lab: Lab, daemon: Daemon, show: Show) -> tuple[bool, bool]:
    """Start the process; whether it became ready, and whether it has ended."""
    if daemon is Daemon.AZURITE:
        env = environment(lab) | azurite.environment(lab)
        child = processes.spawn(command(lab, daemon), env, lab.log_file(daemon))
        reach("lab.step")
        return _port_answers(lab.ports(daemon)[0], child), child.poll() is not None
    # Abstract, so that the length of the lab's path does not matter and nothing is left behind.
    name = f"understudy-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind(f"\0{name}")
        env = environment(lab) | {"NOTIFY_SOCKET": f"@{name}"}
        child = processes.spawn(command(lab, daemon), env, lab.log_file(daemon))
        reach("lab.step")
        ready = _says_ready(listener, child, lambda text: show(f"starting {daemon}: {text}"))
    return ready, child.poll() is not None


_LOG_LIMIT_B: Final = 16 << 20
_KEPT: Final = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
_FOR_STORAGE_ELSEWHERE: Final = ("AZURE_", "IDENTITY_", "MSI_")
"""Beginnings of the names that Azure's credential chain reads."""


def environment(lab: Lab) -> dict[str, str]:
    """For programs of this installation: the same code as this command's, and nothing of the caller's that would change what they do.

    Proxies lead to storage elsewhere, never to the lab's own parts, which all are on this host.
    """
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("LC_")}
    kept["PYTHONPATH"] = str(_ROOT)
    kept[LIMIT] = str(_LOG_LIMIT_B)
    if not lab.own_azurite:
        for name, value in os.environ.items():
            if name.lower() in ("https_proxy", "all_proxy", "no_proxy") or name.startswith(
                _FOR_STORAGE_ELSEWHERE
            ):
                kept[name] = value
        own = f"{HOST},localhost"
        before = kept.get("no_proxy") or kept.get("NO_PROXY")
        kept["NO_PROXY"] = kept["no_proxy"] = f"{before},{own}" if before else own
    return kept


def _says_ready(listener: socket.socket, child: subprocess.Popen[bytes], status: Show) -> bool:
    """Whether the daemon said READY=1; False when it ended before, or the time is over."""
    exited = os.pidfd_open(child.pid)
    try:
        deadline = time.monotonic() + READY_S
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([listener.fileno(), exited], [], [], left)
            if listener.fileno() in readable:
                for line in listener.recv(4096).decode(errors="replace").splitlines():
                    if line == "READY=1":
                        return True
                    if line.startswith("STATUS="):
                        status(line.removeprefix("STATUS="))
            elif exited in readable:
                return False
        return False
    finally:
        os.close(exited)


def _port_answers(port: int, child: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and child.poll() is None:
        try:
            with socket.create_connection((HOST, port), timeout=1.0):
                return True
        except OSError:
            time.sleep(0.1)
    return False


def _start_failure(daemon: Daemon, log: Path, begin: int, ended: bool) -> DaemonError:
    """Why, in the daemon's own words when it said them, else with the end of its log."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    cause = f"it was not ready after {READY_S:.0f} s" if not ended else "it ended at once"
    action = f"See its log: {log}"
    if (said := last_words(lines)) is not None:
        cause, action = said
        return DaemonError(f"{daemon} did not start", cause=cause, action=f"{action} Its log: {log}".strip())
    tail = "\n         ".join(line[:300] for line in lines[-8:])
    return DaemonError(
        f"{daemon} did not start", cause=f"{cause}; its last words:\n         {tail}", action=action
    )


def stop(lab: Lab, daemon: Daemon, show: Show) -> bool:
    """SIGTERM, and wait; False when it did not run. Raises DaemonError when it does not end."""
    return _end(lab, daemon, signal.SIGTERM, STOP_S, show)


def kill(lab: Lab, daemon: Daemon, show: Show) -> bool:
    """SIGKILL; False when it did not run. Azurite first gets the time to write what it acknowledged."""
    if daemon is Daemon.AZURITE and pid_of(lab, daemon) is not None:
        with azurite.port_cut(lab):
            azurite.wait_until_saved(lab, show)
            return _end(lab, daemon, signal.SIGKILL, KILL_S)
    return _end(lab, daemon, signal.SIGKILL, KILL_S)


def end_now(lab: Lab, daemon: Daemon) -> bool:
    """SIGKILL, whatever is lost; False when it did not run."""
    return _end(lab, daemon, signal.SIGKILL, KILL_S)


def _end(
    lab: Lab, daemon: Daemon, number: signal.Signals, timeout_s: float, show: Show = lambda _text: None
) -> bool:
    pid = pid_of(lab, daemon)
    if pid is None:
        return False
    show(f"stopping {daemon}")
    if not processes.send(pid, _arguments(lab, daemon), number, timeout_s):
        raise DaemonError(
            f"{daemon} did not stop",
            cause=f"process {pid} still runs {timeout_s:.0f} s after {number.name}",
            action=f"See its log {lab.log_file(daemon)}, or use: understudy lab kill {daemon}.",
        )
    return True


def require_daemon(lab: Lab, daemon: Daemon) -> Daemon:
    """`daemon`, when the lab has it. Raises LabError."""
    if daemon not in lab.daemons:
        raise LabError(
            f"The lab has no {daemon}", cause=f"its blob storage is elsewhere: {lab.settings.blob_url}"
        )
    return daemon
