"""Initial replication of a disk against its peers, all into the same Azurite in one run: azcopy, and a script of threads that does what a
person would write: read, compress, encrypt, upload."""

from __future__ import annotations

import datetime
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import zstandard
from azure.storage.blob import AccountSasPermissions, BlobServiceClient, ResourceTypes, generate_account_sas
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.log import epochs
from shared.log.reader import LogReader
from tests.bench.system import disk
from tests.lab import Lab, lab
from tests.labstore import machine_store

DISK_B: Final = 2 << 30
DATA_B: Final = 3 * DISK_B // 4
CHUNK_B: Final = 4 << 20
THREADS: Final = 4
CONTAINER: Final = "bench-peers"
_PACKAGE: Final = Path(__file__).parent / "azcopy/package.json"
_INSTALLED: Final = Path("build/azcopy")


async def replicated_s(site: Lab) -> float:
    """From the beginning of the epoch to the listing of its last unordered segment."""
    async with machine_store(site) as store:
        info = await epochs.read_epoch(store, 1)
        entries = await LogReader(store, "lab").entries(info.id)
        full = [entry for entry in entries if not entry.ordered or entry.ordered[0][0] > entry.first]
        return (full[-1].written_ns - info.created_ns) / 1e9


def fill(device: str) -> None:
    """Three quarters of the disk get what lies on a machine's disk: its programs, as one stream, again and again."""
    with subprocess.Popen(
        ["tar", "-cf", "-", "/usr"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as tar:
        assert tar.stdout is not None
        written = 0
        with Path(device).open("r+b", buffering=0) as file:
            while written < DATA_B and (data := tar.stdout.read(1 << 20)):
                written += file.write(data[: DATA_B - written])
            os.fsync(file.fileno())
        tar.kill()
    if written < DATA_B:
        raise AssertionError(f"/usr has only {written} bytes")


def against_peers() -> dict[str, Any]:
    """(c') Seconds of initial replication, over those of each peer."""
    import asyncio

    azcopy = install_azcopy()
    with disk(DISK_B) as device:
        fill(device)
        with lab([device], point_interval=600) as site:
            site.wait_ordered(900)
            site.create_point()
            ours_s = asyncio.run(replicated_s(site))
            for daemon in ("agent", "process-server", "master-target"):
                site.stop(daemon)
            account = Account(site)
            peers: dict[str, Callable[[], None]] = {
                "azcopy_page_blob": lambda: azcopy_copy(azcopy, account, device, "PageBlob"),
                "azcopy_block_blob": lambda: azcopy_copy(azcopy, account, device, "BlockBlob"),
                "script_of_threads": lambda: script(account, device),
            }
            result: dict[str, Any] = {
                "disk_mib": DISK_B >> 20,
                "data_mib": DATA_B >> 20,
                "understudy_s": round(ours_s, 1),
            }
            for name, copy in peers.items():
                began = time.monotonic()
                copy()
                peer_s = time.monotonic() - began
                result[name] = {
                    "seconds": round(peer_s, 1),
                    "ratio_of_our_time_to_its": round(ours_s / peer_s, 2),
                }
            return result


class Account:
    """The lab's storage account, for programs that are not ours."""

    def __init__(self, site: Lab) -> None:
        self.url = str(site.status()["blob_url"])
        self.ca_file = site.folder / "config-server/ca.pem"
        self._key = (site.folder / "secrets/account.key").read_text().strip()
        self.service = BlobServiceClient(self.url, credential=self._key, connection_verify=str(self.ca_file))
        self.service.create_container(CONTAINER)

    def signed_url(self, name: str) -> str:
        sas = generate_account_sas(
            urlsplit(self.url).path.strip("/"),
            self._key,
            ResourceTypes(container=True, object=True),
            AccountSasPermissions(read=True, write=True, create=True, list=True, add=True),
            datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2),
        )
        return f"{self.url}/{CONTAINER}/{name}?{sas}"


def install_azcopy() -> Path:
    """From npm, into build/; its program. Debian's libsecret is what it links to."""
    if not _INSTALLED.exists():
        making = _INSTALLED.with_suffix(".new")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        shutil.copy(_PACKAGE, making)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--omit=dev"]
        subprocess.run(install, check=True, cwd=making)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "libsecret-1-0"],
            check=True,
            capture_output=True,
        )
        making.rename(_INSTALLED)
    (program,) = _INSTALLED.glob("node_modules/@azure-tools/azcopy-linux/dist/bin/azcopy_linux_*")
    program.chmod(0o755)
    return program


def azcopy_copy(program: Path, account: Account, device: str, kind: str) -> None:
    """The disk's content as one blob of that kind."""
    folder = Path("/dev/shm") / f"understudy-azcopy-{secrets.token_hex(3)}"
    env = os.environ | {
        "SSL_CERT_FILE": str(account.ca_file),
        "AZCOPY_LOG_LOCATION": str(folder),
        "AZCOPY_JOB_PLAN_LOCATION": str(folder),
        "AZCOPY_DISABLE_SYSLOG": "true",
        "NO_PROXY": "*",
    }
    backing = Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()
    url = account.signed_url(f"{kind.lower()}.raw")
    folder.mkdir()
    try:
        done = subprocess.run(
            [str(program), "copy", backing, url, "--blob-type", kind, "--from-to", "LocalBlob", "--log-level", "ERROR",
             "--check-length=false", "--skip-version-check"],
            env=env, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    if done.returncode != 0:
        raise AssertionError(f"azcopy: {done.stdout[-2000:]}{done.stderr[-500:]}")


def script(account: Account, device: str) -> None:
    """Four threads: read 4 MiB, leave out zeroes, zstd, AES-256-GCM, one block blob each."""
    key = AESGCM(AESGCM.generate_key(256))
    container = account.service.get_container_client(CONTAINER)
    zeroes = bytes(CHUNK_B)
    fd = os.open(device, os.O_RDONLY)

    def one(at: int) -> None:
        data = os.pread(fd, CHUNK_B, at)
        if data == zeroes[: len(data)]:
            return
        packed = zstandard.ZstdCompressor(level=1).compress(data)
        nonce = os.urandom(12)
        container.upload_blob(f"script/{at:012d}", nonce + key.encrypt(nonce, packed, None))

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(one, range(0, DISK_B, CHUNK_B)):
                pass
    finally:
        os.close(fd)
