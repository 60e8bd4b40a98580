"""Which config server is in force: of whatever servers there are, at most one takes itself for it when all have looked."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from config_server.rules.force import Generation, InForce, Ours, Put, Superseded, judge


def said(number: int, holder: str) -> Generation:
    return Generation(generation=number, holder=holder, host=f"host of {holder}", since_ns=number)


def test_a_first_start_is_in_force_and_one_that_was_not_put_back_takes_nothing_over() -> None:
    assert judge(Ours("a"), None, 0) == Put(1)
    assert judge(Ours("a"), said(1, "a"), 0) == InForce(1)
    assert judge(Ours("b"), said(1, "a"), 1) == Superseded(said(1, "a"))
    assert judge(Ours("a", 1), said(2, "b"), 2) == Superseded(said(2, "b"))


def test_a_database_that_was_put_back_takes_over_from_the_highest_of_which_anything_is_left() -> None:
    assert judge(Ours("c", 3, True), said(2, "b"), 0) == Put(3)
    assert judge(Ours("c", 3, True), said(7, "b"), 5) == Put(8)
    assert judge(Ours("c", 3, True), None, 9) == Put(10), "somebody has deleted the document"
    assert judge(Ours("c", 3, True), said(9, "c"), 0) == InForce(9), "it was killed behind its PUT"


def test_storage_that_was_set_back_or_lost_it_is_told_again_by_the_highest() -> None:
    assert judge(Ours("b", 5), said(2, "a"), 2) == Put(5)
    assert judge(Ours("b", 5), None, 5) == Put(5)
    assert judge(Ours("a", 2), None, 5) == Superseded(
        Generation(generation=5, holder="", host="", since_ns=0)
    ), "another one's state is there"
    assert judge(Ours("a", 5), said(5, "b"), 5) == Superseded(said(5, "b"))


def test_what_was_said_over_one_generation_takes_over_no_later_one() -> None:
    drill = Ours("c", 1, takes_over=True, over=2)
    assert judge(drill, said(2, "b"), 2) == Put(3)
    assert judge(drill, None, 1) == Put(2)
    assert judge(drill, said(3, "d"), 2) == Superseded(said(3, "d")), "somebody recovered another one since"
    assert judge(drill, said(3, "c"), 0) == InForce(3), "it was killed behind its PUT"
    assert judge(drill, None, 3) == Superseded(Generation(generation=3, holder="", host="", since_ns=0))


def test_who_knows_that_it_was_superseded_begins_no_more_where_storage_has_lost_that() -> None:
    old = Ours("a", 1, superseded=2)
    assert judge(old, None, 0) == Superseded(Generation(generation=2, holder="", host="", since_ns=0))
    assert judge(old, said(2, "b"), 2) == Superseded(said(2, "b"))
    assert judge(old._replace(takes_over=True), None, 0) == Put(3)


class Server:
    def __init__(self, ours: Ours) -> None:
        self.ours = ours
        self.sees: tuple[Generation | None, int, int] | None = None
        """What it has read, and which version that was; None: it begins anew."""
        self.in_force: int | None = None


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["read", "write", "restore", "lose"])), max_size=60)
)
def test_of_servers_that_have_looked_at_what_storage_has_now_one_is_in_force(
    acts: list[tuple[int, str]],
) -> None:
    """Reads and writes are apart, so that any other act comes between them; writes are conditional. Databases are put back, and storage
    loses the document, at any time."""
    stored: Generation | None = None
    version, highest, drawn = 0, 0, 0
    servers = [Server(Ours(f"first {n}")) for n in range(4)]
    for who, act in acts:
        server = servers[who]
        if act == "restore":
            drawn += 1
            server.ours, server.sees = Ours(f"drawn {drawn}", server.ours.generation, True), None
        elif act == "lose":
            stored, version = None, version + 1
        elif act == "read":
            server.sees = stored, highest, version
        elif server.sees is not None:
            found, top, seen = server.sees
            match judge(server.ours, found, top):
                case Put(generation):
                    if seen == version:
                        stored, version = said(generation, server.ours.holder), version + 1
                        highest = max(highest, generation)
                case InForce(generation):
                    server.ours = Ours(server.ours.holder, generation)
            server.sees = None
    for _ in range(5):  # all look until nothing changes any more
        for server in servers:
            decision = judge(server.ours, stored, highest)
            if isinstance(decision, Put):
                stored = said(decision.generation, server.ours.holder)
                highest = max(highest, decision.generation)
                decision = judge(server.ours, stored, highest)
            if isinstance(decision, InForce):
                server.ours = msgspec.convert([server.ours.holder, decision.generation, False], Ours)
            server.in_force = decision.generation if isinstance(decision, InForce) else None
    assert stored is not None
    assert [server.ours.holder for server in servers if server.in_force] == [stored.holder]
    assert stored.generation == highest
