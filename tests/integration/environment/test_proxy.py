"""Proxies in the environment of whoever starts a lab."""

from __future__ import annotations

import secrets
import shutil
import socket
from pathlib import Path

import msgspec
import pytest

from deploy.lab.daemons import environment
from deploy.lab.state import Lab as LabState
from deploy.lab.state import Settings
from tests.lab import lab
from tests.loopdisk import loop_disk


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> str:
    """One that takes no connection."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, url)
    return url


def test_a_lab_replicates_whatever_proxy_its_caller_has(proxy: str) -> None:
    folder = Path("/dev/shm") / f"understudy-proxy-{secrets.token_hex(3)}"
    folder.mkdir()
    try:
        with loop_disk(folder / "disk", 16 << 20) as disk, lab([disk], segment_seconds=1) as made:
            made.wait_ordered(60)
            assert made.create_point()["state"] in ("logged", "snapshotted")
    finally:
        shutil.rmtree(folder)


def test_storage_elsewhere_is_reached_through_the_proxy_and_this_host_is_not(
    proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "internal.example")
    monkeypatch.setenv("AZURE_CLIENT_ID", "me")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    own = LabState(tmp_path, Settings(id="x", disks=("/dev/loop0",)))
    elsewhere = LabState(
        tmp_path, msgspec.structs.replace(own.settings, blob_url="https://x.blob.core.windows.net")
    )
    assert not {"HTTPS_PROXY", "AZURE_CLIENT_ID", "PYTHONWARNINGS"} & environment(own).keys()
    env = environment(elsewhere)
    assert (env["HTTPS_PROXY"], env["AZURE_CLIENT_ID"]) == (proxy, "me")
    assert env["NO_PROXY"] == env["no_proxy"] == "internal.example,127.0.0.1,localhost"
    assert "PYTHONWARNINGS" not in env
