"""Storage access for commands that read points and logs: restore, verify.

Normally the config server grants it (and notes who asked). When it does not answer, or cannot, and the profile names vault and
storage, these serve instead: a disaster may have taken the config server too. With the vault file and the
account given as options, nothing else is needed at all (`Rescue`): storage describes itself.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from config_server.cli import versions
from config_server.cli.options import Target
from config_server.cli.output import say
from config_server.cli.profile import Rescue
from config_server.cli.rescue import HINT, is_of_the_user
from shared import api
from shared.api.jobs import JobProgress, JobState, JobView, WorkerState
from shared.api.keys import KeyRequest, MachineKeyGrant
from shared.api.points import FlushReply, FlushRequest
from shared.api.restores import GrantEnd, RestoreGrant, RestoreRequest, StorageGrant
from shared.api.route import Failure, Nothing
from shared.blob import BlobConfig, BlobStore, Retry
from shared.blob.policies import COUNTS_EVERYWHERE_S
from shared.errors import (
    GrantEndedError,
    KeyUnavailableError,
    PeerError,
    RestoreCancelledError,
    ServerOutdatedError,
    UnderstudyError,
    UnreachableError,
    WrongKeyError,
)
from shared.keys.sealing import MachineKey
from shared.keys.vault import FileVault, Vault, WrappedKey, key_document
from shared.log import names
from shared.machine.storage import MachineStorage

if TYPE_CHECKING:
    from shared.control.rest import RestClient


_END_S: Final = 3.0
"""What is said of an end is answered when the job has ended, or after so long, ..."""
_END_AGAIN_S: Final = (0.0, 1.0, 3.0, 6.0)
"""... and said so often, with these pauses before, ..."""
_END_MOST_S: Final = 20.0
"""... for so long at most."""
_TAKEN_S: Final = 10.0
"""When a new grant is made longer, whose first life is short; what is done sooner gives it back without having been."""


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
            granted = await _asked(self.client, machine, request)
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
        wait_s = min(_renew_after_s(life_s), _TAKEN_S)
        while True:
            await asyncio.sleep(wait_s)
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
            wait_s = _renew_after_s(life_s)

    async def tell(
        self,
        state: WorkerState,
        *,
        progress: float | None = None,
        detail: str = "",
        error: UnderstudyError | None = None,
        result: dict[str, Any] | None = None,
    ) -> JobView | None:
        """Report the job's progress: how the job is now, None where nobody says. A config server that dies meanwhile does not stop a
        restore. With an end, the answer waits a moment for the job to have ended, too; and how it ended is said again where nobody answers:
        a server may be restarting, and a job of which nothing is heard needs somebody."""
        if self.client is None or not self.job:
            return None
        failure = Failure(**error.as_dict(), exit_code=error.exit_code) if error else None
        body = JobProgress(state=state, progress=progress, detail=detail, error=failure, result=result)
        is_end = state is not WorkerState.RUNNING
        # Who was interrupted waits for nobody.
        pauses_s = _END_AGAIN_S if state in (WorkerState.DONE, WorkerState.FAILED) else (0.0,)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_MOST_S):
                for pause_s in pauses_s:
                    await asyncio.sleep(pause_s)
                    try:
                        return await self.client.call(
                            api.JOB_UPDATE, body, wait_s=_END_S if is_end else 0.0, id=self.job
                        )
                    except UnreachableError:
                        continue
                    except UnderstudyError:
                        break
        return None


def cancelled(job: JobView | None, machine: str) -> RestoreCancelledError | None:
    """Whether somebody has cancelled the job of the restore. That alone stops it: whatever else a config server says of a job, it may have
    lost its database, or its mind."""
    if job is None or not (job.cancelled_by or job.state is JobState.CANCELLED):
        return None
    who = job.cancelled_by or "somebody"
    return RestoreCancelledError(
        f"The restore of '{machine}' was cancelled", cause=f"{who} cancelled its job {job.id}"
    )


def _renew_after_s(life_s: float) -> float:
    return life_s / 2


class GrantedVault:
    """One machine's keys, as the config server grants them: the one that its document names came with the grant; others, of segments
    from before that was made anew, are asked for.
    """

    def __init__(self, machine: str, grant: MachineKeyGrant, client: RestClient) -> None:
        self._machine = machine
        self._wrapped = WrappedKey(grant.key_id, base64.b64decode(grant.wrapped))
        self._key = base64.b64decode(grant.key)
        self._client = client

    async def new_key(self, machine: str) -> MachineKey:
        raise WrongKeyError(f"No key of {machine} can be made", cause="a grant is for reading only")

    async def unwrap(self, wrapped: WrappedKey, machine: str) -> bytes:
        if machine != self._machine:
            raise WrongKeyError(
                f"The key of machine {machine} cannot be unwrapped",
                cause=f"the grant is for machine {self._machine}",
            )
        if wrapped == self._wrapped:
            return self._key
        try:
            request = KeyRequest(key_id=wrapped.key_id, wrapped=wrapped.wrapped)
            granted = await self._client.call(api.RESTORE_KEY, request, machine=machine)
        except PeerError as exc:
            raise KeyUnavailableError(
                f"A key of machine {machine} cannot be had",
                cause=f"the log was sealed with another one than {names.KEY_DOCUMENT} names, which vault key {wrapped.key_id}"
                f" wraps; {exc.cause or exc.what}",
                action="Run the same command again when the config server answers, or with the vault file: --vault-file FILE.",
            ) from exc
        return base64.b64decode(granted.key)


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
            grant = await _asked(client, machine, request)
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
            access = Access(store, GrantedVault(machine, grant.key, client), client, grant.job, grant.storage)
            keeping = asyncio.create_task(access.keep(machine), name="grant")
            try:
                yield access
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
                await _give_back(client, machine, grant.storage.id)


async def _asked(client: RestClient, machine: str, request: RestoreRequest) -> RestoreGrant:
    """Once more when no answer came from a server that is there: storage may be slow. Under the same id: not another grant. And once
    more without that id when the server is older than it."""
    request = msgspec.structs.replace(request, request=secrets.token_hex(16))
    try:
        return await _restored(client, machine, request)
    except ServerOutdatedError:
        return await _restored(client, machine, msgspec.structs.replace(request, request=""))
    except UnreachableError:
        if await versions.health(client) is None:
            raise
        return await _restored(client, machine, request)


async def _restored(client: RestClient, machine: str, request: RestoreRequest) -> RestoreGrant:
    return await versions.answered(client, client.call(api.RESTORE, request, machine=machine))


async def _give_back(client: RestClient, machine: str, grant: str) -> None:
    """Nobody needs it any more. When that does not work, it ends by itself."""
    if grant:
        with contextlib.suppress(UnderstudyError):
            await client.call(api.GRANT_END, GrantEnd(returned=True), machine=machine, id=grant)


def _granted(grant: StorageGrant) -> BlobStore:
    # The token stays in memory: whatever ends this process, it leaves no secret behind.
    store = BlobStore.connect(BlobConfig(url=grant.url), sas=grant.sas, ca_pem=grant.ca_pem)
    return store.with_retry(Retry(counts_at=time.monotonic() + COUNTS_EVERYWHERE_S))


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
