"""A daemon's certificate while its renewal fails: it lives on with the one that it has, says so, and tries again. Real TLS."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from structlog.testing import capture_logs

from config_server.identity.ca import CertificateAuthority, pem_of
from shared import api
from shared.api.certificates import Certificate, Trust
from shared.api.commands import Command
from shared.api.daemons import StatusReply
from shared.api.route import Nothing
from shared.control import control_client, enrol
from shared.control.control_client import ControlClient
from shared.desired import Desired, Mark, Settings, Verb, Wish
from shared.errors import IdentityFileError, OthersFolderError
from shared.status import AgentReport
from shared.trust import anchors, identity, tls
from shared.trust.pointer import Pointer, Whereabouts, encoded, statement
from shared.vocabulary import Role
from tests.config_parts import ConfigServer, config_for, daemon, running
from tests.impostor import answering
from tests.small_fs import fill, remount, small_fs

NAME = "agent:web1"
DAY = dt.timedelta(days=1)


class Ca:
    """A CA, and a daemon of it whose certificate is due for renewal."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = CertificateAuthority.open(folder)
        self.folder = folder

    def issue(self, key: ec.EllipticCurvePublicKey, *, role: str = "agent", name: str = "web1",
              life: dt.timedelta = 30 * DAY, hosts: tuple[str, ...] = ()) -> x509.Certificate:  # fmt: skip
        return self.ca.issue(key, Role(role), name, hosts, life, dt.datetime.now(dt.UTC))

    def due(self, folder: Path) -> tls.TlsFiles:
        files = identity.files_in(folder)
        files.key.write_bytes(identity.new_key_pem())
        files.ca.write_text(self.ca.pem)
        # It began five minutes before now, so less than a third of its life is left.
        soon = self.issue(identity.key_of(files).public_key(), life=dt.timedelta(seconds=100))
        files.cert.write_text(pem_of(soon))
        return files

    def server_context(self) -> Any:
        files = identity.files_in(self.folder / "server")
        files.key.parent.mkdir()
        files.key.write_bytes(identity.new_key_pem())
        files.ca.write_text(self.ca.pem)
        public = identity.key_of(files).public_key()
        files.cert.write_text(
            pem_of(self.issue(public, role="config-server", name="cs1", hosts=("127.0.0.1",)))
        )
        return tls.server_context(files, require_client=False)


