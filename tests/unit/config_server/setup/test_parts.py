"""What only the config server has: the vault, and what was left beside it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from config_server.data_folder.restoring import remove_new
from config_server.setup.parts import Vault
from config_server.store.files import DATABASE_FILE
from shared.host import durable
from shared.keys.vault import FileVault, add
from shared.setup.steps import Done, Outcome, carry_out


async def vault(etc: Path, data: Path, *, dry_run: bool = False) -> Done:
    [done] = await carry_out([Vault(etc / "vault.json", data)], lambda _: None, dry_run=dry_run)
    return done


def die_while_it_is_made(file: Path) -> None:
    durable._create_nameless = lambda *_: False  # as on NFS
    Path.unlink = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    FileVault.create(file)


def die_while_keys_are_added(file: Path) -> None:
    FileVault.create(file)
    other = FileVault.create(file.parent.parent / "other.json")
    Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
    add(file, other.path)


def killed(die: Callable[[Path], None], file: Path) -> None:
    child = os.fork()
    if not child:
        try:
            die(file)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("die", [die_while_it_is_made, die_while_keys_are_added])
async def test_copies_of_the_vault_that_a_killed_run_left_are_removed(
    tmp_path: Path, die: Callable[[Path], None]
) -> None:
    etc, data = tmp_path / "etc", tmp_path / "data"
    etc.mkdir(0o700)
    data.mkdir(0o700)
    killed(die, etc / "vault.json")
    [left] = [path for path in etc.iterdir() if path.name != "vault.json"]
    before = (etc / "vault.json").read_bytes()
    done = await vault(etc, data, dry_run=True)
    assert (done.outcome, str(left) in done.detail, left.exists()) == (Outcome.WOULD_MEND, True, True)
    done = await vault(etc, data)
    assert (done.outcome, str(left) in done.detail) == (Outcome.MENDED, True)
    assert [(path.name, path.read_bytes()) for path in etc.iterdir()] == [("vault.json", before)]
    assert (await vault(etc, data)).outcome is Outcome.KEPT


def test_keys_that_a_killed_start_left_in_the_data_folder_go_with_the_next(tmp_path: Path) -> None:
    for name in (
        ".ca.key.0123456789ab",
        ".operator.token.0123456789ab",
        "ca.key",
        DATABASE_FILE,
        ".ca.key.mine",
    ):
        (tmp_path / name).write_text("x")
    remove_new(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"ca.key", DATABASE_FILE, ".ca.key.mine"}


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
async def test_a_vault_file_that_root_put_back_is_given_to_the_daemon_s_user(tmp_path: Path) -> None:
    file = tmp_path / "etc/vault.json"
    file.parent.mkdir()
    FileVault.create(file)
    shutil.chown(file.parent, "nobody")
    before = file.read_bytes()

    async def looked(*, dry_run: bool = False) -> Done:
        [done] = await carry_out([Vault(file, tmp_path, "nobody")], lambda _: None, dry_run=dry_run)
        return done

    done = await looked(dry_run=True)
    assert (done.outcome, "nobody cannot read it" in done.detail) == (Outcome.WOULD_MEND, True)
    done = await looked()
    assert (done.outcome, done.action) == (Outcome.MENDED, ""), "nobody else could read it"
    assert (file.owner(), file.stat().st_mode & 0o777, file.read_bytes()) == ("nobody", 0o600, before)
    assert (await looked()).outcome is Outcome.KEPT
