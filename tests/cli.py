"""The `understudy` command as a process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests import forked
from tests.forked import ROOT

__all__ = ["MAIN", "ROOT", "Done", "begun", "clean", "done", "ended", "understudy"]

MAIN: Final = "from config_server.cli.main import main; main()"


@dataclass(frozen=True)
class Done:
    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        assert self.exit_code == 0, self.stderr
        return json.loads(self.stdout)


async def understudy(*arguments: str, **env: str) -> Done:
    """From its beginning to its end; nobody sits at a terminal."""
    return done(await forked.run("-c", MAIN, *arguments, env=_environment(env)))


async def begun(
    *arguments: str, stdin: int = asyncio.subprocess.DEVNULL, **env: str
) -> asyncio.subprocess.Process:
    """To be answered or interrupted."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MAIN, *arguments),
        env=_environment(env),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> Done:
    out, err = await process.communicate()
    assert process.returncode is not None
    return done(forked.Ended(process.returncode, out, err))


def done(of: forked.Ended) -> Done:
    assert b"Traceback" not in of.stderr, of.stderr.decode()
    return Done(of.exit_code, of.stdout.decode(), of.stderr.decode())


def clean() -> dict[str, str]:
    """The environment, as far as it says nothing to programs of this project."""
    return {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    return {**clean(), "PYTHONPATH": str(ROOT), "COLUMNS": "200", **more}
