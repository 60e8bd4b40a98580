"""Programs of this project that need not be loaded first: each is a process of its own, forked from one that has loaded them.

`run` is what `python ARGUMENT…` would be, with `-m MODULE` or `-c CODE`, from its first line to its end: with an environment, a folder,
descriptors and an exit code of its own. What is said to the interpreter, or to a library as it is loaded (PYTHON…, LC_…, SSL_…), cannot
be said to it, and signals are as they were when the tests began. Tests of such things, of terminals, and of a program as it is installed
start a process as ever (tests/cli.py `begun`, tests/lab.py).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
_LOADED: Final = (
    "config_server.cli.main",
    "config_server.cli.machine_commands",
    "config_server.cli.restore_command",
    "config_server.service",
    "config_server.setup.command",
    "config_server.setup.recover_command",
    "master_target.setup",
    "process_server.setup",
    "shared.crashpoints",
)
"""What takes its time to load; the rest a program loads by itself."""
_REQUEST_MAX_B: Final = 128 << 10


class Ended(NamedTuple):
    exit_code: int
    """-N: by signal N."""
    stdout: bytes
    stderr: bytes


async def run(*arguments: str, env: Mapping[str, str], cwd: str | Path | None = None) -> Ended:
    """Nobody sits at a terminal. Whoever is cancelled meanwhile kills it."""
    with _begun(arguments, env, cwd) as program:
        program.told.setblocking(False)
        return program.ended(await asyncio.get_running_loop().sock_recv(program.told, 16))


def run_now(*arguments: str, env: Mapping[str, str], timeout_s: float) -> Ended:
    """As `run`. Raises TimeoutError, and has killed it then."""
    with _begun(arguments, env, None) as program:
        program.told.settimeout(timeout_s)
        return program.ended(program.told.recv(16))


class _Program(NamedTuple):
    told: socket.socket
    """Here its exit code comes; closed, it is killed."""
    outputs: Sequence[int]

    def ended(self, code: bytes) -> Ended:
        assert code, "whatever forks programs has ended"
        return Ended(int(code), *(os.pread(fd, os.fstat(fd).st_size, 0) for fd in self.outputs))


@contextlib.contextmanager
def _begun(arguments: Sequence[str], env: Mapping[str, str], cwd: str | Path | None) -> Iterator[_Program]:
    mask = os.umask(0)
    os.umask(mask)
    request = {"arguments": arguments, "env": dict(env), "cwd": str(cwd or Path.cwd()), "umask": mask}
    outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
    here, there = socket.socketpair()
    try:
        with there:
            socket.send_fds(_server(), [json.dumps(request).encode()], [there.fileno(), *outputs])
        yield _Program(here, outputs)
    finally:
        here.close()
        for fd in outputs:
            os.close(fd)


@functools.cache
def _server() -> socket.socket:
    """For this process, which it ends with."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with there:
        process = subprocess.Popen([sys.executable, "-m", __name__], cwd=ROOT, stdin=there.fileno())

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return here


def _serve() -> dict[str, Any]:
    """Returns in each program with what was asked for."""
    for module in _LOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else a collection of one program copies all that is loaded
    with socket.socket(fileno=os.dup(0)) as requests:
        while True:
            content, fds, _, _ = socket.recv_fds(requests, _REQUEST_MAX_B, 3)
            if not content:
                os._exit(0)
            if os.fork() == 0:
                requests.close()
                _keep(*fds)
                return dict(json.loads(content))
            for fd in fds:
                os.close(fd)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass


def _keep(asked: int, stdout: int, stderr: int) -> None:
    """Forks the program, in which it returns, and tells how that ended; whoever asks no more has it killed."""
    if (pid := os.fork()) == 0:
        os.close(asked)
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 0)
        for number, fd in enumerate((stdout, stderr), 1):
            os.dup2(fd, number)
            os.close(fd)
        return
    os.close(stdout)
    os.close(stderr)
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([ended, asked], [], [])
    if ended not in ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        os.write(asked, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(arguments: Sequence[str], env: Mapping[str, str], cwd: str, umask: int) -> None:
    os.umask(umask)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if at := env.get("UNDERSTUDY_CRASH_AT"):  # which it has looked for as it was loaded
        sys.modules["shared.crashpoints"].arm(at)
    how, what, *rest = arguments
    sys.argv = [how, *rest]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})  # noqa: S102


if __name__ == "__main__":
    _become(**_serve())
