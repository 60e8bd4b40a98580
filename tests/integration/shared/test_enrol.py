"""Enrolment with something that answers in the config server's place. Real TLS."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from config_server.identity.ca import CertificateAuthority
from shared.api.certificates import CaCertificate, Certificate
from shared.control import enrol
from shared.errors import PeerError, UnknownAuthorityError
from shared.trust import tls
from tests.impostor import answering
from tests.pki import TestCa


def genuine(tmp_path: Path) -> CertificateAuthority:
    (tmp_path / "genuine").mkdir()
    return CertificateAuthority.open(tmp_path / "genuine")


@pytest.mark.parametrize("order", ["genuine first", "genuine last"])
async def test_a_second_certificate_beside_the_genuine_ca_is_not_trusted_and_gets_no_token(
    tmp_path: Path, order: str
) -> None:
    ca = genuine(tmp_path)
    token, _ = enrol.new_token(ca.der)
    evil = TestCa(tmp_path, "evil CA")
    both = [ca.pem, evil.path.read_text()]
    pem = "".join(both if order == "genuine first" else reversed(both))
    tokens: list[str] = []

    def take(request: dict[str, Any]) -> Certificate:
        tokens.append(request["token"])
        return Certificate("", pem, "agent:web1", "")

    context = tls.server_context(evil.issue("config-server:cs1"), require_client=False)
    answers = {"ca": lambda _request: CaCertificate(pem=pem, fingerprint=""), "enrol": take}
    async with answering(context, answers) as url:
        with pytest.raises(UnknownAuthorityError):
            await enrol.enrol(url, token, tmp_path / "agent")
    assert tokens == []
    assert not (tmp_path / "agent").exists()


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    ca = genuine(tmp_path)
    token, _ = enrol.new_token(ca.der)
    evil = TestCa(tmp_path, "evil CA")
    context = tls.server_context(evil.issue("config-server:cs1"), require_client=False)
    asked: list[bool] = []

    def elsewhere(_request: dict[str, Any]) -> CaCertificate:
        asked.append(True)
        return CaCertificate(pem=ca.pem, fingerprint="")

    async with answering(context, {"ca": elsewhere}) as other:
        answers = {"ca": lambda _request: web.Response(status=307, headers={"Location": f"{other}/v1/ca"})}
        async with answering(context, answers) as url:
            with pytest.raises(PeerError, match="307"):
                await enrol.enrol(url, token, tmp_path / "agent")
    assert asked == []


@pytest.mark.parametrize("how", ["packed", "endless"])
async def test_of_a_stranger_nothing_is_unpacked_and_no_more_is_read_than_a_certificate_needs(
    tmp_path: Path, how: str
) -> None:
    token, _ = enrol.new_token(genuine(tmp_path).der)
    evil = TestCa(tmp_path, "evil CA")
    context = tls.server_context(evil.issue("config-server:cs1"), require_client=False)
    plain = bytes(1 << 20)
    packed = web.Response(body=zlib.compress(plain), headers={"Content-Encoding": "deflate"})
    answers = {"ca": lambda _request: packed if how == "packed" else web.Response(body=plain)}
    async with answering(context, answers) as url:
        with pytest.raises(PeerError, match="compressed" if how == "packed" else "longer than"):
            await enrol.enrol(url, token, tmp_path / "agent")
