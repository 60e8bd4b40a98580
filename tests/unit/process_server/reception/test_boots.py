"""Whom a machine's name is kept for, over any course of sessions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from process_server.reception.boots import KEEP_S, LastBoot
from shared.errors import MachineAwaitedError
from tests.wire_parts import hello

MACHINE, COPY = hello(boot="1/a", identity="id"), hello(boot="2/a", identity="id")


def may(boot: LastBoot, now_s: float, *, epoch: int = 0) -> bool:
    try:
        boot.check(hello(boot=COPY.boot, identity="id", epoch=epoch), is_side=True, now_s=now_s)
    except MachineAwaitedError as exc:
        assert 0 < exc.retry_after_s <= KEEP_S + 1e-6
        return False
    return True


@given(st.lists(st.tuples(st.floats(0, 60), st.booleans()), max_size=20), st.floats(0, 60))
def test_a_copy_is_taken_only_when_the_machine_was_away_for_as_long_as_it_may_take_to_come_back(
    sessions: list[tuple[float, bool]], after_s: float
) -> None:
    """Each session of the machine ends so long after the one before; between some of them the server is started anew."""
    boot = LastBoot(None, unreadable=False, gone_s=0.0)
    boot.admit(MACHINE)
    now_s = gone_s = 0.0
    for pause_s, restarted in sessions:
        now_s += pause_s
        if restarted:
            boot = LastBoot(boot.admitted, unreadable=False, gone_s=now_s)
        boot.ended(COPY.boot, now_s + 1000.0)  # what a refused one does counts for nothing
        boot.ended(MACHINE.boot, now_s)
        gone_s = now_s
    now_s += after_s
    assert may(boot, now_s) == (gone_s + KEEP_S - now_s <= 0)
    boot.check(MACHINE, is_side=True, now_s=now_s)


def test_who_has_an_epoch_to_go_on_with_is_taken_when_nobody_knows_the_last_boot() -> None:
    boot = LastBoot(None, unreadable=True, gone_s=0.0)
    assert not may(boot, 1.0)
    assert may(boot, 1.0, epoch=7)
    assert may(boot, KEEP_S)
    boot.admit(MACHINE)
    assert not may(boot, 1.0, epoch=7)
