"""`understudy init`: options, and the order of the steps."""

from __future__ import annotations

import argparse
import shlex
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from config_server.cli.profile import FILE, Profile
from config_server.config import ConfigServerConfig
from config_server.data_folder import belonging
from config_server.identity.ca import check_host
from config_server.setup.hosts import joined, left
from config_server.setup.lost import DataThere
from config_server.setup.parts import Authority, AuthorityNote, Operator, Vault
from config_server.setup.recovery import NOTE, RecoveryKey, noted
from config_server.setup.unused import Unused
from deploy.systemd import host_files
from shared.api.route import PORT
from shared.serving.listening import shown
from shared.setup.checks import Answering, PortFree, StorageFit
from shared.setup.command import Answers, Show, parser, port, run
from shared.setup.files import Configuration, known
from shared.setup.host import CREDENTIAL, Host, Unit
from shared.setup.steps import Done, Outcome, Step
from shared.setup.storage import Storage, add_storage, storage_of
from shared.vocabulary import Role

_VAULT: Final = "vault.json"


def main(argv: Sequence[str]) -> int:
    made = parser(
        "understudy init", "Begins an installation: sets up the config server on this host, and starts it."
    )
    made.add_argument(
        "--host",
        action="append",
        metavar="NAME",
        help="a DNS name or address under which others reach this server; may be given several times. The first stands in everybody's"
        " configuration",
    )
    made.add_argument(
        "--port", type=port, metavar="N", help=f"the port on which it is reached (default: {PORT})"
    )
    made.add_argument("--listen", metavar="ADDRESS", help="where it listens (default: all of IPv4)")
    made.add_argument(
        "--recovery-key",
        type=Path,
        metavar="FILE",
        help="where the recovery key is to be put: a file that is not there yet, best on what leaves this host",
    )
    made.add_argument(
        "--new-ca",
        action="store_true",
        help="this server's data folder is lost, and there is no backup of it: begin with a new CA and an empty database. Every daemon has"
        " to enrol anew then",
    )
    add_storage(made)
    options = made.parse_args(argv)
    return run(
        Role.CONFIG_SERVER, options, lambda show: _begin(options, show), lambda done: after(options, done)
    )


def _begin(options: argparse.Namespace, show: Show) -> Iterable[Step]:
    host = Host.of(Role.CONFIG_SERVER, host_files(), options)
    there = known(host.config, ConfigServerConfig)
    answers = Answers(there)
    hosts = options.host or there.get("hosts")
    if not hosts:
        question = "Names or addresses under which others reach this server (blanks between them)"
        hosts = answers.value(
            None, (), "--host", question, socket.getfqdn() if answers.asks else None
        ).split()
    recovery_key = options.recovery_key
    handed = noted(host.folder / NOTE)
    if recovery_key is None and (handed is None or not handed.keys):
        question = "File to put the recovery key into (it must then leave this host)"
        said = answers.value(None, (), "--recovery-key", question)
        recovery_key = Path(said) if said else None
    storage = storage_of(options, answers, host)
    hosts = [check_host(each) for each in hosts]
    listen = {"listen": options.listen or there.get("listen"), "port": options.port or there.get("port")}
    vault_file = Path(there.get("vault_file", host.folder / _VAULT))  # an administrator may have moved it
    recovery = RecoveryKey(
        vault_file,
        None if recovery_key is None else recovery_key.absolute(),
        (host.etc, host.folder, host.state, host.state_dir, vault_file.parent),
        host.folder / NOTE,
    )
    recovery.check()
    return steps_of(Plan(host, storage, hosts, listen, vault_file, recovery, options.new_ca), show)


class Plan(NamedTuple):
    """Of a config server on this host."""

    host: Host
    storage: Storage
    hosts: Sequence[str]
    config: Mapping[str, Any]
    """Of its configuration, what somebody has said."""
    vault_file: Path
    recovery: Step
    """What is done about the recovery key."""
    begins_anew: bool = False


def steps_of(plan: Plan, show: Show) -> Iterator[Step]:
    host, storage, hosts, config_, vault_file, recovery, begins_anew = plan
    data_dir = host.state_dir
    number = config_.get("port") or PORT
    url = f"https://{shown(hosts[0])}{'' if number == PORT else f':{number}'}"
    yield StorageFit(storage.check, show)
    yield Unused(storage.check, vault_file)
    yield DataThere(data_dir, vault_file, host.etc / FILE, host.config, storage.check, begins_anew)
    yield PortFree(config_.get("listen") or "0.0.0.0", number, host.role, host.config)
    yield from host.prepared(is_restored=True)
    yield from storage.files
    yield Vault(vault_file, data_dir, host.user)
    yield recovery
    yield Authority(data_dir, begins_anew)
    yield Operator(data_dir)
    yield AuthorityNote(data_dir, vault_file, begins_anew, host.user)
    config = Configuration(
        host.config,
        ConfigServerConfig,
        {"data_dir": data_dir, **config_, "hosts": hosts, "blob": storage.daemon, "vault_file": vault_file},
        reader=host.user,
    )
    yield config
    profile = {
        "server": url,
        "token_file": data_dir / belonging.TOKEN_FILE,
        "ca_file": data_dir / "ca.pem",
        "rescue": {"vault_file": vault_file, "blob": _as_root(storage, host)},
    }
    says = "for the command line: --profile FILE, or UNDERSTUDY_PROFILE"
    yield Configuration(host.etc / FILE, Profile, profile, says, "profile")
    unit = Unit(host, lambda: config.made)
    yield unit
    yield Answering(url, data_dir / "ca.pem", host.by_unit)


def _as_root(storage: Storage, host: Host) -> dict[str, Any]:
    """The command line runs without the unit's credentials."""
    if host.by_unit and "account_key_file" in storage.daemon:
        return {**storage.daemon, "account_key_file": str(CREDENTIAL)}
    return storage.daemon


def after(options: argparse.Namespace, done: Sequence[Done]) -> Sequence[str]:
    etc = options.etc.absolute()
    is_answering = any((step.step, step.outcome) == ("answers", Outcome.CHECKED) for step in done)
    return (
        f"The operator's credentials: {options.state.absolute() / Role.CONFIG_SERVER / belonging.TOKEN_FILE}, used by",
        f"  export UNDERSTUDY_PROFILE={shlex.quote(str(etc / FILE))}",
        left(joined(etc / FILE) if is_answering else frozenset()),
    )
