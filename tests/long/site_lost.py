"""The config server's host is lost for good: on a clean one, from storage and the recovery key alone, the page's command has machines,
policies and jobs there within five minutes; daemons follow without a hand on them, though it has another name; and the old one, back again,
changes nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

from shared.errors import ServerSupersededError
from tests.containers import program
from tests.containers.container import Container
from tests.containers.installation import CONFIG_SERVER, MACHINE, Installation, four
from tests.containers.site import site
from tests.long.containers import DISK_B, WRITE_B, check_point, wait_ordered
from tests.long.install import blocks, shell
from tests.long.story import Result, wait_until

NEW: Final = "cs2"
_THERE_S: Final = 300.0
_KEPT_S: Final = 60.0
"""Within so long a change is in storage."""
_FOLLOW_S: Final = 240.0
"""A minute of silence, a look, and what a loaded host takes for it."""
_POLICY: Final = "gold"


def site_lost() -> Result:
    with site() as here:
        new = here.container(NEW)
        program.provide(here, new)
        with four(here) as installation:
            disk = here.disk("disk", DISK_B)
            installation.machine.container.hand_in(disk)
            installation.install()
            installation.start_servers()
            installation.protect(disk)
            wait_ordered(installation)
            check_point(installation, disk)
            installation.command("policy", "set", _POLICY, "--point-interval", "60")
            installation.command("machine", "protect", MACHINE, "--policy", _POLICY)
            installation.command("machine", "resync", MACHINE, "--yes")
            jobs = [job["id"] for job in installation.read("job", "list")]
            old = installation.config_server.container
            key = old.get(f"{installation.config_server.etc}/vault.json")
            time.sleep(_KEPT_S)  # this is what is promised
            began = time.monotonic()
            old.kill()
            recover(installation, new, key, disk)
            there_s = check_there(new, jobs, began)
            follows_s = check_daemons_follow(new, installation, began)
            check_it_works(installation, new, disk)
            check_the_old_one_changes_nothing(installation, old, new)
    return {"there_s": there_s, "daemons_follow_s": follows_s, "jobs": len(jobs)}


def recover(installation: Installation, new: Container, key: bytes, disk: str) -> None:
    """By the page's commands, with what an administrator has."""
    new.put(key, "/root/recovery.key", mode=0o600)
    new.put(installation.azurite.key_file, "/root/account.key", mode=0o600)
    new.put(installation.azurite.ca_file, "/root/storage-ca.pem")
    [block] = [
        text for role, text in blocks(installation, disk, "On the day itself") if role == "new-config-server"
    ]
    shell(new, block.replace(f"--host {CONFIG_SERVER}", f"--host {NEW}"))


def read(server: Container, *words: str) -> Any:
    """`understudy …` on the new host."""
    return json.loads(shell(server, f"{program.PLACE}/bin/understudy {' '.join(words)} --output json"))


def check_there(new: Container, jobs: list[str], began: float) -> float:
    """Machines, policies, jobs."""
    [machine] = read(new, "machine", "list")
    if (machine["name"], machine["policy_name"]) != (MACHINE, _POLICY):
        raise AssertionError(f"the machine is not as it was: {machine}")
    if missing := set(jobs) - {job["id"] for job in read(new, "job", "list")}:
        raise AssertionError(f"jobs are missing: {missing}")
    there_s = time.monotonic() - began
    if there_s > _THERE_S:
        raise AssertionError(f"it took {there_s:.0f} s")
    return round(there_s, 1)


def check_daemons_follow(new: Container, installation: Installation, began: float) -> float:
    """Nobody has touched their hosts."""
    wanted = {host.container.name for host in installation.hosts} - {CONFIG_SERVER}

    def are_there() -> bool:
        return {one["name"] for one in read(new, "daemon", "list") if one["connected"]} >= wanted

    wait_until(are_there, "not all daemons follow", _FOLLOW_S)
    return round(time.monotonic() - began, 1)


def check_it_works(installation: Installation, new: Container, disk: str) -> None:
    """A point by the new one is the disk."""
    machine = installation.machine.container
    shell(new, f"{program.PLACE}/bin/understudy machine wait {MACHINE} --for ordered --timeout 240")
    machine.write_random(disk, WRITE_B)
    point = read(new, "point", "create", MACHINE, "--wait")["id"]
    shell(new, f"{program.PLACE}/bin/understudy restore {MACHINE} --point {point} --to /root/restored")
    restored = new.read("sha256sum", f"/root/restored/{Path(disk).name}.raw").split()[0]
    if restored != machine.read("sha256sum", disk).split()[0]:
        raise AssertionError(f"point {point} is not what is on {disk}")


def check_the_old_one_changes_nothing(installation: Installation, old: Container, new: Container) -> None:
    """It is on again, with all that it had, and its unit starts by itself."""
    before = read(new, "machine", "show", MACHINE)
    old.start()
    old.wait_for_unit(installation.config_server.unit, active="active")
    [machine] = installation.read("machine", "list")
    if ServerSupersededError.code not in {error["code"] for error in machine["errors"]}:
        raise AssertionError(f"the old one does not say that it was superseded: {machine['errors']}")
    data = "/var/lib/understudy/config-server"
    words = (
        f"{program.PLACE}/bin/understudy machine unprotect {MACHINE} --yes --server https://{CONFIG_SERVER}"
    )
    way_in = f"--token-file {data}/operator.token --ca-file {data}/ca.pem"
    done = old.run("bash", "-c", f"{words} {way_in}", check=False)
    if done.returncode != ServerSupersededError.exit_code or ServerSupersededError.code not in done.stderr:
        raise AssertionError(f"the old one was not read-only: {done}")
    after = read(new, "machine", "show", MACHINE)
    if (after["wish"], after["epoch"]) != (before["wish"], before["epoch"]):
        raise AssertionError(f"the old one has changed something: {before} became {after}")
