"""What of a set-up only a host with a systemd shows: unit files, users, a unit that does not start."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from tests.azurite import Azurite
from tests.containers import program
from tests.containers.container import Container
from tests.containers.site import site
from tests.setups import outcomes

pytestmark = pytest.mark.long  # the host is built for it first
UNIT = "understudy-config-server"
FILE = f"/etc/systemd/system/{UNIT}.service"
PROGRAM = f"{program.PLACE}/bin/understudy"
PAGE: Final = (Path(__file__).parents[3] / "docs/operations/recovering.md").read_text()
OF_THE_DAEMON: Final = {
    "/etc/understudy/config-server": "700 understudy-config",
    "/etc/understudy/config-server/vault.json": "600 understudy-config",
    "/etc/understudy/config-server/vault.json.ca": "600 understudy-config",
    "/etc/understudy/config-server.toml": "644 root",
    "/var/lib/understudy/config-server": "700 understudy-config",
    "/var/lib/understudy/config-server/ca.key": "600 understudy-config",
    "/var/lib/understudy/config-server/operator.token": "600 understudy-config",
    "/etc/credstore/understudy.account-key": "600 root",
    "/root/recovery.key": "600 root",
}


@pytest.fixture(scope="module")
def host() -> Iterator[Container]:
    """With the program, and what an administrator brings; nothing is set up."""
    with site() as here:
        made = here.container("cs")
        program.provide(here, made)
        here.place("storage")
        with Azurite(here.folder / "azurite", host="storage", inside=here.beside("storage")) as azurite:
            made.start()
            made.run("python3", "-m", "venv", program.PLACE, within_s=600)
            made.run(
                f"{program.PLACE}/bin/pip", "install", "--quiet", "understudy[config-server]", within_s=1200
            )
            made.put(azurite.key_file, "/root/account.key", mode=0o600)
            made.put(azurite.ca_file, "/root/storage-ca.pem")
            made.put(azurite.url, "/root/url")
            yield made


def init(host: Container, *more: str) -> subprocess.CompletedProcess[str]:
    given = [
        *(
            "--host",
            "cs",
            "--recovery-key",
            "/root/recovery.key",
            "--blob-url",
            host.get("/root/url").decode(),
        ),
        *("--blob-key-file", "/root/account.key", "--blob-ca-file", "/root/storage-ca.pem"),
    ]
    return host.run(PROGRAM, "init", *given, *more, "--output", "json", check=False, within_s=300)


def steps(done: subprocess.CompletedProcess[str]) -> Sequence[dict[str, str]]:
    assert done.returncode == 0, done.stdout + done.stderr
    found: Sequence[dict[str, str]] = json.loads(done.stdout)["steps"]
    return found


def test_a_dry_run_leaves_nothing_on_the_host(host: Container) -> None:
    places = ("/etc", "/usr/lib", "/var/lib", "/root")
    before = host.read("find", *places, "-newermt", "1970-01-01", "-printf", "%p %s %m %u\\n")
    told = outcomes(steps(init(host, "--dry-run")))
    assert {told[step] for step in ("unit-file", "users", "vault", "unit")} == {"would-create"}
    assert host.read("find", *places, "-newermt", "1970-01-01", "-printf", "%p %s %m %u\\n") == before


def test_a_unit_that_does_not_start_says_why_and_the_next_run_goes_on(host: Container) -> None:
    host.put("[Service]\nEnvironment=SSL_CERT_FILE=/x\nExecStartPre=/bin/false\n", f"{FILE}.d/broken.conf")
    done = init(host)
    report: Any = json.loads(done.stdout)
    assert (done.returncode, report["error"]["code"]) == (5, "US628"), done.stdout
    assert f"journalctl -u {UNIT}" in report["error"]["action"]
    host.run("rm", "-r", f"{FILE}.d")
    told = outcomes(steps(init(host)))
    assert (told["unit"], told["vault"], told["answers"]) == ("created", "kept", "checked")
    host.wait_for_unit(UNIT, active="active")


def test_what_the_daemon_has_is_its_user_s_alone(host: Container) -> None:
    for path, wanted in OF_THE_DAEMON.items():
        assert host.read("stat", "--format=%a %U", path) == wanted, path
    assert host.read("find", "/var/lib/understudy/config-server", "-user", "root") == ""


def test_a_unit_file_that_was_changed_stays_until_it_is_asked_for(host: Container) -> None:
    before = host.get(FILE)
    pid = host.unit(UNIT).pid
    host.put(before + b"# changed\n", FILE)
    told = {step["what"]: step["outcome"] for step in steps(init(host))}
    assert (told[FILE], host.get(FILE)) == ("differs", before + b"# changed\n")
    told = {step["what"]: step["outcome"] for step in steps(init(host, "--replace-units"))}
    assert (told[FILE], host.get(FILE)) == ("created", before)
    unit = host.wait_for_unit(UNIT, active="active")
    assert unit.pid != pid, "it runs by the file that is there"
    again = json.loads(init(host, "--replace-units").stdout)
    assert (again["changed"], host.unit(UNIT).pid) == (False, unit.pid)


def test_a_port_that_is_the_daemon_s_own_is_no_obstacle(host: Container) -> None:
    assert outcomes(steps(init(host)))["port"] == "kept"


def test_it_is_there_after_a_boot(host: Container) -> None:
    host.reboot()
    host.wait_for_unit(UNIT, active="active")
    assert outcomes(steps(init(host)))["answers"] == "checked"


def test_another_host_takes_its_place_by_the_commands_of_the_page(host: Container) -> None:
    """The same container, from which all of the installation is taken: the backup, the recovery key and the account's key are left."""
    data = "/var/lib/understudy/config-server"
    ca = host.get(f"{data}/ca.pem")
    backup = ("-m", "config_server", "backup", "--config", "/etc/understudy/config-server.toml")
    host.run(f"{program.PLACE}/bin/python", *backup, "--to", "/root/understudy.tar")
    host.run("systemctl", "disable", "--now", UNIT)
    host.run(
        "rm", "-r", "/etc/understudy", "/var/lib/understudy", "/etc/credstore/understudy.account-key", FILE
    )
    host.run("rm", "/usr/lib/sysusers.d/understudy.conf", "/usr/lib/tmpfiles.d/understudy.conf")
    for user in ("understudy-config", "understudy-process", "understudy-master"):
        host.run("userdel", user)
    host.run("systemctl", "daemon-reload")
    [block] = re.findall(r"^```sh from-backup\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    _install, _key, commands = block.partition("install -D")
    names = {
        "config.example.com": "cs",
        "https://account.blob.core.windows.net": host.get("/root/url").decode(),
        "--blob-key-file /root/account.key": "--blob-key-file /root/account.key --blob-ca-file /root/storage-ca.pem",
    }
    for ours, theirs in names.items():
        commands = commands.replace(ours, theirs)
    host.run("bash", "-euc", f"install -D{commands}", within_s=300)
    host.wait_for_unit(UNIT, active="active", restarts="0")
    for path, wanted in OF_THE_DAEMON.items():
        assert host.read("stat", "--format=%a %U", path) == wanted, path
    assert host.read("find", data, "-user", "root") == ""
    assert host.get(f"{data}/ca.pem") == ca
    assert not json.loads(init(host).stdout)["changed"]
