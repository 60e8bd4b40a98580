"""The CA is renewed more than once, and its database alone is put back in between (as `pg_restore` does, or a copied `state.db`): the
CA's files are ahead of it then. Nobody is locked out, no key goes that signs, and no job says that it is done before it is."""

from __future__ import annotations

import datetime as dt
import sqlite3
from pathlib import Path

import pytest
from msgspec.structs import replace

from config_server.config import ConfigServerConfig
from config_server.identity import ca
from config_server.identity.ca import CertificateAuthority
from config_server.identity.ca_note import note_of
from config_server.operations.control import Control
from config_server.rules.certificates import BACKDATED
from config_server.rules.clock import SECOND_NS
from shared import api
from shared.api.events import EventQuery
from shared.api.jobs import JobState
from shared.api.route import Nothing
from shared.control.rest import RestClient
from shared.errors import CaFilesError, ConfigError, JobActError
from shared.keys.vault import FileVault
from shared.trust import anchors, identity, tls
from tests import config_parts
from tests.ca_renewals import Daemon, hurry, installed, no_hold, renew, there, until
from tests.config_parts import ConfigServer, config_for, running
from tests.process_server_site import free_port

_DAY_NS = 86_400 * SECOND_NS


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def config(tmp_path: Path) -> ConfigServerConfig:
    return config_for(tmp_path, port=free_port())


def keep(config: ConfigServerConfig, to: Path) -> None:
    """The database, while its server runs."""
    source, copy = sqlite3.connect(config.data_dir / "state.db"), sqlite3.connect(to)
    source.backup(copy)
    source.close()
    copy.close()


def put_back(config: ConfigServerConfig, was: Path) -> None:
    for file in config.data_dir.glob("state.db*"):
        file.unlink()
    (config.data_dir / "state.db").write_bytes(was.read_bytes())


async def renewed(server: ConfigServer) -> None:
    async with server.operator() as operator:
        begun = await renew(operator)
    await until(server, begun.id, JobState.DONE)


async def behind_the_switch(server: ConfigServer, daemons: list[Daemon], was: Path | None = None) -> str:
    """The id of a renewal of which all daemons but the second have their part. `was`: where the database of before the switch goes."""
    async with there([daemons[0], daemons[2]]):
        async with daemons[1].there(), server.operator() as operator:
            begun = await renew(operator, hold_s=3600)
            await until(server, begun.id, waits="operators")
            if was is not None:
                keep(server.config, was)
        no_hold(server, begun.id)
        await until(server, begun.id, waits="2 of 3 have a certificate of the new CA")
    return begun.id


async def is_let_in(server: ConfigServer, daemon: Daemon) -> bool:
    async with RestClient(server.url, tls.client_context(daemon.files, tls.CONFIG_SERVER)) as client:
        return bool((await client.call(api.CA, Nothing())).pem)


async def test_one_renewal_behind_another_ends_while_nobody_connects_anew(
    config: ConfigServerConfig, tmp_path: Path
) -> None:
    async with running(config) as server:
        daemons = await installed(server, tmp_path)
        async with there(daemons):
            for _ in range(3):
                await renewed(server)
        new = CertificateAuthority.read(config.data_dir)
        assert {daemon.trusted for daemon in daemons} == {new.pem}


async def test_the_key_that_signs_stays_behind_a_database_that_knows_the_renewal_before_it_alone(
    config: ConfigServerConfig, tmp_path: Path
) -> None:
    was = tmp_path / "was.db"
    async with running(config) as server:
        daemons = await installed(server, tmp_path)
        async with there(daemons):
            await renewed(server)
        keep(config, was)
        await behind_the_switch(server, daemons)
    ahead = CertificateAuthority.read(config.data_dir)
    put_back(config, was)
    async with running(config) as server:

        async def is_said() -> bool:
            async with server.operator() as operator:
                events = (await operator.call(api.EVENTS, EventQuery(open=True))).events
                return CaFilesError.code in [event.code for event in events]

        await config_parts.until(is_said)
        assert CertificateAuthority.read(config.data_dir).is_as(ahead)
        for daemon in daemons:
            assert await is_let_in(server, daemon)
        async with there(daemons):
            await renewed(server)  # as it is told: it takes up what is there
        new = CertificateAuthority.read(config.data_dir)
        assert {daemon.trusted for daemon in daemons} == {new.pem}
        assert new.certificate not in ahead.trusted


async def test_what_is_behind_the_switch_by_the_files_is_not_cancelled_but_goes_on(
    config: ConfigServerConfig, tmp_path: Path
) -> None:
    was = tmp_path / "was.db"
    async with running(config) as server:
        daemons = await installed(server, tmp_path)
        id_ = await behind_the_switch(server, daemons, was)
    put_back(config, was)
    async with running(config) as server:
        async with server.operator() as operator:
            with pytest.raises(JobActError, match="not cancelled"):
                await operator.call(api.JOB_CANCEL, Nothing(), id=id_)
        no_hold(server, id_)
        async with there(daemons):
            await until(server, id_, JobState.DONE)
        assert {daemon.trusted for daemon in daemons} == {CertificateAuthority.read(config.data_dir).pem}


