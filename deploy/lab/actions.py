"""What the `lab` commands do: bring a whole installation up on this host, and its daemons up and down.

`up` is idempotent: it makes what is missing and starts what does not run, so a second `up` continues a lab,
whatever state it is in. A daemon is ready when it says READY=1 (the service manager's protocol); Azurite
when its port answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from deploy.lab import azurite, files, ports, processes, registry
from deploy.lab.daemons import Show, environment, kill, start, stop
from deploy.lab.state import HOST, MACHINE, Lab, Settings, locked
from shared import api, durable, enrol, identity
from shared.blob import BlobStore, Retry
from shared.errors import (
    UNDECODABLE,
    CertificateExpiredError,
    DaemonError,
    DeviceError,
    LabError,
    ProtectedPlaceError,
    UnderstudyError,
    UnknownAuthorityError,
    UsageError,
)
from shared.messages import Failure, Policy, Protection, TokenRequest
from shared.rest import RestClient, error_of
from shared.storage_stack import disks_below, whole_disk

_STORAGE_S: Final = 5.0
"""How long an account elsewhere is waited for before the lab is made."""


class DaemonState(msgspec.Struct):
    pid: int | None
    state: str
    """running | stopped"""
    ports: list[int]
    log: str


class LabStatus(msgspec.Struct, kw_only=True):
    dir: str
    machine: str
    disks: list[str]
    config_server: str
    daemons: dict[str, DaemonState]
    paths: dict[str, str | None]
    blob_url: str


# ---- up ----------------------------------------------------------------------------------------------


def up(folder: Path, wanted: dict[str, Any], show: Show) -> Lab:
    """Make or continue the lab in `folder`. `wanted` holds the settings that the user gave.

    Raises LabError, DeviceError, ListenError, StorageError, DaemonError and what enrolment raises.
    """
    _require_root()
    fresh = not Lab.is_one(folder)
    lab = _new_lab(folder, wanted) if fresh else _changed(Lab.open(folder), wanted)
    if not fresh:
        _check_place(lab)
    with contextlib.ExitStack() as stack:
        if fresh:
            # Nothing is written before what was asked for is known to be possible.
            check_devices(lab, show)
            registry.check_unprotected(lab)
            _check_ports(lab)
            if not lab.own_azurite:
                show(f"asking {lab.settings.blob_url}")
                asyncio.run(_check_storage(lab))
            durable.make_folder(folder)
        stack.enter_context(locked(folder))
        files.make_folders(lab)
        lab.save()
        registry.register(lab)
        files.make_secrets(lab)
        files.write_profile(lab)
        _restart_changed(lab, files.write_configs(lab), show)
        start(lab, "config-server", show)
        asyncio.run(_enrol_all(lab, show))
        for daemon in lab.daemons:
            start(lab, daemon, show)
    return lab


def _new_lab(folder: Path, wanted: dict[str, Any]) -> Lab:
    if not wanted.get("disks"):
        raise UsageError(
            f"No lab is in {folder} yet, and no disk was given",
            action="Give --disk DEV for each disk to protect.",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LabError(
            f"A lab cannot be made in {folder}",
            cause="it is not an empty folder, and holds no lab",
            action="Give another folder, or empty this one.",
        )
    return Lab(folder, Settings(id=secrets.token_hex(4), **wanted))


def _changed(lab: Lab, wanted: dict[str, Any]) -> Lab:
    """The lab with the settings that may change; the capture that is pinned fixes the others."""
    fixed = {"disks": "--disk", "ring_mib": "--ring-mib", "blob_url": "--blob-url"}
    for name, flag in fixed.items():
        if name in wanted and wanted[name] != getattr(lab.settings, name):
            before = getattr(lab.settings, name)
            shown = ", ".join(before) if isinstance(before, tuple) else before or "its own Azurite"
            raise LabError(
                f"The lab in {lab.folder} cannot continue with another {flag}",
                cause=f"it was made with {shown}",
                action="Leave the option out, or end this lab first: understudy lab down --wipe.",
            )
    if "port_base" in wanted and wanted["port_base"] != lab.settings.port_base:
        running = [name for name in lab.daemons if processes.recall(lab.pid_file(name))]
        if running:
            raise LabError(
                "The lab's ports cannot change now",
                cause=f"{', '.join(running)} run",
                action="Stop it first: understudy lab down.",
            )
    return Lab(lab.folder, msgspec.structs.replace(lab.settings, **wanted))


def check_devices(lab: Lab, show: Show) -> None:
    """Raises what speaks against protecting the disks, before anything is started."""
    disks = lab.settings.disks
    if len(set(disks)) < len(disks):
        raise UsageError("A disk was given twice", cause=", ".join(disks))
    show(f"checking {', '.join(disks)}")
    _preflight(lab, show)
    _check_place(lab)


def _preflight(lab: Lab, show: Show) -> None:
    """Ask the agent's program whether it could protect the disks, and how well."""
    result = subprocess.run(
        [sys.executable, "-m", "agent", "preflight", *lab.settings.disks, "--output", "json"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        env=environment(lab),
        check=False,
    )
    try:
        found = msgspec.json.decode(result.stdout, type=_Preflight)
    except UNDECODABLE as exc:
        said = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise DeviceError("The disks could not be checked", cause=said) from exc
    for device in found.devices:
        if device.error is not None:
            raise error_of(device.error)
        if device.mode != "ordered":
            show(f"{device.device} can only be protected in {device.mode} mode: {device.cause}")


class _Device(msgspec.Struct):
    device: str
    error: Failure | None = None
    mode: str = ""
    cause: str = ""


class _Preflight(msgspec.Struct):
    devices: list[_Device]


def _check_place(lab: Lab) -> None:
    """The lab must not write to a disk that it protects, whatever lies between: each write would make another."""
    disks = {whole_disk(Path(disk)): disk for disk in lab.settings.disks}
    for place in (lab.folder, *(lab.folder / name for name in files.FOLDERS)):
        for name in sorted(disks_below(place) & disks.keys()):
            raise ProtectedPlaceError(
                f"A lab cannot be in {lab.folder}",
                cause=f"{place} lies on {disks[name]}, which it would protect: its own writes would never end",
            )


def _check_ports(lab: Lab) -> None:
    for daemon in lab.daemons:
        for port in lab.ports(daemon):
            ports.check_free(HOST, port, daemon)


async def _check_storage(lab: Lab) -> None:
    """Ask the account elsewhere for the lab's container, as its daemons will: an account that can never work is found here."""
    async with BlobStore.connect(files.blob_config(lab)) as store:
        await store.with_retry(Retry(deadline_s=_STORAGE_S)).ensure_container()


def _restart_changed(lab: Lab, changed: list[str], show: Show) -> None:
    """A running daemon with other settings than its file's is stopped; it is started again with the rest."""
    for daemon in changed:
        if processes.recall(lab.pid_file(daemon)):
            show(f"{daemon} gets new settings")
            stop(lab, daemon, show)


async def _enrol_all(lab: Lab, show: Show) -> None:
    """A certificate for each daemon that has none, and the machine in the inventory."""
    context = ssl.create_default_context(cafile=lab.ca_file)
    token = lab.operator_token_file.read_text().strip()
    async with RestClient(lab.config_server_url, context, token=token) as client:
        for daemon in lab.daemons:
            if daemon == "config-server" or _is_enrolled(lab, daemon):
                continue
            show(f"enrolling {daemon}")
            role, name = ("storage", "azurite") if daemon == "azurite" else (daemon, MACHINE)
            hosts = [] if daemon == "agent" else [HOST, "localhost"]
            made = await client.call(
                api.TOKEN_CREATE, TokenRequest(role=role, name=name, hosts=hosts, ttl_s=120)
            )
            await enrol.enrol(lab.config_server_url, made.token, lab.tls_dir(daemon))
            stop(
                lab, daemon, show
            )  # should it run with an old certificate: it is started again with the rest
        policy = Policy(point_interval_s=lab.settings.point_interval_s)
        body = Protection(disks=list(lab.settings.disks), policy=policy)
        await client.call(api.PROTECT, body, machine=MACHINE)


def _is_enrolled(lab: Lab, daemon: str) -> bool:
    files = identity.files_in(lab.tls_dir(daemon))
    if not all(path.exists() for path in (files.cert, files.key, files.ca)):
        return False
    try:
        identity.check_certificate(files)
    except (CertificateExpiredError, UnknownAuthorityError):
        return False
    # Azurite cannot renew; the others do it themselves, but may have been down for long.
    return not identity.renewal_is_due(files.cert)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise UsageError(
            "A lab must be run as root",
            cause="it loads BPF programs and reads block devices",
            action="Use sudo.",
        )


# ---- down and status ---------------------------------------------------------------------------------


def down(lab: Lab, show: Show) -> None:
    """Stop all daemons. Capture stays attached: the next `up` continues it."""
    errors: list[UnderstudyError] = []
    for daemon in reversed(lab.daemons):
        try:
            stop(lab, daemon, show)
        except DaemonError as exc:
            errors.append(exc)  # one that hangs must not keep the others running
    if errors:
        raise errors[0]


def wipe(lab: Lab, show: Show) -> None:
    """Stop everything, detach the capture, delete the folder. Raises DaemonError when a trace would stay."""
    for daemon in reversed(lab.daemons):
        try:
            stop(lab, daemon, show)
        except DaemonError:
            kill(lab, daemon, show)
    azurite.restore_port(lab)
    show("detaching the capture")
    result = subprocess.run(
        [sys.executable, "-m", "agent", "detach", "--config", str(lab.config_file("agent"))],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        env=environment(lab),
        check=False,
    )
    if result.returncode != 0:
        raise DaemonError(
            "The capture could not be detached, so the lab was not deleted",
            cause=(result.stderr or result.stdout).strip()[-500:] or f"exit code {result.returncode}",
            action="Put that right and run the command again.",
        )
    registry.unregister(lab)
    show("deleting the folder")
    # The settings go last: an interrupted wipe can be run again.
    for entry in lab.folder.iterdir():
        if entry.name not in ("lab.json", "lab.lock"):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for name in ("lab.json", "lab.lock"):
        (lab.folder / name).unlink(missing_ok=True)
    lab.folder.rmdir()


def status(lab: Lab) -> LabStatus:
    states = {}
    for daemon in lab.daemons:
        process = processes.recall(lab.pid_file(daemon))
        states[daemon] = DaemonState(
            pid=process.pid if process else None,
            state="running" if process else "stopped",
            ports=lab.ports(daemon),
            log=str(lab.log_file(daemon)),
        )
    return LabStatus(
        dir=str(lab.folder),
        machine=MACHINE,
        disks=list(lab.settings.disks),
        config_server=lab.config_server_url,
        daemons=states,
        paths={
            "spool": str(lab.spool),
            "blob": str(lab.blob) if lab.own_azurite else None,
            "log": str(lab.folder / "log"),
            "vault": str(lab.vault_file),
            "ca": str(lab.ca_file),
            "operator_token": str(lab.operator_token_file),
        },
        blob_url=files.blob_config(lab).url,
    )
