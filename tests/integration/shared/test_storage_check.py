"""The check of a storage account, against real blob storage, through a proxy that has it answer as other accounts do."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from email.utils import format_datetime
from pathlib import Path
from typing import Final

import jwt
import msgspec
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ResourceNotFoundError

from shared.blob import BlobConfig, BlobStore, Retry
from shared.blob.check import Aspect, Finding, Limits, Report, State, check, rights
from shared.errors import UsageError
from shared.http import proxies
from tests.azurite import Azurite
from tests.http_proxy import connect_through, refuse
from tests.http_proxy import proxy as proxy_between
from tests.marks import some
from tests.pki import TestCa
from tests.storage_faults import Answer, Cut, Dressed, FaultProxy, Late, Stall

QUICK: Final = Limits(
    hop_s=3.0,
    sign_in_s=10.0,
    request=Retry(deadline_s=8.0, attempt_s=2.0),
    step_s=10.0,
    grant_s=15.0,
    removal_s=8.0,
)
HASTY: Final = Limits(
    hop_s=1.0, request=Retry(deadline_s=3.0, attempt_s=1.5), step_s=5.0, grant_s=10.0, removal_s=4.0
)
"""Where nobody answers."""
GUARD_S: Final = 30.0
REQUESTS: Final = 80
"""More than a check makes."""
EXPECTED_UNKNOWN: Final = {Aspect.LIFECYCLE, Aspect.ENCRYPTION}
"""What Azurite does not say."""


@pytest.fixture(scope="module")
def proxy(azurite: Azurite) -> Iterator[FaultProxy]:
    with FaultProxy(azurite) as proxy:
        yield proxy


@pytest.fixture
def faulty(proxy: FaultProxy) -> FaultProxy:
    proxy.forget()
    return proxy


@pytest.fixture
def config(faulty: FaultProxy, store: BlobStore) -> BlobConfig:
    """The vault container, through the faults."""
    return faulty.config(store.container)


@pytest.fixture
async def untouched(store: BlobStore) -> AsyncIterator[None]:
    """That the account is afterwards as it was: containers, blobs and policies."""
    before = await contents(store)
    yield
    assert await contents(store) == before


async def contents(store: BlobStore) -> tuple[list[str], list[str], int]:
    containers = [name async for name, _ in store.list_containers(store.container)]
    return containers, [found.name async for found in store.list("")], len(await store.policies.list())


async def checked(config: BlobConfig, limits: Limits = QUICK) -> dict[Aspect, Finding]:
    async with asyncio.timeout(GUARD_S):
        report = await check(config, limits=limits)
    assert [finding.name for finding in report.findings] == list(Aspect)
    return {finding.name: finding for finding in report.findings}


def errors(found: dict[Aspect, Finding]) -> list[Aspect]:
    return [finding.name for finding in found.values() if finding.state is State.ERROR]


def behind(found: dict[Aspect, Finding], hop: Aspect) -> set[State]:
    order = list(Aspect)
    return {found[aspect].state for aspect in order[order.index(hop) + 1 :]}


# ---- the way to the account


@pytest.mark.usefixtures("untouched")
async def test_an_account_that_is_fit_has_no_errors_and_is_left_as_it_was(blob_config: BlobConfig) -> None:
    told: list[Finding] = []
    report = await check(blob_config, told.append)
    states = {finding.name: finding.state for finding in report.findings}
    assert {name for name, state in states.items() if state is not State.OK} == EXPECTED_UNKNOWN
    assert {finding.name: finding for finding in told} == {each.name: each for each in report.findings}
    assert report.container == blob_config.container
    assert report.state is State.UNKNOWN


async def test_an_account_without_the_vault_container_is_left_without(
    store: BlobStore, blob_config: BlobConfig
) -> None:
    absent = msgspec.structs.replace(blob_config, container=f"{store.container}-x")
    found = await checked(absent)
    assert errors(found) == []
    assert found[Aspect.VAULT_CONTAINER].state is State.OK
    assert "is not there" in found[Aspect.VAULT_CONTAINER].detail
    assert [name async for name, _ in store.list_containers(absent.container)] == []


async def test_without_encryption_everything_is_tried_and_that_is_the_error(tmp_path: Path) -> None:
    with Azurite(tmp_path, tls=False) as plain:
        config = msgspec.structs.replace(plain.config("understudy"), ca_file=None)
        found = await checked(config)
    assert errors(found) == [Aspect.TLS]
    assert found[Aspect.GRANT].state is State.UNKNOWN
    assert found[Aspect.DELETE].state is State.OK


async def test_a_name_that_nobody_knows_is_the_first_error_and_what_is_behind_it_unknown(
    blob_config: BlobConfig,
) -> None:
    for host in ("storage.understudy.invalid", "x" * 300):
        found = await checked(msgspec.structs.replace(blob_config, url=f"https://{host}/account"))
        assert errors(found) == [Aspect.NAME]
        assert behind(found, Aspect.NAME) == {State.UNKNOWN}
        assert found[Aspect.NAME].code


async def test_a_port_where_nobody_listens_fails_at_the_connection(blob_config: BlobConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    found = await checked(msgspec.structs.replace(blob_config, url=f"https://127.0.0.1:{port}/account"))
    assert errors(found) == [Aspect.CONNECTION]
    assert found[Aspect.NAME].state is State.OK
    assert "connection refused" in found[Aspect.CONNECTION].detail
    assert "firewall" in found[Aspect.CONNECTION].action
    assert behind(found, Aspect.CONNECTION) == {State.UNKNOWN}


@pytest.mark.parametrize(("scheme", "hop"), [("https", Aspect.TLS), ("http", Aspect.ACCOUNT)])
async def test_a_port_that_says_nothing_is_given_up_in_time(
    scheme: str, hop: Aspect, blob_config: BlobConfig
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"{scheme}://127.0.0.1:{mute.getsockname()[1]}/account"
        began = time.monotonic()
        found = await checked(msgspec.structs.replace(blob_config, url=url), HASTY)
    assert hop in errors(found)
    assert found[Aspect.CONNECTION].state is State.OK
    assert behind(found, hop) == {State.UNKNOWN}
    assert "no answer within" in found[hop].detail
    assert time.monotonic() - began < HASTY.request.deadline_s + 5


async def test_another_ca_fails_at_tls_and_says_what_to_configure(
    blob_config: BlobConfig, tmp_path: Path
) -> None:
    found = await checked(msgspec.structs.replace(blob_config, ca_file=TestCa(tmp_path).path))
    assert errors(found) == [Aspect.TLS]
    assert found[Aspect.TLS].code == "US488"
    assert "ca_file" in found[Aspect.TLS].action


async def test_a_certificate_that_is_out_of_date_fails_at_tls_with_what_both_clocks_say(
    blob_config: BlobConfig, tmp_path: Path
) -> None:
    ca = TestCa(tmp_path)
    files = ca.issue("storage:old", expired=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/account"
        found = await checked(msgspec.structs.replace(blob_config, url=url, ca_file=ca.path))
    assert errors(found) == [Aspect.TLS]
    assert found[Aspect.TLS].code in ("US487", "US488")
    assert "this host's clock" in found[Aspect.TLS].detail


async def test_behind_a_proxy_its_way_is_looked_at_and_the_first_answer_vouches_for_tls(
    blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxies, "is_near", lambda _: False)
    async with proxy_between(connect_through) as (url, asked):
        monkeypatch.setenv("HTTPS_PROXY", url)
        found = await checked(blob_config)
        assert asked
        assert errors(found) == []
        assert "HTTPS_PROXY" in found[Aspect.NAME].detail
        assert found[Aspect.TLS].detail.endswith("through the proxy")
        assert "secret" not in str(found)
        untrusted = await checked(msgspec.structs.replace(blob_config, ca_file=None))
    assert errors(untrusted) == [Aspect.TLS]
    async with proxy_between(refuse) as (url, _):
        monkeypatch.setenv("HTTPS_PROXY", url)
        refused = await checked(blob_config)
    assert errors(refused) == [Aspect.ACCOUNT]
    assert refused[Aspect.TLS].state is State.UNKNOWN
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert errors(await checked(blob_config)) == [Aspect.CONNECTION]


async def test_what_may_be_secret_in_a_url_is_not_in_the_report(blob_config: BlobConfig) -> None:
    url = blob_config.url.replace("://", "://me:hush@") + "?sv=1&sig=hush"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = url.replace(url.split(":")[3].split("/")[0], str(closed.getsockname()[1]))
    report = await check(msgspec.structs.replace(blob_config, url=url), limits=QUICK)
    assert report.url.endswith("/understudytest")
    assert "hush" not in report.url


async def test_which_ca_is_trusted_is_said(blob_config: BlobConfig) -> None:
    found = await checked(blob_config)
    assert "signed by azurite" in found[Aspect.TLS].detail
    assert str(blob_config.ca_file) in found[Aspect.TLS].detail


async def test_what_is_no_storage_account_is_named(faulty: FaultProxy, config: BlobConfig) -> None:
    faulty.add(Answer(200, body=b"<html>Log in</html>", foreign=True), times=None)
    found = await checked(config)
    assert errors(found) == [Aspect.ACCOUNT]
    assert found[Aspect.ACCOUNT].code == "US447"


async def test_a_wrong_key_is_told_beside_a_clock_that_is_right(
    blob_config: BlobConfig, tmp_path: Path
) -> None:
    other = tmp_path / "other.key"
    other.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    found = await checked(msgspec.structs.replace(blob_config, account_key_file=other))
    assert errors(found) == [Aspect.CREDENTIALS]
    assert found[Aspect.CREDENTIALS].code == "US495"
    assert found[Aspect.ACCOUNT].state is State.OK
    assert found[Aspect.CLOCK].state is State.OK
    assert behind(found, Aspect.CLOCK) == {State.UNKNOWN}


def gmt(seconds: float) -> str:
    return format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds), usegmt=True)


async def test_a_refusal_for_a_clock_says_that_it_is_the_clock(
    faulty: FaultProxy, config: BlobConfig
) -> None:
    faulty.add(Answer(403, "AuthenticationFailed", {"Date": gmt(-20 * 60)}), times=None)
    found = await checked(config)
    assert errors(found) == [Aspect.CREDENTIALS, Aspect.CLOCK]
    assert found[Aspect.CREDENTIALS].code == "US487"
    assert "20 minutes ahead of" in found[Aspect.CLOCK].detail


@pytest.mark.parametrize(
    ("ahead_s", "state"), [(-30, State.WARNING), (30, State.WARNING), (400, State.ERROR)]
)
async def test_a_clock_that_is_off_is_told_though_storage_takes_it(
    ahead_s: float, state: State, faulty: FaultProxy, config: BlobConfig
) -> None:
    faulty.add(Dressed({"Date": gmt(-ahead_s)}))
    found = await checked(config)
    assert found[Aspect.CLOCK].state is state
    assert errors(found) == ([Aspect.CLOCK] if state is State.ERROR else [])


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("AuthorizationFailure", "US496"),
        ("AuthorizationPermissionMismatch", "US640"),
        ("KeyBasedAuthenticationNotPermitted", "US496"),
        ("NoAuthenticationInformation", "US499"),
    ],
)
async def test_who_is_not_admitted_is_told_why(
    code: str, told: str, faulty: FaultProxy, config: BlobConfig
) -> None:
    faulty.add(Answer(403, code), times=None)
    found = await checked(config)
    assert errors(found) == [Aspect.CREDENTIALS]
    assert found[Aspect.CREDENTIALS].code == told


async def test_a_host_without_key_and_identity_is_told_so(
    blob_config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")  # the others look for the cloud
    found = await checked(msgspec.structs.replace(blob_config, account_key_file=None))
    assert errors(found) == [Aspect.CREDENTIALS]
    assert found[Aspect.CREDENTIALS].code == "US446"
    assert found[Aspect.ACCOUNT].state is State.UNKNOWN


class Identity:
    """As Azure's own: a token for blob storage. (Nobody looks at its signature here.)"""

    def __init__(self, **_: object) -> None: ...

    async def get_token(self, *_: str, **__: object) -> AccessToken:
        now = int(time.time())
        claims = {"aud": "https://storage.azure.com", "iss": "https://sts.windows.net/a-directory/"}
        times = {"iat": now - 60, "nbf": now - 60, "exp": now + 600}
        return AccessToken(jwt.encode(claims | times, "not a secret, for nobody looks at it"), now + 600)

    async def close(self) -> None: ...


