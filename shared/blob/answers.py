"""Foreign errors made ours: what storage, the SDK and the network answer, by name.

The class of an error says what becomes of the request, here and nowhere else:

| kind         | class                                       | the request layer (core.py)                        |
|--------------|---------------------------------------------|----------------------------------------------------|
| passing      | TransientError                              | repeats it until its deadline                      |
| throttled    | ThrottledError                              | the same, when storage says, and fewer at a time   |
| for somebody | StorageRefusedError and its subclasses      | raises it; patient stores go on, slowly, and report|
| condition    | exists, not found, precondition, lease      | raises it: an answer, which callers act upon       |
| permanent    | StorageRequestError                         | raises it: repeating cannot help                   |

Azure's code decides; the HTTP status only where a code is not known, since one status says many things (409: exists, lease held,
throttled, public access refused). A 404, 409 or 412 counts only if blob storage said it, which each of its answers shows by a header: that
a captive portal does not find a blob must never become "storage has lost it", nor its refusal "storage did not do it": of each error
`StorageError.is_refusal` tells whether storage said that.

Messages name operation, blob, HTTP status and Azure's error code; never a header, a key or a signed URL.
"""

from __future__ import annotations

import datetime as dt
import re
import socket
import ssl
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from shared.blob.config import BlobConfig
from shared.errors import (
    AccountMissingError,
    BlobExistsError,
    BlobNotFoundError,
    ContainerMissingError,
    LeaseHeldError,
    LeaseLostError,
    NotStorageError,
    PreconditionError,
    PublicAccessRefusedError,
    RangeError,
    StorageCertificateError,
    StorageClockError,
    StorageError,
    StorageIdentityError,
    StorageKeyError,
    StorageProtectedError,
    StorageRefusedError,
    StorageRequestError,
    StorageRightsError,
    StorageRoleError,
    ThrottledError,
    TransientError,
)
from shared.http.clock_evidence import Fault, Verdict
from shared.http.proxies import Proxy
from shared.trust import tls

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_RETRY_AFTER_S: Final = 60.0
"""Storage that asks for a longer pause is asked again all the same: one answer must not silence a server for an hour."""
_SKEW_S: Final = 5 * 60.0
"""A refusal beside clocks so far apart is theirs. (Storage itself refuses from 15 minutes on.)"""

_QUERY: Final = re.compile(r"(?<=[\w/])\?[^\s'\")]+")
"""Of a URL, as aiohttp puts it into some messages: it may hold a token."""

_LEASED: Final = "somebody else holds its lease"
_LAPSED: Final = "the lease has expired or was broken"
_BROKEN: Final = "the lease was broken by a newer owner"

