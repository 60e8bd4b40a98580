"""`python -m config_server backup`, `restore` and `put-back`: what people call on the host itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from config_server.config import ConfigServerConfig
from config_server.data_folder.backup import backup
from config_server.data_folder.belonging import TOKEN_FILE
from config_server.data_folder.put_back import put_back
from config_server.data_folder.restoring import Done, restore
from config_server.rules.clock import rfc3339
from config_server.store.restored import Restored
from shared.daemon.service import load_config
from shared.errors import UnderstudyError


def main(verb: str, argv: list[str]) -> int:
    return _put_back(argv) if verb == "put-back" else _backup_or_restore(verb, argv)


def _put_back(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m config_server put-back",
        description="Says of a database that it was put back (pg_restore, a copy of its file): it is older than what has happened since.",
    )
    parser.add_argument("--config", type=Path, required=True, help="config-server.toml")
    options = parser.parse_args(argv)
    try:
        config = load_config(options.config, ConfigServerConfig)
        print(f"The database is marked as put back.\n{_missing(put_back(config))}")
    except UnderstudyError as exc:
        print(f"config-server: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


def _backup_or_restore(verb: str, argv: list[str]) -> int:
    way, says = ("to", "file to write") if verb == "backup" else ("from", "file that `backup` wrote")
    parser = argparse.ArgumentParser(
        prog=f"python -m config_server {verb}", description="The data folder as one file."
    )
    parser.add_argument("--config", type=Path, required=verb == "backup", help="config-server.toml")
    parser.add_argument(f"--{way}", dest="file", type=Path, required=True, metavar="FILE", help=says)
    if verb == "restore":
        parser.add_argument(
            "--new-operator-token",
            action="store_true",
            help="the backup's serves no more, where it may have leaked",
        )
        parser.add_argument(
            "--data-dir", type=Path, help="the data folder, on a host that has no config-server.toml yet"
        )
        parser.add_argument("--vault-file", type=Path, help="likewise, the vault file")
    options = parser.parse_args(argv)
    if verb == "restore" and (options.config is None) == (options.data_dir is None):
        parser.error("one of --config and --data-dir (with --vault-file) is needed")
    try:
        if options.config is not None:
            config = load_config(options.config, ConfigServerConfig)
        else:
            config = ConfigServerConfig(data_dir=options.data_dir, vault_file=options.vault_file)
        if verb == "backup":
            size_b = backup(config, options.file)
            print(
                f"{config.data_dir} is backed up in {options.file} ({size_b} bytes). It holds private keys."
            )
        else:
            print(
                _told(
                    config,
                    options.file,
                    restore(config, options.file, new_operator_token=options.new_operator_token),
                )
            )
            token = config.data_dir / TOKEN_FILE
            if options.new_operator_token:
                print(f"The operator token is a new one: {token}.")
            else:
                print(
                    f"The operator token is the backup's: {token}. Was it changed since because somebody had seen it: delete that file"
                    " before the start, and there is a new one (or restore with --new-operator-token)."
                )
    except UnderstudyError as exc:
        print(f"config-server: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


def _told(config: ConfigServerConfig, source: Path, done: Done) -> str:
    aside, lost, since = done.kept
    kept = f"; what was there is in {aside}" if aside is not None else ""
    if lost:
        kept += f", but for {', '.join(lost)}: somebody removed that since"
    if since:
        kept += f"; what came into the folder since, or is of a backup that was half restored, is in {', '.join(map(str, since))}"
    owner = (
        "\nThe folder is new, and root's: the config server's user must own it and what is in it (`understudy init`, or systemd's"
        " StateDirectory=, sees to that)."
        if done.is_roots
        else ""
    )
    return f"{config.data_dir} is restored from {source}{kept}.\n{_missing(done.restored)}{owner}"


def _missing(restored: Restored) -> str:
    return (
        f"Its newest entry is of {rfc3339(restored.newest_ns)}; what was done since is missing. Void now: {restored.tokens} unused"
        f" enrolment tokens, {restored.operator_tokens} tokens of operators, {restored.commands} pending commands. To be said again:"
        f" {restored.deletions} deletions of machines; {restored.jobs} jobs wait for somebody to say how they go on."
        f" Next: `understudy init`, or start the config server; then `understudy event list` says what to look at."
    )
