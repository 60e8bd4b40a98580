"""Storage access for commands that read points and logs: restore, verify.

Normally the config server grants it (and notes who asked). When it does not answer, or cannot, and the profile names vault and
storage, these serve instead: a disaster may have taken the config server too. With the vault file and the
account given as options, nothing else is needed at all (`Rescue`): storage describes itself.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from config_server.cli.options import Target
from config_server.cli.output import say
from config_server.cli.profile import Rescue
from config_server.cli.rescue import HINT, is_of_the_user
from shared import api
from shared.blob import BlobConfig, BlobStore, Retry
from shared.blob.policies import SETTLES_S
from shared.errors import GrantEndedError, UnderstudyError, WrongKeyError
from shared.machine_storage import MachineStorage
from shared.messages import (
    Failure,
    FlushReply,
    FlushRequest,
    GrantEnd,
    JobProgress,
    JobState,
    MachineKeyGrant,
    Nothing,
    RestoreRequest,
    StorageGrant,
)
from shared.sealing import MachineKey
from shared.vault import FileVault, Vault, WrappedKey, key_document

if TYPE_CHECKING:
    from shared.rest import RestClient


@dataclass(frozen=True)
class Access:
    """Open storage, keys, and the job under which progress is told (None without a config server)."""

    store: BlobStore
    vault: Vault
    client: RestClient | None
    job: str
    grant: StorageGrant | None = None

    async def flush(self, machine: str, wait_s: float) -> FlushReply | None:
        """Have the process servers upload what they hold; None when nobody can be asked."""
        if self.client is None:
            return None
        try:
            return await self.client.call(api.FLUSH, FlushRequest(wait_s=wait_s), machine=machine)
        except UnderstudyError as exc:
            say(f"The process servers could not be asked to upload what they hold: {exc}")
            return None

    async def begin(self, request: RestoreRequest, machine: str) -> Access:
        """From here on there is a job, if there is a config server."""
        if self.client is None:
            return self
        if self.grant is not None:
            request = msgspec.structs.replace(request, grant=self.grant.id)
        try:
            granted = await self.client.call(api.RESTORE, request, machine=machine)
        except UnderstudyError as exc:
            if is_of_the_user(exc):
                raise
            say(f"The config server will not show this restore as a job: {exc}")
            return self
        return replace(self, job=granted.job)

    async def keep(self, machine: str) -> None:
        """Has the grant live on for as long as this runs. What it cannot, it tells, once; the grant serves to its end."""
        if self.client is None or self.grant is None or not self.grant.id:
            return
        life_s, told = self.grant.life_s, False
        while True:
            await asyncio.sleep(life_s / 2)
            try:
                renewed = await self.client.call(
                    api.GRANT_RENEW, Nothing(), machine=machine, id=self.grant.id
                )
            except GrantEndedError as exc:
                say(f"{exc}")
                return
            except UnderstudyError as exc:
                life_s = max(life_s / 2, 2.0)
                if not told:
                    say(
                        f"The grant to read storage was not renewed, and will be over in {life_s:.0f} s: {exc}"
                    )
                told = True
            else:
                life_s, told = renewed.life_s, False

    async def tell(
        self,
        state: str,
        *,
        progress: float | None = None,
        detail: str = "",
        error: UnderstudyError | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        """Report the job's progress. A config server that dies meanwhile does not stop a restore."""
        if self.client is None or not self.job:
            return
        failure = Failure(**error.as_dict(), exit_code=error.exit_code) if error else None
        body = JobProgress(
            state=JobState(state), progress=progress, detail=detail, error=failure, result=result
        )
        with contextlib.suppress(UnderstudyError):
            await self.client.call(api.JOB_UPDATE, body, id=self.job)


class GrantedVault:
    """One machine's key, as the config server granted it."""

    def __init__(self, machine: str, grant: MachineKeyGrant) -> None:
        self._machine = machine
        self._wrapped = WrappedKey(grant.key_id, base64.b64decode(grant.wrapped))
        self._key = base64.b64decode(grant.key)

    async def new_key(self, machine: str) -> MachineKey:
        raise WrongKeyError(f"No key of {machine} can be made", cause="a grant is for reading only")

    async def unwrap(self, wrapped: WrappedKey, machine: str) -> bytes:
        if machine != self._machine or wrapped != self._wrapped:
            raise WrongKeyError(
                f"The key of machine {machine} cannot be unwrapped",
                cause=f"it was wrapped by vault key {wrapped.key_id} in another way than the granted one",
                action="Restore with the vault file: --vault-file FILE.",
            )
        return self._key


@asynccontextmanager
async def opened(find: Target | Rescue, machine: str, request: RestoreRequest) -> AsyncIterator[Access]:
    """Access to the machine's storage. Raises what the config server answers, PeerError, StorageError,
    UsageError."""
    if isinstance(find, Rescue):
        async with _rescued(find, machine) as access:
            yield access
        return
    async with find.connect() as client:
        try:
            grant = await client.call(api.RESTORE, request, machine=machine)
        except UnderstudyError as exc:
            if is_of_the_user(exc):
                raise
            if find.rescue is None:
                # Its own class keeps the code; the words are for the worst day.
                raise type(exc)(exc.what, cause=exc.cause, action=f"{exc.action} {HINT}".strip()) from exc
            say(
                f"The config server is of no help ({exc.cause or exc.what}): using the vault and the storage key of the profile."
            )
            async with _rescued(find.rescue, machine) as access:
                yield access
            return
        async with _granted(grant.storage) as account:
            store = account.in_container(grant.storage.container)
            access = Access(store, GrantedVault(machine, grant.key), client, grant.job, grant.storage)
            keeping = asyncio.create_task(access.keep(machine), name="grant")
            try:
                yield access
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
                await _give_back(client, machine, grant.storage.id)


async def _give_back(client: RestClient, machine: str, grant: str) -> None:
    """Nobody needs it any more. When that does not work, it ends by itself."""
    if grant:
        with contextlib.suppress(UnderstudyError):
            await client.call(api.GRANT_END, GrantEnd(returned=True), machine=machine, id=grant)


def _granted(grant: StorageGrant) -> BlobStore:
    # The token stays in memory: whatever ends this process, it leaves no secret behind.
    store = BlobStore.connect(BlobConfig(url=grant.url), sas=grant.sas, ca_pem=grant.ca_pem)
    return store.with_retry(Retry(settled_at=time.monotonic() + SETTLES_S))


@asynccontextmanager
async def _rescued(rescue: Rescue, machine: str) -> AsyncIterator[Access]:
    async with MachineStorage.connect(rescue.blob) as storage:
        store, vault = await storage.find(machine), FileVault(rescue.vault_file)
        await _warn_of_vault(vault, store, machine)
        yield Access(store, vault, None, "")


async def _warn_of_vault(vault: FileVault, store: BlobStore, machine: str) -> None:
    """A wrong file is told before anything is downloaded. It ends nothing: an older point may be sealed under a key that the file has."""
    try:
        needed = (await key_document(store, machine)).key_id
    except UnderstudyError:
        return  # the log's segments hold the key, too
    if needed not in vault.fingerprints:
        say(
            f"What {machine} writes now needs vault key {needed}, and {vault.path} holds {', '.join(vault.fingerprints)}:"
            " look for the backup of the vault file that has it."
        )