def key_in(request: dict[str, Any]) -> ec.EllipticCurvePublicKey:
    key = x509.load_pem_x509_csr(request["csr"].encode()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


Answer = Callable[[Ca, ec.EllipticCurvePublicKey, Path], str]


def _other_ca(_ca: Ca, key: ec.EllipticCurvePublicKey, folder: Path) -> str:
    return pem_of(Ca(folder / "other").issue(key))


def _two(ca: Ca, key: ec.EllipticCurvePublicKey, folder: Path) -> str:
    return pem_of(ca.issue(key)) + Ca(folder / "other").ca.pem


BAD: dict[str, Answer] = {
    "garbage": lambda _ca, _key, _folder: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "nothing": lambda _ca, _key, _folder: "",
    "another key": lambda ca, _key, _folder: pem_of(
        ca.issue(ec.generate_private_key(ec.SECP256R1()).public_key())
    ),
    "another CA": _other_ca,
    "expired": lambda ca, key, _folder: pem_of(ca.issue(key, life=-DAY)),
    "another name": lambda ca, key, _folder: pem_of(ca.issue(key, name="web2")),
    "two certificates": _two,
}


@contextlib.asynccontextmanager
async def serving(
    client: ControlClient, report: Callable[[], AgentReport] = AgentReport
) -> AsyncIterator[None]:
    """A daemon's `serve`, which must still be alive at the end."""

    async def handle(_command: Command) -> dict[str, Any]:
        return {}

    stop = asyncio.Event()
    task = asyncio.create_task(client.serve(report, handle, stop, interval_s=0.05))
    try:
        yield
        assert not task.done()
    finally:
        stop.set()
        await task
        await client.close()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "_RENEWAL_CHECK_S", 0.05)
    monkeypatch.setattr(control_client, "_RENEWAL_RETRY_S", 0.05)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - the other side of a real connection does it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_answer_leaves_the_certificate_and_the_daemon_says_so_and_tries_again(
    tmp_path: Path, kind: str
) -> None:
    ca = Ca(tmp_path / "ca")
    (tmp_path / "agent").mkdir()
    files = ca.due(tmp_path / "agent")
    before = files.cert.read_bytes()
    codes: list[list[str]] = []
    tries: list[str] = []

    def status(report: dict[str, Any]) -> StatusReply:
        codes.append([error["code"] for error in report.get("errors", [])])
        return StatusReply()

    def renew(request: dict[str, Any]) -> Certificate:
        tries.append(kind)
        good = len(tries) > 3
        pem = pem_of(ca.issue(key_in(request))) if good else BAD[kind](ca, key_in(request), tmp_path)
        if not good:
            assert files.cert.read_bytes() == before
        return Certificate(pem, ca.ca.pem, NAME, "")

    async with answering(ca.server_context(), {"status": status, "renew": renew}) as url:
        reloaded: list[bool] = []
        client = ControlClient(url, files, on_renewed=lambda _chain: reloaded.append(True))
        async with serving(client):
            await until(lambda: ["US469"] in codes)
            assert not reloaded
            await until(lambda: reloaded and codes[-1] == [])
    assert files.cert.read_bytes() != before
    assert identity.name_of(identity.only_certificate(files.cert.read_text())) == NAME


def trust_in(signer: Ca, *trusted: Ca, gone: tuple[Ca, ...] = ()) -> Trust:
    prints = [anchors.fingerprint(each.ca.certificate) for each in (signer, *gone)]
    return Trust(pem="".join(each.ca.pem for each in trusted), signer=prints[0], gone=prints[1:])


async def test_a_daemon_is_led_from_one_ca_to_another_and_says_by_whom_it_goes(tmp_path: Path) -> None:
    old, new = Ca(tmp_path / "old"), Ca(tmp_path / "new")
    (tmp_path / "agent").mkdir()
    files = old.due(tmp_path / "agent")
    files.cert.write_text(pem_of(old.issue(identity.key_of(files).public_key())))  # not due for long
    prints = {each: anchors.fingerprint(each.ca.certificate) for each in (old, new)}
    told: list[Trust | None] = [None]
    heard: list[tuple[list[str], str, list[str]]] = []
    chains: list[tls.Chain] = []

    def status(report: dict[str, Any]) -> StatusReply:
        codes = [error["code"] for error in report.get("errors", [])]
        heard.append((report["anchors"], report["issuer"], codes))
        return StatusReply(trust=told[0])

    def renew(request: dict[str, Any]) -> Certificate:
        return Certificate(pem_of(new.issue(key_in(request))), new.ca.pem, NAME, "")

    async with answering(old.server_context(), {"status": status, "renew": renew}) as url:
        client = ControlClient(url, files, on_renewed=chains.append)
        async with serving(client):
            await until(lambda: bool(heard))
            assert heard[-1] == ([prints[old]], prints[old], [])
            told[0] = trust_in(new, new, gone=(old,))  # a server that goes too far
            await until(lambda: heard[-1][2] == ["US655"])
            assert heard[-1][:2] == ([prints[old]], prints[old])
            assert files.ca.read_text() == old.ca.pem
            told[0] = trust_in(old, old, new)
            await until(lambda: heard[-1] == ([prints[old], prints[new]], prints[old], []))
            assert files.ca.read_text() == old.ca.pem + new.ca.pem
            assert [chain.ca for chain in chains] == [files.ca.read_bytes()]
            told[0] = trust_in(new, new, old)
            await until(lambda: heard[-1] == ([prints[new], prints[old]], prints[new], []))
            told[0] = trust_in(new, new, gone=(old,))
            await until(lambda: chains[-1].ca == new.ca.pem.encode())
    assert files.ca.read_text() == new.ca.pem


