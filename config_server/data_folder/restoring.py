"""The data folder from a backup (backup.py), with what must end in a database that is put back (restored.py).

The new parts are written first, under other names: where there is no room for them the restore ends, and nothing was touched. Then what
is there is moved aside, into one folder, since a database that is parted from its write-ahead log is valid, and lacks its last commits.
The file `restoring` says how far this is; a second run, of whatever backup, goes on from there, and until it is done the server does not
start. Where one of the files cannot be moved aside, all are moved back.

Between two runs people look, copy and move. What a run finds in the folder is what was there (not moved yet, or moved back by hand) and
goes to `aside`, or it came since (`belonging.came_since`) and goes to `since-…`: nothing is written over, or removed, and a database goes
where its logs went.

    NAME.new                           of a backup; nobody reads it, and each run, and each start of the server, begins with removing it
    restoring: {aside, moved: false}   what is there is moved to `aside`: each file is in one of the two places, whole
    restoring: {aside, moved: true}    `aside` holds all that was there, but for what somebody moved back by hand; else what lies in the
                                       folder itself comes from a backup, or from somebody
    none                               all parts are of one backup
"""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import os
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from config_server.config import ConfigServerConfig
from config_server.data_folder import lock
from config_server.data_folder.backup import check, refuse_elsewhere
from config_server.data_folder.belonging import (
    LOGS,
    OPERATOR,
    PARTS,
    RESTORING,
    TOKEN_FILE,
    Stage,
    came_since,
    stage_of,
    there,
    way_back,
)
from config_server.identity import ca_note
from config_server.identity.ca import CertificateAuthority
from config_server.rules.facts import SELF
from config_server.store import audit, operators, restored, sqlite
from config_server.store.files import DATABASE_FILE
from config_server.store.restored import Restored
from shared.crashpoints import reach
from shared.errors import UNDECODABLE, ConfigError, DataFolderInUseError, StateFileError, cause_of
from shared.host import durable
from shared.host.owner import as_owner

_MOST_B: Final = {name: 1 << 20 for name in PARTS} | {DATABASE_FILE: 1 << 31}
"""Of each part: it is read into memory, and SQLite takes no larger database from there."""
_NEW: Final = ".new"


class Kept(NamedTuple):
    aside: Path | None
    """The folder with what was there; None: nothing was."""
    lost: list[str]
    """Of the parts that were there: somebody took them from `aside`."""
    since: list[Path]
    """The folders with what came since."""


class Done(NamedTuple):
    kept: Kept
    restored: Restored
    is_roots: bool
    """Root had to make the folder."""


def restore(config: ConfigServerConfig, source: Path, *, new_operator_token: bool = False) -> Done:
    """Puts the parts of a backup into the data folder. Killed anywhere it is run again. Raises ConfigError, StateFileError,
    DataFolderInUseError."""
    refuse_elsewhere(config, f"Nothing was restored from {source}")
    parts = _read(source)
    return restore_parts(
        config, parts, f"Nothing was restored from {source}", new_operator_token=new_operator_token
    )


def restore_parts(
    config: ConfigServerConfig,
    given: Mapping[str, bytes],
    what: str,
    *,
    new_operator_token: bool = False,
    recovered_from: str = "",
    over: int | None = None,
) -> Done:
    """As `restore`, of these parts. `what` is said where it fails. `recovered_from`: which state in storage they are, if they are one;
    `over`: over which generation the server takes over then, at most (rules/force.py)."""
    parts = dict(given)
    check(parts, what)
    if new_operator_token:
        parts[TOKEN_FILE] = operators.new_token().encode() + b"\n"
    try:
        parts[DATABASE_FILE], found = _prepared(
            parts[DATABASE_FILE], parts[TOKEN_FILE] if new_operator_token else None, recovered_from, over
        )
    except sqlite.ERRORS as exc:  # whole, and not what a config server of any version wrote
        raise ConfigError(what, cause=str(exc), action="Take another backup.") from exc
    was_there = config.data_dir.is_dir()
    kept = put(config.data_dir, parts)
    # It was asked for: the backup's CA is this installation's from now on.
    ca_note.note_if_possible(CertificateAuthority.loaded(parts["ca.key"], parts["ca.pem"]), config.vault_file)
    return Done(kept, found, is_roots=not was_there and os.geteuid() == 0)


