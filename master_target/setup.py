"""`python -m master_target setup`: this host becomes a master target of an installation."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence

from deploy.systemd import host_files
from master_target.config import MasterTargetConfig
from shared.setup.checks import StorageFit
from shared.setup.command import Answers, Show, parser, run
from shared.setup.files import known
from shared.setup.host import Host
from shared.setup.joining import Joining, add_joining, where_it_shows
from shared.setup.steps import Step
from shared.setup.storage import Storage, add_storage, storage_of
from shared.vocabulary import Role


def main(argv: Sequence[str]) -> int:
    made = parser(
        "python -m master_target setup", "Enrols this host, configures its master target and starts it."
    )
    add_joining(made)
    add_storage(made)
    options = made.parse_args(argv)
    return run(
        Role.MASTER_TARGET,
        options,
        lambda show: _begin(options, show),
        lambda _done: where_it_shows(_host(options)),
    )


def _host(options: argparse.Namespace) -> Host:
    return Host.of(Role.MASTER_TARGET, host_files(), options)


def _begin(options: argparse.Namespace, show: Show) -> Iterable[Step]:
    host = _host(options)
    answers = Answers(known(host.config, MasterTargetConfig))
    joining = Joining(host, options, answers)
    return _steps(host, joining, storage_of(options, answers, host), show)


def _steps(host: Host, joining: Joining, storage: Storage, show: Show) -> Iterator[Step]:
    yield from joining.checked()
    yield StorageFit(storage.check, show)
    yield from host.prepared()
    yield from storage.files
    yield from joining.made(
        MasterTargetConfig,
        lambda name: {
            "name": name,
            "state_dir": host.state_dir,
            "control_url": joining.url,
            "tls": joining.tls,
            "blob": storage.daemon,
        },
    )
