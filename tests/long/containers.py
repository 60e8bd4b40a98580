"""A whole installation on four hosts, each daemon by its own unit: it starts, bears links that are cut and the reboot of each host in turn,
and leaves nothing behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from agent.capture import libbpf
from tests.containers import leftovers
from tests.containers.container import SystemState
from tests.containers.installation import MACHINE, Host, Installation, four
from tests.containers.network import Cut
from tests.containers.site import Site, site
from tests.long.story import Result, wait_until

DISK_B: Final = 32 << 20
WRITE_B: Final = 4 << 20


def containers() -> Result:
    interfaces = sorted(Path("/sys/class/net").iterdir())
    began = time.monotonic()
    with site() as here, four(here) as installation:
        booted_s = time.monotonic() - began
        names_resolve(here)
        installation.install()
        installed_s = time.monotonic() - began - booted_s
        disk = here.disk("disk", DISK_B)
        installation.machine.container.hand_in(disk)
        installation.start_servers()
        installation.protect(disk)
        wait_ordered(installation)
        protected_s = time.monotonic() - began - booted_s - installed_s
        check_point(installation, disk)
        cut = cut_off(installation)
        check_point(installation, disk)
        up_s = {host.container.name: reboot(installation, host) for host in installation.hosts}
        check_point(installation, disk)
        links = pinned_links(installation)
        name = here.name
    left = leftovers.traces(name)
    left += [f"interface {path.name}" for path in sorted({*Path("/sys/class/net").iterdir()} ^ {*interfaces})]
    left += [f"BPF link {link.id}" for link in libbpf.links() if link.id in links]
    if left or here.folder.exists():
        raise AssertionError(f"something is left of {name}: {left}")
    return {
        "booted_s": round(booted_s, 1),
        "installed_s": round(installed_s, 1),
        "protected_s": round(protected_s, 1),
        "reconnected_s": cut,
        "rebooted_s": up_s,
    }


def names_resolve(here: Site) -> None:
    for container in here.containers.values():
        for name in here.network.names:
            container.run("ping", "-q", "-c1", "-W5", name)


def cut_off(installation: Installation) -> dict[str, float]:
    """The machine's cable, then, unseen by anybody, the process server's: the epoch goes on. How long it took after each was mended."""
    took = {}
    epoch = installation.read("machine", "show", MACHINE)["epoch"]
    for host, how in ((installation.machine, Cut.CABLE), (installation.process_server, Cut.SILENT)):
        host.container.link.cut(how)
        wait_connected(installation, host, False)
        host.container.link.mend()
        began = time.monotonic()
        wait_connected(installation, host, True)
        wait_ordered(installation)
        took[host.container.name] = round(time.monotonic() - began, 1)
    if (now := installation.read("machine", "show", MACHINE)["epoch"]) != epoch:
        raise AssertionError(f"epoch {epoch} did not go on when a link was cut: {now}")
    return took


def wait_connected(installation: Installation, host: Host, wanted: bool) -> None:
    """As the config server sees it."""

    def is_connected() -> bool:
        daemons = {daemon["role"]: daemon for daemon in installation.read("daemon", "list")}
        return bool(daemons[host.role]["connected"])

    wait_until(lambda: is_connected() == wanted, f"{host.role} is not shown as connected: {wanted}", 90)


def reboot(installation: Installation, host: Host) -> float:
    """By its systemd; all its units are up again, and the machine is in order: in its epoch, unless it is the machine itself."""
    before = installation.read("machine", "show", MACHINE)["epoch"]
    began = time.monotonic()
    up = host.container.reboot()
    if (up.state, up.failed) != (SystemState.RUNNING, ()):
        raise AssertionError(f"{host.container.name} is not well after its reboot: {up}")
    host.container.wait_for_unit(host.unit, active="active", restarts="0")
    after = before + (host is installation.machine)
    wait_until(
        lambda: installation.read("machine", "show", MACHINE)["epoch"] == after,
        f"epoch {after} does not begin",
        120,
    )
    wait_ordered(installation)
    return round(time.monotonic() - began, 1)


def wait_ordered(installation: Installation) -> None:
    installation.command("machine", "wait", MACHINE, "--for", "ordered", "--timeout", "120")


def check_point(installation: Installation, disk: str) -> None:
    """What a program of the machine writes is in the next point, and the point is the disk."""
    machine, server = installation.machine.container, installation.config_server.container
    machine.write_random(disk, WRITE_B)
    point = installation.read("point", "create", MACHINE, "--wait")["id"]
    installation.command("restore", MACHINE, "--point", point, "--to", "/root/restored")
    restored = server.read("sha256sum", f"/root/restored/{Path(disk).name}.raw").split()[0]
    server.run("rm", "-r", "/root/restored")
    if restored != machine.read("sha256sum", disk).split()[0]:
        raise AssertionError(f"point {point} is not what is on {disk}")


def pinned_links(installation: Installation) -> set[int]:
    """The kernel's numbers of the links of capture."""
    script = "from agent.capture import pins; from pathlib import Path; print(*pins.program_ids(Path('/sys/fs/bpf/understudy')))"
    numbers = installation.machine.container.read("/opt/understudy/bin/python", "-c", script).split()
    if not numbers:
        raise AssertionError("nothing is captured on the machine")
    return {int(number) for number in numbers}