async def test_with_an_identity_everything_is_tried_but_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("azure.identity.aio.DefaultAzureCredential", Identity)
    with Azurite(tmp_path, oauth=True) as server:
        config = msgspec.structs.replace(server.config("understudy"), account_key_file=None)
        found = await checked(config)
    assert errors(found) == []
    assert "identity" in found[Aspect.CREDENTIALS].detail
    assert found[Aspect.GRANT].state is State.WARNING
    assert "Storage Blob Data Reader" in found[Aspect.GRANT].action
    assert {found[each].state for each in (Aspect.COPY, Aspect.DELETE, Aspect.REMOVAL)} == {State.OK}


async def test_a_key_file_that_is_none_is_a_mistake_of_the_user(
    blob_config: BlobConfig, tmp_path: Path
) -> None:
    for wrong in ({"account_key_file": tmp_path / "absent"}, {"url": "ftp://account"}):
        with pytest.raises(UsageError):
            await check(msgspec.structs.replace(blob_config, **wrong))


# ---- what the account is


def account(kind: str, sku: str, hierarchical: str) -> Answer:
    return Answer(
        200,
        headers={"x-ms-account-kind": kind, "x-ms-sku-name": sku, "x-ms-is-hns-enabled": hierarchical},
        body=b"",
    )


