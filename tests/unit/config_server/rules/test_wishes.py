"""Which of two wishes is the later: pure."""

from __future__ import annotations

import msgspec
import pytest

from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.rules.wishes import (
    UNHEARD,
    Adopt,
    Agree,
    Own,
    Tell,
    Untaken,
    Verdict,
    covers,
    in_words,
    judge,
    made_ns,
    next_mark,
    same,
    with_ids,
    without,
)
from shared.desired import Mark, Verb, WantedDisk, Wish

NOW = 1_700_000_000 * SECOND_NS
HISTORY = ("first", "second", "third")


def wish(
    incarnation: str, number: int, *disks: str, at_s: int | None = None, verb: Verb = Verb.PROTECT
) -> Wish:
    act = f"act {incarnation} {number}" if at_s is None else f"{rfc3339(NOW + at_s * SECOND_NS)}-{number}"
    wanted = tuple(WantedDisk(f"/dev/{disk}") for disk in disks)
    return Wish(mark=Mark(incarnation, number, act), verb=verb, disks=wanted)


def stop(incarnation: str, number: int, at_s: int | None = None) -> Wish:
    return wish(incarnation, number, at_s=at_s, verb=Verb.STOP)


def judged(own: Wish | None, told: Wish | None, incarnation: str = "") -> Verdict:
    here = None if own is None else Own(own, incarnation or own.mark.incarnation)
    return judge(here, told, HISTORY)


def test_who_knows_nothing_is_told_and_who_knows_less_learns() -> None:
    known = wish("third", 1, "sda")
    assert judged(None, None) == Agree()
    assert judged(known, None) == Tell(known)
    assert judged(None, known) == Adopt(known)
    assert judged(known, known) == Agree()


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (("third", 1), ("third", 2)),
        (("first", 9), ("third", 2)),
        (("second", 9), ("third", 2)),
        (("never had", 9), ("third", 2)),
        (("never had", 2), ("never had", 3)),
    ],
)
def test_the_later_act_holds_whatever_it_says(earlier: tuple[str, int], later: tuple[str, int]) -> None:
    for one, other in ((wish, stop), (stop, wish)):
        old, new = one(*earlier), other(*later)
        in_ = {"never had": "third"}
        assert judged(old, new, in_.get(earlier[0], "")) == Adopt(new)
        assert judged(new, old, in_.get(later[0], "")) == Tell(new)


@pytest.mark.parametrize("told", [wish("first", 1, "sda", "sdb"), wish("second", 1, "sda", "sdb")])
def test_what_was_said_before_a_restore_and_not_heard_stops_nobody_and_drops_nothing(told: Wish) -> None:
    for unheard in (stop("second", 2), wish("second", 2, "sda"), wish("second", 2, "sda", "sdc")):
        assert judged(unheard, told) == Adopt(told, UNHEARD)
        assert judged(unheard, None) == Tell(unheard), "what protects beside it is asked for elsewhere"
        assert judged(msgspec.structs.replace(unheard, mark=Mark("third", 2, "x")), told) == Tell(
            msgspec.structs.replace(unheard, mark=Mark("third", 2, "x"))
        )
    more = wish("second", 2, "sda", "sdb", "sdc")
    assert judged(more, told) == Tell(more)


def test_what_was_adopted_before_a_restore_comes_before_the_acts_that_followed_it_here() -> None:
    """Backed up behind the adoption, acted, restored: the agent has the act, the database what it had adopted."""
    adopted, act = wish("never had", 4, "sda"), stop("second", 5)
    assert judged(adopted, act, incarnation="second") == Adopt(act)


def test_of_two_acts_with_one_number_what_protects_more_holds_and_both_are_named() -> None:
    less, more = wish("third", 4, "sda"), wish("third", 4, "sda", "sdb")
    more = msgspec.structs.replace(more, mark=Mark("third", 4, "another"))
    assert judged(less, more) == Adopt(more, "two acts bear the number 4")
    assert judged(more, less) == Tell(more, "two acts bear the number 4")
    ended = stop("third", 4)
    assert judged(ended, more) == Adopt(more, "two acts bear the number 4")
    assert judged(more, ended) == Tell(more, "two acts bear the number 4")