BY_CODE: Final[dict[str, tuple[type[StorageError], str]]] = {
    # passing
    "ContainerBeingDeleted": (TransientError, "a container of this name is being deleted"),
    "AccountBeingCreated": (TransientError, "the storage account is still being made"),
    "Md5Mismatch": (TransientError, "the data arrived damaged"),
    "Crc64Mismatch": (TransientError, "the data arrived damaged"),
    "InternalError": (TransientError, "storage failed inside"),
    "SystemInUse": (TransientError, "storage is occupied"),
    "PendingCopyOperation": (TransientError, "a copy into this blob is under way"),
    "BlobModifiedWhileReading": (TransientError, "somebody wrote to it meanwhile"),
    # throttled
    "ServerBusy": (ThrottledError, "storage is busy"),
    "OperationTimedOut": (ThrottledError, "storage did not finish in time"),
    "TooManyRequests": (ThrottledError, "too many requests"),
    "SnapshotOperationRateExceeded": (ThrottledError, "too many snapshots of this blob in a short time"),
    "AccountIOPSLimitExceeded": (ThrottledError, "the account's limit of requests is reached"),
    # condition
    "BlobAlreadyExists": (BlobExistsError, "a blob of this name exists already"),
    "ContainerAlreadyExists": (BlobExistsError, "the container exists already"),
    "ResourceAlreadyExists": (BlobExistsError, "it exists already"),
    "BlobNotFound": (BlobNotFoundError, "there is no such blob"),
    "ConditionNotMet": (PreconditionError, "it has changed"),
    "AppendPositionConditionNotMet": (PreconditionError, "it has another length"),
    "MaxBlobSizeConditionNotMet": (PreconditionError, "it has another length"),
    "SequenceNumberConditionNotMet": (PreconditionError, "it has another sequence number"),
    "TargetConditionNotMet": (PreconditionError, "it has changed"),
    "InvalidRange": (RangeError, "the range is behind its end"),
    "InvalidPageRange": (RangeError, "the pages are behind its end"),
    "LeaseAlreadyPresent": (LeaseHeldError, _LEASED),
    "LeaseIsBreakingAndCannotBeAcquired": (LeaseHeldError, "its lease is being broken"),
    "LeaseIdMissing": (LeaseHeldError, _LEASED),
    "LeaseIdMismatchWithBlobOperation": (LeaseLostError, _LEASED),
    "LeaseIdMismatchWithLeaseOperation": (LeaseLostError, _LEASED),
    "LeaseAlreadyBroken": (LeaseLostError, _BROKEN),
    "LeaseIsBrokenAndCannotBeRenewed": (LeaseLostError, _BROKEN),
    "LeaseIsBreakingAndCannotBeChanged": (LeaseLostError, _BROKEN),
    "LeaseLost": (LeaseLostError, _LAPSED),
    "LeaseNotPresentWithBlobOperation": (LeaseLostError, _LAPSED),
    "LeaseNotPresentWithLeaseOperation": (LeaseLostError, _LAPSED),
    # for the operator
    "AuthenticationFailed": (StorageKeyError, "the storage account does not accept the key"),
    "InvalidAuthenticationInfo": (StorageKeyError, "the storage account does not accept the credentials"),
    "KeyBasedAuthenticationNotPermitted": (StorageRightsError, "the account refuses shared keys"),
    "AuthorizationFailure": (StorageRightsError, "the account's network rules or its roles do not admit us"),
    "AuthorizationPermissionMismatch": (StorageRoleError, "this identity's role does not include it"),
    "AuthorizationProtocolMismatch": (StorageRightsError, "the grant is for another protocol"),
    "AuthorizationResourceTypeMismatch": (StorageRightsError, "the grant does not include it"),
    "AuthorizationServiceMismatch": (StorageRightsError, "the grant does not include blob storage"),
    "AuthorizationSourceIPMismatch": (StorageRightsError, "this host's address is not admitted"),
    "InsufficientAccountPermissions": (StorageRightsError, "the account does not permit it"),
    "UnauthorizedBlobOverwrite": (StorageRightsError, "the grant does not include overwriting"),
    "NoAuthenticationInformation": (PublicAccessRefusedError, ""),
    "PublicAccessNotPermitted": (PublicAccessRefusedError, ""),
    "ContainerNotFound": (ContainerMissingError, ""),
    "ContainerDisabled": (ContainerMissingError, "the container is disabled"),
    "ResourceNotFound": (AccountMissingError, "there is no such storage account or container"),
    "AccountIsDisabled": (AccountMissingError, "the storage account is disabled"),
    "AccountNotFound": (AccountMissingError, "there is no such storage account"),
    "BlobImmutableDueToPolicy": (StorageProtectedError, "the blob is immutable by a policy of the account"),
    "BlobImmutableDueToLegalHold": (StorageProtectedError, "the blob is under a legal hold"),
    "BlobArchived": (StorageProtectedError, "the blob was moved to the archive tier"),
    "BlobBeingRehydrated": (StorageProtectedError, "the blob is being brought back from the archive tier"),
    "BlobUsesCustomerSpecifiedEncryption": (
        StorageProtectedError,
        "the blob is encrypted with a foreign key",
    ),
    "FeatureNotSupportedForAccount": (StorageProtectedError, "this kind of account cannot do it"),
    "BlobTypeNotSupported": (StorageProtectedError, "this kind of account has no such blobs"),
    "BlobTypeNotSupportedForAccount": (StorageProtectedError, "this kind of account has no such blobs"),
    "KeyVaultEncryptionKeyNotFound": (StorageProtectedError, "the account's encryption key is gone"),
    "KeyVaultEncryptionKeyDisabled": (StorageProtectedError, "the account's encryption key is disabled"),
    "KeyVaultAccessTokenCannotBeAcquired": (
        StorageProtectedError,
        "the account cannot reach its encryption key",
    ),
    "KeyVaultVaultNotFound": (StorageProtectedError, "the vault of the account's encryption key is gone"),
    # permanent
    "BlockCountExceedsLimit": (StorageRequestError, "the append blob is full"),
    "SnapshotCountExceeded": (StorageRequestError, "the blob has as many snapshots as it can have"),
    "InvalidBlobType": (StorageRequestError, "the blob is of another type"),
    "RequestBodyTooLarge": (StorageRequestError, "the request is larger than storage takes"),
}

