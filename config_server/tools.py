"""`python -m config_server backup` and `restore`: what people call on the host itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from config_server.backup import backup
from config_server.config import ConfigServerConfig
from config_server.restoring import restore
from shared.errors import UnderstudyError
from shared.service import load_config


def main(verb: str, argv: list[str]) -> int:
    way, says = ("to", "file to write") if verb == "backup" else ("from", "file that `backup` wrote")
    parser = argparse.ArgumentParser(
        prog=f"python -m config_server {verb}", description="The data folder as one file."
    )
    parser.add_argument("--config", type=Path, required=True, help="config-server.toml")
    parser.add_argument(f"--{way}", dest="file", type=Path, required=True, metavar="FILE", help=says)
    options = parser.parse_args(argv)
    try:
        config = load_config(options.config, ConfigServerConfig)
        if verb == "backup":
            size_b = backup(config, options.file)
            print(
                f"{config.data_dir} is backed up in {options.file} ({size_b} bytes). It holds private keys."
            )
        else:
            aside = restore(config, options.file)
            kept = f"; what was there is in {aside}" if aside is not None else ""
            print(f"{config.data_dir} is restored from {options.file}{kept}. Start the config server.")
    except UnderstudyError as exc:
        print(f"config-server: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0
