"""docs/install.md, its commands as they stand there, on four hosts: an installation comes up by set-ups alone, each of them killed at every
step before; all of it is upgraded under load, and each host rebooted; on the day itself the machine comes back by its servers, and with
storage and recovery key alone, and the config server on a host that has nothing of it; and what is removed leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any, Final

from agent.capture import libbpf
from tests.containers import belongings, program
from tests.containers.container import Container
from tests.containers.installation import (
    CONFIG_SERVER,
    MACHINE,
    MASTER_TARGET,
    PROCESS_SERVER,
    Host,
    Installation,
    four,
)
from tests.containers.site import site
from tests.long.containers import DISK_B, WRITE_B, check_point, pinned_links, reboot, wait_ordered
from tests.long.story import Result, Story

_DOCS: Final = Path(__file__).parents[2] / "docs"
_PAGE: Final = _DOCS / "install.md"
_LOST: Final = _DOCS / "operations/recovering.md"
"""The config server is."""
_PROFILE: Final = {"UNDERSTUDY_PROFILE": "/etc/understudy/profile.toml"}
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOST: Final = 60
_UPGRADING: Final = "Upgrading"
_REMOVING: Final = "Removing it"
_THE_DAY: Final = "On the day itself"
"""Titles of the page; all that is said elsewhere installs."""
_EVERY_HOST: Final = "every-host"
_LOOKS: Final = {"look", "copy"}
"""Into an image with partitions and file systems: tests/integration/setup/test_page.py has one."""
_ELSEWHERE: Final = {"same-host", "afterwards", "old-config-server"}
"""Run by tests/system/test_docs_recovery.py, as the others of that page."""
_BACKUP: Final = "/var/backups/understudy.tar"
_RECOVERY_KEY: Final = "/mnt/stick/recovery.key"
RATE_MB: Final = 1
_INTERVAL_S: Final = 60.0
"""Of the page's policy."""


def install() -> Result:
    began = time.monotonic()
    killed: dict[str, int] = {}
    with site() as here, four(here) as installation:
        hosts = {host.role: host.container for host in installation.hosts}
        disk = here.disk("disk", DISK_B)
        hosts["agent"].hand_in(disk)
        given(installation)
        had = {role: belongings.of(container) for role, container in hosts.items()}
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
        check_policy(installation)
        upgraded = upgrade_under_load(installation, disk)
        rebooted_s = {host.container.name: reboot(installation, host) for host in installation.hosts}
        check_point(installation, disk)
        on_the_day_itself(installation, disk)
        remove(installation, disk, had)
    return {
        "killed_at": killed,
        "ordered_s": round(ordered_s, 1),
        "upgraded": upgraded,
        "rebooted_s": rebooted_s,
    }


def given(installation: Installation) -> None:
    """What the page says that an administrator has."""
    for host in installation.hosts:
        if host is not installation.machine:
            host.container.put(installation.azurite.key_file, "/root/account.key", mode=0o600)
            host.container.put(installation.azurite.ca_file, "/root/storage-ca.pem")
    installation.config_server.container.run("mkdir", "-p", "/mnt/stick")


