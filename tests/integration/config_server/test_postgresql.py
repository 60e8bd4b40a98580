"""The config server's database in a real PostgreSQL: what is done when it goes away, is in the way, or does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text, update

from config_server import background
from config_server.data_folder import backup, restoring
from config_server.identity import ca_note
from config_server.rules.clock import SECOND_NS
from config_server.setup.lost import DataThere
from config_server.store import audit, events, impatient, inventory, migrations, postgresql, schema
from config_server.store.config import DatabaseConfig
from config_server.store.database import Database
from config_server.store.postgresql import Postgresql
from config_server.store.statements import clock_ns
from shared import api
from shared.api.jobs import JobState
from shared.api.protection import Protection
from shared.api.route import Nothing, Page
from shared.blob import BlobConfig
from shared.errors import (
    CertificateRevokedError,
    ConfigError,
    DatabaseError,
    OutcomeUnknownError,
    RequestError,
    RevocationUnrecordedError,
    ServerNotReadyError,
)
from shared.keys.vault import FileVault
from shared.status import AgentReport, Problem
from tests.act_jobs import cancel, ended, hurry, protect, waits_for
from tests.config_parts import config_for, daemon, running, until
from tests.databases import left_by_a_newer_program
from tests.postgres import GUARDED, SETTINGS, Postgres

NOW = 1_700_000_000 * 10**9


@pytest.fixture
def engine(database_config: DatabaseConfig) -> Iterator[Postgresql]:
    opened = Postgresql(database_config).open()
    yield opened
    opened.close()


def note(db: Connection, action: str = "x") -> None:
    audit.add(db, "operator:admin", action, "", {}, NOW)


def read_and_note(db: Connection) -> None:
    audit.newest(db, 100)
    note(db)


def noted(engine: Postgresql) -> list[str]:
    return [entry.action for entry in engine.transact(lambda db: audit.newest(db, 100), vital=False)]


def pid_of(db: Connection) -> int:
    return int(db.scalar(text("SELECT pg_backend_pid()")) or 0)


def cut(postgres: Postgres, pid: int) -> None:
    """The server's end of a connection goes, and is gone."""
    with postgres.admin() as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


# ---- what became of a transaction


def test_a_connection_that_was_lost_meanwhile_is_made_anew_and_nobody_is_told(
    engine: Postgresql, postgres: Postgres
) -> None:
    cut(postgres, engine.transact(pid_of, vital=False))
    engine.transact(note, vital=False)
    assert noted(engine) == ["x"]
    assert engine.trouble is None


def test_what_was_cut_off_before_its_commit_is_done_again_and_is_there_once(
    engine: Postgresql, postgres: Postgres
) -> None:
    times = []

    def work(db: Connection) -> None:
        times.append(1)
        note(db)
        if len(times) == 1:
            cut(postgres, pid_of(db))
        note(db, "y")

    engine.transact(work, vital=False)
    assert (noted(engine), len(times)) == (["y", "x"], 2)


def test_what_is_always_cut_off_is_an_error_after_two_tries(engine: Postgresql, postgres: Postgres) -> None:
    times = []

    def work(db: Connection) -> None:
        times.append(1)
        note(db)
        cut(postgres, pid_of(db))
        note(db)

    with pytest.raises(DatabaseError, match="could not be used"):
        engine.transact(work, vital=False)
    assert (noted(engine), len(times)) == ([], 2)
    assert engine.trouble is not None


