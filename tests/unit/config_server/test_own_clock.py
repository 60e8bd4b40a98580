"""Whether the config server believes its own clock."""

from __future__ import annotations

import msgspec
import pytest

from config_server.own_clock import STEP_S, OwnClock
from config_server.presence import Presence, Seen
from shared.status import AgentReport

S = 1_000_000_000


class World:
    def __init__(self) -> None:
        self.monotonic = 1000.0
        self.wall = 1_700_000_000.0
        self.clock = OwnClock(lambda: self.wall, lambda: self.monotonic)

    def later(self, seconds: float, jump_s: float = 0.0) -> None:
        self.monotonic += seconds
        self.wall += seconds + jump_s

    def heard(self, daemons_wall: float) -> list[Seen]:
        report = AgentReport(sent_ns=int(daemons_wall * S))
        presence = Presence()
        now_ns = int(self.monotonic * S)
        presence.learn("agent", "web1", msgspec.json.encode(report), int(self.wall * S), now_ns)
        return presence.all()

    def trouble(self, *daemons_wall: float) -> str:
        seen = [seen for wall in daemons_wall for seen in self.heard(wall)]
        error = self.clock.look(seen, int(self.monotonic * S))
        return error.cause if error is not None else ""


@pytest.mark.parametrize("jump_s", [STEP_S * 3650, -STEP_S * 3650, STEP_S * 2])
def test_a_clock_that_was_set_by_days_is_believed_when_it_is_set_back_or_a_daemon_agrees(
    jump_s: float,
) -> None:
    world = World()
    right = world.wall
    world.later(5, jump_s)
    assert "days" in world.trouble()
    assert "days" in world.trouble(right)
    world.later(3600)
    assert "days" in world.trouble()
    assert world.trouble(world.wall) == ""
    world.later(3600)
    assert world.trouble() == "", "once a daemon agreed it is believed"
    world.later(5, -jump_s)
    assert "days" in world.trouble()


def test_a_report_from_before_the_jump_does_not_agree_with_it() -> None:
    world = World()
    seen = world.heard(world.wall)
    world.later(5, STEP_S * 3650)
    assert world.clock.look(seen, int(world.monotonic * S)) is not None


def test_a_clock_that_is_set_back_is_believed_again() -> None:
    world = World()
    world.later(5, STEP_S * 10)
    assert world.trouble()
    world.later(5, -STEP_S * 10)
    assert world.trouble() == ""


def test_what_ntp_does_is_no_jump() -> None:
    world = World()
    for _ in range(100):
        world.later(3600, 30)
        assert world.trouble() == ""
