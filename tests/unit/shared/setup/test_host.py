"""A daemon's host: which way it is set up, and what is said of a unit that does not start."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import pwd
import shlex
import shutil
from pathlib import Path, PurePosixPath

import pytest

from deploy.systemd import host_files
from shared.errors import ProgramPlaceError, UsageError
from shared.setup import host as hosts
from shared.setup.files import GivenFile
from shared.setup.host import ETC, STATE, Host, Unit, alone, last_words
from shared.setup.steps import carry_out
from shared.vocabulary import Role


def options(etc: Path, state: Path, *, no_unit: bool = False) -> argparse.Namespace:
    return argparse.Namespace(etc=etc, state=state, no_unit=no_unit, replace_units=False)


def of(given: argparse.Namespace) -> Host:
    return Host.of(Role.PROCESS_SERVER, host_files(), given)


def test_there_is_a_unit_only_for_root_on_a_host_of_systemd_in_the_folders_that_units_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(hosts, "_BOOTED", tmp_path)
    assert of(options(ETC, STATE)).by_unit
    assert not of(options(ETC, STATE, no_unit=True)).by_unit
    assert not of(options(tmp_path, STATE)).by_unit
    monkeypatch.setattr(hosts, "_BOOTED", tmp_path / "not-there")
    assert not of(options(ETC, STATE)).by_unit
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert of(options(tmp_path, tmp_path)).user == ""
    with pytest.raises(UsageError, match="are root's"):
        of(options(ETC, STATE))


async def test_a_program_elsewhere_is_not_what_the_unit_would_start() -> None:
    host = Host(Role.AGENT, ETC, STATE, host_files(), by_unit=True)
    program, *_ = host.prepared()
    with pytest.raises(ProgramPlaceError, match="units start /opt/understudy"):
        await carry_out([program], lambda _: None)


def test_a_host_gets_its_own_unit_and_no_other() -> None:
    host = Host(Role.MASTER_TARGET, ETC, STATE, host_files(), by_unit=True)
    paths = {step.path for step in host.prepared() if isinstance(step, GivenFile)}
    assert paths == {
        Path("/etc/systemd/system/understudy-master-target.service"),
        Path("/usr/lib/sysusers.d/understudy.conf"),
        Path("/usr/lib/tmpfiles.d/understudy.conf"),
    }


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.STORAGE])
def test_what_stands_here_is_what_stands_in_the_units(role: Role) -> None:
    """Users, folders, configuration and credential are named in both places."""
    host = Host(role, ETC, STATE, host_files(), by_unit=True)
    unit = host_files()[PurePosixPath(f"/etc/systemd/system/{host.unit}.service")]
    assert f"ExecStart={hosts.PROGRAM}/bin/python -m {host.module} --config {host.config}\n" in unit
    assert f"\nStateDirectory={host.state_dir.relative_to('/var/lib')}\n" in unit
    assert (f"\nUser={host.user}\n" in unit) == (host.user != "root")
    assert (f"\nLoadCredential={host.credential.name}\n" in unit) == (role is not Role.AGENT)
    assert (
        f"d {host.folder} 0700 {host.user} {host.user}\n"
        in host_files()[PurePosixPath("/usr/lib/tmpfiles.d/understudy.conf")]
    )


@pytest.mark.parametrize("there", ["", "a", "a/etc"])
def test_one_set_up_runs_at_a_time_whatever_folders_it_has_made_by_then(tmp_path: Path, there: str) -> None:
    etc = tmp_path / "a/etc"
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    for made in ("", "a", "a/etc", "a/etc/config-server"):
        with alone(etc):
            (tmp_path / made).mkdir(parents=True, exist_ok=True)
            with pytest.raises(UsageError, match="another set-up is at work"), alone(etc):
                pass
        with alone(etc):
            pass


def test_set_ups_of_two_folders_do_not_wait_for_each_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        alone(tmp_path / "a/etc", tmp_path / "a/state"),
        alone(tmp_path / "b/etc", tmp_path / "b/state"),
        alone(tmp_path / "b", tmp_path / "c"),
    ):
        pass


def test_set_ups_that_share_one_folder_run_one_at_a_time(tmp_path: Path) -> None:
    """Two with the same `--state` have one CA and one database."""
    etc, state, other = tmp_path / "etc", tmp_path / "state", tmp_path / "other"
    state.mkdir()
    (tmp_path / "link").symlink_to(state)
    for folders in (
        (other, state),
        (etc, other),
        (state, other),
        (other, tmp_path / "link"),
        (other, state / "../state"),
    ):
        with (
            alone(etc, state),
            pytest.raises(UsageError, match="another set-up is at work"),
            alone(*folders),
        ):
            pass
        with alone(*folders):
            pass
    with alone(state, state):
        pass


def test_whoever_has_a_folder_open_keeps_no_set_up_from_its_work(tmp_path: Path) -> None:
    """Anybody can open / and /etc, and hold a lock on them; here it is those of the test's own."""
    etc = tmp_path / "a/etc"
    etc.mkdir(parents=True)
    with contextlib.ExitStack() as held:
        for folder in (etc, etc.parent, tmp_path):
            fd = os.open(folder, os.O_RDONLY)
            held.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with alone(etc, tmp_path / "state"):
            pass