_TURNED_AWAY: Final = frozenset({"ServerBusy", "TooManyRequests"})
"""What passes, and is said before anything is begun. (OperationTimedOut, which is a 500 or a 503, may be said of what is done.)"""

GATEWAY_STATUS: Final = frozenset({407, 408, 429, 500, 502, 503, 504})
"""What gateways and proxies may say in storage's place about the way to it."""


class ForeignAnswerError(Exception):
    """An answer that did not come from blob storage. (Not for people: `translate` makes it ours.)"""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status: Final = status


class MisshapenError(Exception):
    """An answer of storage that lacks what it must have: a body that was cut short, a header."""


def place(config: BlobConfig, proxy: Proxy | None) -> str:
    """Where storage is, and how it is reached: for people."""
    where = f"storage account {config.account} at {urlsplit(config.url).netloc}"
    return where if proxy is None else f"{where} through {proxy}"


def translate(what: str, exc: Exception, config: BlobConfig, proxy: Proxy | None = None) -> StorageError:
    """Our error for one of the SDK's or the network's, on the way to `config`, through `proxy` if there is one."""
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

    where = place(config, proxy)
    if isinstance(exc, HttpResponseError) and exc.response is not None and (exc.status_code or 0) >= 300:
        headers: Mapping[str, str] = exc.response.headers  # type: ignore[attr-defined]
        error = _of_answer(what, exc.status_code or 0, headers, str(exc.message), where)
        error.is_refusal = not isinstance(error, TransientError) or _is_turned_away(exc.status_code, headers)
        return error
    if (refused := _proxy_status(exc)) is not None:
        return _of_proxy(what, refused, where)
    if isinstance(exc, ClientAuthenticationError):
        return StorageIdentityError(what, cause=f"no Azure credential worked for {where}")
    for inner in _chain(exc):
        if isinstance(inner, ForeignAnswerError):
            return _of_foreign(what, inner.status, where)
        if type(inner) is ssl.SSLCertVerificationError:
            return StorageCertificateError(
                what, cause=f"the certificate of {where} is not trusted: {inner.verify_message}"
            )
        if isinstance(inner, socket.gaierror) and inner.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            named = str(proxy) if proxy is not None else urlsplit(config.url).hostname
            return AccountMissingError(what, cause=f"DNS does not know {named} ({where})")
    inner = _chain(exc)[-1]
    said = _QUERY.sub("?…", str(inner))
    if isinstance(exc, HttpResponseError | MisshapenError | ValueError):
        return TransientError(what, cause=f"{where} gave an answer that is not whole ({said})")
    return TransientError(what, cause=f"{where} does not answer ({said or type(inner).__name__})")


def is_matter_of_time(exc: Exception) -> bool:
    """Whether storage's certificate seems expired, or not valid yet."""
    return any(
        type(inner) is ssl.SSLCertVerificationError and tls.is_matter_of_time(inner) for inner in _chain(exc)
    )


def judged(error: StorageError, where: str, verdict: Verdict) -> StorageError:
    """What `translate` made of such a certificate, with whose fault it is."""
    kind = StorageClockError if verdict.fault is Fault.CLOCK else StorageCertificateError
    return kind(
        error.what,
        cause=f"the certificate of {where} is not valid at this time: {verdict.cause}",
        action=verdict.action,
    )


