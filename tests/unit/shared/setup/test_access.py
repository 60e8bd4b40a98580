"""Who else may read or write what is there: named, and taken from them."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from shared.errors import StateFileError
from shared.setup.access import Access, admits, too_open, user_name

NOBODY = pwd.getpwnam("nobody")


def access(path: Path, mode: int = 0o600) -> Access:
    return Access(path, mode, os.geteuid(), os.getegid())


@pytest.mark.parametrize(
    ("there", "may", "says"),
    [
        (0o600, 0o600, ""),
        (0o400, 0o600, ""),
        (0o700, 0o600, ""),
        (0o640, 0o600, "others can read it: its mode is 0640"),
        (0o602, 0o600, "others can write it: its mode is 0602"),
        (0o666, 0o600, "others can read and write it: its mode is 0666"),
        (0o755, 0o644, ""),
        (0o664, 0o644, "others can write it: its mode is 0664"),
    ],
)
def test_what_others_may_do_is_said_and_closing_takes_only_that(
    tmp_path: Path, there: int, may: int, says: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(there)
    assert access(file, may).wrong() == says
    if says:
        mode = stat.S_IMODE(there & (may | 0o700))
        assert access(file, may).close() == (
            f"{says}; now it is {user_name(os.geteuid())}'s, and its mode {mode:04o}"
        )
        assert stat.S_IMODE(file.stat().st_mode) == mode
        assert access(file, may).wrong() == ""


def test_a_folder_that_others_can_only_enter_is_open_too(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    assert too_open(tmp_path.stat(), 0o700) == "others can enter it: its mode is 0711"
    tmp_path.chmod(0o700)
    assert too_open(tmp_path.stat(), 0o700) == ""


def test_what_is_not_there_is_open_to_nobody(tmp_path: Path) -> None:
    assert access(tmp_path / "none").wrong() == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
def test_what_belongs_to_somebody_else_is_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(0o644)
    os.chown(file, 61000, 61000)
    assert access(file).wrong() == "it belongs to user 61000 and others can read it: its mode is 0644"
    access(file).close()
    assert (file.stat().st_uid, file.stat().st_gid, stat.S_IMODE(file.stat().st_mode)) == (0, 0, 0o600)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
def test_a_file_of_the_folder_s_owner_or_of_root_is_nobody_else_s(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY.pw_uid, NOBODY.pw_gid)
    for uid, says in ((NOBODY.pw_uid, ""), (0, ""), (61000, "it belongs to user 61000")):
        file = tmp_path / str(uid)
        file.touch(0o600)
        os.chown(file, uid, uid)
        assert Access.in_folder(file).wrong() == says
    Access.in_folder(tmp_path / "61000").close()
    assert (tmp_path / "61000").owner() == "nobody"


def test_what_another_name_leads_to_is_not_touched(tmp_path: Path) -> None:
    """Whoever owns the folder could have root change any file of the host."""
    other = tmp_path / "other"
    other.touch(0o644)
    (tmp_path / "symbolic").symlink_to(other)
    (tmp_path / "hard").hardlink_to(other)
    for name in ("symbolic", "hard"):
        with pytest.raises(StateFileError, match="could not be kept from it"):
            access(tmp_path / name).close()
    assert stat.S_IMODE(other.stat().st_mode) == 0o644


def test_a_file_system_that_keeps_no_modes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch(0o644)
    monkeypatch.setattr(os, "fchmod", lambda _fd, _mode: None)
    with pytest.raises(StateFileError, match="keeps no modes"):
        access(file).close()


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "can"),
    [
        (0, 0, 0o644, True),
        (0, 0, 0o640, False),
        (0, NOBODY.pw_gid, 0o640, True),
        (0, NOBODY.pw_gid, 0o604, False),
        (NOBODY.pw_uid, 0, 0o400, True),
        (NOBODY.pw_uid, 0, 0o044, False),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
def test_whether_a_user_can_read_a_file_goes_by_the_first_of_owner_group_and_others(
    tmp_path: Path, uid: int, gid: int, mode: int, can: bool
) -> None:
    file = tmp_path / "file"
    file.touch()
    os.chown(file, uid, gid)
    file.chmod(mode)
    assert admits(file.stat(), "nobody") == can
    assert admits(file.stat(), "root")
    assert admits(file.stat(), "no-such-user")
