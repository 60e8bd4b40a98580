"""What storage's answers mean for whoever builds on it: answers → findings. Pure.

What an answer does not say is unknown. Facts: seed disks and their snapshots are page blobs; the index is an append blob; points and
their snapshots expire; each machine has a container of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from shared import moments
from shared.blob.check.findings import Aspect, Finding, error, failed, ok, unknown, warning
from shared.blob.config import BlobConfig
from shared.errors import (
    AccountMissingError,
    NotStorageError,
    StorageCertificateError,
    StorageError,
    StorageProtectedError,
    StorageRefusedError,
)

CLOCK_WARNING_S: Final = 5.0
CLOCK_ERROR_S: Final = 300.0
"""Storage itself refuses what is signed 15 minutes off; certificates and grants end by clocks, too."""

_ANOTHER: Final = "Make another account: standard general-purpose v2, without hierarchical namespace. Neither can be changed afterwards."
_STANDARD: Final = frozenset({"StorageV2", "Storage"})
_NO_PAGE_BLOBS: Final = {
    "BlockBlobStorage": "it is a premium account for block blobs",
    "BlobStorage": "it is a legacy account for block and append blobs",
    "FileStorage": "it is an account for file shares",
}
_NOT_STORAGE: Final = "Use Azure's own blob storage: whatever answers here does not keep what Azure promises."
_LOOK_IN_PORTAL: Final = "Look it up in the portal, or let an operator with a role on the account do so."


class Container(msgspec.Struct, frozen=True):
    """What storage says of a container. None: it does not say."""

    name: str
    public_access: str | None
    """`container` or `blob`. What storage leaves out here is private."""
    has_immutability_policy: bool | None
    has_legal_hold: bool | None
    has_immutable_versions: bool | None
    encryption_scope: str | None


def failed_hop(exc: StorageError) -> Aspect:
    """Which hop the first request to the account failed at; those before it were tried by themselves, unless a proxy is in between."""
    if isinstance(exc, StorageCertificateError):
        return Aspect.TLS
    elsewhere = NotStorageError | AccountMissingError | StorageProtectedError
    if isinstance(exc, StorageRefusedError) and not isinstance(exc, elsewhere):
        return Aspect.CREDENTIALS
    return Aspect.ACCOUNT


def not_encrypted() -> Finding:
    return error(
        Aspect.TLS,
        "http:// is not encrypted: seed disks would travel readable, and grants do not work",
        "Use the https:// URL of the account.",
    )


def first_request(
    exc: StorageError | None, server: str | None, config: BlobConfig, *, with_key: bool
) -> Iterator[Finding]:
    """What became of the first request to the account that `config` names. `server`: what answered, None if nothing did."""
    hop = None if exc is None else failed_hop(exc)
    if server is not None and hop is not Aspect.TLS and urlsplit(config.url).scheme == "https":
        # (Where TLS was looked at by itself, that finding stands.)
        yield ok(Aspect.TLS, "the account's certificate was accepted, through the proxy")
    if server is not None and hop in (None, Aspect.CREDENTIALS):
        yield ok(Aspect.ACCOUNT, f"{config.account} answers ({server or 'it does not say what it is'})")
    if exc is None:
        yield ok(Aspect.CREDENTIALS, f"{'the key' if with_key else 'the identity of this host'} is accepted")
    elif hop is not None:
        yield failed(hop, exc)


def clock(before_s: float, after_s: float, theirs_s: float | None) -> Finding:
    """This host's clock, which showed `before_s` when storage was asked and `after_s` when its answer had come, beside the answer's date
    (whole seconds). Judged by the least that they can be apart.
    """
    if theirs_s is None:
        return unknown(Aspect.CLOCK, "storage's answer has no date")
    apart_s = moments.apart_s(before_s, after_s, theirs_s)
    if apart_s == 0:
        within_s = max(theirs_s + 1.0 - before_s, after_s - theirs_s)
        return ok(Aspect.CLOCK, f"this host's clock agrees with storage's to within {within_s:.0f} s")
    direction = "ahead of" if apart_s > 0 else "behind"
    detail = f"this host's clock is {_span(abs(apart_s))} {direction} storage's"
    action = "Set it right (NTP: timedatectl, chronyc tracking)."
    if abs(apart_s) > CLOCK_ERROR_S:
        return error(Aspect.CLOCK, detail, f"{action} Storage refuses requests from 15 minutes on.")
    if abs(apart_s) > CLOCK_WARNING_S:
        return warning(Aspect.CLOCK, detail, action)
    return ok(Aspect.CLOCK, detail)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def account(kind: str | None, sku: str | None, hierarchical: bool | None) -> tuple[Finding, Finding]:
    """The account's kind (as `StorageV2`), its SKU (as `Standard_LRS`), and whether it has a hierarchical namespace."""
    return _kind(kind or "", sku or ""), _namespace(hierarchical)


