"""Stored access policies of a container, and the tokens under them: how somebody gets one container to read, for a while.
`BlobStore.policies`.

A shared access signature that names a policy carries nothing else that counts: what it permits, and until when, stands in the policy, in
storage. So a grant is made longer there, and ends at once when its policy goes. Azure knows five policies a container, and takes up to
half a minute until a new one counts everywhere.

A change is read, modify, write of all, on the condition that the container was not changed since it was read (If-Unmodified-Since), so
that a write that was held up on its way and lands late brings no policy back that was removed meanwhile. Storage counts these times in
whole seconds. So nothing is written before a later second than that of the last change has begun (by storage's own Date): then
every write gets a later time than the one it was conditioned on, and of two writes that were read from one state the second is
refused, whoever sends them, in whatever order they land. Whoever is refused reads again; that includes a repeated write whose first answer
was lost. A change of the container's metadata counts as a change, too: one more turn.

A container's policies are written all at once, so those that others made go through here, too. They may have any form that storage
takes (a date without a time, a time without a zone, no end), and are written as they were read.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hmac
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import msgspec

from shared.blob.answers import time_in
from shared.blob.core import BlobCore
from shared.errors import GrantLimitError, PreconditionError, TransientError

if TYPE_CHECKING:
    from azure.storage.blob import AccessPolicy

MOST: Final = 5
"""Azure's limit per container."""
COUNTS_EVERYWHERE_S: Final = 30.0
"""So long a new policy may not count yet."""
_VERSION: Final = "2018-03-28"
"""The newest form of a token of which the signature says nothing of snapshots. In later ones Azurite expects the time of whichever
snapshot is read in it, so that a token of the SDK's, which uses the newest, opens none there; Azure takes both. What a request means is
said by the version in its own header.
"""
_PROTOCOL: Final = "https"
_READING: Final = "rl"
"""Read and list."""
_TRIES: Final = 8
_LOOK_S: Final = 0.25
_LOOKS: Final = 20
"""For a second that takes one."""


class Policy(msgspec.Struct, frozen=True):
    id: str
    until: dt.datetime | None
    """Always with a zone. None: without an end, or one that is not said here."""


class Look(msgspec.Struct, frozen=True):
    policies: list[Policy]
    date: dt.datetime
    """Storage's clock, by which they end."""


class _Read(msgspec.Struct, frozen=True):
    policies: dict[str, AccessPolicy | None]
    access: Any
    """Whether the container is public: goes with the policies."""
    changed: dt.datetime
    date: dt.datetime

    @property
    def may_change(self) -> bool:
        """Whether the second of the last change is over."""
        return self.date > self.changed


class Policies:
    def __init__(self, core: BlobCore) -> None:
        self._core = core

    async def list(self) -> list[Policy]:
        """All policies of the container, also those that others made."""
        return (await self.look()).policies

    async def look(self) -> Look:
        """The same, and what time it is there."""
        read = await self._read()
        return Look([Policy(id_, _until(policy)) for id_, policy in read.policies.items()], read.date)

    async def put(self, policy: str, until: dt.datetime, *, drop: Collection[str] = ()) -> None:
        """Makes the policy, for reading and listing only, or gives it another end; `drop` goes in the same step. Raises GrantLimitError."""
        from azure.storage.blob import AccessPolicy

        new = AccessPolicy(permission=_READING, expiry=until)
        await self._change(lambda found: {**_without(found, drop), policy: new})

    async def remove(self, policies: Collection[str]) -> None:
        """From then on tokens under them are refused. Harmless when they are gone already."""
        await self._change(lambda found: _without(found, policies))

    async def _change(
        self, changed: Callable[[dict[str, AccessPolicy | None]], dict[str, AccessPolicy | None]]
    ) -> None:
        """The argument is in the module's docstring. That nothing is to be removed is written, too: a write of before that is still on
        its way is refused from then on.
        """
        for _ in range(_TRIES):
            read = await self._changeable()
            wanted = changed(read.policies)
            if len(wanted) > MOST:
                raise GrantLimitError(
                    f"Could not change the policies of container {self._core.container.container_name}",
                    cause=f"it takes {MOST}, and has: {', '.join(read.policies)}",
                )
            try:
                await self._write(wanted, read)
            except PreconditionError:
                continue
            return
        raise TransientError(
            f"Could not change the policies of container {self._core.container.container_name}",
            cause="somebody else keeps changing them",
        )

    async def _changeable(self) -> _Read:
        """The policies, in a later second of storage's than they were changed in."""
        for _ in range(_LOOKS):
            read = await self._read()
            if read.may_change:
                return read
            await asyncio.sleep(_LOOK_S)
        raise TransientError(
            f"Could not change the policies of container {self._core.container.container_name}",
            cause=f"storage's clock does not go on: it says {read.date}, and its last change was {read.changed}",
        )

    async def _read(self) -> _Read:
        async def attempt() -> tuple[dict[str, Any], dt.datetime]:
            answers: list[Any] = []
            found: dict[str, Any] = await self._core.container.get_container_access_policy(
                raw_response_hook=answers.append
            )
            return found, time_in(answers, "Last-Modified")

        got, changed = await self._core.call(
            f"read the policies of container {self._core.container.container_name}", attempt
        )
        policies = {str(one.id): _as_found(one.access_policy) for one in got["signed_identifiers"]}
        # Asked apart, and afterwards: in the answer to the read Azurite calls the time of the last change the date.
        return _Read(policies, got["public_access"], changed, await self._core.date())

    async def _write(self, policies: dict[str, AccessPolicy | None], read: _Read) -> None:
        await self._core.call(
            f"change the policies of container {self._core.container.container_name}",
            lambda: self._core.container.set_container_access_policy(
                policies,  # type: ignore[arg-type]  # it takes those without content, too
                public_access=read.access,
                if_unmodified_since=read.changed,
            ),
        )


def _without(found: dict[str, AccessPolicy | None], drop: Collection[str]) -> dict[str, AccessPolicy | None]:
    return {id_: policy for id_, policy in found.items() if id_ not in drop}


def token(account: str, key: str, container: str, policy: str) -> str:
    """The token under a policy: a secret. Always the same for the same policy, and only over HTTPS."""
    identity = [
        "",
        "",
        "",
        f"/blob/{account}/{container}",
        policy,
        "",
        _PROTOCOL,
        _VERSION,
        "",
        "",
        "",
        "",
        "",
    ]
    digest = hmac.digest(base64.b64decode(key), "\n".join(identity).encode(), "sha256")
    signature = base64.b64encode(digest).decode()
    return urlencode({"sv": _VERSION, "sr": "c", "si": policy, "spr": _PROTOCOL, "sig": signature})


def _as_found(policy: AccessPolicy | None) -> AccessPolicy | None:
    """The same, so that the SDK writes its times as they are. It would read them and write them in a form of its own, and fail on those
    that it cannot read, although storage can; but it lets a policy be that is false.
    """
    from azure.storage.blob import AccessPolicy

    class AsFound(AccessPolicy):
        def __bool__(self) -> bool:
            return False

    return None if policy is None else AsFound(policy.permission, policy.expiry, policy.start)


def _until(policy: AccessPolicy | None) -> dt.datetime | None:
    expiry = getattr(policy, "expiry", None)
    try:
        found = expiry if isinstance(expiry, dt.datetime) else dt.datetime.fromisoformat(str(expiry))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=dt.UTC)
