"""What a check of a storage account found, in words and states. Pure."""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Final

import msgspec

from shared.errors import UnderstudyError


class State(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    """It works, and costs something that nobody may expect."""
    ERROR = "error"
    """Nothing can be built on it."""
    UNKNOWN = "unknown"
    """It could not be found out. Never the same as ok."""


_WORST_LAST: Final = (State.OK, State.UNKNOWN, State.WARNING, State.ERROR)


class Aspect(enum.StrEnum):
    """What is looked at, in this order. A check has one finding of each."""

    NAME = "name"
    CONNECTION = "connection"
    TLS = "tls"
    ACCOUNT = "account"
    CREDENTIALS = "credentials"
    CLOCK = "clock"
    KIND = "account-kind"
    NAMESPACE = "hierarchical-namespace"
    BLOB_SOFT_DELETE = "blob-soft-delete"
    LIFECYCLE = "lifecycle-rules"
    VAULT_CONTAINER = "vault-container"
    CREATE_CONTAINER = "create-container"
    IMMUTABILITY = "immutability"
    PUBLIC_ACCESS = "public-access"
    ENCRYPTION = "encryption-scope"
    LIST_CONTAINERS = "list-containers"
    BLOCK_BLOB = "block-blob"
    CREATE_ONCE = "create-once"
    COMPARE_AND_SWAP = "compare-and-swap"
    METADATA = "metadata"
    LIST = "list"
    LEASE = "lease"
    APPEND_BLOB = "append-blob"
    PAGE_BLOB = "page-blob"
    SNAPSHOT = "snapshot"
    COPY = "copy-of-snapshot"
    GRANT = "grant"
    VERSIONING = "versioning"
    DELETE = "delete"
    REMOVAL = "removal"
    CONTAINER_SOFT_DELETE = "container-soft-delete"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    name: Aspect
    state: State
    detail: str
    """What was seen, or why not."""
    action: str = ""
    """What to do about it; "" where nothing has to be done."""
    code: str = ""
    """Of the error that storage answered with, under which docs/operations.md has it."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The check of one account: one finding of each aspect, in their order."""

    url: str
    account: str
    container: str
    """The vault's."""
    state: State
    """The worst of all."""
    findings: tuple[Finding, ...]


def worst(findings: Collection[Finding]) -> State:
    return max((each.state for each in findings), key=_WORST_LAST.index, default=State.UNKNOWN)


def ok(name: Aspect, detail: str) -> Finding:
    return Finding(name=name, state=State.OK, detail=detail)


def warning(name: Aspect, detail: str, action: str) -> Finding:
    return Finding(name=name, state=State.WARNING, detail=detail, action=action)


def error(name: Aspect, detail: str, action: str) -> Finding:
    return Finding(name=name, state=State.ERROR, detail=detail, action=action)


def unknown(name: Aspect, detail: str, action: str = "") -> Finding:
    return Finding(name=name, state=State.UNKNOWN, detail=detail, action=action)


def failed(name: Aspect, exc: UnderstudyError, state: State = State.ERROR) -> Finding:
    """What storage, or the way to it, said."""
    return Finding(name=name, state=state, detail=exc.cause or exc.what, action=exc.action, code=exc.code)
