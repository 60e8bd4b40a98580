"""`lab up` and `lab down --wipe`, killed at every step: the command can be repeated, and a wipe leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from deploy.lab import daemons
from deploy.lab.state import Lab as LabState
from deploy.lab.vocabulary import Daemon
from tests.lab import UNDERSTUDY, CommandFailedError, Lab
from tests.marks import some

STEPS_OF_UP = some((1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 16, 18, 20), short=(1, 16))
STEPS_TO_GO_ON_FROM = some((2, 3, 5, 7, 14), short=(14,))
STARTS = some(
    (("config-server", 7), ("azurite", 14), ("process-server", 16)), short=(("process-server", 16),)
)
STEPS_OF_WIPE = some((1, 5, 6, 7, 10), short=(6,))


def killed(lab: Lab, crash_at: str, *arguments: str) -> bool:
    """Runs the command, to be killed at a step; whether it came to that."""
    done = subprocess.run(
        [UNDERSTUDY, *arguments, "--dir", str(lab.folder)],
        env={**os.environ, "UNDERSTUDY_CRASH_AT": crash_at},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def traces(lab: Lab) -> set[str]:
    """What is left of the lab on this host. Everything outside its folder carries its path or its id."""
    found = {str(path) for path in (lab.folder, *lab.folder.rglob("*")) if path.exists()}
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = line.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it is gone
        if any(word.startswith(f"{lab.folder}/") for word in command):
            found.add(" ".join(command))
    for notes in (Path("/run/understudy/labs"), Path("/run/understudy/protected")):
        for note in notes.glob("*.json"):
            if str(lab.folder) in note.read_text():
                found.add(str(note))
    return found


def outside() -> set[str]:
    """All pins and firewall rules of labs on this host: other tests' labs may come and go, ours must not stay."""
    rules = subprocess.run(["iptables", "-S", "INPUT"], capture_output=True, text=True, check=True).stdout
    pins = Path("/sys/fs/bpf/understudy")
    return {line for line in rules.splitlines() if "understudy-lab" in line} | {
        str(pin) for pin in pins.glob("lab-*")
    }


def id_of(lab: Lab) -> str:
    for name in ("lab.json", "lab.wiping.json"):
        if (lab.folder / name).exists():
            return str(json.loads((lab.folder / name).read_text())["id"])
    return "none yet"


def pid_of(lab: Lab, daemon: str) -> int | None:
    return daemons.pid_of(LabState.open(lab.folder), Daemon(daemon)) if id_of(lab) != "none yet" else None


def up(lab: Lab) -> list[str]:
    return ["lab", "up", "--disk", lab.devices[0], "--port-base", str(lab._port_base)]


@pytest.mark.parametrize("step", STEPS_OF_UP)
def test_a_lab_whose_making_was_killed_is_wiped_without_a_trace(folder: Path, disk: str, step: int) -> None:
    lab = Lab(folder / "lab", [disk])
    assert killed(lab, f"lab.step:{step}", *up(lab))
    id_ = id_of(lab)
    lab.run("lab", "down", "--wipe", "--yes")
    assert traces(lab) == set()
    assert not [trace for trace in outside() if id_ in trace]


@pytest.mark.parametrize("step", STEPS_TO_GO_ON_FROM)
def test_a_lab_whose_making_was_killed_goes_on(folder: Path, disk: str, step: int) -> None:
    lab = Lab(folder / "lab", [disk])
    assert killed(lab, f"lab.step:{step}", *up(lab))
    try:
        lab.run(*up(lab))
        lab.wait_ordered(60)
    finally:
        lab.run("lab", "down", "--wipe", "--yes")
    assert traces(lab) == set()


@pytest.mark.parametrize(("daemon", "step"), STARTS)
def test_a_daemon_that_a_killed_command_started_is_not_taken_for_ready(
    folder: Path, disk: str, daemon: str, step: int
) -> None:
    lab = Lab(folder / "lab", [disk])
    assert killed(lab, f"lab.step:{step}", *up(lab))  # right behind the start of this daemon
    pid = pid_of(lab, daemon)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # on a busy host it may take so long
    try:
        lab.run(*up(lab))
        assert pid_of(lab, daemon) not in (None, pid)
        lab.wait_ordered(60)
    finally:
        lab.run("lab", "down", "--wipe", "--yes")


@pytest.mark.parametrize("first", STEPS_OF_WIPE)
def test_a_wipe_that_was_killed_is_finished_by_the_next(folder: Path, disk: str, first: int) -> None:
    lab = Lab(folder / "lab", [disk])
    lab.run(*up(lab))
    id_ = id_of(lab)
    assert killed(lab, f"wipe.step:{first}", "lab", "down", "--wipe", "--yes")
    if first >= 7:
        with pytest.raises(CommandFailedError, match="is half deleted"):
            lab.run(*up(lab))
    while lab.folder.exists():  # each is killed as well, a few deleted files further
        killed(lab, "wipe.step:11", "lab", "down", "--wipe", "--yes")
    assert traces(lab) == set()
    assert not [trace for trace in outside() if id_ in trace]