async def test_it_is_not_done_while_somebody_trusts_the_old_one_whatever_the_files_say(
    config: ConfigServerConfig, tmp_path: Path
) -> None:
    was = tmp_path / "was.db"
    async with running(config) as server:
        old = CertificateAuthority.read(config.data_dir)
        daemons = await installed(server, tmp_path)
        id_ = await behind_the_switch(server, daemons)
        keep(config, was)
        async with there(daemons):
            await until(server, id_, JobState.DONE)
    # The second one's host was away before that, and is as it was.
    new = CertificateAuthority.read(config.data_dir)
    daemons[1].files.ca.write_bytes(anchors.pem_of((new.certificate, old.certificate)))
    put_back(config, was)
    async with running(config) as server, there(daemons):
        await until(server, id_, JobState.DONE)
        assert old.certificate not in anchors.of_file(daemons[1].files.ca)
        assert identity.only_certificate(daemons[1].files.cert.read_text()).issuer == new.certificate.subject


async def look_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """For some looks the clock is ahead by a month."""
    real = Control.now_ns
    looks: list[int] = []

    def ahead(control: Control) -> int:
        looks.append(1)
        return real(control) + 31 * _DAY_NS

    async def has_looked() -> bool:
        return len(looks) > 50

    with monkeypatch.context() as patched:
        patched.setattr(Control, "now_ns", ahead)
        await config_parts.until(has_looked)


async def test_a_clock_that_is_ahead_for_a_moment_does_not_end_the_time_for_operators(
    config: ConfigServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(config) as server, there(await installed(server, tmp_path)):
        async with server.operator() as operator:
            begun = await renew(operator, hold_s=3600)
        await until(server, begun.id, waits="operators")
        await look_ahead(monkeypatch)
        await until(server, begun.id, waits="operators")
        no_hold(server, begun.id)
        await until(server, begun.id, JobState.DONE)


async def test_a_clock_that_is_ahead_for_a_moment_leaves_nobody_behind(
    config: ConfigServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(config) as server:
        daemons = await installed(server, tmp_path)  # and none of them is there
        async with server.operator() as operator:
            begun = await renew(operator)
        await until(server, begun.id, waits="0 of 3 trust the new CA")
        await look_ahead(monkeypatch)
        await until(server, begun.id, waits="0 of 3 trust the new CA")
        async with there(daemons):
            await until(server, begun.id, JobState.DONE)
        for daemon in daemons:
            assert await is_let_in(server, daemon)


async def test_a_clock_that_was_ahead_for_a_moment_when_the_new_ca_was_made_hinders_nobody(
    config: ConfigServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(config) as server:
        daemons = await installed(server, tmp_path)
        async with there(daemons):
            with monkeypatch.context() as ahead:
                ahead.setattr(ca, "BACKDATED", -dt.timedelta(days=400))  # when it begins
                async with server.operator() as operator:
                    begun = await renew(operator, hold_s=3600)
                await until(server, begun.id, waits="operators")
            no_hold(server, begun.id)
            await until(server, begun.id, JobState.DONE)
    async with running(config) as server:
        for daemon in daemons:
            assert await is_let_in(server, daemon)


async def test_a_ca_that_is_not_valid_now_is_not_switched_to_and_can_be_cancelled(
    config: ConfigServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(config) as server, server.operator() as operator:
        with monkeypatch.context() as years_back:
            years_back.setattr(ca, "_CA_LIFE", -BACKDATED / 2)  # it ends before now
            begun = await renew(operator)
            await until(server, begun.id, waits="this host's clock shows")
        await operator.call(api.JOB_CANCEL, Nothing(), id=begun.id)
        await until(server, begun.id, JobState.CANCELLED)
        await renewed(server)


@pytest.mark.parametrize("renewals_before", [0, 1])
async def test_a_database_of_before_a_renewal_that_is_done_starts_where_its_ca_is_noted_beside_the_vault(
    config: ConfigServerConfig, tmp_path: Path, renewals_before: int
) -> None:
    was, vault = tmp_path / "was.db", FileVault.create(tmp_path / "vault.json")
    config = replace(config, vault_file=vault.path)
    async with running(config) as server:
        daemons = await installed(server, tmp_path)
        async with there(daemons):
            for _ in range(renewals_before):
                await renewed(server)
            keep(config, was)
            await renewed(server)
    put_back(config, was)
    async with running(config) as server:
        for daemon in daemons:
            assert await is_let_in(server, daemon)
        async with there(daemons):
            await renewed(server)
    note_of(vault.path).unlink()
    put_back(config, was)
    with pytest.raises(ConfigError, match="of two installations"):
        async with running(config):
            pass


async def test_files_of_before_a_renewal_are_no_newer_than_the_database(
    config: ConfigServerConfig, tmp_path: Path
) -> None:
    vault = FileVault.create(tmp_path / "vault.json")
    config = replace(config, vault_file=vault.path)
    files = [config.data_dir / name for name in ("ca.key", "ca.pem")]
    async with running(config) as server:
        before = [file.read_bytes() for file in files]
        note = note_of(vault.path).read_bytes()
        async with there(await installed(server, tmp_path)):
            await renewed(server)
    for file, data in zip(files, before, strict=True):
        file.write_bytes(data)
    note_of(vault.path).write_bytes(note)
    with pytest.raises(ConfigError, match="of two installations"):
        async with running(config):
            pass
