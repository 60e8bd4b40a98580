"""The `understudy` command as a process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


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
    return await ended(await begun(*arguments, stdin=asyncio.subprocess.DEVNULL, **env))


async def begun(
    *arguments: str, stdin: int = asyncio.subprocess.DEVNULL, **env: str
) -> asyncio.subprocess.Process:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UNDERSTUDY_")}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from config_server.cli.main import main; main()",
        *arguments,
        env={**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **env},
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> Done:
    out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Done(process.returncode, out.decode(), err.decode())
