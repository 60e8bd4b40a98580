"""The commands in README.md, and in docs/operations.md with its chapters, run as they stand, on a disk and in folders of the test's own."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopdisk import loop_disk

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path("/dev/shm") / f"understudy-docs-{secrets.token_hex(3)}"
    made.mkdir()
    yield made
    shutil.rmtree(made)


def commands(text: str, folder: Path, device: str) -> str:
    """All shell blocks as one script; make targets are left out, since they run this test."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith("make ")]
    script = "\n".join(lines).replace("/var/tmp", str(folder)).replace("--wipe\n", "--wipe --yes\n")
    port_base = 20000 + 20 * secrets.randbelow(600)
    script = re.sub(r"lab up ", f"lab up --port-base {port_base} ", script + "\n")
    return script.replace("--disk /dev/loop0", f"--disk {device}")


def text_of(page: str) -> str:
    """With its chapters, in the order in which it names them."""
    path = ROOT / page
    text = path.read_text()
    chapters = re.findall(r"^\| \[[^]]+\]\((operations/\w+\.md)\)", text, re.MULTILINE)
    return "\n".join([text, *((path.parent / chapter).read_text() for chapter in chapters)])


def test_every_chapter_of_the_manual_is_named_once() -> None:
    folder = ROOT / "docs/operations"
    named = [path for path in folder.glob("*.md") if path.read_text() in text_of("docs/operations.md")]
    assert sorted(named) == sorted(folder.glob("*.md"))
    without_commands = re.sub(r"```.*?```", "", text_of("docs/operations.md"), flags=re.DOTALL)
    assert without_commands.count("\n# ") == len(named)


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_the_commands_of_the_page_work_as_written(page: str, folder: Path) -> None:
    with loop_disk(folder / "disk", 32 << 20) as device:
        script = commands(text_of(page), folder, device)
        environment = {
            **os.environ,
            "DISK": device,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        try:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
        finally:
            subprocess.run(
                ["understudy", "lab", "down", "--wipe", "--yes", "--dir", str(folder / "lab")],
                env=environment, capture_output=True, check=False,
            )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
