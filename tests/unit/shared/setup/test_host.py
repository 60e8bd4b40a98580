"""A daemon's host: which way it is set up, and what is said of a unit that does not start."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path, PurePosixPath

import pytest

from deploy.systemd import host_files
from shared.errors import ProgramPlaceError, UsageError
from shared.setup import host as hosts
from shared.setup.files import GivenFile
from shared.setup.host import ETC, STATE, Host, last_words
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
