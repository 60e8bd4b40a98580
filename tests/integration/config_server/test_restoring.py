"""A data folder that is put back: whole whenever it is killed, from nothing but a backup, and without what must have ended."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import re
import shutil
import signal
import sqlite3
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection

from config_server.config import ConfigServerConfig
from config_server.data_folder import backup, belonging, restoring
from config_server.identity.ca import CertificateAuthority
from config_server.rules.clock import SECOND_NS
from config_server.rules.lasting import Lasted
from config_server.store import (
    audit,
    commands,
    events,
    incarnations,
    lasting_record,
    operators,
    restored,
    sqlite,
    tokens,
)
from config_server.store.files import DATABASE_FILE
from config_server.store.tokens import Grant
from shared.api.commands import CommandKind, CommandState
from shared.api.operators import OperatorTokenView
from shared.control import enrol
from shared.errors import ConfigError, DataFolderInUseError, StateFileError, TokenUnknownError
from shared.host import durable
from shared.vocabulary import Role
from tests.config_parts import config_for

OLD = {name: f"old {name}".encode() for name in (*belonging.PARTS, *belonging.LOGS)}
NEW = {name: f"new {name}".encode() for name in belonging.PARTS}


def old_folder(folder: Path) -> Path:
    folder.mkdir()
    for name, data in OLD.items():
        (folder / name).write_bytes(data)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name in OLD}


def busy(name: str) -> Callable[[Path, Path], Path]:
    """For Path.rename."""
    really = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == name:
            raise OSError(errno.EBUSY, "Device or resource busy", str(self))
        return really(self, target)

    return rename


def is_killed_at(line: int, folder: Path, function: str = "") -> bool:
    """By SIGKILL, in a process of its own, before that line of restoring.py, or of a function there."""
    pid = os.fork()
    if pid == 0:
        left = line

        def trace(frame: FrameType, event: str, _arg: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename != restoring.__file__:
                return None
            left -= event == "line" and function in ("", frame.f_code.co_name)
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        with contextlib.suppress(StateFileError):
            restoring.put(folder, NEW)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def killed_when_put(folder: Path) -> Path:
    """A restore is killed when all parts are in place, and it is not done; the folder with what was there."""
    assert is_killed_at(0, folder, "_kept")
    stage = belonging.stage_of(folder)
    assert stage is not None
    return folder / stage.aside


@pytest.mark.parametrize("moved_back", [(), ("ca.key", "state.db", "state.db-wal")], ids=len)
def test_a_restore_that_is_killed_at_any_line_and_run_again_has_moved_all_that_was_there_into_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved_back: tuple[str, ...]
) -> None:
    """Also where somebody has begun to move back what was there, over what lies there, as he was told."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)  # a kill is no power cut, and there are many
    for line in itertools.count():
        folder = old_folder(tmp_path / str(line))
        if not is_killed_at(line, folder):
            break
        if not (folder / "restoring").exists() and contents(folder) == NEW:
            [aside] = folder.glob("replaced-*")
            assert contents(aside) == OLD
            continue
        if contents(folder) != OLD:
            with pytest.raises(ConfigError, match="half restored"):
                belonging.check_folder(folder)
        stage = belonging.stage_of(folder)
        if stage and stage.moved and moved_back:
            for name in moved_back:
                (folder / stage.aside / name).rename(folder / name)
            if not is_killed_at(line % 16, folder, "_move"):
                continue
        told = restoring.put(folder, NEW)
        assert contents(folder) == NEW
        belonging.check_folder(folder)
        [aside] = folder.glob("replaced-*")
        assert (told, contents(aside)) == ((aside, [], told.since), OLD), line
    assert line > 50