def _of_answer(what: str, status: int, headers: Mapping[str, str], said: str, where: str) -> StorageError:
    code = headers.get("x-ms-error-code", "")
    if code == "AuthorizationFailure" and "failed to authenticate" in said:
        code = "AuthenticationFailed"  # what Azurite calls so, while Azure means network rules by the former
    answered = f"{where} answered HTTP {status} {code}".rstrip()
    kind, cause = BY_CODE.get(code) or (_by_status(status), "")
    if issubclass(kind, ThrottledError):
        pause_s = _retry_after_s(headers)
        asked = f", asks for {pause_s:.0f} s" if pause_s else ""
        return kind(what, cause=f"{answered}{asked}", retry_after_s=pause_s)
    if kind is StorageKeyError and (skewed := _clock(headers, said)):
        return StorageClockError(what, cause=f"{skewed} ({answered})")
    if issubclass(kind, BlobExistsError | BlobNotFoundError | LeaseHeldError | LeaseLostError):
        return kind(what, cause=cause or f"({answered})")
    if issubclass(kind, PreconditionError):
        return kind(what, cause=f"it is not as expected ({code or status})")
    cause = cause or kind.default_cause
    return kind(what, cause=f"{cause} ({answered})" if cause else answered)


def _is_turned_away(status: int | None, headers: Mapping[str, str]) -> bool:
    return status == 429 or headers.get("x-ms-error-code", "") in _TURNED_AWAY


def _by_status(status: int) -> type[StorageError]:
    if status == 404:
        return BlobNotFoundError
    if status == 416:
        return RangeError
    if status in (304, 412):
        return PreconditionError
    if status in (401, 403):
        return StorageRefusedError
    if status in (429, 503):
        return ThrottledError
    return TransientError if status == 408 or status >= 500 else StorageRequestError


def _of_foreign(what: str, status: int, where: str) -> StorageError:
    cause = f"on the way to {where} something that is not blob storage answered HTTP {status}"
    if status in (429, 503):
        return ThrottledError(what, cause=cause)
    if status in GATEWAY_STATUS and status != 407:
        return TransientError(what, cause=cause)
    return NotStorageError(what, cause=cause)


def _of_proxy(what: str, status: int, where: str) -> StorageError:
    cause = f"the proxy on the way to {where} answered HTTP {status}"
    if status >= 500:
        return TransientError(what, cause=cause)
    return NotStorageError(
        what,
        cause=cause,
        action="Let the proxy admit this host to the account, correct the proxy's URL, or name the account in NO_PROXY.",
    )


def _clock(headers: Mapping[str, str], said: str) -> str:
    """Why a refused signature is a matter of clocks; "" if it is not."""
    skew_s = 0.0
    if (theirs := _date(headers.get("Date", ""))) is not None:
        skew_s = (dt.datetime.now(dt.UTC) - theirs).total_seconds()
    if abs(skew_s) >= _SKEW_S:
        return f"this host's clock is {abs(skew_s) / 60:.0f} minutes {'ahead of' if skew_s > 0 else 'behind'} storage's"
    if "date header too old" in said or "specified time frame" in said:
        return "storage says that the request's time is too far from its own"
    return ""


def _retry_after_s(headers: Mapping[str, str]) -> float:
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        seconds = float(value)
    elif (until := _date(value)) is not None:
        seconds = (until - dt.datetime.now(dt.UTC)).total_seconds()
    else:
        return 0.0
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_S)


def time_in(answers: Sequence[Any], header: str) -> dt.datetime:
    """The time in a header of the last of the answers that the SDK's `raw_response_hook` got (it gets refusals, too). Raises
    MisshapenError."""
    value = str(answers[-1].http_response.headers.get(header, "")) if answers else ""
    if (found := _date(value)) is None:
        raise MisshapenError(f"its header {header} is no time: {value[:100]!r}")
    return found


def _date(value: str) -> dt.datetime | None:
    try:
        parsed = parsedate_to_datetime(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=dt.UTC)


def _proxy_status(exc: BaseException) -> int | None:
    """What a proxy answered to the wish to be connected."""
    from aiohttp import ClientHttpProxyError

    return next((inner.status for inner in _chain(exc) if isinstance(inner, ClientHttpProxyError)), None)


def _chain(exc: BaseException) -> list[BaseException]:
    """The error and those below it: the SDK's, aiohttp's, at last the operating system's or TLS's word on it."""
    found: list[BaseException] = []
    seen: Any = exc
    while seen is not None and seen not in found:
        found.append(seen)
        seen = getattr(seen, "certificate_error", None) or seen.__cause__ or seen.__context__
    return found
