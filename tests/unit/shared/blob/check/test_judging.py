"""What storage's answers mean for an installation."""

from __future__ import annotations

import pytest

from shared.blob import BlobConfig
from shared.blob.check import judging
from shared.blob.check.findings import Aspect, State, error, ok, unknown, warning, worst
from shared.blob.check.judging import Container
from shared.errors import (
    AccountMissingError,
    NotStorageError,
    StorageCertificateError,
    StorageClockError,
    StorageError,
    StorageIdentityError,
    StorageKeyError,
    StorageProtectedError,
    StorageRefusedError,
    StorageRequestError,
    StorageRightsError,
    ThrottledError,
    TransientError,
)

CONFIG = BlobConfig(url="https://acct.blob.core.windows.net")
NOON = 1_800_000_000.0


def container(
    name: str = "vault",
    *,
    public: str | None = None,
    policy: bool | None = False,
    hold: bool | None = False,
    versions: bool | None = False,
    scope: str | None = "$account-encryption-key",
) -> Container:
    return Container(name, public, policy, hold, versions, scope)


@pytest.mark.parametrize(
    ("ahead_s", "took_s", "state"),
    [
        (0.0, 0.1, State.OK),
        (0.99, 0.0, State.OK),
        (5.9, 0.0, State.OK),
        (7.1, 0.0, State.WARNING),
        (-5.5, 0.0, State.WARNING),
        (301.5, 0.0, State.ERROR),
        (-301.0, 0.0, State.ERROR),
        (12.0, 30.0, State.WARNING),  # an answer that took half a minute proves little, and this
        (-12.0, 30.0, State.OK),  # nothing
    ],
)
def test_a_clock_is_judged_by_the_least_that_it_can_be_off(
    ahead_s: float, took_s: float, state: State
) -> None:
    before_s = NOON + ahead_s
    assert judging.clock(before_s, before_s + took_s, NOON).state is state


def test_a_clock_says_in_which_direction_it_is_off() -> None:
    assert "20 minutes ahead of" in judging.clock(NOON + 1200, NOON + 1200, NOON).detail
    assert "60 s behind" in judging.clock(NOON - 60, NOON - 60, NOON).detail
    assert judging.clock(NOON, NOON, None).state is State.UNKNOWN


@pytest.mark.parametrize(
    ("kind", "sku", "state"),
    [
        ("StorageV2", "Standard_LRS", State.OK),
        ("StorageV2", "Standard_RAGZRS", State.OK),
        ("Storage", "Standard_GRS", State.OK),
        ("StorageV2", "Premium_LRS", State.ERROR),
        ("BlockBlobStorage", "Premium_LRS", State.ERROR),
        ("BlobStorage", "Standard_LRS", State.ERROR),
        ("FileStorage", "Premium_LRS", State.ERROR),
        ("SomethingNew", "Standard_LRS", State.UNKNOWN),
        ("StorageV2", None, State.UNKNOWN),
        (None, None, State.UNKNOWN),
    ],
)
def test_only_a_standard_general_purpose_account_has_all_kinds_of_blobs(
    kind: str | None, sku: str | None, state: State
) -> None:
    found, _ = judging.account(kind, sku, False)
    assert found.state is state
    assert state is State.OK or found.action


def test_a_hierarchical_namespace_is_an_error_and_silence_about_it_is_not_ok() -> None:
    states = [judging.account("StorageV2", "Standard_LRS", each)[1].state for each in (True, False, None)]
    assert states == [State.ERROR, State.OK, State.UNKNOWN]


def test_soft_delete_says_for_how_many_days() -> None:
    assert judging.blob_soft_delete(False, None).state is State.OK
    found = judging.blob_soft_delete(True, 14)
    assert (found.state, "14 days" in found.detail) == (State.WARNING, True)
    assert judging.container_soft_delete((False, None)).state is State.OK
    found = judging.container_soft_delete((True, 7))
    assert (found.state, "7 days" in found.detail) == (State.WARNING, True)
    assert judging.container_soft_delete(None).state is State.UNKNOWN


