"""The control plane of many machines: what 200 daemons that report cost, and how fast a list of 500 machines is while storage hangs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from config_server.store import inventory
from config_server.store.files import DATABASE_FILE
from shared import api
from shared.api.certificates import Token, TokenRequest
from shared.api.route import Nothing
from shared.control.control_client import ControlClient
from shared.control.enrol import enrol
from shared.control.rest import RestClient
from shared.desired import Verb, WantedDisk
from shared.status import AgentDisk, AgentReport
from shared.vocabulary import Role
from tests.bench.latency import cpu_of
from tests.bench.stats import percentile
from tests.databases import opened
from tests.process_server_site import free_port

DAEMONS: Final = 200
MACHINES: Final = 500
DISKS: Final = (WantedDisk("/dev/sda", "sda"), WantedDisk("/dev/sdb", "sdb"))
REPORT_S: Final = 5.0
MEASURED_S: Final = 60.0
LOOKS: Final = 30
CORE_LIMIT: Final = 0.25
"""Of one core, for those daemons."""
LIST_LIMIT_S: Final = 1.0


def many_machines() -> dict[str, Any]:
    """(g) Share of a core over its limit, and seconds of a list over theirs: each ratio below 1 is within."""
    with tempfile.TemporaryDirectory() as name, _hung_storage() as url:
        with _server(Path(name), url) as (data, *_):
            pass
        with opened(data / DATABASE_FILE) as db:  # over the API each takes its seconds, while storage hangs
            for number in range(MACHINES):
                inventory.act(db, f"web{number}", Verb.PROTECT, time.time_ns(), disks=DISKS)
        with _server(Path(name), url) as site:
            return asyncio.run(_measured(*site))


@contextlib.contextmanager
def _hung_storage() -> Iterator[str]:
    """It takes connections and requests, and answers none."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(listener.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/account"
        listener.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


@contextlib.contextmanager
def _server(folder: Path, storage: str) -> Iterator[tuple[Path, str, int]]:
    """Its data folder, URL and process."""
    key = folder / "account.key"
    key.write_text("a2V5")
    key.chmod(0o600)
    config, port = folder / "config-server.toml", free_port()
    config.write_text(
        f'data_dir = "{folder}/data"\nlisten = "127.0.0.1"\nport = {port}\n'
        f'[blob]\nurl = "{storage}"\ncontainer = "vault"\naccount_key_file = "{key}"\n'
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, (folder / "log").open("wb") as log:
        (folder / "notify").unlink(missing_ok=True)
        manager.bind(str(folder / "notify"))
        process = subprocess.Popen(
            [sys.executable, "-m", "config_server", "--config", str(config)],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
            stderr=log,
        )
        try:
            manager.settimeout(60)
            while b"READY=1" not in manager.recv(4096):
                pass
            yield folder / "data", f"https://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()
            process.wait()


async def _measured(data: Path, url: str, pid: int) -> dict[str, Any]:
    context = ssl.create_default_context(cafile=data / "ca.pem")
    token = (data / "operator.token").read_text().strip()
    async with (
        RestClient(url, context, token=token, timeout_s=60) as operator,
        contextlib.AsyncExitStack() as stack,
    ):
        agents = []
        for number in range(DAEMONS):
            made: Token = await operator.call(
                api.TOKEN_CREATE, TokenRequest(role=Role.AGENT, name=f"web{number}")
            )
            files = await enrol(url, made.token, data.parent / f"agent-{number}")
            agent = ControlClient(url, files)
            stack.push_async_callback(agent.close)
            agents.append(agent)
        reporting = [asyncio.create_task(_report(agent, f"web{n}", n)) for n, agent in enumerate(agents)]
        await asyncio.sleep(3 * REPORT_S)  # the first ones are what is stored, and events
        began_s, cpu_s = time.monotonic(), cpu_of(pid)
        await asyncio.sleep(MEASURED_S)
        share = (cpu_of(pid) - cpu_s) / (time.monotonic() - began_s)
        looks = [await _look(operator) for _ in range(LOOKS)]
        for task in reporting:
            task.cancel()
        ended = await asyncio.gather(*reporting, return_exceptions=True)
    if failed := [each for each in ended if not isinstance(each, asyncio.CancelledError)]:
        raise AssertionError(f"{len(failed)} daemons could not report: {failed[0]}")
    slowest_s = percentile(looks, 95)
    return {
        "daemons": DAEMONS, "report_every_s": REPORT_S, "core_share": round(share, 4),
        "core_share_over_limit": round(share / CORE_LIMIT, 3),
        "machines": MACHINES, "list_p50_s": round(percentile(looks, 50), 4), "list_p95_s": round(slowest_s, 4),
        "list_over_limit": round(slowest_s / LIST_LIMIT_S, 3),
    }  # fmt: skip


async def _report(agent: ControlClient, machine: str, number: int) -> None:
    """As one that replicates: nothing changes but how much has passed."""
    await asyncio.sleep(REPORT_S * number / DAEMONS)
    choice = random.Random(number)
    while True:
        disks = [
            AgentDisk(name=name, device=f"/dev/{name}", sectors=1 << 21, mode="ordered", state="ordered")
            for name in ("sda", "sdb")
        ]
        await agent.report(
            AgentReport(machine=machine, state="ordered", epoch=1, disks=disks, ring_b=64 << 20)
        )
        await asyncio.sleep(REPORT_S * choice.uniform(0.9, 1.1))


async def _look(operator: RestClient) -> float:
    began_s = time.monotonic()
    found = await operator.call(api.MACHINES, Nothing())
    assert len(found.machines) == MACHINES
    return time.monotonic() - began_s
