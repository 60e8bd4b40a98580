"""A real blob service for tests: Azurite over HTTPS, with a certificate and an account key made on the fly.

`azurite` is one server for the whole test session, in memory; `blob_config` is a vault container of its own in it
for each test, `store` a connected BlobStore on it, `machine_storage` the machines beside it. For most tests a machine's container is a
container like any other: they use `store` itself, and hand it to what wants to look it up by `in_one`. Tests about persistence or
outages start an `Azurite` of their own.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import os
import re
import secrets
import selectors
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.blob import BlobConfig, BlobStore
from shared.machine.storage import MachineStorage

_ROOT: Final = Path(__file__).parent.parent
_MAIN: Final = _ROOT / "build/azurite/node_modules/azurite/dist/src/blob/main.js"
_WITHOUT_GC: Final = Path(__file__).with_name("azurite_gc.js")
_START_S: Final = 30.0


class Azurite:
    """One server process. `folder` holds certificate, key and log, and the blobs if `persistent`.

    In another network than the test's own it is `host` there, and `inside` is put in front of its command line to get there."""

    def __init__(
        self,
        folder: Path,
        *,
        persistent: bool = False,
        port: int = 0,
        tls: bool = True,
        oauth: bool = False,
        host: str = "127.0.0.1",
        inside: Sequence[str] = (),
    ) -> None:
        """`oauth`: takes tokens of Entra ID, too; it looks at audience, issuer and times, and not at signatures."""
        if not _MAIN.exists():
            raise RuntimeError("Azurite is not installed: run `make setup`")
        self.folder = folder
        self.persistent = persistent
        self.scheme = "https" if tls else "http"
        self.oauth = oauth
        self.host = host
        self._inside = inside
        self.port = port
        """0 until the first start; from then on the same over restarts."""
        self.account = "understudytest"
        self._key = base64.b64encode(secrets.token_bytes(32)).decode()
        self.key_file = folder / "account.key"
        self.ca_file = folder / "azurite.pem"
        self.tls_key_file = folder / "azurite.key"
        self._process: subprocess.Popen[str] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.key_file.write_text(self._key)
        self.key_file.chmod(0o600)
        self._make_certificate()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}/{self.account}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def config(self, container: str) -> BlobConfig:
        return BlobConfig(
            url=self.url, container=container, account_key_file=self.key_file, ca_file=self.ca_file
        )

    def start(self) -> None:
        command = [
            "node",
            "--require",
            str(_WITHOUT_GC),
            str(_MAIN),
            "--silent",
            "--skipApiVersionCheck",
            "--disableProductStyleUrl",
        ]
        listen = "0.0.0.0" if self._inside else "127.0.0.1"
        command += ["--disableTelemetry", "--blobHost", listen, "--blobPort", str(self.port)]
        if self.scheme == "https":
            command += ["--cert", str(self.ca_file), "--key", str(self.tls_key_file)]
        command += ["--oauth", "basic"] if self.oauth else []
        command += ["--location", str(self.folder)] if self.persistent else ["--inMemoryPersistence"]
        self._process = subprocess.Popen(
            [*self._inside, *command],
            env=os.environ | {"AZURITE_ACCOUNTS": f"{self.account}:{self._key}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
        )
        self.port = self._await_port()

    def stop(self) -> None:
        """Ends it gracefully, so that a persistent one writes what it holds."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once: a persistent one loses what it acknowledged in the last seconds."""
        self._end(signal.SIGKILL)

    def _end(self, with_signal: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(with_signal)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    def _await_port(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        said = ""
        deadline = time.monotonic() + _START_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while time.monotonic() < deadline and selector.select(deadline - time.monotonic()):
                # Not readline(): it takes more out of the pipe than it gives, and select() would wait for that.
                piece = os.read(self._process.stdout.fileno(), 4096)
                if not piece:
                    break
                said += piece.decode(errors="replace")
                if found := re.search(r"successfully listens on https?://[^:]+:(\d+)\n", said):
                    return int(found[1])
        self.kill()
        raise RuntimeError(f"Azurite did not start: {said}")

    def _make_certificate(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"azurite {secrets.token_hex(4)}")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [
                        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                        x509.DNSName("localhost"),
                        *([x509.DNSName(self.host)] if self._inside else []),
                    ]
                ),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.tls_key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        self.tls_key_file.chmod(0o600)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """The session's server: in memory, ended by its pid when the session ends."""
    with Azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def blob_config(azurite: Azurite) -> BlobConfig:
    """A container of the test's own (not created yet)."""
    return azurite.config(f"test-{secrets.token_hex(6)}")


@pytest.fixture
async def store(blob_config: BlobConfig) -> AsyncIterator[BlobStore]:
    """A connected store on the test's own, existing container."""
    async with BlobStore.connect(blob_config) as connected:
        await connected.ensure_container()
        yield connected


@pytest.fixture
async def machine_storage(store: BlobStore) -> MachineStorage:
    """The machines of the test's own vault container, which is `store`."""
    return MachineStorage(store)


class _InOne(MachineStorage):
    async def find(self, machine: str) -> BlobStore:
        return self.vault

    async def find_or_create(self, machine: str) -> BlobStore:
        await self.vault.ensure_container()
        return self.vault


def in_one(store: BlobStore) -> MachineStorage:
    """Whichever machine is asked for, its container is this one."""
    return _InOne(store)
