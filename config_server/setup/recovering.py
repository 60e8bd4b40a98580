"""Of `understudy server recover`, what `init` has not: the state in storage, put onto this host. Each step is done once, wherever a run was
killed: nothing goes over a vault file, and over no data folder but one that is half restored.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from config_server.config import ConfigServerConfig
from config_server.data_folder import restoring
from config_server.data_folder.belonging import RESTORING
from config_server.identity.ca import CertificateAuthority
from config_server.recovery import generation, sealed, state
from config_server.rules.clock import rfc3339
from config_server.rules.force import Generation
from config_server.setup.recovery import NOTE, Handed, noted
from config_server.store.files import DATABASE_FILE
from config_server.store.recovered import Origin, origin_of
from shared.blob import BlobConfig, BlobStore, Retry
from shared.crashpoints import reach
from shared.errors import (
    ConfigError,
    ControlStateMissingError,
    IntegrityError,
    ServerSupersededError,
    UnderstudyError,
    WrongKeyError,
)
from shared.host import durable
from shared.host.owner import as_owner
from shared.keys.vault import FileVault, ids_in
from shared.setup.checks import Check
from shared.setup.steps import Done, Outcome

_PATIENCE: Final = Retry(deadline_s=60.0)
_TAKES_S: Final = 30.0
_AWAY: Final = "Take the recovery key off this host now, and delete it here."


class Found(NamedTuple):
    """A state in storage, opened and checked."""

    generation: int
    made_ns: int
    content: state.Content
    said: Generation | None
    """Which config server is in force, as storage has it; None: that is not there."""
    newest: int
    """The highest generation of which there is a state, whether or not it can be opened."""

    @property
    def origin(self) -> str:
        return f"generation {self.generation} of {rfc3339(self.made_ns)}"

    @property
    def over(self) -> int:
        """Which generation there is now: whoever takes over later has said so later."""
        return max(self.newest, 0 if self.said is None else self.said.generation)


async def find(config: BlobConfig, key: FileVault, wanted: int | None) -> Found:
    """The state of the newest generation, or of the `wanted` one. Raises ControlStateMissingError, IntegrityError, WrongKeyError,
    ConfigError, StorageError."""
    async with BlobStore.connect(config) as store:
        vault = store.with_retry(_PATIENCE)
        there = await generation.states(vault)
        if not there or (wanted is not None and wanted not in there):
            raise _missing(config, sorted(there), wanted)
        found = await generation.read(vault)
        number = max(there) if wanted is None else wanted
        blob = there[number]
        try:
            opened = sealed.opened(await vault.read(blob), key, blob)
            content = state.content(opened.parts, f"The control state {blob} cannot be put back")
        except WrongKeyError as exc:
            action = "Give the recovery key of this installation, or another copy of its vault file."
            raise WrongKeyError(exc.what, cause=exc.cause, action=action) from exc
        except (IntegrityError, ConfigError) as exc:
            raise IntegrityError(exc.what, cause=exc.cause, action=_others(sorted(there), number)) from exc
    return Found(number, opened.head.made_ns, content, None if found is None else found[0], max(there))


def _missing(config: BlobConfig, there: list[int], wanted: int | None) -> ControlStateMissingError:
    place = f"container {config.container} of {config.account}"
    if there:
        return ControlStateMissingError(
            f"There is no control state of generation {wanted}",
            cause=f"{place} has generations {', '.join(map(str, there))}",
            action="Take one of these, or leave --generation out.",
        )
    return ControlStateMissingError("There is no control state in storage", cause=f"{place} has none")


def _others(there: list[int], number: int) -> str:
    older = [str(each) for each in reversed(there) if each != number]
    if not older:
        return "Take an older version of the blob, if the account keeps any; else a backup of the config server (docs/install.md)."
    return f"Older ones are there: take one with --generation N (N: {', '.join(older)})."


@dataclass(frozen=True)
class VaultBack:
    """The vault as the state has it. One that is there stays, if it has all of its keys."""

    file: Path
    data: bytes

    async def look(self, dry_run: bool) -> Done:
        if not (self.file.exists() or self.file.is_symlink()):
            return self._done(Outcome.WOULD_CREATE)
        ours, theirs = FileVault(self.file).fingerprints, set(ids_in(self.data, self.file))
        if lacking := theirs - ours.keys():
            raise ConfigError(
                f"The vault file {self.file} is not the one of the control state",
                cause=f"it lacks vault key {', '.join(sorted(lacking))}",
                action="Move it away, and keep it; then run the command again.",
            )
        return self._done(Outcome.KEPT)

    async def do(self) -> Done:
        with durable.named(f"The vault file {self.file} could not be written"):
            durable.make_folder(self.file.parent)
            durable.create_file(self.file, self.data, mode=0o600)
        reach("setup.step")
        return self._done(Outcome.CREATED)

    def _done(self, outcome: Outcome) -> Done:
        detail = f"vault keys {', '.join(ids_in(self.data, self.file))}"
        return Done(step="vault-back", outcome=outcome, what=str(self.file), detail=detail)


@dataclass(frozen=True)
class DataBack:
    """The data folder as the state has it; the config server takes over when it begins with it."""

    data_dir: Path
    vault_file: Path
    found: Found

    async def look(self, dry_run: bool) -> Done:
        with durable.named(f"The data folder {self.data_dir} cannot be used"):
            if (self.data_dir / RESTORING).exists() or not (self.data_dir / DATABASE_FILE).exists():
                return self._done(Outcome.WOULD_CREATE)
            ours = _origin(self.data_dir)
            ca = CertificateAuthority.open(self.data_dir)
        is_its = ca.pem.strip() == self.found.content.folder["ca.pem"].decode().strip()
        if is_its and ours.recovered_from == self.found.origin:
            return self._done(Outcome.KEPT, f"it was put there by an earlier run ({ours.recovered_from})")
        said = self.found.said
        if is_its and ours.recovered_from and said is not None and said.holder == ours.ours.holder:
            return self._done(Outcome.KEPT, f"it is in force (generation {said.generation})")
        if is_its and ours.recovered_from and ours.ours.takes_over:
            more = f"; {ours.recovered_from}, which an earlier run has put there, was never in force, and goes aside"
            return self._done(Outcome.WOULD_CREATE, f"{self._told}{more}")
        since = f", of {ours.recovered_from}, and has been in force since" if ours.recovered_from else ""
        raise ConfigError(
            f"The data folder {self.data_dir} has a config server's data",
            cause=f"it is not the state that is shown above{since}: it may be newer than what is in storage",
            action="Start what is there (systemctl start understudy-config-server). Shall it give way: stop that, move the folder away, and"
            " run the command again.",
        )

    async def do(self) -> Done:
        config = ConfigServerConfig(data_dir=self.data_dir, vault_file=self.vault_file)
        found = self.found
        done = await asyncio.to_thread(
            lambda: restoring.restore_parts(
                config,
                found.content.folder,
                "The control state was not put back",
                recovered_from=found.origin,
                over=found.over,
            )
        )
        aside = f"; what was there is in {done.kept.aside}" if done.kept.aside is not None else ""
        void = f"{done.restored.tokens} unused enrolment tokens are void, {done.restored.commands} commands withdrawn"
        held = f"{done.restored.jobs} jobs and {done.restored.deletions} deletions wait for a person"
        return self._done(Outcome.CREATED, f"from {found.origin}{aside}; {void}, {held}")

    @property
    def _told(self) -> str:
        return f"CA, database and operator token of {self.found.origin}"

    def _done(self, outcome: Outcome, detail: str = "") -> Done:
        return Done(step="data-back", outcome=outcome, what=str(self.data_dir), detail=detail or self._told)


@dataclass(frozen=True)
class KeyNoted:
    """That there is a recovery key, and which keys are in it, as `init` notes it: so that it asks for none."""

    key: Path
    folder: Path
    vault_file: Path

    async def look(self, dry_run: bool) -> Done:
        handed = noted(self.folder / NOTE)
        return self._done(Outcome.WOULD_CREATE if handed is None else Outcome.KEPT)

    async def do(self) -> Done:
        note = Handed(file=str(self.key), keys=tuple(FileVault(self.key).fingerprints))
        with durable.named(f"The note {self.folder / NOTE} could not be written"), as_owner(self.folder):
            durable.replace_file(self.folder / NOTE, msgspec.json.encode(note), mode=0o600)
        return self._done(Outcome.CREATED)

    def _done(self, outcome: Outcome) -> Done:
        lacking = FileVault(self.vault_file).fingerprints.keys() - FileVault(self.key).fingerprints.keys()
        return Done(
            step="recovery-key",
            outcome=Outcome.WARNING if lacking and outcome is not Outcome.WOULD_CREATE else outcome,
            what=str(self.key),
            detail=f"it lacks vault key {', '.join(sorted(lacking))}; a copy of {self.vault_file} has all"
            if lacking
            else "",
            action=_AWAY,
        )


@dataclass(frozen=True)
class TookOver(Check):
    """Storage says that this one is in force."""

    config: BlobConfig
    data_dir: Path
    is_started: bool
    """By its unit; else it is somebody's to start."""

    async def look(self, dry_run: bool) -> Done:
        ours = _origin(self.data_dir)
        until_s = asyncio.get_running_loop().time() + _TAKES_S
        async with BlobStore.connect(self.config) as store:
            while True:
                try:
                    found = await generation.read(store.with_retry(_PATIENCE))
                except UnderstudyError as exc:
                    return self._done(Outcome.WARNING, str(exc))
                said = None if found is None else found[0]
                if said is not None and said.holder == ours.ours.holder:
                    return self._done(
                        Outcome.CHECKED, f"this config server is in force (generation {said.generation})"
                    )
                if not self.is_started:
                    return self._done(Outcome.TO_DO, "it takes over when it is started")
                is_later = (
                    ours.ours.over is not None and said is not None and said.generation > ours.ours.over
                )
                if said is not None and (is_later or not ours.ours.takes_over):
                    raise ServerSupersededError(
                        "This config server is not in force",
                        cause=f"the one on {said.host or 'another host'} has taken over since (generation {said.generation})",
                        action="Nothing, if that one runs. If it is gone, too: stop this one, move its data folder away, and run the"
                        " command again, which begins with what that one has kept in storage.",
                    )
                if asyncio.get_running_loop().time() > until_s:
                    return self._done(Outcome.WARNING, "it has not taken over yet: see its log")
                await asyncio.sleep(0.5)
                ours = _origin(self.data_dir)

    def _done(self, outcome: Outcome, detail: str) -> Done:
        return Done(step="in-force", outcome=outcome, what=generation.BLOB, detail=detail)


def _origin(folder: Path) -> Origin:
    """Raises DatabaseError."""
    with as_owner(folder):  # SQLite makes its log's files to read it, and they are the server's
        return origin_of(folder / DATABASE_FILE)
