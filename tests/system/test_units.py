"""The units of deploy/systemd under a real systemd, on a host of their own (tests/containers): the agent's with a disk that it captures,
the config server's without a storage account."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.capture import libbpf
from shared.errors import ConfigError
from shared.host.toml import to_toml
from tests.capture_parts import needs_capture, until
from tests.containers import program
from tests.containers.container import Container, Unit
from tests.containers.site import site
from tests.pki import TestCa

pytestmark = [needs_capture, pytest.mark.long]  # minutes, with the host that is built for it
AGENT = "understudy-agent"
CONFIG_SERVER = "understudy-config-server"
ETC = "/etc/understudy"
CONFIG = f"{ETC}/agent.toml"
PINS = "/sys/fs/bpf/understudy"
DISK_B = 16 << 20


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """With program, units, a disk, and what the agent is configured with; nobody else is on its network."""
    with site() as here:
        made = here.container("db1")
        program.provide(here, made)
        made.start()
        program.install(made, ["agent", "config-server"])
        disk = here.disk("disk", DISK_B)
        made.hand_in(disk)
        tls = TestCa(tmp_path_factory.mktemp("pki")).issue("agent:db1")
        for name, file in (("cert", tls.cert), ("key", tls.key), ("ca", tls.ca)):
            made.put(file, f"{ETC}/agent/{name}.pem", mode=0o600)
        made.put(configuration(disk), CONFIG)
        made.run("systemctl", "enable", AGENT)
        yield made


@pytest.fixture
def agent(host: Container) -> Iterator[Container]:
    """The agent's unit is started afresh, and ready."""
    host.run("systemctl", "restart", AGENT, within_s=150)
    yield host
    if host.succeeds("test", "-e", f"/etc/systemd/system/{AGENT}.service.d"):
        host.run("systemctl", "revert", AGENT)


def configuration(disk: str) -> str:
    return to_toml(
        {
            "machine": "db1",
            "disks": [disk],
            "process_server": "ps:9443",
            "control_url": "https://cs",
            "tls": {name: f"{ETC}/agent/{name}.pem" for name in ("cert", "key", "ca")},
            "state_dir": "/var/lib/understudy/agent",
            "pin_dir": PINS,
            "identity": "container:db1",
        }
    )


def links(host: Container) -> set[int]:
    """The kernel's numbers of the links by which capture is attached."""
    script = (
        f"from agent.capture import pins; from pathlib import Path; print(*pins.program_ids(Path('{PINS}')))"
    )
    numbers = host.read(f"{program.PLACE}/bin/python", "-c", script).split()
    return {int(number) for number in numbers}


def in_kernel(numbers: set[int]) -> set[int]:
    """Those of them that the kernel has; it is the host's and the container's."""
    return {link.id for link in libbpf.links()} & numbers


def said(host: Container, unit: Unit, event: str) -> list[dict[str, Any]]:
    """What the daemon has logged of this in this run."""
    lines = host.read("journalctl", f"_SYSTEMD_INVOCATION_ID={unit.invocation}", "--output=cat").splitlines()
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    return [entry for entry in entries if entry["event"] == event]


def test_the_agent_is_ready_and_captures_in_order(agent: Container) -> None:
    unit = agent.unit(AGENT)
    assert (unit.active, unit.sub, unit.restarts) == ("active", "running", "0")
    assert unit.status
    assert len(in_kernel(links(agent))) > 3


def test_its_folders_are_its_own(agent: Container) -> None:
    places = {"/var/lib/understudy/agent": "700", f"{ETC}/agent": "700", "/run/understudy": "755"}
    for place, mode in places.items():
        assert agent.read("stat", "--format=%a %U", place) == f"{mode} root"
    assert agent.succeeds("test", "-s", "/var/lib/understudy/agent/disks.json")


def test_a_restart_of_the_unit_goes_on_with_the_capture_that_is_attached(agent: Container) -> None:
    before = links(agent)
    agent.run("systemctl", "stop", AGENT)
    assert in_kernel(before) == before
    agent.run("systemctl", "start", AGENT, within_s=150)
    assert links(agent) == before
    assert not said(agent, agent.unit(AGENT), "capture attached")


def test_a_boot_begins_without_capture_and_the_agent_attaches_by_itself(agent: Container) -> None:
    before = links(agent)
    agent.reboot()
    unit = agent.wait_for_unit(AGENT, active="active")
    assert [entry["mode"] for entry in said(agent, unit, "capture attached")] == ["ordered"]
    assert links(agent).isdisjoint(before)
    until(lambda: not in_kernel(before), "what was attached before the boot is in the kernel still")


def test_at_a_boot_the_agent_captures_before_services_start_and_at_a_shutdown_it_ends_after_them(
    agent: Container,
) -> None:
    """The service is one that knows nothing of the agent."""
    agent.put(
        "[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        f"ExecStart=/bin/sh -c 'systemctl is-active {AGENT} > /root/at-start; true'\n"
        f"ExecStop=/bin/sh -c 'systemctl is-active {AGENT} > /root/at-stop; true'\n"
        "[Install]\nWantedBy=multi-user.target\n",
        "/etc/systemd/system/database.service",
    )
    agent.run("systemctl", "enable", "--now", "database")
    agent.run("rm", "/root/at-start")
    agent.reboot()
    try:
        assert agent.get("/root/at-stop") == b"active\n"
        assert agent.get("/root/at-start") == b"active\n"
        assert "ordering cycle" not in agent.read("journalctl", "--boot", "--output=cat")
    finally:
        agent.run("systemctl", "disable", "--now", "database")
        agent.run("rm", "/etc/systemd/system/database.service")
        agent.run("systemctl", "daemon-reload")


