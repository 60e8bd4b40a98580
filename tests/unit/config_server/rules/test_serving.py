"""Whose a machine is when process servers contradict each other, and when storage is asked."""

from __future__ import annotations

import msgspec

from config_server.rules.clock import SECOND_NS
from config_server.rules.facts import Facts, facts_of
from config_server.rules.presence import Presence
from config_server.storage.account import Storage
from config_server.storage.owners import LASTING_S, Serving
from shared.errors import StorageError
from shared.status import AgentReport, ProcessServerReport, Report, StreamReport
from shared.vocabulary import Role

ONE = StreamReport(epoch=3, connected=True, boot="b1")


class Site:
    """A config server whose storage names an owner, and counts how often it was asked."""

    def __init__(self) -> None:
        self.presence = Presence()
        self.serving = Serving(Storage(None, None))
        self.serving.clock = lambda: self.now_ns / SECOND_NS
        self.serving._find = self._find  # type: ignore[method-assign,assignment]
        self.now_ns = 1_000 * SECOND_NS
        self.asked = 0
        self.owner = "ps2"
        self.away = False

    async def _find(self, _machine: str) -> str:
        self.asked += 1
        if self.away:
            raise StorageError("Could not list", cause="it is away")
        return self.owner

    def say(self, streams: dict[str, StreamReport], agent: AgentReport | None = None) -> None:
        said: list[tuple[str, str, Report]] = [
            ("process-server", name, ProcessServerReport(machines={"web1": stream}))
            for name, stream in streams.items()
        ]
        if agent is not None:
            said.append(("agent", "web1", agent))
        for role, name, report in said:
            self.presence.learn(Role(role), name, msgspec.json.encode(report), self.now_ns, self.now_ns)

    async def look(self, streams: dict[str, StreamReport], agent: AgentReport | None = None) -> Facts:
        self.say(streams, agent)
        facts = self.facts()
        await self.serving.ask()
        return facts

    def facts(self) -> Facts:
        facts = facts_of(self.presence, "web1", self.now_ns, owner=self.serving.owner("web1"))
        assert facts.stream is not None
        said = self.serving.look("web1", [*facts.others, facts.stream], facts.agent, self.now_ns)
        return msgspec.structs.replace(facts, disagree=said)

    def later(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND_NS)


async def test_storage_is_asked_when_the_machine_s_word_does_not_decide_and_not_for_each_report() -> None:
    site = Site()
    agent = AgentReport(boot="b1", epoch=3, connected=True)
    old = StreamReport(epoch=9)
    for _ in range(20):
        await site.look({"ps1": ONE}, None)
        await site.look({"ps1": ONE, "ps2": old}, agent)
        site.later(2)
    assert site.asked == 0
    for _ in range(200):
        await site.look({"ps1": ONE, "ps2": ONE}, agent)
        site.later(2)
    assert site.asked == 1
    assert site.facts().stream is not None
    assert site.serving.owner("web1") == "ps2"


async def test_what_changed_is_asked_again_and_so_is_what_storage_did_not_answer() -> None:
    site = Site()
    site.away = True
    for _ in range(10):
        await site.look({"ps1": ONE, "ps2": ONE})
        site.later(6)
    assert site.asked == 5
    site.away = False
    await site.look({"ps1": ONE, "ps2": ONE})
    site.later(60)
    site.owner = "ps1"
    await site.look({"ps1": ONE, "ps2": msgspec.structs.replace(ONE, connected=False)})
    assert site.serving.owner("web1") == "ps1"


async def test_servers_that_contradict_each_other_are_both_shown_once_that_lasts() -> None:
    """A machine that moves is with both for a moment."""
    site = Site()
    other = StreamReport(epoch=4, connected=True, boot="b0")
    for passed_s in range(0, int(LASTING_S) + 10, 10):
        facts = await site.look({"ps1": other, "ps2": ONE})
        assert bool(facts.disagree) == (passed_s >= LASTING_S)
        site.later(10)
    assert "process-server:ps1 has its session with boot b0 in epoch 4" in facts.disagree
    assert "process-server:ps2 has its session with boot b1 in epoch 3, and is believed" in facts.disagree
    facts = await site.look({"ps1": StreamReport(epoch=2), "ps2": ONE})
    assert not facts.disagree
