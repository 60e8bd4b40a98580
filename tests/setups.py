"""Set-ups as processes (`understudy init`, `python -m ROLE setup`), in folders of the test's own: nothing of the host's is touched."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from shared.blob import BlobConfig
from tests import forked
from tests.cli import ROOT, Done, clean, done


async def set_up(role: str, *arguments: str | Path, verb: str = "setup", **env: str) -> Done:
    """`python -m ROLE setup …`, or another `verb`; nobody sits at a terminal."""
    words = ("-m", role.replace("-", "_"), verb, *map(str, arguments))
    return done(await forked.run(*words, env={**clean(), "PYTHONPATH": str(ROOT), **env}, cwd="/"))


def places(folder: Path) -> list[str]:
    return ["--etc", str(folder / "etc"), "--state", str(folder / "state")]


def storage(config: BlobConfig) -> list[str]:
    return [
        *("--blob-url", config.url, "--blob-container", config.container),
        *("--blob-key-file", str(config.account_key_file), "--blob-ca-file", str(config.ca_file)),
    ]


def outcomes(steps: Sequence[dict[str, str]]) -> dict[str, str]:
    """Step → outcome; of several of one kind, the last."""
    return {step["step"]: step["outcome"] for step in steps}


def tree(*folders: Path) -> dict[str, tuple[str, bytes]]:
    """Every file and folder below them: mode, and content."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder.exists() else ():
            mode = stat.filemode(path.lstat().st_mode)
            found[str(path)] = mode, path.read_bytes() if path.is_file() else b""
    return found