def test_where_numbers_cannot_rise_any_more_the_later_act_by_the_clock_holds() -> None:
    """Its agent said the last one."""
    last = 1 << 53
    earlier, later = wish("third", last, "sda", at_s=8), stop("third", last, 9)
    assert judged(later, earlier) == Tell(later)
    assert judged(earlier, later) == Adopt(later)
    earlier, later = wish("third", 7, "sda", at_s=8), stop("third", 7, 9)
    assert judged(later, earlier) == Adopt(earlier, "two acts bear the number 7"), "in doubt"


def test_in_doubt_no_disk_is_dropped_where_neither_protects_all() -> None:
    here = wish("third", 4, "sda")
    there = msgspec.structs.replace(wish("third", 4, "sdb"), mark=Mark("third", 4, "another"))
    assert judged(here, there) == Adopt(there, "two acts bear the number 4")


def test_clocks_that_contradict_history_make_a_doubt_and_those_that_agree_make_none() -> None:
    """The old server comes back beside the agents that go by what the restored one said."""
    ended, later = stop("third", 4, at_s=0), wish("never had", 2, "sda", at_s=60)
    found = judged(ended, later)
    assert isinstance(found, Adopt)
    assert "2023-11-14T22:13:20" in found.doubt
    assert "2023-11-14T22:14:20" in found.doubt
    assert judged(stop("third", 4, at_s=90), later) == Tell(stop("third", 4, at_s=90))
    assert judged(wish("third", 1, "sda", at_s=90), wish("third", 2, "sdb", at_s=99)) == Adopt(
        wish("third", 2, "sdb", at_s=99)
    )


def test_what_covers_what() -> None:
    assert covers(wish("x", 1, "sda", "sdb"), wish("x", 1, "sdb"))
    assert not covers(wish("x", 1, "sda"), wish("x", 1, "sdb"))
    assert covers(wish("x", 1), wish("x", 1))
    assert not covers(wish("x", 1), wish("x", 1, "sda")), "which disks a configuration has is not known here"
    assert not covers(wish("x", 1, "sda"), wish("x", 1))
    assert covers(stop("x", 1), stop("x", 1))
    renamed = wish("x", 1)
    renamed = msgspec.structs.replace(renamed, disks=(WantedDisk("/dev/sdc", id="data"),))
    again = msgspec.structs.replace(renamed, disks=(WantedDisk("/dev/sdd", id="data"),))
    assert covers(renamed, again)


def test_a_path_alone_means_whatever_is_called_so_and_with_what_a_disk_bears_that_one() -> None:
    bare, data = WantedDisk("/dev/sdb"), WantedDisk("/dev/sdb", "data")
    assert same(bare, data)
    assert same(data, WantedDisk("/dev/sdc", "data"))
    assert not same(data, WantedDisk("/dev/sdb", "other"))
    assert not same(bare, WantedDisk("/dev/sdc"))
    new = WantedDisk("/dev/sdb", identity="wwid:B")
    assert not same(new, data)
    assert same(new, bare)
    assert same(new, WantedDisk("/dev/sdb", "sdb-2", "wwid:B"))
    assert without((bare, data, new), (WantedDisk("/dev/sdz", "data"),)) == (bare, new)


def test_who_was_named_by_a_path_gets_the_id_under_which_his_agent_bound_that_path() -> None:
    bound = (WantedDisk("/dev/sdb", "data"), WantedDisk("/dev/sdc", "sdc-2", "wwid:C"))
    asked = (WantedDisk("/dev/sdb"), WantedDisk("/dev/sdc", identity="wwid:C"), WantedDisk("/dev/sdd"))
    assert [disk.id for disk in with_ids(asked, bound)] == ["data", "sdc-2", None]
    assert with_ids((WantedDisk("/dev/sdc", identity="wwid:D"),), bound)[0].id is None
    two = (WantedDisk("/dev/sdc", "sdc", "wwid:A"), *bound)
    assert with_ids((asked[1],), two)[0].id == "sdc-2", "another has had that path"


def test_each_act_has_a_higher_number_and_a_later_time_than_all_that_was_known_of_the_machine() -> None:
    first = next_mark("one", [], NOW)
    assert (first.incarnation, first.number, made_ns(first.act)) == ("one", 1, NOW)
    second = next_mark("two", [first, Mark("other", 7, "a word")], NOW - 10**12)
    assert (second.number, made_ns(second.act)) == (8, NOW + 1)
    assert next_mark("one", [], NOW).act != first.act