_CALLS = ("open", "pwritev", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir")


@pytest.mark.parametrize("lasts", [False, True])
def test_a_restore_of_which_any_call_fails_has_left_all_as_it_was_or_says_where_it_is_and_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, lasts: bool
) -> None:
    ends = set[bool]()
    for number in itertools.count():
        folder = old_folder(tmp_path / str(number))
        left = number

        def failing(really: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left == -1 or (lasts and left < 0):
                    raise OSError(errno.ENOSPC, "No space left on device")
                return really(*args, **kwargs)

            return call

        with monkeypatch.context() as fails:
            for name in _CALLS:
                fails.setattr(os, name, failing((lambda _fd: None) if name == "fsync" else getattr(os, name)))
            told: StateFileError | None = None
            try:
                restoring.put(folder, NEW)
            except StateFileError as exc:
                told = exc
        if told is None:
            break
        assert "No space left" in told.cause
        is_half = (folder / "restoring").exists()
        ends.add(is_half)
        if is_half:
            for aside in folder.glob("replaced-*"):
                assert str(aside) in told.action
                with pytest.raises(ConfigError, match="half restored") as refused:
                    belonging.check_folder(folder)
                assert str(aside) in refused.value.action
        else:
            assert contents(folder) == OLD
            assert "All is as it was" in told.action or "lock" in told.what
        restoring.put(folder, NEW)
        assert contents(folder) == NEW
        [aside] = [found for found in folder.glob("replaced-*") if contents(found)]
        assert contents(aside) == OLD
        assert not list(folder.glob("*.new"))
    assert number > 20
    assert ends == {True, False}


def test_a_second_run_keeps_what_was_moved_back_and_nothing_of_the_backup_before(tmp_path: Path) -> None:
    """Without the folder aside nobody can tell them apart: both are kept, and it is said which parts are not where they were put."""
    for is_gone in (False, True):
        folder = old_folder(tmp_path / str(is_gone))
        (folder / "ca.key").unlink()
        there = {name: data for name, data in OLD.items() if name != "ca.key"}
        aside = killed_when_put(folder)
        assert contents(aside) == there
        for name in there:
            (aside / name).rename(folder / name)
        if is_gone:
            aside.rmdir()
        told = restoring.put(folder, NEW)
        [since] = folder.glob("since-*")
        assert contents(folder) == NEW
        if is_gone:
            assert told == (aside, ["ca.pem", "state.db", "operator.token"], [since])
            assert contents(since) == there | {"ca.key": NEW["ca.key"]}
        else:
            assert told == (aside, [], [since])
            assert (contents(aside), contents(since)) == (there, {"ca.key": NEW["ca.key"]})


def test_who_removes_what_was_moved_aside_is_told_so_and_finds_no_backup_in_its_place(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "data")
    aside = killed_when_put(folder)
    shutil.rmtree(aside)
    assert f"not in {aside} any more" in belonging.way_back(folder)
    told = restoring.put(folder, {name: b"a second backup" for name in NEW})
    [since] = folder.glob("since-*")
    assert told == (aside, list(NEW), [since])
    assert not aside.exists()
    assert contents(since) == NEW


@pytest.mark.parametrize("was", [OLD, {}], ids=["full", "empty"])
def test_what_came_into_the_folder_since_a_restore_was_killed_writes_over_nothing_and_is_kept_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: dict[str, bytes]
) -> None:
    """Somebody looks with sqlite3, or puts in what a backup of the host had; and the second run is killed, too."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    for line in itertools.count(step=3):
        folder = tmp_path / str(line)
        folder.mkdir()
        for name, data in was.items():
            (folder / name).write_bytes(data)
        if not is_killed_at(line, folder):
            break
        if not (folder / "restoring").exists():
            continue
        kept = set(was.values())
        for who, names in ("their", belonging.PARTS if line % 2 else OLD), ("another", OLD):
            with_logs = contents(folder).get("state.db") in (None, OLD["state.db"])
            for name in names:
                if not (folder / name).exists() and (with_logs or name not in belonging.LOGS):
                    (folder / name).write_bytes(f"{who} {name}".encode())
                    kept.add(f"{who} {name}".encode())
            with monkeypatch.context() as fails, contextlib.suppress(StateFileError):
                fails.setattr(Path, "rename", busy(list(OLD)[line % len(OLD)]))
                is_killed_at(line % 7 * 3, folder, "_move")
                if not (folder / "restoring").exists():
                    break
        told = restoring.put(folder, NEW)
        assert contents(folder) == NEW
        assert {path.read_bytes() for path in folder.glob("*-*/*")} >= kept, line
        for place in folder.glob("*-*/"):
            of = {data.split()[0] for name, data in contents(place).items() if name.startswith("state.db")}
            assert len(of) <= 1, (line, place)
        if was:
            assert told.aside is not None
            assert contents(told.aside) == was, line
    assert line > 30


@pytest.mark.parametrize("missing", [(), ("operator.token", "state.db-journal"), tuple(OLD)], ids=len)
def test_who_goes_the_way_back_by_its_words_has_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    """A token that had been deleted because somebody had seen it must not come back by it."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    was = {name: data for name, data in OLD.items() if name not in missing}
    for line in itertools.count(step=4):
        folder = old_folder(tmp_path / str(line))
        for name in missing:
            (folder / name).unlink()
        if not is_killed_at(line, folder):
            break
        if not (folder / "restoring").exists():
            continue
        with pytest.raises(ConfigError, match="half restored") as refused:
            belonging.check_folder(folder)
        stage, said = belonging.stage_of(folder), refused.value.action
        assert stage is not None
        if away := re.search(r": move (.*?) away from", said):
            for name in away[1].split(", "):
                (folder / name).unlink()
        if f"move all files from {folder / stage.aside} to" in said:
            for path in (folder / stage.aside).iterdir():
                assert not (folder / path.name).exists()
                path.rename(folder / path.name)
            (folder / stage.aside).rmdir()
        assert f"delete {folder / 'restoring'} last" in said
        (folder / "restoring").unlink()
        restoring.remove_new(folder)  # as the start of the server does
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == was | {
            "config-server.lock": b""
        }
    assert line > 30


