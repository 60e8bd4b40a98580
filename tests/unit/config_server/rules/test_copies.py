"""Whom a person means who says that a machine has moved."""

from __future__ import annotations

import pytest

from config_server.cli import rebinding
from config_server.rules.copies import MOST, SHOWN_S, Copies, meant
from shared.api.copies import CopyList, CopyView
from shared.errors import CopyRefusedError, RequestError
from shared.machine.active_side import ActiveSide


class Site:
    """Copies of `web1`, whose active side is `side`."""

    def __init__(self, identity: str = "old", replaced: str = "") -> None:
        self.copies = Copies()
        self.side = ActiveSide(
            machine="web1", generation=1, identity=identity, replaced=replaced, changed_ns=0, claim=""
        )

    def refused(self, *identities: str, at_s: float = 0.0) -> None:
        for identity in identities:
            self.copies.refused("web1", identity, "b", "10.0.0.9", CopyRefusedError("A copy"), at_s)

    def meant(self, now_s: float = 1.0, changed_s: float = 1e9) -> str:
        return meant("web1", self.side, self.copies.lately("web1", now_s), now_s, changed_s)


def test_the_one_identity_that_was_refused_is_meant_however_often_and_whoever_has_the_machines_own() -> None:
    site = Site()
    site.refused("new", "old", "new", "old")
    assert site.meant() == "new"


def test_of_two_nobody_is_meant_and_both_are_named_with_address_and_age() -> None:
    site = Site()
    site.refused("new", "drill")
    with pytest.raises(RequestError, match=r"drill at 10\.0\.0\.9, refused 7 s ago; new at") as unclear:
        site.meant(7.0)
    assert "--identity" in unclear.value.action


def test_a_clone_under_the_machines_own_identity_is_never_meant() -> None:
    site = Site()
    site.refused("old")
    with pytest.raises(RequestError, match="has that identity") as unclear:
        site.meant()
    assert "agent.toml" in unclear.value.action


def test_what_the_machine_was_moved_away_from_is_never_meant_without_its_name() -> None:
    site = Site("new", replaced="old")
    site.refused("old")
    assert site.meant(changed_s=1.0) == "new"  # the command is repeated
    with pytest.raises(RequestError, match="old at"):
        site.meant(changed_s=SHOWN_S)


def test_right_after_a_change_nobody_else_is_meant_without_his_name() -> None:
    site = Site("new", replaced="old")
    site.refused("drill")
    with pytest.raises(RequestError, match="it is new since 1 s"):
        site.meant(changed_s=1.0)
    assert site.meant(changed_s=SHOWN_S) == "drill"


def test_who_was_refused_long_ago_or_has_no_identity_is_not_meant() -> None:
    site = Site()
    site.refused("new")
    site.refused("", at_s=SHOWN_S)
    with pytest.raises(RequestError, match="has that identity, too, or none"):
        site.meant(SHOWN_S)


def test_whoever_makes_up_identities_costs_no_memory() -> None:
    site = Site()
    site.refused(*(f"{number}" * 1000 for number in range(10 * MOST)))
    assert len(site.copies.lately("web1", 0.0)) == MOST


def test_the_question_names_identity_address_and_age_of_whom_it_is_about() -> None:
    copy = CopyView(identity="new", address="10.0.0.9", refused_s=3.0, since_s=60.0, cause="")
    found = CopyList(machine="web1", identity="old", generation=1, copies=[copy], meant="new")
    asked = rebinding.question(found, rebinding.chosen(found))
    for word in ("new", "10.0.0.9", "3.0 s ago", "'web1'", "old, which is it now"):
        assert word in asked
    assert "not heard of lately" in rebinding.question(found, "elsewhere")
