"""Requests that Schemathesis makes of docs/openapi.json, to a server with real storage and a machine that replicates."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from shared.trust.tls import TlsFiles
from tests.config_parts import ConfigServer
from tests.obedient_agent import obedient_agent

DESCRIPTION: Final = Path(__file__).resolve().parents[3] / "docs/openapi.json"
CHECKS: Final = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
LINKED: Final = ("use_after_free", "ensure_resource_availability")
"""Of requests that follow the description's links."""
# Of those that there are, these are left out. `positive_data_acceptance`: what fits the schema may be wrong all the same, by what there is
# (a token, a disk, a name). `object_level_authorization`: operators are allowed everything.
SEED: Final = 1
NAMED: Final = """
[parameters]
"path.policy" = "gold"
"path.operator" = "anna"
[phases.stateful.inference]
algorithms = []
"""
OF_WEB1: Final = '[parameters]\n"path.machine" = "web1"\n'


async def fuzz(
    server: ConfigServer,
    folder: Path,
    *more: str,
    config: str = "",
    checks: Sequence[str] = CHECKS,
    phases: str = "coverage,fuzzing",
    described: Path = DESCRIPTION,
) -> None:
    """Fails with what Schemathesis prints when it has found something."""
    (folder / "schemathesis.toml").write_text(config)
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "schemathesis.cli",
            "--config-file",
            folder / "schemathesis.toml",
            "run",
            described,
            "--url",
            server.url,
        ),
        *(
            "--header",
            f"Authorization: Bearer {server.operator_token}",
            "--tls-verify",
            server.config.data_dir / "ca.pem",
        ),
        *(
            "--checks",
            ",".join(checks),
            "--seed",
            str(SEED),
            "--max-examples",
            "10",
            "--phases",
            phases,
        ),
        *("--warnings", "off", "--no-color", "--continue-on-failure", *more),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    if process.returncode:
        pytest.fail(said.decode())


@pytest.fixture
def server(server_with_storage: ConfigServer) -> ConfigServer:
    return server_with_storage


async def test_any_request_of_an_operator_is_answered_as_described(
    server: ConfigServer, tmp_path: Path
) -> None:
    await fuzz(server, tmp_path)


async def test_any_request_about_a_machine_that_is_there_is_answered_as_described(
    server: ConfigServer, files: TlsFiles, tmp_path: Path
) -> None:
    async with obedient_agent(server, files):
        await fuzz(server, tmp_path, "--include-path-regex", "{machine}", config=OF_WEB1)


async def test_any_request_of_a_daemon_is_answered_as_described(server: ConfigServer, tmp_path: Path) -> None:
    ps1 = await server.enrolled("process-server", "ps1", tmp_path / "ps1")
    shown = "--request-cert", str(ps1.cert), "--request-cert-key", str(ps1.key)
    only = "^/v1/(certificates/renew|machines/{machine}/keys.*)$"
    await fuzz(server, tmp_path, "--include-path-regex", only, *shown, config=OF_WEB1)
    # Reports are lenient: what is wrong in a field of another role's is not looked at.
    most = [check for check in CHECKS if check != "negative_data_rejection"]
    await fuzz(server, tmp_path, "--include-path", "/v1/status", *shown, checks=most)


@pytest.mark.parametrize("noun", ["policies", "operators"])
async def test_what_was_made_is_there_and_what_was_ended_is_not(
    noun: str, server: ConfigServer, tmp_path: Path
) -> None:
    only = "--include-path-regex", f"^/v1/{noun}/"
    await fuzz(server, tmp_path, *only, config=NAMED, checks=CHECKS + LINKED, phases="stateful")


async def test_a_status_that_is_not_described_is_found(server: ConfigServer, tmp_path: Path) -> None:
    document = json.loads(DESCRIPTION.read_text())
    del document["paths"]["/v1/machines/{machine}"]["get"]["responses"]["404"]
    described = tmp_path / "openapi.json"
    described.write_text(json.dumps(document))
    with pytest.raises(pytest.fail.Exception, match="Undocumented status code"):
        await fuzz(server, tmp_path, "--include-path", "/v1/machines/{machine}", described=described)