def put(folder: Path, parts: dict[str, bytes]) -> Kept:
    """Puts them into the data folder. Raises StateFileError, DataFolderInUseError."""
    try:
        durable.make_folder(folder)
        with as_owner(folder), _held(folder), lock.moving(folder):
            return _put(folder, parts)
    except OSError as exc:
        place = f" ({os.fsdecode(exc.filename)})" if exc.filename else ""
        is_half = os.path.lexists(folder / RESTORING)
        again = (
            "Run the command again."
            if is_half
            else "All is as it was. See to the cause, and run the command again."
        )
        raise StateFileError(
            f"The data folder {folder} {'is half' if is_half else 'could not be'} restored",
            cause=f"{cause_of(exc)}{place}",
            action=again + way_back(folder),
        ) from exc


def _put(folder: Path, parts: dict[str, bytes]) -> Kept:
    _write_new(folder, parts)
    stage = _stage(folder)
    if stage.moved:
        _move(folder, stage)
    else:
        _set_aside(folder, stage)
    for name in PARTS:
        reach("restore.part")
        _new(folder, name).rename(folder / name)
    durable.sync_folder(folder)
    reach("restore.part")
    kept = _kept(folder, stage)
    (folder / RESTORING).unlink()
    with contextlib.suppress(OSError):  # after a power cut it may be back, and asks for another run
        durable.sync_folder(folder)
    return kept


def _kept(folder: Path, stage: Stage) -> Kept:
    aside = folder / stage.aside
    lost = [name for name in PARTS if name in (stage.names or ()) and not os.path.lexists(aside / name)]
    return Kept(
        aside if lost or aside.is_dir() else None,
        lost,
        sorted(folder.glob(f"{stage.since}*")),
    )


def _new(folder: Path, name: str) -> Path:
    return folder / f"{name}{_NEW}"


def _write_new(folder: Path, parts: dict[str, bytes]) -> None:
    remove_new(folder)
    try:
        for name, mode in PARTS.items():
            reach("restore.part")
            durable.replace_file(_new(folder, name), parts[name], mode=mode)
    except OSError:
        with contextlib.suppress(OSError):  # the first one is told
            remove_new(folder)
        raise


def remove_new(folder: Path) -> None:
    """Private keys, of a restore that was killed, or of whoever made the part itself. For who holds the folder's lock. Raises OSError."""
    for name in PARTS:
        if os.path.lexists(
            _new(folder, name)
        ):  # a folder that cannot be written refuses also what would change nothing
            durable.remove_file(_new(folder, name))
        durable.remove_leftovers(_new(folder, name))
        for left in durable.leftovers(folder / name, None):
            durable.remove_file(left)


def _prepared(
    data: bytes, new_token: bytes | None, recovered_from: str, over: int | None
) -> tuple[bytes, Restored]:
    """The database as it shall be put in place: of this version, without what must end, and with that operator token, if there is a new
    one. Raises ConfigError."""
    now_ns = time.time_ns()
    with sqlite.of_bytes(data) as db:
        sqlite.migrate(db, "of the backup")
        with db.begin():
            found = restored.prepare(db, now_ns, recovered_from, over)
            if new_token is not None:
                operators.set_first(db, OPERATOR, new_token.decode().strip(), now_ns)
                audit.add(db, SELF, "operator.token", OPERATOR, {}, now_ns)
        return sqlite.raw_of(db).serialize(), found


