"""`python -m process_server setup`: this host becomes a process server of an installation."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from deploy.systemd import host_files
from process_server.config import PORT, ProcessServerConfig
from shared.setup.checks import PortFree, StorageFit
from shared.setup.command import Answers, Show, parser, port, run
from shared.setup.files import known
from shared.setup.host import Host
from shared.setup.joining import Joining, add_joining, where_it_shows
from shared.setup.steps import Step
from shared.setup.storage import Storage, add_storage, storage_of
from shared.vocabulary import Role


def main(argv: Sequence[str]) -> int:
    made = parser(
        "python -m process_server setup", "Enrols this host, configures its process server and starts it."
    )
    add_joining(made)
    add_storage(made)
    made.add_argument("--listen", metavar="ADDRESS", help="where agents are heard (default: all of IPv4)")
    made.add_argument(
        "--port", type=port, metavar="N", help=f"the port on which agents are heard (default: {PORT})"
    )
    options = made.parse_args(argv)
    return run(
        Role.PROCESS_SERVER,
        options,
        lambda show: _begin(options, show),
        lambda _done: where_it_shows(_host(options)),
    )


def _host(options: argparse.Namespace) -> Host:
    return Host.of(Role.PROCESS_SERVER, host_files(), options)


def _begin(options: argparse.Namespace, show: Show) -> Iterable[Step]:
    host = _host(options)
    there = known(host.config, ProcessServerConfig)
    answers = Answers(there)
    joining = Joining(host, options, answers)
    storage = storage_of(options, answers, host)
    listen = {"listen": options.listen or there.get("listen"), "port": options.port or there.get("port")}
    return _steps(host, joining, storage, listen, show)


def _steps(
    host: Host, joining: Joining, storage: Storage, listen: Mapping[str, Any], show: Show
) -> Iterator[Step]:
    yield from joining.checked()
    yield PortFree(listen["listen"] or "0.0.0.0", listen["port"] or PORT, host.role, host.config)
    yield StorageFit(storage.check, show)
    yield from host.prepared()
    yield from storage.files
    yield from joining.made(
        ProcessServerConfig,
        lambda name: {
            "name": name,
            "spool_dir": host.state_dir,
            "control_url": joining.url,
            "tls": joining.tls,
            "blob": storage.daemon,
            **listen,
        },
    )
