"""A process server as a daemon of its own, for tests: files, start, stop, and what it left in storage."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from shared.batch import Batch
from shared.blob import BlobConfig
from shared.host.toml import to_toml
from shared.keys.vault import FileVault
from shared.log.reader import LogReader
from shared.machine.storage import MachineStorage
from shared.trust import tls
from tests.epoch_ids import id_in
from tests.pki import TestCa
from tests.wire_parts import Agent


class Site:
    """Files of one process server, and its agents' certificates."""

    def __init__(self, folder: Path, blob: BlobConfig, ca: TestCa | None = None) -> None:
        self.folder = folder
        self.ca = ca or TestCa(folder)
        self.blob = blob
        self.vault_file = folder / "vault.json"
        FileVault.create(self.vault_file)
        self.config_file = folder / "process-server.toml"
        self.port = 0
        self.stderr = ""
        self.more: dict[str, Any] = {}

    def write_config(self, **more: Any) -> None:
        """`more` overrides what is configured by default, here and in every later call. With `control_url` there is no vault file."""
        self.more.update(more)
        values: dict[str, Any] = {
            "name": "ps1",
            "spool_dir": self.folder / "spool",
            "listen": "127.0.0.1",
            "port": self.port,
            "cache_b": 64 << 20,
            "segment_seconds": 0.3,
            "tls": self.more.get("tls") or self.ca.issue("process-server:ps1"),
            "blob": self.blob,
        }
        if "control_url" not in self.more:
            values["vault_file"] = self.vault_file
        self.config_file.write_text(to_toml(msgspec.to_builtins(values | self.more, enc_hook=str)))

    @asynccontextmanager
    async def daemon(
        self, stop: signal.Signals = signal.SIGTERM
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """A running daemon that has said READY; ended with `stop` and waited for."""
        self.port = self.port or free_port()
        self.write_config()
        notify = self.folder / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(notify))
            manager.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "process_server",
                "--config",
                str(self.config_file),
                env=os.environ | {"NOTIFY_SOCKET": str(notify)},
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async with asyncio.timeout(30):
                    while await asyncio.get_running_loop().sock_recv(manager, 1000) != b"READY=1":
                        pass
                yield process
            finally:
                if process.returncode is None:
                    process.send_signal(stop)
                async with asyncio.timeout(30):
                    _, stderr = await process.communicate()
                self.stderr = stderr.decode()

    def agent(self) -> Any:
        return Agent.connect(self.port, tls.client_context(self.ca.issue("agent:lab")))

    async def uploaded(self, epoch: int = 1) -> list[Batch]:
        """What a restore would find."""
        async with MachineStorage.connect(self.blob) as storage:
            store = await storage.find("lab")
            reader = LogReader(store, "lab")
            vault = FileVault(self.vault_file)
            found: list[Batch] = []
            id_ = await id_in(store, epoch)
            for entry in await reader.entries(id_):
                found += await reader.batches(id_, entry, vault)
            return found

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stderr.splitlines()]


def free_port() -> int:
    """For what listens there later, or never. None of those that the kernel gives to whoever asks for any, or connects: so no server of
    another test has it meanwhile, whose certificate is none here.
    """
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