def _read(source: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(source, mode="r:") as archive:
            return _members(archive)
    except OSError as exc:
        raise StateFileError(
            f"The backup {source} could not be read",
            cause=cause_of(exc),
            action="Give a file that `python -m config_server backup` wrote, and that this user may read.",
        ) from exc
    except (tarfile.TarError, EOFError, OverflowError, *UNDECODABLE) as exc:
        raise ConfigError(
            f"{source} is no backup of a config server",
            cause=str(exc),
            action="Give a file that `python -m config_server backup` wrote; if it was compressed since, unpack it first.",
        ) from exc


def _members(archive: tarfile.TarFile) -> dict[str, bytes]:
    """Nothing but the parts, each once, as plain files: they are read, not unpacked. Raises ValueError for others."""
    parts: dict[str, bytes] = {}
    for member in archive:
        file = archive.extractfile(member) if member.isreg() and not member.issparse() else None
        if member.name not in PARTS or member.name in parts or file is None:
            raise ValueError(f"it holds {member.name!r}, which is no part of one, or none as it should be")
        if member.size > _MOST_B[member.name]:
            raise ValueError(f"{member.name} has {member.size} bytes, which is more than one can have")
        parts[member.name] = file.read()
    if missing := PARTS.keys() - parts.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return parts


def _stage(folder: Path) -> Stage:
    """How far an earlier run came; else this one begins."""
    found = stage_of(folder)
    if found is not None and found.aside:
        return found
    aside = f"replaced-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S.%fZ}"
    stage = Stage(
        aside, names=tuple(there(folder)) if found is None else (), moved=found is not None and found.moved
    )
    _note(folder, stage)
    return stage


def _note(folder: Path, stage: Stage) -> None:
    durable.replace_file(folder / RESTORING, msgspec.json.encode(stage))


def _set_aside(folder: Path, stage: Stage) -> None:
    try:
        _move(folder, stage)
        reach("restore.part")
        _note(folder, msgspec.structs.replace(stage, moved=True))
    except OSError:
        # The first one is told; where this fails too, the folder stays half restored, and says so.
        with contextlib.suppress(OSError):
            _move_back(folder)
        raise


def _move(folder: Path, stage: Stage) -> None:
    aside = folder / stage.aside
    since = came_since(folder, stage)
    for name in there(folder):
        target = _since(folder, stage, name, since) if name in since else aside / name
        durable.make_folder(target.parent)
        reach("restore.part")
        (folder / name).rename(target)
    for place in (aside, *folder.glob(f"{stage.since}*")):
        if place.is_dir():
            durable.sync_folder(place)
    durable.sync_folder(folder)


def _since(folder: Path, stage: Stage, name: str, since: list[str]) -> Path:
    """The first folder without that part, or, of a log, without the database: a run that was killed has moved the one, and the next moves
    the other there. A log whose database goes elsewhere has a name that SQLite does not take for one."""
    part = DATABASE_FILE if name in LOGS else name
    places = (folder / f"{stage.since}{number}" for number in itertools.count(1))
    place = next(place for place in places if not os.path.lexists(place / part))
    if part in since and not os.path.lexists(place / name):
        return place / name
    names = (f"{name}.{number}" for number in itertools.count(1))
    return next(place / other for other in names if not os.path.lexists(place / other))


def _move_back(folder: Path) -> None:
    """So that the old server can start again. `restoring` goes last: killed before, a second run goes on from wherever the files are."""
    stage = stage_of(folder)
    if stage is None or stage.moved:
        return  # what lies in the folder may be a backup's
    if came_since(folder, stage) or any(folder.glob(f"{stage.since}*")):
        return  # it would be written over, or be told by nobody
    aside = folder / stage.aside
    if stage.aside and aside.is_dir():
        for name in reversed(there(aside)):  # SQLite removes a log without a database, when somebody looks
            (aside / name).rename(folder / name)
        durable.sync_folder(folder)
        aside.rmdir()
    remove_new(folder)
    (folder / RESTORING).unlink()
    durable.sync_folder(folder)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.held(folder))
        except DataFolderInUseError as exc:
            raise DataFolderInUseError(
                f"The data folder {folder} was not restored",
                cause=exc.cause,
                action="Stop the config server first (systemctl stop understudy-config-server).",
            ) from exc
        yield
