"""docs/install.md and the programs of which it speaks. That its commands work is for the hosts of `python -m tests.long install`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared import errors
from tests.cli import understudy
from tests.setups import set_up

PAGE = (Path(__file__).parents[3] / "docs/install.md").read_text()
BLOCKS = re.findall(r"^```sh ([a-z-]+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
HELP = re.compile(r"--[a-z-]+")


@pytest.mark.parametrize("role", ["config-server", "process-server", "master-target", "agent"])
async def test_every_option_on_the_page_is_one(role: str) -> None:
    help_ = await (understudy("init", "--help") if role == "config-server" else set_up(role, "--help"))
    known = set(HELP.findall(help_.stdout))
    program = "init" if role == "config-server" else f"-m {role.replace('-', '_')} setup"
    commands = re.findall(rf"{program} (?:.*\\\n)*.*$", "".join(text for _, text in BLOCKS), re.MULTILINE)
    assert len(commands) == 1
    used = set(HELP.findall(commands[0]))
    assert used
    assert used <= known


def test_every_code_on_the_page_is_one() -> None:
    known = {cls.code for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "code")}
    found = set(re.findall(r"US\d{3}", PAGE))
    assert found
    assert found <= known
