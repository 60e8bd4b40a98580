"""Who is waited for while the CA is renewed, and when a config server is where it is to be."""

from __future__ import annotations

import itertools

import pytest

from config_server.rules.ca_renewal import (
    Has,
    Renewal,
    Server,
    Stage,
    is_at,
    is_lost,
    lacking_certificate,
    lacking_trust,
    still_trusting,
)
from shared.status import AgentReport

BEFORE = Has("old", ("old",), ("old",), "old")
AFTER = Has("new", ("new",), ("new",), "new")


def says(anchors: list[str], issuer: str = "old") -> AgentReport:
    return AgentReport(anchors=anchors, issuer=issuer)


def test_a_server_is_at_a_stage_only_with_its_files_and_with_what_it_presents() -> None:
    both = Has("old", ("old", "new"), ("old", "new"), "old")
    switched = Has("new", ("new", "old"), ("new", "old"), "new")
    assert [is_at(each, Stage.MADE, "new") for each in (BEFORE, both, switched)] == [False, True, True]
    assert not is_at(Has("old", ("old", "new"), ("old",), "old"), Stage.MADE, "new"), "without its key"
    assert [is_at(each, Stage.SWITCHED, "new") for each in (both, switched)] == [False, True]
    presents_old = Has("new", ("new", "old"), ("new", "old"), "old")
    assert not is_at(presents_old, Stage.SWITCHED, "new"), "its certificate could not be written"
    assert [is_at(each, Stage.DROPPED, "new") for each in (switched, AFTER)] == [False, True]
    assert [is_at(each, Stage.GIVEN_UP, "new") for each in (both, BEFORE)] == [False, True]
    for stage in Stage:
        unreadable = Has("new", ("new",), ("new",), "new", wrong="ca.key could not be read")
        assert not is_at(unreadable, stage, "old" if stage is Stage.GIVEN_UP else "new"), "what it had before"
    for stage in (Stage.MADE, Stage.SWITCHED, Stage.DROPPED):
        assert not is_at(Has(), stage, "new"), "an earlier version says nothing"


def test_who_has_not_said_so_himself_is_named_and_why() -> None:
    reports = {
        "agent:a": says(["old", "new"]),
        "agent:b": says(["old"]),
        "agent:older": AgentReport(),
        "agent:stranger": says(["old", "new"]),
    }
    found = lacking_trust(["agent:b", "agent:a", "agent:older", "agent:off"], reports, "new")
    assert found.words == [
        "agent:b",
        "agent:off (has not reported)",
        "agent:older (an earlier version: upgrade it)",
    ]
    assert found.share == pytest.approx(1 / 4)
    assert found.said("trust it").startswith("1 of 4 trust it; not yet: agent:b, agent:off")
    many = lacking_trust([f"agent:{number:03}" for number in range(500)], {}, "new")
    assert many.said("trust it").endswith(" and 480 more")
    assert not lacking_trust([], {}, "new").words


def test_a_certificate_counts_by_who_issued_what_is_presented_and_an_anchor_until_it_is_gone() -> None:
    reports = {
        "agent:a": says(["new", "old"], "new"),
        "agent:b": says(["new", "old"]),
        "agent:c": says(["new"], "new"),
    }
    names = sorted(reports)
    assert lacking_certificate(names, reports, "new").words == ["agent:b"]
    assert still_trusting(names, reports, ["old"]).words == ["agent:a", "agent:b"]


def test_a_key_is_lost_only_where_nobody_has_it_and_who_made_it_is_gone_or_says_so() -> None:
    mine, other = Server("1", "a", BEFORE), Server("2", "b", BEFORE)
    has = Server("2", "b", Has("old", ("old", "new"), ("old", "new"), "old"))
    made = {by: Renewal(job="j", stage=Stage.MADE, new="", old="", by=by) for by in "123"}
    assert is_lost(made["1"], "new", "1", [mine, other])
    assert not is_lost(made["2"], "new", "1", [mine, other]), "it may just not have said so yet"
    assert is_lost(made["3"], "new", "1", [mine, other])
    for renewal, servers in itertools.product(made.values(), ([mine, has], [has])):
        assert not is_lost(renewal, "new", "1", servers)
    assert not is_lost(Renewal(job="j", stage=Stage.SWITCHED, new="", old="", by="1"), "new", "1", [mine])