def test_versions_cost() -> None:
    assert judging.versioning(None).state is State.OK
    assert judging.versioning("2026-11-27T08:00:00.0000000Z").state is State.WARNING


def test_what_holds_a_container_is_an_error_and_named() -> None:
    found = judging.immutability([container(), container("new", policy=True, hold=True)])
    assert found.state is State.ERROR
    assert "new has an immutability policy and a legal hold" in found.detail
    assert judging.immutability([container(policy=None), container(hold=True)]).state is State.ERROR
    assert judging.immutability([container(), container(policy=None)]).state is State.UNKNOWN
    assert judging.immutability([]).state is State.UNKNOWN
    assert judging.immutability([container(versions=True)]).state is State.WARNING
    assert judging.immutability([container()]).state is State.OK


def test_nothing_is_tried_in_a_vault_container_that_is_held() -> None:
    tried = judging.vault_container("vault", container())
    assert tried is None
    held = judging.vault_container("vault", container(hold=True))
    assert held is not None
    assert held.state is State.UNKNOWN
    absent = judging.vault_container("vault", None)
    assert absent is not None
    assert absent.state is State.OK


def test_a_public_container_is_a_warning() -> None:
    found = judging.public_access([container(public="blob"), container("new")])
    assert (found.state, "vault (blob)" in found.detail) == (State.WARNING, True)
    assert judging.public_access([container()]).state is State.OK
    assert judging.public_access([]).state is State.UNKNOWN


def test_the_default_encryption_scope_is_said() -> None:
    found = judging.encryption([container(scope="ours"), container("new")])
    assert found.detail == "vault: scope ours; new: the key of the account"
    assert judging.encryption([container(scope=None)]).state is State.UNKNOWN


@pytest.mark.parametrize(
    ("error_type", "hop"),
    [
        (StorageCertificateError, Aspect.TLS),
        (TransientError, Aspect.ACCOUNT),
        (ThrottledError, Aspect.ACCOUNT),
        (NotStorageError, Aspect.ACCOUNT),
        (AccountMissingError, Aspect.ACCOUNT),
        (StorageProtectedError, Aspect.ACCOUNT),
        (StorageRequestError, Aspect.ACCOUNT),
        (StorageKeyError, Aspect.CREDENTIALS),
        (StorageClockError, Aspect.CREDENTIALS),
        (StorageRightsError, Aspect.CREDENTIALS),
        (StorageIdentityError, Aspect.CREDENTIALS),
        (StorageRefusedError, Aspect.CREDENTIALS),
    ],
)
def test_each_refusal_of_the_first_request_is_of_one_hop(error_type: type[StorageError], hop: Aspect) -> None:
    refused = error_type("Could not x")
    assert judging.failed_hop(refused) is hop
    found = {each.name: each for each in judging.first_request(refused, "Blob", CONFIG, with_key=True)}
    assert (found[hop].state, found[hop].code) == (State.ERROR, refused.code)
    assert [each.name for each in found.values() if each.state is State.ERROR] == [hop]


def test_what_did_not_answer_is_not_said_to_have_been_reached() -> None:
    (found,) = judging.first_request(StorageIdentityError("Could not x"), None, CONFIG, with_key=False)
    assert (found.name, found.state) == (Aspect.CREDENTIALS, State.ERROR)


def test_what_is_left_is_named() -> None:
    found = judging.removal({"container vault-check-1": "storage is busy"})
    assert (found.state, "container vault-check-1 (storage is busy)" in found.detail) == (State.ERROR, True)
    assert judging.removal({}).state is State.OK


def test_the_worst_finding_is_the_reports() -> None:
    good, unclear = ok(Aspect.NAME, ""), unknown(Aspect.TLS, "")
    costly, bad = warning(Aspect.VERSIONING, "", ""), error(Aspect.KIND, "", "")
    assert worst([good]) is State.OK
    assert worst([unclear, good]) is State.UNKNOWN
    assert worst([costly, unclear, good]) is State.WARNING
    assert worst([good, bad, costly]) is State.ERROR
    assert worst([]) is State.UNKNOWN