async def test_where_the_config_server_is_is_read_anew_when_the_anchor_goes_that_had_signed_it(
    tmp_path: Path,
) -> None:
    old, new = Ca(tmp_path / "old"), Ca(tmp_path / "new")
    (tmp_path / "agent").mkdir()
    files = old.due(tmp_path / "agent")
    key = identity.key_of(files).public_key()
    files.ca.write_text(old.ca.pem + new.ca.pem)
    files.cert.write_text(pem_of(new.issue(key)))
    told: list[Trust] = [trust_in(new, new, old)]
    context, server = old.server_context(), identity.files_in(tmp_path / "old" / "server")
    server.ca.write_bytes(files.ca.read_bytes())
    tls.present(context, tls.read_chain(server))
    async with answering(context, {"status": lambda _report: StatusReply(trust=told[0])}) as url:

        def pointer(made_ns: int, ca: Ca) -> bytes:
            made = Pointer(generation=1, urls=(url,), made_ns=made_ns)
            return encoded(made, ca.ca.sign(statement(made)))

        by_old, by_new = pointer(1, old), pointer(2, new)
        where, taken = Whereabouts("https://127.0.0.1:1", files.cert, files.ca), list[bytes]()
        where.on_taken = taken.append
        assert await where.take(by_old)

        stored, asked = [by_old], list[bytes]()

        async def find() -> bytes:
            asked.append(stored[0])
            return stored[0]

        client = ControlClient("https://127.0.0.1:1", files, where=where, find=find)
        async with serving(client):
            await until(lambda: client._trust_told == told[0] and bool(asked))
            stored[0] = by_new  # signed anew at the switch; the next look of all is a minute later
            assert where.signed == by_old == taken[-1]
            told[0] = trust_in(new, new, gone=(old,))
            await until(lambda: where.signed == by_new == taken[-1])
    again = Whereabouts("https://127.0.0.1:1", files.cert, files.ca)
    again.load()
    assert again.url == url


async def test_who_cannot_write_what_is_to_be_trusted_says_so_and_does_so_later(tmp_path: Path) -> None:
    old, new = Ca(tmp_path / "old"), Ca(tmp_path / "new")
    (tmp_path / "agent").mkdir()
    files = old.due(tmp_path / "agent")
    files.cert.write_text(pem_of(old.issue(identity.key_of(files).public_key())))
    codes: list[list[str]] = []

    def status(report: dict[str, Any]) -> StatusReply:
        codes.append([error["code"] for error in report.get("errors", [])])
        return StatusReply(trust=trust_in(old, old, new))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(identity, "write", full_disk)
        async with answering(old.server_context(), {"status": status}) as url:
            client = ControlClient(url, files)
            async with serving(client):
                await until(lambda: [IdentityFileError.code] in codes)
                patched.undo()
                await until(lambda: codes[-1] == [])
    assert files.ca.read_text() == old.ca.pem + new.ca.pem


def full_disk(path: Path, _data: bytes, *, mode: int) -> None:
    raise IdentityFileError(f"{path} could not be written", cause=f"no room for mode {mode:o}")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ConfigServer]:
    async with running(config_for(tmp_path)) as started:
        yield started


async def due_in(server: ConfigServer, folder: Path, left_s: float = 100) -> tls.TlsFiles:
    files = await server.enrolled("agent", "web1", folder)
    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    soon = CertificateAuthority.open(server.config.data_dir).issue(
        key.public_key(), Role.AGENT, "web1", [], dt.timedelta(seconds=left_s), dt.datetime.now(dt.UTC)
    )
    files.cert.write_text(pem_of(soon))
    return files


async def problems(server: ConfigServer) -> list[str]:
    async with server.operator() as operator:
        found = (await operator.call(api.DAEMONS, Nothing())).daemons
    return [error["code"] for view in found for error in view.report.get("errors", [])]