def killed_with_aside(folder: Path, name: str) -> None:
    """A restore is killed when it has moved that, and nothing after it."""
    for line in itertools.count():
        assert is_killed_at(line, old_folder(folder), "_move")
        if list(folder.glob(f"replaced-*/{name}")):
            return
        shutil.rmtree(folder)


def test_a_log_beside_a_database_whose_own_is_aside_is_kept_under_a_name_that_is_no_log(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    killed_with_aside(folder, "state.db-wal")
    (folder / "state.db-wal").write_bytes(b"of who looked")
    told = restoring.put(folder, NEW)
    assert told.aside is not None
    assert contents(told.aside) == OLD
    assert [(path.name, path.read_bytes()) for path in told.since[0].iterdir()] == [
        ("state.db-wal.1", b"of who looked")
    ]


def test_nothing_is_moved_back_over_what_came_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    killed_with_aside(folder, "state.db")
    (folder / "state.db").write_bytes(b"theirs")

    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as fails:
        fails.setattr(os, "mkdir", full)
        with pytest.raises(StateFileError, match="is half restored"):
            restoring.put(folder, NEW)
    assert (folder / "state.db").read_bytes() == b"theirs"
    told = restoring.put(folder, NEW)
    assert told.aside is not None
    assert (contents(told.aside), contents(told.since[0])) == (OLD, {"state.db": b"theirs"})


def test_what_a_killed_restore_was_writing_is_left_nowhere(tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "data")
    (folder / ".ca.key.new.96115380d76d").write_bytes(b"a half private key")
    restoring.put(folder, NEW)
    assert not list(folder.glob(".*"))


def test_a_part_that_cannot_be_moved_has_the_log_of_the_database_put_back_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount point, as BindReadOnlyPaths= makes; or an immutable file."""
    folder = old_folder(tmp_path / "data")
    monkeypatch.setattr(Path, "rename", busy("operator.token"))
    for _ in range(2):
        with pytest.raises(StateFileError, match="All is as it was") as refused:
            restoring.put(folder, NEW)
        assert "operator.token" in refused.value.cause
        assert {path.name for path in folder.iterdir()} - {"config-server.lock"} == set(OLD)
        assert contents(folder) == OLD


def test_a_restore_that_is_killed_while_it_moves_back_is_run_again_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    for line in itertools.count():
        folder = old_folder(tmp_path / str(line))
        with monkeypatch.context() as fails:
            fails.setattr(Path, "rename", busy("operator.token"))
            killed = is_killed_at(line, folder, "_move_back")
        assert contents(folder) == OLD or (folder / "restoring").exists()
        assert (folder / "state.db").exists() or not list(folder.glob("state.db-*"))
        restoring.put(folder, NEW)
        assert contents(folder) == NEW
        assert contents(max(folder.glob("replaced-*"))) == OLD
        if not killed:
            break
    assert line > 10


def test_what_is_put_back_is_not_changed_by_the_log_of_who_looked_into_a_half_restored_database(
    tmp_path: Path,
) -> None:
    def table(db: sqlite3.Connection, name: str) -> bytes:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"CREATE TABLE {name} (x)")
        return db.serialize()

    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        ours = table(db, "ours")
    durable.replace_file(tmp_path / "restoring", msgspec.json.encode(belonging.Stage("", moved=True)))
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as db:
        table(db, "theirs")
        assert (tmp_path / f"{DATABASE_FILE}-wal").stat().st_size
        restoring.put(tmp_path, NEW | {DATABASE_FILE: ours})
    assert not list(tmp_path.glob("state.db-*"))
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("ours",)]


def run_and_killed(*calls: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        for call in calls:
            call()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def rows(database_file: Path) -> list[tuple[int]]:
    with contextlib.closing(sqlite3.connect(database_file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return db.execute("SELECT x FROM t").fetchall()


def small(mode: str, x: int) -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(f"CREATE TABLE t (x); INSERT INTO t VALUES ({x})")
        found = bytearray(db.serialize())
    found[18:20] = b"\2\2" if mode == "wal" else b"\1\1"
    return bytes(found)


@pytest.mark.parametrize("log", ["wal", "journal"])
def test_a_database_that_was_moved_back_and_written_to_keeps_its_log_when_it_had_none_before(
    tmp_path: Path, log: str
) -> None:
    """A server that was stopped leaves none. A restored database has a rollback journal, which would be rolled back into the next one."""
    folder, database_file = tmp_path / "data", tmp_path / "data" / "state.db"
    folder.mkdir()
    database_file.write_bytes(small(log, 1))
    aside = killed_when_put(folder)
    (aside / "state.db").rename(database_file)
    db = sqlite3.connect(database_file, isolation_level=None)
    if log == "wal":
        run_and_killed(lambda: db.execute("INSERT INTO t VALUES (2)"))
    else:  # rolled back, once somebody opens it: not all of it was committed
        run_and_killed(
            lambda: db.execute("PRAGMA cache_size = 1"),
            lambda: db.execute("BEGIN"),
            lambda: db.execute("UPDATE t SET x = 2"),
            lambda: db.execute("CREATE TABLE large AS SELECT zeroblob(100000)"),
        )
    assert (folder / f"state.db-{log}").stat().st_size
    restoring.put(folder, NEW | {"state.db": small("journal", 3)})
    assert rows(database_file) == [(3,)]
    assert rows(aside / "state.db") == ([(1,), (2,)] if log == "wal" else [(1,)])


def test_a_size_that_no_number_holds_is_refused_in_words(tmp_path: Path) -> None:
    """tarfile raises OverflowError for it."""
    target, packed = tmp_path / "backup.tar", io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("ca.key"))
    damaged = bytearray(packed.getvalue())
    head = damaged[:512]
    head[124:136] = b"\x80\0\0" + b"\xff" * 9
    head[156:157] = tarfile.XHDTYPE
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    target.write_bytes(head + damaged[512:])
    with pytest.raises(ConfigError, match="is no backup of a config server"):
        restoring.restore(config_for(tmp_path), target)


def installation(config: ConfigServerConfig) -> Connection:
    config.data_dir.mkdir()
    CertificateAuthority.open(config.data_dir)
    db = sqlite.connect(config.data_dir / "state.db")
    token = operators.new_token()
    operators.set_first(db, "admin", token, 10**9)
    db.commit()
    (config.data_dir / "operator.token").write_text(token)
    return db


def test_what_a_backup_held_ready_is_void_in_the_restored_database_and_an_event_says_from_when_it_is(
    tmp_path: Path,
) -> None:
    config, target = config_for(tmp_path), tmp_path / "backup.tar"
    now_ns = time.time_ns()
    with contextlib.closing(installation(config)) as db:
        for secret in (b"used", b"unused"):
            grant = Grant(Role.AGENT, f"web-{secret.decode()}", ())
            tokens.add(db, enrol.token_hash(secret), grant, now_ns, now_ns + 10**15)
        tokens.redeem(db, enrol.token_hash(b"used"), now_ns)
        commands.add(db, "c1", "agent:web1", CommandKind.RESYNC, {}, now_ns)
        was = incarnations.history(db)
        operators.give(db, "since ended", OperatorTokenView(id="a", created=""), "anna", now_ns, 2 * now_ns)
        lasting_record.save(db, {"web1": {"without-session": Lasted((), 280 * SECOND_NS, 0)}})
        db.commit()
        backup.backup(config, target)
        # Since then:
        tokens.redeem(db, enrol.token_hash(b"unused"), now_ns)
        commands.finish(db, "agent:web1", {"c1": {}}, now_ns)
        operators.end(db, "anna", "a")
        db.commit()
    before = (config.data_dir / "operator.token").read_text()
    done = restoring.restore(config, target)
    assert (done.restored.tokens, done.restored.commands) == (1, 1)
    assert (config.data_dir / "operator.token").read_text() == before
    with contextlib.closing(sqlite.connect(config.data_dir / "state.db")) as db:
        with pytest.raises(TokenUnknownError):
            tokens.redeem(db, enrol.token_hash(b"unused"), now_ns)
        assert commands.pending(db, "agent:web1", now_ns) == []
        assert commands.get(db, "c1").state is CommandState.WITHDRAWN
        said = {entry.action: entry.object for entry in audit.newest(db, 10)}
        ended = {"operator.token.end": "anna"}
        assert said | ended | {"token.void": "agent:web-unused", "command.withdrawn": "agent:web1"} == said
        assert operators.owner_of(db, "since ended", now_ns) is None
        assert lasting_record.load(db) == {}, "what was not well then was then"
        [event] = events.find(db, "", False, 10)
        assert "1970-01-01T00:00:01" in event.what
        assert restored.mark(db)
        assert incarnations.history(db)[:-1] == was, "what is said from now on is later"
        assert operators.is_first(db, before)
    restoring.restore(config, target, new_operator_token=True)
    after = (config.data_dir / "operator.token").read_text().strip()
    with contextlib.closing(sqlite.connect(config.data_dir / "state.db")) as db:
        assert (operators.is_first(db, before), operators.is_first(db, after)) == (False, True)


def test_a_backup_has_the_last_commits_or_is_refused_wherever_a_restore_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database without its log is whole, and lacks them. And whoever opens it leaves an empty log there."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    config, target = config_for(tmp_path), tmp_path / "backup.tar"
    with contextlib.closing(installation(config)) as db:
        shutil.copytree(config.data_dir, tmp_path / "killed")
        assert operators.has_any(db)
    assert (tmp_path / "killed" / "state.db-wal").stat().st_size
    ends = set[bool]()
    for line in itertools.count(step=3):
        shutil.rmtree(config.data_dir)
        shutil.copytree(tmp_path / "killed", config.data_dir)
        if not is_killed_at(line, config.data_dir):
            break
        there = {path.name for path in config.data_dir.iterdir()}
        is_half = "restoring" in there
        if ends >= {is_half} and not is_half:
            continue  # each takes its time
        with pytest.raises(ConfigError, match="half restored") if is_half else contextlib.nullcontext():
            backup.backup(config, target)
        ends.add(is_half)
        if is_half:
            assert {path.name for path in config.data_dir.iterdir()} == there
    assert ends == {True, False}


def test_a_backup_and_a_restore_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, target = config_for(tmp_path), tmp_path / "backup.tar"
    installation(config).close()

    def during(module: Any, name: str, other: Callable[[], object], cause: str) -> None:
        really = getattr(module, name)

        def tried(*args: Any) -> Any:
            with pytest.raises(DataFolderInUseError) as refused:
                other()
            assert refused.value.cause == cause
            return really(*args)

        monkeypatch.setattr(module, name, tried)

    during(backup, "snapshot", lambda: restoring.put(config.data_dir, NEW), "it is being backed up")
    backup.backup(config, target)
    monkeypatch.undo()
    during(restoring, "_put", lambda: backup.backup(config, target), "it is being restored")
    restoring.restore(config, target)


def members(**changes: Any) -> list[tarfile.TarInfo]:
    found = []
    for name in belonging.PARTS:
        member = tarfile.TarInfo(name)
        for field, value in changes.items():
            setattr(member, field, value)
        found.append(member)
    return found


@pytest.mark.parametrize(
    "members",
    [
        members(type=tarfile.DIRTYPE),
        members(type=tarfile.SYMTYPE, linkname="ca.key"),
        members(type=tarfile.LNKTYPE, linkname="ca.key"),
        members(type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        members(type=tarfile.FIFOTYPE),
        members(type=tarfile.GNUTYPE_SPARSE),
        members(pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
        members(name="/etc/passwd"),
        members(name="../ca.key"),
        members(name="ca.key"),
        members(size=1 << 40),
        members()[1:],
        [],
    ],
)
def test_what_is_no_backup_is_refused_in_words(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    target = tmp_path / "backup.tar"
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"") if not member.size else None)
    with pytest.raises(ConfigError, match=r"is no backup of a config server|Nothing was restored") as refused:
        restoring.restore(config_for(tmp_path), target)
    assert refused.value.cause
    assert not config_for(tmp_path).data_dir.exists()


def test_a_whole_database_without_a_table_and_one_of_a_newer_version_are_refused_in_words(
    tmp_path: Path,
) -> None:
    for number, change in enumerate(["DROP TABLE tokens", "PRAGMA user_version = 999"]):
        config, target = config_for(tmp_path / str(number)), tmp_path / f"{number}.tar"
        config.data_dir.parent.mkdir()
        with contextlib.closing(installation(config)) as db:
            sqlite.raw_of(db).execute(change)
        backup.backup(config, target)
        before = sorted(path.name for path in config.data_dir.iterdir())
        with pytest.raises(ConfigError, match=r"Nothing was restored|could not be opened"):
            restoring.restore(config, target)
        assert sorted(path.name for path in config.data_dir.iterdir()) == before
