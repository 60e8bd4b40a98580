"""What storage answers, by name."""

from __future__ import annotations

import datetime as dt
import socket
from email.utils import format_datetime
from typing import Any

import aiohttp
import pytest
from azure.core.exceptions import HttpResponseError, ServiceRequestError

from shared.blob import BlobConfig
from shared.blob.answers import BY_CODE, LONGEST_RETRY_AFTER_S, ForeignAnswerError, translate
from shared.blob.core import _Pauses
from shared.errors import (
    AccountMissingError,
    BlobNotFoundError,
    LeaseHeldError,
    NotStorageError,
    PreconditionError,
    RangeError,
    StorageClockError,
    StorageError,
    StorageKeyError,
    StorageRefusedError,
    StorageRequestError,
    ThrottledError,
    TransientError,
)
from shared.http.proxies import Proxy

CONFIG = BlobConfig(url="https://acct.blob.core.windows.net", container="vault")


class Response:
    reason = "on purpose"

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        self.status_code = status
        self.headers = headers

    def text(self) -> str:
        return ""


def answer(status: int, code: str = "", said: str = "refused", **headers: str) -> StorageError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response: Any = Response(status, named | ({"x-ms-error-code": code} if code else {}))
    return translate("Could not x", HttpResponseError(said, response=response), CONFIG)


def gmt(seconds: float) -> str:
    return format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("code", BY_CODE)
def test_a_known_code_decides_whatever_the_status(code: str) -> None:
    kind, _ = BY_CODE[code]
    for status in (400, 403, 404, 409, 412, 500):
        error = answer(status, code)
        assert type(error) is kind
        assert error.cause


@pytest.mark.parametrize(
    "code", [code for code, (kind, _) in BY_CODE.items() if issubclass(kind, StorageRefusedError)]
)
def test_what_an_operator_must_mend_says_how(code: str) -> None:
    error = answer(403, code)
    assert type(error) is not StorageRefusedError
    assert error.action
    assert error.cause


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, StorageRequestError),
        (401, StorageRefusedError),
        (403, StorageRefusedError),
        (404, BlobNotFoundError),
        (408, TransientError),
        (409, StorageRequestError),
        (412, PreconditionError),
        (416, RangeError),
        (429, ThrottledError),
        (500, TransientError),
        (503, ThrottledError),
    ],
)
def test_an_unknown_code_is_judged_by_its_status(status: int, kind: type[StorageError]) -> None:
    assert type(answer(status, "NeverHeardOf")) is kind
    assert type(answer(status)) is kind


def test_azure_and_azurite_name_a_held_lease_with_different_statuses() -> None:
    assert type(answer(412, "LeaseIdMissing")) is type(answer(409, "LeaseAlreadyPresent")) is LeaseHeldError


@pytest.mark.parametrize("skew_s", [-3600.0, 3600.0])
def test_a_signature_refused_beside_clocks_apart_is_a_matter_of_clocks(skew_s: float) -> None:
    error = answer(403, "AuthenticationFailed", Date=gmt(skew_s))
    assert type(error) is StorageClockError
    assert "60 minutes" in error.cause
    assert ("behind" if skew_s > 0 else "ahead") in error.cause


def test_a_signature_refused_for_its_date_is_a_matter_of_clocks() -> None:
    error = answer(403, "AuthenticationFailed", "Request date header too old: '…'", Date=gmt(0))
    assert type(error) is StorageClockError


def test_a_signature_refused_beside_equal_clocks_is_a_matter_of_the_key() -> None:
    assert type(answer(403, "AuthenticationFailed", Date=gmt(-20))) is StorageKeyError


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("-5", 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
        ("99999", 60, 60),
    ],
)
def test_retry_after_is_capped_and_nonsense_is_none(value: str, least: float, most: float) -> None:
    error = answer(503, "ServerBusy", Retry_After=value)
    assert isinstance(error, ThrottledError)
    assert least <= error.retry_after_s <= most <= LONGEST_RETRY_AFTER_S


def test_retry_after_may_be_a_date() -> None:
    error = answer(503, "ServerBusy", Retry_After=gmt(50))
    assert isinstance(error, ThrottledError)
    assert 0 < error.retry_after_s <= 50


def test_nothing_is_asked_again_before_storage_said() -> None:
    error = ThrottledError("x", retry_after_s=7.0)
    assert all(_Pauses().after(error) > 7.0 for _ in range(100))


def test_a_refusal_is_repeated_more_slowly_than_a_passing_trouble_and_all_pauses_end_somewhere() -> None:
    passing, refused = _Pauses(), _Pauses()
    for _ in range(20):
        a, b = passing.after(TransientError("x")), refused.after(StorageKeyError("x"))
    assert 5.0 <= a <= 10.0 < 15.0 <= b <= 30.0


@pytest.mark.parametrize("status", [200, 302, 403, 404, 407, 409, 412])
def test_an_answer_that_is_not_storages_is_no_answer_about_a_blob(status: int) -> None:
    error = translate("Could not x", ForeignAnswerError(status), CONFIG)
    assert type(error) is NotStorageError
    assert "acct" in error.cause


def test_that_something_was_not_done_only_storage_says() -> None:
    assert all(answer(status).is_refusal for status in (400, 401, 403, 404, 409, 412, 416))
    assert not any(answer(status).is_refusal for status in (408, 500, 503, 504))
    assert all(answer(503, code).is_refusal for code in ("ServerBusy", "TooManyRequests"))
    assert answer(429).is_refusal
    assert not any(
        answer(503, code).is_refusal for code in ("OperationTimedOut", "InternalError", "SystemInUse")
    )
    for status in (200, 302, 403, 404, 407, 409, 412, 429, 502, 503):
        assert not translate("Could not x", ForeignAnswerError(status), CONFIG).is_refusal
    assert not translate("Could not x", ConnectionResetError("reset"), CONFIG).is_refusal


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_gateway_that_is_in_trouble_passes(status: int) -> None:
    assert isinstance(translate("Could not x", ForeignAnswerError(status), CONFIG), TransientError)


def test_an_account_that_dns_does_not_know_is_gone_and_one_that_it_cannot_look_up_now_is_not() -> None:
    def error(number: int) -> StorageError:
        outer = ServiceRequestError("no")
        outer.__cause__ = socket.gaierror(number, "no name")
        return translate("Could not x", outer, CONFIG)

    assert type(error(socket.EAI_NONAME)) is AccountMissingError
    assert type(error(socket.EAI_AGAIN)) is TransientError


def test_errors_name_the_proxy_on_the_way_without_its_password() -> None:
    proxy = Proxy("http://user:secret@proxy.example:3128", "HTTPS_PROXY")
    error = translate("Could not x", ConnectionRefusedError("refused"), CONFIG, proxy)
    assert "http://proxy.example:3128 (HTTPS_PROXY)" in error.cause
    assert "secret" not in str(error)


def test_a_token_in_a_urls_query_is_in_no_message() -> None:
    """aiohttp names the URL of a connection that was not made in time."""
    url = "https://acct.blob.core.windows.net/vault-1/machine.json?sv=2018-03-28&sr=c&sig=c2VjcmV0"
    for exc in (
        aiohttp.ConnectionTimeoutError(f"Connection timeout to host {url}"),
        ValueError(f"not whole: '{url}'"),
        ServiceRequestError("no", error=OSError(f"({url})")),
    ):
        error = translate("Could not read x", exc, CONFIG)
        assert "c2VjcmV0" not in str(error)
        assert "sv=" not in str(error)
