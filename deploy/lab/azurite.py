"""The lab's blob storage: Azurite over HTTPS, and how to kill it without making it lose what it acknowledged.

Azurite writes its catalog of blobs a few seconds after it acknowledged them; real storage does not forget.
So a kill first cuts the port, waits until the catalog files are written and quiet, and then kills: what was
acknowledged is on the disk, as it would be.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from deploy.lab.files import ACCOUNT
from deploy.lab.state import HOST, Lab
from deploy.lab.vocabulary import Daemon
from shared.errors import DaemonError, LabError

_ROOT: Final = Path(__file__).resolve().parents[2]
_MAIN: Final = _ROOT / "build/azurite/node_modules/azurite/dist/src/blob/main.js"
_SAVES_EVERY_S: Final = 5.0
"""Azurite looks so often whether its catalog changed (autosaveInterval), and then writes it."""
_QUIET_S: Final = 2.0
_SLACK_S: Final = 3.0
"""How late a look can be on a busy host."""
_FLUSH_LIMIT_S: Final = 60.0


def command(lab: Lab) -> list[str]:
    """Raises LabError when Azurite or Node is not installed."""
    node = shutil.which("node")
    if node is None or not _MAIN.exists():
        raise LabError(
            "The lab's blob storage cannot be started",
            cause="Node.js is not installed" if node is None else f"Azurite is not installed ({_MAIN})",
            action="Run `make setup`, or give --blob-url of a storage account.",
        )
    return [node, *arguments(lab)]


def arguments(lab: Lab) -> list[str]:
    """What follows Node's name."""
    tls = lab.tls_dir(Daemon.AZURITE)
    return [
        str(_MAIN),
        *("--blobHost", HOST, "--blobPort", str(lab.ports(Daemon.AZURITE)[0])),
        *("--location", str(lab.blob)),
        *("--cert", str(tls / "cert.pem"), "--key", str(tls / "key.pem")),
        *("--skipApiVersionCheck", "--disableProductStyleUrl", "--disableTelemetry", "--silent"),
    ]


def environment(lab: Lab) -> dict[str, str]:
    return {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{lab.account_key_file.read_text().strip()}"}


@contextlib.contextmanager
def port_cut(lab: Lab) -> Iterator[None]:
    """Nobody reaches the storage port inside the block. Raises DaemonError when the firewall cannot be
    changed."""
    restore_port(lab)
    rule = _rule(lab)
    _iptables(["-I", *rule])
    try:
        yield
    finally:
        _iptables(["-D", *rule])


def restore_port(lab: Lab) -> None:
    """Remove a rule that a killed command may have left behind."""
    if shutil.which("iptables") is None:
        return
    while (
        subprocess.run(["iptables", "-w", "-C", *_rule(lab)], capture_output=True, check=False).returncode
        == 0
    ):
        _iptables(["-D", *_rule(lab)])


def wait_until_saved(lab: Lab, show: Callable[[str], None]) -> None:
    """Wait, with the port cut, until everything acknowledged is in Azurite's files. Raises DaemonError."""
    cut_at = time.time()
    deadline = time.monotonic() + _FLUSH_LIMIT_S
    while True:
        now = time.time()
        written = [_mtime(path) for path in lab.blob.glob("__azurite_db*.json")]
        writing = list(lab.blob.glob("__azurite_db*.json~"))
        newest = max(written, default=0.0)
        # After one more of its looks, a catalog that is not being written had nothing new to save.
        looked = now > cut_at + _SAVES_EVERY_S + _SLACK_S
        if not writing and looked and now > newest + _QUIET_S:
            return
        if time.monotonic() > deadline:
            raise DaemonError(
                "azurite was not killed",
                cause=f"its catalog was still being written after {_FLUSH_LIMIT_S:.0f} s",
                action="Try again, or end it with `understudy lab stop azurite`.",
            )
        show("waiting for azurite to write what it acknowledged")
        time.sleep(0.2)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # it is being replaced


def _rule(lab: Lab) -> list[str]:
    port = str(lab.ports(Daemon.AZURITE)[0])
    comment = f"understudy-lab-{lab.settings.id}"
    match = ["INPUT", "-p", "tcp", "--dport", port, "-m", "comment", "--comment", comment]
    return [*match, "-j", "REJECT", "--reject-with", "tcp-reset"]


def _iptables(arguments: list[str]) -> None:
    try:
        subprocess.run(["iptables", "-w", *arguments], capture_output=True, check=True, env=os.environ)
    except (OSError, subprocess.CalledProcessError) as exc:
        said = (
            exc.stderr.decode(errors="replace").strip()
            if isinstance(exc, subprocess.CalledProcessError)
            else ""
        )
        raise DaemonError(
            "The storage port could not be cut",
            cause=said or str(exc),
            action="Install iptables, run as root, or use `understudy lab stop azurite`.",
        ) from exc