def test_an_agent_that_does_not_get_ready_holds_a_boot_up_for_so_long_and_starts_all_the_same(
    agent: Container,
) -> None:
    agent.put(
        "[Unit]\nJobRunningTimeoutSec=2\n[Service]\nExecStartPre=/bin/sleep 15\n",
        f"/etc/systemd/system/{AGENT}.service.d/slow.conf",
    )
    agent.run("systemctl", "daemon-reload")
    up = agent.reboot()
    assert up.seconds < 15
    assert agent.unit(AGENT).active == "activating"
    agent.wait_for_unit(AGENT, active="active", restarts="0")


def test_an_agent_that_is_killed_is_started_again_and_goes_on(agent: Container) -> None:
    before, captured = agent.unit(AGENT), links(agent)
    agent.run("kill", "-KILL", before.pid)
    unit = agent.wait_for_unit(AGENT, active="active", restarts="1")
    assert unit.invocation != before.invocation
    assert links(agent) == captured


def test_an_agent_that_does_nothing_any_more_is_ended_by_the_watchdog_and_started_again(
    agent: Container,
) -> None:
    agent.put("[Service]\nWatchdogSec=5\n", f"/etc/systemd/system/{AGENT}.service.d/soon.conf")
    agent.run("systemctl", "daemon-reload")
    agent.run("systemctl", "restart", AGENT, within_s=150)
    agent.run("kill", "-STOP", agent.unit(AGENT).pid)
    agent.wait_for_unit(AGENT, active="active", restarts="1")
    assert "Watchdog timeout" in agent.read("journalctl", f"--unit={AGENT}", "--boot", "--output=cat")


def test_a_configuration_that_only_a_person_can_put_right_is_not_tried_again_and_says_what_is_wrong(
    agent: Container,
) -> None:
    right = agent.get(CONFIG)
    agent.put(b"nonsense = 1\n" + right, CONFIG)
    try:
        assert not agent.succeeds("systemctl", "restart", AGENT)
        unit = agent.unit(AGENT)
        assert (unit.active, unit.result, unit.exit_code) == (
            "failed",
            "exit-code",
            str(ConfigError.exit_code),
        )
        assert unit.restarts == "0"
        assert "nonsense" in agent.run("systemctl", "status", "--no-pager", AGENT, check=False).stdout
    finally:
        agent.put(right, CONFIG)


def test_without_a_bpffs_of_the_host_the_unit_does_not_start(agent: Container) -> None:
    """Pins in a mount of the unit's own would be gone with it."""
    agent.run("systemctl", "stop", AGENT)
    agent.run("umount", "/sys/fs/bpf")
    try:
        assert "Assertion failed" in agent.run("systemctl", "start", AGENT, check=False).stderr
    finally:
        agent.run("systemctl", "restart", "host-bpffs")


def test_the_agent_may_open_a_disk_but_no_file_of_the_system_to_write(agent: Container) -> None:
    pid = agent.unit(AGENT).pid
    inside = ("nsenter", "--mount", f"--target={pid}", "--")
    assert not agent.succeeds(*inside, "touch", "/usr/local/written")
    assert agent.succeeds(*inside, "touch", f"{ETC}/agent/written")
    assert agent.succeeds("rm", f"{ETC}/agent/written")


def test_a_server_runs_as_its_user_without_a_storage_key_and_finds_it_when_it_is_there(
    host: Container,
) -> None:
    host.put(to_toml({"data_dir": "/var/lib/understudy/config-server"}), f"{ETC}/config-server.toml")
    credential = f"/run/credentials/{CONFIG_SERVER}.service/understudy.account-key"
    host.run("systemctl", "start", CONFIG_SERVER, within_s=150)
    assert not host.succeeds("test", "-e", credential)
    user = host.read("ps", "--no-headers", "-o", "user:32", "-p", host.unit(CONFIG_SERVER).pid)
    assert user.strip() == "understudy-config"
    assert host.read("stat", "--format=%a %U", "/var/lib/understudy/config-server") == "700 understudy-config"
    host.put("key", "/etc/credstore/understudy.account-key", mode=0o600)
    host.run("systemctl", "restart", CONFIG_SERVER, within_s=150)
    as_it = (
        "nsenter",
        "--mount",
        f"--target={host.unit(CONFIG_SERVER).pid}",
        "--",
        "setpriv",
        "--clear-groups",
    )
    others = {
        name: host.succeeds(*as_it, f"--reuid={name}", f"--regid={name}", "cat", credential)
        for name in ("understudy-config", "understudy-process")
    }
    assert others == {"understudy-config": True, "understudy-process": False}
    host.run("systemctl", "stop", CONFIG_SERVER)


def test_preflight_says_the_same_on_the_console_as_the_agent_does(agent: Container) -> None:
    disk = agent.devices[0]
    found = agent.run(f"{program.PLACE}/bin/python", "-m", "agent", "preflight", disk, "--output", "json")
    assert json.loads(found.stdout)["devices"][0]["mode"] == "ordered"
    assert Path(disk).name in {*agent.read("ls", "/sys/block").split()}
