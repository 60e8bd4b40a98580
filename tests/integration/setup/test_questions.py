"""Who sits at a terminal is asked for what no option says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.blob import BlobConfig
from tests.cli import ROOT
from tests.config_parts import config_for, running
from tests.setups import places, storage


def at_a_terminal(answers: Sequence[tuple[str, str]], *arguments: str) -> tuple[int, str]:
    """`python -m …`; each line is typed in when the terminal shows what it answers. Exit code, and all that was shown."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        ) as process:
            os.close(theirs)
            shown, seen = "", 0
            left = list(answers)
            while piece := read(ours):
                shown += piece
                if left and (at := shown.find(left[0][0], seen)) >= 0:
                    seen = at + len(left[0][0])
                    os.write(ours, f"{left.pop(0)[1]}\n".encode())
        assert not left, shown
        return process.returncode, shown
    finally:
        os.close(ours)


def read(terminal: int) -> str:
    """ "": the other end has closed it."""
    with contextlib.suppress(OSError):
        return os.read(terminal, 65_536).decode(errors="replace")
    return ""


async def test_init_asks_for_names_the_recovery_key_and_storage(
    tmp_path: Path, blob_config: BlobConfig
) -> None:
    answers = [
        ("reach this server", "127.0.0.1 cs.example.com"),
        ("recovery key", ""),  # without an answer it does not go on, and asks again
        ("recovery key", str(tmp_path / "recovery.key")),
        ("URL of the storage account", blob_config.url),
        ("vault container", blob_config.container),
        ("account's key", str(blob_config.account_key_file)),
    ]
    code, shown = await asyncio.to_thread(
        at_a_terminal,
        answers,
        *(
            "config_server",
            "setup",
            "--dry-run",
            "--listen",
            "127.0.0.1",
            "--blob-ca-file",
            str(blob_config.ca_file),
        ),
        *places(tmp_path),
    )
    assert code == 0, shown
    assert "under which others reach this server" in shown
    assert shown.count("File to put the recovery key into") == 2
    assert "Dry run: nothing was changed." in shown
    assert f"container {blob_config.container}" in shown


async def test_a_token_that_is_typed_in_is_not_shown(tmp_path: Path, blob_config: BlobConfig) -> None:
    async with running(config_for(tmp_path)) as server:
        token = (await server.token("master-target", "mt1")).token
        code, shown = await asyncio.to_thread(
            at_a_terminal,
            [("The config server", server.url), ("Enrolment token", token)],
            *("master_target", "setup", *storage(blob_config), *places(tmp_path)),
        )
    assert code == 0, shown
    assert "master-target:mt1" in shown
    assert token not in shown


def test_a_whole_command_asks_nothing_so_that_the_next_line_of_what_was_pasted_is_no_answer(
    tmp_path: Path, blob_config: BlobConfig
) -> None:
    code, shown = at_a_terminal(
        [("", "rm process-server.token\n\x04")],  # and an end, for what is asked after it
        *("config_server", "setup", "--dry-run", "--listen", "127.0.0.1", "--host", "127.0.0.1"),
        *("--blob-url", blob_config.url, "--blob-key-file", str(blob_config.account_key_file)),
        *("--blob-ca-file", str(blob_config.ca_file), "--recovery-key", str(tmp_path / "recovery.key")),
        *places(tmp_path),
    )
    assert code == 0, shown
    assert "container understudy" in shown
