"""The master target's configuration file, and what is wrong with it in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from master_target.__main__ import start
from master_target.config import MasterTargetConfig
from shared.daemon.service import load_config, run_daemon
from shared.errors import ConfigError

GOOD = """
name = "mt1"
vault_file = "/v.json"
blob = {url = "https://account.blob.core.windows.net"}
"""


def load(folder: Path, text: str) -> MasterTargetConfig:
    path = folder / "master-target.toml"
    path.write_text(text)
    return load_config(path, MasterTargetConfig)


def test_a_minimal_file_gives_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    assert (config.target, config.interval_b, config.machines) == ("page-blob", 64 << 20, ())


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ('target = "image"', "image_dir"),
        ('image_dir = "/x"', "image_dir"),
        ('target = "tape"', "target"),
        ("interval_b = 5", "interval_b"),
        ('control_url = "https://c"', "tls"),
        ('control_url = "https://c"\ntls = {cert = "/c", key = "/k", ca = "/a"}', "both"),
        ('control_url = "https://a..b"\ntls = {cert = "/c", key = "/k", ca = "/a"}', "control_url"),
        ("bridge = {gap = 5}", "gap"),
        ("bridge = {request_b = -1}", "request_b"),
        ("bridge = {amplification = 0.5}", "amplification"),
        ("retention = {all_s = -5}", "all_s"),
        ("retention = {hourly_s = nan}", "hourly_s"),
        ("retention = {all_s = inf}", "all_s"),
        ("retention = {orphan_s = 0}", "orphan_s"),
        ("poll_s = inf", "poll_s"),
        ('nmae = "x"', "nmae"),
        ('target = "image"\nimage_dir = "/"', "/v.json cannot lie in /"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, more: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load(tmp_path, GOOD + more)


def test_it_has_a_vault_file_or_somebody_to_ask_for_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither"):
        load(tmp_path, GOOD.replace("vault_file", "#"))
    asking = GOOD.replace('vault_file = "/v.json"', 'control_url = "https://c"')
    assert load(tmp_path, asking + 'tls = {cert = "/c", key = "/k", ca = "/a"}').vault_file is None


def test_a_wrong_file_ends_the_program_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none.toml")
    assert run_daemon(["--config", missing], "master-target", MasterTargetConfig, start) == 2
    assert capsys.readouterr().err.count("\n") == 1
