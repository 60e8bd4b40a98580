"""What a daemon's certificate has to say of it."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from cryptography import x509

import agent.service
import master_target.service
import process_server.service
from agent.config import AgentConfig
from master_target.config import MasterTargetConfig
from process_server.config import ProcessServerConfig
from shared.blob import BlobConfig
from shared.errors import ConfigError, IdentityFileError, OthersFolderError
from shared.trust import identity
from shared.trust.tls import TlsFiles
from tests.pki import TestCa


@pytest.mark.parametrize("role", ["agent", "process-server", "master-target"])
async def test_a_daemon_whose_name_is_not_its_certificate_s_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """What it writes to storage under its name would be nobody's to the config server, which knows it by its certificate."""
    files = TestCa(tmp_path).issue(f"{role}:one")
    blob = BlobConfig(url="https://127.0.0.1:1/account")
    vault_file, stop = tmp_path / "vault.json", asyncio.Event()
    monkeypatch.setattr(agent.service, "check_machine", lambda: None)
    with pytest.raises(
        ConfigError, match=f"it is for '{role}:one', and the configuration names '{role}:two'"
    ):
        if role == "agent":
            await agent.service.run(
                AgentConfig(
                    machine="two", disks=["/dev/no-such-disk"], process_server="127.0.0.1:1", control_url="https://127.0.0.1:1",
                    tls=files, state_dir=tmp_path / "state", pin_dir=tmp_path / "pins",
                ),
                stop,
            )  # fmt: skip
        elif role == "process-server":
            await process_server.service.run(
                ProcessServerConfig(
                    name="two", tls=files, spool_dir=tmp_path / "spool", blob=blob, vault_file=vault_file
                ),
                stop,
            )
        else:
            await master_target.service.run(
                MasterTargetConfig(name="two", tls=files, blob=blob, vault_file=vault_file), stop
            )


STATES = ("good", "empty", "gone", "garbage", "other's")


def put(path: Path, state: str, good: bytes, others: bytes) -> None:
    path.unlink(missing_ok=True)
    if state != "gone":
        path.write_bytes({"good": good, "empty": b"", "garbage": b"\x00\xff" * 99, "other's": others}[state])


def test_whose_folder_it_is_is_told_by_the_certificate_alone(tmp_path: Path) -> None:
    ours, elsewhere = TestCa(tmp_path), TestCa(tmp_path, "elsewhere")
    ca, other_ca = (x509.load_pem_x509_certificate(made.path.read_bytes()) for made in (ours, elsewhere))
    mine, others = ours.issue("agent:mine"), ours.issue("agent:other")
    folder = tmp_path / "agent"
    folder.mkdir()
    files = identity.files_in(folder)
    for cert, key, ca_file in itertools.product(STATES, STATES, STATES):
        put(files.cert, cert, mine.cert.read_bytes(), others.cert.read_bytes())
        put(files.key, key, mine.key.read_bytes(), others.key.read_bytes())
        put(files.ca, ca_file, ours.path.read_bytes(), elsewhere.path.read_bytes())
        there = cert in ("good", "other's")
        assert [
            refusal(files, ca),
            refusal(files, ca, "agent:mine"),
            refusal(files, other_ca),
            refusal(files, other_ca, "agent:mine"),
        ] == [
            "",
            "it is the folder of 'agent:other'" if cert == "other's" else "",
            f"'agent:{'mine' if cert == 'good' else 'other'}' is enrolled there with another installation"
            if there
            else "",
            "it is the folder of 'agent:other'"
            if cert == "other's"
            else "'agent:mine' is enrolled there with another installation"
            if there
            else "",
        ], (cert, key, ca_file)


def refusal(files: TlsFiles, ca: x509.Certificate, name: str = "") -> str:
    try:
        identity.check_folder(files, [ca], name)
    except OthersFolderError as exc:
        assert "--replace" in exc.action
        return exc.cause.partition(",")[0]
    return ""


def test_a_certificate_that_cannot_be_read_makes_no_folder_free(tmp_path: Path) -> None:
    files = identity.files_in(tmp_path)
    files.cert.mkdir()  # root may read any file
    ca = TestCa(tmp_path)
    with pytest.raises(IdentityFileError, match="whose folder it is cannot be told"):
        identity.check_folder(files, [x509.load_pem_x509_certificate(ca.path.read_bytes())])