@pytest.mark.parametrize("is_committed", [True, False])
def test_of_a_commit_without_an_answer_it_is_said_that_nobody_knows(
    postgres: Postgres, database_config: DatabaseConfig, is_committed: bool
) -> None:
    """And nothing is done a second time."""
    with Proxy(postgres, passes=is_committed) as proxy:
        engine = Postgresql(
            DatabaseConfig(url=f"{database_config.url.partition('?')[0]}?host={proxy.folder}")
        ).open()
        times = []

        def work(db: Connection) -> None:
            times.append(1)
            note(db)

        proxy.is_armed = True
        with pytest.raises(OutcomeUnknownError, match="not known"):
            engine.transact(work, vital=False)
        proxy.is_armed = False
        assert noted(engine) == (["x"] if is_committed else [])
        assert times == [1]
        assert isinstance(engine.trouble, OutcomeUnknownError)
        engine.transact(note, vital=False)
        assert engine.trouble is None
        engine.close()


def test_an_error_that_was_passed_over_is_no_commit(engine: Postgresql) -> None:
    def work(db: Connection) -> None:
        note(db)
        with contextlib.suppress(Exception):
            db.execute(text("SELECT * FROM nowhere"))

    with pytest.raises(DatabaseError, match="passed over"):
        engine.transact(work, vital=False)
    assert noted(engine) == []


def test_work_that_raises_changes_nothing_and_its_error_is_its_own(engine: Postgresql) -> None:
    def work(db: Connection) -> None:
        note(db)
        raise RequestError("no")

    with pytest.raises(RequestError):
        engine.transact(work, vital=False)
    assert noted(engine) == []
    assert engine.trouble is None


# ---- time


def test_every_connection_has_its_time_outs_and_is_serializable(engine: Postgresql) -> None:
    names = [name for name in postgresql._OPTIONS if "timeout" in name] + ["transaction_isolation"]
    shown = engine.transact(lambda db: [db.scalar(text(f"SHOW {name}")) for name in names], vital=False)
    assert dict(zip(names, shown, strict=True)) == {
        "statement_timeout": "6s",
        "lock_timeout": "6s",
        "idle_in_transaction_session_timeout": "15s",
        "transaction_isolation": "serializable",
    }


def test_a_statement_that_takes_too_long_is_an_error(
    database_config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgresql._OPTIONS, "statement_timeout", "100ms")
    engine = Postgresql(database_config).open()
    with pytest.raises(DatabaseError, match="statement timeout"):
        engine.transact(lambda db: db.execute(text("SELECT pg_sleep(60)")), vital=False)
    engine.close()


def test_a_server_that_is_stopped_in_a_transaction_stands_in_nobodys_way_and_does_it_again_later(
    database_config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgresql._OPTIONS, "idle_in_transaction_session_timeout", "200ms")
    stopped, other = (Postgresql(database_config).open() for _ in range(2))
    has_row, may_go_on = threading.Event(), threading.Event()

    def slow(db: Connection) -> None:
        inventory.ensure_machine(db, "web1", NOW)
        has_row.set()
        may_go_on.wait()
        note(db, "stopped")

    thread = threading.Thread(target=stopped.transact, args=(slow,), kwargs={"vital": False})
    thread.start()
    has_row.wait()
    other.transact(lambda db: inventory.ensure_machine(db, "web1", NOW), vital=False)
    may_go_on.set()
    thread.join()
    assert noted(other) == ["stopped"]
    stopped.close()
    other.close()


# ---- many


