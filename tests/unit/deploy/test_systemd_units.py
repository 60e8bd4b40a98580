"""The systemd units: valid, hardened, and pointing at programs that exist."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from agent.capture import answer
from deploy import systemd
from shared.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[3] / "deploy/systemd"
UNITS = sorted(FOLDER.glob("*.service"))
MOST_EXPOSED = {"understudy-agent.service": 3.6}
"""Highest exposure level that `systemd-analyze security` may find (0 is best, 10 worst)."""

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def read(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    return parser


def said(unit: Path, directive: str) -> set[str]:
    """All words of a directive that may stand there more than once."""
    lines = re.findall(rf"^{directive}=(.*)$", unit.read_text(), re.MULTILINE)
    return {word for line in lines for word in line.split()}


def test_there_is_one_unit_per_daemon() -> None:
    assert [unit.stem for unit in UNITS] == [
        "understudy-agent",
        "understudy-config-server",
        "understudy-master-target",
        "understudy-process-server",
    ]


def test_every_file_of_the_folder_has_its_place_on_a_host() -> None:
    assert sorted(systemd.host_files().values()) == sorted(
        path.read_text() for path in FOLDER.iterdir() if path.suffix in (".service", ".conf")
    )
    assert {str(path) for path in systemd.host_files()} == {
        *(f"/etc/systemd/system/{unit.name}" for unit in UNITS),
        "/usr/lib/sysusers.d/understudy.conf",
        "/usr/lib/tmpfiles.d/understudy.conf",
    }


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_a_module_that_exists_and_waits_for_ready(unit: Path) -> None:
    service = read(unit)["Service"]
    found = re.fullmatch(r"\S+/python -m (\w+) --config /etc/understudy/([\w-]+)\.toml", service["ExecStart"])
    assert found is not None
    assert importlib.util.find_spec(found[1]) is not None
    assert unit.stem == f"understudy-{found[2]}"
    assert service["Type"] == "notify"
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"].split() == [str(ConfigError.exit_code)]
    assert int(service["WatchdogSec"]) >= 30


def test_the_agent_is_started_before_what_writes_stopped_after_it_and_waits_for_no_network() -> None:
    """docs/decisions/0028-the-agent-and-the-boot.md"""
    agent = FOLDER / "understudy-agent.service"
    assert said(agent, "DefaultDependencies") == {"no"}
    assert said(agent, "After") == {"sysinit.target"}
    assert said(agent, "Before") == {"basic.target", "shutdown.target"}
    # Without these two it would not be stopped at all, but killed with the rest.
    assert said(agent, "Conflicts") == {"shutdown.target"}
    assert said(agent, "Requires") == {"sysinit.target"}
    assert "network" not in re.sub(r"^#.*$", "", agent.read_text(), flags=re.MULTILINE)


def test_a_boot_waits_for_the_agent_no_longer_than_a_hung_disk_takes_it() -> None:
    found = read(FOLDER / "understudy-agent.service")
    waits_s = int(found["Unit"]["JobRunningTimeoutSec"])
    assert 2 * answer.DEADLINE_S + answer.ATTRIBUTES_DEADLINE_S < waits_s <= 60
    assert waits_s < int(found["Service"]["TimeoutStartSec"])


@pytest.mark.parametrize("unit", [unit for unit in UNITS if "agent" not in unit.stem], ids=lambda u: u.stem)
def test_a_server_is_stopped_while_the_network_is_there(unit: Path) -> None:
    assert said(unit, "After") == said(unit, "Wants") == {"network-online.target"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_daemon_that_grows_without_end_is_ended_before_its_host_suffers(unit: Path) -> None:
    service = read(unit)["Service"]
    assert re.fullmatch(r"\d+[G%]", service["MemoryMax"])
    assert int(service["TasksMax"]) <= 1024


@needs_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit_and_finds_it_hardened(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    # The program is not installed here; everything else is checked as it is.
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
    verified = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", copy],
        capture_output=True,
        text=True,
        check=False,
    )
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", security.stdout)
    assert level is not None, security.stdout + security.stderr
    assert float(level[1]) <= MOST_EXPOSED.get(unit.name, 2.0)


def test_every_daemon_but_the_agent_has_a_user_of_its_own_and_folders_that_are_nobody_else_s() -> None:
    users = set()
    for unit in UNITS:
        service = read(unit)["Service"]
        if unit.stem == "understudy-agent":
            assert "User" not in service
            continue
        assert service["User"] == service["Group"]
        assert service["StateDirectoryMode"] == "0700"
        assert service["UMask"] == "0077"
        assert service["ReadWritePaths"] == f"/etc/{service['StateDirectory']}"
        users.add(service["User"])
    assert len(users) == len(UNITS) - 1


@pytest.mark.skipif(
    not all(map(shutil.which, ("systemd-sysusers", "systemd-tmpfiles", "setpriv"))),
    reason="systemd-sysusers, systemd-tmpfiles or setpriv is not installed",
)
def test_no_daemon_s_user_reads_the_vault_or_another_one_s_private_key(tmp_path: Path) -> None:
    """As systemd makes users and folders, in a root of the test."""
    folder = tmp_path / "host"
    for path, text in systemd.host_files().items():
        at = folder / path.relative_to("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)
    subprocess.run(["systemd-sysusers", f"--root={folder}", "understudy.conf"], check=True)
    subprocess.run(["systemd-tmpfiles", f"--root={folder}", "--create", "understudy.conf"], check=True)
    for above in (folder, *folder.parents):
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)  # so that what is refused is refused below
    ids = {
        fields[0]: int(fields[2])
        for fields in (line.split(":") for line in (folder / "etc/passwd").read_text().splitlines())
    }
    users = {
        read(unit)["Service"]["User"]: read(unit)["Service"]["StateDirectory"]
        for unit in UNITS
        if "User" in read(unit)["Service"]
    }
    secrets = {}
    for user, place in users.items():
        own = folder / "etc" / place
        assert (own.stat().st_uid, stat.S_IMODE(own.stat().st_mode)) == (ids[user], 0o700)
        secrets[user] = own / ("vault.json" if user == "understudy-config" else "key.pem")
        secrets[user].write_bytes(b"secret")
        secrets[user].chmod(0o600)
        os.chown(secrets[user], ids[user], ids[user])
    readable = {
        (user, owner)
        for user in users
        for owner, path in secrets.items()
        if subprocess.run(
            ["setpriv", f"--reuid={ids[user]}", f"--regid={ids[user]}", "--clear-groups", "cat", path],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    }
    assert readable == {(user, user) for user in users}