def _kind(kind: str, sku: str) -> Finding:
    said = " ".join(word for word in (kind, sku) if word)
    if kind in _NO_PAGE_BLOBS:
        return error(Aspect.KIND, f"{said}: {_NO_PAGE_BLOBS[kind]}, and has no page blobs", _ANOTHER)
    if kind not in _STANDARD or not sku:
        return unknown(Aspect.KIND, f"storage calls it {said or 'nothing'}", _LOOK_IN_PORTAL)
    if sku.startswith("Premium"):
        detail = f"{said}: it is a premium account for page blobs, and has no block and append blobs"
        return error(Aspect.KIND, detail, _ANOTHER)
    return ok(Aspect.KIND, said)


def _namespace(hierarchical: bool | None) -> Finding:
    if hierarchical is None:
        return unknown(Aspect.NAMESPACE, "storage does not say", _LOOK_IN_PORTAL)
    if hierarchical:
        return error(Aspect.NAMESPACE, "the account has one, so it has no page blobs", _ANOTHER)
    return ok(Aspect.NAMESPACE, "the account has none")


def blob_soft_delete(enabled: bool, days: int | None) -> Finding:
    if not enabled:
        return ok(Aspect.BLOB_SOFT_DELETE, "off")
    kept = f"{days} days" if days is not None else "for a while"
    return warning(
        Aspect.BLOB_SOFT_DELETE,
        f"what is deleted or replaced is kept {kept}, and paid for: snapshots of points that expired among it",
        "Switch it off for this account, or count its cost in.",
    )


def container_soft_delete(seen: tuple[bool, int | None] | None) -> Finding:
    """Whether the container that the check deleted is kept, and for how many days. None: it was still there."""
    if seen is None:
        return unknown(
            Aspect.CONTAINER_SOFT_DELETE, "the container that was deleted is still listed", _LOOK_IN_PORTAL
        )
    kept, days = seen
    if not kept:
        return ok(Aspect.CONTAINER_SOFT_DELETE, "off: the check's container is gone")
    span = f"{days} days" if days is not None else "for a while"
    return warning(
        Aspect.CONTAINER_SOFT_DELETE,
        f"deleted containers are kept {span}, and paid for (the check's empty one, too)",
        "Nothing, if that is meant: it also brings a machine's container back that was deleted by mistake.",
    )


def versioning(version: str | None) -> Finding:
    """By the version that storage gave to a blob which was just written."""
    if version is None:
        return ok(Aspect.VERSIONING, "off")
    return warning(
        Aspect.VERSIONING,
        "on: each change of a seed disk's metadata makes a version of the disk, which is kept and paid for",
        "Switch versioning off for this account, or add a lifecycle rule that deletes previous versions alone.",
    )


def vault_container(name: str, found: Container | None) -> Finding | None:
    """What there is to say of the vault container before anything is tried in it; None: let it be tried."""
    if found is None:
        return ok(
            Aspect.VAULT_CONTAINER, f"{name} is not there: the first server makes it (the check does not)"
        )
    if any(has for has, _ in _holds(found)):
        detail = f"{name} is there; nothing was tried in it, since nothing could be deleted again"
        return unknown(Aspect.VAULT_CONTAINER, detail)
    return None


