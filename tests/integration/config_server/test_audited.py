"""Whoever changes something is in the audit log: each route that does is called here."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import pytest

from config_server.identity.ca import CertificateAuthority, pem_of
from config_server.store import journal
from shared import api
from shared.api import ROUTES, Route
from shared.api.audit import AuditView
from shared.api.certificates import CaRenewRequest, EnrolRequest, RenewRequest, RevokeRequest, TokenRequest
from shared.api.copies import RebindRequest
from shared.api.deletion import DeletionRequest
from shared.api.jobs import JobProgress
from shared.api.machines import PolicyChoice
from shared.api.operators import OperatorTokenRequest
from shared.api.points import FlushRequest, PointRequest
from shared.api.policies import Policy
from shared.api.protection import Protection
from shared.api.restores import GrantEnd, RestoreRequest
from shared.api.route import Nothing, Page
from shared.control.rest import RestClient
from shared.trust import identity, tls
from shared.vocabulary import Role
from tests.config_parts import ConfigServer
from tests.databases import opened
from tests.obedient_agent import obedient_agent

_Q = TypeVar("_Q", bound=msgspec.Struct)
_R = TypeVar("_R", bound=msgspec.Struct)

NOT_AUDITED: Final = {"flush", "job_update"}
"""What they change is nobody's decision: process servers upload sooner what they would upload anyway; and a command says every few seconds
how its restore goes, whose begin and end are on record (`restore.grant`, an event)."""
CHANGING: Final = {route.name for route in ROUTES if route.changes}


@pytest.fixture
def server(server_with_storage: ConfigServer) -> ConfigServer:
    return server_with_storage


class Acting:
    """Calls routes, and looks each time what of it is on record."""

    def __init__(self, operator: RestClient) -> None:
        self._operator = operator
        self.done: set[str] = set()

    async def call(
        self, route: Route[_Q, _R], body: _Q, *, as_: RestClient | None = None, who: str = "", **path: Any
    ) -> _R:
        before = await self._newest()
        answer = await (as_ or self._operator).call(route, body, **path)
        left = [entry for entry in await self._newest() if entry not in before]
        by_caller = [entry.action for entry in left if entry.who == (who or "operator:admin")]
        assert bool(by_caller) is (route.name not in NOT_AUDITED), (route.name, left)
        self.done.add(route.name)
        return answer

    async def _newest(self) -> list[AuditView]:
        return (await self._operator.call(api.AUDIT, Page())).entries


async def test_each_route_that_changes_something_says_who_did(
    server: ConfigServer, operator: RestClient, tmp_path: Path
) -> None:
    acting = Acting(operator)
    act = acting.call
    await identities(server, acting, tmp_path)

    await act(api.POLICY_SET, Policy())
    await act(api.POLICY_PUT, Policy(), policy="gold")
    await act(api.POLICY_PUT, Policy(), policy="silver")
    await act(api.POLICY_DELETE, Nothing(), policy="silver")

    files = await server.enrolled("agent", "web1", tmp_path / "web1")
    async with obedient_agent(server, files) as agent:
        agent.epoch = 1
        await agent.report()
        await act(api.PROTECT, Protection(disks=["/dev/sda"]), machine="web1")
        await agent.report()
        await act(api.POLICY_ASSIGN, PolicyChoice(name="gold"), machine="web1")
        await act(api.POINT_CREATE, PointRequest(), machine="web1")
        await act(api.FLUSH, FlushRequest(wait_s=0), machine="web1")
        job = (await act(api.RESYNC, Nothing(), machine="web1")).id
        for said in (api.JOB_RETRY, api.JOB_ABANDON):
            with opened(server.config.data_dir / "state.db") as db:
                journal.hold_unended(db, "a person to say how it goes on")
            await act(said, Nothing(), id=job)
        await agent.report(results={job: {}})
        again = (await act(api.RESYNC, Nothing(), machine="web1")).id
        await act(api.JOB_CANCEL, Nothing(), id=again)

    granted = await act(api.RESTORE, RestoreRequest(), machine="web1")
    await act(api.JOB_UPDATE, JobProgress(progress=0.5), id=granted.job)
    await act(api.GRANT_RENEW, Nothing(), machine="web1", id=granted.storage.id)
    await act(api.GRANT_END, GrantEnd(), machine="web1", id=granted.storage.id)

    await act(api.UNPROTECT, Nothing(), machine="web1")
    await act(api.REBIND, RebindRequest(identity="other"), machine="web1")
    await act(api.DELETE, DeletionRequest(after_s=3600), machine="web1")
    await act(api.KEEP, Nothing(), machine="web1")
    await act(api.CA_RENEW, CaRenewRequest())
    assert acting.done >= CHANGING, CHANGING - acting.done


async def identities(server: ConfigServer, acting: Acting, folder: Path) -> None:
    act = acting.call
    made = await act(api.OPERATOR_TOKEN_CREATE, OperatorTokenRequest(), operator="anna")
    await act(api.OPERATOR_TOKEN_END, Nothing(), operator="anna", id=made.id)
    request = TokenRequest(role="process-server", name="ps1", hosts=["127.0.0.1"])
    await act(api.TOKEN_CREATE, request)
    async with server.operator() as operator:
        [unused] = (await operator.call(api.TOKENS, Page())).tokens
    await act(api.TOKEN_END, Nothing(), id=unused.id)

    token = (await act(api.TOKEN_CREATE, request)).token
    files = await server.enrolled("process-server", "ps2", folder / "ps2")
    enrolment = EnrolRequest(token=token, csr=identity.request_of(files))
    async with RestClient(server.url, server.anonymous_context()) as anybody:
        await act(api.ENROL, enrolment, as_=anybody, who="process-server:ps1")

    # Another certificate of its key, which is due: it began five minutes ago, and lives for 100 s more.
    ca = CertificateAuthority.open(server.config.data_dir)
    key, life = identity.key_of(files).public_key(), dt.timedelta(seconds=100)
    files.cert.write_text(
        pem_of(ca.issue(key, Role.PROCESS_SERVER, "ps2", ("127.0.0.1",), life, dt.datetime.now(dt.UTC)))
    )
    async with RestClient(server.url, tls.client_context(files)) as ps2:
        renewal = RenewRequest(csr=identity.request_of(files))
        await act(api.RENEW, renewal, as_=ps2, who="process-server:ps2")
        await act(api.KEY_CREATE, Nothing(), as_=ps2, who="process-server:ps2", machine="web2")
    await act(api.CERTIFICATE_REVOKE, RevokeRequest(certificate="process-server:ps2"))
