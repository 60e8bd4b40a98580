"""Which other hosts an installation has, and which it needs yet: what is left to do when its config server was set up."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Final

from config_server.cli import profile
from config_server.cli.options import Target
from shared import api
from shared.api.route import Nothing
from shared.errors import UnderstudyError
from shared.vocabulary import Role

_NEEDED: Final = (Role.PROCESS_SERVER, Role.MASTER_TARGET, Role.AGENT)


def joined(file: Path) -> frozenset[Role]:
    """Roles of the daemons that have ever reported to the server of this profile; none, too, where it cannot be asked."""
    try:
        return asyncio.run(_ask(file))
    except (UnderstudyError, OSError, ValueError):
        return frozenset()  # another profile than the set-up's, say: what is said then holds all the same


async def _ask(file: Path) -> frozenset[Role]:
    """Raises UnderstudyError, OSError, ValueError."""
    found = profile.load(file)
    target = Target(found.server, found.token_file.read_text("ascii").strip(), found.ca_file, None)
    async with target.connect() as client:
        daemons = (await client.call(api.DAEMONS, Nothing())).daemons
    return frozenset(daemon.role for daemon in daemons)


def left(known: Collection[Role]) -> str:
    """In words. Pure."""
    lacking = [role for role in _NEEDED if role not in known]
    if not lacking:
        return "Nothing is left to do here. Who reports: understudy daemon list"
    if len(lacking) == len(_NEEDED):
        return "Next, for each host that is not part of it yet: understudy token create ROLE NAME, and there python -m ROLE setup."
    commands = " and ".join(
        f"understudy token create {role} NAME, and on its host python -m {role.replace('-', '_')} setup"
        for role in lacking
    )
    return f"Next: {commands}. No {' and no '.join(lacking)} has reported yet (understudy daemon list)."
