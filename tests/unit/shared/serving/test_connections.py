"""Which connections go when there are too many: pure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.serving.connections import KNOWN, Connections, origin


class Port:
    """Closes what it is told to close."""

    def __init__(
        self, per_address: int = 3, in_all: int = 5, open_: int = 2, per_known: int = 3, strangers: int = 99
    ) -> None:
        self.rules: Connections[int] = Connections(per_address, in_all, open_, per_known, strangers)
        self.alive: dict[int, str] = {}
        self.proved: set[int] = set()

    def open(self, key: int, address: str) -> None:
        self.alive[key] = address
        self.close(list(self.rules.opened(key, address)))

    def ask(self, key: int, *, proved: bool = True) -> None:
        if key in self.alive:
            self.proved.add(key)
        self.close(list(self.rules.asked(key, proved=proved)))

    def close(self, keys: list[int]) -> None:
        for key in keys:
            self.rules.closed(key)
            self.alive.pop(key, None)
            self.proved.discard(key)


def test_of_too_many_silent_ones_of_an_address_its_oldest_goes() -> None:
    port = Port()
    for key in range(4):
        port.open(key, "a")
    assert sorted(port.alive) == [1, 2, 3]


def test_of_too_many_silent_ones_in_all_the_address_with_the_most_pays() -> None:
    port = Port(per_address=10)
    port.open(0, "b")
    for key in range(1, 6):
        port.open(key, "a")
    assert sorted(port.alive) == [0, 2, 3, 4, 5]


def test_who_has_asked_is_not_closed_for_those_who_have_not() -> None:
    port = Port()
    port.open(0, "a")
    port.ask(0)
    for key in range(1, 20):
        port.open(key, "a")
    assert sorted(port.alive) == [0, 17, 18, 19]


def test_of_too_many_that_have_asked_the_one_goes_that_asked_least_recently() -> None:
    port = Port()
    for key in (0, 1):
        port.open(key, "a")
        port.ask(key)
    port.ask(0)
    port.open(2, "a")
    port.ask(2)
    assert sorted(port.alive) == [0, 2]


def test_strangers_of_many_addresses_do_not_close_those_of_an_address_from_which_somebody_proved_himself() -> (
    None
):
    port = Port(per_known=4)
    port.open(0, "a")
    port.ask(0)
    for key in range(1, 5):
        port.open(key, "a")
    for key in range(5, 20):
        port.open(key, f"stranger {key}")
    assert sorted(port.alive) == [0, 1, 2, 3, 4, 19]
    assert "stranger 19" not in port.rules._known
    port.ask(19, proved=False)
    assert "stranger 19" not in port.rules._known


def test_strangers_who_have_asked_are_so_many_in_all_and_who_proved_himself_stays() -> None:
    port = Port(open_=9, strangers=4)
    for key, proved in ((0, True), (1, False)):
        port.open(key, "a")
        port.ask(key, proved=proved)
    port.ask(1)
    port.ask(1, proved=False)  # what anybody may ask; it is known who he is
    for key in range(2, 99):
        port.open(key, f"stranger {key}")
        port.ask(key, proved=False)
    assert len(port.alive) == 2 + 4
    assert {0, 1, 98} < port.alive.keys()


def test_known_addresses_cost_a_bounded_memory() -> None:
    port = Port()
    for key in range(KNOWN + 10):
        port.open(key, f"{key}")
        port.ask(key)
        port.close([key])
    assert len(port.rules._known) == KNOWN


def test_an_ipv6_network_counts_as_one_address() -> None:
    assert origin("2001:db8:1:2::5") == origin("2001:db8:1:2:ffff::1%eth0") != origin("2001:db8:1:3::5")
    assert origin("::ffff:192.0.2.7") == origin("192.0.2.7") != origin("192.0.2.8")


@given(st.lists(st.tuples(st.sampled_from("oasc"), st.integers(0, 15), st.sampled_from("xyz")), max_size=80))
def test_the_limits_hold_and_nothing_is_remembered_of_what_is_over(steps: list[tuple[str, int, str]]) -> None:
    port = Port(strangers=3)
    for what, key, address in steps:
        if what == "o" and key not in port.alive:
            port.open(key, address)
        elif what in "as":
            port.ask(key, proved=what == "a")
        elif what == "c":
            port.close([key])
        unproved = [where for k, where in port.alive.items() if k not in port.proved]
        assert len(unproved) <= 5
        assert all(unproved.count(where) <= 3 for where in "xyz")
        assert all([port.alive[k] for k in port.proved].count(where) <= 2 for where in "xyz")
        assert len(port.rules) == len(port.alive)
        assert all(port.rules.is_unproved(k) == (k not in port.proved) for k in port.alive)
        assert len(port.rules._strangers) <= 3
    port.close(list(port.alive))
    groups = (port.rules._unproved, port.rules._asked, port.rules._strangers)
    assert len(port.rules) == 0 and all((len(group), group.of) == (0, {}) for group in groups)