async def until_problems(server: ConfigServer, codes: list[str]) -> None:
    async with asyncio.timeout(20):
        while await problems(server) != codes:  # noqa: ASYNC110 - the other side of a real connection does it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("why", ["full", "read-only"])
async def test_a_disk_that_takes_no_certificate_leaves_the_daemon_alive_with_the_old_one(
    server: ConfigServer, tmp_path: Path, why: str
) -> None:
    with small_fs(tmp_path / "etc") as folder:
        files = await due_in(server, folder)
        before = files.cert.read_bytes()
        ballast = fill(folder) if why == "full" else None
        if why == "read-only":
            remount(folder, "ro")
        async with serving(ControlClient(server.url, files)):
            await until_problems(server, ["US475"])
            assert files.cert.read_bytes() == before
            assert sorted(path.name for path in folder.iterdir() if path != ballast) == [
                "ca.pem", "cert.pem", "key.pem",
            ]  # fmt: skip
            if ballast is not None:
                ballast.unlink()
            else:
                remount(folder, "rw")
            await until(lambda: files.cert.read_bytes() != before)
            await until_problems(server, [])


@pytest.mark.parametrize(
    ("left_s", "severity", "health"), [(100, "warning", "warning"), (30, "critical", "critical")]
)
async def test_a_renewal_that_fails_is_critical_when_the_certificate_ends_soon(
    server: ConfigServer, tmp_path: Path, left_s: float, severity: str, health: str
) -> None:
    with small_fs(tmp_path / "etc") as folder:
        files = await due_in(server, folder, left_s)
        remount(folder, "ro")
        async with serving(ControlClient(server.url, files)):
            await until_problems(server, ["US475"])
            async with server.operator() as operator:
                (view,) = (await operator.call(api.DAEMONS, Nothing())).daemons
            assert [error["severity"] for error in view.report["errors"]] == [severity]
            assert view.health == health