def test_many_reports_at_once_by_two_servers_are_all_taken(database_config: DatabaseConfig) -> None:
    """Faster than any fleet reports: what is refused runs again, and nobody is told."""
    servers = [Postgresql(database_config).open() for _ in range(2)]
    failed: list[BaseException] = []

    def report(server: Postgresql, number: int) -> None:
        for each in range(40):
            name = f"web{number}-{each % 4}"
            problem = Problem(code="US410", what="it broke", object=name, key=f"{each % 3}")

            def work(db: Connection, name: str = name, problem: Problem = problem) -> None:
                events.reconcile(db, f"agent:{name}", [problem], time.time_ns())
                inventory.ensure_machine(db, name, NOW)
                note(db, name)

            try:
                server.transact(work, vital=False)
            except BaseException as exc:  # noqa: BLE001 - told below
                failed.append(exc)

    threads = [
        threading.Thread(target=report, args=(server, n + 4 * m))
        for m, server in enumerate(servers)
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert servers[0].transact(lambda db: len(audit.newest(db, 1000)), vital=False) == 8 * 40
    for server in servers:
        server.close()


# ---- away and back


async def test_a_server_that_is_down_is_said_at_once_and_used_again_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgresql, "_AGAIN_S", 0.0)
    own = Postgres()
    try:
        own.start()
        own.make_template()
        db = await Database.configured(own.config(own.made()), Path("unused"))
        await db.run(note)
        own.stop()
        for _ in range(2):
            with pytest.raises(DatabaseError) as told:
                await db.run(note)
            assert "PostgreSQL runs" in told.value.action
        assert db.trouble is not None
        own.start()
        assert len(await db.run(lambda opened: audit.newest(opened, 10))) == 1
        assert db.trouble is not None, "of a full disk it reads, too"
        await db.run(note)
        assert db.trouble is None
        await db.close()
    finally:
        own.remove()


async def test_while_it_is_away_only_now_and_then_somebody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = DatabaseConfig(url="postgresql://x@/x?host=/nowhere")
    with pytest.raises(DatabaseError, match="x on this host"):
        await Database.configured(away, Path("unused"))
    engine, tries = Postgresql(away), list[int]()
    real = impatient.Impatient.connect

    def connect(*args: Any, **more: Any) -> psycopg.Connection[Any]:
        tries.append(1)
        return real(*args, **more)

    monkeypatch.setattr(impatient.Impatient, "connect", connect)
    for _ in range(3):
        with pytest.raises(DatabaseError):
            engine.transact(note, vital=False)
    assert len(tries) == 1


async def test_a_server_that_stands_still_is_said_soon_and_used_again_when_it_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(impatient, "STILL_S", 1.0)
    monkeypatch.setattr(postgresql, "_CONNECT_S", 2)
    monkeypatch.setattr(postgresql, "_AGAIN_S", 0.2)
    own = Postgres()
    try:
        own.start()
        own.make_template()
        db = await Database.configured(own.config(own.made()), Path("unused"))
        await asyncio.gather(*(db.run(note) for _ in range(8)))
        with own.standing_still():
            begun_s = time.monotonic()
            told = await asyncio.gather(*(db.run(note) for _ in range(200)), return_exceptions=True)
            assert {type(each) for each in told} == {DatabaseError}
            assert "it has not answered for 1 s" in str(told[0])
            assert time.monotonic() - begun_s < 4.0, (
                "each waits once, and those behind them do not wait at all"
            )
            assert db.trouble is not None

        async def works() -> bool:
            try:
                await db.run(note)
            except DatabaseError:
                return False
            return True

        await until(works)
        assert db.trouble is None
        await db.close()
    finally:
        own.remove()


@pytest.mark.parametrize("how", ["away", "still"])
async def test_while_it_cannot_be_used_agents_are_answered_and_a_revocation_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(impatient, "STILL_S", 1.0)
    own = Postgres()
    own.start()
    try:
        config = config_for(tmp_path, database=own.config(own.made(empty=True)))
        async with (
            running(config) as server,
            server.operator() as operator,
            contextlib.AsyncExitStack() as stack,
        ):
            agents = [
                await stack.enter_async_context(
                    daemon(server, await server.enrolled("agent", name, tmp_path / name))
                )
                for name in ("web1", "web2")
            ]
            await operator.call(api.READY, Nothing())
            with contextlib.ExitStack() as ailing:
                if how == "away":
                    own.stop()
                    ailing.callback(own.start)
                else:
                    ailing.enter_context(own.standing_still())
                with pytest.raises(RevocationUnrecordedError, match="storage: none is configured"):
                    await server.revoke("agent:web2")
                assert await agents[0].report(AgentReport(machine="web1", state="ordered")) == []
                with pytest.raises(CertificateRevokedError):
                    await agents[1].report(AgentReport(machine="web2", state="ordered"))
                await operator.call(api.HEALTH, Nothing())
                with pytest.raises(ServerNotReadyError, match="its database cannot be used"):
                    await operator.call(api.READY, Nothing())

            async def is_written() -> bool:
                try:
                    found = await operator.call(api.CERTIFICATES, Page())
                except DatabaseError:
                    return False
                return [each.name for each in found.certificates if each.revoked] == ["agent:web2"]

            await until(is_written)
            await operator.call(api.READY, Nothing())
    finally:
        own.remove()