@pytest.mark.usefixtures("untouched")
async def test_kind_and_namespace_are_the_accounts(faulty: FaultProxy, config: BlobConfig) -> None:
    faulty.add(account("BlockBlobStorage", "Premium_LRS", "true"), comp="properties")
    assert errors(await checked(config)) == [Aspect.KIND, Aspect.NAMESPACE]


async def test_an_account_without_page_blobs_is_found_by_trying_too(
    faulty: FaultProxy, config: BlobConfig
) -> None:
    faulty.add(Answer(403, "AuthorizationPermissionMismatch"), comp="properties", times=None)
    faulty.add(Answer(409, "FeatureNotSupportedForAccount"), method="PUT", blob="pages", times=None)
    found = await checked(config)
    assert errors(found) == [Aspect.PAGE_BLOB]
    assert found[Aspect.PAGE_BLOB].code == "US448"
    assert {found[each].state for each in (Aspect.KIND, Aspect.NAMESPACE, Aspect.BLOB_SOFT_DELETE)} == {
        State.UNKNOWN
    }
    assert {found[each].state for each in (Aspect.SNAPSHOT, Aspect.COPY)} == {State.UNKNOWN}


async def test_blob_soft_delete_is_a_warning_with_its_days(faulty: FaultProxy, config: BlobConfig) -> None:
    policy = b"<DeleteRetentionPolicy><Enabled>true</Enabled><Days>14</Days></DeleteRetentionPolicy>"
    body = b"<StorageServiceProperties>" + policy + b"</StorageServiceProperties>"
    faulty.add(Answer(200, body=body), comp="properties", nth=2)
    found = await checked(config)
    assert errors(found) == []
    assert found[Aspect.BLOB_SOFT_DELETE].state is State.WARNING
    assert "14 days" in found[Aspect.BLOB_SOFT_DELETE].detail