async def test_a_daemon_whose_clock_makes_a_new_certificate_due_says_that_it_is_the_clock_until_it_is_right(
    server: ConfigServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    before = files.cert.read_bytes()
    ahead = [25 * DAY.total_seconds()]
    due = identity.renewal_is_due
    monkeypatch.setattr(identity, "renewal_is_due", lambda cert: due(cert, time.time() + ahead[0]))
    async with serving(ControlClient(server.url, files)):
        await until_problems(server, ["US547"])
        assert files.cert.read_bytes() == before
        ahead[0] = 0.0
        await until_problems(server, [])


async def test_a_certificate_that_was_put_there_by_hand_is_used_without_a_restart(
    server: ConfigServer, tmp_path: Path
) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    reloaded: list[bool] = []
    client = ControlClient(server.url, files, on_renewed=lambda _chain: reloaded.append(True))
    async with serving(client):
        await server.enrolled("agent", "web1", tmp_path / "agent")
        await until(lambda: reloaded)


async def test_a_daemon_in_whose_folder_another_was_enrolled_goes_on_as_what_it_is_and_says_so(
    server: ConfigServer, tmp_path: Path
) -> None:
    files = await server.enrolled("process-server", "ps1", tmp_path / "tls")
    before = {path.name: path.read_bytes() for path in files.cert.parent.iterdir()}
    token = (await server.token("agent", "web2")).token
    with pytest.raises(OthersFolderError, match="the folder of 'process-server:ps1'"):
        await enrol.enrol(server.url, token, files.cert.parent)
    assert {path.name: path.read_bytes() for path in files.cert.parent.iterdir()} == before
    reloaded: list[bool] = []
    client = ControlClient(server.url, files, on_renewed=lambda _chain: reloaded.append(True))
    async with daemon(server, await server.enrolled("process-server", "ps1", tmp_path / "tls")):
        token = (await server.token("agent", "web2")).token
        await enrol.enrol(server.url, token, files.cert.parent, replace=True)
        with pytest.raises(OthersFolderError, match="this is 'process-server:ps1'"):
            await client.renew_if_due()
        assert await client.report({"state": "running"}) == []
    await client.close()
    assert reloaded == []


async def test_a_folder_of_another_installation_stays_that_ones_and_its_token_is_not_used(
    server: ConfigServer, tmp_path: Path
) -> None:
    token = (await server.token("agent", "web1")).token
    async with running(config_for(tmp_path / "elsewhere")) as elsewhere:
        files = await elsewhere.enrolled("agent", "web1", tmp_path / "agent")
    before = {path.name: path.read_bytes() for path in files.cert.parent.iterdir()}
    with pytest.raises(OthersFolderError, match="another installation"):
        await enrol.enrol(server.url, token, tmp_path / "agent")
    assert {path.name: path.read_bytes() for path in files.cert.parent.iterdir()} == before
    await enrol.enrol(server.url, token, tmp_path / "agent", replace=True)
    async with daemon(server, files) as client:
        await client.report({"state": "ordered"})


@pytest.mark.parametrize("replace", [False, True])
async def test_enrolment_mends_a_folder_in_which_anything_is_damaged_and_takes_nobody_else_s(
    server: ConfigServer, tmp_path: Path, replace: bool
) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    others = await server.enrolled("agent", "web2", tmp_path / "other")
    waiting = files.cert.with_name(enrol.NEW_KEY)
    damages: list[tuple[tuple[Path, bytes | None], ...]] = [
        *(
            ((path, bytes_),)
            for path in (files.cert, files.key, files.ca)
            for bytes_ in (b"", None, b"\x00\xff")
        ),
        *(((files.cert, bytes_), (files.key, b"x"), (files.ca, None)) for bytes_ in (b"", None)),
        ((waiting, b""),),
        ((files.cert, others.cert.read_bytes()), (files.ca, b"")),
    ]
    for damage in damages:
        for path, bytes_ in damage:
            path.unlink(missing_ok=True)
            if bytes_ is not None:
                path.write_bytes(bytes_)
        token = (await server.token("agent", "web1")).token
        if damage is damages[-1] and not replace:
            with pytest.raises(OthersFolderError, match="the folder of 'agent:web2'"):
                await enrol.enrol(server.url, token, files.cert.parent)
            assert files.cert.read_bytes() == others.cert.read_bytes()
            assert not waiting.exists()
            continue
        await enrol.enrol(server.url, token, files.cert.parent, replace=replace)
        identity.check_certificate(files)
        assert identity.loaded_name(files) == "agent:web1"
        tls.client_context(files)  # the key is the certificate's


async def test_a_certificate_file_that_is_gone_is_said_and_does_not_end_the_daemon(
    server: ConfigServer, tmp_path: Path
) -> None:
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    async with serving(ControlClient(server.url, files)):
        files.cert.rename(tmp_path / "away")
        await until_problems(server, ["US101"])


async def test_a_daemon_reports_with_the_certificate_that_it_renewed(
    server: ConfigServer, tmp_path: Path
) -> None:
    files = await due_in(server, tmp_path / "agent")
    async with daemon(server, files) as client:
        assert await client.renew_if_due()
        assert not await client.renew_if_due()
        assert await client.report({"state": "ordered"}) == []


async def test_each_cause_of_a_config_server_that_is_not_reached_is_logged_once(
    server: ConfigServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "_RETRY_LIMIT_S", 0.01)
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = int(other.getsockname()[1])
    tried: list[bool] = []

    def report() -> AgentReport:
        tried.append(True)
        return AgentReport()

    client = ControlClient(f"https://127.0.0.1:{port}", files)
    with capture_logs() as logs:
        async with serving(client, report):
            await until(lambda: len(tried) > 5)
            # It comes back with another CA, as one does that lost its data folder.
            async with running(config_for(tmp_path / "other", port=port)):
                await until(lambda: "US464" in [line.get("code") for line in logs])
                seen = len(tried)
                await until(lambda: len(tried) > seen + 5)
                # When it ends it is not reached for another cause again.
                lines = [line for line in logs if line["event"].startswith("config server not reached")]
    assert [line["code"] for line in lines] == ["US467", "US464"]
    assert lines[0]["cause"] == "connection refused"


async def test_nothing_that_the_control_plane_or_a_report_does_ends_the_daemon(
    server: ConfigServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "_RETRY_LIMIT_S", 0.01)
    files = await server.enrolled("agent", "web1", tmp_path / "agent")
    client = ControlClient(server.url, files)
    await client.report({"state": "starting"})
    good = client._client.url
    bad: list[Callable[[], AgentReport]] = [lambda: AgentReport(state=1 / 0)]  # type: ignore[arg-type]
    tried: list[str] = []

    def report() -> AgentReport:
        tried.append(client._client.url)
        return bad[0]() if bad else AgentReport(state="ordered")

    async with serving(client, report):
        await until(lambda: len(tried) > 3)  # of a report that cannot be made
        bad.clear()
        for url in ("https://cs..example.com", "https://xn--a.b", "nonsense", ""):
            client._client.url = url
            await until(functools.partial(lambda url: tried.count(url) > 1, url))
        client._client.url = good
        async with server.operator() as operator, asyncio.timeout(20):
            while (await operator.call(api.DAEMONS, Nothing())).daemons[0].state != "ordered":  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_daemon_that_cannot_take_what_is_desired_goes_on_with_all_else_that_the_answer_says(
    tmp_path: Path,
) -> None:
    ca = Ca(tmp_path / "ca")
    (tmp_path / "agent").mkdir()
    told: list[Desired] = []
    results: list[dict[str, Any]] = []
    wish = Wish(mark=Mark(incarnation="i", number=1, act="a"), verb=Verb.STOP)

    def status(report: dict[str, Any]) -> StatusReply:
        results.append(report["results"])
        commands = [] if any(results) else [Command(id="c1", kind="mark", args={})]
        return StatusReply(commands=commands, desired=Desired(wish=wish))

    async def refuse(desired: Desired) -> None:
        told.append(desired)
        raise RuntimeError("a bug")

    async with answering(ca.server_context(), {"status": status}) as url:
        client = ControlClient(url, ca.due(tmp_path / "agent"), on_desired=refuse)
        with capture_logs() as logs:
            async with serving(client):
                await until(lambda: any(results))
    assert told[0] == Desired(wish=wish)
    assert any(line["event"].startswith("what is desired could not be taken") for line in logs)


async def test_a_part_of_an_answer_that_is_not_understood_costs_that_part_and_is_said_once(
    tmp_path: Path,
) -> None:
    ca = Ca(tmp_path / "ca")
    (tmp_path / "agent").mkdir()
    told: list[Desired] = []
    results: list[dict[str, Any]] = []

    def status(report: dict[str, Any]) -> web.Response:
        results.append(report["results"])
        wish = {"mark": {"incarnation": "i", "number": 1, "act": "a"}, "verb": "stop", "disks": "none"}
        commands = [] if any(results) else [{"id": "c1", "kind": "mark"}]
        return web.json_response(
            {"commands": commands, "desired": {"wish": wish, "settings": {"point_interval_s": 60}}}
        )

    async def take(desired: Desired) -> None:
        told.append(desired)

    async with answering(ca.server_context(), {"status": status}) as url:
        client = ControlClient(url, ca.due(tmp_path / "agent"), on_desired=take)
        with capture_logs() as logs:
            async with serving(client):
                await until(lambda: any(results) and len(told) > 2)
    assert told[-1] == Desired(settings=Settings(point_interval_s=60))
    said = [line for line in logs if "not understood" in line["event"]]
    assert [(line["log_level"], line["part"]) for line in said] == [("warning", "desired.wish")]