def blocks(installation: Installation, disk: str, title: str = "") -> list[tuple[str, str]]:
    """Role of the host → commands, in the order of the page, or of the part of this title; hosts, disk and account are this site's, and
    what its storage and machine need beside is added."""
    _, *parts = re.split(r"^## ", _PAGE.read_text(), flags=re.MULTILINE)
    titles = (
        {title} if title else {part.partition("\n")[0] for part in parts} - {_UPGRADING, _REMOVING, _THE_DAY}
    )
    text = "".join(part for part in parts if part.partition("\n")[0] in titles)
    if title == _THE_DAY:
        text += _LOST.read_text()
    found = re.findall(r"^```sh ([a-z-]+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
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


def check_policy(installation: Installation) -> None:
    """What the page assigns is told to the agent: it makes points by itself."""
    shown = installation.read("machine", "show", MACHINE)
    if (shown["policy_name"], shown["wish"]["pending"]) != ("gold", None):
        raise AssertionError(f"the policy is not the agent's: {shown}")
    before, deadline = len(installation.read("point", "list", MACHINE)), time.monotonic() + 3 * _INTERVAL_S
    while len(installation.read("point", "list", MACHINE)) <= before:
        if time.monotonic() > deadline:
            raise AssertionError(
                f"no point in {3 * _INTERVAL_S:.0f} s, of which one every {_INTERVAL_S:.0f} s is wanted"
            )
        time.sleep(1.0)


def on_the_day_itself(installation: Installation, disk: str) -> None:
    """By the page's commands. The machine is gone, what is written last is in each restore; then all servers are, of which another host has
    nothing; then a host with nothing of it becomes the config server, by storage's state and by a backup, and all is as before."""
    machine, config_server = installation.machine, installation.config_server.container
    other = installation.master_target.container
    machine.container.write_random(disk, WRITE_B)
    shell(config_server, f"{program.PLACE}/bin/understudy point create {MACHINE} --wait")
    machine.container.run("systemctl", "stop", machine.unit)
    wanted = machine.container.read("sha256sum", disk).split()[0]
    found = blocks(installation, disk, _THE_DAY)
    roles = {"config-server", "other-host", "new-config-server", "from-backup"} | _LOOKS | _ELSEWHERE
    assert {role for role, _ in found} == roles
    for role, block in found:
        if role == "config-server":
            shell(config_server, block)
    kept = {"recovery.key": config_server.get(_RECOVERY_KEY), "understudy.tar": config_server.get(_BACKUP)}
    for host in installation.hosts:
        host.container.run("systemctl", "stop", host.unit)
    hosts = (("other-host", other), ("new-config-server", config_server), ("from-backup", config_server))
    for role, container in hosts:
        if container is config_server:
            config_server.run("systemctl", "stop", installation.config_server.unit)
            config_server.run("rm", "-r", "/etc/understudy", "/var/lib/understudy")
        for name, data in kept.items():
            container.put(data, f"/root/{name}", mode=0o600)
        for at, block in found:
            if at == role:
                shell(container, block)
        container.run("rm", *(f"/root/{name}" for name in kept))
    check_restored_images(config_server, other, disk, wanted)
    for host in installation.hosts:
        host.start()
    wait_ordered(installation)


def check_restored_images(config_server: Container, other: Container, disk: str, wanted: str) -> None:
    for container, folder in ((config_server, f"/var/tmp/{MACHINE}"), (other, "/var/tmp/rescued")):
        if container.read("sha256sum", f"{folder}/{Path(disk).name}.raw").split()[0] != wanted:
            raise AssertionError(f"what was restored in {folder} is not what is on the disk")
        container.run("rm", "-r", folder)


def check_restored(installation: Installation, disk: str) -> None:
    """With what an administrator has kept, and the program, when nothing else is left."""
    machine, config_server = installation.machine.container, installation.config_server.container
    storage = f"--blob-url {installation.azurite.url} --blob-key-file /root/account.key --blob-ca-file /root/storage-ca.pem"
    shell(
        config_server,
        f"{program.PLACE}/bin/understudy restore {MACHINE} --to restored --vault-file {_RECOVERY_KEY} {storage}",
    )
    restored = config_server.read("sha256sum", f"/root/restored/{Path(disk).name}.raw").split()[0]
    if restored != machine.read("sha256sum", disk).split()[0]:
        raise AssertionError("what was restored is not what is on the disk")
    config_server.run("rm", "-r", "/root/restored")


class Protected:
    """The machine, for a story: its points, and its disk as it is restored on the config server's host."""

    def __init__(self, installation: Installation, disk: str) -> None:
        self._installation = installation
        self._image = f"{Path(disk).name}.raw"

    def points(self) -> list[Any]:
        """All, oldest first."""
        points: list[Any] = self._installation.read("point", "list", MACHINE)
        return sorted(points, key=lambda point: (point["epoch"], point["batch"]))

    def create_point(self) -> Any:
        return self._installation.read("point", "create", MACHINE, "--wait")

    def restore(self, point: str, to: Path) -> list[Path]:
        """In a folder of this host's."""
        there = "/root/restored"
        container = self._installation.config_server.container
        self._installation.command("restore", MACHINE, "--point", point, "--to", there)
        to.mkdir()
        image = to / self._image
        image.write_bytes(container.get(f"{there}/{self._image}"))
        container.run("rm", "-r", there)
        return [image]


def upgrade_under_load(installation: Installation, disk: str) -> Result:
    """Host by host, to a version with other capture programs, while the machine writes: in its epoch, and every point is a prefix. Nothing
    but the story was ever written to the disk."""
    hosts = {host.role: host for host in installation.hosts}
    machine = Protected(installation, disk)
    epoch = installation.read("machine", "show", MACHINE)["epoch"]
    links = pinned_links(installation)
    program.renew(installation.site)
    took: dict[str, float] = {}
    with Story(installation.site.folder, [disk], RATE_MB, DISK_B) as story:
        for role, block in blocks(installation, disk, _UPGRADING):
            began = time.monotonic()
            upgrade(hosts[role], block)
            wait_ordered(installation)
            took[role] = round(time.monotonic() - began, 1)
            complete = story.writer.completed
            story.expect(machine.create_point()["id"], complete)
        story.stop()
    if took.keys() != hosts.keys():
        raise AssertionError(f"the page does not say how all are upgraded, but only {list(took)}")
    if (now := installation.read("machine", "show", MACHINE)["epoch"]) != epoch:
        raise AssertionError(f"the upgrade cost a resync: epoch {epoch} became {now}")
    if left := pinned_links(installation) & links:
        raise AssertionError(f"programs of the older version are attached still: links {left}")
    result = story.check_every_point(machine, len(hosts))
    story.check_latest(machine)
    return {"host_s": took, **result}


def upgrade(host: Host, block: str) -> None:
    """By the page's commands. The daemon of the newer version runs afterwards, by its unit."""
    before, invocation = program.version(host.container), host.container.unit(host.unit).invocation
    shell(host.container, block)
    after, unit = program.version(host.container), host.container.unit(host.unit)
    if before == after:
        raise AssertionError(f"{host.role} is what it was, {after}")
    if (unit.active, unit.restarts) != ("active", "0") or unit.invocation == invocation:
        raise AssertionError(
            f"{host.role} does not run as {after}: {unit}\n{host.container.journal(host.unit)}"
        )


def remove(installation: Installation, disk: str, had: dict[str, belongings.Belongings]) -> None:
    """By the page's commands: each host has what it had before anything was installed, the kernel no program of ours, and storage all that
    it had. `had`: by role."""
    hosts = {host.role: host.container for host in installation.hosts}
    links = pinned_links(installation)
    for role, block in blocks(installation, disk, _REMOVING):
        if role != _EVERY_HOST:
            shell(hosts[role], block)
            continue
        check_restored(installation, disk)
        for container in hosts.values():
            shell(container, block)
    # The administrator's, as what was there before.
    shell(hosts["config-server"], f"rm {_RECOVERY_KEY} {_BACKUP} /var/backups/understudy-?.tar")
    left = [
        f"{container.name}: {line}"
        for role, container in hosts.items()
        for line in belongings.difference(had[role], belongings.of(container))
    ]
    left += [f"BPF link {link.id}" for link in libbpf.links() if link.id in links]
    if left:
        raise AssertionError("the removal left, or took, too much:\n" + "\n".join(left))
