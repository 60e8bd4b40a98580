"""The systemd units: valid, hardened, and pointing at programs that exist."""

from __future__ import annotations

import configparser
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shared.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[3] / "deploy/systemd"
UNITS = sorted(FOLDER.glob("*.service"))
MOST_EXPOSED = {"understudy-agent.service": 4.5}
"""Highest exposure level that `systemd-analyze security` may find (0 is best, 10 worst)."""

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def read(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    return parser


def test_there_is_one_unit_per_daemon() -> None:
    assert [unit.stem for unit in UNITS] == [
        "understudy-agent",
        "understudy-config-server",
        "understudy-master-target",
        "understudy-process-server",
    ]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_a_module_that_exists_and_waits_for_ready(unit: Path) -> None:
    service = read(unit)["Service"]
    found = re.fullmatch(r"\S+/python -m (\w+) --config /etc/understudy/([\w-]+)\.toml", service["ExecStart"])
    assert found is not None
    assert importlib.util.find_spec(found[1]) is not None
    assert unit.stem == f"understudy-{found[2]}"
    assert service["Type"] == "notify"
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"].split() == [str(ConfigError.exit_code)]
    assert int(service["WatchdogSec"]) >= 30


@needs_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_the_unit_and_finds_it_hardened(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    # The program is not installed here; everything else is checked as it is.
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
    verified = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", copy],
        capture_output=True,
        text=True,
        check=False,
    )
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", security.stdout)
    assert level is not None, security.stdout + security.stderr
    assert float(level[1]) <= MOST_EXPOSED.get(unit.name, 2.0)
