"""An agent that cannot start says why to a config server that knows which machine it is. Real TLS, real storage."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent import telling
from agent.capture.available import Available
from agent.config import AgentConfig
from agent.desired import WishFile
from agent.machine_identity import boot_of
from config_server.operations import sides
from shared import api
from shared.api.events import EventQuery
from shared.api.protection import Protection
from shared.api.route import Nothing
from shared.blob import BlobConfig, BlobStore
from shared.control.rest import RestClient
from shared.desired import Verb
from shared.errors import UnsuitableDiskError
from shared.machine import active_side
from shared.status import AgentReport, AvailableDisk, BoundDisk
from shared.trust.tls import TlsFiles
from tests.config_parts import config_for, daemon, running
from tests.pki import TestCa
from tests.wishing import teller

WHY = UnsuitableDiskError("Disk /dev/sda was not attached", cause="it is a tape")


def config(url: str, files: TlsFiles, folder: Path, identity: str = "original") -> AgentConfig:
    return AgentConfig(
        machine="web1", disks=["/dev/sda"], process_server="ps:9443", control_url=url, tls=files, identity=identity,
        state_dir=folder, pin_dir=folder,
    )  # fmt: skip


async def codes(operator: RestClient) -> list[str]:
    found = await operator.call(api.EVENTS, EventQuery(object="web1", open=True))
    return [event.code for event in found.events]


async def test_the_cause_arrives_also_right_after_another_boot_reported(
    tmp_path: Path, store: BlobStore, blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "RECENT_S", 0.3)
    monkeypatch.setattr(telling, "_TELL_AGAIN_S", 0.05)
    await active_side.find_or_begin(store, "web1", "original")
    async with running(config_for(tmp_path, blob=blob_config)) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        await operator.call(api.PROTECT, Protection(disks=["/dev/sda"], offline=True), machine="web1")
        async with daemon(server, files) as before:
            await before.report(AgentReport(machine="web1", identity="original", boot="1", state="ordered"))
        await telling.tell_why(
            config(server.url, files, tmp_path),
            WHY,
            boot_of(0),
            WishFile(tmp_path, "web1", ""),
            Available(tmp_path),
            [],
        )
        shown = await operator.call(api.MACHINE, Nothing(), machine="web1")
        assert (shown.state, await codes(operator)) == ("failed", ["US415"])
        assert "it is a tape" in shown.cause


async def test_certificates_that_are_not_there_hide_no_cause(tmp_path: Path) -> None:
    nowhere = TlsFiles(cert=tmp_path / "c", key=tmp_path / "k", ca=tmp_path / "a")
    with capture_logs() as logs:
        await telling.tell_why(
            config("https://cs", nowhere, tmp_path),
            WHY,
            boot_of(0),
            WishFile(tmp_path, "web1", ""),
            Available(tmp_path),
            [],
        )
    assert [line["event"] for line in logs] == ["the config server could not be told why"]


async def test_an_agent_that_must_end_says_which_disks_there_are_and_hears_what_is_wanted_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca, available, bound = TestCa(tmp_path), Available(tmp_path), BoundDisk(id="sda", device="/dev/sda")
    found = [AvailableDisk(device="/dev/sdb", sectors=8)]
    monkeypatch.setattr(available, "look", lambda: found)
    async with teller(ca) as says:
        wish = says.wish(Verb.STOP)
        await telling.tell_why(
            config(says.url, ca.issue("agent:web1"), tmp_path),
            WHY,
            boot_of(0),
            WishFile(tmp_path, "web1", ""),
            available,
            [bound],
        )
        assert (says.last.state, says.last.wish, says.last.available) == ("failed", None, found)
        assert says.last.bound == [bound]
    next_start = WishFile(tmp_path, "web1", "")
    next_start.load()
    assert next_start.wish == wish


async def test_an_agent_that_does_not_know_what_it_is_to_protect_hears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state_dir is not mounted, say: what it went by lies there, and what it is told would be written below."""
    ca, available = TestCa(tmp_path), Available(tmp_path)
    monkeypatch.setattr(available, "look", lambda: [AvailableDisk(device="/dev/sdb", sectors=8)])
    async with teller(ca) as says:
        says.wish(Verb.STOP)
        files = ca.issue("agent:web1")
        wishes = WishFile(tmp_path, "web1", "")
        await telling.tell_why(config(says.url, files, tmp_path), WHY, boot_of(0), wishes, available, None)
        assert (says.last.state, wishes.wish, wishes.path.exists()) == ("failed", None, False)
