"""The order of a check: hops, the first request, what the account says, what may be done, and that all of it is gone again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

import msgspec

from shared.blob.check import asking, judging, rights
from shared.blob.check.findings import Aspect, Finding, Report, State, failed, ok, unknown, worst
from shared.blob.check.judging import Container
from shared.blob.check.reaching import reach
from shared.blob.check.rights import RIGHTS, Bench, Right
from shared.blob.check.scratch import BLOBS, Scratch, carried_out
from shared.blob.config import BlobConfig
from shared.blob.core import BlobCore, Retry
from shared.errors import TransientError, UnderstudyError

Findings = Iterable[Finding]
_DATA: Final = b"understudy: a check of this storage account. This may be deleted.\n"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long may be waited, in seconds. What is not answered in time ends the check."""

    hop_s: float = 5.0
    """For each of name, connection and TLS."""
    sign_in_s: float = 30.0
    """For the first request without a key: an identity is looked for first, in several places."""
    request: Retry = Retry(deadline_s=10.0, attempt_s=5.0)
    step_s: float = 20.0
    grant_s: float = 45.0
    """Azure takes up to half a minute until a new policy counts."""
    removal_s: float = 20.0


def _nobody(_: Finding) -> None:
    pass


async def check(
    config: BlobConfig,
    tell: Callable[[Finding], None] = _nobody,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> Report:
    """Checks the account that `config` names, and its vault container. `tell` hears of each finding as it is made.

    Cancelled, it first removes what it has made, and tells the finding of that. Raises UsageError for a configuration that cannot work.
    """
    running = _Check(config, tell, limits)
    await running.run()
    return running.report()


class _Check:
    def __init__(self, config: BlobConfig, tell: Callable[[Finding], None], limits: Limits) -> None:
        self._config = config
        self._tell = tell
        self._limits = limits
        self._told: dict[Aspect, Finding] = {}
        self._stopped_by: Aspect | None = None
        """What was not answered: nothing more is asked then."""

    def report(self) -> Report:
        findings = tuple(self._told[aspect] for aspect in Aspect)
        return Report(
            url=_place(self._config.url),
            account=self._config.account,
            container=self._config.container,
            state=worst(findings),
            findings=findings,
        )

    async def run(self) -> None:
        core = BlobCore.connect(self._config).with_retry(self._limits.request)
        try:
            if await self._reach():
                await self._ask(core)
        finally:
            await core.close()
        self._add(unknown(aspect, f"not looked at: {self._stopped_by} failed") for aspect in Aspect)

    def _add(self, findings: Findings) -> None:
        """Those of an aspect that has none yet."""
        for finding in findings:
            if finding.name not in self._told:
                self._told[finding.name] = finding
                self._tell(finding)

    async def _reach(self) -> bool:
        async for finding in reach(self._config, self._limits.hop_s):
            self._add([finding])
            if finding.state is State.ERROR:
                self._stopped_by = finding.name
                return False
        if urlsplit(self._config.url).scheme == "http":
            self._add([judging.not_encrypted()])
        return True

    async def _ask(self, core: BlobCore) -> None:
        with_key = self._config.account_key_file is not None
        sign_in_s = self._limits.sign_in_s
        patience = self._limits.request if with_key else Retry(deadline_s=sign_in_s, attempt_s=sign_in_s)
        first = await asking.first(core.with_retry(patience))
        self._add(judging.first_request(first.error, first.server, self._config, with_key=with_key))
        if first.server is not None:
            self._add([judging.clock(first.before_s, first.after_s, first.theirs_s)])
        if first.error is not None:
            self._stopped_by = judging.failed_hop(first.error)
            return
        scratch = Scratch(core, first.theirs_s if first.theirs_s is not None else time.time())
        try:
            await self._look(core)
            await self._try(scratch, first.container)
        finally:
            await self._remove(scratch)
        await self._look_back(core, scratch.store.container)

    async def _look(self, core: BlobCore) -> None:
        async def kind() -> Findings:
            return judging.account(*await asking.kind(core))

        async def soft_delete() -> Findings:
            return [judging.blob_soft_delete(*await asking.blob_soft_delete(core))]

        await self._step((Aspect.KIND, Aspect.NAMESPACE), kind, refused=State.UNKNOWN)
        await self._step((Aspect.BLOB_SOFT_DELETE,), soft_delete, refused=State.UNKNOWN)
        self._add([judging.lifecycle()])

    async def _try(self, scratch: Scratch, vault: Container | None) -> None:
        bench = Bench(self._config, scratch.core, scratch.store)
        containers = [vault] if vault is not None else []

        async def in_vault() -> Findings:
            await scratch.make_blob(_DATA)
            scratch.adopt_blobs({found.name: found.metadata async for found in scratch.vault.list(BLOBS)})
            return [
                ok(
                    Aspect.VAULT_CONTAINER,
                    f"{scratch.vault.container} is there; a blob was created in it and listed",
                )
            ]

        async def create_container() -> Findings:
            await scratch.make_container()
            containers.append(await asking.container(scratch.core))
            return [ok(Aspect.CREATE_CONTAINER, f"{scratch.store.container} was created")]

        async def list_containers() -> Findings:
            found = {name: metadata async for name, metadata in scratch.vault.list_containers(scratch.prefix)}
            scratch.adopt_containers(found)
            return [judging.listed(scratch.store.container, found)]

        async def versioning() -> Findings:
            return [judging.versioning(await rights.version(bench))]

        if (finding := judging.vault_container(scratch.vault.container, vault)) is not None:
            self._add([finding])
        else:
            await self._step((Aspect.VAULT_CONTAINER,), in_vault)
        await self._step((Aspect.CREATE_CONTAINER,), create_container)
        self._add(judging.containers(containers))
        await self._step((Aspect.LIST_CONTAINERS,), list_containers, needs=(Aspect.CREATE_CONTAINER,))
        if self._config.account_key_file is None:
            self._add([judging.no_key()])
        elif urlsplit(self._config.url).scheme == "http":
            self._add([unknown(Aspect.GRANT, "not tried: grants are for HTTPS only")])
        for right in RIGHTS:
            if right.aspect is Aspect.DELETE:
                await self._step(
                    (Aspect.VERSIONING,), versioning, needs=(Aspect.BLOCK_BLOB,), refused=State.UNKNOWN
                )
            if right.aspect not in self._told:
                await self._try_right(right, bench)

    async def _try_right(self, right: Right, bench: Bench) -> None:
        async def attempt() -> Findings:
            return [judging.tried(right.aspect, await right.attempt(bench), right.done)]

        limit_s = self._limits.grant_s if right.aspect is Aspect.GRANT else self._limits.step_s
        await self._step((right.aspect,), attempt, needs=right.needs, limit_s=limit_s)

    async def _remove(self, scratch: Scratch) -> None:
        async def bounded() -> None:
            with contextlib.suppress(TimeoutError):  # `left` says what that means
                async with asyncio.timeout(self._limits.removal_s):
                    await scratch.remove()

        try:
            await carried_out(bounded())
        finally:  # also when somebody does not wait for it
            self._add([judging.removal(scratch.left)])

    async def _look_back(self, core: BlobCore, container: str) -> None:
        async def kept() -> Findings:
            return [judging.container_soft_delete(await asking.kept_container(core, container))]

        needs = (Aspect.CREATE_CONTAINER, Aspect.REMOVAL)
        await self._step((Aspect.CONTAINER_SOFT_DELETE,), kept, needs=needs, refused=State.UNKNOWN)

    async def _step(
        self,
        aspects: tuple[Aspect, ...],
        work: Callable[[], Awaitable[Findings]],
        *,
        needs: tuple[Aspect, ...] = (),
        limit_s: float | None = None,
        refused: State = State.ERROR,
    ) -> None:
        """The findings of `work`, or why there are none. `refused`: what it means that storage does not let us."""
        if self._stopped_by is not None:
            return
        lacking = [need for need in needs if self._told[need].state is not State.OK]
        if lacking:
            self._add(unknown(aspect, f"not tried: {lacking[0]} did not work") for aspect in aspects)
            return
        limit_s = self._limits.step_s if limit_s is None else limit_s
        error: UnderstudyError
        try:
            async with asyncio.timeout(limit_s):
                self._add(await work())
            return
        except TimeoutError:
            error = TransientError(
                f"Could not finish {aspects[0]}", cause=f"it was not done within {limit_s:.0f} s"
            )
        except UnderstudyError as exc:
            error = exc
        if isinstance(error, TransientError):
            refused, self._stopped_by = State.ERROR, aspects[0]
        self._add(failed(aspect, error, refused) for aspect in aspects)


def _place(url: str) -> str:
    """Without what may be secret in it: a token, a password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
