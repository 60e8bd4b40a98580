"""The process server's configuration file: where its keys come from, and what may lie beside machines' folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from process_server.config import ProcessServerConfig
from shared.errors import ConfigError
from shared.service import load_config

REST = """
name = "ps1"
spool_dir = "/s"
blob = {url = "https://account.blob.core.windows.net"}
tls = {cert = "/c", key = "/k", ca = "/a"}
"""


@pytest.mark.parametrize(
    ("more", "named"), [("", "neither"), ('vault_file = "/v.json"\ncontrol_url = "https://c"', "both")]
)
def test_it_has_a_vault_file_or_somebody_to_ask_for_keys(tmp_path: Path, more: str, named: str) -> None:
    path = tmp_path / "process-server.toml"
    path.write_text(more + REST)
    with pytest.raises(ConfigError, match=named):
        load_config(path, ProcessServerConfig)
    for alone in ('vault_file = "/v.json"', 'control_url = "https://c"'):
        path.write_text(alone + REST)
        load_config(path, ProcessServerConfig)


@pytest.mark.parametrize("file", ["/c", "/k", "/a", "/v.json"])
def test_no_configured_file_lies_where_machines_have_their_folders(tmp_path: Path, file: str) -> None:
    path = tmp_path / "process-server.toml"
    text = f'vault_file = "/v.json"{REST}'.replace(f'"{file}"', f'"/s/web1{file}"')
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"/s/web1{file} cannot lie in /s"):
        load_config(path, ProcessServerConfig)
