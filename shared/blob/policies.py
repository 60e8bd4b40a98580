"""Stored access policies of a container, and the tokens under them: how somebody gets one container to read, for a while.
`BlobStore.policies`.

A shared access signature that names a policy carries nothing else that counts: what it permits, and until when, stands in the policy, in
storage. So a grant is made longer there, and ends at once when its policy goes. Azure knows five policies a container, and takes up to
half a minute until a new one counts everywhere.

Storage has no condition for changing them: a change is read, modify, write of all. Who changes them serialises that (`add` and
`remove` know nothing of each other), and `add` looks whether its policy stayed.
"""

from __future__ import annotations

import base64
import datetime as dt
import hmac
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import msgspec

from shared.blob.core import BlobCore
from shared.errors import TransientError

if TYPE_CHECKING:
    from azure.storage.blob import AccessPolicy

MOST: Final = 5
"""Azure's limit per container."""
SETTLES_S: Final = 30.0
"""So long a new policy may not count yet."""
_VERSION: Final = "2018-03-28"
"""The newest form of a token of which the signature says nothing of snapshots. In later ones Azurite expects the time of whichever
snapshot is read in it, so that a token of the SDK's, which uses the newest, opens none there; Azure takes both. What a request means is
said by the version in its own header.
"""
_PROTOCOL: Final = "https"
_READING: Final = "rl"
"""Read and list."""
_TRIES: Final = 5


class Policy(msgspec.Struct, frozen=True):
    id: str
    until: dt.datetime | None
    """None: without an end, or one that is not said here."""


class Policies:
    def __init__(self, core: BlobCore) -> None:
        self._core = core

    async def list(self) -> list[Policy]:
        """All policies of the container, also those that others made."""
        policies, _ = await self._read()
        return [Policy(id_, _until(policy)) for id_, policy in policies.items()]

    async def put(self, policy: str, until: dt.datetime, *, drop: Collection[str] = ()) -> None:
        """Makes the policy, for reading and listing only, or gives it another end; `drop` goes in the same step. One write of all: see the
        module.
        """
        from azure.storage.blob import AccessPolicy

        for _ in range(_TRIES):
            policies, access = await self._read()
            kept = {id_: found for id_, found in policies.items() if id_ not in drop}
            await self._write({**kept, policy: AccessPolicy(permission=_READING, expiry=until)}, access)
            there, _ = await self._read()
            if policy in there and kept.keys() <= there.keys():
                return
        raise TransientError(
            f"Could not keep policy {policy} of container {self._core.container.container_name}",
            cause="somebody else keeps changing the container's policies",
        )

    async def remove(self, policies: Collection[str]) -> None:
        """From then on tokens under them are refused. Harmless when they are gone already."""
        found, access = await self._read()
        if kept := found.keys() - set(policies):
            await self._write({id_: found[id_] for id_ in kept}, access)
        elif found:
            await self._write({}, access)

    async def _read(self) -> tuple[dict[str, AccessPolicy], Any]:
        got: dict[str, Any] = await self._core.call(
            f"read the policies of container {self._core.container.container_name}",
            self._core.container.get_container_access_policy,
        )
        return {str(one.id): one.access_policy for one in got["signed_identifiers"]}, got["public_access"]

    async def _write(self, policies: dict[str, AccessPolicy], access: Any) -> None:
        await self._core.call(
            f"change the policies of container {self._core.container.container_name}",
            lambda: self._core.container.set_container_access_policy(policies, public_access=access),
        )


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


def _until(policy: AccessPolicy | None) -> dt.datetime | None:
    expiry = getattr(policy, "expiry", None)
    if isinstance(expiry, dt.datetime):
        return expiry
    try:
        return None if not expiry else dt.datetime.fromisoformat(str(expiry))
    except ValueError:
        return None