def test_locks_lie_in_a_folder_of_this_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "locks"
    monkeypatch.setattr(hosts, "_ROOTS_LOCKS", place)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if os.getuid():
        pytest.skip("only root makes root's folders")
    with alone(tmp_path / "etc"):
        assert place.stat().st_mode & 0o7777 == 0o700
    place.chmod(0o777)
    with pytest.raises(UsageError, match="not a folder of his alone"), alone(tmp_path / "etc"):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_nobody_can_take_the_place_of_another_user_s_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He has no folder below /run/user: it is in /tmp that anybody could."""
    uid, other = 61234, 61235
    taken = Path(f"/tmp/understudy-setup-{uid}")
    taken.mkdir(0o700)
    try:
        os.chown(taken, other, other)
        home = tmp_path / "home"
        home.mkdir(0o700)
        os.chown(home, uid, uid)
        user = pwd.struct_passwd(("somebody", "x", uid, uid, "", str(home), "/bin/sh"))
        monkeypatch.setattr(pwd, "getpwuid", {uid: user}.__getitem__)
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        (home / ".understudy-setup").mkdir(0o700)
        os.chown(home / ".understudy-setup", uid, uid)
        with (
            alone(tmp_path / "etc"),
            pytest.raises(UsageError, match="another set-up"),
            alone(tmp_path / "etc"),
        ):
            pass
        home.chmod(0o777)  # then others could take that, too
        with pytest.raises(UsageError, match="root can; or has a folder made"), alone(tmp_path / "etc"):
            pass
    finally:
        taken.rmdir()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("home", ["his", "others can write it"])
def test_set_ups_of_one_user_run_one_at_a_time_whether_they_began_in_a_session_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    """cron and su begin without /run/user/UID; and a session may end before the set-up does."""
    uid = 61236
    user = pwd.struct_passwd(("somebody", "x", uid, uid, "", str(tmp_path / "home"), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", {uid: user}.__getitem__)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(hosts, "_RUNTIME", tmp_path / "run")
    runtime, locks = tmp_path / "run" / str(uid), Path(f"/tmp/understudy-setup-{uid}")
    made = (
        tmp_path / "home",
        tmp_path / "home/.understudy-setup",
        runtime,
        runtime / "understudy-setup",
        locks,
    )
    for folder in made:
        folder.mkdir(0o700, parents=True)
        os.chown(folder, uid, uid)
    (tmp_path / "home").chmod(0o700 if home == "his" else 0o777)
    away = tmp_path / "away"
    try:
        for source, target in ((runtime, away), (away, runtime)):
            with alone(tmp_path / "etc"):
                source.rename(target)
                with pytest.raises(UsageError, match="another set-up"), alone(tmp_path / "etc"):
                    pass
    finally:
        shutil.rmtree(locks)


def test_the_start_by_hand_can_be_pasted_whatever_the_folders_are_called(tmp_path: Path) -> None:
    host = Host(Role.AGENT, tmp_path / "my etc", tmp_path, host_files(), by_unit=False)
    action = asyncio.run(Unit(host).look(dry_run=False)).action
    assert shlex.split(action)[-2:] == ["--config", f"{tmp_path}/my etc/agent.toml"]


def test_the_last_words_of_a_daemon_are_its_last_error() -> None:
    lines = [
        json.dumps({"level": "error", "what": "A", "cause": "b", "action": "Do c."}),
        json.dumps({"level": "info", "what": "later"}),
        "no JSON {",
        "[]",
    ]
    assert last_words(lines) == ("A: b", "Do c.")
    assert last_words([json.dumps({"level": "error", "what": "A"})]) == ("A", "")
    assert last_words(["Traceback"]) is None