def test_no_mark_that_an_agent_can_say_makes_the_next_one_impossible() -> None:
    last = Mark("x", 1 << 53, "9999-12-31T23:59:59.999999999Z-0")
    found = next_mark("one", [last], NOW)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Mark) == found


@pytest.mark.parametrize(
    "word",
    ["", "-", "x", "9999-12-31T23:59:59-23:59-x", "0001-01-01T00:00:00+23:59-x", "2026-13-01T00:00:00Z-x"],
)
def test_a_word_that_is_no_time_is_no_witness_and_hinders_no_judgement(word: str) -> None:
    told = msgspec.structs.replace(wish("never had", 1), mark=Mark("never had", 1, word))
    own = wish("third", 1, "sda", at_s=0)
    assert made_ns(told.mark.act) is None
    assert judged(own, told) == Tell(own)


def test_a_wish_in_words_is_short_whatever_an_agent_made_of_it() -> None:
    assert in_words(wish("x", 1, "sda", "sdb")) == "protect /dev/sda, /dev/sdb"
    assert in_words(stop("x", 1)) == "stop"
    assert in_words(wish("x", 1)) == "protect the disks of its configuration"
    many = in_words(wish("x", 1, *("d" * 4000 for _ in range(200))))
    assert len(many) < 1000
    assert many.endswith("and 192 more")


def test_an_agent_has_time_from_when_it_was_told_and_again_behind_its_silence() -> None:
    told, before = wish("x", 2, "sda"), wish("x", 1, "sda")
    untaken = Untaken(15.0)
    assert untaken.note("web1", told, before, 100)
    assert not untaken.note("web1", told, None, 10 * SECOND_NS)
    assert untaken.of("web1") == (told.mark.act, 100)
    assert untaken.note("web1", told, before, 26 * SECOND_NS), "it was silent"
    assert untaken.of("web1") == (told.mark.act, 26 * SECOND_NS)
    assert untaken.note("web1", before, None, 27 * SECOND_NS), "another act"
    assert not untaken.note("web1", told, told, 28 * SECOND_NS)
    assert untaken.of("web1") is None
    assert not untaken.note("web1", None, None, 29 * SECOND_NS)


def test_an_agent_that_is_told_no_opinion_is_known_since_when_and_is_not_said_to_be_told() -> None:
    untaken = Untaken(15.0)
    untaken.note("web1", wish("x", 2, "sda"), None, 0)
    for second in (1, 10):
        untaken.withhold("web1", is_withheld=True, now_ns=second * SECOND_NS)
    assert (untaken.of("web1"), untaken.withheld_ns("web1")) == (None, SECOND_NS)
    untaken.withhold("web1", is_withheld=True, now_ns=26 * SECOND_NS)
    assert untaken.withheld_ns("web1") == 26 * SECOND_NS, "it was silent"
    untaken.withhold("web1", is_withheld=False, now_ns=27 * SECOND_NS)
    assert untaken.withheld_ns("web1") is None


def test_what_an_agent_was_told_at_another_server_lasts_since_then_here_too() -> None:
    here, there = Untaken(15.0), Untaken(15.0)
    wish = Wish(mark=Mark("i", 1, "act"), verb=Verb.STOP)
    for at_s in (100, 105, 110):
        there.note("web1", wish, None, at_s * SECOND_NS)
    # Of the other's clock nothing is known but how long before its report something was.
    here.hear_of("web1", there.told("web1", 110 * SECOND_NS), 1110 * SECOND_NS)
    assert here.of("web1") == ("act", 1100 * SECOND_NS)
    assert not here.note("web1", wish, None, 1115 * SECOND_NS), "it was told before"
    assert here.of("web1") == ("act", 1100 * SECOND_NS)
    here.hear_of("web1", Untaken(15.0).told("web1", 0), 1120 * SECOND_NS)
    assert here.of("web1") is None, "it goes by it"
    there.withhold("web1", is_withheld=True, now_ns=112 * SECOND_NS)
    here.hear_of("web1", there.told("web1", 114 * SECOND_NS), 1114 * SECOND_NS)
    assert (here.withheld_ns("web1"), here.of("web1")) == (1112 * SECOND_NS, None)
    here.hear_of("web1", Untaken(15.0).told("web1", 0), 1120 * SECOND_NS)
    assert here.withheld_ns("web1") is None
