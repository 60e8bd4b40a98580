"""What is asked of the account itself, and of its containers: requests → what the answers say. Nothing is changed by them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from shared.blob.answers import MisshapenError, time_in
from shared.blob.check.judging import Container
from shared.blob.core import BlobCore
from shared.errors import ContainerMissingError, StorageError

if TYPE_CHECKING:
    from azure.storage.blob import ContainerProperties


class First(msgspec.Struct, frozen=True):
    """What became of the first request to the account. Times are Unix seconds."""

    error: StorageError | None
    """None: the credentials are right, whether or not the container is there."""
    container: Container | None
    """None: it is not there."""
    server: str | None
    """What answered, in its own words; None: nothing did."""
    before_s: float
    after_s: float
    """By this host's clock: around the last attempt that was answered."""
    theirs_s: float | None
    """The date of that answer; None: it has none, or there was none."""


async def first(core: BlobCore) -> First:
    """Looks the container up: what every server of an installation must be able to do."""
    answers: list[Any] = []
    times = [0.0, 0.0]

    def answered(answer: Any) -> None:
        answers.append(answer)
        times[1] = time.time()

    async def attempt() -> ContainerProperties:
        times[0] = time.time()
        return await core.container.get_container_properties(raw_response_hook=answered)

    container: Container | None = None
    error: StorageError | None = None
    try:
        container = _container(
            core.container.container_name,
            await core.call(f"look up container {core.container.container_name}", attempt),
        )
    except ContainerMissingError:
        pass
    except StorageError as exc:
        error = exc
    try:
        theirs_s = time_in(answers, "Date").timestamp()
    except MisshapenError:
        theirs_s = None
    server = str(answers[-1].http_response.headers.get("Server", "")) if answers else None
    return First(error, container, server, times[0], times[1], theirs_s)


async def container(core: BlobCore) -> Container:
    name = core.container.container_name
    return _container(
        name, await core.call(f"look up container {name}", core.container.get_container_properties)
    )


def _container(name: str, found: ContainerProperties) -> Container:
    scope = found.encryption_scope
    return Container(
        name=name,
        public_access=found.public_access,
        has_immutability_policy=found.has_immutability_policy,
        has_legal_hold=found.has_legal_hold,
        has_immutable_versions=found.immutable_storage_with_versioning_enabled,
        encryption_scope=scope.default_encryption_scope if scope is not None else None,
    )


async def kind(core: BlobCore) -> tuple[str | None, str | None, bool | None]:
    """The account's kind, its SKU, and whether it has a hierarchical namespace; None: it is not said."""
    found: dict[str, Any] = await core.call("look up the account", core.service.get_account_information)
    return found.get("account_kind"), found.get("sku_name"), found.get("is_hns_enabled")


async def blob_soft_delete(core: BlobCore) -> tuple[bool, int | None]:
    """Whether it is on, and for how many days."""
    found: dict[str, Any] = await core.call(
        "look up the settings of blob storage", core.service.get_service_properties
    )
    policy = found["delete_retention_policy"]
    return bool(policy.enabled), policy.days


async def kept_container(core: BlobCore, name: str) -> tuple[bool, int | None] | None:
    """Of a container that was just deleted: whether it is kept, and for how many days. None: it is still listed as one that is there."""
    # Goes past the SDK's own listing, which leaves the days out.
    listed: Any = await core.call(
        f"look for the deleted container {name}",
        lambda: core.service._client.service.list_containers_segment(prefix=name, include=["deleted"]),
    )
    for item in listed.container_items or ():
        if item.name == name:
            return (True, item.properties.remaining_retention_days) if item.deleted else None
    return False, None
