"""The process server's configuration file: where its keys come from, and what may lie beside machines' folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from process_server.config import ProcessServerConfig
from process_server.spool.ownership import LONGEST_PAUSE_S, LONGEST_SEGMENT_S, Patience
from shared.daemon.service import load_config
from shared.errors import ConfigError

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


def test_no_segment_is_open_for_longer_than_other_servers_take_silence_for(tmp_path: Path) -> None:
    path = tmp_path / "process-server.toml"
    alone = f'vault_file = "/v.json"{REST}'
    path.write_text(f"segment_seconds = {LONGEST_SEGMENT_S}\n{alone}")
    longest_s = load_config(path, ProcessServerConfig).segment_seconds
    patience = Patience()
    assert longest_s < LONGEST_PAUSE_S <= min(patience.silent_s, patience.over_s, patience.copy_s)
    path.write_text(f"segment_seconds = {LONGEST_SEGMENT_S + 1}\n{alone}")
    with pytest.raises(ConfigError, match="segment_seconds"):
        load_config(path, ProcessServerConfig)
