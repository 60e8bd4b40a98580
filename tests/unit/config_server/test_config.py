"""The config server's configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from config_server.config import ConfigServerConfig
from shared.daemon.service import load_config
from shared.errors import ConfigError


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('hosts = ["https://cs.example.com"]', "https://cs.example.com"),
        ('hosts = ["\u00fc"]', "ASCII"),
        ('hosts = ["10.0.0.0/8"]', "10.0.0.0/8"),
        (f'name = "{"x" * 60}"', "64 characters"),
        ('name = "a/b"', "a/b"),
        ("certificate_days = nan", "certificate_days"),
        ("certificate_days = inf", "certificate_days"),
        ("certificate_days = 4e6", "certificate_days"),
        ("certificate_days = 0", "certificate_days"),
        ("port = 65536", "port"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: str, named: str) -> None:
    file = tmp_path / "config-server.toml"
    file.write_text(f'data_dir = "{tmp_path}"\n{line}\n')
    with pytest.raises(ConfigError) as caught:
        load_config(file, ConfigServerConfig)
    assert named in str(caught.value)
