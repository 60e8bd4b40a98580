"""The files that a lab's daemons are started with: configuration (TOML), vault, account key; and the profile with which the
command line finds it. Secrets are 0600 files, never arguments."""

from __future__ import annotations

import base64
import secrets
from pathlib import Path
from typing import Any, Final

import msgspec

from config_server.cli import profile
from deploy.lab.state import HOST, MACHINE, Lab
from deploy.lab.vocabulary import Daemon
from shared.blob import BlobConfig
from shared.host import durable
from shared.host.toml import to_toml

ACCOUNT: Final = "understudylab"
FOLDERS: Final = ("config-server", "secrets", "spool", "blob", "log", "tls", "agent", "master-target")


def make_folders(lab: Lab) -> None:
    for name in FOLDERS:
        (lab.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)


def make_secrets(lab: Lab) -> None:
    """The vault and Azurite's account key, unless they exist."""
    from shared.keys.vault import FileVault

    if not lab.vault_file.exists():
        FileVault.create(lab.vault_file)
    if lab.own_azurite and not lab.account_key_file.exists():
        key = base64.b64encode(secrets.token_bytes(32))
        durable.replace_file(lab.account_key_file, key, mode=0o600)


def blob_config(lab: Lab) -> BlobConfig:
    """Where the lab's vault container is."""
    settings = lab.settings
    if lab.own_azurite:
        return BlobConfig(
            url=f"https://{HOST}:{lab.ports(Daemon.AZURITE)[0]}/{ACCOUNT}",
            container=settings.blob_container,
            account_key_file=lab.account_key_file,
            ca_file=lab.ca_file,
        )
    return BlobConfig(
        url=settings.blob_url,
        container=settings.blob_container,
        account_key_file=Path(settings.blob_key_file) if settings.blob_key_file else None,
        ca_file=Path(settings.blob_ca_file) if settings.blob_ca_file else None,
    )


def write_configs(lab: Lab) -> list[Daemon]:
    """Write the daemons' configuration files; the daemons whose file changed."""
    changed = []
    for daemon, content in configs(lab).items():
        path, text = lab.config_file(daemon), to_toml(content).encode()
        if not path.exists() or path.read_bytes() != text:
            durable.replace_file(path, text, mode=0o600)
            changed.append(daemon)
    return changed


def write_profile(lab: Lab) -> None:
    """From then on `--lab DIR` of every command leads to this lab."""
    profile.save(
        lab.folder / profile.FILE,
        profile.Profile(
            server=lab.config_server_url,
            token_file=lab.operator_token_file,
            ca_file=lab.ca_file,
            rescue=profile.Rescue(vault_file=lab.vault_file, blob=blob_config(lab)),
        ),
    )


def configs(lab: Lab) -> dict[Daemon, dict[str, Any]]:
    """Daemon → its configuration."""
    settings = lab.settings
    blob = msgspec.to_builtins(blob_config(lab), enc_hook=str)
    control_url = lab.config_server_url
    return {
        Daemon.CONFIG_SERVER: {
            "name": MACHINE,
            "listen": HOST,
            "port": lab.ports(Daemon.CONFIG_SERVER)[0],
            "data_dir": str(lab.folder / Daemon.CONFIG_SERVER),
            "vault_file": str(lab.vault_file),
            "blob": blob,
        },
        Daemon.PROCESS_SERVER: {
            "name": MACHINE,
            "listen": HOST,
            "port": lab.ports(Daemon.PROCESS_SERVER)[0],
            "spool_dir": str(lab.spool),
            "cache_b": settings.cache_mib << 20,
            "segment_seconds": settings.segment_seconds,
            "control_url": control_url,
            "tls": tls(lab, Daemon.PROCESS_SERVER),
            "blob": blob,
        },
        Daemon.MASTER_TARGET: {
            "name": MACHINE,
            "state_dir": str(lab.folder / Daemon.MASTER_TARGET),
            "control_url": control_url,
            "tls": tls(lab, Daemon.MASTER_TARGET),
            "blob": blob,
        },
        Daemon.AGENT: {
            "machine": MACHINE,
            "disks": list(settings.disks),
            "identity": f"lab:{settings.id}",
            "process_server": f"{HOST}:{lab.ports(Daemon.PROCESS_SERVER)[0]}",
            "control_url": control_url,
            "state_dir": str(lab.folder / Daemon.AGENT),
            "pin_dir": str(lab.pin_dir),
            "ring_mib": settings.ring_mib,
            "point_interval_s": settings.point_interval_s,
            "tls": tls(lab, Daemon.AGENT),
        },
    }


def tls(lab: Lab, daemon: Daemon) -> dict[str, str]:
    folder = lab.tls_dir(daemon)
    return {"cert": str(folder / "cert.pem"), "key": str(folder / "key.pem"), "ca": str(folder / "ca.pem")}
