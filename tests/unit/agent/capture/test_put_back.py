"""A file of another boot beside what is captured counts whole, or is said not to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from agent.capture import put_back
from agent.capture.binding import Identity, Standing
from agent.capture.bindings import Bound, PinnedTo, Seen, Which
from agent.capture.pinned_lines import with_pins

P: Which = (16, 5)
Q: Which = (32, 6)


def standing(which: Which, *identities: str) -> Standing:
    borne = tuple(Identity.parse(text) for text in (*identities, f"name:{which}"))
    return Standing(
        path=f"/dev/{which}", name="", dev=which[0], diskseq=which[1], sectors=8, identities=borne
    )


THERE = {P: standing(P, "wwid:P", "serial:P", "gpt:P"), Q: standing(Q, "wwid:Q", "gpt:Q")}


def line(id_: str, identity: str) -> Bound:
    return Bound(id_, f"/dev/{id_}", identity, f"/dev/{id_}", Seen("before", 16, 5), number=1)


def pinned(id_: str, which: Which, identity: str = "") -> PinnedTo:
    path = f"/dev/{which}"
    bound = Bound(id_, f"/dev/{id_}", identity, path, Seen("this", *which), number=4)
    return PinnedTo(which, path, bound if identity else None)


FILE = [line("p", "wwid:P"), line("q", "wwid:Q")]
EXCHANGED = {"p": pinned("p", Q, "wwid:Q"), "q": pinned("q", P, "wwid:P")}


def test_a_file_that_settles_all_that_is_captured_gives_all_ids() -> None:
    third = line("third", "wwid:away")
    found = with_pins([*FILE, third], EXCHANGED, "this", THERE)
    assert found == [*(structs.replace(bound, number=5) for bound in FILE), third]
    without_lines = {id_: pin._replace(line=None) for id_, pin in EXCHANGED.items()}
    assert with_pins(FILE, without_lines, "this", THERE) == [structs.replace(one, number=2) for one in FILE]
    lasting = [line("p", "serial:P"), FILE[1]]
    assert [one.identity for one in with_pins(lasting, EXCHANGED, "this", THERE)] == ["serial:P", "wwid:Q"]


def test_only_a_loop_device_may_hide_a_file() -> None:
    borne = {which: standing(which, f"loop:0:1:{which[1]} /f") for which in (P, Q)}
    file = [line("p", "loop:0:1:5 /f"), line("q", "loop:0:1:6 /f")]
    for name, counts in (("sr0", True), ("loop7", False)):
        there = borne | {(48, 7): replace(standing((48, 7)), name=name, is_read=False)}
        assert put_back.is_whole({one.id: one for one in file}, EXCHANGED, "this", there, {}) is counts


@pytest.mark.parametrize(
    ("file", "there", "configured"),
    [
        pytest.param([FILE[0]], THERE, {}, id="it has no line of a captured disk"),
        pytest.param([FILE[0], line("q", "gpt:Q")], THERE, {}, id="one is known by what can change"),
        pytest.param(
            [FILE[0], structs.replace(FILE[1], seen=None)], THERE, {}, id="of which boot is not known"
        ),
        pytest.param([FILE[0], structs.replace(FILE[1], shared=("wwid:Q",))], THERE, {}, id="shared once"),
        pytest.param([FILE[0], line("q", "wwid:P")], THERE, {}, id="one disk for both"),
        pytest.param([FILE[0], line("q", "wwid:away")], THERE, {}, id="one is away"),
        pytest.param(FILE, THERE | {(48, 7): standing((48, 7), "wwid:Q")}, {}, id="two bear it"),
        pytest.param(FILE, THERE | {(48, 7): replace(standing((48, 7)), is_named=False)}, {}, id="one may"),
        pytest.param(FILE, THERE, {"p": "wwid:Q"}, id="the configuration says another"),
    ],
)
def test_a_file_that_does_not_settle_all_counts_for_nothing(
    file: list[Bound], there: dict[Which, Standing], configured: dict[str, str]
) -> None:
    found = {bound.id: bound for bound in with_pins(file, EXCHANGED, "this", there, configured)}
    assert found == {id_: pin.line for id_, pin in EXCHANGED.items()}


def test_a_file_that_says_what_is_pinned_is_no_other() -> None:
    captured = {"p": pinned("p", P, "wwid:P"), "q": pinned("q", Q, "wwid:Q")}
    assert with_pins(FILE, captured, "this", THERE) == [captured["p"].line, captured["q"].line]


@pytest.mark.parametrize(
    ("identity", "pin", "configured", "is_said"),
    [
        ("wwid:P", pinned("p", Q, "wwid:Q"), {}, True),
        ("wwid:away", pinned("p", Q, "wwid:Q"), {}, True),
        ("gpt:P", pinned("p", Q, "gpt:Q"), {}, True),
        ("gpt:P", pinned("p", Q), {}, True),
        ("serial:away", pinned("p", Q, "wwid:Q"), {}, False),  # its driver may have ceased to tell it
        ("gpt:away", pinned("p", Q, "wwid:Q"), {}, False),  # it may have been partitioned anew
        ("gpt:Q", pinned("p", Q, "wwid:Q"), {}, False),
        ("by-path:P", pinned("p", Q, "wwid:Q"), {}, False),
        ("gpt:P", pinned("p", Q, "gpt:P"), {}, False),  # what is pinned says the same
        ("wwid:P", pinned("p", Q, "wwid:Q"), {"p": "wwid:Q"}, False),
    ],
)
def test_what_the_file_says_otherwise_is_said(
    identity: str, pin: PinnedTo, configured: dict[str, str], is_said: bool
) -> None:
    lines, captured = {"p": line("p", identity)}, {"p": pin}
    assert put_back.otherwise(lines, captured, "this", THERE, configured) == (["p"] if is_said else [])
    this_boot = {"p": structs.replace(lines["p"], seen=Seen("this", 16, 5))}
    assert put_back.otherwise(this_boot, captured, "this", THERE, configured) == []
    before_linux_515 = {"p": pin._replace(which=(pin.which[0], 0))}
    assert put_back.otherwise(lines, before_linux_515, "this", THERE, configured) == []


def test_what_is_silent_is_said_to_be_another_where_another_bears_it() -> None:
    there = THERE | {Q: replace(standing(Q), is_named=False)}
    found = put_back.otherwise({"p": FILE[0]}, {"p": EXCHANGED["p"]}, "this", there, {})
    assert found == ["p"]
