"""docs/install.md and the code of which it speaks. That its commands work is for the hosts of `python -m tests.long install`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec
import pytest

from agent.capture.layout import MAX_DISKS
from agent.config import AgentConfig
from deploy import systemd
from process_server.config import PORT as STREAM_PORT
from process_server.reception.credit import CreditPolicy
from shared.api.route import PORT
from shared.blob.check import State, judging
from shared.setup import host

DOCS: Final = Path(__file__).resolve().parents[3] / "docs"
PAGE: Final = (DOCS / "install.md").read_text()
PARTS: Final = {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
ROLES: Final = {"agent", "process-server", "master-target", "config-server"}


def commands(title: str) -> dict[str, str]:
    """By host."""
    found: dict[str, str] = {}
    for role, block in re.findall(r"^```sh ([a-z-]+)\n(.*?)^```", PARTS[title], re.DOTALL | re.MULTILINE):
        found[role] = found.get(role, "") + block
    return found


@pytest.mark.parametrize("role", sorted(ROLES))
def test_every_host_is_upgraded_while_its_daemon_is_stopped(role: str) -> None:
    stop, install, set_up = commands("Upgrading")[role].splitlines()
    assert stop == f"systemctl stop understudy-{role}"
    assert f'pip install --quiet "$(echo ./understudy-*.whl)[{role}]"' in install
    assert set_up.endswith("--replace-units")


def test_all_that_set_ups_make_on_a_host_is_removed() -> None:
    found = commands("Removing it")
    for path, text in systemd.host_files().items():
        who = path.stem.removeprefix("understudy-") if path.suffix == ".service" else "every-host"
        assert str(path) in found[who]
        for user in re.findall(r"^u (\S+)", text, re.MULTILINE):
            assert user in found["every-host"]
    for folder in (host.ETC, host.STATE, host.PROGRAM, "/run/understudy", host.ROOTS_LOCKS):
        assert re.search(rf"^rm -rf (?:\S+ )*{folder}(?: |$)", found["every-host"], re.MULTILINE)
    assert f"rm -f {host.CREDENTIAL}\n" in found["every-host"]
    for role in ROLES:
        assert f"systemctl disable --now understudy-{role}\n" in found[role]


def test_capture_is_detached_before_the_program_goes() -> None:
    assert "-m agent detach --config /etc/understudy/agent.toml\n" in commands("Removing it")["agent"]
    assert list(commands("Removing it"))[-1] == "every-host"


def test_ports_and_limits_on_the_page_are_those_of_the_code() -> None:
    takes = PARTS["What it takes"]
    assert f"| agents | process server | {STREAM_PORT} " in takes
    assert f"| config server | {PORT} " in takes
    assert f"less than {CreditPolicy().free_floor * 100:.0f} %" in takes
    assert f"up to {MAX_DISKS} disks" in takes
    (ring,) = (field for field in msgspec.structs.fields(AgentConfig) if field.name == "ring_mib")
    assert f"{ring.default} MiB for the ring" in takes
    units = {path.stem: text for path, text in systemd.host_files().items() if path.suffix == ".service"}
    for unit, text in units.items():
        wanted, words = (
            ("4G", "4 GB (agent)") if unit == "understudy-agent" else ("75%", "75 % of\nits host's")
        )
        assert f"MemoryMax={wanted}\n" in text
        assert words in takes
    assert "JobRunningTimeoutSec=45\n" in units["understudy-agent"]
    assert "45 at most" in PARTS["Which disks come late"]


def test_the_account_that_the_page_makes_is_one_that_the_check_calls_fit() -> None:
    """Its lines are not run: of Azure there is no other to run them against."""
    [lines] = (
        block for block in PARTS["What it takes"].split("```")[1::2] if "az storage account create" in block
    )

    def is_on(option: str) -> bool:
        return {"true": True, "false": False}[said(option)]

    def said(option: str) -> str:
        found = re.search(rf"{option} (\S+)", lines)
        assert found, option
        return found[1]

    skus = {said("--sku"), *re.findall(r"`(Standard_\w+)`", PARTS["What it takes"])}
    assert len(skus) > 1
    findings = [
        judging.blob_soft_delete(is_on("--enable-delete-retention"), None),
        *judging.account(said("--kind"), said("--sku"), is_on("--enable-hierarchical-namespace")),
        *(judging.account(said("--kind"), sku, hierarchical=False)[0] for sku in skus),
    ]
    assert {finding.state for finding in findings} == {State.OK}
    assert not is_on("--enable-versioning")
    assert not is_on("--allow-blob-public-access")
    assert lines.startswith("\n"), "no test takes it for a host's"


def test_without_the_key_the_commands_are_those_without_its_option() -> None:
    assert "`--blob-key-file /root/account.key` of `init` and of both set-ups" in PARTS["What it takes"]
    pages = PAGE + (DOCS / "operations/recovering.md").read_text()
    with_key = [line for line in pages.splitlines() if line.lstrip().startswith("--blob-url")]
    assert len(with_key) == 5, "of `init` twice, of `server recover`, and of both set-ups"
    assert all(line.count(" --blob-key-file /root/account.key") == 1 for line in with_key)


def test_the_backup_before_an_upgrade_is_the_command_of_the_manual() -> None:
    [command] = re.findall(
        r"`(/opt/understudy/bin/python -m config_server backup [^`]*)`", PARTS["Upgrading"]
    )
    assert command in (DOCS / "operations/recovering.md").read_text().splitlines()
