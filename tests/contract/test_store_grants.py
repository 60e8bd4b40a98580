"""The record of grants, over both databases."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import Connection

from config_server.rules.clock import SECOND_NS
from config_server.store import grants
from config_server.store.grants import Grant
from shared.api.restores import GrantState, StorageGrant
from shared.errors import NotFoundError

NOW = 1_700_000_000 * SECOND_NS
GRANT = Grant(
    id="g1",
    machine="web1",
    container="understudy-1",
    who="operator:admin",
    host="h",
    given_ns=NOW,
    expires_ns=NOW + 10,
)


def test_a_grant_lives_until_its_end_and_longer_when_it_is_extended(db: Connection) -> None:
    grants.add(db, GRANT)
    assert grants.living(db, "understudy-1", NOW + 9) == [GRANT]
    assert grants.living(db, "understudy-1", NOW + 10) == []
    assert grants.view(grants.get(db, "web1", "g1"), NOW + 10).state is GrantState.EXPIRED
    grants.extend(db, "g1", NOW + 20)
    assert grants.view(grants.get(db, "web1", "g1"), NOW + 10).state is GrantState.GIVEN


def test_how_a_grant_ended_first_stays(db: Connection) -> None:
    grants.add(db, GRANT)
    grants.end(db, "g1", "operator:a", NOW + 1, returned=False)
    grants.end(db, "g1", "operator:b", NOW + 2, returned=True)
    view = grants.view(grants.get(db, "web1", "g1"), NOW + 3)
    assert (view.state, view.ended_by, view.life_s) == (GrantState.REVOKED, "operator:a", 0.0)
    assert grants.living(db, "understudy-1", NOW + 3) == []


def test_a_grant_is_one_machines_and_one_that_was_never_given_leaves_nothing(db: Connection) -> None:
    grants.add(db, GRANT)
    with pytest.raises(NotFoundError):
        grants.get(db, "web2", "g1")
    grants.forget(db, "g1")
    assert grants.newest(db, "web1", 10) == []


def test_what_ended_months_ago_is_forgotten(db: Connection) -> None:
    grants.add(db, GRANT)
    later_ns = NOW + 100 * 86_400 * SECOND_NS
    later = msgspec.structs.replace(GRANT, id="g2", given_ns=later_ns, expires_ns=later_ns + 10)
    grants.add(db, later)
    assert [grant.id for grant in grants.newest(db, "web1", 10)] == ["g2"]


def test_a_token_is_not_in_what_a_grant_looks_like() -> None:
    grant = StorageGrant(url="https://x", container="c", id="g1", sas="sv=1&sig=c2VjcmV0")
    assert "c2VjcmV0" not in f"{grant} {grant!r} {[grant]}"
