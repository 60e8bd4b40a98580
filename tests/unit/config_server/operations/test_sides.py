"""What is called a copy of a machine, and what was only a restart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from config_server.operations.sides import Sides
from config_server.rules.copies import LASTING_S, SHOWN_S
from shared.errors import CopyRefusedError, StorageError
from shared.machine import active_side
from shared.machine.active_side import ActiveSide
from shared.wire.transport import SILENCE_S

TO_RETRY_S = 2.0


class Site:
    """A config server to which one process server says that the session of boot `first` is open, until a given time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.over_s = 0.0
        self.owner: str | None = None
        control = SimpleNamespace(
            presence=self,
            mono_ns=lambda: int(self.now_s * 1e9),
            serving=self,
            storage=SimpleNamespace(place=""),
        )
        self.elsewhere: str | None = None
        """The boot that another config server heard a second ago."""
        self.sides = Sides(control)  # type: ignore[arg-type]
        self.sides.clock = lambda: self.now_s
        known = self.sides._known
        known.learn(
            ActiveSide(machine="web", generation=1, identity="hw", changed_ns=0, claim=""), known.asking()
        )

    async def asked(self, _machine: str, _wanted: object) -> str | None:
        return self.owner

    def agent(self, _machine: str) -> tuple[SimpleNamespace, SimpleNamespace] | None:
        if self.elsewhere is None:
            return None
        return SimpleNamespace(by="other", age_s=lambda _ns: 1.0), SimpleNamespace(boot=self.elsewhere)

    def of(self, _role: str, name: str) -> object | None:
        return name if name in ("ps1", "ps2") else None

    def streams(self, _machine: str) -> list[tuple[SimpleNamespace, SimpleNamespace]]:
        seen = SimpleNamespace(source="process-server:ps1", name="ps1", is_silent=lambda _ns: False)
        return [(seen, SimpleNamespace(connected=self.now_s < self.over_s, boot="first", epoch=1))]

    async def admitted(self, boot: str, former: str = "") -> bool:
        try:
            await self.sides.admit("web", "hw", boot, "10.0.0.5", former)
        except CopyRefusedError:
            return False
        return True


@pytest.fixture
def site() -> Site:
    return Site()


async def test_a_machine_that_lost_its_power_is_no_copy(site: Site) -> None:
    site.over_s = SILENCE_S + 20.0
    assert await site.admitted("first")
    site.now_s = 12.0
    while not await site.admitted("second"):
        assert site.sides.problems() == []
        site.now_s += TO_RETRY_S
    assert site.now_s >= site.over_s
    assert site.sides.problems() == []


@pytest.mark.parametrize("over_s", [0.0, 1e9], ids=["it reported", "it has a session"])
async def test_who_says_which_boot_it_had_in_the_same_process_is_no_copy(site: Site, over_s: float) -> None:
    site.over_s = over_s
    site.owner = "ps1"
    assert await site.admitted("first")
    for former in ("", "another"):
        assert not await site.admitted("second", former)
    assert await site.admitted("second", "first")


async def test_only_a_session_with_the_machine_s_server_by_storage_keeps_another_boot_out(site: Site) -> None:
    site.over_s = 1e9
    for unclear in (None, "a name that no server bears", "ps1"):
        site.owner = unclear
        assert not await site.admitted("second")
    site.owner = "ps2"
    assert await site.admitted("second")


async def test_a_session_keeps_nobody_out_where_storage_has_nothing_of_the_machine(site: Site) -> None:
    site.over_s = 1e9
    site.owner = ""
    assert await site.admitted("second")


async def test_who_reported_to_another_config_server_a_moment_ago_keeps_another_boot_out(site: Site) -> None:
    site.elsewhere = "first"
    assert await site.admitted("first")
    site.now_s += 100
    assert not await site.admitted("second")
    assert await site.admitted("second", former="first")


async def test_a_boot_that_was_admitted_was_never_a_copy(site: Site) -> None:
    """Also when it took long, and when it is refused again for another reason later."""
    site.over_s = 2 * LASTING_S
    assert await site.admitted("first")
    for site.now_s in (10.0, 10.0 + LASTING_S):
        assert not await site.admitted("second")
    assert [problem.code for problem in site.sides.problems()] == [CopyRefusedError.code]
    site.now_s = site.over_s + 10.0
    assert await site.admitted("second")
    assert site.sides.problems() == []


async def test_a_copy_that_keeps_trying_while_the_machine_works_is_shown(site: Site) -> None:
    site.over_s = 1e9
    while site.now_s <= LASTING_S:
        assert await site.admitted("first")
        assert not await site.admitted("copy")
        site.now_s += TO_RETRY_S
    assert await site.admitted("first")
    assert not await site.admitted("copy")
    assert [problem.object for problem in site.sides.problems()] == ["web"]
    site.now_s += SHOWN_S
    assert site.sides.problems() == []


async def test_that_another_config_server_bound_the_machine_anew_is_asked_for_at_the_next_report(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While storage is away, what was known counts, and it is asked again."""
    answers: list[ActiveSide | StorageError] = [
        StorageError("away"),
        ActiveSide(machine="web", generation=2, identity="new", changed_ns=0, claim=""),
    ]

    async def find_of(_storage: object, _machine: str) -> tuple[ActiveSide, str]:
        match answers.pop(0):
            case ActiveSide() as side:
                return side, "c"
            case error:
                raise error

    monkeypatch.setattr(active_side, "find_of", find_of)
    site.sides._control.storage = SimpleNamespace(place="account", machines=lambda: None)  # type: ignore[assignment]
    assert await site.admitted("first")
    site.sides.ask_anew("web")
    assert await site.admitted("first")
    site.now_s += 11
    assert not await site.admitted("first")
    assert answers == []
