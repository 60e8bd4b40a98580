"""`lab up` and `lab status`: bring a whole installation up on this host.

`up` is idempotent: it makes what is missing and starts what does not run, so a second `up` continues a lab,
whatever state it is in. A daemon is ready when it says READY=1 (the service manager's protocol); Azurite
when its port answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from deploy.lab import files, ports, registry, whereabouts
from deploy.lab.daemons import Show, environment, pid_of, start, stop
from deploy.lab.state import HOST, MACHINE, Lab, Settings, is_rest, locked
from deploy.lab.vocabulary import Daemon
from shared import api, decoding
from shared.api.certificates import TokenRequest
from shared.api.policies import Policy
from shared.api.protection import Protection
from shared.api.route import Failure
from shared.blob import BlobStore, Retry
from shared.control import enrol
from shared.control.rest import RestClient, error_of
from shared.crashpoints import reach
from shared.errors import (
    UNDECODABLE,
    CertificateExpiredError,
    DeviceError,
    HostClockError,
    LabError,
    ProtectedPlaceError,
    UnknownAuthorityError,
    UsageError,
)
from shared.host import durable
from shared.host.storage_stack import disks_below, whole_disk
from shared.trust import identity
from shared.vocabulary import CaptureMode, Role

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
    daemons: dict[Daemon, DaemonState]
    paths: dict[str, str | None]
    blob_url: str


# ---- up ----------------------------------------------------------------------------------------------


def up(folder: Path, wanted: dict[str, Any], show: Show) -> Lab:
    """Make or continue the lab in `folder`. `wanted` holds the settings that the user gave.

    Raises LabError, DeviceError, ListenError, StorageError, DaemonError and what enrolment raises.
    """
    _require_root()
    _check_name(folder)
    fresh = not Lab.is_one(folder)
    lab = _new_lab(folder, wanted) if fresh else _changed(Lab.open(folder), wanted)
    if fresh:
        # Nothing is written before what was asked for is known to be possible.
        check_devices(lab, show)
        registry.check_unprotected(lab)
        _check_ports(lab)
        if not lab.own_azurite:
            show(f"asking {lab.settings.blob_url}")
            asyncio.run(_check_storage(lab))
    else:
        whereabouts.check(lab)
        _check_place(lab)
    again = (
        "Make room there, or make it writable, and run the command again; `lab down --wipe` needs no room."
    )
    with (
        durable.named(f"The lab in {folder} could not be made", action=again),
        contextlib.ExitStack() as stack,
    ):
        durable.make_folder(folder)
        reach("lab.step")
        stack.enter_context(locked(folder))
        reach("lab.step")
        lab.save()  # first: from here on it can go on, or be wiped
        reach("lab.step")
        files.make_folders(lab)
        registry.register(lab)
        reach("lab.step")
        files.make_secrets(lab)
        files.write_profile(lab)
        reach("lab.step")
        _restart_changed(lab, files.write_configs(lab), show)
        reach("lab.step")
        start(lab, Daemon.CONFIG_SERVER, show)
        asyncio.run(_enrol_all(lab, show))
        reach("lab.step")
        for daemon in lab.daemons:
            start(lab, daemon, show)
            reach("lab.step")
    return lab


def _check_name(folder: Path) -> None:
    """Its name goes into configuration files and JSON, which are UTF-8."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as exc:
        raise UsageError(
            f"A lab cannot be made in {folder}",
            cause="the name is not UTF-8, as configuration files are",
            action="Give a folder with another name.",
        ) from exc


def _new_lab(folder: Path, wanted: dict[str, Any]) -> Lab:
    if not wanted.get("disks"):
        raise UsageError(
            f"No lab is in {folder} yet, and no disk was given",
            action="Give --disk DEV for each disk to protect.",
        )
    if folder.exists() and not is_rest(folder):
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
        running = [name for name in lab.daemons if pid_of(lab, name) is not None]
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
        found = decoding.decode(result.stdout, type=_Preflight)
    except UNDECODABLE as exc:
        said = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise DeviceError("The disks could not be checked", cause=said) from exc
    for device in found.devices:
        if device.error is not None:
            raise error_of(device.error)
        if device.mode != CaptureMode.ORDERED:
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


def _restart_changed(lab: Lab, changed: list[Daemon], show: Show) -> None:
    """A running daemon with other settings than its file's is stopped; it is started again with the rest."""
    for daemon in changed:
        if pid_of(lab, daemon) is not None:
            show(f"{daemon} gets new settings")
            stop(lab, daemon, show)


async def _enrol_all(lab: Lab, show: Show) -> None:
    """A certificate for each daemon that has none, and the machine in the inventory."""
    context = ssl.create_default_context(cafile=lab.ca_file)
    token = lab.operator_token_file.read_text().strip()
    async with RestClient(lab.config_server_url, context, token=token) as client:
        for daemon in lab.daemons:
            if daemon is Daemon.CONFIG_SERVER or _is_enrolled(lab, daemon):
                continue
            show(f"enrolling {daemon}")
            role, name = (Role.STORAGE, daemon.value) if daemon is Daemon.AZURITE else (daemon, MACHINE)
            hosts = [] if daemon is Daemon.AGENT else [HOST, "localhost"]
            made = await client.call(
                api.TOKEN_CREATE, TokenRequest(role=role, name=name, hosts=hosts, ttl_s=120)
            )
            await enrol.enrol(lab.config_server_url, made.token, lab.tls_dir(daemon), replace=True)
            reach("lab.step")
            stop(
                lab, daemon, show
            )  # should it run with an old certificate: it is started again with the rest
        policy = Policy(point_interval_s=lab.settings.point_interval_s)
        # The lab says which disks are its machine's; its agent may have been down when that was said last.
        disks = list(lab.settings.disks)
        body = Protection(disks=disks, policy=policy, force=True, offline=True, fewer=True)
        await client.call(api.PROTECT, body, machine=MACHINE)


def _is_enrolled(lab: Lab, daemon: Daemon) -> bool:
    files = identity.files_in(lab.tls_dir(daemon))
    if not all(path.exists() for path in (files.cert, files.key, files.ca)):
        return False
    try:
        identity.check_certificate(files)
    except (CertificateExpiredError, HostClockError, UnknownAuthorityError):
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


# ---- status -------------------------------------------------------------------------------------------


def status(lab: Lab) -> LabStatus:
    states = {}
    for daemon in lab.daemons:
        pid = pid_of(lab, daemon)
        states[daemon] = DaemonState(
            pid=pid,
            state="stopped" if pid is None else "running",
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