def listed(name: str, found: Collection[str]) -> Finding:
    if name in found:
        return ok(Aspect.LIST_CONTAINERS, "what was created is listed")
    return error(Aspect.LIST_CONTAINERS, f"container {name} was created, and is not listed", _NOT_STORAGE)


def tried(name: Aspect, wrong: str, done: str) -> Finding:
    """`wrong`: what storage did otherwise than it must; "" if nothing."""
    return error(name, wrong, _NOT_STORAGE) if wrong else ok(name, done)


def containers(found: Collection[Container]) -> tuple[Finding, Finding, Finding]:
    """What the vault container and a new one say of themselves."""
    return immutability(found), public_access(found), encryption(found)


def immutability(containers: Collection[Container]) -> Finding:
    held = [
        f"{each.name} has {' and '.join(words)}"
        for each in containers
        if (words := [word for has, word in _holds(each) if has])
    ]
    if held:
        return error(
            Aspect.IMMUTABILITY,
            f"{'; '.join(held)}: points could not expire, and documents not be replaced",
            "Take it off this account and container, or use another account.",
        )
    silent = [each.name for each in containers if None in (each.has_immutability_policy, each.has_legal_hold)]
    if silent or not containers:
        return unknown(
            Aspect.IMMUTABILITY, f"storage does not say it of {', '.join(silent) or 'any'}", _LOOK_IN_PORTAL
        )
    versions = [each.name for each in containers if each.has_immutable_versions]
    if versions:
        return warning(
            Aspect.IMMUTABILITY,
            f"none now, but {', '.join(versions)} may have policies by version (version-level immutability)",
            "See to it that no default policy is set on this account.",
        )
    return ok(
        Aspect.IMMUTABILITY, f"no policy and no legal hold on {', '.join(each.name for each in containers)}"
    )


def _holds(found: Container) -> tuple[tuple[bool | None, str], ...]:
    return (found.has_immutability_policy, "an immutability policy"), (found.has_legal_hold, "a legal hold")


def public_access(containers: Collection[Container]) -> Finding:
    public = [f"{each.name} ({each.public_access})" for each in containers if each.public_access]
    if public:
        return warning(
            Aspect.PUBLIC_ACCESS,
            f"anybody may read {', '.join(public)} without credentials",
            "Switch anonymous access off, for the container and for the account.",
        )
    if not containers:
        return unknown(Aspect.PUBLIC_ACCESS, "no container could be looked at")
    return ok(Aspect.PUBLIC_ACCESS, f"{', '.join(each.name for each in containers)}: private")


def encryption(containers: Collection[Container]) -> Finding:
    scopes = {each.name: each.encryption_scope for each in containers if each.encryption_scope}
    if not scopes:
        return unknown(Aspect.ENCRYPTION, "storage does not say which is the default")
    named = (
        f"{name}: {'the key of the account' if scope == '$account-encryption-key' else f'scope {scope}'}"
        for name, scope in scopes.items()
    )
    return ok(Aspect.ENCRYPTION, "; ".join(named))


def lifecycle() -> Finding:
    return unknown(
        Aspect.LIFECYCLE,
        "neither these nor point-in-time restore can be seen through blob storage",
        "See that no rule moves or deletes blobs of these containers: az storage account management-policy show.",
    )


def no_key() -> Finding:
    return warning(
        Aspect.GRANT,
        "without the account's key no grants can be handed out: they are signed with it, under a stored access policy",
        "Give the config server the account's key; or give whoever restores the role Storage Blob Data Reader.",
    )


def removal(left: Mapping[str, str]) -> Finding:
    """`left`: what the check made and could not take away, and why not."""
    if not left:
        return ok(Aspect.REMOVAL, "everything that the check had made is gone")
    named = "; ".join(f"{name} ({why})" for name, why in left.items())
    return error(Aspect.REMOVAL, f"still there: {named}", "Delete it: nothing needs it.")
