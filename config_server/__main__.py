"""`python -m config_server --config FILE` runs the daemon; `setup`, `backup`, `restore` and `put-back` are tools."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import Final

from config_server.config import ConfigServerConfig
from shared.daemon.log_sink import fill_standard_descriptors
from shared.daemon.service import run_daemon

_TOOLS: Final = """tools:
  python -m config_server setup …                             begin an installation (understudy init; --help)
  python -m config_server recover …                           take the place of one that is gone (understudy server recover; --help)
  python -m config_server backup --config FILE --to FILE      the data folder as one file, while the server runs
  python -m config_server restore --config FILE --from FILE   and back, while it does not
                             (--new-operator-token: the backup's serves no more; on a host that has no
                             configuration yet: --data-dir DIR --vault-file FILE in its place)
  python -m config_server put-back --config FILE              its database was put back otherwise, with pg_restore say
"""


def main(argv: list[str]) -> int:
    fill_standard_descriptors()
    match argv[:1]:
        case ["setup"]:
            from config_server.setup import command

            return command.main(argv[1:])
        case ["recover"]:
            from config_server.setup import recover_command

            return recover_command.main(argv[1:])
        case ["backup" | "restore" | "put-back" as verb]:
            from config_server.data_folder import tools

            return tools.main(verb, argv[1:])
        case _:
            return run_daemon(argv, "config-server", ConfigServerConfig, start, also=_TOOLS)


def start(config: ConfigServerConfig, stop: asyncio.Event) -> Awaitable[None]:
    from config_server.service import run

    return run(config, stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
