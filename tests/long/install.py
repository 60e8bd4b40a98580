"""docs/install.md, its commands as they stand there, on four hosts: an installation comes up by set-ups alone, each of them killed at every
step before; a machine is protected, and comes back with storage and recovery key alone."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any, Final

from tests.containers import program
from tests.containers.container import Container
from tests.containers.installation import (
    CONFIG_SERVER,
    MACHINE,
    MASTER_TARGET,
    PROCESS_SERVER,
    Installation,
    four,
)
from tests.containers.site import site
from tests.long.containers import DISK_B, WRITE_B
from tests.long.story import Result

_PAGE: Final = Path(__file__).parents[2] / "docs/install.md"
_PROFILE: Final = {"UNDERSTUDY_PROFILE": "/etc/understudy/profile.toml"}
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOST: Final = 60


def install() -> Result:
    began = time.monotonic()
    killed: dict[str, int] = {}
    with site() as here, four(here) as installation:
        hosts = {host.role: host.container for host in installation.hosts}
        disk = here.disk("disk", DISK_B)
        hosts["agent"].hand_in(disk)
        given(installation)
        for role, block in blocks(installation, disk):
            if (command := set_up(block)) is not None:
                before, after = block.split(command)
                shell(hosts[role], before)
                killed[role] = kill_at_each_step(hosts[role], command)
                block = command + after
            shell(hosts[role], block)
            hand_over_tokens(hosts)
            if command is not None:
                check_nothing_is_changed_by_another_run(hosts[role], command)
        for role, container in hosts.items():
            unit = container.unit(f"understudy-{role}")
            if (unit.active, unit.restarts) != ("active", "0"):
                raise AssertionError(f"{role} is not well: {unit}\n{container.journal(f'understudy-{role}')}")
            if container.read("systemctl", "is-enabled", f"understudy-{role}") != "enabled":
                raise AssertionError(f"{role} does not come back after a boot")
        ordered_s = time.monotonic() - began
        restore_with_the_recovery_key(installation, disk)
    return {"killed_at": killed, "ordered_s": round(ordered_s, 1)}


def given(installation: Installation) -> None:
    """What the page says that an administrator has."""
    for host in installation.hosts:
        if host is not installation.machine:
            host.container.put(installation.azurite.key_file, "/root/account.key", mode=0o600)
            host.container.put(installation.azurite.ca_file, "/root/storage-ca.pem")
    installation.config_server.container.run("mkdir", "-p", "/mnt/stick")


def blocks(installation: Installation, disk: str) -> list[tuple[str, str]]:
    """Role of the host → commands, in the order of the page; hosts, disk and account are this site's, and what its storage and machine
    need beside is added."""
    found = re.findall(r"^```sh ([a-z-]+)\n(.*?)^```", _PAGE.read_text(), re.DOTALL | re.MULTILINE)
    names = {
        "config.example.com": CONFIG_SERVER,
        "ps1.example.com": PROCESS_SERVER,
        "mt1.example.com": MASTER_TARGET,
        "https://account.blob.core.windows.net": installation.azurite.url,
        "--blob-key-file /root/account.key": "--blob-key-file /root/account.key --blob-ca-file /root/storage-ca.pem",
        "--disk /dev/disk/by-id/wwn-0x5000c500a1b2c3d4": f"--disk {disk} --identity container:{MACHINE}",
        "./understudy-*.whl": "/srv/program/understudy-*.whl",
    }
    made = []
    for role, block in found:
        for ours, theirs in names.items():
            block = block.replace(ours, theirs)
        made.append((role, block))
    return made


def set_up(block: str) -> str | None:
    """The command of a set-up in it, with its lines that go on."""
    found = re.search(r"^\S+ (?:init|-m \w+ setup) (?:.*\\\n)*.*$", block, re.MULTILINE)
    return found[0] if found else None


def shell(container: Container, script: str, **env: str) -> str:
    """As root, in root's home. Raises CommandFailedError."""
    words = ("bash", "-euo", "pipefail", "-c", f"cd /root\n{script}")
    whole = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": "/root", **_PROFILE, **env}
    return container.run(*words, env=whole, within_s=1800).stdout


def kill_at_each_step(container: Container, command: str) -> int:
    """Each run is killed a step further than the one before, over what that left; how many."""
    words = ("bash", "-c", f"cd /root; exec {command}")
    for step in range(1, _MOST):
        env = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": "/root", "UNDERSTUDY_CRASH_AT": f"setup.step:{step}"}
        done = container.run(*words, check=False, within_s=600, env=env)
        if done.returncode == 0:
            return step - 1
        if done.returncode not in (-signal.SIGKILL, 128 + signal.SIGKILL):
            raise AssertionError(f"step {step}: exit code {done.returncode}: {done.stdout}{done.stderr}")
    raise AssertionError("it never comes to its end")


def hand_over_tokens(hosts: dict[str, Container]) -> None:
    """As an administrator copies them."""
    for role, container in hosts.items():
        if role != "config-server" and hosts["config-server"].succeeds("test", "-e", f"/root/{role}.token"):
            container.put(
                hosts["config-server"].get(f"/root/{role}.token"), f"/root/{role}.token", mode=0o600
            )
            hosts["config-server"].run("rm", f"/root/{role}.token")


def check_nothing_is_changed_by_another_run(container: Container, command: str) -> None:
    """Its token is gone by then, which it does not need."""
    again = re.sub(r"--token-file \S+", "", command)
    report: Any = json.loads(shell(container, f"{again} --output json"))
    if report["changed"] or report["error"]:
        raise AssertionError(f"a second run was none: {report}")


def restore_with_the_recovery_key(installation: Installation, disk: str) -> None:
    """What is written last is in it; no server runs any more."""
    machine, config_server = installation.machine.container, installation.config_server.container
    machine.write_random(disk, WRITE_B)
    understudy = f"{program.PLACE}/bin/understudy"
    shell(config_server, f"{understudy} point create {MACHINE} --wait")
    for host in installation.hosts:
        host.container.run("systemctl", "stop", host.unit)
    config_server.run("mv", "/etc/understudy/config-server/vault.json", "/root/gone")
    storage = f"--blob-url {installation.azurite.url} --blob-key-file /root/account.key --blob-ca-file /root/storage-ca.pem"
    shell(
        config_server,
        f"{understudy} restore {MACHINE} --to restored --vault-file /mnt/stick/recovery.key {storage}",
    )
    restored = config_server.read("sha256sum", f"/root/restored/{Path(disk).name}.raw").split()[0]
    if restored != machine.read("sha256sum", disk).split()[0]:
        raise AssertionError("what was restored is not what is on the disk")
