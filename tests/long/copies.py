"""Copies of a machine beside the machine: with another identity, with the same, with a certificate of its own, only polling, the old source
after the machine moved, and the machine that was deleted beside another of its name. Each is refused by name at its first word, nothing
of it is taken, and the machine does not notice."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from agent.capture import bindings
from agent.capture.bindings import Bound
from agent.capture.look import standing_now
from agent.capture.maps import detach
from config_server.storage import removal
from deploy.lab.files import blob_config
from deploy.lab.state import Lab as LabState
from shared.control import enrol
from shared.control.control_client import ControlClient
from shared.errors import CopyRefusedError
from shared.host.toml import to_toml
from shared.machine.storage import MachineStorage
from shared.status import AgentReport
from shared.trust.tls import TlsFiles
from tests.lab import Lab, lab
from tests.long.story import Result, Story, scratch, two_disks, wait_until

REFUSED: Final = CopyRefusedError.code
RATE_MB: Final = 5
SIDE_BY_SIDE_S: Final = 15
"""How long a refused copy runs beside the machine."""


def copies() -> Result:
    with (
        scratch() as folder,
        two_disks(folder) as devices,
        lab(devices, point_interval=10, segment_seconds=2) as site,
        ExitStack() as stack,
    ):
        site.wait_ordered(120)
        original = agent_config(site)["identity"]
        story = stack.enter_context(Story(folder, devices, RATE_MB))
        time.sleep(11)
        copied = stack.enter_context(image_of(site, folder))
        epoch = site.machine()["epoch"]

        seen: dict[str, str] = {}
        for name, identity, tls in (
            ("other identity", "clone", None),
            ("same identity", original, None),
            ("own certificate", "third", enrolled(site, folder)),
        ):
            with Copy(site, folder, copied, identity, tls) as copy:
                copy.wait_for(REFUSED)
                time.sleep(SIDE_BY_SIDE_S)
                if copy.process.poll() is not None:
                    raise AssertionError(f"{name}: the copy ended: {copy.log()}")
                check_nothing_taken(copy.log())
                seen[name] = undisturbed(site, epoch)
        seen["only polling"] = asyncio.run(poll(site))
        undisturbed(site, epoch)

        with Copy(site, folder, copied, "clone") as copy:
            copy.wait_for(REFUSED)
            site.run("machine", "rebind", "lab", "--identity", "clone", "--yes")
            wait_until(lambda: REFUSED in agent_log(site), "the old side was not refused", 90)
            wait_until(lambda: site.machine()["epoch"] > epoch, "the new side did not begin", 90)
            site.wait_ordered(120)
            restart_refused(site)
            moved = undisturbed(site, epoch + 1)
            check_identical(site, folder, copied)
        site.run("machine", "rebind", "lab", "--identity", original, "--yes")
        site.stop("agent")
        site.start("agent")
        wait_until(lambda: site.machine()["epoch"] > epoch + 1, "the machine did not come back", 90)
        site.wait_ordered(120)
        time.sleep(11)
        story.stop()
        result = story.check_every_point(site, 5, epochs={epoch, epoch + 2})
        story.check_every_point(site, 1, epochs={epoch + 1})  # all of them are the state that was copied
        story.check_latest(site)

        site.stop("agent")
        asyncio.run(delete(site))
        with Copy(site, folder, copied, "another", enrolled(site, folder)) as another:
            another.wait_for("epoch begun")
            site.wait_ordered(120)
            last = site.machine()["epoch"]
            if last <= epoch + 2:
                raise AssertionError(f"the number of an epoch that was deleted came back: {last}")
            restart_refused(site)
            deleted = undisturbed(site, last)
            check_identical(site, folder, copied)
        return {"refused": seen, "after_rebind": moved, "after_deletion": deleted, **result}


class Copy:
    """An agent of the machine `lab` with copies of its disks and of its folder, in which they are bound as a clone's are: by serial numbers
    that were copied, too."""

    def __init__(
        self, site: Lab, folder: Path, disks: list[str], identity: str, tls: TlsFiles | None = None
    ) -> None:
        self._folder = folder / f"copy-{secrets.token_hex(3)}"
        self._folder.mkdir()
        config = agent_config(site)
        state_dir = self._folder / "state"
        shutil.copytree(config["state_dir"], state_dir)
        bound = bindings.read(state_dir) or []
        bindings.write(
            state_dir,
            [
                Bound(there.id, device, str(standing_now(device).identities[0]), device)
                for there, device in zip(bound, disks, strict=True)
            ],
        )
        self._pins = Path("/sys/fs/bpf/understudy-test") / self._folder.name
        config |= {
            "disks": disks,
            "identity": identity,
            "state_dir": str(state_dir),
            "pin_dir": str(self._pins),
        }
        if tls is not None:
            config["tls"] = {"cert": str(tls.cert), "key": str(tls.key), "ca": str(tls.ca)}
        path = self._folder / "agent.toml"
        path.write_text(to_toml(config))
        self._log_file = self._folder / "log"
        with self._log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent", "--config", str(path)], stdout=log, stderr=log
            )

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            detach(self._pins)

    def log(self) -> str:
        return self._log_file.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.log(), f"the copy never said {text}:", 90, lambda: self.log()[-2000:])


@contextlib.contextmanager
def image_of(site: Lab, folder: Path) -> Iterator[list[str]]:
    """Loop disks with the content of a point of now: what a clone of the machine's disks would hold."""
    images = site.restore(site.create_point()["id"], folder / "image")
    devices: list[str] = []
    try:
        for image in images:
            done = subprocess.run(
                ["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True
            )
            devices.append(done.stdout.strip())
        yield devices
    finally:
        for device in devices:
            subprocess.run(["losetup", "--detach", device], check=True)
        shutil.rmtree(folder / "image")


def enrolled(site: Lab, folder: Path) -> TlsFiles:
    """A certificate of its own, for another machine of the same name."""
    config = agent_config(site)
    token = site.read("token", "create", "agent", "lab")["token"]
    return asyncio.run(enrol.enrol(config["control_url"], token, folder / "enrolled"))


async def delete(site: Lab) -> None:
    """The machine is taken out of storage, as at the end of `machine delete`. That itself waits for an hour at least, and revokes the
    certificates: then these would be why the old machine is refused, and not that another has its name."""
    async with MachineStorage.connect(blob_config(LabState.open(site.folder))) as storage:
        container = await storage.named("lab") or ""
        found = await removal.look(storage, "lab", container)
        if found.changed is None:
            raise AssertionError(f"the machine has no container to delete: {found}")
        await removal.remove_container(storage, container, found.changed)
        await storage.unregister("lab", container)


async def poll(site: Lab) -> str:
    """A copy that does nothing but ask for commands."""
    config = agent_config(site)
    files = TlsFiles(**{name: Path(path) for name, path in config["tls"].items()})
    client = ControlClient(config["control_url"], files)
    try:
        await client.report(AgentReport(machine="lab", identity="clone", boot="elsewhere"))
    except CopyRefusedError as exc:
        return exc.cause
    finally:
        await client.close()
    raise AssertionError("a copy that only polls was answered")


def undisturbed(site: Lab, epoch: int) -> str:
    """The machine is ordered, in its epoch, makes points, and the copy is an event; its words."""
    machine = site.machine()
    if (machine["epoch"], machine["state"]) != (epoch, "ordered"):
        raise AssertionError(
            f"the machine is disturbed: {machine['state']} in epoch {machine['epoch']}, {machine['cause']}"
        )
    site.create_point()
    events = [event for event in site.read("event", "list") if event["code"] == REFUSED]
    if not events:
        raise AssertionError("no event tells of the copy")
    return str(events[0]["cause"])


def restart_refused(site: Lab) -> None:
    """Starts the agent of the machine that is not the active side any more: it is refused before anything else."""
    site.stop("agent")
    before = len(agent_log(site))
    site.start("agent")
    wait_until(lambda: REFUSED in agent_log(site)[before:], "the old machine was not refused", 90)
    time.sleep(SIDE_BY_SIDE_S)
    check_nothing_taken(agent_log(site)[before:])


def check_nothing_taken(log: str) -> None:
    """Nothing of whoever wrote this log came to a session or an epoch."""
    if taken := [line for line in log.splitlines() if '"session opened"' in line or '"epoch begun"' in line]:
        raise AssertionError(f"a copy was taken in: {taken}")


def check_identical(site: Lab, folder: Path, devices: list[str]) -> None:
    """A point of the machine that moved is what its disks hold; nobody writes to them."""
    target = folder / "moved"
    for device, image in zip(devices, site.restore(site.create_point()["id"], target), strict=True):
        subprocess.run(["cmp", device, str(image)], check=True)
    shutil.rmtree(target)


def agent_config(site: Lab) -> dict[str, Any]:
    return tomllib.loads((site.folder / "agent.toml").read_text())


def agent_log(site: Lab) -> str:
    return (site.folder / "log/agent.log").read_text(errors="replace")