async def test_container_soft_delete_is_seen_by_what_becomes_of_the_checks_own(
    faulty: FaultProxy, config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0123456789")
    name = f"{config.container}-check-0123456789"
    properties = "<Properties><Etag>e</Etag><RemainingRetentionDays>9</RemainingRetentionDays></Properties>"
    listed = (
        f"<Container><Name>{name}</Name><Deleted>true</Deleted><Version>1</Version>{properties}</Container>"
    )
    body = f"<EnumerationResults><Containers>{listed}</Containers><NextMarker/></EnumerationResults>"
    faulty.add(Answer(200, body=body.encode()), comp="list", blob=f"{config.container}-check-*", nth=2)
    found = await checked(config)
    assert found[Aspect.CONTAINER_SOFT_DELETE].state is State.WARNING
    assert "9 days" in found[Aspect.CONTAINER_SOFT_DELETE].detail


async def test_versioning_is_a_warning(faulty: FaultProxy, config: BlobConfig) -> None:
    faulty.add(Dressed({"x-ms-version-id": "2026-11-27T08:00:00.0000000Z"}), blob="block", times=None)
    found = await checked(config)
    assert errors(found) == []
    assert found[Aspect.VERSIONING].state is State.WARNING


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("header", ["x-ms-has-immutability-policy", "x-ms-has-legal-hold"])
async def test_a_container_that_is_held_is_an_error_and_nothing_is_written_to_it(
    header: str, faulty: FaultProxy, config: BlobConfig
) -> None:
    faulty.places.clear()
    faulty.add(Dressed({header: "true"}), method="GET", comp="", blob="")
    found = await checked(config)
    assert errors(found) == [Aspect.IMMUTABILITY]
    assert config.container in found[Aspect.IMMUTABILITY].detail
    assert found[Aspect.VAULT_CONTAINER].state is State.UNKNOWN
    assert not [place for place in faulty.places if place.blob.startswith("check/")]


async def test_public_access_and_the_encryption_scope_are_said(
    faulty: FaultProxy, config: BlobConfig
) -> None:
    headers = {"x-ms-blob-public-access": "container", "x-ms-default-encryption-scope": "ours"}
    faulty.add(Dressed(headers), method="GET", comp="", blob="")
    found = await checked(config)
    assert found[Aspect.PUBLIC_ACCESS].state is State.WARNING
    assert (found[Aspect.ENCRYPTION].state, "scope ours" in found[Aspect.ENCRYPTION].detail) == (
        State.OK,
        True,
    )


# ---- what may be done there


async def test_without_the_right_to_make_containers_the_rest_is_unknown(
    faulty: FaultProxy, config: BlobConfig
) -> None:
    for method in ("PUT", "DELETE"):  # Azure refuses before it looks whether there is such a container
        faulty.add(
            Answer(403, "AuthorizationPermissionMismatch"), method=method, comp="", blob="", times=None
        )
    found = await checked(config)
    assert errors(found) == [Aspect.CREATE_CONTAINER]
    assert found[Aspect.CREATE_CONTAINER].code == "US640"
    assert found[Aspect.VAULT_CONTAINER].state is State.OK
    assert found[Aspect.PAGE_BLOB].state is State.UNKNOWN


async def test_with_the_right_to_read_alone_each_is_named_and_nothing_is_said_to_be_left(
    faulty: FaultProxy, config: BlobConfig
) -> None:
    for method in ("PUT", "DELETE"):
        faulty.add(Answer(403, "AuthorizationPermissionMismatch"), method=method, times=None)
    assert errors(await checked(config)) == [Aspect.VAULT_CONTAINER, Aspect.CREATE_CONTAINER]


REFUSED: Final[dict[Aspect, dict[str, object]]] = {
    Aspect.BLOCK_BLOB: {"method": "PUT", "comp": "", "blob": "block"},
    Aspect.METADATA: {"comp": "metadata", "blob": "block"},
    Aspect.LIST: {"comp": "list", "blob": "block", "times": 1},
    Aspect.LEASE: {"comp": "lease"},
    Aspect.APPEND_BLOB: {"method": "PUT", "comp": "", "blob": "append"},
    Aspect.PAGE_BLOB: {"comp": "page"},
    Aspect.SNAPSHOT: {"comp": "snapshot"},
    Aspect.COPY: {"method": "PUT", "comp": "", "blob": "copy"},
    Aspect.GRANT: {"comp": "acl"},
    Aspect.DELETE: {"method": "DELETE", "blob": "pages"},
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("aspect", REFUSED)
async def test_each_right_that_is_missing_is_named(
    aspect: Aspect, faulty: FaultProxy, config: BlobConfig
) -> None:
    everywhere: dict[str, object] = {"times": None}
    faulty.add(Answer(403, "AuthorizationPermissionMismatch"), **(everywhere | REFUSED[aspect]))
    found = await checked(config)
    assert errors(found) == [aspect]
    assert found[aspect].code == "US640"
    assert found[Aspect.REMOVAL].state is State.OK


@pytest.mark.usefixtures("untouched")
async def test_a_grant_that_is_not_taken_names_what_the_account_may_forbid(
    faulty: FaultProxy, config: BlobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rights, "COUNTS_EVERYWHERE_S", 0.5)
    faulty.add(Answer(403, "AuthenticationFailed"), method="HEAD", blob="block", nth=3, times=None)
    found = await checked(config)
    assert errors(found) == [Aspect.GRANT]
    assert found[Aspect.GRANT].code == "US496"
    assert "SAS" in found[Aspect.GRANT].action


KEPT_BADLY: Final = {
    Aspect.CREATE_ONCE: ({"method": "PUT", "comp": "", "blob": "block"}, 2),
    Aspect.COMPARE_AND_SWAP: ({"method": "PUT", "comp": "", "blob": "block"}, 4),
    Aspect.LEASE: ({"method": "PUT", "comp": "", "blob": "block"}, 5),
    Aspect.APPEND_BLOB: ({"comp": "appendblock"}, 3),
    Aspect.PAGE_BLOB: ({"comp": "page"}, 4),
}
"""The request that storage should refuse: where it is, and the how many-th there."""


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("aspect", KEPT_BADLY)
async def test_storage_that_does_not_keep_a_condition_is_an_error(
    aspect: Aspect, faulty: FaultProxy, config: BlobConfig
) -> None:
    where, nth = KEPT_BADLY[aspect]
    headers = {"ETag": '"0x1"', "Last-Modified": gmt(0), "x-ms-blob-append-offset": "0"}
    rule = faulty.add(Answer(201, headers=headers, body=b""), nth=nth, **where)
    found = await checked(config)
    assert rule.struck == 1
    assert errors(found) == [aspect]
    assert "was not refused" in found[aspect].detail or "second time" in found[aspect].detail


async def test_storage_that_is_gone_half_way_ends_the_check_and_what_is_left_is_named(
    faulty: FaultProxy, config: BlobConfig, store: BlobStore
) -> None:
    gone = faulty.add(Stall(), times=None, blob="append")
    gone.then = lambda: faulty.add(Stall(), times=None)
    began = time.monotonic()
    found = await checked(config, HASTY)
    assert time.monotonic() - began < 20
    assert errors(found) == [Aspect.APPEND_BLOB, Aspect.REMOVAL]
    assert found[Aspect.LEASE].state is State.OK
    assert found[Aspect.COPY].detail == f"not looked at: {Aspect.APPEND_BLOB} failed"
    assert f"container {config.container}-check-" in found[Aspect.REMOVAL].detail
    faulty.clear()
    await _remove_by_hand(store)


async def _remove_by_hand(store: BlobStore) -> None:
    """A request that was cut off may have come to storage, and be carried out meanwhile."""
    async for name, _ in store.list_containers(f"{store.container}-check-"):
        with contextlib.suppress(ResourceNotFoundError):
            await store._core.service.delete_container(name)
    async for found in store.list("check/"):
        await store.delete(found.name)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("nth", some(range(1, REQUESTS), {4, 6, 16}))
async def test_an_answer_that_is_lost_changes_nothing(
    nth: int, faulty: FaultProxy, config: BlobConfig
) -> None:
    rule = faulty.add(Cut(applied=True), nth=nth)
    assert errors(await checked(config)) == []
    assert rule.struck == 1 or nth > 50, "a check makes more requests than that"


async def test_what_killed_checks_left_is_removed_when_it_is_old(
    store: BlobStore, blob_config: BlobConfig
) -> None:
    now_s = time.time()
    old, young, other = (store.in_container(f"{store.container}-check-{id_}") for id_ in ("01", "02", "03"))
    await old.ensure_container({"understudy_check": f"{now_s - 7200:.0f}"})
    await young.ensure_container({"understudy_check": f"{now_s - 60:.0f}"})
    await other.ensure_container()
    await store.create("check/01", b"", {"understudy_check": f"{now_s - 7200:.0f}"})
    await store.create("check/02", b"", {"understudy_check": f"{now_s - 60:.0f}"})
    await store.create("check/ledger.csv", b"somebody's")
    found = await checked(blob_config)
    assert errors(found) == []
    left = [name async for name, _ in store.list_containers(f"{store.container}-check-")]
    assert left == [young.container, other.container]
    assert [found.name async for found in store.list("check/")] == ["check/02", "check/ledger.csv"]
    await _remove_by_hand(store)


# ---- an end before the end


WITHIN: Final = list(Aspect)[list(Aspect).index(Aspect.KIND) : list(Aspect).index(Aspect.REMOVAL)]


async def interrupted(config: BlobConfig, at: Aspect) -> list[Finding]:
    """What was told of a check that is cancelled when it has told of `at`."""
    told: list[Finding] = []

    def tell(finding: Finding) -> None:
        told.append(finding)
        if finding.name is at:
            task.cancel()

    task = asyncio.create_task(check(config, tell, QUICK))
    async with asyncio.timeout(GUARD_S):
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert task.cancelled()
    return told


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "aspect", some(WITHIN, {Aspect.KIND, Aspect.CREATE_CONTAINER, Aspect.GRANT, Aspect.DELETE})
)
async def test_a_check_that_is_interrupted_leaves_nothing_and_says_so(
    aspect: Aspect, blob_config: BlobConfig
) -> None:
    told = await interrupted(blob_config, aspect)
    assert told[-1].name is Aspect.REMOVAL
    assert told[-1].state is State.OK


@pytest.mark.usefixtures("untouched")
async def test_an_interruption_during_the_removal_lets_it_be_finished(
    faulty: FaultProxy, config: BlobConfig
) -> None:
    loop = asyncio.get_running_loop()
    told: list[Finding] = []
    rule = faulty.add(Stall(), method="DELETE", blob="")
    rule.then = lambda: loop.call_soon_threadsafe(task.cancel)
    task = asyncio.create_task(check(config, told.append, QUICK))
    async with asyncio.timeout(GUARD_S):
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert rule.struck == 1
    assert task.cancelled()
    assert (told[-1].name, told[-1].state) == (Aspect.REMOVAL, State.OK)


async def test_who_does_not_wait_for_the_removal_is_told_what_is_left(
    faulty: FaultProxy, config: BlobConfig, store: BlobStore
) -> None:
    loop = asyncio.get_running_loop()
    told: list[Finding] = []
    impatient = faulty.add(Stall(), method="DELETE", times=None)
    impatient.then = lambda: [loop.call_soon_threadsafe(task.cancel) for _ in range(2)]
    task = asyncio.create_task(check(config, told.append, HASTY))
    async with asyncio.timeout(GUARD_S):
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert (told[-1].name, told[-1].state) == (Aspect.REMOVAL, State.ERROR)
    assert f"container {config.container}-check-" in told[-1].detail
    faulty.clear()
    await _remove_by_hand(store)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("blob", ["", "check/*"], ids=["container", "blob"])
async def test_what_storage_makes_behind_an_interruption_is_removed_too(
    blob: str, faulty: FaultProxy, config: BlobConfig
) -> None:
    loop = asyncio.get_running_loop()
    rule = faulty.add(Late(0.4), method="PUT", comp="", blob=blob)
    rule.then = lambda: loop.call_soon_threadsafe(task.cancel)
    task: asyncio.Task[Report] = asyncio.create_task(check(config, limits=QUICK))
    async with asyncio.timeout(GUARD_S):
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.to_thread(faulty.wait_idle)
    assert rule.struck == 1


SHORT: Final = {1, 3, 5, 8, 13, 21, 34}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("nth", some(range(1, REQUESTS), SHORT))
@pytest.mark.parametrize("applied", [False, True], ids=["lost", "done"])
async def test_an_interruption_during_any_request_leaves_nothing(
    nth: int, applied: bool, faulty: FaultProxy, config: BlobConfig
) -> None:
    loop = asyncio.get_running_loop()
    rule = faulty.add(Stall(applied=applied), nth=nth)
    rule.then = lambda: loop.call_soon_threadsafe(task.cancel)
    task: asyncio.Task[Report] = asyncio.create_task(check(config, limits=QUICK))
    async with asyncio.timeout(GUARD_S):
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert task.cancelled() or rule.struck == 0
    assert rule.struck == 1 or nth > 50, "a check makes more requests than that"
