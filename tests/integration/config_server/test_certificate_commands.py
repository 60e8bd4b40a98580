"""`understudy certificate …` as processes, against a real config server."""

from __future__ import annotations

import pytest

from shared import api
from shared.api.route import Page
from shared.control.rest import RestClient
from shared.trust.tls import TlsFiles
from tests.command_line import Line
from tests.config_parts import ConfigServer, serial


@pytest.mark.parametrize("mistyped", ["agent:web2", "process-server:web1", "7c4f38cf29ddf180"])
async def test_what_nobody_has_is_refused_and_is_no_success(
    server: ConfigServer, files: TlsFiles, operator: RestClient, mistyped: str
) -> None:
    """Whoever was meant is admitted still."""
    line = Line(server, None)
    done = await line.run("certificate", "revoke", mistyped, "--reason", "stolen", "--yes")
    assert (done.exit_code, done.stdout) == (3, "")
    assert f"No certificate is known that is one of {mistyped}" in done.stderr
    [kept] = (await operator.call(api.CERTIFICATES, Page())).certificates
    assert kept.revoked is None
    [entry] = (await operator.call(api.AUDIT, Page(limit=1))).entries
    assert (entry.action, entry.object) == ("certificate.revoke", mistyped)
    [refused] = await line.json("certificate", "revoke", serial(files), "--reason", "stolen")
    assert (refused["name"], refused["reason"]) == ("agent:web1", "stolen")