async def test_while_all_wait_for_a_table_that_somebody_has_locked_a_revocation_comes_into_force(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    config = config_for(tmp_path, database=database_config)
    async with running(config) as server, server.operator() as operator:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        async with daemon(server, files) as agent, asyncio.TaskGroup() as tasks:
            with psycopg.connect(database_config.url) as psql:
                psql.execute("LOCK TABLE machines")
                waiting = [tasks.create_task(operator.call(api.MACHINES, Nothing())) for _ in range(20)]
                async with asyncio.timeout(10):
                    await server.revoke("agent:web1")
                with pytest.raises(CertificateRevokedError):
                    await agent.report(AgentReport(machine="web1", state="ordered"))
                assert not any(each.done() for each in waiting[4:]), "these wait behind them"
                for each in waiting:
                    each.cancel()


async def test_while_the_table_of_revocations_itself_is_locked_one_comes_into_force_and_is_answered(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    config = config_for(tmp_path, database=database_config)
    async with running(config) as server:
        files = await server.enrolled("agent", "web1", tmp_path / "agent")
        async with daemon(server, files) as agent:
            await agent.report(AgentReport(machine="web1", state="ordered"))
            with psycopg.connect(database_config.url) as psql:
                psql.execute("LOCK TABLE revocations")
                with pytest.raises(RevocationUnrecordedError):
                    await server.revoke("agent:web1")
                with pytest.raises(CertificateRevokedError):
                    await agent.report(AgentReport(machine="web1", state="ordered"))


async def test_while_the_table_of_operators_itself_is_locked_a_revocation_waits_behind_no_crowd(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    config = config_for(tmp_path, database=database_config)
    async with running(config) as server, server.operator() as operator, asyncio.TaskGroup() as tasks:
        await operator.call(api.MACHINES, Nothing())
        with psycopg.connect(database_config.url) as psql:
            psql.execute("LOCK TABLE operators")
            waiting = [tasks.create_task(operator.call(api.MACHINES, Nothing())) for _ in range(20)]
            await server.revoke("agent:web1")
            for each in waiting:
                each.cancel()


def test_somebodys_transaction_that_stays_open_is_named_where_it_takes_all_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SETTINGS, "max_pred_locks_per_transaction", "10")
    own = Postgres()
    own.start()
    try:
        own.make_template()
        engine = Postgresql(own.config(own.made())).open()
        with own.admin() as other:
            other.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
            other.execute("SELECT count(*) FROM pg_class")
            with pytest.raises(DatabaseError, match="out of shared memory") as told:
                for _ in range(3000):
                    engine.transact(read_and_note, vital=False)
            other.execute("ROLLBACK")
        assert "left a SERIALIZABLE transaction open" in told.value.action
        engine.transact(note, vital=False)
        engine.close()
    finally:
        own.remove()


# ---- opening


def test_of_two_servers_that_start_at_once_one_makes_the_schema(postgres: Postgres) -> None:
    config = postgres.config(postgres.made(empty=True))
    failed: list[BaseException] = []

    def start() -> None:
        try:
            Postgresql(config).open().close()
        except BaseException as exc:  # noqa: BLE001 - told below
            failed.append(exc)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_database_of_a_newer_program_is_refused(
    engine: Postgresql, database_config: DatabaseConfig
) -> None:
    engine.transact(left_by_a_newer_program, vital=False)
    known = f"version 9999, this program knows {migrations.NEWEST}, and programs from 9999 on can use it"
    with pytest.raises(ConfigError, match=known):
        Postgresql(database_config).open()


def test_a_database_that_may_lose_commits_or_knows_few_letters_is_refused(postgres: Postgres) -> None:
    name = postgres.made()
    with postgres.admin() as admin:
        admin.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        admin.execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    with pytest.raises(ConfigError, match="could be lost"):
        Postgresql(postgres.config(name)).open()
    with pytest.raises(ConfigError, match="SQL_ASCII"):
        Postgresql(postgres.config("ascii")).open()


def test_a_password_comes_from_a_file_and_is_in_no_message(postgres: Postgres, tmp_path: Path) -> None:
    with postgres.admin() as admin:
        admin.execute(f"CREATE ROLE {GUARDED} LOGIN PASSWORD 'right' SUPERUSER")
    file = tmp_path / "password"
    config = DatabaseConfig(
        url=postgres.url(postgres.made()).replace("understudy@", f"{GUARDED}@"), password_file=file
    )
    with pytest.raises(DatabaseError, match=f"could not be read from {file}"):
        Postgresql(config).open()
    file.write_bytes(b"\xff")
    with pytest.raises(DatabaseError, match=f"could not be read from {file}"):
        Postgresql(config).open()
    file.write_text("wrong\n")
    with pytest.raises(DatabaseError, match="password authentication failed") as told:
        Postgresql(config).open()
    assert "wrong" not in str(told.value)
    file.write_text("right\n")
    Postgresql(config).open().close()


@pytest.mark.parametrize(
    "url",
    ["mysql://x/y", "postgresql://u:secret@x/y", "postgresql://u@x/y?password=secret", "postgresql://[x/y"],
)
def test_an_address_with_a_password_or_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as told:
        DatabaseConfig(url=url)
    assert "secret" not in str(told.value)


# ---- what daemons say


def test_letters_that_postgresql_does_not_have_are_stored_as_others(engine: Postgresql) -> None:
    problem = Problem(code="US410", what="a\0b", object="web1")
    [opened] = engine.transact(lambda db: events.reconcile(db, "agent:web1", [problem], NOW), vital=False)
    assert opened.what == "a\ufffdb"


# ---- the whole server


async def test_a_config_server_works_on_it_and_knows_all_after_a_restart(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    config = config_for(tmp_path, database=database_config)
    for _ in range(2):
        async with running(config) as server, server.operator() as operator:
            files = await server.enrolled("agent", "web1", tmp_path / "agent")
            async with daemon(server, files) as agent:
                await agent.report(AgentReport(state="protecting", boot="b"))
                await operator.call(
                    api.PROTECT, Protection(disks=["/dev/sda"], offline=True, force=True), machine="web1"
                )
                await agent.report(AgentReport(state="protecting", boot="b"))
            [machine] = (await operator.call(api.MACHINES, Nothing())).machines
            assert machine.protected
    assert not (config.data_dir / "state.db").exists()


async def test_it_starts_again_where_its_ca_is_noted_beside_the_vault_and_not_in_an_empty_folder(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    vault = FileVault.create(tmp_path / "vault.json")
    config = config_for(tmp_path, database=database_config, vault_file=vault.path)
    for _ in range(2):
        async with running(config):
            assert ca_note.noted(vault.path)
    shutil.rmtree(config.data_dir)
    with pytest.raises(ConfigError, match="is gone, or is empty"):
        async with running(config):
            pass


async def test_without_its_cas_certificate_it_does_not_start_and_the_key_stays(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    config = config_for(tmp_path, database=database_config)
    async with running(config):
        key = (config.data_dir / "ca.key").read_bytes()
    (config.data_dir / "ca.pem").unlink()
    with pytest.raises(ConfigError, match=r"ca\.pem is gone"):
        async with running(config):
            pass
    assert (config.data_dir / "ca.key").read_bytes() == key


async def test_an_installation_that_has_just_begun_with_a_file_goes_on_in_postgresql(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    """As docs/operations.md says it of `understudy init`."""
    async with running(config_for(tmp_path)) as server:
        ca = (server.config.data_dir / "ca.pem").read_bytes()
    folder = server.config.data_dir
    for file in [*folder.glob("state.db*"), folder / "reserve", folder / "operator.token"]:
        file.unlink(missing_ok=True)
    async with (
        running(config_for(tmp_path, database=database_config)) as server,
        server.operator() as operator,
    ):
        assert (await operator.call(api.MACHINES, Nothing())).machines == []
        assert (folder / "ca.pem").read_bytes() == ca


async def test_what_is_done_with_a_file_is_refused_with_the_way(
    tmp_path: Path, database_config: DatabaseConfig
) -> None:
    config = config_for(tmp_path, database=database_config)
    with pytest.raises(ConfigError, match="pg_dump"):
        backup.backup(config, tmp_path / "backup.tar")
    with pytest.raises(ConfigError, match="pg_dump"):
        restoring.restore(config, tmp_path / "backup.tar")
    async with running(config_for(tmp_path)):
        pass
    with pytest.raises(ConfigError, match="has a database of its own"):
        async with running(config):
            pass


async def test_init_refuses_an_installation_whose_database_is_no_file(tmp_path: Path) -> None:
    config = tmp_path / "config-server.toml"
    config.write_text('data_dir = "/x"\n[database]\nurl = "postgresql://u@h/d"\n')
    blob = BlobConfig(url="https://account.blob.core.windows.net", container="understudy")
    check = DataThere(tmp_path, tmp_path / "vault.json", tmp_path / "profile.toml", config, blob)
    with pytest.raises(ConfigError, match="not in its data folder"):
        await check.look(True)


class Proxy:
    """Before PostgreSQL: once it `is_armed` it hands a COMMIT on, or (not `passes`) does not, and breaks the connection before the
    answer."""

    def __init__(self, postgres: Postgres, *, passes: bool) -> None:
        self.is_armed = False
        self.folder = Path(tempfile.mkdtemp(dir=postgres.folder))  # a socket's path must be short
        self._passes = passes
        self._behind = str(postgres.folder / ".s.PGSQL.5432")
        self._listening = socket.socket(socket.AF_UNIX)
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []

    def __enter__(self) -> Proxy:
        self._listening.bind(str(self.folder / ".s.PGSQL.5432"))
        self._listening.listen()
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join()

    def _begin(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._behind)
                self._open += [client, server]
                self._begin(self._pass, client, server, True)
                self._begin(self._pass, server, client, False)

    def _pass(self, source: socket.socket, target: socket.socket, from_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if from_client and self.is_armed and b"COMMIT" in data:
                    source.shutdown(socket.SHUT_RDWR)  # whoever asked hears nothing any more
                    if self._passes:
                        target.sendall(data)
                    break
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        source.close()


async def test_a_job_of_a_server_that_was_killed_goes_on_where_the_clock_was_set_back_since(
    tmp_path: Path, database_config: DatabaseConfig, engine: Postgresql, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(background, "_TIDY_S", 0.1)
    async with (
        running(config_for(tmp_path, database=database_config)) as server,
        server.operator() as operator,
    ):
        job = (await protect(operator, "sda", offline=True)).job
        await waits_for(operator, job, "never reported")
        killed = update(schema.jobs).values(
            lease_ns=clock_ns() + 86_400 * SECOND_NS, owner="cs-killed", word="x", waits="", wake_ns=0
        )
        engine.transact(lambda db: db.execute(killed), vital=False)
        await cancel(operator, job)
        assert (await ended(operator, job)).state is JobState.CANCELLED
