"""`python -m agent setup`: this machine becomes part of an installation."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent import desired, preflight
from agent.config import AgentConfig
from agent.machine_identity import identity_of
from deploy.systemd import host_files
from shared.daemon.service import load_config
from shared.desired import Verb
from shared.errors import UsageError
from shared.setup.checks import Check, PortReached
from shared.setup.command import Answers, parser, run
from shared.setup.files import known
from shared.setup.host import Host
from shared.setup.joining import Joining, add_joining
from shared.setup.steps import Done, Outcome, Step
from shared.vocabulary import Role

_PORT: Final = 9443
"""Of a process server, unless its configuration says another."""
_PINS: Final = Path("/sys/fs/bpf/understudy")


@dataclass(frozen=True)
class _Disk(Check):
    """It can be protected, and how well (`python -m agent preflight`)."""

    device: str

    async def look(self, dry_run: bool) -> Done:
        [found] = preflight.examine([self.device])
        if found.error is not None:
            raise found.error
        assert found.mode is not None
        is_best = found.mode is preflight.Mode.ORDERED
        return Done(
            step="disk",
            outcome=Outcome.CHECKED if is_best else Outcome.WARNING,
            what=self.device,
            detail=" ".join(
                (f"{found.mode.value}: {preflight.GUARANTEES[found.mode]}. {found.cause}").split()
            ),
            action="; ".join(found.notes),
        )


def main(argv: Sequence[str]) -> int:
    made = parser("python -m agent setup", "Enrols this machine, configures its agent and starts it.")
    add_joining(made)
    made.add_argument(
        "--disk",
        action="append",
        metavar="DEVICE",
        help="a disk to protect, best as /dev/disk/by-id/…; may be given several times",
    )
    made.add_argument("--process-server", metavar="HOST[:PORT]", help="where its writes are sent")
    made.add_argument(
        "--identity",
        metavar="TEXT",
        help="what tells this machine from copies of it, where it has no SMBIOS of its own (a container)",
    )
    options = made.parse_args(argv)
    return run(
        Role.AGENT, options, lambda _show: _begin(options), lambda _done: _after(_host(options).config)
    )


def _host(options: argparse.Namespace) -> Host:
    return Host.of(Role.AGENT, host_files(), options)


def _begin(options: argparse.Namespace) -> Iterable[Step]:
    host = _host(options)
    there = known(host.config, AgentConfig)
    answers = Answers(there)
    process_server = answers.value(
        options.process_server,
        ("process_server",),
        "--process-server",
        f"Its process server (HOST, or HOST:PORT where the port is not {_PORT})",
    )
    disks = options.disk or there.get("disks", [])
    if not disks and not there.get("disk"):
        disks = answers.value(None, (), "--disk", "Disks to protect (devices, with blanks between)").split()
    joining = Joining(host, options, answers)
    return _steps(host, joining, disks, _address(process_server), options.identity)


def _steps(
    host: Host, joining: Joining, disks: Sequence[str], address: tuple[str, int], identity: str | None
) -> Iterator[Step]:
    yield from joining.checked()
    yield PortReached(*address, "the process server")
    for disk in disks:
        yield _Disk(disk)
    yield from host.prepared()

    def values(name: str) -> Mapping[str, Any]:
        server, port = address
        return {
            "machine": name,
            "disks": list(disks) or None,
            "process_server": f"[{server}]:{port}" if ":" in server else f"{server}:{port}",
            "control_url": joining.url,
            "tls": joining.tls,
            "state_dir": host.state_dir,
            "pin_dir": _PINS,
            "identity": identity,
        }

    yield from joining.made(AgentConfig, values)


def _address(text: str) -> tuple[str, int]:
    """Of HOST, HOST:PORT, [ADDRESS]:PORT. Raises UsageError."""
    found = re.fullmatch(r"(?:\[(?P<address>[^]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?", text)
    if found is None or not 0 < int(found["port"] or _PORT) < 1 << 16:
        raise UsageError(
            f"'{text}' is no address of a process server",
            cause="it must look like HOST, HOST:PORT or [ADDRESS]:PORT",
            action="Correct --process-server.",
        )
    return found["address"] or found["host"], int(found["port"] or _PORT)


def _after(file: Path) -> Sequence[str]:
    """What is left to do, by what its agent was told last. `file`: its configuration. Raises ConfigError."""
    config = load_config(file, AgentConfig)
    name = config.machine
    match desired.told(config.state_dir, name, identity_of(config.identity)):
        case None:
            return (f"Next, on the config server: understudy machine protect {name}",)
        case Verb.PROTECT:
            return (
                f"{name} is to be protected already: nothing has to be said on the config server. There, how it does: understudy machine"
                f" show {name}",
            )
        case Verb.STOP:
            return (
                f"{name} is not protected: somebody has ended that. To begin again, on the config server: understudy machine protect"
                f" {name}",
            )
        case Verb.OTHER:
            return (f"On the config server, how it does: understudy machine show {name}",)
